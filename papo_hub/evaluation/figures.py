"""Pictures of an evaluation: accuracy beside the paper's, accuracy as the image disappears, what goes wrong.

All shares (0 to 1) are drawn in percent. Titles come from the results and are cut or wrapped to their room.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from papo_hub import drawing
from papo_hub.drawing import ACCENT, CLEAN, FRAME, INK, MASKED, MUTED, QUIET, SANS, WIDTH

NAMES = 2.15  # inches for the names to the left of horizontal bars
BLANK = 1.14  # where the blank image stands on the axis of mask ratios
LINES = ((CLEAN, "o"), (ACCENT, "s"), ("#5f3dc4", "^"), (QUIET, "D"))  # told apart by shape too
KINDS = {
    "right": CLEAN,
    "lucky": drawing.tint(CLEAN, 0.55),
    "perception_error": ACCENT,
    "reasoning_error": "#f2c14e",
    "unread": FRAME,
}


class Bar(NamedTuple):
    """One bar: shares from 0 to 1; `low` and `high` bound its 95 % interval, None where it has none."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None


def plot_bars(path: Path, title: str, groups: Sequence[tuple[str, Sequence[Bar]]]) -> Path:
    """Draw horizontal bars in groups. The first bar of a group is this model's; the others, paler, are compared with it.

    Bars are named at the first group, and keep their order and colour in all.
    """
    colors = (CLEAN, drawing.tint(MASKED, 0.35), drawing.tint(MASKED, 0.65))
    thick, gap = 0.19, 0.17
    height = sum(len(bars) * thick + gap for _, bars in groups)
    figure = drawing.new_figure(height + 1.15)
    axes = _horizontal(figure, title, height, right=1.35)
    places, top = [], gap / 2
    for number, (_, bars) in enumerate(groups):
        places.append(top + len(bars) * thick / 2)
        for bar, color in zip(bars, colors, strict=False):
            middle, end = top + thick / 2, 100 * bar.value
            axes.barh(middle, end, 0.9 * thick, color=color)
            if bar.low is not None and bar.high is not None:
                for color_of_line, width in (("white", 3.6), (INK, 1.4)):  # the casing keeps it visible on the bar
                    ends = {"color": color_of_line, "linewidth": width, "zorder": 3, "clip_on": False}
                    axes.plot([100 * bar.low, 100 * bar.high], [middle] * 2, solid_capstyle="butt", **ends)
                end = max(end, 100 * bar.high)
            own = color == CLEAN
            label = f"{100 * bar.value:.1f}" + (f"  {bar.name}" if number == 0 and len(bars) > 1 else "")
            style = {"color": CLEAN if own else MUTED, "weight": "bold" if own else "normal"}
            _label(axes, end, middle, label, fontsize=8, **style)
            top += thick
        top += gap
    _names(axes, places, [name for name, _ in groups])
    return drawing.save(figure, path)


def plot_vision_dependency(path: Path, curves: dict[str, Sequence[dict[str, Any]]]) -> Path:
    """Draw accuracy over the share of the image that is masked, with 95 % bands; a blank image stands to the right.

    Args:
        curves: title of a benchmark → its points {"mask_ratio" (None: blank), "accuracy", "low", "high"}. Up to four
            share their axes; more get axes of their own.
    """
    if len(curves) <= len(LINES):
        figure = drawing.new_figure(4.0)
        axes = drawing.add_axes(figure, 0.75, 0.5, WIDTH - 3.35, 2.85)
        ends = []
        for (title, points), (color, marker) in zip(curves.items(), LINES, strict=False):
            last = _curve(axes, points, color, marker)
            ends.append((last, f"{100 * last:.1f}  {_cut(title, 26)}", color))
        _masked_axis(axes, "Accuracy as the image disappears", curves.values())
        axes.set_xlabel("share of the image that is masked")
        axes.set_ylabel("% correct")
        drawing.end_labels(axes, [(100 * value, text, color) for value, text, color in ends])
        return drawing.save(figure, path)
    columns, width, height = 3, (WIDTH - 0.55) / 3, 2.15
    figure = drawing.new_figure(-(-len(curves) // columns) * height + 0.75)
    drawing.heading(figure, 0.3, 0.2, ["Accuracy (%) over the share of the image that is masked"])
    for number, (title, points) in enumerate(curves.items()):
        row, column = divmod(number, columns)
        axes = drawing.add_axes(figure, 0.55 + column * width, 0.95 + row * height, width - 0.4, height - 0.75)
        _curve(axes, points, *LINES[0])
        _masked_axis(axes, _cut(title, 28), curves.values())
    return drawing.save(figure, path)


def plot_errors(path: Path, errors: dict[str, dict[str, float]]) -> Path:
    """Draw what becomes of the answers: one bar a benchmark, cut into the shares of `KINDS`, which sum to 1."""
    step = 0.5
    figure = drawing.new_figure(len(errors) * step + 1.45)
    axes = _horizontal(figure, "What becomes of the answers", len(errors) * step, right=0.4, above=0.8)
    places = [(number + 0.5) * step for number in range(len(errors))]
    for place, shares in zip(places, errors.values(), strict=True):
        left = 0.0
        for kind, color in KINDS.items():
            share = 100 * (shares.get(kind) or 0.0)
            axes.barh(place, share, 0.62 * step, left=left, color=color, edgecolor="white", linewidth=0.8)
            if share >= 5:
                ink = "white" if color in (CLEAN, ACCENT) else INK
                style = {"ha": "center", "va": "center", "fontsize": 8.5, "color": ink, "family": SANS}
                axes.text(left + share / 2, place, f"{share:.0f}", **style)
            left += share
    _names(axes, places, list(errors))
    left = NAMES
    for kind, color in KINDS.items():
        key = drawing.add_axes(figure, left, 0.51, 0.13, 0.13)
        key.set_axis_off()
        key.add_patch(Rectangle((0, 0), 1, 1, color=color))
        drawing.add_text(figure, left + 0.19, 0.575, kind.replace("_", " "), size=8.5, va="center")
        left += 0.42 + 0.069 * len(kind)
    return drawing.save(figure, path)


def _horizontal(figure: Figure, title: str, height: float, right: float, above: float = 0.55) -> Axes:
    """Axes from 0 to 100 %, in inches from the top downwards, under a title at the left of the page."""
    drawing.heading(figure, 0.3, 0.17, [title])
    axes = drawing.add_axes(figure, NAMES, above, WIDTH - NAMES - right, height)
    drawing.panel(axes, "", "", "% of answers")
    axes.set_xlim(0, 100)
    axes.set_ylim(height, 0)
    axes.grid(False, axis="y")
    axes.grid(True, axis="x", color=drawing.GRID, linewidth=0.8)
    return axes


def _names(axes: Axes, places: list[float], names: list[str]) -> None:
    axes.set_yticks(places, ["\n".join(drawing.wrapped(name, 27)) for name in names])
    for label in axes.get_yticklabels():
        label.set(parse_math=False, color=INK, fontsize=8.5)


def _label(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    """Text just right of a point, inside or outside of the axes."""
    where = {"textcoords": "offset points", "va": "center", "ha": "left", "annotation_clip": False}
    axes.annotate(text, (x, y), (4, 0), family=SANS, parse_math=False, **where, **style)


def _curve(axes: Axes, points: Sequence[dict[str, Any]], color: str, marker: str) -> float:
    """Draw one benchmark's points; returns the accuracy of the rightmost, 0 to 1."""
    line = sorted((p for p in points if p["mask_ratio"] is not None), key=lambda p: p["mask_ratio"])
    blank = [p for p in points if p["mask_ratio"] is None]
    ratios = [p["mask_ratio"] for p in line]
    style = {"color": color, "marker": marker, "clip_on": False, "zorder": 3}
    axes.plot(ratios, [100 * p["accuracy"] for p in line], markersize=5, linewidth=2, **style)
    banded = [p for p in line if p.get("low") is not None and p.get("high") is not None]
    axes.fill_between(
        [p["mask_ratio"] for p in banded],
        [100 * p["low"] for p in banded],
        [100 * p["high"] for p in banded],
        color=color, alpha=0.14, linewidth=0,
    )  # fmt: skip
    for p in blank:
        axes.plot(BLANK, 100 * p["accuracy"], markersize=6, markerfacecolor="white", **style)
        if p.get("low") is not None and p.get("high") is not None:
            axes.plot([BLANK] * 2, [100 * p["low"], 100 * p["high"]], color=color, linewidth=1.2, zorder=1)
    return (blank or line)[-1]["accuracy"]


def _masked_axis(axes: Axes, title: str, curves: Any) -> None:
    """The axes of accuracy over mask ratio, alike in all panels of a picture."""
    points = [point for curve in curves for point in curve]
    blank = any(point["mask_ratio"] is None for point in points)
    largest = max(100 * max(point["accuracy"], point.get("high") or 0) for point in points)
    top = max(20, 20 * math.ceil(round(largest, 6) / 20))
    ratios = [0.0]
    for ratio in sorted({point["mask_ratio"] for point in points if point["mask_ratio"] is not None} | {1.0}):
        if ratio - ratios[-1] > 0.12:  # nearer ones would not fit a small panel
            ratios.append(ratio)
    drawing.panel(axes, title, "", "")
    axes.set_xlim(-0.03, BLANK + 0.06 if blank else 1.03)
    axes.set_xticks(ratios + [BLANK] * blank, [f"{ratio:g}" for ratio in ratios] + ["blank"] * blank)
    axes.set_ylim(0, 1.03 * top)
    axes.set_yticks(range(0, top + 1, 20))
    axes.tick_params(axis="x", pad=7)  # clear of a marker at 0


def _cut(title: str, columns: int) -> str:
    """One line of at most that many characters."""
    title = drawing.drawable(" ".join(title.split()), SANS)
    return title if len(title) <= columns else title[: columns - 2] + " …"
