"""Two evaluations side by side: what each model got right on the problems that both answered.

The comparison is paired: a problem that is hard for both says nothing about either, so differences are taken problem by
problem and only then averaged. That is worth several times the problems of an unpaired comparison.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from papo_hub.card.escape import plain
from papo_hub.config import ConfigError
from papo_hub.evaluation.answers import Answer, read_answers
from papo_hub.evaluation.page import p_value, points, write_page
from papo_hub.evaluation.subsets import READING, subsets
from papo_hub.evaluation.views import BLANK, CLEAN
from papo_hub.metrics.perception_error.perception_error import classify
from papo_hub.statistics import paired_difference, paired_macro

MEAN = "mean of the benchmarks"
SIGNIFICANCE = 0.05
MOST_FLIPS = 10
# What must be the same for a difference to be the models' own; the seed need not.
PROTOCOL = ("k", "temperature", "top_p", "grader")
DATA = ("dataset", "split", "commit", "content", "columns", "prompt_suffix", "max_completion_length")

Problem = tuple[str, str]  # benchmark, id


@dataclass(frozen=True)
class Side:
    """One of the two evaluations."""

    label: str  # "A" or "B"
    folder: Path
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """The model with its commit, or the hash of its weights, where known."""
        model = self.settings.get("model")
        if not isinstance(model, dict) or not model.get("name"):
            return self.folder.name
        version = model.get("commit") or model.get("weights")
        return f"{model['name']}" + (f" ({str(version)[:8]})" if version else "")


@dataclass(frozen=True)
class Row:
    """One difference. Quantities are shares, 0 to 1: means over problems of each problem's mean over its answers."""

    benchmark: str  # MEAN: the unweighted mean of the benchmarks'
    subset: str  # "all", or "dependence: high"
    quantity: str  # "accuracy", "gap" (accuracy on the clean image less that on `view`), "perception errors", …
    view: str  # of the image
    a: float
    b: float
    difference: float  # b - a
    low: float  # 95 % interval of the difference, bootstrap over problems
    high: float
    p: float  # two-sided, sign-flip permutation of the problems' differences
    problems: int
    wins: int  # problems on which B's share is the higher one
    ties: int
    losses: int

    @property
    def shown(self) -> bool:
        """Whether the data show that there is a difference: by the interval and, since that is too narrow for a few
        problems, by the permutation test as well."""
        return self.p < SIGNIFICANCE and not self.low <= 0 <= self.high

    @property
    def name(self) -> str:
        """What is compared, without the benchmark: "", "dependence: high", "image mask-0.6", "gap clean - blank"."""
        if self.quantity == "gap":
            return f"gap {CLEAN} - {self.view}"
        if self.quantity != "accuracy":
            return self.quantity
        if self.view != CLEAN:
            return f"image {self.view}"
        return "" if self.subset == "all" else self.subset


@dataclass(frozen=True)
class Flip:
    """A problem on which the models differ, with all their answers to its clean image."""

    benchmark: str
    id: str
    reference: str
    difference: float  # mean verdict of B less that of A
    a: tuple[Answer, ...]
    b: tuple[Answer, ...]


@dataclass(frozen=True)
class Comparison:
    """B against A: the rows, the problems that changed most, and what a reader must know to believe them."""

    a: Side
    b: Side
    rows: tuple[Row, ...]  # the first is the one that counts: the mean of the benchmarks, or the only benchmark
    flips: tuple[Flip, ...]
    notes: tuple[str, ...]

    @property
    def headline(self) -> str:
        """The result in one sentence."""
        row = self.rows[0]
        benchmarks = {row.benchmark for row in self.rows} - {MEAN}
        on = f"on {row.benchmark}" if row.benchmark != MEAN else f"on average over {len(benchmarks)} benchmarks"
        problems = _problems(row.problems)
        if not row.shown:
            return (
                f"No difference can be shown {on}: B is {points(row.difference)} points from A "
                f"(95 % interval {points(row.low)} to {points(row.high)}; {problems})."
            )
        size, ends = abs(row.difference), sorted((abs(row.low), abs(row.high)))
        return (
            f"B is {100 * size:.1f} points {'better' if row.difference > 0 else 'worse'} than A {on} "
            f"(95 % interval {100 * ends[0]:.1f} to {100 * ends[1]:.1f}; {problems})."
        )

    @property
    def text(self) -> str:
        """The comparison as a table for a terminal, at most 100 columns wide where names allow it."""
        lines = [plain(self.headline), "", *(f"  {side.label}  {plain(side.name)}" for side in (self.a, self.b)), ""]
        names = [_clip(f"  {plain(row.name)}" if row.name else plain(row.benchmark), 32) for row in self.rows]
        width = max(map(len, names))
        lines.append(f"{'':<{width}}{'problems':>9}{'A':>6}{'B':>6}{'B - A':>7}{'95 % interval':>17}{'p':>7}  +/=/-")
        for name, row in zip(names, self.rows, strict=True):
            interval = f"[{points(row.low)}, {points(row.high)}]"
            lines.append(
                f"{name:<{width}}{row.problems:>9,}{100 * row.a:>6.1f}{100 * row.b:>6.1f}{points(row.difference):>7}"
                f"{interval:>17}{p_value(row.p):>7}  {row.wins}/{row.ties}/{row.losses}"
            )
        lines.append(
            "Shares in percent, differences in points; +/=/-: problems where B's share is higher, equal, lower."
        )
        return "\n".join([*lines, *map(plain, self.notes)])


def compare(a: Path, b: Path, output: Path | None = None) -> Comparison:
    """Compare the evaluation in folder `b` with that in `a`; the page goes to the file `output` where one is named.

    Compared are the problems that both answered: same benchmark, id and reference answer. Each counts with its mean over
    its answers, however many there are.

    Raises:
        ConfigError: the folders have no problem in common, or one has settings that cannot be read.
        FileNotFoundError: one is no evaluation folder.
        AnswersError: a line of its answers cannot be read.
    """
    sides = (_side("A", Path(a)), _side("B", Path(b)))
    answers_a, answers_b = (_by_view(read_answers(side.folder)) for side in sides)
    clean_a, clean_b = answers_a.get(CLEAN, {}), answers_b.get(CLEAN, {})
    both = clean_a.keys() & clean_b.keys()
    changed = sorted(key for key in both if clean_a[key][0].answer.strip() != clean_b[key][0].answer.strip())
    common = sorted(both.difference(changed))
    if not common:
        reason = f" ({len(changed)} more with different reference answers)" if changed else ""
        raise ConfigError(
            f"nothing to compare: no problem was answered on the clean image in both{reason}. "
            f"A ({a}) has {_contents(clean_a)}; B ({b}) has {_contents(clean_b)}. Evaluate both on the same benchmark."
        )
    benchmarks: dict[str, list[Problem]] = defaultdict(list)
    for key in common:
        benchmarks[key[0]].append(key)

    rows = [_accuracy(answers_a, answers_b, benchmarks)]
    if len(benchmarks) > 1:
        rows += _view_rows(answers_a, answers_b, benchmarks, shared=True)
    for name, problems in benchmarks.items():
        only = {name: problems}
        if len(benchmarks) > 1:
            rows.append(_accuracy(answers_a, answers_b, only))
        rows += [
            _accuracy(answers_a, answers_b, {name: keys}, subset)
            for subset, keys in subsets({key: clean_b[key][0].tags | clean_a[key][0].tags for key in problems}).items()
        ]
        rows += _error_rows(name, problems, clean_a, clean_b)
        rows += _view_rows(answers_a, answers_b, only)

    comparison = Comparison(
        *sides,
        tuple(rows),
        tuple(_flips(common, clean_a, clean_b)),
        tuple(_notes(*sides, clean_a, clean_b, changed, list(benchmarks))),
    )
    if output is not None:
        write_page(comparison, Path(output))
    return comparison


# --- reading ----------------------------------------------------------------------------------------------------------

ByProblem = dict[Problem, list[Answer]]


def _side(label: str, folder: Path) -> Side:
    file = folder / "settings.json"
    if not file.is_file():
        raise FileNotFoundError(f"{label}: no settings.json in {folder}: papo-hub evaluate writes such a folder")
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{label}: {file} is not JSON: {error}") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"{label}: {file} must hold an object, not {type(settings).__name__}")
    return Side(label, folder, settings)


def _by_view(answers: Iterable[Answer]) -> dict[str, ByProblem]:
    views: dict[str, ByProblem] = defaultdict(lambda: defaultdict(list))
    for answer in answers:
        views[answer.view][answer.benchmark, answer.id].append(answer)
    return views


def _contents(problems: Iterable[Problem]) -> str:
    counts: dict[str, int] = defaultdict(int)
    for benchmark, _ in problems:
        counts[benchmark] += 1
    return ", ".join(f"{name} ({_problems(count)})" for name, count in sorted(counts.items())) or "no such answers"


# --- rows -------------------------------------------------------------------------------------------------------------


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return math.fsum(values) / len(values)


def _verdict(answers: list[Answer]) -> float:
    return _mean(answer.verdict for answer in answers)


def _row(groups: Mapping[str, list[tuple[float, float]]], quantity: str, view: str = CLEAN, subset: str = "all") -> Row:
    """The difference over one benchmark's pairs of values (A's and B's, one pair a problem), or the mean of several."""
    columns = [tuple(zip(*pairs, strict=True)) for pairs in groups.values()]
    # The statistics take the first less the second.
    if len(columns) == 1:
        difference, low, high, p = paired_difference(columns[0][1], columns[0][0])
    else:
        difference, low, high, p = paired_macro([(b, a) for a, b in columns])
    pairs = [pair for group in groups.values() for pair in group]
    wins, losses = sum(b > a for a, b in pairs), sum(b < a for a, b in pairs)
    return Row(
        benchmark=next(iter(groups)) if len(groups) == 1 else MEAN,
        subset=subset,
        quantity=quantity,
        view=view,
        a=_mean(_mean(a) for a, _ in columns),
        b=_mean(_mean(b) for _, b in columns),
        difference=float(difference),
        low=float(low),
        high=float(high),
        p=float(p),
        problems=len(pairs),
        wins=wins,
        ties=len(pairs) - wins - losses,
        losses=losses,
    )


def _accuracy(
    a: dict[str, ByProblem], b: dict[str, ByProblem], benchmarks: Mapping[str, list[Problem]], subset: str = "all"
) -> Row:
    groups = {
        name: [(_verdict(a[CLEAN][key]), _verdict(b[CLEAN][key])) for key in keys] for name, keys in benchmarks.items()
    }
    return _row(groups, "accuracy", subset=subset)


def _view_rows(
    a: dict[str, ByProblem], b: dict[str, ByProblem], benchmarks: Mapping[str, list[Problem]], shared: bool = False
) -> list[Row]:
    """Accuracy on each other view and its gap to the clean one; `shared`: only views that several benchmarks have."""
    rows = []
    for view in sorted((a.keys() & b.keys()) - {CLEAN}, key=lambda view: (view == BLANK, view)):
        accuracy, gap = {}, {}
        for name, keys in benchmarks.items():
            keys = [key for key in keys if key in a[view] and key in b[view]]
            if keys:
                accuracy[name] = [(_verdict(a[view][key]), _verdict(b[view][key])) for key in keys]
                gap[name] = [
                    (_verdict(a[CLEAN][key]) - seen_a, _verdict(b[CLEAN][key]) - seen_b)
                    for key, (seen_a, seen_b) in zip(keys, accuracy[name], strict=True)
                ]
        if len(accuracy) > (1 if shared else 0):
            rows += [_row(accuracy, "accuracy", view), _row(gap, "gap", view)]
    return rows


def _error_rows(name: str, problems: list[Problem], a: ByProblem, b: ByProblem) -> list[Row]:
    """Shares of answers that are wrong because the image was misread, and although it was read rightly."""
    problems = [key for key in problems if all(side[key][0].tags.get(READING, "").strip() for side in (a, b))]
    if not problems:
        return []
    kinds = {key: tuple([_kind(answer) for answer in side[key]] for side in (a, b)) for key in problems}
    rows = []
    for kind, quantity in (("perception_error", "perception errors"), ("reasoning_error", "reasoning errors")):
        pairs = [tuple(_mean(found == kind for found in side) for side in kinds[key]) for key in problems]
        rows.append(_row({name: pairs}, quantity))
    return rows


def _kind(answer: Answer) -> str:
    return classify(answer.response, answer.tags[READING], answer.verdict)


# --- flips and notes --------------------------------------------------------------------------------------------------


def _flips(problems: list[Problem], a: ByProblem, b: ByProblem) -> list[Flip]:
    """The problems that changed most, largest change first, then by name; both directions, where both occur."""
    flips = []
    for key in problems:
        difference = _verdict(b[key]) - _verdict(a[key])
        if difference:
            flips.append(Flip(*key, a[key][0].answer, difference, tuple(a[key]), tuple(b[key])))
    # Rounded: 2/3 - 1/3 and 1 - 2/3 are the same change, which the floats' last bit would rank.
    flips.sort(key=lambda flip: (-round(abs(flip.difference), 9), flip.benchmark, flip.id))
    better, worse = ([flip for flip in flips if (flip.difference > 0) is sign] for sign in (True, False))
    half = MOST_FLIPS // 2
    better, worse = better[: MOST_FLIPS - min(half, len(worse))], worse[: MOST_FLIPS - min(half, len(better))]
    chosen = {(flip.benchmark, flip.id) for flip in (*better, *worse)}
    return [flip for flip in flips if (flip.benchmark, flip.id) in chosen]


def _notes(
    a: Side, b: Side, clean_a: ByProblem, clean_b: ByProblem, changed: list[Problem], benchmarks: list[str]
) -> list[str]:
    notes = []
    settings_a, settings_b = (_settings(side.settings, benchmarks) for side in (a, b))
    names = list(dict.fromkeys([*settings_a, *settings_b]))
    different = [
        f"{name} {_value(settings_a.get(name))} (A), {_value(settings_b.get(name))} (B)"
        for name in names
        if settings_a.get(name) != settings_b.get(name)
    ]
    if different:
        notes.append(f"not the same settings: {'; '.join(different)}")
    if changed:
        examples = ", ".join(f"{benchmark} {id}" for benchmark, id in changed[:3])
        notes.append(
            f"{_problems(len(changed))} left out: the reference answers differ ({examples}"
            f"{', …' if len(changed) > 3 else ''})"
        )
    for label, mine, others in (("A", clean_a, clean_b), ("B", clean_b, clean_a)):
        if alone := mine.keys() - others.keys():
            notes.append(f"left out, answered in {label} only: {_contents(alone)}")
    return notes


def _settings(settings: Mapping[str, Any], benchmarks: list[str]) -> dict[str, Any]:
    """The settings that matter, flat: {"temperature": 1.0, "digits commit": "…"}."""
    protocol, entries = settings.get("protocol"), settings.get("benchmarks")
    found = {name: protocol.get(name) for name in PROTOCOL} if isinstance(protocol, Mapping) else {}
    found["pixels"] = settings.get("pixels")
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, Mapping) and entry.get("name") in benchmarks:
            found |= {f"{entry['name']} {name}": entry.get(name) for name in DATA}
    return found


def _value(value: Any) -> str:
    return "not set" if value is None else _clip(f"{value}", 60)


def _problems(count: int) -> str:
    return f"{count:,} {'problem' if count == 1 else 'problems'}"


def _clip(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
