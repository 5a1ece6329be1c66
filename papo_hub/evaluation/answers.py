"""answers.jsonl: every answer of an evaluation, a JSON object a line, in the order in which they were produced.

The file is what an evaluation is: tables and reports follow from it, and an interrupted evaluation goes on behind its
last line. Each process appends to a file of its own; `merge` makes one of them.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from papo_hub.files import replace_file

FILE = "answers.jsonl"


class AnswersError(ValueError):
    """A transcript that cannot be used: the message names the file, the line, and what to do."""


class Key(NamedTuple):
    """What an answer is an answer to."""

    benchmark: str
    id: str
    view: str
    sample: int


@dataclass(frozen=True)
class Answer:
    """One answer of a model to one view of one problem, and what was made of it."""

    benchmark: str
    id: str  # of the problem, unique in its benchmark
    view: str  # "clean", "mask-0.6" (any ratio), "blank"
    sample: int  # 0 … k - 1
    seed: int  # the sampling depends on it, the prompt and the model alone
    prompt: str  # hash of what the model was shown, text and images
    answer: str  # the reference
    response: str
    extracted: str | None  # what its last \boxed{} holds
    verdict: float  # 1.0 right, 0.0 wrong
    format: float  # 1.0 as asked for, 0.0 not
    tokens: int
    finished: bool  # False where the length limit cut it
    perception_kl: float | None = None  # summed over its tokens, nats; None where it was not computed
    tags: dict[str, str] = field(default_factory=dict)  # of the problem, to group results by

    @property
    def key(self) -> Key:
        return Key(self.benchmark, self.id, self.view, self.sample)

    def to_json(self) -> str:
        return json.dumps(asdict(self), allow_nan=False)


# What a line may hold, by field: checked by hand, since JSON knows neither.
_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(
        ("benchmark", "id", "view", "prompt", "answer", "response"), ("text", lambda v: isinstance(v, str))
    ),
    **dict.fromkeys(("sample", "tokens"), ("a whole number of at least 0", lambda v: type(v) is int and v >= 0)),
    "seed": ("a whole number", lambda v: type(v) is int),
    **dict.fromkeys(("verdict", "format"), ("0 or 1", lambda v: v in (0, 1) and type(v) in (int, float))),
    "finished": ("true or false", lambda v: isinstance(v, bool)),
    "extracted": ("text or null", lambda v: v is None or isinstance(v, str)),
    "perception_kl": ("a number or null", lambda v: v is None or (type(v) in (int, float) and math.isfinite(v))),
    "tags": (
        "an object of texts",
        lambda v: isinstance(v, dict) and all(isinstance(text, str) for text in v.values()),
    ),
}
_REQUIRED = {f.name for f in fields(Answer)} - {"perception_kl", "tags"}


def parse(line: str) -> Answer:
    """An answer from its line. Raises ValueError that says what is wrong with it."""
    record = json.loads(line)
    if not isinstance(record, dict):
        raise ValueError(f"expected an object, got {type(record).__name__}")
    if missing := sorted(_REQUIRED - set(record)):
        raise ValueError(f"lacks {', '.join(missing)}")
    if unknown := sorted(set(record) - set(_KINDS)):
        raise ValueError(f"has {', '.join(unknown)}, which no answer has")
    for name, value in record.items():
        expected, fits = _KINDS[name]
        if not fits(value):
            raise ValueError(f"{name} must be {expected}, got {value!r:.60}")
    return Answer(**record)


def read_answers(place: Path) -> list[Answer]:
    """The answers of a file, or of an evaluation folder with what its processes wrote, each once, in file order.

    An unfinished last line, as a killed process leaves it, is no answer yet and is passed over.

    Raises:
        FileNotFoundError: there is no such file.
        AnswersError: a line that is no answer, or two different answers where there can be one.
    """
    place = Path(place)
    files = _files(place) if place.is_dir() else [place]
    if not files or not files[0].is_file():
        raise FileNotFoundError(
            f"no {FILE} in {place}: papo-hub evaluate writes it" if place.is_dir() else f"no such file: {place}"
        )
    found: dict[Key, Answer] = {}
    for file in files:
        for number, line in enumerate(file.read_bytes().split(b"\n")[:-1], 1):  # behind the last newline: unfinished
            if not line.strip():
                continue
            try:
                answer = parse(line.decode())
            except (ValueError, RecursionError) as error:
                raise AnswersError(
                    f"{file}, line {number} is no answer: {error}. Delete the line: its answer is then produced again."
                ) from None
            if found.setdefault(answer.key, answer) != answer:
                raise AnswersError(
                    f"{file}, line {number}: a second, different answer to {answer.benchmark} {answer.id!r} "
                    f"({answer.view}, sample {answer.sample}). Do these lines come from two evaluations? Delete one."
                )
    return list(found.values())


class Transcript:
    """The file that one process appends to."""

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.file = folder / (FILE if rank == 0 else f"answers-{rank}.jsonl")
        folder.mkdir(parents=True, exist_ok=True)
        if self.file.exists():
            written = self.file.read_bytes()
            whole = written.rfind(b"\n") + 1
            if whole < len(written):  # killed while writing: what follows must begin on a line of its own
                os.truncate(self.file, whole)

    def append(self, answers: Iterable[Answer]) -> None:
        """On disk when it returns."""
        lines = "".join(answer.to_json() + "\n" for answer in answers)
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(lines)
            stream.flush()
            os.fsync(stream.fileno())


def merge(folder: Path, order: Callable[[Answer], Any] | None = None) -> list[Answer]:
    """All answers of the folder, in the given order, as one file. Killed at any moment, it loses and doubles none."""
    files = _files(folder)
    if not files:
        return []
    answers = read_answers(folder)
    answers = sorted(answers, key=order) if order else answers
    replace_file(folder / FILE, "".join(answer.to_json() + "\n" for answer in answers))
    for file in files:
        if file.name != FILE:
            file.unlink()
    return answers


def begun(folder: Path) -> bool:
    """Whether the folder holds answers, of any process."""
    return bool(_files(folder))


def _files(folder: Path) -> list[Path]:
    return [file for file in (folder / FILE, *sorted(folder.glob("answers-*.jsonl"))) if file.is_file()]


def digest(*parts: str | bytes) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of parts, each with its length."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode(errors="surrogatepass") if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "big") + data)
    return total.hexdigest()[:16]
