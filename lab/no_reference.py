"""Is the KL to the reference model needed?

Hypothesis (the paper): PAPO-G loses more than GRPO without it, since nothing else holds the policy.
"""

from pathlib import Path

from lab import arms, figures
from lab.question import Found, Question, Row

ROWS = (
    Row(arms.GRPO_NO_REFERENCE, arms.GRPO),
    Row(arms.STRONG_NO_REFERENCE, arms.STRONG),
    Row(arms.STRONG_NO_REFERENCE, arms.GRPO_NO_REFERENCE),
)
QUANTITIES = {"accuracy": "Δ accuracy", "accuracy/high": "Δ vision-only", "perception_error": "Δ perception errors"}


def draw(found: Found, path: Path) -> None:
    figures.forest(path, "Without the KL to the reference model", ROWS, QUANTITIES, found, left=3.4)


QUESTION = Question(__name__, ROWS, QUANTITIES, draw, answer="", seeds=6)
