"""When does the perception term help: does its gradient tell beforehand?

Hypothesis: it helps where its gradient agrees with the reward's: where text offers a shortcut that the image corrects
(misleading, caption), not where the reward alone repairs reading (shown, plain), nor where reading is hard (noisy, raw). γ = 0.1.
"""

from pathlib import Path

import numpy as np

from lab import arms, figures
from lab.outcome import estimate
from lab.question import Found, Question, Row
from lab.setups import SETUPS
from papo_hub import drawing

ALIGNMENT = "objective/alignment"
ROWS = tuple(Row(arms.STRONG, arms.GRPO, (setup,)) for setup in SETUPS)
QUANTITIES = {
    "accuracy": "Δ accuracy",
    "accuracy/high": "Δ vision-only",
    "perception_error/high": "Δ perception errors, vision-only",
}


def alignments(found: Found, setup: str) -> list[float]:
    """Of each run, the mean of the first three measurements (steps 1, 11, 21)."""
    curves = found.curves(arms.STRONG, ALIGNMENT, (setup,))
    return [float(np.mean(run[np.isfinite(run)][:3])) for run in curves]


def draw(found: Found, path: Path) -> None:
    figure = drawing.new_figure(4.3)
    drawing.heading(
        figure, 0.2, 0.15, ["Agreement of the two gradients at the start, and what came of the term (γ 0.1)"]
    )
    axes = drawing.add_axes(figure, 0.9, 0.85, 6.3, 2.8)
    drawing.panel(
        axes,
        "",
        "Δ perception errors, vision-only (points)",
        "cosine of the perception term's gradient and the reward's",
    )
    axes.axhline(0, color=drawing.MUTED, linewidth=1)
    axes.axvline(0, color=drawing.MUTED, linewidth=1)
    for color, setup in zip(figures.COLORS, SETUPS, strict=False):
        x = estimate(alignments(found, setup))
        y = found.estimate(Row(arms.STRONG, arms.GRPO, (setup,)), "perception_error/high")
        style = {"color": color, "linewidth": 1.6, "alpha": 0.8}
        axes.plot([x.low, x.high], [100 * y.mean] * 2, **style)
        axes.plot([x.mean] * 2, [100 * y.low, 100 * y.high], **style)
        axes.plot([x.mean], [100 * y.mean], "o", color=color, markersize=6)
        axes.annotate(setup, (x.mean, 100 * y.mean), (6, 6), textcoords="offset points", color=color, fontsize=9)
    drawing.save(figure, path)


QUESTION = Question(__name__, ROWS, QUANTITIES, draw, answer="", seeds=6, curves=(ALIGNMENT,))
