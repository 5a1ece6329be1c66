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


ANSWER = """
**Two different deaths.** Live, the published picture: the perception KL climbs to its clamp of 10, the cross-entropy of the
masked view with it, the variance over tokens bulges while some tokens are at the clamp and others are not yet, and the reward
falls as the entropy rises; with the image masked nothing is answered at all any more. Frozen, as in the official code, none of
the divergence's own curves gives a warning: the perception KL stays where it was, since the target moves along with the shared
weights and the policy keeps chasing it, while the reward falls earlier than in the live form. What shows in both is the entropy
of the clean view, leaving GRPO's before the reward has reached its floor; the share of clipped tokens stays below one in a
hundred and tells little. Four seeds are enough for the deaths, not for the last digits of the table: shares near zero with a
wide interval are one seed apart from three.
"""
QUESTION = Question(__name__, ROWS, QUANTITIES, draw, ANSWER, seeds=4, curves=tuple(metric for metric, _, _ in PANELS))
