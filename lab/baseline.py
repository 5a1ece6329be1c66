"""Does the perception term beat its baseline at equal rollouts?

Hypothesis (the paper): PAPO-G beats GRPO and PAPO-D beats DAPO, most on questions that the text does not answer. The paper's
weights (γ 0.02 and 0.01), the same seeds, warm-ups, prompts, steps and completions on both sides.
"""

from pathlib import Path

from lab import arms, figures
from lab.question import Found, Question, Row

ROWS = (Row(arms.PAPO_G, arms.GRPO), Row(arms.PAPO_D, arms.DAPO))
QUANTITIES = {
    "accuracy": "Δ accuracy",
    "accuracy/high": "Δ vision-only",
    "accuracy/partial": "Δ partly in the text",
    "accuracy/low": "Δ all in the text",
}


def draw(found: Found, path: Path) -> None:
    title = "The perception term against its baseline, by what the text gives away"
    figures.forest(path, title, ROWS, QUANTITIES, found)


ANSWER = """
**Not here.** No interval lies above zero, neither of PAPO-G nor of PAPO-D, at any visual dependence. The interval of the overall
difference ends at a quarter of a point for PAPO-G and below one point for PAPO-D: at the paper's weights, gains of that size and
more are ruled out in this set-up, for this length of training. The outcome reward alone repairs reading here, vision-only
questions included, and leaves the term little to add.
"""
QUESTION = Question(__name__, ROWS, QUANTITIES, draw, ANSWER, seeds=8)
