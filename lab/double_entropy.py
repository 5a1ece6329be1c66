"""What does the double entropy loss do, and does its half for the masked view act at all?

Hypothesis (the paper): it keeps the perception term from running away. But where the masked log-probs are frozen, as in the
official code, η2's half has no gradient, and η1's half has none in expectation on the policy's own samples: then both arms
should die like the one without. γ = 0.3, learning rate 5e-4, η = 0.05.
"""

from pathlib import Path

from lab import arms, figures
from lab.question import Found, Question, Row

ROWS = (Row(arms.HOT_GRPO), *(Row(arm) for arm in arms.HOT_PAPO.values()))
QUANTITIES = {"accuracy": "accuracy after", "accuracy/high": "vision-only", "perception_kl": "perception KL, nats"}


def draw(found: Found, path: Path) -> None:
    figures.forest(
        path, "Which entropy, and with or without gradient: accuracy after 40 steps", ROWS, QUANTITIES, found
    )


ANSWER = """
**It saves no run here, and half of it is not there.** With frozen masked log-probs η2 changes nothing at all: the arms "masked" and
"none" are the same runs, answer by answer, and so are "both" and "clean". That is the gradient that is missing, seen in a run.
η1's half does act, through the second update of each step, and saves nothing: all four seeds end at zero. Live, where η2 has a
gradient, its intervals and those of the arms without it lie over each other, and all of them far below GRPO's. At this γ (15
times the recipe's) a weight of 0.05 is no match; nothing is said about the weights and the γ of the paper.
"""
QUESTION = Question(__name__, ROWS, QUANTITIES, draw, ANSWER, seeds=4)
