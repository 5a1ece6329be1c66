"""The laboratory: its arithmetic, its arms, its table of finished runs, and that its page says what its results hold."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from lab import arms, gallery, outcome, question, sweep
from lab.__main__ import QUESTIONS
from lab.outcome import Estimate, Outcome, estimate, paired
from lab.question import Found, Question, Row, scale, shown, table
from lab.setups import SETUPS
from lab.sweep import Arm, Run
from papo_hub.config import load_config

ROOT = sweep.ROOT


def made(arm, seed, accuracy, setup="shown", **more):
    return Outcome(setup, arm.name, seed, arm.options, 60.0, {"accuracy": 0.4}, {"accuracy": accuracy}, **more)


# --- arithmetic -------------------------------------------------------------------------------------------------------


def test_interval_by_hand():
    """1, 2, 3: mean 2, deviation 1, two degrees of freedom: 4.302653 · 1 / √3 = 2.484138."""
    value = estimate([1.0, 2.0, 3.0])
    assert value.n == 3 and value.mean == 2
    assert value.high - 2 == pytest.approx(2.484138, abs=1e-6) == pytest.approx(2 - value.low)
    assert estimate([5.0]) == Estimate(5.0, None, None, 1)
    with pytest.raises(ValueError, match="no runs"):
        estimate([])


def test_differences_are_paired_by_set_up_and_seed():
    a = [made(arms.PAPO_G, 1, 0.6), made(arms.PAPO_G, 2, 0.5), made(arms.PAPO_G, 2, 0.9, "plain")]
    b = [made(arms.GRPO, 2, 0.2, "plain"), made(arms.GRPO, 2, 0.4), made(arms.GRPO, 3, 0.0)]
    value = paired(a, b, "accuracy")
    assert value.n == 2 and value.mean == pytest.approx((0.1 + 0.7) / 2)


def test_shares_of_a_measured_run(tmp_path):
    answers = [
        ("clean", "<think> 3 4 1</think> \\boxed{8}", 1.0, "high", 9.0),  # right
        ("clean", "<think> 3 9 1</think> \\boxed{13}", 0.0, "high", 0.0),  # misread
        ("clean", "<think> 3 4 1</think> \\boxed{9}", 0.0, "low", 0.0),  # misused
        ("masked-0.6", "<think> 3 4 1</think> \\boxed{8}", 1.0, "high", None),
    ]
    lines = [
        {
            "benchmark": "digits", "id": f"{i}", "view": view, "sample": 0, "seed": 0, "prompt": "", "answer": "8",
            "response": response, "extracted": None, "verdict": verdict, "format": 1.0, "tokens": 9, "finished": True,
            "perception_kl": divergence, "tags": {"reading": "3 4 1", "dependence": group},
        }
        for i, (view, response, verdict, group, divergence) in enumerate(answers)
    ]  # fmt: skip
    for when in ("before", "after"):
        folder = tmp_path / "evaluation" / when
        folder.mkdir(parents=True)
        (folder / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    after = outcome.measure(tmp_path, "shown", "grpo", 1, {}, 1.0).after
    third = pytest.approx(1 / 3, abs=1e-4)
    assert after["accuracy"] == after["perception_error"] == after["reasoning_error"] == third
    assert after["accuracy/high"] == after["perception_error/high"] == 0.5 and after["reasoning_error/low"] == 1.0
    assert after["perception_kl/high"] == 0.5 and after["perception_kl"] == third  # nats a token: 9 of 9 tokens
    assert after["masked_accuracy"] == 1.0 and "masked_accuracy/low" not in after
    assert outcome.measure(tmp_path / "nothing", "shown", "grpo", 1, {}, 1.0).after == {}


def test_shares_are_shown_in_points_and_divergences_in_nats():
    assert shown(Estimate(0.0123, -0.0004, 0.025, 8), signed=True) == "+1.2 [0.0, +2.5]"
    assert shown(Estimate(0.5, None, None, 1), signed=False) == "50.0"
    assert shown(Estimate(0.5, 0.4, 0.6, 2), False, scale("perception_kl/high")) == "0.5 [0.4, 0.6]"
    assert scale("accuracy") == scale("perception_error") == 100


# --- runs -------------------------------------------------------------------------------------------------------------


def all_runs():
    return [run for question in QUESTIONS.values() for run in question.runs]


def test_an_arm_has_one_meaning():
    options = {}
    for run in all_runs():
        assert options.setdefault(run.arm.name, (run.arm.recipe, run.arm.options)) == (run.arm.recipe, run.arm.options)


@pytest.mark.parametrize("arm", {run.arm.name: run.arm for run in all_runs()}.values(), ids=lambda arm: arm.name)
def test_every_arm_is_a_recipe(arm):
    options = arm.options | {name: v.format(runs="runs") for name, v in arm.options.items() if isinstance(v, str)}
    assert (
        load_config(ROOT / f"recipes/tiny/{arm.recipe}.yaml", sweep.COMMON | options).max_steps
        == arm.options["max_steps"]
    )


def test_every_set_up_is_used():
    assert {run.setup for run in all_runs()} == set(SETUPS)


@pytest.fixture
def started(monkeypatch, tmp_path):
    """What would be run, without running it."""
    calls = []

    def write_rows(setup, path, seed):
        path.parent.mkdir(parents=True)
        path.touch()
        return path

    def start(command, recipe, options, folder):
        calls.append((command, f"{folder.parent.parent.name}/{folder.parent.name}/{folder.name}"))
        folder.mkdir(parents=True, exist_ok=True)
        if command == "warmup":
            (folder / "warmup.json").write_text("{}")
        elif recipe == "vppo":
            raise RuntimeError("vppo failed")
        else:
            (folder / "metrics.jsonl").write_text('{"step": 1, "reward/mean": 0.5}\n')
            (folder / "model").mkdir()

    monkeypatch.setattr(sweep, "_start", start)
    monkeypatch.setattr("lab.setups.Setup.write_warmup_rows", write_rows)
    for name in sweep.ENVIRONMENT:
        monkeypatch.setenv(name, "")  # what a sweep sets ends with the test
    return calls


def test_what_is_finished_stays_finished(tmp_path, started):
    runs = [Run("shown", arm, seed) for seed in (1, 2) for arm in (arms.GRPO, arms.PAPO_G)]
    sweep.sweep([*runs, runs[0]], tmp_path, jobs=1)
    assert started == [
        ("warmup", "shown/warmup/1"),
        ("warmup", "shown/warmup/2"),
        *(("train", f"shown/{arm}/{seed}") for seed in (1, 2) for arm in ("grpo", "papo_g")),
    ]
    assert sorted(path.name for path in (tmp_path / "shown/grpo/1").iterdir()) == ["metrics.jsonl", "outcome.json"]
    (tmp_path / "shown/grpo/1/outcome.json").rename(
        tmp_path / "shown/grpo/1/partial-outcome.json"
    )  # killed before its end
    started.clear()
    sweep.sweep(runs, tmp_path, jobs=2)
    assert started == [("train", "shown/grpo/1")]
    other = Run("shown", replace(arms.GRPO, options={"max_steps": 3}), 1)
    with pytest.raises(ValueError, match="delete it"):
        sweep.sweep([other], tmp_path)


def test_a_run_that_fails_stops_no_other(tmp_path, started):
    runs = [Run("shown", arm, 1) for arm in (arms.VPPO, arms.GRPO)]
    with pytest.raises(RuntimeError, match="1 of 2 runs failed; the first:\nvppo failed"):
        sweep.sweep(runs, tmp_path, jobs=1)
    assert runs[1].finished(tmp_path) and not runs[0].finished(tmp_path)


def test_curves_come_from_the_metrics(tmp_path, started):
    asked = Question("lab.gamma", (Row(arms.GRPO),), {}, lambda found, path: None, "", seeds=2, curves=("reward/mean",))
    found = asked.make(tmp_path, jobs=1, results=tmp_path)
    assert found.curves(arms.GRPO, "reward/mean").tolist() == [[0.5], [0.5]]
    assert Found.read(tmp_path / "gamma.jsonl") == found


# --- the page ---------------------------------------------------------------------------------------------------------


def test_a_table_says_n_mean_and_interval():
    a = [made(arms.PAPO_G, seed, 0.5 + 0.01 * seed) for seed in (1, 2, 3)]
    found = Found([*a, *(made(arms.GRPO, seed, 0.5) for seed in (1, 2, 3))])
    rows = (Row(arms.PAPO_G, arms.GRPO), Row(arms.GRPO))
    asked = Question("lab.gamma", rows, {"accuracy": "Δ accuracy"}, lambda found, path: None, "", seeds=3)
    assert table(asked, found).splitlines()[2:] == [
        "| PAPO-G less GRPO | 3 | +2.0 [-0.5, +4.5] |",
        "| GRPO | 3 | 50.0 [50.0, 50.0] |",
    ]


def asked():
    return [q for q in QUESTIONS.values() if q.results.exists()]


def test_the_page_is_what_the_results_say():
    assert (question.HERE / "README.md").read_text(encoding="utf-8") == gallery.render(QUESTIONS.values())
    for question_asked in asked():
        assert question_asked.answer.strip(), f"{question_asked.name} has results and no answer"
        assert (question.FIGURES / f"{question_asked.name}.png").exists()


@pytest.mark.parametrize("question_asked", asked(), ids=lambda q: q.name)
def test_results_are_whole_and_drawn(question_asked, tmp_path):
    found = question_asked.found()
    assert {(o.setup, o.arm, o.seed) for o in found.outcomes} == {
        (r.setup, r.arm.name, r.seed) for r in question_asked.runs
    }
    assert all(math.isfinite(value) for o in found.outcomes for value in o.after.values())
    question_asked.draw(found, tmp_path / "figure.png")
    assert np.frombuffer((tmp_path / "figure.png").read_bytes()[:4], np.uint8).tolist() == [0x89, 0x50, 0x4E, 0x47]


def test_an_arm_that_changes_another_keeps_the_rest():
    arm = Arm("a", "A", "grpo", {"x": 1, "y": 2}).but("b", "B", y=3)
    assert (arm.name, arm.label, arm.options) == ("a_b", "B", {"x": 1, "y": 3})
