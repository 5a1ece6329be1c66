"""Does learning verified answers on a worse image teach seeing? (our own idea, fixed beforehand)

GRPO-V adds, for completions that did better than their group, their likelihood on the same image with more noise: a label that
the reward has checked, for an image on which seeing is harder. It asks for no dependence as such, so there is nothing to run
away. Written and committed before any of its runs:

* Set-ups: shown, plain, misleading, caption. Seeds 1 to 8, a warm-up each. The recipe's learning rate, 80 steps.
* Arms: GRPO; GRPO-V with λ 0.3 and noise of 0.3 of the variance; the same without noise, which tells the harder image from one
  more push by good completions; DVRP's term, consistency under noise, has its own line under "later".
* Outcome: perception errors among the answers to vision-only questions, paired by seed.
* It teaches seeing if, over the four set-ups together (n = 32), the 95 % intervals of GRPO-V less GRPO and of GRPO-V less the
  control both lie below 0. Otherwise the null is published with its interval.
"""

from pathlib import Path

from lab import arms, figures
from lab.question import Found, Question, Row

SETUPS = ("shown", "plain", "misleading", "caption")
COMPARED = ((arms.VERIFIED, arms.GRPO), (arms.VERIFIED, arms.VERIFIED_CLEAN), (arms.VERIFIED_CLEAN, arms.GRPO))
POOLED = [Row(arm, baseline, SETUPS) for arm, baseline in COMPARED]
APART = [Row(arm, baseline, (setup,)) for setup in SETUPS for arm, baseline in COMPARED[:2]]
QUANTITIES = {
    "perception_error/high": "Δ perception errors, vision-only",
    "accuracy/high": "Δ accuracy, vision-only",
    "accuracy": "Δ accuracy",
}


def draw(found: Found, path: Path) -> None:
    title = "GRPO-V: verified answers learned with noise (first column: the outcome fixed beforehand)"
    figures.forest(path, title, [*POOLED, *APART], QUANTITIES, found, left=4.3)


ANSWER = """
**No.** Over the four set-ups together (n = 32) GRPO-V has +0.4 [-0.5, +1.3] points more perception errors among its answers to
vision-only questions than GRPO, and +0.3 [-0.6, +1.3] more than the control without noise: neither interval lies below 0, so
by the rule written beforehand it does not teach seeing. A gain of more than 0.5 points against GRPO is ruled out on average over
these set-ups, for this λ, this noise and this length of training. No set-up is an exception: none has an interval below 0. One more
push by good completions, without noise, costs nothing either: its accuracy lies +0.4 [-0.1, +0.8] points from GRPO's.
"""

QUESTION = Question(__name__, (*POOLED, *APART), QUANTITIES, draw, answer=ANSWER, seeds=8)
