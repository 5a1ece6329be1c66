"""The terms of the objective, a value a token: (B, T) in, (B, T) out, no reduction, no state.

B completions, T tokens. Source of formulas and clamps: PAPO (arXiv 2507.06448) equations 1 to 5 and the official code's
`core_algos.py` (`compute_policy_loss`, `compute_kl` with `low_var_kl`). Half-precision inputs are computed in float32;
float32 and float64 keep their precision.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0  # |log-ratio| beyond which exp() is no longer meaningful
KL_LIMIT = 10.0  # nats: the most one token can contribute
IMPORTANCE_CAP = 2.0


def clipped_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    epsilon_low: float,
    epsilon_high: float,
    dual_clip: float | None = 3.0,
) -> Tensor:
    """The clipped policy-gradient loss, to be minimised: -min(r·A, clip(r, 1 - ε_low, 1 + ε_high)·A), r = π / π_old.

    Where A < 0 the loss is at most -dual_clip·A (dual clip, arXiv 1912.09729); None turns that off.

    Args:
        logprobs, old_logprobs: (B, T).
        advantages: (B,), one a completion, or anything that broadcasts to (B, T).
        epsilon_low: in [0, 1). epsilon_high: at least 0; above epsilon_low it is DAPO's clip-higher.
        dual_clip: above 1, or None.

    Returns:
        (B, T).
    """
    advantages = _per_token(advantages, logprobs)
    log_ratio = _log_ratio(logprobs, old_logprobs)
    clipped_log_ratio = log_ratio.clamp(math.log(1.0 - epsilon_low), math.log(1.0 + epsilon_high))
    loss = torch.maximum(-advantages * log_ratio.exp(), -advantages * clipped_log_ratio.exp())
    if dual_clip is None:
        return loss
    return torch.where(advantages < 0, torch.minimum(loss, -advantages * dual_clip), loss)


def reference_kl(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Divergence of the policy from the reference model, in nats (k3 estimate, never negative).

    exp(d) - d - 1 with d = log π_ref - log π, d within ±20 and the result at most 10. (B, T) → (B, T).
    """
    return _k3(logprobs, reference_logprobs)


def perception_kl(logprobs: Tensor, masked_logprobs: Tensor, estimator: str = "k3") -> Tensor:
    """Divergence of the policy that sees the image from the same policy on the masked image, in nats.

    With d = log π_mask - log π within ±20, under samples of π: k3 is exp(d) - d - 1, at most 10; k2 is d² / 2 (Schulman,
    "Approximating KL divergence", 2020). The paper's is k3. 0 means that the token does not depend on the image.
    Subtracted from the loss with weight gamma. (B, T) → (B, T).
    """
    if estimator == "k3":
        return _k3(logprobs, masked_logprobs)
    if estimator == "k2":
        return _log_ratio(masked_logprobs, logprobs).square() / 2
    raise ValueError(f"estimator: {estimator!r} is neither k2 nor k3.")


def robustness_kl(logprobs: Tensor, noisy_logprobs: Tensor) -> Tensor:
    """Divergence of the policy from the same policy on the image with noise, in nats (k3 estimate). (B, T) → (B, T).

    Added to the loss: noise must not change what is said. Source: DVRP (arXiv 2601.06801).
    """
    return _k3(logprobs, noisy_logprobs)


def verified_likelihood(noisy_logprobs: Tensor, advantages: Tensor) -> Tensor:
    """max(A, 0) · log π_noise: completions better than their group become likelier on the image with noise, too.

    noisy_logprobs (B, T), advantages (B,) → (B, T), at most 0. Subtracted from the loss with weight λ. A reward has verified
    what is learned on the worse image; nothing is unlearned there, so the term cannot run away. Source: ours.
    """
    return _at_least_float32(noisy_logprobs) * advantages.clamp(min=0)[:, None]


def entropy(logprobs: Tensor) -> Tensor:
    """Sampled-token estimate of the entropy, in nats: -log π(o_t). (B, T) → (B, T).

    Used for the clean view (weight eta1) and for the masked one (weight eta2): together the double entropy loss.
    """
    return -_at_least_float32(logprobs)


def clip_fractions(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, epsilon_low: float, epsilon_high: float
) -> tuple[Tensor, Tensor]:
    """Where the clip removes the gradient: (high, low), each (B, T) of 0 and 1, without gradient.

    high: r > 1 + ε_high and A > 0. low: r < 1 - ε_low and A < 0.
    """
    with torch.no_grad():
        advantages = _per_token(advantages, logprobs)
        log_ratio = _log_ratio(logprobs, old_logprobs)
        high = (log_ratio > math.log(1.0 + epsilon_high)) & (advantages > 0)
        low = (log_ratio < math.log(1.0 - epsilon_low)) & (advantages < 0)
        return high.to(log_ratio.dtype), low.to(log_ratio.dtype)


def importance_weights(old_logprobs: Tensor, sampled_logprobs: Tensor) -> Tensor:
    """min(π_old / π_sampled, 2), a token: what makes samples of another engine count as samples of the policy.

    Two engines with the same weights round differently, most of all in bfloat16. The ratio undoes that in expectation, the
    cap (truncated importance sampling, Yao et al. 2025) keeps a rare token from outweighing all others. (B, T) twice → (B, T),
    without gradient.
    """
    return _log_ratio(old_logprobs, sampled_logprobs).exp().clamp(max=IMPORTANCE_CAP).detach()


def _k3(logprobs: Tensor, other_logprobs: Tensor) -> Tensor:
    # Schulman, "Approximating KL divergence" (2020): unbiased under samples of the policy, and never negative.
    difference = _log_ratio(other_logprobs, logprobs)
    return (difference.exp() - difference - 1.0).clamp(max=KL_LIMIT)


def _log_ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    difference = _at_least_float32(numerator) - _at_least_float32(denominator)
    return difference.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def _per_token(advantages: Tensor, logprobs: Tensor) -> Tensor:
    advantages = _at_least_float32(advantages)
    return advantages.unsqueeze(-1) if advantages.ndim < logprobs.ndim else advantages


def _at_least_float32(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
