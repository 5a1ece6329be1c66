"""Attention over one packed row: prompts once each, then their completions, each after its own prompt and itself.

    row            [ prompt 1 | prompt 2 | … | completions of prompt 1 | completions of prompt 2 | … ]
    a prompt       attends to itself, causally
    a completion   attends to the whole of its prompt, and to itself, causally

It reaches the unmodified model as a keyword argument of its forward, `shared_prefix`, which Hugging Face models pass down
to their attention function; `extend` teaches that function to look for it. Three ways to compute the same:

    merged   both parts of a completion's attention apart, merged by their log-sum-exp: the keys and values of a prompt
             are read where they lie, never copied. On CPU.
    flash    one call for sequences of any length, where the model runs in flash attention.
    joined   the keys and values of a prompt copied in front of each completion's. Anywhere.

Shapes in this file: N tokens of the row, H query heads, K key/value heads, D head width; n sequences of a block, L tokens
of the longest of them. Rows are token by token, (N, H, D); batches as attention takes them, (n, H, L, D).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate, groupby
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

# The kernel behind scaled_dot_product_attention on CPU: it returns the log-sum-exp, which the public function keeps.
FLASH_CPU = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
FLASH_CPU_BACKWARD = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)


class Layout(Protocol):
    """What travels through the model as `shared_prefix`."""

    def attend(self, usual: Callable, module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, scale: float):
        """(1, H, N, D), (1, K, N, D), (1, K, N, D) → (1, N, H, D). `usual` is the model's own attention function."""
        ...


def extend(name: str) -> None:
    """Teach the attention function of that name ("sdpa", "flash_attention_2", …) to look for a layout.

    Without one it does what it did, so it may stay taught for the rest of the process.
    """
    function = ALL_ATTENTION_FUNCTIONS[name]
    if getattr(function, "func", None) is not _attention:
        AttentionInterface.register(name, partial(_attention, function))


def _attention(usual: Callable, module, query, key, value, attention_mask, *args, shared_prefix=None, **kwargs):
    if shared_prefix is None or not getattr(module, "is_causal", False):  # an image encoder attends both ways
        return usual(module, query, key, value, attention_mask, *args, **kwargs)
    scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
    if torch.is_autocast_enabled(query.device.type):  # as autocast does for the usual function
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    return shared_prefix.attend(usual, module, query, key, value, scale), None


def attention_and_logsumexp(
    query: Tensor, key: Tensor, value: Tensor, scale: float, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(n, K, L, D) to (n, K, S, D), all of it visible but for the bias (n, 1, 1, S) → (n, K, L, D) and (n, K, L).

    Without gradient; for few queries, since it may hold all scores at once.
    """
    if query.device.type == "cpu" and FLASH_CPU is not None:
        return FLASH_CPU(query, key, value, 0.0, False, attn_mask=bias, scale=scale)
    scores = (query @ key.transpose(-1, -2)).to(torch.promote_types(query.dtype, torch.float32)) * scale
    scores = scores if bias is None else scores + bias
    total = scores.logsumexp(-1)
    return (scores - total.unsqueeze(-1)).exp().to(value.dtype) @ value, total


def merged(output: Tensor, total: Tensor, other: Tensor, other_total: Tensor) -> tuple[Tensor, Tensor]:
    """Attention to two sets of keys, from the attention to each and its log-sum-exp. (·, H, D), (·, H), twice."""
    both = torch.logaddexp(total, other_total)
    share = (other_total - both).exp().unsqueeze(-1)
    return output.to(share.dtype).lerp(other.to(share.dtype), share).to(output.dtype), both


class Span(NamedTuple):
    """A sequence within the row."""

    start: int
    length: int


class Block:
    """Sequences of a row, seen as a batch padded on the right.

    Where they are equally long and lie one behind the other, the batch is a view of the row.
    """

    def __init__(self, spans: list[Span], device: torch.device | str) -> None:
        self.n, self.length, self.start = len(spans), max(span.length for span in spans), spans[0].start
        self.is_view = all(span == (self.start + i * self.length, self.length) for i, span in enumerate(spans))
        self.spans, self.device = spans, device

    @property
    def rows(self) -> slice:
        return slice(self.start, self.start + self.n * self.length)

    @cached_property
    def _index(self) -> tuple[Tensor, Tensor, Tensor]:
        """The row's token at each place of the batch (n·L,); the places that are no padding; those that are."""
        offsets = torch.arange(self.length)
        starts, lengths = torch.tensor(self.spans).T[:, :, None]
        inside = (offsets < lengths).flatten()
        tokens = (starts + torch.minimum(offsets, lengths - 1)).flatten()
        index = tokens, inside.nonzero().flatten(), (~inside).nonzero().flatten()
        return tuple(tensor.to(self.device) for tensor in index)

    @cached_property
    def places(self) -> Tensor:
        """The row's place of each token of `tokens`."""
        if self.is_view:
            return torch.arange(self.start, self.rows.stop, device=self.device)
        tokens, inside, _ = self._index
        return tokens[inside]

    def take(self, row: Tensor) -> Tensor:
        """(N, H, …) → (n, H, L, …), zeros on padding."""
        if self.is_view:
            return row[self.rows].view(self.n, self.length, *row.shape[1:]).transpose(1, 2)
        tokens, _, padding = self._index
        batch = row.index_select(0, tokens)
        if len(padding):
            batch = batch.index_fill(0, padding, 0) if batch.requires_grad else batch.index_fill_(0, padding, 0)
        return batch.view(self.n, self.length, *row.shape[1:]).transpose(1, 2)

    def tokens(self, batch: Tensor) -> Tensor:
        """(n, H, L, …) → its tokens without padding, (·, H, …)."""
        tokens = batch.transpose(1, 2).flatten(0, 1)
        return tokens if self.is_view else tokens.index_select(0, self._index[1])

    def put(self, batch: Tensor, row: Tensor, first: int = 0) -> None:
        """Write (n, H, L, …) to its places in a row (·, H, …) that begins at token `first`."""
        if self.is_view:
            row = row[self.start - first : self.rows.stop - first]
            row.view(self.n, self.length, *row.shape[1:]).copy_(batch.transpose(1, 2))
        else:
            row.index_copy_(0, self.places - first, self.tokens(batch))


@dataclass(frozen=True)
class Run:
    """Prompts of one length, which lie one behind the other, and their completions."""

    prompts: Block
    completions: list[tuple[Block, slice]]  # all tokens that follow a prompt as one sequence; of which prompts
    own: list[tuple[Block, Tensor]]  # each completion a sequence; the prompt (within the run) of each


class Packing:
    """Where everything lies in the row, grouped for attention. A `Layout` for whole sequences, with gradient.

    Args:
        prompt_lengths: ascending.
        completion_lengths: of each prompt, the tokens of its completions that are in the row; 0 is allowed.
    """

    def __init__(
        self, prompt_lengths: list[int], completion_lengths: list[list[int]], device: torch.device | str = "cpu"
    ) -> None:
        starts = [0, *accumulate(prompt_lengths)]
        self.boundary = starts[-1]  # where the completions begin
        self.prompts = [Span(*pair) for pair in zip(starts, prompt_lengths, strict=False)]
        self.completions: list[list[Span]] = []
        end = self.boundary
        for lengths in completion_lengths:
            starts = list(accumulate(lengths, initial=end))
            self.completions.append([Span(*pair) for pair in zip(starts, lengths, strict=False)])
            end = starts[-1]
        self.length = end
        self.device = device
        self.runs = [
            self._run(list(places)) for _, places in groupby(range(len(self.prompts)), lambda p: prompt_lengths[p])
        ]

    def _run(self, places: list[int]) -> Run:
        """The run of the prompts at these places."""
        following = []
        for i, place in enumerate(places):
            if total := sum(span.length for span in self.completions[place]):
                following.append((Span(self.completions[place][0].start, total), i))
        lengths = [span.length for span, _ in following]
        # In one batch where padding costs little; a slice must not reach over a prompt without completions.
        together = len(following) == len(places) and max(lengths) * len(lengths) <= 1.25 * sum(lengths) + 64
        completions = [
            (Block([span for span, _ in group], self.device), slice(group[0][1], group[-1][1] + 1))
            for group in ([following] if together else [[pair] for pair in following])
        ]

        own = [(span, i) for i, place in enumerate(places) for span in self.completions[place] if span.length]
        blocks = []
        for group in alike(own):
            owners = torch.tensor([i for _, i in group], device=self.device)
            blocks.append((Block([span for span, _ in group], self.device), owners))
        return Run(Block([self.prompts[place] for place in places], self.device), completions, blocks)

    def attend(self, usual, module, query, key, value, scale):
        row_query, row_key, row_value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        if "flash" in module.config._attn_implementation:
            return self._flash(usual, module, query, row_key, row_value, scale)
        if query.device.type == "cpu" and FLASH_CPU is not None:
            return _Merged.apply(row_query, row_key, row_value, self, scale).unsqueeze(0)
        return self.joined(row_query, row_key, row_value, scale).unsqueeze(0)

    def joined(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Rows (N, H, D), (N, K, D) twice → (N, H, D), through the public attention function."""
        groups = query.shape[1] // key.shape[1]

        def attention(query: Tensor, key: Tensor, value: Tensor, **mask) -> Tensor:
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
            return scaled_dot_product_attention(query, key, value, scale=scale, **mask)

        places, outputs = [], []
        for run in self.runs:
            prompt_key, prompt_value = run.prompts.take(key), run.prompts.take(value)
            output = attention(run.prompts.take(query), prompt_key, prompt_value, is_causal=True)
            outputs.append(run.prompts.tokens(output))
            places.append(run.prompts.places)
            for block, owner in run.own:
                keys = torch.cat([prompt_key[owner], block.take(key)], dim=2)
                values = torch.cat([prompt_value[owner], block.take(value)], dim=2)
                visible = torch.ones(block.length, keys.shape[2], dtype=torch.bool, device=key.device)
                visible = visible.tril(run.prompts.length)
                outputs.append(block.tokens(attention(block.take(query), keys, values, attn_mask=visible)))
                places.append(block.places)
        return torch.cat(outputs)[torch.cat(places).argsort()]

    def _flash(self, usual: Callable, module, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """One call of flash attention for sequences of several lengths, causal and aligned at their ends."""
        index, query_ends, key_ends, longest_query, longest_key = self._sequences
        key, value = (tensor.index_select(0, index).transpose(0, 1).unsqueeze(0) for tensor in (key, value))
        ends = {"cu_seq_lens_q": query_ends, "cu_seq_lens_k": key_ends}
        return usual(
            module, query, key, value, None, scaling=scale, max_length_q=longest_query, max_length_k=longest_key, **ends
        )[0]

    @cached_property
    def _sequences(self) -> tuple[Tensor, Tensor, Tensor, int, int]:
        """Which keys each sequence of the row sees, one behind the other; and where queries and keys of each end."""
        keys, queries = [], []
        for prompt in self.prompts:
            keys.append([prompt])
            queries.append(prompt.length)
        for prompt, completions in zip(self.prompts, self.completions, strict=True):
            for span in completions:
                if span.length:
                    keys.append([prompt, span])
                    queries.append(span.length)
        index = torch.cat([torch.arange(start, start + n) for spans in keys for start, n in spans])
        lengths = [sum(span.length for span in spans) for spans in keys]

        def ends(lengths: list[int]) -> Tensor:
            return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=self.device)

        return index.to(self.device), ends(queries), ends(lengths), max(queries), max(lengths)


def alike(pairs: list[tuple[Span, int]]) -> list[list[tuple[Span, int]]]:
    """Sequences grouped so that padding each to the longest of its group costs little."""
    groups: list[list[tuple[Span, int]]] = []
    for pair in sorted(pairs, key=lambda pair: -pair[0].length):
        longest = groups[-1][0][0].length if groups else 0
        if groups and (4 * pair[0].length >= 3 * longest or longest - pair[0].length <= 16):
            groups[-1].append(pair)
        else:
            groups.append([pair])
    return groups


class _Merged(torch.autograd.Function):
    """The merged way. A token's weights are exp(score - logsumexp) with the log-sum-exp over all that it sees, so with the
    merged output and log-sum-exp the kernel's own backward pass gives each part's exact share of the gradient."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float) -> Tensor:
        """Rows (N, H, D), (N, K, D) twice → (N, H, D)."""
        first = packing.boundary
        output = torch.empty_like(query, memory_format=torch.contiguous_format)
        wide = torch.promote_types(query.dtype, torch.float32)  # as the kernel returns it
        total = query.new_empty(query.shape[:2], dtype=wide)  # log-sum-exp
        beyond, beyond_total = torch.empty_like(output[first:]), torch.empty_like(total[first:])
        for run in packing.runs:
            prompts = run.prompts
            keys, values = prompts.take(key), prompts.take(value)
            out, lse = FLASH_CPU(prompts.take(query), keys, values, 0.0, True, scale=scale)
            prompts.put(out, output)
            prompts.put(lse, total)
            for block, _ in run.own:
                out, lse = FLASH_CPU(block.take(query), block.take(key), block.take(value), 0.0, True, scale=scale)
                block.put(out, output)
                block.put(lse, total)
            for block, which in run.completions:
                out, lse = FLASH_CPU(block.take(query), keys[which], values[which], 0.0, False, scale=scale)
                block.put(out, beyond, first)
                block.put(lse, beyond_total, first)
        output[first:], total[first:] = merged(output[first:], total[first:], beyond, beyond_total)
        ctx.save_for_backward(query, key, value, output, total)
        ctx.packing, ctx.scale = packing, scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple:
        query, key, value, output, total = ctx.saved_tensors
        packing, scale = ctx.packing, ctx.scale
        first = packing.boundary
        grads = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (query, key, value)]
        beyond = torch.empty_like(grads[0][first:])

        def shares(block: Block, keys: Tensor, values: Tensor, causal: bool) -> tuple[Tensor, Tensor, Tensor]:
            grad_out, queries, out, lse = (block.take(row) for row in (grad, query, output, total))
            return FLASH_CPU_BACKWARD(grad_out, queries, keys, values, out, lse, 0.0, causal, scale=scale)

        for run in packing.runs:
            prompts = run.prompts
            keys, values = prompts.take(key), prompts.take(value)
            for share, whole in zip(shares(prompts, keys, values, True), grads, strict=True):
                prompts.put(share, whole)
            for block, _ in run.own:
                for share, whole in zip(shares(block, block.take(key), block.take(value), True), grads, strict=True):
                    block.put(share, whole)
            for block, which in run.completions:
                grad_query, grad_key, grad_value = shares(block, keys[which], values[which], False)
                block.put(grad_query, beyond, first)
                prompts.take(grads[1])[which].add_(grad_key)
                prompts.take(grads[2])[which].add_(grad_value)
        grads[0][first:] += beyond
        return *grads, None, None
