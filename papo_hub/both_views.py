"""Both views of completions at once, over the whole vocabulary: the divergence and the entropies of the equation itself,
with their gradients, instead of estimates from the sampled tokens.

By the shared prefix where the model allows it, else by padded rows; by neither do logits of all tokens exist (`head`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from papo_hub.head import Views, head_views, unreadable
from papo_hub.logprobs import append_completions, prompt_inputs
from papo_hub.shared_prefix import bare, hidden_states, misfit, packed_row, run_inside

States = Callable[[PreTrainedModel, dict[str, Any]], Tensor]


def both_views(
    model: nn.Module,
    clean: list[Mapping[str, Tensor]],
    masked: list[Mapping[str, Tensor]],
    completion_ids: Tensor,
    completion_mask: Tensor,
    temperature: float = 1.0,
    divergence: Literal["kl", "js"] = "kl",
    live: bool = False,
) -> Views:
    """What the clean and the masked view say about the given completions, each (B, T), in nats, 0 on padding.

    Args:
        model, completion_ids, completion_mask, temperature: as in `shared_prefix_logprobs`.
        clean, masked: what the processor returned for each completion's prompt in the two views; the same object where
            completions share a prompt.
        divergence: "kl": KL(clean ‖ masked); "js": Jensen–Shannon.
        live: whether gradient flows into the masked view, too. Both then pass the model together; otherwise the masked one
            goes first, without gradient and without dropout.

    Raises:
        ValueError: the model's output layer is more than one matrix, so that a hidden state does not give its logits.
    """
    if (reason := unreadable_head(model)) is not None:
        raise ValueError(f"estimator: exact cannot be computed, since {reason}; use estimator: sampled.")
    mask = completion_mask.cpu().bool()
    ids = completion_ids.cpu()
    chosen = ids[mask].to(next(model.parameters()).device)

    def read(vlm: PreTrainedModel, hidden: Tensor, masked_hidden: Tensor) -> tuple[Tensor, ...]:
        return tuple(head_views(hidden, masked_hidden, vlm.get_output_embeddings(), chosen, temperature, divergence))

    if live:
        states, inputs = route(model, [*clean, *masked], ids.repeat(2, 1), mask.repeat(2, 1))
        found = run_inside(model, lambda vlm, inputs: read(vlm, *states(vlm, inputs).chunk(2)), inputs)
    else:
        masked_hidden = constant_states(model, masked, ids, mask)
        states, inputs = route(model, clean, ids, mask)
        found = run_inside(model, lambda vlm, inputs: read(vlm, states(vlm, inputs), masked_hidden), inputs)
    places = mask.flatten().nonzero()[:, 0].to(chosen.device)
    return Views(*(values.new_zeros(mask.numel()).index_put((places,), values).view(mask.shape) for values in found))


def unreadable_head(model: nn.Module) -> str | None:
    """Why hidden states and the output layer's matrix do not give the logits; None where they do."""
    vlm = bare(model)
    head, text = vlm.get_output_embeddings(), vlm.config.get_text_config()
    if (reason := unreadable(head)) is not None:
        return reason
    for name, without in (("final_logit_softcapping", None), ("logit_scale", 1), ("logits_scaling", 1)):
        if getattr(text, name, without) not in (without, None):
            return f"the model changes its logits by {name}"
    return None


@torch.no_grad()
def constant_states(model: nn.Module, prompts: list[Mapping[str, Tensor]], ids: Tensor, mask: Tensor) -> Tensor:
    """(M, d) hidden states that predict the M real tokens, row by row, without gradient and without dropout."""
    was_training = model.training
    model.eval()
    try:
        states, inputs = route(model, prompts, ids, mask)
        return run_inside(model, states, inputs)
    finally:
        model.train(was_training)


def route(
    model: nn.Module, prompts: list[Mapping[str, Tensor]], ids: Tensor, mask: Tensor
) -> tuple[States, dict[str, Any]]:
    """How to come to the hidden states that predict the M real tokens, row by row, and the inputs for it."""
    device = next(model.parameters()).device
    if misfit(model) is None and mask[:, :-1].ge(mask[:, 1:]).all():
        row = packed_row(bare(model), prompts, ids, mask, device)
        predicting = row.predicting[row.places.argsort()]
        return lambda vlm, inputs: hidden_states(vlm, inputs)[predicting], row.inputs

    inputs, next_position = prompt_inputs(model, prompts)
    inputs = append_completions(inputs, next_position, ids.to(device), mask.to(device))
    width, real = mask.shape[1], mask.to(device)

    def padded(vlm: PreTrainedModel, inputs: dict[str, Any]) -> Tensor:
        return vlm.base_model(**inputs, use_cache=False).last_hidden_state[:, -width - 1 : -1][real]

    return padded, inputs
