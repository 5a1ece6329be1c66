"""The objective: advantages, per-token terms, reductions, and the four algorithms as tuples of terms."""

from papo_hub.objectives import reduce, shaping, terms
from papo_hub.objectives.advantages import group_advantages
from papo_hub.objectives.objective import (
    DAPO,
    DVRP,
    GRPO,
    GRPO_V,
    OBJECTIVES,
    PAPO_D,
    PAPO_G,
    Counts,
    Logprobs,
    Objective,
    Term,
    Weights,
    gamma_at,
    with_reduction,
)

__all__ = [
    "DAPO",
    "DVRP",
    "GRPO",
    "GRPO_V",
    "OBJECTIVES",
    "PAPO_D",
    "PAPO_G",
    "Counts",
    "Logprobs",
    "Objective",
    "Term",
    "Weights",
    "gamma_at",
    "group_advantages",
    "reduce",
    "shaping",
    "terms",
    "with_reduction",
]
