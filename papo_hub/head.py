"""What the output layer says about hidden states, in chunks: no (N, V) tensor of logits beyond one chunk exists, forward
or backward.

Shapes: N hidden states of width d, each of which predicts one token; V tokens in the vocabulary. Everything is in nats
and at least in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.fsdp import FSDPModule
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

CHUNK_ELEMENTS = 2**24  # logits at a time: 64 MiB in float32
T = TypeVar("T")


def as_forward(module: nn.Module, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """function(*args, **kwargs) as if it were the module's forward, so that the hooks around it gather its weights."""
    called = unwrapped(module)
    replaced = vars(called).get("forward")  # accelerate may have put its own there
    called.forward = function
    try:
        return module(*args, **kwargs)
    finally:
        if replaced is None:
            del called.forward
        else:
            called.forward = replaced


def unwrapped(module: nn.Module) -> nn.Module:
    while isinstance(inner := getattr(module, "module", None), nn.Module):
        module = inner
    return module


def unreadable(head: nn.Module | None) -> str | None:
    """Why the matrix of an output layer is not all there is to it; None where it is."""
    sharded = isinstance(head, FSDPModule)  # a class of its own, and hooks that gather the matrix
    if not (isinstance(head, nn.Linear) if sharded else type(head) is nn.Linear):
        return f"the output layer is a {type(head).__name__}"
    if not sharded and (head._forward_hooks or head._forward_pre_hooks) or hasattr(head, "_hf_hook"):
        return "the output layer has hooks"
    return None


def head_logprobs(hidden: Tensor, head: nn.Linear, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature) at `ids`. (N, d), (N,) → (N,), with gradient."""

    def forward(hidden: Tensor) -> Tensor:
        return _Head.apply(hidden, head.weight, head.bias, ids, temperature, _computed_in(hidden, head))

    return as_forward(head, forward, hidden)


class Views(NamedTuple):
    """What two views say about the same tokens, each of one shape: the sampled tokens' log-probs, and over the whole
    vocabulary the entropies of both next-token distributions and their divergence."""

    logprobs: Tensor
    masked_logprobs: Tensor
    entropy: Tensor
    masked_entropy: Tensor
    divergence: Tensor


def head_views(
    hidden: Tensor,
    masked_hidden: Tensor,
    head: nn.Linear,
    ids: Tensor,
    temperature: float = 1.0,
    divergence: Literal["kl", "js"] = "kl",
) -> Views:
    """(N, d) twice, (N,) → five times (N,), with gradient.

    Args:
        hidden, masked_hidden: hidden states of the clean and of the masked view. Where the masked ones carry no gradient,
            the masked view is a constant: the output layer has none from it either.
        ids: the sampled tokens.
        divergence: "kl": KL(clean ‖ masked); "js": Jensen–Shannon, symmetric and at most ln 2.
    """
    if divergence not in ("kl", "js"):
        raise ValueError(f"divergence is {divergence!r}: write kl or js")
    return as_forward(head, lambda *states: _views(*states, head, ids, temperature, divergence), hidden, masked_hidden)


def _views(
    hidden: Tensor, masked_hidden: Tensor, head: nn.Linear, ids: Tensor, temperature: float, divergence: str
) -> Views:
    live = masked_hidden.requires_grad and torch.is_grad_enabled()
    dtype, chunks = _computed_in(hidden, head), _chunks(len(hidden), len(head.weight))
    weight, bias = head.weight, head.bias
    if len(chunks) > 1:  # rounding must not add up over chunks
        weight, bias = _wide(weight), None if bias is None else _wide(bias)

    def log_softmax(states: Tensor) -> Tensor:
        return _logits(states, weight, bias, temperature, dtype).log_softmax(-1)

    def chunk(hidden: Tensor, masked_hidden: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        p = log_softmax(hidden)
        with torch.set_grad_enabled(live and torch.is_grad_enabled()):
            q = log_softmax(masked_hidden)
        at = ids[:, None]
        return (
            p.gather(-1, at)[:, 0],
            q.gather(-1, at)[:, 0],
            -_mean_under(p, p),
            -_mean_under(q, q),
            _mean_under(p, p - q) if divergence == "kl" else _jensen_shannon(p, q),
        )

    parts = [
        checkpoint(chunk, hidden[rows], masked_hidden[rows], ids[rows], use_reentrant=False, preserve_rng_state=False)
        for rows in chunks
    ]
    if not parts:
        return Views(*[_wide(hidden.sum(-1))] * 5)
    return Views(*map(torch.cat, zip(*parts, strict=True)))


def _jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    middle = torch.logaddexp(p, q) - math.log(2)
    return (_mean_under(p, p - middle) + _mean_under(q, q - middle)) / 2


def _mean_under(log_p: Tensor, values: Tensor) -> Tensor:
    return (log_p.exp() * values).sum(-1)


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
    """d logprob / d logits = onehot - p. The logits of a chunk are made again in the backward pass; where there is but
    one chunk, they are kept."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, ids, temperature, dtype):
        chunks = _chunks(len(hidden), len(weight))
        logprobs, totals = hidden.new_zeros(2, len(hidden), dtype=torch.promote_types(dtype, torch.float32))
        logits = None
        for rows in chunks:
            logits = _logits(hidden[rows], weight, bias, temperature, dtype)
            totals[rows] = logits.logsumexp(-1)
            logprobs[rows] = logits.gather(-1, ids[rows, None]).squeeze(-1) - totals[rows]
        kept = logits if len(chunks) == 1 and any(ctx.needs_input_grad) else None
        ctx.save_for_backward(hidden, weight, bias, ids, totals, kept)
        ctx.settings = chunks, temperature, dtype
        return logprobs

    @staticmethod
    @once_differentiable
    def backward(ctx, of_logprobs):
        hidden, weight, bias, ids, totals, kept = ctx.saved_tensors
        chunks, temperature, dtype = ctx.settings
        for_hidden, for_weight, for_bias = ctx.needs_input_grad[:3]
        wide = totals.dtype if len(chunks) > 1 else weight.dtype  # rounding must not add up over chunks
        grad_hidden = torch.zeros_like(hidden) if for_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if for_weight else None
        grad_bias = torch.zeros_like(bias, dtype=wide) if for_bias else None
        matrix = weight.to(dtype)
        for rows in chunks:
            logits = _logits(hidden[rows], weight, bias, temperature, dtype) if kept is None else kept
            grad = (logits - totals[rows, None]).exp_().mul_(-of_logprobs[rows, None])
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
        return grad_hidden, grad_weight, grad_bias, None, None, None


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
