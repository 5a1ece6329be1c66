"""What does it look like when the policy hacks the perception term, and what shows it first?

Hypothesis (the paper): with a strong term (here γ = 0.3 at a learning rate of 5e-4) the perception KL grows without bound
while the reward falls; entropy and clipping show it early. Two forms are compared: masked log-probs computed once a rollout
(frozen, the official code) and with gradient (live).
"""

from pathlib import Path

from lab import arms, figures
from lab.question import Found, Question, Row
from papo_hub import drawing

FROZEN, LIVE = arms.HOT_PAPO["frozen", "none"], arms.HOT_PAPO["live", "none"]
SERIES = ((arms.HOT_GRPO, "GRPO"), (FROZEN, "frozen"), (LIVE, "live"))
ROWS = tuple(Row(arm) for arm, _ in SERIES)
QUANTITIES = {
    "accuracy": "accuracy after",
    "accuracy/high": "vision-only",
    "masked_accuracy": "image masked",
    "unread": "no reading found",
}
PANELS = (
    ("reward/mean", "reward", "0 to 1"),
    ("objective/perception_kl", "perception KL", "nats a token, clamp 10"),
    ("objective/perception_kl_variance", "its variance over tokens", "nats²"),
    ("objective/entropy", "entropy, clean view", "nats a token"),
    ("objective/masked_entropy", "cross-entropy, masked view", "nats a token"),
    ("objective/clip_fraction_high", "clipped above", "share of tokens"),
)


def draw(found: Found, path: Path) -> None:
    figure = drawing.new_figure(5.6)
    drawing.heading(figure, 0.2, 0.15, ["γ = 0.3, learning rate 5e-4: two ways to die (mean and 95 % band over seeds)"])
    for place, (metric, title, unit) in enumerate(PANELS):
        axes = drawing.add_axes(figure, 0.65 + (place % 3) * 2.95, 0.85 + (place // 3) * 2.45, 1.8, 1.65)
        drawing.panel(axes, title, unit, "step" if place > 2 else "")
        ends = []
        for color, (arm, label) in zip(figures.COLORS, SERIES, strict=False):
            values = found.curves(arm, metric)
            if (values == values).any():
                ends.append((figures.band(axes, values, color, smooth=3), label, color))
        axes.set_ylim(bottom=0)
        drawing.end_labels(axes, ends)
    drawing.save(figure, path)


QUESTION = Question(
    __name__, ROWS, QUANTITIES, draw, answer="", seeds=4, curves=tuple(metric for metric, _, _ in PANELS)
)
