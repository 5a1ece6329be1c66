"""The objective: advantages, per-token terms, reductions, and the four algorithms as tuples of terms."""

from papo_hub.objectives import reduce, terms
from papo_hub.objectives.advantages import group_advantages
from papo_hub.objectives.objective import (
    DAPO,
    GRPO,
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
    "GRPO",
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
    "terms",
    "with_reduction",
]
