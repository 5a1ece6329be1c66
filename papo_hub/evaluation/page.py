"""A comparison as one HTML file: it opens from disk, asks the network for nothing and runs no script.

Everything on it that comes from data or from a model is hostile until shown otherwise: jinja2 escapes whatever the
template prints, characters that could reorder, hide or end text are spelled out, and the page's own policy forbids
scripts and every address but images that it holds itself.
"""

from __future__ import annotations

import base64
import io
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from PIL import Image

from papo_hub.batch import Sample
from papo_hub.config import ConfigError
from papo_hub.data import PLACEHOLDER, UnusableRow, check_row
from papo_hub.evaluation.answers import Answer
from papo_hub.evaluation.benchmarks import BENCHMARKS, Benchmark, load
from papo_hub.hub import HubError
from papo_hub.rows import DataError, Rows

if TYPE_CHECKING:
    from papo_hub.evaluation.compare import Comparison, Flip, Row

LONGEST_RESPONSE = 4_000  # characters shown of a response
LONGEST_EXTRACT = 200
LONGEST_LABEL = 50  # in the plot
MOST_EXTRACTS = 6  # different answers listed
MOST_IMAGES = 4  # of a problem
LARGEST_SIDE = 480  # pixels
IMAGE_BYTES = 1_500_000  # of all images together: as text they take a third more, and the page is to stay below 3 MB
JOINERS = "\u200c\u200d"  # invisible, and yet part of how scripts and emoji are written

# (benchmark, ids) → the problems found, by id
Problems = Callable[[str, Sequence[str]], Mapping[str, Sample]]


def write_page(comparison: Comparison, path: Path, problems: Problems | None = None) -> None:
    """Write the page. Problems and images come from `problems`, by default from the datasets that B's settings name; a
    dataset that cannot be reached costs its problems' texts and images, and a note says so."""
    problems = problems or benchmark_problems(comparison.b.settings)
    found: dict[tuple[str, str], Sample] = {}
    notes = list(comparison.notes)
    for benchmark in dict.fromkeys(flip.benchmark for flip in comparison.flips):
        ids = [flip.id for flip in comparison.flips if flip.benchmark == benchmark]
        try:
            samples = problems(benchmark, ids)
        except (DataError, ConfigError, HubError, OSError) as error:
            notes.append(f"{benchmark}: the problems and their images cannot be shown: {error}")
            continue
        found |= {(benchmark, id): sample for id, sample in samples.items()}
    images = sum(len(sample.images[:MOST_IMAGES]) for sample in found.values())
    limit = IMAGE_BYTES // max(images, 1)

    page = template("compare.html.jinja").render(
        comparison=comparison,
        notes=notes,
        points=points,
        p_value=p_value,
        label=_label,
        forest=forest(comparison.rows),
        flips=[_card(flip, found.get((flip.benchmark, flip.id)), limit) for flip in comparison.flips],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def benchmark_problems(settings: Mapping[str, Any]) -> Problems:
    """Problems from the rows that an evaluation was made on, at the commit its `settings` name.

    The function raises ConfigError where they name none, and what `benchmarks.load` raises.
    """

    def problems(benchmark: str, ids: Sequence[str]) -> dict[str, Sample]:
        entries = [entry for entry in settings.get("benchmarks") or () if isinstance(entry, Mapping)]
        entry = next((entry for entry in entries if entry.get("name") == benchmark), {})
        if not isinstance(entry.get("dataset"), str):
            raise ConfigError("settings.json does not say where they come from")
        known = BENCHMARKS.get(benchmark) or Benchmark(benchmark, benchmark, "local", entry["dataset"])
        chosen = replace(
            known,
            dataset=entry["dataset"],
            split=entry.get("split") or known.split,
            revision=entry.get("commit") or entry.get("revision"),
            columns=entry.get("columns") or known.columns,
        )
        return _samples(load(chosen), ids)

    return problems


def _samples(rows: Rows, ids: Sequence[str]) -> dict[str, Sample]:
    """The usable ones among the rows with these ids; rows are read in order, until all are found."""
    wanted, found = set(ids), {}
    for index in range(len(rows)):
        if not wanted:
            break
        row = rows[index]
        if (id := str(row["id"])) in wanted:
            wanted.remove(id)
            try:
                found[id] = check_row(row, rows.root)
            except UnusableRow:
                continue  # it was answered, so it was usable then; the page does without
    return found


def template(name: str, **filters: Callable[[Any], Any]) -> Template:
    """A template of this folder that escapes and spells out whatever it prints; `filters` are its own."""
    environment = Environment(
        loader=PackageLoader("papo_hub.evaluation", ""),
        autoescape=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= filters
    return environment.get_template(name)


def points(share: float) -> str:
    """A difference of shares as points, signed: 0.032 → "+3.2". A zero has no sign."""
    text = f"{100 * share:+.1f}"
    return "0.0" if float(text) == 0 else text


def p_value(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


# --- what the template shows ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answers:
    """One model's answers to one problem."""

    label: str
    verdicts: list[bool]
    examples: list[tuple[str, str]]  # (what it is, the response), at most one right and one wrong


@dataclass(frozen=True)
class Card:
    """One flip, as the page shows it."""

    flip: Flip
    reference: str
    problem: str | None
    images: list[str]  # data: addresses
    hidden: int  # images left out
    sides: list[Answers]
    extracted: list[tuple[str, int, int, bool]]  # (answer, times A, times B, right), most frequent first
    others: int  # different answers left out


def _card(flip: Flip, sample: Sample | None, limit: int) -> Card:
    images = sample.images if sample else ()
    counts = {label: Counter(map(_extracted, answers)) for label, answers in (("A", flip.a), ("B", flip.b))}
    right = {_extracted(answer) for answer in (*flip.a, *flip.b) if answer.verdict}
    listed = sorted(counts["A"] | counts["B"], key=lambda text: (-counts["A"][text] - counts["B"][text], text))
    return Card(
        flip=flip,
        reference=_cut(flip.reference, LONGEST_RESPONSE),
        problem=_cut(sample.problem.replace(PLACEHOLDER, " ").strip(), LONGEST_RESPONSE) if sample else None,
        images=[data_uri(image, limit) for image in images[:MOST_IMAGES]],
        hidden=max(0, len(images) - MOST_IMAGES),
        sides=[_answers("A", flip.a), _answers("B", flip.b)],
        extracted=[(text, counts["A"][text], counts["B"][text], text in right) for text in listed[:MOST_EXTRACTS]],
        others=max(0, len(listed) - MOST_EXTRACTS),
    )


def _answers(label: str, answers: Sequence[Answer]) -> Answers:
    examples = []
    for name, verdict in (("a right answer", 1.0), ("a wrong answer", 0.0)):
        if chosen := next((answer for answer in answers if answer.verdict == verdict), None):
            name += "" if chosen.finished else ", cut by the length limit"
            examples.append((f"{name} ({chosen.tokens:,} tokens)", _cut(chosen.response, LONGEST_RESPONSE)))
    return Answers(label, [bool(answer.verdict) for answer in answers], examples)


def _extracted(answer: Answer) -> str:
    return "(no \\boxed{})" if answer.extracted is None else _cut(answer.extracted, LONGEST_EXTRACT)


def _cut(text: str, length: int) -> str:
    """At most `length` characters as they are shown, and a word about it."""
    shown = visible(text[:length])
    if len(text) <= length and len(shown) <= length:
        return shown
    return f"{shown[:length]} … [cut here: {len(text):,} characters in all]"


def visible(text: str) -> str:
    """The text with every character that shows nothing but does something (NUL, surrogates, direction overrides, line
    separators, …) as its number, ⟨U+202E⟩."""
    if text.isprintable():
        return text
    text = text.replace("\r\n", "\n")
    return "".join(f"⟨U+{ord(char):04X}⟩" if _hidden(char) else char for char in text)


def _hidden(char: str) -> bool:
    if char in "\n\t" or char in JOINERS:
        return False
    return unicodedata.category(char) in ("Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp")


def data_uri(image: Image.Image, limit: int) -> str:
    """The image as a data: address of at most about 4/3 · `limit` characters, no side above LARGEST_SIDE pixels.

    PNG where it fits, since it keeps drawings and text sharp; else JPEG, made smaller until it does.
    """
    small = image.convert("RGB")
    small.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    kind, data = "png", _encoded(small, "PNG")
    while len(data) > limit and max(small.size) > 16:
        if kind == "jpeg":
            small = small.resize(tuple(max(1, side * 3 // 4) for side in small.size))
        kind, data = "jpeg", _encoded(small, "JPEG", quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


# --- the plot of the differences --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bar:
    """One row of the plot, in the units of its drawing."""

    row: Row
    y: float  # of the line
    left: float
    middle: float
    right: float


@dataclass(frozen=True)
class Forest:
    """Where everything of the plot lies; the template draws it."""

    width: int
    height: int
    bars: list[Bar]
    ticks: list[tuple[float, str]]  # (x, points)
    zero: float


def _label(row: Row) -> str:
    label = visible(f"{row.benchmark} {row.name}".strip())
    return label if len(label) <= LONGEST_LABEL else f"{label[:LONGEST_LABEL]}…"


def forest(rows: Sequence[Row]) -> Forest:
    """Differences in accuracy on the clean image with their intervals, one above the other, on one axis around 0."""
    width, margin, step = 420, 16, 38
    rows = [row for row in rows if row.quantity == "accuracy" and row.view == "clean"]
    reach = 100 * max(0.01, *(max(abs(row.low), abs(row.high), abs(row.difference)) for row in rows))
    spacing = next(size for size in (1, 2, 5, 10, 20, 50, 100) if size >= reach / 4 or size == 100)
    reach = max(reach, spacing) * 1.05

    def x(value: float) -> float:
        return round(width / 2 + value / reach * (width / 2 - margin), 1)

    bars = [
        Bar(row, step * index + 28, x(100 * row.low), x(100 * row.difference), x(100 * row.high))
        for index, row in enumerate(rows)
    ]
    ends = int(reach // spacing)
    ticks = [(x(spacing * i), f"{spacing * i:+d}" if i else "0") for i in range(-ends, ends + 1)]
    return Forest(width, step * len(rows) + 34, bars, ticks, x(0))
