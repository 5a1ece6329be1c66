"""The guard: each rule just below and just above its threshold, sound runs that must stay silent, runs that collapsed."""

import json
import math
import random
import re
from itertools import islice
from pathlib import Path

import pytest

from benchmarks import guard as benchmark
from papo_hub.config import TrainConfig
from papo_hub.guard import (
    FIRST,
    HARM_ALONE,
    HORIZON,
    NEAR_CLAMP,
    PATIENCE,
    QUIET,
    RECENT,
    RULES,
    SIGNIFICANT,
    SIGNS,
    Guard,
)

ROOT = Path(__file__).parents[2]
WELL = {
    "reward": 0.6,
    "format": 0.95,
    "perception_kl": 0.5,
    "kl_variance": 2.0,
    "clip_high": 0.001,
    "entropy": 0.2,
    "masked_entropy": 0.8,
    "reference_kl": 0.2,
}
KNOWN = 20  # steps on one level before anything happens
LOW = {"reward": 0.6 * 0.87}  # a fall of 13 %: a sign, and not an alarm alone


def row(step: int, **values) -> dict:
    return {"step": step} | {RULES[name].metric: value for name, value in (WELL | values).items()}


def alarms(rows, guard: Guard | None = None) -> list:
    guard = guard or Guard()
    return [alarm for alarm in map(guard.observe, rows) if alarm is not None]


def moved(before: int = KNOWN, steps: int = RECENT, **values) -> list[dict]:
    """A run on one level whose last `steps` steps lie on another."""
    return [row(step) for step in range(1, before + 1)] + [row(before + i, **values) for i in range(1, steps + 1)]


def names(alarm) -> set[str]:
    return {sign.name for sign in alarm.signs}


def recorded(name: str) -> list[dict]:
    columns = json.loads((ROOT / "tests/data/guard_runs.json").read_text(encoding="utf-8"))[name]
    return [
        {"step": i + 1} | dict(zip(columns, values, strict=True))
        for i, values in enumerate(zip(*columns.values(), strict=True))
    ]


# --- one sign: how far is far -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RULES)
def test_a_move_is_a_sign_from_the_rules_share_on(name):
    """Beside a fall of the reward, whose sign is one of the two that an alarm takes. The other entropy has risen well."""
    rule, companion = RULES[name], dict(LOW) if name != "reward" else {"format": 0.92}
    if "entropy" in name:
        companion |= {"entropy": 0.4, "masked_entropy": 1.6}
    far = max(rule.share * WELL[name], rule.least)
    for share, expected in ((0.99, False), (1.01, True)):
        found = alarms(moved(**companion | {name: WELL[name] + rule.direction * share * far}))
        assert bool(found) == expected
        assert (
            alarms(moved(**companion | {name: WELL[name] - rule.direction * share * far})) == []
        )  # the good direction
    assert found[0].step == KNOWN + RECENT, "the level of three steps: none of them earlier"
    (sign,) = {sign for sign, parts in SIGNS.items() if name in parts}
    assert sign in names(found[0])


@pytest.mark.parametrize("name", ["reward", "format"])
def test_the_harm_itself_is_an_alarm_alone_at_twice_its_share(name):
    far = HARM_ALONE * RULES[name].share * WELL[name]
    assert alarms(moved(**{name: WELL[name] - 0.99 * far})) == []
    (alarm,) = alarms(moved(**{name: WELL[name] - 1.01 * far}))
    assert names(alarm) == {name}
    assert "gamma" in alarm.remedy and "learning_rate" in alarm.remedy


def test_no_other_sign_is_an_alarm_alone():
    for sign, parts in SIGNS.items():
        if sign not in ("reward", "format"):
            values = {name: WELL[name] * 8 for name in parts}
            assert alarms(moved(**values)) == [], sign


def test_the_divergence_and_its_variance_are_one_sign():
    rising = {"perception_kl": 2.0, "kl_variance": 17.0}
    assert alarms(moved(**rising)) == []
    (alarm,) = alarms(moved(**rising | LOW))
    assert names(alarm) == {"perception_kl", "kl_variance", "reward"}


def test_the_divergence_alone_is_an_alarm_from_half_the_clamp_on():
    assert alarms(moved(perception_kl=10 * NEAR_CLAMP - 0.01)) == []
    (alarm,) = alarms(moved(perception_kl=10 * NEAR_CLAMP + 0.01))
    assert names(alarm) == {"perception_kl"}
    assert alarms(moved(perception_kl=1.2), Guard(clamp=2.0)) and not alarms(moved(perception_kl=1.2))
    assert alarms(moved(perception_kl=1e6), Guard(clamp=math.inf)) == []
    with pytest.raises(ValueError, match="clamp: 0 must be above 0"):
        Guard(clamp=0)


def test_a_divergence_near_the_clamp_all_along_is_not_a_rise():
    assert alarms([row(step, perception_kl=8.0) for step in range(1, 60)]) == []


def test_the_noise_of_the_run_sets_the_threshold_where_it_is_larger():
    # neighbours differ by 2a: noise = 1.4826 * 2a / sqrt(2) * (1 + 1/19), of three steps' mean 1 / sqrt(3) of it
    a = 0.07
    needed = SIGNIFICANT * 1.4826 * 2 * a / math.sqrt(2) * (1 + 1 / (KNOWN - 1)) / math.sqrt(RECENT)
    assert needed > RULES["reward"].share * 0.6
    before = [row(step, reward=0.6 + a * (-1) ** step) for step in range(1, KNOWN + 1)]
    for share, expected in ((0.99, False), (1.01, True)):
        fall = HARM_ALONE * share * needed
        after = [row(KNOWN + i, reward=0.6 - fall) for i in (1, 2, 3)]
        assert bool(alarms(before + after)) == expected


def test_the_level_compared_with_is_the_best_within_the_horizon():
    def fall_after(steps: int) -> list:
        """From 0.6 down to 0.54 and, `steps` steps later, to 0.45: 25 % below the first level, 17 % below the second."""
        rewards = [0.4] * KNOWN + [0.6] * KNOWN + [0.54] * steps + [0.45] * RECENT
        return alarms(row(i + 1, reward=reward) for i, reward in enumerate(rewards))

    (alarm,) = fall_after(10)
    assert alarm.signs[0].text == "reward 0.6 -> 0.45 within 14 steps", "the newest 20 steps of which 11 lie on 0.6"
    assert fall_after(HORIZON) == []


def test_the_first_verdict_is_as_early_as_it_can_be():
    for before in (FIRST - 1, FIRST):
        assert bool(alarms(moved(before=before, reward=0.3))) == (before == FIRST)


# --- sound runs -------------------------------------------------------------------------------------------------------


def sound(steps: int, seed: int = 0):
    """A run of 320 completions a step: spreads as large as the tiny recipes', the divergence's moves in common."""
    generator = random.Random(seed)
    for step in range(1, steps + 1):
        common = generator.gauss(0, 0.1)
        yield row(
            step,
            reward=0.45 + generator.gauss(0, 0.04),
            format=min(1.0, 0.98 + generator.gauss(0, 0.008)),
            perception_kl=0.5 * (1 + common),
            kl_variance=2 * (1 + common + generator.gauss(0, 0.05)),
            clip_high=max(0.0, generator.gauss(0.0005, 0.0008)),
            entropy=0.2 * (1 + generator.gauss(0, 0.1)),
            masked_entropy=0.8 * (1 + 0.9 * common + generator.gauss(0, 0.04)),
        )


def test_noise_alone_is_silent():
    assert alarms(sound(3000)) == []
    assert not any(alarms(sound(40, seed)) for seed in range(1, 40))


def test_rewards_that_rise_and_wobble_with_a_gently_rising_divergence_are_silent():
    generator = random.Random(1)
    rows = [
        row(
            step,
            reward=0.4 + 0.3 * step / 300 + 0.03 * math.sin(step / 7) + generator.gauss(0, 0.02),
            perception_kl=0.5 * 4 ** (step / 300),
            kl_variance=2 * 4 ** (step / 300),
            masked_entropy=0.8 * 3 ** (step / 300),
            entropy=0.2 - 0.1 * step / 300,
        )
        for step in range(1, 301)
    ]
    assert alarms(rows) == []
    guard = Guard()
    alarms(rows, guard)
    assert guard.healthy_until == 300, "what takes hundreds of steps is drift, not a sign"


def test_a_warm_up_of_the_learning_rate_and_an_annealed_gamma_are_silent():
    warm = [row(step, reward=0.3 + 0.4 * max(0.0, 1 - math.exp(-(step - 30) / 20))) for step in range(1, 120)]
    assert alarms(warm) == []
    annealed = [
        row(step, perception_kl=max(0.05, 1 - step / 60), kl_variance=max(0.2, 4 - step / 15)) for step in range(1, 120)
    ]
    assert alarms(annealed) == []


def test_a_reward_that_leaves_zero_is_silent():
    assert (
        alarms([row(step, reward=0.0 if step < 20 else 0.1, format=0.0, clip_high=0.0) for step in range(1, 60)]) == []
    )


# --- what is missing --------------------------------------------------------------------------------------------------


def test_a_run_without_a_masked_view_is_judged_by_its_rewards():
    absent = {"perception_kl": None, "kl_variance": None, "masked_entropy": None, "clip_high": 0.0}
    rows = [row(step, **absent, reward=0.6 if step <= KNOWN else 0.4) for step in range(1, KNOWN + 4)]
    (alarm,) = alarms(rows)
    assert "gamma" not in alarm.remedy and "learning_rate" in alarm.remedy
    missing = [{key: value for key, value in r.items() if value is not None} for r in rows]
    assert alarms(missing) == [alarm]
    some = [r if i % 7 else r | {RULES["perception_kl"].metric: None} for i, r in enumerate(moved(reward=0.4))]
    assert "gamma" in alarms(some)[0].remedy


@pytest.mark.parametrize("hole", [None, math.nan, math.inf])
def test_a_step_without_a_value_is_not_judged_by_it(hole):
    rows = moved(reward=0.3)
    rows.insert(KNOWN, row(KNOWN, reward=hole))
    rows = [r | {"step": i + 1} for i, r in enumerate(rows)]
    (alarm,) = alarms(rows)
    assert alarm.step == alarms(moved(reward=0.3))[0].step + 1
    guard = Guard()
    alarms(rows, guard)
    assert guard.observe(row(KNOWN + 5, reward=hole)) is None
    assert guard.healthy_until == KNOWN + 5, "without a value nothing can stand"
    assert json.loads(json.dumps(guard.state_dict(), allow_nan=False)) == guard.state_dict()
    assert alarms([{"step": step} for step in range(1, 60)]) == []


# --- when it speaks ---------------------------------------------------------------------------------------------------


def test_an_alarm_is_raised_once_and_names_the_last_good_step():
    guard = Guard()
    (alarm,) = alarms(moved(steps=HORIZON, reward=0.4), guard)
    assert (alarm.step, alarm.since) == (KNOWN + 3, KNOWN + 2), (
        "means of three: 0.53 is well, 0.47 a sign, 0.4 an alarm"
    )
    assert alarm.signs[0].text == "reward 0.6 -> 0.4 within 8 steps", "since the middle of ten steps"
    assert f"step {KNOWN + 1} or before" in alarm.remedy


def test_the_last_good_step_is_before_the_first_of_the_signs():
    weak = moved(steps=5, **LOW)  # a sign from step 23 on
    (alarm,) = alarms(weak + [row(26 + i, **LOW, perception_kl=2.0) for i in range(3)])
    assert (alarm.since, alarm.step) == (KNOWN + RECENT, 26)


def test_a_sign_that_joins_renews_the_alarm_but_not_at_once():
    def joined_after(steps: int) -> list[int]:
        rows = moved(steps=steps, reward=0.4)
        rows += [row(len(rows) + 1 + i, reward=0.4, format=0.5) for i in range(8)]
        return [alarm.step for alarm in alarms(rows)]

    first = KNOWN + RECENT
    assert joined_after(RECENT) == [first, first + PATIENCE]
    assert joined_after(12) == [first, KNOWN + 12 + 1]


def test_an_alarm_is_raised_anew_after_quiet():
    def twice(apart: int) -> list[int]:
        """The reward falls for three steps, of which the third is an alarm, and comes back; twice."""
        fall = [0.4] * RECENT + [0.9]
        rewards = [0.6] * KNOWN + fall + [0.6] * (apart - len(fall)) + fall
        return [alarm.step for alarm in alarms(row(i + 1, reward=reward) for i, reward in enumerate(rewards))]

    first = KNOWN + RECENT
    assert twice(QUIET + 1) == [first, first + QUIET + 1]
    assert twice(QUIET) == [first]


# --- state ------------------------------------------------------------------------------------------------------------


def test_a_reloaded_guard_says_what_it_would_have_said():
    rows = recorded("collapse")
    told = [Guard.observe(guard, r) for guard in [Guard()] for r in rows]
    assert sum(alarm is not None for alarm in told) >= 2
    for stop in range(len(rows)):
        before, after = Guard(), Guard()
        for r in rows[:stop]:
            before.observe(r)
        after.load_state_dict(json.loads(json.dumps(before.state_dict(), allow_nan=False)))
        assert after.healthy_until == before.healthy_until
        for r in rows[stop : stop + 12]:
            expected = before.observe(r)
            assert after.observe(r) == expected == told[r["step"] - 1]
        assert after.state_dict() == before.state_dict()


def test_a_state_is_a_copy_and_bounded():
    guard = Guard()
    alarms(islice(sound(500), 200), guard)
    state = guard.state_dict()
    assert {len(values) for values in state["history"].values()} == {HORIZON + RECENT}
    kept = json.dumps(state)
    guard.observe(row(201))
    other = Guard()
    other.load_state_dict(state)
    other.observe(row(201))
    assert json.dumps(state) == kept


def test_a_long_run_is_judged_as_a_short_one():
    rows = [r | {"step": 5000 + i} for i, r in enumerate(sound(300))]
    rows += [row(5300 + i, reward=0.45 - 0.04 * i, perception_kl=0.5 + 0.2 * i) for i in range(8)]
    (long,) = alarms(rows)
    (short,) = alarms(rows[-HORIZON - RECENT - 8 :])
    assert long == short


def test_a_state_of_something_else_is_refused():
    state = Guard().state_dict()
    del state["history"]["reward"]
    with pytest.raises(ValueError, match="'reward'"):
        Guard().load_state_dict(state)


# --- recorded runs ----------------------------------------------------------------------------------------------------


def test_a_recorded_collapse_is_seen_coming():
    rows = recorded("collapse")
    first = alarms(rows)[0]
    assert names(first) == {"perception_kl", "kl_variance", "format"}
    assert benchmark.collapse_step(rows) - first.step == 8


def test_a_recorded_sound_run_is_silent_though_its_divergence_triples():
    rows = recorded("healthy")
    divergence = [r["objective/perception_kl"] for r in rows]
    assert min(divergence[-10:]) > 2 * max(divergence[:5]) * 0.95
    assert alarms(rows) == [] and benchmark.collapse_step(rows) is None


# --- the benchmark and the document -----------------------------------------------------------------------------------


def test_a_collapse_by_hand():
    # means of five: 0.9 up to step 6, then 0.9 - 0.08 k; a third below 0.9 is 0.6, and 0.58 is the first below it
    rows = [{"step": i + 1, "reward/mean": 0.9 if i < 6 else 0.5} for i in range(12)]
    assert benchmark.collapse_step(rows) == 10
    assert benchmark.collapse_step(rows[:9]) is None


def test_rates_by_hand():
    def run(kind, collapse, alarm):
        return {"kind": kind, "collapse": collapse, "alarm": alarm, "left_at_alarm": 0.9, "left_at_end": 0.123}

    verdicts = [
        run("collapse_live", c, a) for c, a in ((20, 12), (20, 18), (20, 19), (20, None), (None, 30), (None, None))
    ]
    verdicts += [run("healthy_grpo", None, None)] * 3
    assert [row[1:] for row in benchmark.rates(verdicts)] == [
        ["6", "4", "2 of 4", "2 (1 to 8)", "90 % → 12 %", "1 of 2"],
        ["3", "0", "–", "–", "–", "0 of 3"],
    ]


def test_the_documents_give_the_measured_rates():
    folder = ROOT / "benchmarks/results"
    verdicts = json.loads((folder / "guard.json").read_text(encoding="utf-8"))["runs"]
    for kind in ("collapse_frozen", "collapse_live", "healthy_papo_g"):
        assert sum(verdict["kind"] == kind for verdict in verdicts) >= 10
    table = benchmark.rates_table(verdicts)
    for document in (ROOT / "docs/guard.md", folder / "guard.md"):
        assert table in document.read_text(encoding="utf-8"), document


def test_the_document_gives_the_rules_and_the_remedies_name_recipe_keys():
    text = (ROOT / "docs/guard.md").read_text(encoding="utf-8")
    for rule in RULES.values():
        (line,) = [line for line in text.splitlines() if line.startswith("| ") and f"`{rule.metric}`" in line]
        assert f"{100 * rule.share:g} %" in line
        assert not rule.least or f"{rule.least:g}" in line
    numbers = (
        f"mean of its last {RECENT} steps",
        f"best level of the {HORIZON} steps before",
        f"by {SIGNIFICANT:g} standard errors of a mean of {RECENT} steps",
        f"({HARM_ALONE * 100 * RULES['reward'].share:g} % or {HARM_ALONE * 100 * RULES['format'].share:g} %",
        f"({10 * NEAR_CLAMP:g} of 10 nats)",
        f"after {QUIET} steps without its condition, or when a further sign joins, {PATIENCE} steps later",
        f"first verdict falls at step {FIRST + RECENT}",
        f"depends on the last {HORIZON + RECENT} steps alone",
        f"slower than {100 * RULES['reward'].share:g} % in {HORIZON} steps",
    )
    prose = " ".join(text.split())
    for number in numbers:
        assert number in prose
    keys = TrainConfig.__dataclass_fields__
    remedies = {alarms(rows)[0].remedy for rows in (moved(reward=0.3), moved(**LOW, perception_kl=2.0))}
    remedies |= {alarms(moved(reward=0.3, perception_kl=None))[0].remedy}
    for remedy in remedies:
        assert remedy.endswith(".") and set(re.findall(r"\w+_\w+", remedy)) <= keys.keys()
