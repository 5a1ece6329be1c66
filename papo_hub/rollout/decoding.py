"""One token a step for many completions: what the model is asked, and what is remembered in between.

A decoder holds the keys and values of prompts and completions. `logits` are those of the next token of each completion;
`step` takes that token; `keep` goes on without the completions that have ended.

Shapes: P prompts of up to S tokens, A completions still decoded, t tokens of each so far, V vocabulary; H query heads, K
key/value heads, r = H / K, D head width.
"""

from __future__ import annotations

from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from papo_hub.logprobs import prompt_inputs
from papo_hub.prefix_attention import Block, Packing, Span, alike, attention_and_logsumexp, merged
from papo_hub.shared_prefix import bare, hidden_states, misfit, prompt_length, prompt_row

FIRST_CAPACITY = 32  # tokens of a completion that there is room for at first; doubled whenever they are used up


class Decoder(Protocol):
    logits: Tensor  # (A, V)

    def step(self, tokens: Tensor) -> None:
        """Append one token (A,) to each completion and compute what follows it."""
        ...

    def keep(self, rows: list[int]) -> None:
        """Go on with these of the A completions alone, ascending."""
        ...


def start_decoding(model: nn.Module, prompts: list[dict[str, Tensor]], num_generations: int) -> Decoder:
    """Prefill P prompts, ascending by length; the first A = P · G completions are in the order of their prompts."""
    return (SharedPrefixDecoder if misfit(model) is None else RepeatedCacheDecoder)(model, prompts, num_generations)


class RepeatedCacheDecoder:
    """For any model: its own cache, with each prompt's part repeated for the G completions."""

    def __init__(self, model: nn.Module, prompts: list[dict[str, Tensor]], num_generations: int) -> None:
        self.model = model
        inputs, position = prompt_inputs(model, prompts)
        output = model(**inputs, use_cache=True, logits_to_keep=1)
        self.cache = output.past_key_values
        self.cache.batch_repeat_interleave(num_generations)
        self.logits, self.attention, self.position = (
            tensor.repeat_interleave(num_generations, dim=0)
            for tensor in (output.logits[:, -1], inputs["attention_mask"], position)
        )

    def step(self, tokens: Tensor) -> None:
        self.attention = torch.cat([self.attention, self.attention.new_ones(len(tokens), 1)], dim=1)
        output = self.model(
            input_ids=tokens[:, None],
            attention_mask=self.attention,
            position_ids=self.position,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.logits, self.position = output.logits[:, -1], self.position + 1

    def keep(self, rows: list[int]) -> None:
        self.cache.batch_select_indices(torch.tensor(rows, device=self.logits.device))
        self.logits, self.attention, self.position = self.logits[rows], self.attention[rows], self.position[rows]


class SharedPrefixDecoder:
    """Each prompt's keys and values exist once, and all its completions read them. The completions are one row of A
    tokens, so that one that has ended costs nothing."""

    def __init__(self, model: nn.Module, prompts: list[dict[str, Tensor]], num_generations: int) -> None:
        self.vlm, device = bare(model), next(model.parameters()).device
        inputs, following = prompt_row(self.vlm, prompts)
        inputs = {name: value.to(device) for name, value in inputs.items()}
        prefill = _Prefill([prompt_length(prompt) for prompt in prompts], [[]] * len(prompts), device)
        hidden = hidden_states(self.vlm, inputs | {"shared_prefix": prefill})
        ends = torch.tensor([span.start + span.length - 1 for span in prefill.prompts], device=device)
        self.logits = self._head(hidden[ends]).repeat_interleave(num_generations, dim=0)
        self.position = following.repeat_interleave(num_generations).to(device)
        self.dimensions = inputs["position_ids"].shape[:-2]  # (3,) with M-RoPE
        self.memory = _Memory(prefill, [num_generations] * len(prompts))

    def _head(self, hidden: Tensor) -> Tensor:
        return self.vlm.get_output_embeddings()(hidden)

    def step(self, tokens: Tensor) -> None:
        positions = self.position.expand(*self.dimensions, 1, -1)
        self.memory.grow()
        inputs = {"input_ids": tokens[None], "position_ids": positions, "shared_prefix": self.memory}
        self.logits, self.position = self._head(hidden_states(self.vlm, inputs)), self.position + 1

    def keep(self, rows: list[int]) -> None:
        self.memory.keep(rows)
        index = torch.tensor(rows, device=self.logits.device)
        self.logits, self.position = self.logits[index], self.position[index]


class _Prefill(Packing):
    """Remembers the keys and values of every layer, (N, K, D)."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def attend(self, usual, module, query, key, value, scale):
        self.layers[module.layer_idx] = key[0].transpose(0, 1), value[0].transpose(0, 1)
        return super().attend(usual, module, query, key, value, scale)


class _Prompts:
    """Prompts of similar length: a batch of keys and values a layer, (P, K, S, D), padded on the right."""

    def __init__(self, prefill: _Prefill, ranks: list[int]) -> None:
        self.ranks = ranks
        block = Block([prefill.prompts[rank] for rank in ranks], prefill.device)
        self.layers = {
            layer: tuple(block.take(row).contiguous() for row in pair) for layer, pair in prefill.layers.items()
        }
        lengths = torch.tensor([prefill.prompts[rank].length for rank in ranks])
        padding = torch.arange(block.length) >= lengths[:, None]
        self.bias = None  # (P, 1, 1, S), added to the scores
        if padding.any():
            like = self.layers[0][0]
            self.bias = like.new_zeros(padding.shape).masked_fill(padding.to(like.device), -torch.inf)[:, None, None]

    def keep(self, places: list[int]) -> None:
        self.ranks = [self.ranks[place] for place in places]
        self.layers = {layer: tuple(tensor[places] for tensor in pair) for layer, pair in self.layers.items()}
        self.bias = None if self.bias is None else self.bias[places]


class _Memory:
    """What the completions attend to: their prompts, in groups, and what has been decoded. A `Layout` for one token each."""

    def __init__(self, prefill: _Prefill, counts: list[int]) -> None:
        self.owner = [rank for rank, count in enumerate(counts) for _ in range(count)]  # of each completion: ascending
        spans = [(span, rank) for rank, span in enumerate(prefill.prompts)]
        self.groups = [_Prompts(prefill, sorted(rank for _, rank in group)) for group in alike(spans)]
        self.device, self.length, self.capacity = prefill.device, 0, FIRST_CAPACITY
        self.own: dict[int, tuple[Tensor, Tensor]] = {}  # of each layer: keys and values (A, K, capacity, D)
        self._arrange()

    def _arrange(self) -> None:
        """The completions of each group's prompts, as the batch (P, H, ·, D) that meets the prompts' keys."""
        first, spans = 0, {}
        for rank, members in groupby(self.owner):
            spans[rank] = Span(first, len(list(members)))
            first += spans[rank].length
        for group in self.groups:
            if len(places := [i for i, rank in enumerate(group.ranks) if rank in spans]) < len(group.ranks):
                group.keep(places)  # all completions of a prompt have ended
        self.groups = [group for group in self.groups if group.ranks]
        self.blocks = [Block([spans[rank] for rank in group.ranks], self.device) for group in self.groups]

    def keep(self, rows: list[int]) -> None:
        self.owner = [self.owner[row] for row in rows]
        index = torch.tensor(rows, device=self.device)
        self.own = {layer: tuple(tensor[index] for tensor in pair) for layer, pair in self.own.items()}
        self._arrange()

    def grow(self) -> None:
        """Room for one more token."""
        self.length += 1
        if self.length > self.capacity:
            room = (0, 0, 0, self.capacity)
            self.own = {layer: tuple(pad(tensor, room) for tensor in pair) for layer, pair in self.own.items()}
            self.capacity *= 2

    def attend(self, usual, module, query, key, value, scale):
        """(1, H, A, D), (1, K, A, D) twice → (1, A, H, D)."""
        _, heads, completions, width = query.shape
        shared_heads, layer, last = key.shape[1], module.layer_idx, self.length - 1
        if layer not in self.own:
            self.own[layer] = tuple(key.new_empty(completions, shared_heads, self.capacity, width) for _ in range(2))
        keys, values = self.own[layer]
        keys[:, :, last] = key[0].transpose(0, 1)
        values[:, :, last] = value[0].transpose(0, 1)

        # The r heads that share keys are queries of one batch entry.
        row = query[0].transpose(0, 1)
        own, own_total = attention_and_logsumexp(
            row.reshape(completions, shared_heads, -1, width), keys[:, :, : last + 1], values[:, :, : last + 1], scale
        )
        output, total = torch.empty_like(row), own_total.new_empty(completions, heads)
        for group, block in zip(self.groups, self.blocks, strict=True):
            batch = block.take(row).reshape(block.n, shared_heads, -1, width)  # (P, K, r · completions, D)
            out, lse = attention_and_logsumexp(batch, *group.layers[layer], scale, group.bias)
            block.put(out.reshape(block.n, heads, block.length, width), output)
            block.put(lse.reshape(block.n, heads, block.length), total)
        output, _ = merged(own.reshape(row.shape), own_total.reshape(total.shape), output, total)
        return output.unsqueeze(0)
