"""Counts over the rows of a split: how many, how large, answered how, and how often the same."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from papo_hub.batch import Sample
from papo_hub.dataset.content import Content
from papo_hub.grading.quantities import measure, number
from papo_hub.grading.text import normalise, without_thousands
from papo_hub.rewards import last_boxed

SIDES = (64, 128, 256, 512, 1024, 2048)  # pixels, upper bounds of the histogram of image sizes
ANSWER_KINDS = ("number", "choice", "text", "expression")
EXAMPLE_LENGTH = 300  # characters of a problem or answer that is shown

_CHOICE = re.compile(r"[(\[]?[A-J][)\]]?|[(\[]?[A-J][.:)\]].*", re.S)
_WORD = re.compile(r"(?<![\\{])(?<![^\W\d_])[^\W\d_]{3,}|[぀-鿿가-힣]")  # neither \frac nor the matrix of \begin{matrix}
_FUNCTIONS = {"sin", "cos", "tan", "cot", "sec", "csc", "log", "exp", "sqrt", "arcsin", "arccos", "arctan"}


def answer_kind(answer: str) -> str:
    """Of ANSWER_KINDS: "number" (units and per cent included), "choice" (a letter A to J, a text may follow), "text"
    (words), "expression" (all the rest)."""
    answer = without_thousands(normalise(last_boxed(answer) or answer))
    value, _ = measure(answer)
    if number(answer) is not None or number(value) is not None:
        return "number"
    if _CHOICE.fullmatch(answer):
        return "choice"
    if set(map(str.lower, _WORD.findall(answer))) - _FUNCTIONS or answer.lower() == "no":
        return "text"
    return "expression"


@dataclass
class Tally:
    """Counts over the rows of a split; its memory grows by 32 bytes a row."""

    rows: int = 0
    bytes: int = 0
    repeated: int = 0
    in_earlier_splits: int = 0
    counts: dict[str, Counter] = field(
        default_factory=lambda: {
            name: Counter() for name in ("images_per_row", "width", "height", "problem_characters", "answer_characters")
        }
    )
    sides: Counter = field(default_factory=Counter)
    kinds: Counter = field(default_factory=Counter)
    skipped: Counter = field(default_factory=Counter)
    content: Content = field(default_factory=Content)
    contents: set[bytes] = field(default_factory=set)
    example: dict[str, str] | None = None

    def add(self, sample: Sample, encoded: list[bytes], earlier: set[bytes]) -> None:
        """Count a row; `earlier`: the contents of the splits before this one."""
        digest = self.content.add(sample)
        self.rows += 1
        self.bytes += sum(map(len, encoded))
        self.repeated += digest in self.contents
        self.in_earlier_splits += digest in earlier
        self.contents.add(digest)
        self.kinds[answer_kind(sample.answer)] += 1
        self.counts["images_per_row"][len(sample.images)] += 1
        self.counts["problem_characters"][len(sample.problem)] += 1
        self.counts["answer_characters"][len(sample.answer)] += 1
        for image in sample.images:
            self.counts["width"][image.width] += 1
            self.counts["height"][image.height] += 1
            self.sides[next((side for side in SIDES if max(image.size) <= side), None)] += 1
        if self.example is None:
            sizes = ", ".join(f"{image.width}×{image.height}" for image in sample.images)
            self.example = {
                "id": sample.id,
                "images": sizes,
                "problem": _cut(sample.problem),
                "answer": _cut(sample.answer),
            }

    def result(self) -> dict[str, Any]:
        """As JSON."""
        names = {side: f"up to {side}" for side in SIDES} | {None: f"above {SIDES[-1]}"}
        return {
            "rows": self.rows,
            "images": self.counts["width"].total(),
            "bytes": self.bytes,
            **{name: _spread(counts) for name, counts in self.counts.items()},
            "longer_side": {names[side]: self.sides[side] for side in (*SIDES, None) if self.sides[side]},
            "answers": {kind: self.kinds[kind] for kind in ANSWER_KINDS if self.kinds[kind]},
            "repeated": self.repeated,
            "in_earlier_splits": self.in_earlier_splits,
            "skipped": self.skipped.total(),
            "skipped_kinds": dict(sorted(self.skipped.items())),
            "content_hash": self.content.hexdigest(),
            "example": self.example,
        }


def _spread(counts: Counter) -> dict[str, int]:
    """The least, the (lower) median and the greatest of counted numbers."""
    values = sorted(counts)
    sums = accumulate(counts[value] for value in values)
    middle = (counts.total() + 1) // 2
    median = next(value for value, passed in zip(values, sums, strict=True) if passed >= middle)
    return {"min": values[0], "median": median, "max": values[-1]}


def _cut(shown: str) -> str:
    return shown if len(shown) <= EXAMPLE_LENGTH else f"{shown[:EXAMPLE_LENGTH]}…"
