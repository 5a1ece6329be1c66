"""What the output layer says about hidden states, in chunks: no (N, V) tensor of logits beyond one chunk exists, forward
or backward.

Shapes: N hidden states of width d, each of which predicts one token; V tokens in the vocabulary. Everything is in nats
and at least in float32.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

CHUNK_ELEMENTS = 2**24  # logits at a time: 64 MiB in float32


def head_logprobs(hidden: Tensor, head: nn.Linear, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature) at `ids`. (N, d), (N,) → (N,), with gradient."""
    return _Head.apply(hidden, head.weight, head.bias, ids, temperature, _computed_in(hidden, head), False)[0]


def head_logprobs_and_entropy(
    hidden: Tensor, head: nn.Linear, ids: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The same, and the entropy of each distribution: (N,) and (N,), both with gradient."""
    return _Head.apply(hidden, head.weight, head.bias, ids, temperature, _computed_in(hidden, head), True)


def head_divergence(
    hidden: Tensor, other: Tensor, head: nn.Linear, temperature: float = 1.0, kind: Literal["kl", "js"] = "kl"
) -> Tensor:
    """The divergence of the two next-token distributions, summed over the whole vocabulary. (N, d) twice → (N,).

    Args:
        hidden, other: hidden states of the two views. Gradient flows into both, and into the output layer from both.
        kind: "kl": KL(hidden ‖ other); "js": Jensen–Shannon, symmetric and at most ln 2.
    """

    def chunk(one: Tensor, two: Tensor) -> Tensor:
        p, q = (_wide(head(states)).div(temperature).log_softmax(-1) for states in (one, two))
        if kind == "kl":
            return _kl(p, q)
        middle = torch.logaddexp(p, q) - math.log(2)
        return (_kl(p, middle) + _kl(q, middle)) / 2

    if kind not in ("kl", "js"):
        raise ValueError(f"kind is {kind!r}: write kl or js")
    parts = [
        checkpoint(chunk, hidden[rows], other[rows], use_reentrant=False, preserve_rng_state=False)
        for rows in _chunks(len(hidden), len(head.weight))
    ]
    return torch.cat(parts) if parts else _wide(hidden.sum(-1))


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() * (p - q)).sum(-1)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _chunks(count: int, vocabulary: int) -> list[slice]:
    size = max(CHUNK_ELEMENTS // vocabulary, 1)
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _computed_in(hidden: Tensor, head: nn.Linear) -> torch.dtype:
    """The precision of the matrix products: autocast's where it is on."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head.weight.dtype


class _Head(torch.autograd.Function):
    """d logprob / d logits = onehot - p, d entropy / d logits = -p · (log p + entropy). The logits of a chunk are made
    again in the backward pass; where there is but one chunk, they are kept."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, ids, temperature, dtype, with_entropy):
        chunks = _chunks(len(hidden), len(weight))
        logprobs, entropies, totals = hidden.new_zeros(3, len(hidden), dtype=torch.promote_types(dtype, torch.float32))
        logits = None
        for rows in chunks:
            logits = _logits(hidden[rows], weight, bias, temperature, dtype)
            totals[rows] = logits.logsumexp(-1)
            logprobs[rows] = logits.gather(-1, ids[rows, None]).squeeze(-1) - totals[rows]
            if with_entropy:
                probabilities = (logits - totals[rows, None]).exp_()
                # Not as a product of matrices, which autocast would round.
                entropies[rows] = totals[rows] - probabilities.mul_(logits).sum(-1)
        kept = logits if len(chunks) == 1 and any(ctx.needs_input_grad) else None
        ctx.save_for_backward(hidden, weight, bias, ids, totals, entropies, kept)
        ctx.settings = chunks, temperature, dtype, with_entropy
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx, of_logprobs, of_entropies):
        hidden, weight, bias, ids, totals, entropies, kept = ctx.saved_tensors
        chunks, temperature, dtype, with_entropy = ctx.settings
        for_hidden, for_weight, for_bias = ctx.needs_input_grad[:3]
        wide = totals.dtype if len(chunks) > 1 else weight.dtype  # rounding must not add up over chunks
        grad_hidden = torch.zeros_like(hidden) if for_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if for_weight else None
        grad_bias = torch.zeros_like(bias, dtype=wide) if for_bias else None
        matrix = weight.to(dtype)
        for rows in chunks:
            logits = _logits(hidden[rows], weight, bias, temperature, dtype) if kept is None else kept
            log_p = logits - totals[rows, None]
            if with_entropy:
                weights = of_logprobs[rows, None] + of_entropies[rows, None] * (log_p + entropies[rows, None])
                grad = log_p.exp().mul_(weights).neg_()
            else:
                grad = log_p.exp_().mul_(-of_logprobs[rows, None])
            grad.scatter_add_(1, ids[rows, None], of_logprobs[rows, None])
            grad = grad.div_(temperature).to(dtype)
            if for_hidden:
                grad_hidden[rows] = (grad @ matrix).to(hidden.dtype)
            if for_weight:
                _add_product(grad_weight, grad, hidden[rows].to(dtype))
            if for_bias:
                grad_bias += grad.sum(0)
        if for_weight:
            grad_weight = grad_weight.to(weight.dtype)
        if for_bias:
            grad_bias = grad_bias.to(bias.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None


def _add_product(total: Tensor, grad: Tensor, hidden: Tensor) -> None:
    """total (V, d) += gradᵀ (V, n) · hidden (n, d)."""
    if total.dtype == grad.dtype:
        total.addmm_(grad.T, hidden)
    else:
        total += grad.T @ hidden


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, dtype: torch.dtype) -> Tensor:
    with torch.autocast(hidden.device.type, enabled=False):
        logits = linear(hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
    logits = _wide(logits)
    return logits if temperature == 1 else logits.div_(temperature)
