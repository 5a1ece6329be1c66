"""avg@k accuracy and visual dependence of a policy on a set of problems, on the clean and on the masked image."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from papo_hub.batch import Completion, Prompt, micro_slices, pad_completions
from papo_hub.objectives import terms
from papo_hub.randomness import derived_generator
from papo_hub.rewards import accuracy_reward
from papo_hub.rollout import RolloutEngine, Sampling
from papo_hub.shared_prefix import misfit, shared_prefix_logprobs

GROUP_TAG = "dependence"  # the tag of a sample by which results are also given apart


def measure(
    engine: RolloutEngine,
    policy: torch.nn.Module,
    prompts: list[Prompt],
    samples: int,
    sampling: Sampling,
    seed: int,
    accelerator: Accelerator,
    max_tokens: int = 16384,
) -> list[dict[str, Any]]:
    """One row a view and group of problems. Runs on every rank; each takes its share of the problems.

    Returns:
        Rows with "view" ("clean", "masked"; the latter where the prompts have one), "group" ("all" and each value of the
        tag `dependence`), "accuracy" (mean over problems and samples, 0 to 1), "perception_kl" (nats per token of the
        answers to the clean image; None without a masked view), "problems", "samples".
    """
    rank, world = accelerator.process_index, accelerator.num_processes
    mine = prompts[rank::world]
    views = ["clean", "masked"] if prompts[0].masked is not None else ["clean"]
    records = []  # (view, group, right answers, answers, divergence, tokens), one a problem
    for view in views:
        generator = derived_generator(seed, "evaluation", view, rank, device=accelerator.device)
        with accelerator.autocast():
            completions = engine.generate(mine, samples, sampling, generator, view=view)
        texts = [completion.text for completion in completions]
        answers = [prompt.sample.answer for prompt in mine for _ in range(samples)]
        right = [accuracy_reward(text, answer) for text, answer in zip(texts, answers, strict=True)]
        divergence = tokens = torch.zeros(len(completions))
        if view == "clean" and len(views) == 2:
            with accelerator.autocast():
                values, mask = visual_dependence(policy, mine, completions, samples, sampling.temperature, max_tokens)
            divergence, tokens = values.sum(-1), mask.sum(-1)
        for i, prompt in enumerate(mine):
            rows = slice(i * samples, (i + 1) * samples)
            group = prompt.sample.tags.get(GROUP_TAG)
            sums = (sum(right[rows]), samples, divergence[rows].sum().item(), tokens[rows].sum().item())
            records.append((view, group, *sums))
    totals: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0] * 5)
    for view, group, *values in gather_object(records):
        for key in {(view, "all"), (view, group or "all")}:
            totals[key] = [a + b for a, b in zip(totals[key], [*values, 1], strict=True)]
    return [
        {
            "view": view,
            "group": group,
            "accuracy": right / answers,
            "perception_kl": kl / tokens if tokens else None,
            "problems": int(problems),
            "samples": samples,
        }
        for (view, group), (right, answers, kl, tokens, problems) in sorted(totals.items())
    ]


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
