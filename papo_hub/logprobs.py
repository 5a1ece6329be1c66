"""Token log-probs of completions by the plain route: one padded row per completion.

Rows are `[padding | prompt | completion | padding]`, the prompts aligned at their end, so that the last T + 1 positions
of each row hold exactly what predicts its completion. It is the route that every Hugging Face model supports and that any
faster one must agree with. Image features and positions are computed once a prompt where the model allows it.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

# What the processor returns a token; everything else (pixels, grids) is stacked image after image.
PER_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
CHUNK_ELEMENTS = 2**24  # logits turned to float32 at a time: 64 MiB


def padded_logprobs(
    model: torch.nn.Module,
    prompts: dict[str, Tensor] | list[dict[str, Tensor]],
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
    if isinstance(prompts, dict):
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
    """
    device = next(model.parameters()).device
    unique = list({id(prompt): prompt for prompt in prompts}.values())
    place = {id(prompt): i for i, prompt in enumerate(unique)}
    rows = [place[id(prompt)] for prompt in prompts]
    inputs = left_padded(unique, device)
    mask = inputs["attention_mask"]
    core = next((module for module in model.modules() if hasattr(module, "get_rope_index")), None)
    if core is not None and "image_grid_thw" in inputs and "mm_token_type_ids" in inputs:
        # M-RoPE: an image spans fewer positions than tokens. Without mm_token_type_ids the model would silently fall back
        # to one-dimensional positions.
        grids = {name: inputs[name] for name in ("image_grid_thw", "attention_mask", "mm_token_type_ids")}
        positions, deltas = core.get_rope_index(inputs["input_ids"], **grids)
    else:
        positions, deltas = (mask.long().cumsum(-1) - 1).clamp(min=0), 0
    next_position = mask.sum(-1, keepdim=True) + deltas

    if len(unique) < len(prompts):
        per_token = {name: value[rows] for name, value in inputs.items() if name in PER_TOKEN}
        inputs = per_token | _repeated_images(core, unique, rows, inputs, device)
        positions, next_position = positions[..., rows, :], next_position[rows]
    return inputs | {"position_ids": positions}, next_position


def _repeated_images(core, unique: list[dict[str, Tensor]], rows: list[int], inputs: dict[str, Tensor], device) -> dict:
    """The image inputs of every row: encoded once a prompt where the model takes encoded images, else repeated."""
    per_image = [name for name in inputs if name not in PER_TOKEN]
    takes_encoded = core is not None and "mm_encoder_outputs" in inspect.signature(core.forward).parameters
    if not (takes_encoded and "image_grid_thw" in inputs):
        return {name: torch.cat([unique[i][name] for i in rows]).to(device) for name in per_image}
    encoded = core.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output
    of_prompt = torch.arange(len(encoded)).split([len(prompt["image_grid_thw"]) for prompt in unique])
    features = tuple(encoded[image] for i in rows for image in of_prompt[i].tolist())
    return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=features)}}


def left_padded(prompts: list[dict[str, Tensor]], device: torch.device | str) -> dict[str, Tensor]:
    """One batch of several prompts: tokens padded on the left (B, S), image tensors stacked."""
    width = max(prompt["input_ids"].shape[1] for prompt in prompts)
    batch = {}
    for name in prompts[0]:
        if name in PER_TOKEN:
            # Padding is masked by attention_mask, so its id does not matter; 0 is text to mm_token_type_ids.
            padded = [torch.nn.functional.pad(p[name], (width - p[name].shape[1], 0)) for p in prompts]
            batch[name] = torch.cat(padded).to(device)
        else:
            batch[name] = torch.cat([p[name] for p in prompts]).to(device)
    return batch


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
