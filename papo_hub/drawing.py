"""What every picture here is drawn with: one page size, one palette, places in inches, text without surprises.

Everything is drawn on `matplotlib.figure.Figure` with explicit colours and positions in inches; pyplot and its
global state are not touched. All pictures are 9 inches wide at 144 dpi: sharp at the 900 pixels of a README.
"""

from __future__ import annotations

import math
import textwrap
from functools import cache
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font

WIDTH, DPI = 9.0, 144
INK, MUTED, GRID, FRAME = "#1f2933", "#6b7785", "#e8ebef", "#cfd6dd"
CLEAN, MASKED, ACCENT, QUIET = "#0b7285", "#5c677d", "#d9480f", "#b08900"
SANS, MONO = "DejaVu Sans", "DejaVu Sans Mono"  # both ship with matplotlib


def new_figure(height: float) -> Figure:
    """A white page, `WIDTH` by `height` inches."""
    return Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")


def add_axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place given in inches from the upper left corner."""
    full_width, full_height = figure.get_size_inches()
    bottom = full_height - top - height
    return figure.add_axes(
        (left / full_width, bottom / full_height, width / full_width, height / full_height), facecolor="white"
    )


def add_text(figure: Figure, left: float, top: float, text: str, size: float = 9, color: str = INK, **options) -> None:
    """Text of `size` points at a place given in inches from the upper left corner; never read as mathematics."""
    width, height = figure.get_size_inches()
    options = {"family": SANS, "va": "top", "parse_math": False, **options}
    figure.text(left / width, 1 - top / height, text, fontsize=size, color=color, **options)


def save(figure: Figure, path: Path) -> Path:
    """Write the figure as PNG; its folder is made where it is missing. Returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=DPI)
    return path


def heading(figure: Figure, left: float, top: float, lines: list[str]) -> None:
    """Bold lines, 0.24 inches apart."""
    for number, line in enumerate(lines):
        add_text(figure, left, top + 0.24 * number, line, size=11, weight="bold")


def panel(axes: Axes, title: str, ylabel: str, xlabel: str) -> None:
    """The look of a plot: its title to the left, faint horizontal lines, a frame at the bottom only."""
    style = {"color": INK, "family": SANS, "weight": "bold", "parse_math": False}
    axes.set_title(title, loc="left", fontsize=10, pad=9, **style)
    axes.set_ylabel(ylabel, fontsize=8.5, color=MUTED, family=SANS)
    axes.set_xlabel(xlabel, fontsize=8.5, color=MUTED, family=SANS)
    axes.grid(True, axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=8, labelcolor=MUTED, labelfontfamily=SANS)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(FRAME)


def end_labels(axes: Axes, ends: list[tuple[float, str, str]]) -> None:
    """(value, text, colour) labels at the right end of curves, pushed apart where they would overlap."""
    low, high = axes.get_ylim()
    needed = 0.17 / (axes.get_position().height * axes.figure.get_figheight())  # a line of text, in axes fractions
    heights, floor = [], -math.inf
    ends = sorted(ends, key=lambda end: end[0])
    for value, _, _ in ends:
        floor = max((value - low) / (high - low), floor + needed)
        heights.append(floor)
    ceiling = 1.02
    for place in reversed(range(len(heights))):
        heights[place] = min(heights[place], ceiling)
        ceiling = heights[place] - needed
    for height, (_, text, color) in zip(heights, ends, strict=True):
        style = {"va": "center", "fontsize": 8.5, "weight": "bold", "family": SANS, "parse_math": False}
        axes.annotate(
            text, (1, height), (6, 0), xycoords="axes fraction", textcoords="offset points", color=color, **style
        )


def wrapped(title: str, columns: int) -> list[str]:
    """At most two lines of at most `columns` characters."""
    return textwrap.wrap(drawable(" ".join(title.split()), SANS), columns, max_lines=2, placeholder=" …")


def drawable(text: str, family: str) -> str:
    """The text with a □ for every character that the font lacks (matplotlib would warn and draw nothing useful)."""
    known = _codepoints(family)
    return "".join(char if ord(char) in known and char.isprintable() else "□" for char in text)


def tint(color: str, white: float) -> tuple[float, float, float]:
    """The colour with a share of white mixed in, as red, green, blue from 0 to 1."""
    red, green, blue = (white + (1 - white) * part for part in to_rgb(color))
    return red, green, blue


@cache
def _codepoints(family: str) -> frozenset[int]:
    return frozenset(get_font(findfont(family)).get_charmap())
