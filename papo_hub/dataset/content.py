"""What a row says: is it fit to be published, and the hash by which two copies of a dataset are told apart."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from papo_hub.batch import Sample
from papo_hub.data import UnusableRow, check_row
from papo_hub.images import image_sources
from papo_hub.rewards import accuracy_reward
from papo_hub.rows import Rows

# Turn markers and image tokens of the usual chat formats; a model's own tokens are looked for when it is trained.
_CONTROL = re.compile(r"<\|[^<>|\s]{1,40}\|>|<(?:start|end)_of_turn>")


def check_publishable(row: Mapping[str, Any], root: Path | None = None) -> tuple[Sample, list[bytes]]:
    """The sample in a row and its images as encoded bytes. Raises UnusableRow, for whatever `check_row` does, and

    * for control tokens of the usual chat formats in the problem;
    * for an answer that the reward would not recognise in a box of its own.
    """
    problem = row.get("problem")
    sample = check_row(row, root, frozenset(_CONTROL.findall(problem) if isinstance(problem, str) else ()))
    if not accuracy_reward(rf"\boxed{{{sample.answer}}}", sample.answer):
        raise UnusableRow(f"answer cannot be graded: {sample.answer[:80]!r} in \\boxed{{}} is not recognised as itself")
    sources = image_sources(row.get("images"), root)
    return sample, [_encoded(*pair) for pair in zip(sources, sample.images, strict=True)]


def _encoded(source: bytes | Path | Image.Image, image: Image.Image) -> bytes:
    """The source's own bytes; PNG, which loses nothing, where it has none."""
    if isinstance(source, Path):
        return source.read_bytes()
    if isinstance(source, bytes):
        return source
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def content_hash(rows: Rows | Sequence[Mapping[str, Any]]) -> str:
    """SHA-256, in hex, of what the rows say: problem, answer, id, and every image's size and RGB pixels, in their order.

    Equal for a source, the dataset built from it, and what `datasets.load_dataset` brings back of that. Raises UnusableRow
    for a row that is none of `check_row`.
    """
    rows = rows if isinstance(rows, Rows) else Rows(rows)
    content = Content()
    for index in range(len(rows)):
        content.add(check_row(rows[index], rows.root))
    return content.hexdigest()


class Content:
    """The running hash of samples, in order; `add` returns the sample's own, in which its id does not count."""

    def __init__(self) -> None:
        self._total = hashlib.sha256()

    def add(self, sample: Sample) -> bytes:
        own = hashlib.sha256()
        for part in (sample.problem, sample.answer):
            own.update(_framed(part.encode()))
        for image in sample.images:
            own.update(_framed(f"{image.width}x{image.height}".encode()))
            own.update(image.tobytes())
        self._total.update(_framed(sample.id.encode()) + own.digest())
        return own.digest()

    def hexdigest(self) -> str:
        return self._total.hexdigest()


def _framed(part: bytes) -> bytes:
    """With its length in front, so that no two sequences of parts read the same."""
    return len(part).to_bytes(8, "big") + part
