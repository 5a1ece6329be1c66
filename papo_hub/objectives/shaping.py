"""How much each token's advantage counts, by how much the token depends on the image.

What is measured, the dependence S (B, T), is the divergence of the clean view from the masked one when the completions
were sampled, in nats, without gradient. Weights multiply the advantages of the policy loss and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


class TokenWeighting(Protocol):
    """(dependence (B, T), completion_mask (B, T), everyone) → weights (B, T).

    `everyone` returns the (B,) values of all processes; alone, the values themselves.
    """

    def __call__(self, dependence: Tensor, completion_mask: Tensor, everyone: Callable[[Tensor], Tensor]) -> Tensor: ...


def top_tokens(values: Tensor, completion_mask: Tensor, share: float) -> Tensor:
    """True on the ⌈share · length⌉ largest values of each completion; of equal ones, the first. (B, T) → (B, T) bool.

    Args:
        values, completion_mask: (B, T). share: above 0, at most 1.
    """
    mask = completion_mask.bool()
    order = values.masked_fill(~mask, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        -1, order, torch.arange(values.shape[-1], device=values.device).expand_as(order)
    )
    kept = (mask.sum(-1, keepdim=True).double() * share - 1e-9).ceil()  # 0.2 · 15 is 3, though not in binary
    return mask & (rank < kept)


def completion_means(values: Tensor, completion_mask: Tensor) -> Tensor:
    """The mean over the tokens of each completion. (B, T) → (B,); 0 where there is none."""
    mask = completion_mask.bool()
    return values.masked_fill(~mask, 0).sum(-1) / mask.sum(-1).clamp(min=1)


def vppo_weights(
    dependence: Tensor,
    completion_mask: Tensor,
    everyone: Callable[[Tensor], Tensor] = lambda values: values,
    share: float = 0.4,
    lowest: float = 0.9,
) -> Tensor:
    """VPPO: the policy loss is kept on the tokens that depend most on the image, and completions that depend more weigh
    more. (B, T) → (B, T).

        w_it = α_i · [token t is in the top `share` of completion i]
        α_i = β_min + (β_max - β_min) · (S_i - min S) / (max S - min S),   S_i the mean of S over completion i

    with minimum and maximum over the batch, β_min = `lowest`, and β_max such that the mean of α is 1. Where all S_i are
    equal, α is 1.

    Source: arXiv 2510.09285, trajectory-level advantage shaping and token-level gradient filtering; β_max as in the
    authors' code.
    """
    own = completion_means(dependence, completion_mask)
    scores = everyone(own)
    low, high = scores.min(), scores.max()
    if high - low < 1e-6:
        scale = torch.ones_like(own)
    else:
        spread = (1 - lowest) / ((scores - low) / (high - low)).mean()
        scale = lowest + spread * (own - low) / (high - low)
    return scale[:, None] * top_tokens(dependence, completion_mask, share)


def pgpo_weights(
    dependence: Tensor,
    completion_mask: Tensor,
    everyone: Callable[[Tensor], Tensor] = lambda values: values,
    threshold: float = 0.4,
) -> Tensor:
    """PGPO: tokens that depend little on the image count less, the others more, and their sum stays the length. (B, T) →
    (B, T).

        I_t = minmax over the completion of log(1 + S_t)
        w_t = I_t / τ                           where I_t < τ
              1 + 2 · (I_t - τ) / (1 - τ)       elsewhere,        then rescaled so that Σ_t w_t = length

    with τ = `threshold`. A completion whose tokens all depend alike keeps weights of 1.

    Source: arXiv 2604.01840.
    """
    mask = completion_mask.bool()
    information = torch.log1p(dependence)
    low = information.masked_fill(~mask, torch.inf).amin(-1, keepdim=True)
    high = information.masked_fill(~mask, -torch.inf).amax(-1, keepdim=True)
    alike = ~(high - low > 1e-6)
    share = torch.where(alike, 1.0, (information - low) / (high - low))
    weights = torch.where(share < threshold, share / threshold, 1 + 2 * (share - threshold) / (1 - threshold))
    weights = weights.masked_fill(~mask, 0)
    return weights * (mask.sum(-1, keepdim=True) / weights.sum(-1, keepdim=True).clamp(min=1e-9))


TOKEN_WEIGHTINGS: dict[str, TokenWeighting] = {"vppo": vppo_weights, "pgpo": pgpo_weights}  # by their name in recipes
