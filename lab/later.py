"""Do later objectives do better at equal rollouts?

Hypothesis: none (each paper claims to beat its baseline). PAPO-G's variants, at a strength that the divergence has about that
of the sampled one at γ = 0.1, against GRPO; VPPO, PGPO and DVRP, which build on DAPO, against DAPO.
"""

from pathlib import Path

from lab import arms, figures
from lab.question import Found, Question, Row

ROWS = (
    *(Row(arm, arms.GRPO) for arm in (arms.STRONG, arms.EXACT_KL, arms.EXACT_JS, arms.ADVANTAGE, arms.TOP_P)),
    *(Row(arm, arms.DAPO) for arm in (arms.PAPO_D, arms.VPPO, arms.PGPO, arms.DVRP)),
)
QUANTITIES = {"accuracy": "Δ accuracy", "accuracy/high": "Δ vision-only", "perception_error": "Δ perception errors"}


def draw(found: Found, path: Path) -> None:
    figures.forest(path, "Later objectives, each less its baseline", ROWS, QUANTITIES, found, left=3.5)


QUESTION = Question(__name__, ROWS, QUANTITIES, draw, answer="", seeds=6)
