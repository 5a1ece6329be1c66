"""What a finished run came to: shares of its answers to the held-out questions, and differences of runs paired by seed."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from scipy.stats import t as student

from papo_hub.evaluation.answers import read_answers
from papo_hub.metrics.perception_error.perception_error import KINDS, classify


@dataclass(frozen=True)
class Outcome:
    """`before` and `after` the training: QUANTITY or QUANTITY/GROUP → value.

    Quantities: `accuracy` and `masked_accuracy` (masked image), the KINDS of answers to the clean image (shares, which
    add up to 1) and `perception_kl` (nats a token). Groups: the visual dependences high, partial, low. `curves`: columns of
    metrics.jsonl, a value a step, where a question asks for them.
    """

    setup: str
    arm: str
    seed: int
    options: dict[str, Any]
    seconds: float
    before: dict[str, float]
    after: dict[str, float]
    curves: dict[str, list[float | None]] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self), allow_nan=False)


class Estimate(NamedTuple):
    """A mean over n runs with its 95 % interval by Student's t; both ends None for a single run."""

    mean: float
    low: float | None
    high: float | None
    n: int


def measure(run: Path, setup: str, arm: str, seed: int, options: dict[str, Any], seconds: float) -> Outcome:
    """From a run folder; `before` and `after` are empty where it was not measured."""
    folders = [run / "evaluation" / when for when in ("before", "after")]
    before, after = (_shares(folder) if folder.exists() else {} for folder in folders)
    return Outcome(setup, arm, seed, options, round(seconds, 1), before, after)


def estimate(values: Sequence[float], level: float = 0.95) -> Estimate:
    """Raises ValueError for no values."""
    if not values:
        raise ValueError("no runs to take the mean of.")
    mean, n = fmean(values), len(values)
    if n == 1:
        return Estimate(mean, None, None, 1)
    half = float(student.ppf(0.5 + level / 2, n - 1)) * stdev(values) / n**0.5
    return Estimate(mean, mean - half, mean + half, n)


def paired(a: Sequence[Outcome], b: Sequence[Outcome], quantity: str) -> Estimate:
    """Mean of a - b after training, over the seeds that both have, in the units of the quantity."""
    other = {(outcome.setup, outcome.seed): outcome.after[quantity] for outcome in b}
    return estimate(
        [
            outcome.after[quantity] - other[outcome.setup, outcome.seed]
            for outcome in a
            if (outcome.setup, outcome.seed) in other
        ]
    )


def _shares(folder: Path) -> dict[str, float]:
    found = defaultdict(list)
    for answer in read_answers(folder):
        group = answer.tags["dependence"]
        if answer.view != "clean":
            quantities = {"masked_accuracy": answer.verdict}
        else:
            kind = classify(answer.response, answer.tags["reading"], answer.verdict)
            quantities = {"accuracy": answer.verdict} | {name: float(kind == name) for name in KINDS}
            quantities["perception_kl"] = answer.perception_kl / max(answer.tokens, 1)
        for name, value in quantities.items():
            found[name].append(value)
            found[f"{name}/{group}"].append(value)
    return {name: round(fmean(values), 5) for name, values in sorted(found.items())}
