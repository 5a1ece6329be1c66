"""Pictures of a run: what was rewarded, what the policy sees, what changed.

A run folder is read, never interpreted: `metrics.jsonl` (one object a step), `evaluation.json` (rows of
`{"when", "view", "group", "accuracy", "perception_kl", "problems", "samples"}`) and `example.json`, whose format is
defined here by `write_example` and `read_example`.
"""

from __future__ import annotations

import json
import math
import re
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PatchCollection
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from PIL import Image

from papo_hub import drawing
from papo_hub.drawing import ACCENT, CLEAN, DPI, FRAME, INK, MASKED, MONO, MUTED, QUIET, SANS, WIDTH
from papo_hub.tracking import read_metrics

MAX_LINES = 60  # of tokens in a picture
MONO_ADVANCE = 0.602  # width of a DejaVu Sans Mono character, in em
HEAT = LinearSegmentedColormap.from_list("dependence", ["#ffffff", "#fff0dc", "#ffc078", "#f76707", "#a61e0d"])
DEPENDENCE_LABEL = "visual dependence of a token: KL(clean ‖ masked), nats"


# ---------------------------------------------------------------------------------------------------------------- data


class Example(NamedTuple):
    """One completion with the two views of its image: N tokens and their N dependences in nats (NaN: unknown)."""

    image: Image.Image
    masked_image: Image.Image
    tokens: list[str]
    dependence: list[float]
    title: str


def write_example(run: Path, example: Example) -> Path:
    """Keep an example in a run folder: `example.json` plus figures/example_image.png and figures/example_masked.png.

    Returns the path of `example.json`, an object with "image" and "masked_image" (paths inside the run), "tokens",
    "dependence" (nats; null where unknown) and "title".

    Raises:
        ValueError: tokens and dependences differ in number.
    """
    _check_lengths(example.tokens, example.dependence)
    run = Path(run)
    (run / "figures").mkdir(parents=True, exist_ok=True)
    files = {"image": "figures/example_image.png", "masked_image": "figures/example_masked.png"}
    for field, file in files.items():
        getattr(example, field).convert("RGB").save(run / file)
    dependence = [float(value) if math.isfinite(value) else None for value in example.dependence]
    record = {**files, "tokens": list(example.tokens), "dependence": dependence, "title": example.title}
    path = run / "example.json"
    path.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return path


def read_example(run: Path) -> Example:
    """The example that `write_example` kept; its images fully loaded.

    Raises:
        FileNotFoundError: the run has none.
    """
    run = Path(run)
    path = run / "example.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: keep an example of this run with figures.write_example first")
    record = json.loads(path.read_text(encoding="utf-8"))
    images = []
    for field in ("image", "masked_image"):
        with Image.open(run / record[field]) as image:
            images.append(image.convert("RGB"))
    dependence = [math.nan if value is None else value for value in record["dependence"]]
    return Example(*images, record["tokens"], dependence, record["title"])


def metric_columns(run: Path) -> dict[str, np.ndarray]:
    """`metrics.jsonl` as columns: name → (N,) float64 over the N steps, NaN where a step lacks a finite value.

    Raises:
        FileNotFoundError: the run has no metrics.jsonl.
        ValueError: it has no rows, or a row has no step.
    """
    path = Path(run) / "metrics.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: is {Path(run)} a run folder whose training has taken a step?")
    rows = read_metrics(path)
    if not rows:
        raise ValueError(f"{path} has no complete row: nothing to draw yet")
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: np.array([_number(row.get(name)) for row in rows]) for name in names}
    if np.isnan(columns.get("step", np.nan)).any():
        raise ValueError(f"{path}: a row has no step")
    return columns


def read_evaluation(run: Path) -> list[dict]:
    """The rows of `evaluation.json`; an empty list where the run was not evaluated."""
    path = Path(run) / "evaluation.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def running_median(values: np.ndarray, window: int) -> np.ndarray:
    """Centred median of (N,) values over an odd `window`, shorter at the ends, blind to NaN; NaN where all are."""
    half = window // 2
    result = np.full(len(values), np.nan)
    for index in range(len(values)):
        near = values[max(index - half, 0) : index + half + 1]
        near = near[np.isfinite(near)]
        if near.size:
            result[index] = np.median(near)
    return result


def lay_out(tokens: list[str], columns: int) -> list[list[tuple[int, str, int]]]:
    """Wrap tokens into lines of at most `columns` characters: each line a list of (column, text, token index).

    Words stay whole where they fit a line, and lose their leading space where they start one. A newline is shown as ↵
    and ends its line, a tab is shown as ⇥, an empty token as ·, and what the monospace font cannot draw as □.
    """
    words: list[list[tuple[str, int]]] = []
    glued = False
    for index, token in enumerate(tokens):
        for piece in re.findall(r"[^\n]*\n|[^\n]+", token) or ["·"]:
            shown = drawing.drawable(piece.replace("\n", "↵").replace("\t", "⇥"), MONO)
            if glued and not shown.startswith(" "):
                words[-1].append((shown, index))
            else:
                words.append([(shown, index)])
            glued = not piece.endswith("\n")

    lines: list[list[tuple[int, str, int]]] = [[]]
    column = 0
    for word in words:
        length = sum(len(text) for text, _ in word)
        if column and column + length > columns:
            lines.append([])
            column = 0
            (first, index), *rest = word
            word = [(first[1:], index), *rest] if first.startswith(" ") else word
        for text, index in word:
            while text:
                if column == columns:
                    lines.append([])
                    column = 0
                piece, text = text[: columns - column], text[columns - column :]
                lines[-1].append((column, piece, index))
                column += len(piece)
        if word[-1][0].endswith("↵"):
            lines.append([])
            column = 0
    return lines if lines[-1] else lines[:-1]


# ------------------------------------------------------------------------------------------------------------- pictures


def plot_curves(run: Path) -> list[Path]:
    """Draw figures/reward.png and figures/perception.png from metrics.jsonl; what a run did not log is left out.

    Rewards go from 0 to 1; divergences and entropies are nats per token; clip fractions are percent of tokens. The
    raw values are faint, their running median bold. Returns the pictures drawn, in this order.

    Raises:
        FileNotFoundError, ValueError: see `metric_columns`.
    """
    run = Path(run)
    metrics = metric_columns(run)
    drawn = []

    if _logged(metrics, "reward/mean", "reward/accuracy", "reward/format"):
        figure = drawing.new_figure(3.8)
        axes = drawing.add_axes(figure, 0.75, 0.5, WIDTH - 2.1, 2.75)
        _reward_panel(axes, metrics, "Reward, mean over the completions of a step")
        drawn.append(drawing.save(figure, run / "figures" / "reward.png"))

    panels = [
        (title, unit, factor, [(f"objective/{name}", label, color) for name, label, color in curves])
        for title, unit, factor, curves in (
            ("Perception KL", "nats per token", 1, [("perception_kl", "", ACCENT)]),
            ("Entropy", "nats per token", 1, [("entropy", "clean", CLEAN), ("masked_entropy", "masked", MASKED)]),
            (
                "Clipped",
                "% of tokens",
                100,
                [("clip_fraction_high", "high", ACCENT), ("clip_fraction_low", "low", QUIET)],
            ),
        )
    ]
    panels = [panel for panel in panels if _logged(metrics, *(name for name, _, _ in panel[3]))]
    if panels:
        figure = drawing.new_figure(2.95)
        for place, (title, unit, factor, curves) in enumerate(panels):
            width = WIDTH / len(panels)
            axes = drawing.add_axes(figure, place * width + 0.7, 0.5, width - 1.7, 1.9)
            drawing.panel(axes, title, unit, "step")
            _curves(axes, metrics, curves, factor)
        drawn.append(drawing.save(figure, run / "figures" / "perception.png"))
    return drawn


def plot_example(
    path: Path,
    image: Image.Image,
    masked_image: Image.Image,
    tokens: list[str],
    dependence: list[float],
    title: str,
) -> Path:
    """Draw one completion: the image, the masked image, and the tokens coloured by how much they depend on the image.

    Short completions stand beside the images, longer ones below; beyond `MAX_LINES` lines the rest is only counted.

    Args:
        tokens, dependence: N decoded tokens and N divergences in nats (k3 estimate, within 0..10; NaN: no colour).

    Raises:
        ValueError: tokens and dependences differ in number.
    """
    _check_lengths(tokens, dependence)
    size, margin, gap = 9.0, 0.35, 0.3
    heading = drawing.wrapped(title, 88)
    top = margin + 0.24 * len(heading) + 0.28

    images = (image, masked_image)
    boxes = _fit(images, 2.0, 2.7)
    left, tokens_top = margin + sum(width + gap for width, _ in boxes), top
    if len(lay_out(tokens, _columns(WIDTH - margin - left, size))) > 14:
        boxes = _fit(images, 4.0, 2.7)
        left, tokens_top = margin, top + max(height for _, height in boxes) + 0.25
    columns = _columns(WIDTH - margin - left, size)
    lines = lay_out(tokens, columns)
    bottom = max(top + max(height for _, height in boxes), tokens_top + min(len(lines), MAX_LINES) * _line(size))

    figure = drawing.new_figure(bottom + 0.75)
    drawing.heading(figure, margin, margin, heading)
    _images(figure, margin, top, boxes, images, gap)
    norm = _norm(dependence)
    _tokens(figure, left, tokens_top, columns, size, lines, dependence, norm)
    _colour_bar(figure, margin, bottom + 0.3, norm)
    return drawing.save(figure, path)


def plot_before_after(path: Path, rows: list[dict]) -> Path:
    """Draw accuracy before and after training for both views and each group of questions.

    Args:
        rows: as in evaluation.json; "group" is "high" or "low" (how much a question depends on its image), or "all",
            which is drawn only where no other group is there. Rows without a finite accuracy are left out.

    Raises:
        ValueError: no row can be drawn.
    """
    figure = drawing.new_figure(3.8)
    axes = drawing.add_axes(figure, 0.75, 0.6, WIDTH - 1.1, 2.35)
    _bars(axes, rows, 9.0, "Accuracy before (light) and after (dark) training")
    drawing.add_text(figure, WIDTH - 0.35, 0.42, _sample_note(rows), size=8, color=MUTED, va="center", ha="right")
    return drawing.save(figure, path)


def plot_overview(path: Path, run: Path) -> Path:
    """Draw a run in one picture: its example on the left; accuracy over steps and before/after on the right.

    Without evaluation.json the curve takes the right side alone.

    Raises:
        FileNotFoundError, ValueError: see `read_example`, `metric_columns`, `plot_before_after`.
    """
    example, metrics, evaluation = read_example(run), metric_columns(run), read_evaluation(run)
    margin, split, height = 0.3, 5.1, 4.9
    figure = drawing.new_figure(height)

    heading, images = drawing.wrapped(example.title, 54), (example.image, example.masked_image)
    drawing.heading(figure, margin, margin, heading)
    top = margin + 0.24 * len(heading) + 0.28
    short = len("".join(example.tokens)) < 100
    if short and example.image.width > 2 * example.image.height:  # wide ones have more room one below the other
        boxes = _fit(images, split - margin, 0.95)
        _images(figure, margin, top, boxes, images, 0.35, down=True)
        top += sum(box[1] + 0.35 for box in boxes)
    else:
        boxes = _fit(images, (split - margin - 0.25) / 2, 1.75)
        _images(figure, margin, top, boxes, images, 0.25)
        top += max(box[1] for box in boxes) + 0.25
    for size in (12, 10, 9, 8):  # as large as the completion's length allows
        columns, room = _columns(split - margin, size), int((height - 0.85 - top) / _line(size))
        lines = lay_out(example.tokens, columns)
        if len(lines) <= room:
            break
    norm = _norm(example.dependence)
    _tokens(figure, margin, top, columns, size, lines, example.dependence, norm, room)
    _colour_bar(figure, margin, height - 0.55, norm)

    left, width = split + 0.85, WIDTH - split - 0.85 - 1.05
    if evaluation:
        curve = drawing.add_axes(figure, left, 0.6, width, 1.45)
        _bars(
            drawing.add_axes(figure, left, 2.9, width + 0.8, 1.15), evaluation, 7.5, "Before (light) and after (dark)"
        )
    else:
        curve = drawing.add_axes(figure, left, 0.6, width, height - 1.3)
    _reward_panel(curve, metrics, "Training", ("reward/accuracy", "reward/format"))
    return drawing.save(figure, path)


# --------------------------------------------------------------------------------------------------------------- pieces


def _number(value: object) -> float:
    """A finite number, or NaN for null, text, infinities and what is missing."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return math.nan


def _check_lengths(tokens: list[str], dependence: list[float]) -> None:
    if len(tokens) != len(dependence):
        raise ValueError(f"{len(tokens)} tokens but {len(dependence)} dependences: give one number (or NaN) a token")


def _logged(metrics: dict[str, np.ndarray], *names: str) -> bool:
    return any(np.isfinite(metrics[name]).any() for name in names if name in metrics)


def _curves(
    axes: Axes, metrics: dict[str, np.ndarray], curves: list[tuple[str, str, str]], factor: float = 1, top: float = 0
) -> None:
    """Draw (name, label, colour) curves from 0 (or below) to at least `top`, each named at its end."""
    steps = metrics["step"]
    window = 2 * (len(steps) // 30) + 1
    ends, low, high = [], 0.0, top
    for name, label, color in curves:
        if not _logged(metrics, name):
            continue
        values = metrics[name] * factor
        middle = running_median(values, window)
        known, bold = np.isfinite(values), np.isfinite(middle)
        marker = "o" if known.sum() == 1 else None  # a line through one point is invisible
        axes.plot(steps[known], values[known], color=color, alpha=0.3, linewidth=0.9)
        axes.plot(steps[bold], middle[bold], color=color, linewidth=2, marker=marker, solid_capstyle="round")
        last = middle[bold][-1]
        text = f"{label} {last:.2f}" if abs(last) >= 0.095 else f"{label} {last:.2g}"
        ends.append((last, text.strip(), color))
        low, high = min(low, values[known].min()), max(high, values[known].max())

    space = 0.06 * (high - low) or 0.5
    axes.set_ylim(low - space if low < 0 else 0, 1.02 * high if high == top > 0 else high + space)
    axes.set_xlim(steps[0] - (len(steps) == 1), steps[-1] + (len(steps) == 1))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    drawing.end_labels(axes, ends)


def _reward_panel(
    axes: Axes,
    metrics: dict[str, np.ndarray],
    title: str,
    names: tuple[str, ...] = ("reward/accuracy", "reward/format", "reward/mean"),
) -> None:
    styles = {"reward/accuracy": ("accuracy", CLEAN), "reward/format": ("format", QUIET), "reward/mean": ("mean", INK)}
    drawing.panel(axes, title, "reward (0 to 1)", "step")
    _curves(axes, metrics, [(name, *styles[name]) for name in names], top=1.0)


def _bars(axes: Axes, rows: list[dict], size: float, title: str) -> None:
    """Pairs of bars, light before and dark after, for each view and group; values of `size` points on the bars."""
    accuracy = {(row["view"], row["group"], row["when"]): 100 * _number(row.get("accuracy")) for row in rows}
    accuracy = {key: value for key, value in accuracy.items() if math.isfinite(value)}
    groups = [name for name in ("high", "low") if any(group == name for _, group, _ in accuracy)] or ["all"]
    if not any(group in groups for _, group, _ in accuracy):
        raise ValueError('no evaluation row has a finite accuracy and group "high", "low" or "all": nothing to draw')

    drawing.panel(axes, title, "% correct", "")
    axes.spines["bottom"].set_zorder(3)
    ticks, x = [], 0.0
    for view, color in (("clean", CLEAN), ("masked", MASKED)):
        first = x
        for group in groups:
            pair = [(step, accuracy.get((view, group, when))) for step, when in enumerate(("before", "after"))]
            if all(value is None for _, value in pair):
                continue
            for step, value in pair:
                if value is None:
                    continue
                style = {"color": color, "weight": "bold"} if step else {"color": MUTED}
                axes.bar(x + step, value, 0.96, color=color if step else drawing.tint(color, 0.68))
                axes.annotate(
                    f"{value:.0f}", (x + step, value), (0, 1.5), textcoords="offset points", ha="center", va="bottom",
                    fontsize=size, family=SANS, **style,
                )  # fmt: skip
            ticks.append((x + 0.5, "all questions" if group == "all" else group))
            x += 2.6
        if x > first:
            style = {"ha": "center", "va": "top", "fontsize": 8.5, "family": SANS, "weight": "bold", "color": color}
            below = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
            axes.annotate(f"{view} image", ((first + x - 1.6) / 2, 0), (0, -18), **below, **style)
            x += 0.9
    axes.set_xticks(*zip(*ticks, strict=True))
    if groups != ["all"]:
        axes.set_xlabel("vision dependence of the questions", labelpad=18)
    axes.set_ylim(0, 112)
    axes.set_yticks([0, 25, 50, 75, 100])


def _sample_note(rows: list[dict]) -> str:
    """How many problems and samples stand behind the bars, where all rows of a group agree."""
    problems = {row["group"]: row.get("problems") for row in rows}
    samples = {row.get("samples") for row in rows}
    parts = [f"{problems[name]} {name}" for name in ("high", "low") if problems.get(name)]
    if not parts and problems.get("all"):
        parts = [str(problems["all"])]
    note = "problems: " + ", ".join(parts) if parts else ""
    if note and len(samples) == 1 and None not in samples:
        note += f"; {samples.pop()} samples each"
    return note


def _fit(images: list[Image.Image] | tuple[Image.Image, ...], width: float, height: float) -> list[tuple[float, float]]:
    """The largest (width, height) in inches for each image inside a box, its shape kept."""
    scales = [min(width / image.width, height / image.height) for image in images]
    return [(image.width * scale, image.height * scale) for image, scale in zip(images, scales, strict=True)]


def _images(
    figure: Figure,
    left: float,
    top: float,
    boxes: list[tuple[float, float]],
    images: tuple[Image.Image, Image.Image],
    gap: float,
    down: bool = False,
) -> None:
    """Both views side by side, or one below the other, pixels kept sharp where they are enlarged."""
    for box, image, caption in zip(boxes, images, ("what the policy sees", "masked"), strict=True):
        axes = drawing.add_axes(figure, left, top, *box)
        picture = image.convert("RGB")
        picture.thumbnail((1200, 1200))  # `convert` made a copy; more pixels than this the figure does not have
        smooth = "nearest" if picture.width < box[0] * DPI else "antialiased"
        axes.imshow(np.asarray(picture), interpolation=smooth, aspect="auto")
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_color(FRAME)
        drawing.add_text(figure, left, top - 0.06, caption, size=8.5, color=MUTED, va="bottom")
        if down:
            top += box[1] + gap
        else:
            left += box[0] + gap


def _norm(dependence: list[float]) -> PowerNorm:
    """Square-root colour scale from 0 to 1, 2, 5 or 10 nats: at least 1, so that noise near 0 stays pale."""
    largest = max((value for value in dependence if math.isfinite(value)), default=0.0)
    return PowerNorm(0.5, 0, next((limit for limit in (1, 2, 5) if largest <= limit), 10), clip=True)


def _advance(size: float) -> float:
    """Width of a monospace character in inches; hinting rounds it to whole pixels."""
    return round(MONO_ADVANCE * size * DPI / 72) / DPI


def _columns(width: float, size: float) -> int:
    return int(width / _advance(size))


def _line(size: float) -> float:
    """Height of a line of tokens in inches, for a font of `size` points."""
    return 1.75 * size / 72


def _tokens(
    figure: Figure,
    left: float,
    top: float,
    columns: int,
    size: float,
    lines: list[list[tuple[int, str, int]]],
    dependence: list[float],
    norm: PowerNorm,
    room: int = MAX_LINES,
) -> None:
    """Lines of `lay_out`, every token on its colour; what exceeds `room` lines is counted on the last one."""
    if len(lines) > room:
        shown = lines[: room - 1]
        drawn = {index for line in shown for _, _, index in line}
        text = f"… {len(dependence) - len(drawn)} more tokens"[:columns]
        lines = [*shown, [(0, text, -1)]]
    axes = drawing.add_axes(figure, left, top, columns * _advance(size), len(lines) * _line(size))
    axes.set_axis_off()
    axes.set_xlim(0, columns)
    axes.set_ylim(len(lines), 0)
    style = {"family": MONO, "fontsize": size, "parse_math": False, "va": "baseline"}
    boxes, shades = [], []
    for row, line in enumerate(lines):
        inked = []
        for column, text, index in line:
            value = dependence[index] if index >= 0 else math.nan
            color = INK if index >= 0 else MUTED
            if math.isfinite(value):
                shade = HEAT(norm(value))
                color = INK if np.dot(shade[:3], (0.3, 0.59, 0.11)) > 0.5 else "white"
                space = len(text) - len(text.lstrip(" ")) if text.strip() else 0
                boxes.append(Rectangle((column + space, row + 0.06), len(text) - space, 0.88))
                shades.append(shade)
            inked.append((color, column, text))
        for color, pieces in groupby(inked, key=lambda piece: piece[0]):  # one artist a colour: drawing is slow
            pieces = list(pieces)
            axes.text(pieces[0][1], row + 0.72, "".join(text for _, _, text in pieces), color=color, **style)
    axes.add_collection(PatchCollection(boxes, facecolors=shades, edgecolors="white", linewidths=0.6, zorder=0))


def _colour_bar(figure: Figure, left: float, top: float, norm: PowerNorm) -> None:
    axes = drawing.add_axes(figure, left, top, 1.9, 0.11)
    ticks = [norm.vmax * part for part in (0, 0.04, 0.25, 1)]
    bar = figure.colorbar(ScalarMappable(norm, HEAT), cax=axes, orientation="horizontal", ticks=ticks, format="%g")
    bar.outline.set_edgecolor(FRAME)
    bar.minorticks_off()
    axes.tick_params(length=0, labelsize=7.5, labelcolor=MUTED, labelfontfamily=SANS, pad=2)
    drawing.add_text(figure, left + 2.05, top + 0.055, DEPENDENCE_LABEL, size=8, color=MUTED, va="center")
