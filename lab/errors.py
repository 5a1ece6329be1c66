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
    "perception_error": "perception errors",
    "perception_error/high": "the same, vision-only",
    "reasoning_error": "reasoning errors",
    "lucky": "lucky",
}


def draw(found: Found, path: Path) -> None:
    figures.forest(path, "Kinds of errors: the perception term less its baseline", ROWS, QUANTITIES, found)


ANSWER = """
**Not that could be seen.** Perception errors are the greater part of all errors here too, as the levels show, and the term neither
removes them nor turns them into errors of reasoning or into luck: every interval holds zero. A fall of the paper's size, three
tenths of the perception errors, would be seven points, and ten on vision-only questions; falls of more than one and a half points
lie outside all intervals of the first two columns.
"""
QUESTION = Question(__name__, (*ROWS, *LEVELS), QUANTITIES, draw, ANSWER, seeds=8)
