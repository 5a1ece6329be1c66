"""What an answer owes to the image, as one HTML file: it opens from disk and asks the network for nothing.

Question, answer and names are hostile until shown otherwise: `template` escapes whatever is printed and spells out
characters that could reorder or hide text, and the page's own policy allows its one script by its hash, images that it
holds itself, and nothing else. Without scripts it shows the map of the whole answer.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from papo_hub.evaluation.look import Box, Look
from papo_hub.evaluation.page import IMAGE_BYTES, data_uri, template
from papo_hub.files import replace_file

LEAST_FULL = 0.1  # nats that full colour stands for at least: an answer that owes nothing is to look like it
STRONGEST = 0.8  # opacity of full colour: what lies below stays readable


class Token(NamedTuple):
    """One token, as the page shows it."""

    number: int
    text: str
    nats: float  # from the masked view
    strength: float  # opacity of its colour
    cells: list[float]  # nats


class Cell(NamedTuple):
    """One cell of the map of the whole answer, in pixels of the image."""

    box: Box
    nats: float
    strength: float


def write_look(look: Look, path: Path, model: str, image_name: str) -> None:
    """Write the page, whole or not at all; its folder is made where it is missing."""
    tokens, cells = _tokens(look), _cells(look)
    page = template("look.html.jinja", sha256=_sha256).render(
        look=look,
        model=model,
        image_name=image_name,
        tokens=tokens,
        cells=cells,
        full=full_colour(token.nats for token in tokens),
        full_of_map=full_colour(cell.nats for cell in cells),
        image=data_uri(look.image, IMAGE_BYTES),
        masked_image=data_uri(look.masked_image, IMAGE_BYTES),
        least_full=LEAST_FULL,
        strongest=STRONGEST,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, page)


def full_colour(values: Iterable[float]) -> float:
    """The nats that full colour stands for: the largest value, and never less than LEAST_FULL."""
    return max(LEAST_FULL, *values)


def _tokens(look: Look) -> list[Token]:
    values = look.divergence.tolist()
    full, cells = full_colour(values), look.cells.flatten(1).tolist()
    return [
        Token(number, text.replace("\n", "↵\n"), nats, STRONGEST * nats / full, cells[number - 1])
        for number, (text, nats) in enumerate(zip(look.tokens, values, strict=True), start=1)
    ]


def _cells(look: Look) -> list[Cell]:
    values = look.cells.sum(0).flatten().tolist()
    full = full_colour(values)
    return [Cell(box, nats, STRONGEST * nats / full) for box, nats in zip(look.boxes, values, strict=True)]


def _sha256(script: str) -> str:
    """As a Content-Security-Policy names a script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
