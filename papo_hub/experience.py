"""Rollout → reward → dynamic filter → advantages → frozen log-probs: everything an update needs, made once a step."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from papo_hub.batch import Batch, Completion, Prompt, pad_completions
from papo_hub.config import TrainConfig
from papo_hub.interruption import Interruption
from papo_hub.lora import without_adapter
from papo_hub.memory import MicroBatchLimit
from papo_hub.modeling.thinking import opened_tag
from papo_hub.objectives import group_advantages, terms
from papo_hub.objectives.shaping import TOKEN_WEIGHTINGS
from papo_hub.plugins import PapoAccelerator
from papo_hub.randomness import derived_generator
from papo_hub.rollout import RolloutEngine
from papo_hub.sharding import whole
from papo_hub.shared_prefix import misfit, shared_prefix_logprobs
from papo_hub.stream import PromptStream
from papo_hub.unfinished import StepUnderWay


class SamplingExhausted(RuntimeError):
    """Dynamic sampling found too few groups with both right and wrong answers."""


@dataclass
class _Groups:
    prompts: list[Prompt] = field(default_factory=list)
    places: list[int] = field(default_factory=list)  # of these prompts among those that were drawn
    completions: list[Completion] = field(default_factory=list)
    rewards: dict[str, list[Tensor]] = field(default_factory=lambda: {"mean": [], "accuracy": [], "format": []})

    def add(self, prompt: Prompt, place: int, completions: list[Completion], rewards: dict[str, Tensor]) -> None:
        self.prompts.append(prompt)
        self.places.append(place)
        self.completions += completions
        for name, values in rewards.items():
            self.rewards[name].append(values)


def collect(
    policy: torch.nn.Module,
    reference: torch.nn.Module | None,
    engine: RolloutEngine,
    stream: PromptStream,
    accelerator: PapoAccelerator,
    config: TrainConfig,
    step: int,
    limit: MicroBatchLimit,
    interruption: Interruption,
) -> StepUnderWay | None:
    """This process's share of one rollout batch, with everything frozen. Runs on every rank.

    `reference` None: there is none at β = 0; else it is the policy without its adapter.

    Its metrics are what there is to log of its making: seconds ("time/rollout", "time/score"), and for the DAPO family the
    draws it took ("rollout/tries"), the share of groups kept ("rollout/kept") and the accuracy of all ("rollout/accuracy").
    None, on every rank, where the run is asked to stop.

    Raises:
        SamplingExhausted: the DAPO family found too few mixed groups in `max_sampling_tries` tries.
        TooManyUnusableRows: from the stream.
        MemoryExhausted: a single completion does not fit.
    """
    with whole(policy):
        return _collect(policy, reference, engine, stream, accelerator, config, step, limit, interruption)


def _collect(policy, reference, engine, stream, accelerator, config, step, limit, interruption) -> StepUnderWay | None:
    start = time.perf_counter()
    engine.prepare()
    sampled = _sample(engine, stream, accelerator, config, step, interruption)
    if sampled is None:
        return None
    engine.rest()
    groups, drawn, log = sampled
    rewards = {name: torch.cat(values) for name, values in groups.rewards.items()}
    ids, mask = pad_completions(groups.completions, stream.processor.tokenizer.pad_token_id or 0)
    size = accelerator.rollout_plugin.num_generations
    batch = Batch(
        prompts=groups.prompts,
        prompt_index=torch.arange(len(groups.prompts)).repeat_interleave(size),
        completions=groups.completions,
        completion_ids=ids,
        completion_mask=mask,
        advantages=group_advantages(rewards["mean"], size).to(accelerator.device),
        rewards=rewards,
    )
    log["time/rollout"], start = time.perf_counter() - start, time.perf_counter()
    batch = _score(batch, policy, reference, accelerator, config, limit, interruption)
    log["time/score"] = time.perf_counter() - start
    if interruption.agreed(accelerator):  # some process may have left its scores
        return None
    return StepUnderWay(batch, drawn, groups.places, log)


def _sample(
    engine: RolloutEngine,
    stream: PromptStream,
    accelerator: PapoAccelerator,
    config: TrainConfig,
    step: int,
    interruption: Interruption,
) -> tuple[_Groups, int, dict[str, float]] | None:
    """Groups of completions with their rewards, the prompts drawn for them, and what to log; None: asked to stop.

    With dynamic sampling, only groups that are neither all right nor all wrong, drawn an update's worth of prompts at a
    time until there are enough.
    """
    rollout, reward = accelerator.rollout_plugin, accelerator.reward_plugin
    rank, world = accelerator.process_index, accelerator.num_processes
    quota, size = config.prompts_per_step // world, rollout.num_generations
    drawn_at_once = config.prompts_per_update if config.dynamic_sampling else config.prompts_per_step
    groups, seen, accuracy = _Groups(), 0, 0.0
    for attempt in range(config.max_sampling_tries if config.dynamic_sampling else 1):
        if interruption.agreed(accelerator):
            return None
        prompts = stream.take(drawn_at_once, rank, world)
        generator = derived_generator(config.seed, "rollout", step, attempt, rank, device=accelerator.device)
        with accelerator.autocast():
            completions = engine.generate(
                prompts, size, rollout.sampling, generator, given_up=lambda: interruption.requested
            )
        if interruption.agreed(accelerator):  # before the completions are looked at: some may have been left
            return None
        answers = [prompt.sample.answer for prompt in prompts for _ in range(size)]
        opened = opened_tag(stream.processor)  # what the prompt has begun of every answer
        rewards = reward([opened + completion.text for completion in completions], answers)
        for i, prompt in enumerate(prompts):
            rows = slice(i * size, (i + 1) * size)
            right = rewards["accuracy"][rows].sum()
            if len(groups.prompts) < quota and (not config.dynamic_sampling or 0 < right < size):
                kept = {name: values[rows] for name, values in rewards.items()}
                groups.add(prompt, seen + i, completions[rows], kept)
        seen += len(prompts)
        accuracy += rewards["accuracy"].sum().item() / size
        missing = torch.tensor(quota - len(groups.prompts), device=accelerator.device)
        if accelerator.reduce(missing, "sum") == 0:
            break
    else:
        raise SamplingExhausted(
            f"step {step + 1}: {len(groups.prompts)} of {quota} groups after max_sampling_tries = {config.max_sampling_tries} "
            f"batches of {drawn_at_once} prompts: in all other groups the {size} answers were all right or all wrong. "
            "Take data that is neither too easy nor too hard for this model, or raise num_generations, temperature or "
            "max_sampling_tries, or use grpo / papo_g, which need no mixed groups."
        )
    drawn = (attempt + 1) * drawn_at_once
    if not config.dynamic_sampling:
        return groups, drawn, {}
    log = {"rollout/tries": attempt + 1, "rollout/kept": quota / seen, "rollout/accuracy": accuracy / seen}
    return groups, drawn, log


def _score(
    batch: Batch,
    policy: torch.nn.Module,
    reference: torch.nn.Module | None,
    accelerator: PapoAccelerator,
    config: TrainConfig,
    limit: MicroBatchLimit,
    interruption: Interruption,
) -> Batch:
    """The log-probs that stay fixed during the updates. On-policy (one update a step) the old ones need no pass, and in
    float32 the ones that were found while sampling in the policy itself are its own."""
    perception = accelerator.perception_plugin
    in_policy = config.rollout_engine == "transformers"

    def scored(model: torch.nn.Module, view: str) -> Tensor:
        return limit.retry(lambda: score(model, batch, view, config.temperature, limit, interruption))

    frozen = {} if in_policy else {"sampled_logprobs": sampled_logprobs(batch)}
    with accelerator.autocast():
        if config.updates_per_step > 1 or perception.weighs_tokens:
            exact = in_policy and config.dtype == "float32" and config.mixed_precision == "no"
            sampled = sampled_logprobs(batch) if exact else None
            frozen["old_logprobs"] = scored(policy, "clean") if sampled is None else sampled
        if reference is not None:
            reference.to(accelerator.device)
            frozen["reference_logprobs"] = scored(reference, "clean")
            reference.to("cpu")  # where it waits: the device needs its memory in the update
        elif config.beta > 0:
            with without_adapter(policy):
                frozen["reference_logprobs"] = scored(policy, "clean")
        for view in perception.frozen_views:
            frozen[f"{view}_logprobs"] = scored(policy, view)
    if perception.weighs_tokens:
        dependence = terms.perception_kl(frozen["old_logprobs"], frozen["masked_logprobs"])
        weigh = TOKEN_WEIGHTINGS[perception.token_weighting]
        frozen["token_weights"] = weigh(dependence, batch.completion_mask.to(dependence.device), accelerator.gather)
    weights = perception_weights(batch.advantages, config.num_generations, perception.perception_weighting)
    return replace(batch, perception_weights=weights, **frozen)


def perception_weights(advantages: Tensor, group: int, weighting: str) -> Tensor | None:
    """(B,) what the perception KL of each completion counts: its advantage, or ("shuffled") that of the same place in the
    next prompt's group of completions, which tells nothing about it; None: all the same."""
    if weighting == "none":
        return None
    return advantages.clone() if weighting == "advantage" else advantages.roll(group)


def sampled_logprobs(batch: Batch) -> Tensor | None:
    """(B, T) what the engine found while sampling; 0 on padding. None where it does not say."""
    if any(completion.logprobs is None for completion in batch.completions):
        return None
    rows = [torch.tensor(completion.logprobs) for completion in batch.completions]
    return pad_sequence(rows, batch_first=True).to(batch.advantages.device)


@torch.no_grad()
def score(
    model: torch.nn.Module,
    batch: Batch,
    view: str,
    temperature: float,
    limit: MicroBatchLimit,
    interruption: Interruption,
) -> Tensor:
    """Log-probs of the batch's completions under `model` in one view, without gradient. (B, T).

    Left unfinished where the run is asked to stop.
    """
    was_training = model.training
    model.eval()  # frozen log-probs are without dropout
    result = torch.zeros(batch.completion_ids.shape, device=batch.advantages.device)
    row = 0
    try:
        for micro, _ in limit.micros(batch, misfit(model) is None):
            if interruption.requested:
                break
            logprobs = shared_prefix_logprobs(
                model, micro.rows(view), micro.completion_ids, micro.completion_mask, temperature
            )
            result = result.to(logprobs.dtype)
            result[row : row + len(micro), : logprobs.shape[1]] = logprobs
            row += len(micro)
    finally:
        model.train(was_training)
    return result
