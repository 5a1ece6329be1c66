"""Figures of the gallery: intervals as points with whiskers, curves of several seeds with their band."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from scipy.stats import t as student

from lab.outcome import Estimate
from lab.question import Found, Row, scale
from papo_hub import drawing

COLORS = ("#0b7285", "#d9480f", "#5f3dc4", "#b08900", "#2b8a3e", "#c2255c", "#5c677d", "#1864ab", "#862e9c")
LINE = 0.3  # inches of a row


def forest(
    path: Path,
    title: str,
    rows: Sequence[Row],
    quantities: dict[str, str],
    found: Found,
    note: str = "Means over seeds with 95 % intervals (Student's t); shares in points.",
    left: float = 2.6,
) -> None:
    """A panel a quantity, a line a row: mean and interval. Where all rows are differences, with a line at zero and one scale
    for all panels."""
    height = LINE * len(rows)
    figure = drawing.new_figure(height + 1.55)
    drawing.heading(figure, 0.2, 0.15, drawing.wrapped(title, 95))
    width = (drawing.WIDTH - left - 0.25) / len(quantities)
    differences = all(row.baseline for row in rows)
    ends = [
        scale(quantity) * (end if end is not None else value.mean)
        for quantity in quantities
        for value in (found.estimate(row, quantity) for row in rows)
        for end in (value.low, value.high)
    ]
    for place, (quantity, heading) in enumerate(quantities.items()):
        axes = drawing.add_axes(figure, left + place * width, 0.85, width - 0.3, height)
        estimates = [found.estimate(row, quantity) for row in rows]
        intervals(axes, heading, estimates, differences, scale(quantity))
        if differences:
            room = 0.05 * (max(*ends, 0) - min(*ends, 0))
            axes.set_xlim(min(*ends, 0) - room, max(*ends, 0) + room)
    for line, row in enumerate(rows):
        text = f"{row.label}  (n {found.estimate(row, next(iter(quantities))).n})"
        drawing.add_text(figure, left - 0.15, 0.85 + LINE * (line + 0.5), text, size=8.5, ha="right", va="center")
    drawing.add_text(figure, 0.2, height + 1.27, note, size=7.5, color=drawing.MUTED)
    drawing.save(figure, path)


def intervals(axes: Axes, heading: str, estimates: Sequence[Estimate], zero: bool, scale: float) -> None:
    """Horizontal intervals from top to bottom."""
    drawing.panel(axes, "", "", "")
    axes.set_title(heading.replace(", ", ",\n"), loc="left", fontsize=9, pad=6, color=drawing.INK, family=drawing.SANS)
    axes.grid(True, axis="x", color=drawing.GRID, linewidth=0.8)
    axes.grid(False, axis="y")
    if zero:
        axes.axvline(0, color=drawing.MUTED, linewidth=1)
    for line, value in enumerate(estimates):
        known = value.low is not None
        apart = zero and known and (value.low > 0 or value.high < 0)
        color = drawing.ACCENT if apart else drawing.CLEAN
        if known:
            axes.plot([scale * value.low, scale * value.high], [line, line], color=color, linewidth=2, alpha=0.75)
        axes.plot([scale * value.mean], [line], "o", color=color, markersize=5)
    axes.set(ylim=(len(estimates) - 0.5, -0.5), yticks=[])


def band(axes: Axes, values: np.ndarray, color: str, smooth: int = 1) -> float:
    """A curve of several runs, values (runs, steps): mean and 95 % interval of the mean. Returns the last mean.

    Over steps that some run lacks, the mean is of the others.
    """
    if smooth > 1:
        kernel = np.ones(smooth) / smooth
        values = np.array([np.convolve(run, kernel, "valid") for run in values])
    with warnings.catch_warnings():  # a step that no run has
        warnings.simplefilter("ignore", RuntimeWarning)
        mean, spread = np.nanmean(values, 0), np.nanstd(values, 0, ddof=1)
    steps = np.arange(smooth, smooth + values.shape[1])
    there = np.isfinite(mean)
    n = len(values)
    if n > 1:
        half = float(student.ppf(0.975, n - 1)) * spread / n**0.5
        axes.fill_between(
            steps[there], (mean - half)[there], (mean + half)[there], color=color, alpha=0.16, linewidth=0
        )
    axes.plot(steps[there], mean[there], color=color, linewidth=1.6)
    return float(mean[there][-1])
