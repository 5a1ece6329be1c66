"""Token log-probs of completions by the plain route: one padded row per completion.

Rows are `[padding | prompt | completion | padding]`, the prompts aligned at their end, so that the last T + 1 positions
of each row hold exactly what predicts its completion. It is the route that every Hugging Face model supports and that any
faster one must agree with. Image features and positions are computed once a prompt where the model allows it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from papo_hub.head import CHUNK_ELEMENTS

# What the processor returns a token; everything else (pixels, grids) is stacked image after image.
PER_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")


def padded_logprobs(
    model: torch.nn.Module,
    prompts: Mapping[str, Tensor] | list[Mapping[str, Tensor]],
    completion_ids: Tensor,
    completion_mask: Tensor,
    temperature: float = 1.0,
) -> Tensor:
    """Log-probs of the given completion tokens, in nats, at least in float32.

    Args:
        model: an AutoModelForImageTextToText model, bare or wrapped by accelerate.
        prompts: what the processor returned for the prompt that all completions share, or one such dict a completion
            (the same object where completions share a prompt).
        completion_ids: (G, T), padded on the right.
        completion_mask: (G, T), true on real tokens.
        temperature: logits are divided by it, as they were when sampling.

    Returns:
        (G, T); 0 on padding. With gradient where autograd is on.
    """
    if isinstance(prompts, Mapping):
        prompts = [prompts] * completion_ids.shape[0]
    device = next(model.parameters()).device
    completion_ids, completion_mask = completion_ids.to(device), completion_mask.to(device)
    inputs, next_position = prompt_inputs(model, prompts)
    inputs = append_completions(inputs, next_position, completion_ids, completion_mask)
    width = completion_ids.shape[1]
    logits = model(**inputs, logits_to_keep=width + 1, use_cache=False).logits[:, -width - 1 : -1]
    return selected_logprobs(logits, completion_ids, temperature).masked_fill(~completion_mask.bool(), 0.0)


def selected_logprobs(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature) at `ids`. (B, T, V), (B, T) → (B, T), float32 or better.

    In chunks of rows: a float32 copy of all logits never exists in the forward pass.
    """
    rows_at_once = max(CHUNK_ELEMENTS // (logits.shape[1] * logits.shape[2]), 1)
    pieces = []
    for piece, piece_ids in zip(logits.split(rows_at_once), ids.split(rows_at_once), strict=True):
        piece = (piece.float() if piece.dtype in (torch.float16, torch.bfloat16) else piece) / temperature
        pieces.append(piece.gather(-1, piece_ids.unsqueeze(-1)).squeeze(-1) - piece.logsumexp(-1))
    return torch.cat(pieces)


def prompt_inputs(model: torch.nn.Module, prompts: list[dict[str, Tensor]]) -> tuple[dict[str, Any], Tensor]:
    """The model's inputs for B prompts, padded on the left, and the position that follows each prompt, (B, 1).

    A prompt that occurs several times (as the same object) has its image encoded and its positions computed once.
    Prompts with and without images may be mixed.
    """
    device = next(model.parameters()).device
    unique = list({id(prompt): prompt for prompt in prompts}.values())
    place = {id(prompt): i for i, prompt in enumerate(unique)}
    rows = [place[id(prompt)] for prompt in prompts]
    inputs = left_padded(unique, device)
    mask = inputs["attention_mask"]
    # The innermost module that has image features is the one that puts them among the text's embeddings.
    core = next(reversed([module for module in model.modules() if hasattr(module, "get_image_features")]), None)
    if hasattr(core, "get_rope_index") and "image_grid_thw" in inputs and "mm_token_type_ids" in inputs:
        # M-RoPE: an image spans fewer positions than tokens. Without mm_token_type_ids the model would silently fall back
        # to one-dimensional positions.
        grids = {name: inputs[name] for name in ("image_grid_thw", "attention_mask", "mm_token_type_ids")}
        positions, deltas = core.get_rope_index(inputs["input_ids"], **grids)
    else:
        positions, deltas = (mask.long().cumsum(-1) - 1).clamp(min=0), 0
    next_position = mask.sum(-1, keepdim=True) + deltas

    if len(unique) < len(prompts):
        per_token = {name: value[rows] for name, value in inputs.items() if name in PER_TOKEN}
        images = {name: value for name, value in inputs.items() if name not in PER_TOKEN}
        inputs = per_token | (_repeated_images(core, unique, rows, images, device) if images else {})
        positions, next_position = positions[..., rows, :], next_position[rows]
    return inputs | {"position_ids": positions}, next_position


def _repeated_images(core, unique: list[dict[str, Tensor]], rows: list[int], images: dict[str, Tensor], device) -> dict:
    """The image inputs of every row: encoded once a prompt where the model takes encoded images, else repeated."""
    if core is None or "mm_encoder_outputs" not in inspect.signature(core.forward).parameters:
        return {name: stacked([unique[i][name] for i in rows if name in unique[i]]).to(device) for name in images}
    image_tokens = [int((prompt["input_ids"] == core.config.image_token_id).sum()) for prompt in unique]

    def repeated(features: Tensor | Sequence[Tensor]) -> Tensor | tuple[Tensor]:
        """(N, D) or (tiles, N / tiles, D), or one (n, D) an image: N image tokens of the prompts → those of the rows."""
        if not isinstance(features, Tensor):
            return (repeated(torch.cat(tuple(features))),)
        of_prompt = features.flatten(0, -2).split(image_tokens)
        return torch.cat([of_prompt[i] for i in rows]).unflatten(0, (-1, *features.shape[1:-1]))

    encoded = core.get_image_features(**images)
    kept = {"pooler_output": repeated(encoded.pooler_output)}
    if "deepstack_features" in encoded:  # what Qwen3-VL adds to the image tokens behind each of its first text layers
        kept["deepstack_features"] = [repeated(layer) for layer in encoded.deepstack_features]
    return {"mm_encoder_outputs": {"image": type(encoded)(**kept)}}


def left_padded(prompts: list[dict[str, Tensor]], device: torch.device | str) -> dict[str, Tensor]:
    """One batch of several prompts: tokens padded on the left (B, S), image tensors stacked.

    A prompt without images adds nothing to the image tensors.
    """
    width = max(prompt["input_ids"].shape[1] for prompt in prompts)
    batch = {}
    for name in dict.fromkeys(name for prompt in prompts for name in prompt):
        tensors = [prompt[name] for prompt in prompts if name in prompt]
        if name in PER_TOKEN:
            # Padding is masked by attention_mask, so its id does not matter; 0 is text to mm_token_type_ids.
            batch[name] = torch.cat([pad(tensor, (width - tensor.shape[1], 0)) for tensor in tensors]).to(device)
        else:
            batch[name] = stacked(tensors).to(device)
    return batch


def stacked(tensors: list[Tensor]) -> Tensor:
    """Concatenated along the first dimension; along the others, zeros fill up to the largest.

    The first counts images, tiles, patches or prompts, as the architecture has it. Another differs between prompts where
    it counts tiles: architectures that stack tiles ignore those beyond an image's own.
    """
    sizes = [max(lengths) for lengths in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    whole = tensors[0].new_zeros(sum(map(len, tensors)), *sizes)
    for place, tensor in zip(whole.split([len(tensor) for tensor in tensors]), tensors, strict=True):
        place[tuple(slice(length) for length in tensor.shape)] = tensor
    return whole


def append_completions(
    inputs: dict[str, Any], next_position: Tensor, completion_ids: Tensor, completion_mask: Tensor
) -> dict[str, Any]:
    """The inputs with the completions behind the prompts, at the positions that follow them."""
    extended = dict(inputs)
    tails = {"input_ids": completion_ids, "attention_mask": completion_mask.to(inputs["attention_mask"].dtype)}
    for name in PER_TOKEN:
        if name in inputs:  # a completion is text: 0 in the type ids
            tail = tails.get(name, torch.zeros_like(completion_ids, dtype=inputs[name].dtype))
            extended[name] = torch.cat([inputs[name], tail], dim=1)
    positions = next_position + torch.arange(completion_ids.shape[1], device=completion_ids.device)
    before = inputs["position_ids"]
    extended["position_ids"] = torch.cat([before, positions.expand(*before.shape[:-1], -1)], dim=-1)
    return extended
