"""Token log-probs of completions with each prompt, and its image, computed once for all of its completions.

One packed row holds every prompt and behind them every completion, without padding; an attention function lets each
completion see its prompt and itself (`prefix_attention`), and its positions continue from the prompt's. The model is the
unmodified one of Hugging Face. P prompts of S tokens with G completions of T tokens cost P·(S + G·(T - 1)) tokens instead
of P·G·(S + T): the last token of a completion predicts nothing and stays out.

Equal to `logprobs.padded_logprobs` up to rounding; where a model or an input does not fit, that route is taken.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from papo_hub.head import as_forward, head_logprobs, unreadable, unwrapped
from papo_hub.logprobs import PER_TOKEN, padded_logprobs, stacked
from papo_hub.prefix_attention import Packing, extend

logger = logging.getLogger(__name__)

# Architectures on which the tests show both routes equal, gradients of every parameter included.
SHOWN_EQUAL = {"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "smolvlm", "idefics3", "llava_onevision"}


def shared_prefix_logprobs(
    model: nn.Module,
    prompts: Mapping[str, Tensor] | list[Mapping[str, Tensor]],
    completion_ids: Tensor,
    completion_mask: Tensor,
    temperature: float = 1.0,
) -> Tensor:
    """Log-probs of the given completion tokens, in nats, at least in float32.

    Args:
        model: an AutoModelForImageTextToText model, bare or wrapped by accelerate. Mixed precision is that of the
            surrounding `accelerator.autocast()`.
        prompts: what the processor returned for the prompt that all completions share, or one such dict a completion,
            the same object where completions share a prompt: that is what is computed once.
        completion_ids: (B, T), padded on the right. Best on the CPU: where everything lies is worked out there.
        completion_mask: (B, T), true on real tokens.
        temperature: logits are divided by it, as they were when sampling.

    Returns:
        (B, T) on the model's device; 0 on padding. With gradient where autograd is on.
    """
    if isinstance(prompts, Mapping):
        prompts = [prompts] * completion_ids.shape[0]
    ids, mask = completion_ids.cpu(), completion_mask.cpu().bool()
    reason = misfit(model)
    if reason is None and not mask[:, :-1].ge(mask[:, 1:]).all():
        reason = "a completion has tokens behind padding"
    if reason is not None:
        _say_once(f"one row a completion instead of the shared prompt: {reason}")
        return padded_logprobs(model, prompts, completion_ids, completion_mask, temperature)

    device = next(model.parameters()).device
    row = packed_row(bare(model), prompts, ids, mask, device)

    def inside(vlm: PreTrainedModel, inputs: dict[str, Any]) -> Tensor:
        hidden = hidden_states(vlm, inputs)
        return head_logprobs(hidden[row.predicting], vlm.get_output_embeddings(), row.predicted, temperature)

    logprobs = run_inside(model, inside, row.inputs)
    return logprobs.new_zeros(mask.numel()).index_put((row.places,), logprobs).view(mask.shape)


@dataclass(frozen=True)
class PackedRow:
    """All prompts and completions in one row of N tokens, M of the completions' tokens to be predicted."""

    inputs: dict[str, Any]  # of the model's forward
    predicting: Tensor  # (M,) the place in the row whose hidden state predicts the token
    predicted: Tensor  # (M,) the token
    places: Tensor  # (M,) where its log-prob belongs in (B, T), flat


def packed_row(
    vlm: PreTrainedModel, prompts: list[dict[str, Tensor]], ids: Tensor, mask: Tensor, device: torch.device
) -> PackedRow:
    """Prompts ascending by length, so that those of one length lie together; then their completions, without their last
    tokens. `prompts` has one entry a completion, `ids` and `mask` are (B, T) on the CPU, right-padded."""
    unique = sorted({id(prompt): prompt for prompt in prompts}.values(), key=prompt_length)
    place = {id(prompt): i for i, prompt in enumerate(unique)}
    owner = torch.tensor([place[id(prompt)] for prompt in prompts], dtype=torch.long)
    order = owner.argsort(stable=True)
    owner, ids, mask = owner[order], ids[order], mask[order]

    inner = (mask.sum(-1) - 1).clamp(min=0)  # tokens of each completion in the row
    lengths = torch.tensor([prompt_length(prompt) for prompt in unique])
    per_prompt = [group.tolist() for group in inner.split(owner.bincount(minlength=len(unique)).tolist())]
    packing = Packing(lengths.tolist(), per_prompt, device)

    inputs, following = prompt_row(vlm, unique)
    columns = torch.arange(mask.shape[1])
    present = columns < inner[:, None]
    positions = (following[owner, None] + columns)[present]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], ids[present][None]], dim=1)
    before = inputs["position_ids"]
    inputs["position_ids"] = torch.cat([before, positions.expand(*before.shape[:-1], -1)], dim=-1)
    inputs = {name: value.to(device, non_blocking=True) for name, value in inputs.items()}

    starts = packing.boundary + inner.cumsum(0) - inner
    predicting = starts[:, None] + columns - 1
    predicting[:, :1] = (lengths.cumsum(0) - 1)[owner, None]  # the first token: the end of the prompt
    places = order[:, None] * mask.shape[1] + columns
    chosen = (tensor[mask].to(device, non_blocking=True) for tensor in (predicting, ids, places))
    return PackedRow(inputs | {"shared_prefix": packing}, *chosen)


def prompt_row(vlm: PreTrainedModel, prompts: list[dict[str, Tensor]]) -> tuple[dict[str, Tensor], Tensor]:
    """The inputs of P prompts one behind the other in one row, on the CPU, and the position that follows each, (P,)."""
    core = _core(vlm)
    places = [prompt_positions(core, prompt) for prompt in prompts]
    inputs = {
        "input_ids": torch.cat([_without_padding(prompt, "input_ids") for prompt in prompts], dim=1),
        "position_ids": torch.cat([positions for positions, _ in places], dim=-1),
    }
    for name in dict.fromkeys(name for prompt in prompts for name in prompt):
        if name not in PER_TOKEN:
            inputs[name] = stacked([prompt[name] for prompt in prompts if name in prompt])
    return inputs, torch.tensor([following for _, following in places])


def prompt_length(prompt: dict[str, Tensor]) -> int:
    """S, without padding."""
    return int(prompt["attention_mask"].sum()) if "attention_mask" in prompt else prompt["input_ids"].shape[1]


def _without_padding(prompt: dict[str, Tensor], name: str) -> Tensor:
    values = prompt[name].cpu()
    if "attention_mask" not in prompt or prompt["attention_mask"].all():
        return values
    return values[:, prompt["attention_mask"][0].cpu().bool()]


_positions: WeakKeyDictionary[nn.Module, dict[tuple, tuple[Tensor, int]]] = WeakKeyDictionary()


def prompt_positions(core: nn.Module, prompt: dict[str, Tensor]) -> tuple[Tensor, int]:
    """(3, 1, S) with M-RoPE, else (1, S), on the CPU; and the position that follows. They depend only on where the images
    lie and how large they are, so prompts built alike share them."""
    length = prompt_length(prompt)
    if not hasattr(core, "get_rope_index"):
        return torch.arange(length)[None], length
    if not ("image_grid_thw" in prompt and "mm_token_type_ids" in prompt):
        return torch.arange(length).expand(3, 1, -1), length
    types = _without_padding(prompt, "mm_token_type_ids")
    grids = prompt["image_grid_thw"].cpu()
    known = _positions.setdefault(core, {})
    key = (types.numpy().tobytes(), grids.numpy().tobytes())
    if key not in known:
        with torch.inference_mode(False):  # or what is kept here could not be used in training
            positions, _ = core.get_rope_index(_without_padding(prompt, "input_ids"), types, image_grid_thw=grids)
        known[key] = positions, int(positions.max()) + 1
    return known[key]


def hidden_states(vlm: PreTrainedModel, inputs: dict[str, Any]) -> Tensor:
    """What the output layer reads: the last hidden state of each token of a packed row. (N, d)."""
    extend(vlm.config.get_text_config()._attn_implementation)
    # A mask of four dimensions is taken as it is; the attention function looks at the layout instead.
    unused = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=inputs["input_ids"].device)
    return vlm.base_model(**inputs, attention_mask=unused, use_cache=False).last_hidden_state[0]


def run_inside(model: nn.Module, function: Callable[[PreTrainedModel, dict], Tensor], inputs: dict[str, Any]) -> Tensor:
    """function(vlm, inputs) as if it were the model's forward, so that what wraps the model (DDP, FSDP, DeepSpeed) gathers
    weights and reduces gradients around it."""
    return as_forward(model, lambda **inputs: function(bare(model), inputs), **inputs)


def bare(model: nn.Module) -> PreTrainedModel:
    """The Hugging Face model with an output layer, inside accelerate's wrapper, PEFT's and papo_hub's own."""
    model = unwrapped(model)
    if hasattr(model, "get_base_model"):  # PEFT: its adapters are layers of the model that it wraps
        model = model.get_base_model()
    return getattr(model, "vlm", model)


def _core(vlm: PreTrainedModel) -> nn.Module:
    """The module that puts image features among the text's embeddings."""
    return next((module for module in vlm.modules() if hasattr(module, "get_rope_index")), vlm)


def misfit(model: nn.Module) -> str | None:
    """Why the prompt cannot be shared with this model; None where it can."""
    vlm = bare(model)
    kind, text = vlm.config.model_type, vlm.config.get_text_config()
    layers = set(getattr(text, "layer_types", None) or ["full_attention"]) - {"full_attention"}
    head = vlm.get_output_embeddings()
    if kind not in SHOWN_EQUAL:
        return f"both routes have not been shown equal for {kind}"
    if layers:
        return f"{kind} has layers of {', '.join(sorted(layers))}"
    if text._attn_implementation != "sdpa" and "flash" not in str(text._attn_implementation):
        return f"attn_implementation is {text._attn_implementation}; sdpa and flash attention can"
    if hasattr(unwrapped(model), "prompt_encoder"):
        return "PEFT puts virtual tokens in front of the prompt"
    if getattr(text, "attention_dropout", 0) and model.training:
        return "attention_dropout is not 0"
    return unreadable(head)


_said: set[str] = set()


def _say_once(line: str) -> None:
    if line not in _said:
        _said.add(line)
        logger.warning(line)
