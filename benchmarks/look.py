"""Does `papo-hub look` point at what an answer was read from? Asked of models that answer about three digits.

    python -m benchmarks.look [--model RUN …] [--questions 100] [--output FOLDER] [--picture docs/look.png]

Looks at each model's own answers to the first test questions of the digits task (those of `papo-hub evaluate --benchmarks
tiny`), at 9 cells a row. The task knows where each digit lies, and which of them the text tells. An answer begins with the
three digits, a token each; such a token's map ought to lie on its digit's third of the image if only the image shows that
digit, and to be empty if the text tells it. Writes look.json with every map added up over the thirds, and the table into
look.md beside it. The models are those of the quick start; another run of the digits task may be named instead.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from benchmarks.report import table
from papo_hub import drawing
from papo_hub.config import ConfigError
from papo_hub.digits import PLACES
from papo_hub.evaluation.benchmarks import BENCHMARKS, load
from papo_hub.evaluation.look import Look, look, open_model
from papo_hub.evaluation.look_page import STRONGEST, full_colour

ROOT = Path(__file__).parents[1]
MODELS = ("runs/tiny/warmup", "runs/tiny/papo_g")
DIGITS = BENCHMARKS["digits"]
CELLS = 9  # along the image: three columns a digit
EXAMPLE = 56  # of the test questions, chosen because it reads easily: the text tells the digit in the middle


# --- answers ----------------------------------------------------------------------------------------------------------


def looks(name: str, indices: Sequence[int]) -> list[Look]:
    """What the model owes to the images of the test questions with these indices, in its own answers.

    Raises ConfigError where it cannot be opened.
    """
    model, processor, suffix, _ = open_model(name)
    rows = load(DIGITS)
    return [
        look(
            model,
            processor,
            rows[index]["images"][0],
            rows[index]["problem"].removeprefix("<image>"),
            cells=CELLS,
            prompt_suffix=suffix,
            max_new_tokens=DIGITS.max_completion_length,
        )
        for index in indices
    ]


def examine(seen: Look) -> dict[str, Any]:
    """One answer, in nats; `thirds` holds a list for the token of each digit: its map added up over the image's thirds.

    It is None where the answer does not begin with the digits.
    """
    digits = seen.tokens[1 : PLACES + 1]
    found = len(digits) == PLACES and all(text.strip().isdigit() for text in digits)
    maps = seen.cells[1 : PLACES + 1]
    return {
        "question": seen.question,
        "thirds": [list(map(rounded, row)) for row in thirds(maps).tolist()] if found else None,
        "heaviest_cell": rounded(float(seen.cells.sum(0).max())),
        "rounding": rounded(float(seen.rounding.sum())),
    }


def thirds(maps: Tensor) -> Tensor:
    """(n, rows, columns) → (n, PLACES): the nats on each digit's part of the image."""
    return maps.unflatten(-1, (PLACES, -1)).sum((1, 3))


def rounded(nats: float) -> float:
    return float(f"{nats:.4g}")


# --- figures ----------------------------------------------------------------------------------------------------------


def figures(answers: Sequence[dict[str, Any]]) -> dict[str, str]:
    """What the table says of one model, by the names of its rows."""
    read = [answer for answer in answers if answer["thirds"] is not None]
    shown, told = [], []  # (nats on each third, its own)
    for answer in read:
        hints = answer["question"].split()[1:]  # "sum: ? 4 ?"
        for place, (hint, nats) in enumerate(zip(hints, answer["thirds"], strict=True)):
            (shown if hint == "?" else told).append((nats, place))
    own = [100 * nats[place] / (sum(nats) or 1) for nats, place in shown]
    right = sum(nats[place] > max(nats[:place] + nats[place + 1 :]) for nats, place in shown)
    rounding = [answer["rounding"] for answer in answers]
    return {
        "answers that begin with the digits": f"{len(read)} of {len(answers)}",
        "digits that only the image shows": f"{len(shown)}",
        "share of their maps on their own third": middle(own, ".1f", " %"),
        "their own third is the heaviest": f"{right} of {len(shown)}",
        "nats of their maps": middle([sum(nats) for nats, _ in shown], ".1f"),
        "digits that the text tells": f"{len(told)}",
        "nats of the maps of those": middle([sum(nats) for nats, _ in told], ".3f"),
        "of those, maps above 1 nat": f"{sum(sum(nats) > 1 for nats, _ in told)} of {len(told)}",
        "heaviest cell of an answer, nats": middle([answer["heaviest_cell"] for answer in answers], ".1f"),
        "rounding of an answer, nats": f"{middle(rounding, '.0e')}, at most {max(rounding):.0e}",
    }


def middle(values: Sequence[float], form: str, unit: str = "") -> str:
    """The median, or a dash where there is nothing to take it of."""
    return f"{median(values):{form}}{unit}" if values else "–"


def figures_table(results: dict[str, Any]) -> str:
    """The table as Markdown: a column a model."""
    columns = [figures(model["answers"]) for model in results["models"]]
    rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
    return table(["medians", *(f"`{model['name']}`" for model in results["models"])], rows)


def write_results(models: Sequence[dict[str, Any]], folder: Path) -> str:
    """look.json, and look.md, which says what is in it; returns the table. `models` hold a name and its answers."""
    results = {"date": datetime.date.today().isoformat(), "cells": CELLS, "models": list(models)}
    parts = [
        f'  {{"name": {json.dumps(model["name"])}, "answers": [\n   '
        + ",\n   ".join(json.dumps(answer) for answer in model["answers"])
        + "\n  ]}"
        for model in models
    ]
    head = json.dumps(results | {"models": []}, indent=1)
    text = head.replace('"models": []', '"models": [\n' + ",\n".join(parts) + "\n ]")
    (folder / "look.json").write_text(text + "\n", encoding="utf-8")
    (folder / "look.md").write_text(
        f"# Looking: do the maps lie where the digits do?\n\nMeasured on {results['date']} on the first "
        f"{len(models[0]['answers'])} test questions of the digits task, {CELLS} cells a row, float32. A digit's map is that "
        "of the token which writes it, in the model's own answer; rounding is what the same image computed twice gives for "
        "the whole answer. Every answer is in look.json. Made by `python -m benchmarks.look`.\n\n"
        f"{figures_table(results)}\n",
        encoding="utf-8",
    )
    return figures_table(results)


# --- the picture ------------------------------------------------------------------------------------------------------

LEFT, SIDE, GAP = 0.35, 2.55, 0.325  # inches: of the first column, the width of an image, between two
LETTER = 11 / 72 * 0.602  # the width of a letter of 11 points in drawing.MONO
COLOUR = LinearSegmentedColormap.from_list("nats", [to_rgba(drawing.ACCENT, 0), to_rgba(drawing.ACCENT, STRONGEST)])


def draw(seen: Look, path: Path) -> None:
    """The example: what was shown, the answer coloured, and the maps of the whole answer and of its two strongest tokens."""
    figure = drawing.new_figure(4.05)
    title = f"“{seen.question}”: which parts of the image does each token of the answer depend on?"
    drawing.heading(figure, LEFT, 0.3, [title])
    lefts = [LEFT + column * (SIDE + GAP) for column in range(3)]
    height = SIDE * seen.image.height / seen.image.width
    add_image(figure, lefts[0], 0.72, seen.image, "the image")
    add_image(figure, lefts[1], 0.72, seen.masked_image, "the masked image")
    add_answer(figure, lefts[2], 0.72, seen)
    add_scale(figure, lefts[2], 0.82 + height, full_colour(seen.divergence.tolist()))

    strongest = sorted(seen.divergence.argsort(descending=True)[:2].tolist())
    maps = [("the whole answer", seen.cells.sum(0))]
    maps += [(f"token {token + 1}, “{seen.tokens[token].strip()}”", seen.cells[token]) for token in strongest]
    below = 0.72 + height + 0.55
    for left, (name, cells) in zip(lefts, maps, strict=True):
        axes = add_image(figure, left, below, seen.image.convert("L").convert("RGB"), name)
        full = full_colour(cells.flatten().tolist())
        for (x, y, right, bottom), nats in zip(seen.boxes, cells.flatten().tolist(), strict=True):
            style = {"facecolor": COLOUR(nats / full), "edgecolor": (0.5, 0.5, 0.5, 0.35), "linewidth": 0.6}
            axes.add_patch(Rectangle((x, y), right - x, bottom - y, **style))
        drawing.add_text(figure, left, below + height + 0.3, f"full colour: {full:.1f} nats", 8, drawing.MUTED)
    note = "Cell by cell: how far the token’s distribution moves when that cell alone is hidden. The text tells the 4."
    drawing.add_text(figure, LEFT, 4.05 - 0.36, note, 8, drawing.MUTED)
    drawing.save(figure, path)


def add_image(figure: Any, left: float, top: float, image: Image.Image, title: str) -> Axes:
    """An image under its title; in units of its pixels."""
    drawing.add_text(figure, left, top, title, weight="bold")
    axes = drawing.add_axes(figure, left, top + 0.24, SIDE, SIDE * image.height / image.width)
    axes.imshow(np.asarray(image), interpolation="nearest", extent=(0, image.width, image.height, 0))
    framed(axes)
    return axes


def add_answer(figure: Any, left: float, top: float, seen: Look) -> None:
    """The answer without its end-of-sequence token, each token on its colour."""
    drawing.add_text(figure, left, top, "the answer", weight="bold")
    full, x, y = full_colour(seen.divergence.tolist()), left, top + 0.36
    width, height = figure.get_size_inches()
    for text, nats in zip(seen.tokens[:-1], seen.divergence.tolist(), strict=False):
        if x + LETTER * len(text) > left + SIDE:
            x, y = left, y + 0.3
        place = (x / width, 1 - (y + 0.2) / height), LETTER * len(text) / width, 0.25 / height
        figure.add_artist(Rectangle(*place, transform=figure.transFigure, facecolor=COLOUR(nats / full)))
        drawing.add_text(figure, x, y, text, 11, family=drawing.MONO)
        x += LETTER * len(text)


def add_scale(figure: Any, left: float, top: float, full: float) -> None:
    """The colours from 0 to `full` nats."""
    axes = drawing.add_axes(figure, left + 0.16, top, 1.2, 0.12)
    axes.imshow(np.linspace(0, 1, 64)[None], cmap=COLOUR, aspect="auto")
    framed(axes)
    drawing.add_text(figure, left, top - 0.02, "0", 8, drawing.MUTED)
    drawing.add_text(figure, left + 1.43, top - 0.02, f"{full:.1f} nats", 8, drawing.MUTED)


def framed(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_color(drawing.FRAME)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help=f"a run or a model folder (default: {' and '.join(MODELS)})")
    parser.add_argument("--questions", type=int, default=100, help=f"1 to {DIGITS.problems}")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--picture", type=Path, help="draw the last model's answer to the example here")
    options = parser.parse_args()
    if not 1 <= options.questions <= DIGITS.problems:
        parser.error(f"--questions {options.questions}: the task has 1 to {DIGITS.problems}.")

    models = []
    names = options.model or MODELS
    try:
        for name in names:
            answers = [examine(seen) for seen in looks(name, range(options.questions))]
            models.append({"name": name, "answers": answers})
        print(write_results(models, options.output))
        if options.picture:
            draw(looks(names[-1], [EXAMPLE])[0], options.picture)
    except ConfigError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
