"""What does the double entropy loss do, and does its half for the masked view act at all?

Hypothesis (the paper): it keeps the perception term from running away. But where the masked log-probs are frozen, as in the
official code, η2's half has no gradient, and η1's half has none in expectation on the policy's own samples: then both arms
should die like the one without. γ = 0.3, learning rate 5e-4, η = 0.05.
"""

from pathlib import Path

from lab import arms, figures
from lab.question import Found, Question, Row

ROWS = (Row(arms.HOT_GRPO), *(Row(arm) for arm in arms.HOT_PAPO.values()))
QUANTITIES = {"accuracy": "accuracy after", "accuracy/high": "vision-only", "perception_kl": "perception KL × 100"}


def draw(found: Found, path: Path) -> None:
    figures.forest(
        path, "Which entropy, and with or without gradient: accuracy after 40 steps", ROWS, QUANTITIES, found
    )


QUESTION = Question(__name__, ROWS, QUANTITIES, draw, answer="", seeds=4)
