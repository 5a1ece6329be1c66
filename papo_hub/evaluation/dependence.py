"""How much each token of an answer depends on the image."""

from __future__ import annotations

import torch
from torch import Tensor

from papo_hub.batch import Completion, Prompt, micro_slices, pad_completions
from papo_hub.objectives import terms
from papo_hub.shared_prefix import misfit, shared_prefix_logprobs


@torch.no_grad()
def visual_dependence(
    policy: torch.nn.Module,
    prompts: list[Prompt],
    completions: list[Completion],
    group_size: int,
    temperature: float,
    max_tokens: int,
) -> tuple[Tensor, Tensor]:
    """How much each sampled token depends on the image: perception KL (B, T) in nats, and the mask (B, T) of real tokens.

    `max_tokens` of prompts and completions pass through the policy at a time.
    """
    ids, mask = pad_completions(completions, 0)
    result = torch.zeros(ids.shape)
    owners = [i // group_size for i in range(len(completions))]
    lengths = [len(completion.token_ids) for completion in completions]
    shared = misfit(policy) is None
    for rows in micro_slices(owners, [prompt.length for prompt in prompts], lengths, max_tokens, shared=shared):
        clean, masked = (
            shared_prefix_logprobs(
                policy, [getattr(prompts[i], view) for i in owners[rows]], ids[rows], mask[rows], temperature
            )
            for view in ("clean", "masked")
        )
        result[rows] = terms.perception_kl(clean, masked).float().cpu()
    return result * mask, mask
