"""Does rewarding dependence on the image, weighted by the advantage or not, make the policy see better? (fixed beforehand)

Written and committed before any of its runs:

* Set-ups: plain, misleading, caption. Seeds 1 to 12, a warm-up each. Learning rates 5e-4 and 2e-4, 80 steps, falling to 0.
* Arms: GRPO; PAPO (sampled, frozen, γ 0.1); A · JS (exact Jensen-Shannon, frozen, weighted by the signed advantage, γ 0.3);
  the same weighted by another prompt's advantage, which tells a push towards the image from any push; GRPO with five times the
  KL to the reference, which tells it from holding still.
* Outcome: perception errors among the answers to vision-only questions, paired by seed, less GRPO's. The rest is secondary.
* An arm sees better if, over the three set-ups together (n = 36) at the recipe's learning rate of 5e-4, the 95 % interval
  lies below 0, and the mean at 2e-4 lies below 0 too. It does so by perception if A · JS is also below the shuffled arm in this
  sense. Otherwise the null is published with the interval: what effect it rules out.

Hypothesis: A · JS lies within 2 points of GRPO, PAPO within 3.
"""

from pathlib import Path

from lab import arms, figures
from lab.question import Found, Question, Row

SETUPS = ("plain", "misleading", "caption")
PRIMARY, *SECOND = arms.LEARNING_RATES


def rows(setups: tuple[str, ...], rate: float) -> list[Row]:
    compared = (arms.STRONG, arms.ADVANTAGE, arms.SHUFFLED, arms.STRONG_REFERENCE)
    return [Row(arms.at(arm, rate), arms.at(arms.GRPO, rate), setups) for arm in compared]


POOLED = [row for rate in arms.LEARNING_RATES for row in rows(SETUPS, rate)]
CONTROL = [Row(arms.at(arms.ADVANTAGE, rate), arms.at(arms.SHUFFLED, rate), SETUPS) for rate in arms.LEARNING_RATES]
APART = [row for setup in SETUPS for row in rows((setup,), PRIMARY)]
QUANTITIES = {
    "perception_error/high": "Δ perception errors, vision-only",
    "accuracy/high": "Δ accuracy, vision-only",
    "accuracy": "Δ accuracy",
}


def draw(found: Found, path: Path) -> None:
    title = "The settling experiment: each arm less GRPO (first column: the outcome fixed beforehand)"
    figures.forest(path, title, [*POOLED, *CONTROL, *APART], QUANTITIES, found, left=4.6)


QUESTION = Question(__name__, (*POOLED, *CONTROL, *APART), QUANTITIES, draw, answer="", seeds=12)
