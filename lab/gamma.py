"""How strong should the perception term be?

Hypothesis: there is a range of γ in which it helps, and one above it in which the run is lost.
"""

from pathlib import Path

from lab import arms, figures
from lab.question import Found, Question, Row

ROWS = tuple(Row(arm, arms.GRPO) for gamma, arm in arms.GAMMAS.items() if gamma)
QUANTITIES = {
    "accuracy": "Δ accuracy",
    "accuracy/high": "Δ vision-only",
    "perception_error": "Δ perception errors",
    "masked_accuracy": "Δ accuracy, image masked",
}


def draw(found: Found, path: Path) -> None:
    figures.forest(path, "PAPO-G less GRPO, by γ (80 steps)", ROWS, QUANTITIES, found)


QUESTION = Question(__name__, ROWS, QUANTITIES, draw, answer="", seeds=6)
