"""What should be hidden, and how much of it?

Hypothesis (the paper): 60 % of the patches at random is best; less tells the views too little apart, a black image punishes
what no image could help with; hiding what a vision encoder attends to is no better. γ = 0.1, patches of 14 px (a quarter of a
digit) unless said; the encoder is a tiny DINOv2 that has learned to read these digits.
"""

from pathlib import Path

from lab import arms, figures
from lab.encoder import train_encoder
from lab.question import Found, Question, Row

ROWS = tuple(Row(arm, arms.GRPO) for arm in (*arms.MASK_RATIOS.values(), arms.SMALL, arms.SEMANTIC, arms.WHOLE_DIGITS))
QUANTITIES = {"accuracy": "Δ accuracy", "accuracy/high": "Δ vision-only", "perception_error": "Δ perception errors"}


def draw(found: Found, path: Path) -> None:
    figures.forest(path, "PAPO-G (γ 0.1) less GRPO, by what is hidden", ROWS, QUANTITIES, found, left=3.2)


def prepare(runs: Path) -> None:
    train_encoder(runs / "encoder")


QUESTION = Question(__name__, ROWS, QUANTITIES, draw, answer="", seeds=6, prepare=prepare)
