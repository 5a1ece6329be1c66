"""(B, T) values → one number. The denominator is an argument.

A micro-batch passes the count of the whole update (all micro-batches, all processes); the sum over micro-batches is
then the reduction over the whole, whatever the split. Values outside the mask never count, not even when they are NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor


def token_mean(values: Tensor, completion_mask: Tensor, tokens: Tensor | float | None = None) -> Tensor:
    """Σ over real tokens / `tokens`: every token weighs the same (DAPO, PAPO-D).

    Args:
        values: (B, T). completion_mask: (B, T), true on trained tokens.
        tokens: the number of trained tokens of the whole update; None: of this mask.

    Returns:
        Scalar; 0 where there is no token.
    """
    if tokens is None:
        tokens = completion_mask.sum()
    return _masked(values, completion_mask).sum() / _at_least_one(tokens)


def sequence_mean(values: Tensor, completion_mask: Tensor, sequences: Tensor | float | None = None) -> Tensor:
    """Σ over completions of the mean over its tokens / `sequences`: every completion weighs the same (GRPO, PAPO-G).

    Args:
        values: (B, T). completion_mask: (B, T), true on trained tokens.
        sequences: the number of completions of the whole update; None: B.

    Returns:
        Scalar. An empty completion adds 0 and is counted.
    """
    if sequences is None:
        sequences = values.shape[0]
    per_sequence = _masked(values, completion_mask).sum(-1) / completion_mask.sum(-1).clamp(min=1)
    return per_sequence.sum() / _at_least_one(sequences)


def _masked(values: Tensor, completion_mask: Tensor) -> Tensor:
    return torch.where(completion_mask.bool(), values, torch.zeros_like(values))


def _at_least_one(count: Tensor | float) -> Tensor | float:
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)
