"""Does the perception term turn errors of perception into something better?

Hypothesis (the paper): two thirds of all errors are of perception, and PAPO removes 30 % of them. A response that misreads a
digit and gets the answer wrong is a perception error; one that reads all digits right and errs is a reasoning error; one that
misreads and is right all the same is lucky.
"""

from pathlib import Path

from lab import arms, figures
from lab.question import Found, Question, Row

ROWS = (Row(arms.PAPO_G, arms.GRPO), Row(arms.STRONG, arms.GRPO), Row(arms.PAPO_D, arms.DAPO))
LEVELS = (Row(arms.GRPO), Row(arms.PAPO_G), Row(arms.STRONG), Row(arms.DAPO), Row(arms.PAPO_D))
QUANTITIES = {
    "perception_error": "Δ perception errors",
    "perception_error/high": "Δ the same, vision-only",
    "reasoning_error": "Δ reasoning errors",
    "lucky": "Δ lucky",
}


def draw(found: Found, path: Path) -> None:
    figures.forest(path, "Kinds of errors: the perception term less its baseline", ROWS, QUANTITIES, found)


QUESTION = Question(__name__, ROWS, QUANTITIES, draw, answer="", seeds=8)
