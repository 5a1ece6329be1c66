"""Rewards → advantages."""

from __future__ import annotations

import torch
from torch import Tensor


def group_advantages(rewards: Tensor, group_size: int) -> Tensor:
    """Rewards relative to their group: (r - mean) / (std + 1e-6), with the unbiased standard deviation.

    Args:
        rewards: (B,), ordered group by group.
        group_size: G, at least 2.

    Returns:
        (B,). A group of equal rewards gets exactly 0: rounding in its mean is not turned into a signal.

    Raises:
        ValueError: group_size below 2, or a number of rewards that groups of that size do not fill.

    Source: PAPO equation 1 and GRPO (arXiv 2402.03300) section 4.1.2; the official code's
    `compute_grpo_outcome_advantage`.
    """
    if group_size < 2:
        raise ValueError(f"group_advantages needs groups of at least 2 completions, got group_size={group_size}.")
    if rewards.ndim != 1 or rewards.numel() % group_size:
        raise ValueError(f"rewards of shape {tuple(rewards.shape)} do not form groups of {group_size}.")
    groups = rewards.view(-1, group_size)
    advantages = (groups - groups.mean(-1, keepdim=True)) / (groups.std(-1, keepdim=True) + 1e-6)
    flat = (groups == groups[:, :1]).all(-1, keepdim=True)
    return torch.where(flat, torch.zeros_like(advantages), advantages).view(-1)
