"""A question to the laboratory: the runs it needs, the comparisons that answer it, and what was found."""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lab.outcome import Estimate, Outcome, estimate, paired
from lab.sweep import Arm, Run, sweep
from papo_hub.tracking import read_metrics

HERE = Path(__file__).parent
RESULTS, FIGURES = HERE / "results", HERE / "figures"


class Row(NamedTuple):
    """A line of a table: an arm in one set-up or several, less its baseline (paired by seed), or by itself."""

    arm: Arm
    baseline: Arm | None = None
    setups: tuple[str, ...] = ("shown",)

    @property
    def label(self) -> str:
        against = f" less {self.baseline.label}" if self.baseline else ""
        together = " + ".join(self.setups) if len(self.setups) < 3 else f"{len(self.setups)} set-ups together"
        where = "" if self.setups == ("shown",) else f", {together}"
        return f"{self.arm.label}{against}{where}"


@dataclass(frozen=True)
class Question:
    """One section of the gallery.

    Args:
        module: where it is asked: the first line of the docstring is the question, the rest the hypothesis.
        rows: of the table.
        quantities: columns of the table: a quantity of an Outcome → its heading.
        draw: makes the figure from what was found.
        answer: as measured; Markdown.
        extra: runs that no row names.
        curves: columns of metrics.jsonl that the figure needs.
        prepare: called with the folder of the runs before they are made.
    """

    module: str
    rows: Sequence[Row]
    quantities: dict[str, str]
    draw: Callable[[Found, Path], None]
    answer: str
    seeds: int
    extra: Sequence[Run] = ()
    curves: tuple[str, ...] = ()
    prepare: Callable[[Path], None] | None = None

    @property
    def name(self) -> str:
        return self.module.rpartition(".")[2]

    @property
    def results(self) -> Path:
        return RESULTS / f"{self.name}.jsonl"

    @property
    def text(self) -> tuple[str, str]:
        """(question, hypothesis)."""
        question, _, hypothesis = (sys.modules[self.module].__doc__ or "").strip().partition("\n\n")
        return question, hypothesis

    @property
    def runs(self) -> list[Run]:
        """Each once, seed by seed."""
        arms = [(setup, arm) for row in self.rows for arm in (row.baseline, row.arm) if arm for setup in row.setups]
        runs = [Run(setup, arm, seed) for seed in range(1, self.seeds + 1) for setup, arm in arms]
        return list({run.folder(Path()): run for run in [*runs, *self.extra]}.values())

    def make(self, runs: Path, jobs: int | None = None, results: Path = RESULTS) -> Found:
        """Make the runs that are missing and write RESULTS/NAME.jsonl, a line a run. Raises as `sweep`."""
        if self.prepare is not None:
            self.prepare(runs)
        sweep(self.runs, runs, jobs)
        found = Found([_with_curves(run, runs, self.curves) for run in self.runs])
        found.write(results / f"{self.name}.jsonl")
        return found

    def found(self) -> Found:
        """From results/NAME.jsonl. Raises FileNotFoundError before the question was asked."""
        return Found.read(self.results)


@dataclass(frozen=True)
class Found:
    """The outcomes of a question's runs."""

    outcomes: list[Outcome] = field(default_factory=list)

    def of(self, arm: Arm, setups: Sequence[str] = ("shown",)) -> list[Outcome]:
        """By set-up and seed."""
        chosen = [outcome for outcome in self.outcomes if outcome.arm == arm.name and outcome.setup in setups]
        return sorted(chosen, key=lambda outcome: (outcome.setup, outcome.seed))

    def estimate(self, row: Row, quantity: str, when: str = "after") -> Estimate:
        """The row's mean after training, or its mean difference from the baseline; as shares."""
        mine = self.of(row.arm, row.setups)
        if row.baseline is None:
            return estimate([getattr(outcome, when)[quantity] for outcome in mine])
        return paired(mine, self.of(row.baseline, row.setups), quantity)

    def curves(self, arm: Arm, metric: str, setups: Sequence[str] = ("shown",)) -> np.ndarray:
        """(runs, steps), NaN where a step has none."""
        return np.array([outcome.curves[metric] for outcome in self.of(arm, setups)], dtype=float)

    def write(self, file: Path) -> None:
        file.parent.mkdir(exist_ok=True)
        lines = [json.dumps(asdict(outcome), separators=(",", ":")) for outcome in self.outcomes]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, file: Path) -> Found:
        return cls([Outcome(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()])


def scale(quantity: str) -> float:
    """What it is multiplied by to be shown: shares are shown in points, divergences in nats."""
    return 1.0 if quantity.startswith("perception_kl") else 100.0


def shown(value: Estimate, signed: bool, scale: float = 100.0) -> str:
    """A mean and its interval: "+1.2 [-0.3, +2.7]"."""
    form = "+.1f" if signed else ".1f"

    def text(number: float) -> str:
        return re.sub(r"^[+-](0\.0)$", r"\1", format(scale * number, form))

    interval = "" if value.low is None else f" [{text(value.low)}, {text(value.high)}]"
    return text(value.mean) + interval


def table(question: Question, found: Found) -> str:
    """The rows of a question as Markdown: n, then each quantity with its 95 % interval, shares in points."""
    lines = [
        "| | n | " + " | ".join(question.quantities.values()) + " |",
        "|---" * (2 + len(question.quantities)) + "|",
    ]
    for row in question.rows:
        values = {quantity: found.estimate(row, quantity) for quantity in question.quantities}
        cells = [shown(value, row.baseline is not None, scale(quantity)) for quantity, value in values.items()]
        lines.append(f"| {row.label} | {next(iter(values.values())).n} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _with_curves(run: Run, runs: Path, metrics: Sequence[str]) -> Outcome:
    outcome = run.outcome(runs)
    if not metrics:
        return outcome
    columns = defaultdict(list)
    for row in read_metrics(run.folder(runs) / "metrics.jsonl"):
        for metric in metrics:
            value = row[metric]
            columns[metric].append(None if value is None else float(f"{value:.4g}"))
    return replace(outcome, curves=dict(columns))
