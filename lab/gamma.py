"""How strong should the perception term be?

Hypothesis: there is a range of γ in which it helps, and one above it in which the run is lost.
"""

from pathlib import Path

from lab import arms, figures
from lab.question import Found, Question, Row, shown

ROWS = tuple(Row(arm, arms.GRPO) for gamma, arm in arms.GAMMAS.items() if gamma)
QUANTITIES = {
    "accuracy": "Δ accuracy",
    "accuracy/high": "Δ vision-only",
    "perception_error": "Δ perception errors",
    "masked_accuracy": "Δ accuracy, image masked",
}


def draw(found: Found, path: Path) -> None:
    *living, dead = ROWS
    lost = shown(found.estimate(dead, "accuracy"), signed=True)
    note = f"Means over seeds with 95 % intervals (Student's t), in points. Far to the left: {dead.label}, {lost}."
    figures.forest(path, "PAPO-G less GRPO, by γ (80 steps)", living, QUANTITIES, found, note)


ANSWER = """
**Here, none is better than none.** The paper's 0.02 cannot be told from GRPO. Five times that costs: accuracy lies below GRPO's,
with an interval that ends at zero, and the masked image, too, is answered worse, with one that does not reach it. Fifteen times
that is the end of every run, even at a learning rate that falls to zero. There is a range in which the term does no harm and one
in which it kills; the range in which it helps was not found in this set-up. (Where nothing is read any more, errors of perception
are no longer counted as such: their interval in the last line says nothing.)
"""
QUESTION = Question(__name__, ROWS, QUANTITIES, draw, ANSWER, seeds=6)
