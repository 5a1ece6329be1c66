"""The early signs of perception hacking, read from a run's metrics: training that warns before it collapses.

A γ that is too large makes the policy raise its divergence from the masked view instead of reading the image (arXiv
2507.06448: the perception loss drops sharply, more tokens are clipped from above, both entropies rise, then the rewards
fall; the variance of the per-token divergence grows 8.4-fold). With frozen masked log-probs that divergence stays flat, and
the distance from the reference model tells earlier. Each of these also wobbles in sound runs. So a sign is a move that is
large *and* beyond the run's own noise, and an alarm takes two independent signs, or one that is the harm itself.

For every watched quantity, the present level is the mean of the last `RECENT` steps. It is compared with the best level of
the `HORIZON` steps before, where a level is the median of half of those steps, at least `SPAN`; the noise of a step is the
typical difference between neighbours. So a verdict follows from the last `HORIZON` + `RECENT` rows alone, at step 50 as at
step 5,000. The thresholds were set on four seeds of each kind of run in benchmarks/guard.py and judged on others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

RECENT = 3  # steps whose mean is the present level
SPAN = 5  # steps, at least, whose median is an earlier level
HORIZON = 40  # steps looked back on; what takes longer is drift
FIRST = 3  # earlier steps that a verdict needs
SIGNIFICANT = 2.5  # standard errors of the present level
HARM_ALONE = 2.0  # thresholds that reward or format must fall by to be an alarm without another sign
NEAR_CLAMP = 0.5  # share of the clamp from which on the perception KL is an alarm without another sign
QUIET = 10  # steps without the condition of an alarm, after which a new one is raised
PATIENCE = 5  # steps after an alarm, before a sign that joins renews it


@dataclass(frozen=True)
class Sign:
    """One quantity that moves as in a collapse."""

    name: str  # "perception_kl", "clip_high", "entropies", "format", "reward", "kl_variance" or "reference_kl"
    text: str  # what was seen, with figures


@dataclass(frozen=True)
class Alarm:
    """What `Guard.observe` says, once, when a run begins to look like a collapse."""

    step: int
    since: int  # the step after the last one without any sign
    signs: tuple[Sign, ...]
    remedy: str  # one sentence, in the recipe's keys


@dataclass(frozen=True)
class Rule:
    """A quantity has moved far when it has moved by `share` of its earlier level and by `least`, in its own unit."""

    label: str
    metric: str  # its name in metrics.jsonl
    direction: int  # 1: rising is bad; -1: falling is
    share: float
    least: float = 0.0


RULES = {
    "reward": Rule("reward", "reward/mean", -1, 0.12),
    "format": Rule("format reward", "reward/format", -1, 0.02),
    "perception_kl": Rule("perception KL", "objective/perception_kl", 1, 0.5, least=0.2),
    "kl_variance": Rule("variance of its tokens", "objective/perception_kl_variance", 1, 1.0),
    "clip_high": Rule("share of tokens clipped high", "objective/clip_fraction_high", 1, 2.0, least=0.005),
    "entropy": Rule("entropy", "objective/entropy", 1, 0.25),
    "masked_entropy": Rule("masked entropy", "objective/masked_entropy", 1, 0.25),
    "reference_kl": Rule("KL to the reference", "objective/reference_kl", 1, 0.5, least=0.05),
}
SIGNS = {
    "perception_kl": ("perception_kl",),
    "clip_high": ("clip_high",),
    "entropies": ("entropy", "masked_entropy"),  # both must rise
    "format": ("format",),
    "reward": ("reward",),
    "kl_variance": ("kl_variance",),
    "reference_kl": ("reference_kl",),
}
DIVERGENCE = {
    "perception_kl",
    "kl_variance",
}  # two faces of one sign, and both rise in sound runs with a live masked view


@dataclass(frozen=True)
class Move:
    """A quantity's way from its best level to its present one, which is `strength` times as far as its rule asks."""

    before: float
    after: float
    steps: int
    strength: float


class Guard:
    """Watches a run, row by row of metrics.jsonl. Pure arithmetic on those rows: all processes may hold one and agree.

    Args:
        clamp: the largest perception KL that a token can have, nats; `math.inf` for an estimator without one.
    """

    def __init__(self, clamp: float = 10.0) -> None:
        if not clamp > 0:
            raise ValueError(f"clamp: {clamp} must be above 0: it is the largest perception KL of a token, in nats.")
        self.clamp = clamp
        self.healthy_until = 0  # the newest step without any sign: checkpoints up to it are good (the first 5 unjudged)
        self.uneasy = False  # whether a sign stands that is more than a divergence that rises
        self._history: dict[str, list[float | None]] = {name: [] for name in RULES}  # the last HORIZON + RECENT steps
        self._last_alarm = self._last_condition = 0  # steps
        self._told: set[str] = set()  # the signs of the alarms since it was quiet

    def observe(self, row: Mapping[str, Any]) -> Alarm | None:
        """Take in one step; an `Alarm` when one is raised, None while all is well or an alarm merely stands.

        Args:
            row: a line of metrics.jsonl: "step" and the names of docs/metrics.md. What is missing, None or not finite is
                not judged.
        """
        step = row["step"]
        for name, values in self._history.items():
            value = row.get(RULES[name].metric)
            values.append(value if value is not None and math.isfinite(value) else None)
            del values[: -(HORIZON + RECENT)]
        signs, condition = self._judge()
        if not signs:
            self.healthy_until = step
        self.uneasy = bool({sign.name for sign in signs} - DIVERGENCE)
        if not condition:
            return None
        names = {sign.name for sign in signs}
        if step - self._last_condition > QUIET:
            self._told.clear()
        self._last_condition = step
        if self._told and (names <= self._told or step - self._last_alarm < PATIENCE):
            return None
        self._last_alarm = step
        self._told |= names
        return Alarm(step, self.healthy_until + 1, signs, self._remedy(names))

    def _judge(self) -> tuple[tuple[Sign, ...], bool]:
        """The standing signs, and whether they are enough for an alarm."""
        moves = {name: move for name in RULES if (move := _move(self._history[name], RULES[name])) is not None}
        standing = {name for name, move in moves.items() if move.strength >= 1}
        signs = tuple(
            Sign(name, " and ".join(_told(RULES[part].label, moves[part]) for part in parts))
            for name, parts in SIGNS.items()
            if standing.issuperset(parts)
        )
        alone = any(name in standing and moves[name].strength >= HARM_ALONE for name in ("reward", "format"))
        near = "perception_kl" in standing and moves["perception_kl"].after >= NEAR_CLAMP * self.clamp
        independent = len(signs) - ({sign.name for sign in signs} >= DIVERGENCE)
        return signs, independent >= 2 or alone or near

    def _remedy(self, names: set[str]) -> str:
        back = f"resume from a checkpoint of step {self.healthy_until} or before"
        if all(value is None for value in self._history["perception_kl"]):
            return f"Lower learning_rate or raise beta, and {back}."
        if names <= {"reward", "format", "reference_kl"}:
            return f"Halve gamma (frozen masked log-probs let its KL stay flat), or lower learning_rate, and {back}."
        return f"Halve gamma, or set eta_clean and eta_masked to 0.03 with masked_logprobs: live, and {back}."

    def state_dict(self) -> dict[str, Any]:
        """All that later verdicts depend on, as JSON can hold it."""
        return {
            "healthy_until": self.healthy_until,
            "history": {name: list(values) for name, values in self._history.items()},
            "last_alarm": self._last_alarm,
            "last_condition": self._last_condition,
            "told": sorted(self._told),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`: the next rows get the verdicts that they would have got.

        Raises ValueError for the state of another version, which watched something else.
        """
        if state["history"].keys() != RULES.keys():
            raise ValueError(f"The guard's state watches {sorted(state['history'])}, this guard {sorted(RULES)}.")
        self.healthy_until = state["healthy_until"]
        self._history = {name: list(values) for name, values in state["history"].items()}
        self._last_alarm, self._last_condition = state["last_alarm"], state["last_condition"]
        self._told = set(state["told"])


def _move(history: Sequence[float | None], rule: Rule) -> Move | None:
    """How far the newest values have moved the wrong way; None where the last is missing or it is too early to tell."""
    if history[-1] is None:
        return None
    values = [value for value in history if value is not None]
    earlier, recent = values[:-RECENT], values[-RECENT:]
    if len(earlier) < FIRST:
        return None
    span = min(max(SPAN, len(earlier) // 2), len(earlier))
    levels = [median(earlier[i : i + span]) for i in range(len(earlier) - span + 1)]
    before = min(levels, key=lambda level: rule.direction * level)
    age = levels[::-1].index(before) + span // 2 + RECENT  # since the middle of the newest such level
    noise = 1.4826 * median(abs(b - a) for a, b in zip(earlier, earlier[1:], strict=False)) / math.sqrt(2)
    noise *= 1 + 1 / (len(earlier) - 1)  # a few differences may be small by chance
    after = fmean(recent)
    needed = max(rule.share * abs(before), rule.least, SIGNIFICANT * noise / math.sqrt(RECENT))
    return Move(before, after, age, rule.direction * (after - before) / needed if needed else 0.0)


def _told(label: str, move: Move) -> str:
    return f"{label} {move.before:.3g} -> {move.after:.3g} within {move.steps} steps"
