"""The training loop: PAPO-G, PAPO-D and their baselines GRPO and DAPO, on accelerate alone.

Reads top to bottom, once. A step is one rollout batch and the updates made from it. Where it departs from the paper, the
official code or TRL: docs/differences.md.
"""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor
from transformers import get_scheduler
from transformers.utils.logging import disable_progress_bar

from papo_hub.batch import Batch
from papo_hub.both_views import both_views
from papo_hub.checkpoint import forget_after, is_unfinished, last_good, named_moments, rotate, save_checkpoint
from papo_hub.config import TrainConfig, check_processes, notices
from papo_hub.evaluation.training import HeldOut
from papo_hub.experience import collect
from papo_hub.files import sync
from papo_hub.guard import Alarm, Guard
from papo_hub.hub import Uploads
from papo_hub.interruption import Interrupted, Interruption
from papo_hub.memory import MicroBatchLimit, device_memory, memory_plan
from papo_hub.modeling.thinking import note_on_tags
from papo_hub.objectives import Counts, Logprobs, Objective
from papo_hub.objectives.terms import KL_LIMIT
from papo_hub.parts import trainable
from papo_hub.plugins import (
    PapoAccelerator,
    PerceptionPlugin,
    RewardPlugin,
    RolloutPlugin,
    global_counts,
    on_main,
    syncing,
)
from papo_hub.preparation import (
    check_model,
    check_run_folder,
    chosen_checkpoint,
    load_model,
    load_reference,
    prompt_stream,
    recipe_processor,
    steps_of,
    training_rows,
    write_provenance,
)
from papo_hub.redaction import redacted
from papo_hub.report import export_model, finish_run
from papo_hub.rollout import check_vllm
from papo_hub.run_state import RunState
from papo_hub.sharding import in_step, is_sharded, whole, whole_tensor, whole_weights
from papo_hub.shared_prefix import misfit, shared_prefix_logprobs
from papo_hub.tracking import RunLog, row, tracker_options, trackers
from papo_hub.unfinished import StepUnderWay

# What an algorithm may do without.
OPTIONAL = ("perception_kl", "perception_kl_variance", "masked_entropy", "reference_kl", "robustness_kl", "alignment")
OPTIONAL += ("sampling_gap",)
LEAST_GAMMA_FACTOR = 1 / 8  # three times halved: then gamma is not what ails the run
RECOVERY = 1.05  # a step, of an adaptive gamma


class TrainingDiverged(RuntimeError):
    """Too many updates in a row had a gradient that is not finite."""


class CollapseAhead(RuntimeError):
    """The guard stopped a run that shows early signs of collapse."""


def train(config: TrainConfig) -> Path:
    """Run a recipe. Runs on every rank; with several processes, once in their life, since its end dissolves their group.

    Returns:
        The run folder: config.yaml, provenance.json, metrics.jsonl, samples.md, checkpoints/, model/ (plain format),
        figures/, README.md, and evaluation.json where the recipe names an evaluation dataset.

    Raises:
        ConfigError: the recipe contradicts itself, the model or the number of processes.
        Interrupted: a signal or `max_time` ended it early; a checkpoint was saved, from which it goes on as if nothing was.
        CheckpointError: a checkpoint that cannot be resumed from, or not be written.
        TooManyUnusableRows, SamplingExhausted, TrainingDiverged, CollapseAhead, MemoryExhausted: the data or the run is
            past saving; each says what to do.
        PromptMismatch, ServerError: from vLLM, which reads a prompt otherwise, or whose server fails.
    """
    with Interruption(config.max_time) as interruption:
        return _train(config, interruption)


def _train(config: TrainConfig, interruption: Interruption) -> Path:
    accelerator = PapoAccelerator(
        perception_plugin=PerceptionPlugin.from_config(config),
        rollout_plugin=RolloutPlugin.from_config(config),
        reward_plugin=RewardPlugin.from_config(config),
        mixed_precision=config.mixed_precision,
        log_with=trackers(config.report_to) or None,
        project_dir=config.output_dir,
        step_scheduler_with_optimizer=False,
    )
    perception, rollout = accelerator.perception_plugin, accelerator.rollout_plugin
    check_processes(config, accelerator.num_processes, accelerator.is_fsdp2)
    check_model(config)
    if config.rollout_engine == "vllm" and config.vllm_server_weights_folder is None:
        check_vllm()  # to sample in, or to send weights with; a server with a folder asks for nothing here
    run = Path(config.output_dir)
    checkpoint = chosen_checkpoint(run, config, accelerator)
    check_run_folder(run, checkpoint, config)

    # Data, then models: a wrong dataset is found before any weight is loaded.
    rows = training_rows(config)
    held_out = HeldOut.of(config)
    processor = recipe_processor(config)
    stream = prompt_stream(rows, processor, config, perception)
    max_steps = steps_of(config, None if config.streaming else len(rows))
    set_seed(config.seed)  # for libraries that draw from the global state; nothing here does
    model = load_model(config, checkpoint)
    reference = None
    if config.beta > 0 and config.lora_rank == 0:  # else the policy without its adapter is the reference
        reference = load_reference(config).requires_grad_(False).eval()

    optimizer = torch.optim.AdamW(
        trainable(model).values(),
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        fused=config.optim == "adamw_torch_fused" or None,
    )
    scheduler = get_scheduler(
        config.lr_scheduler_type, optimizer, config.warmup_steps, max_steps * config.updates_per_step
    )
    policy, optimizer = accelerator.prepare(model, optimizer)
    model = accelerator.unwrap_model(policy)
    engine = rollout.engine(model, processor, torch.bfloat16 if config.mixed_precision == "bf16" else None)
    limit = MicroBatchLimit(config.max_tokens_per_micro_batch, config.micro_batch_size, print)
    state = RunState(
        model, optimizer, scheduler, stream, Guard(KL_LIMIT if config.estimator == "sampled" else math.inf), limit
    )
    if checkpoint is not None:
        state.load(checkpoint)

    disable_progress_bar()  # of transformers, for saving: the run has its own
    run_name = None
    if accelerator.is_main_process:
        run_name = write_provenance(run, config, accelerator.num_processes, resumed=checkpoint is not None)
    log = RunLog(run, config, accelerator, max_steps, state.step)
    limit.say = log.say
    for notice in [*notices(config), *filter(None, [note_on_tags(processor)])]:
        log.say(f"note: {notice}")
    shared = (reason := misfit(model)) is None
    log.say("each prompt is computed once for all its completions" if shared else f"one row a completion: {reason}")
    log.say(memory_plan(config, model.config).line(device_memory(accelerator.device)))
    if checkpoint is not None:
        log.say(f"resumed from {checkpoint} at step {state.step}")
    accelerator.init_trackers("papo_hub", config=redacted(asdict(config)), init_kwargs=tracker_options(run_name))
    uploads = Uploads(run, config, log.say) if accelerator.is_main_process else None
    if held_out is not None and checkpoint is None:
        with whole(policy):
            held_out.measure(run, "before", engine, policy, processor, accelerator, config.model_name_or_path)

    def gradients(objective: Objective, update: Batch, counts: Counts) -> dict[str, Tensor] | None:
        """All forward and backward passes of an update; its token sums, or None on every rank: the run is to stop."""
        optimizer.zero_grad()  # what an attempt left that ran out of memory
        sums: dict[str, Tensor] = {}
        at_once = 1 + len(perception.views) if perception.live else 1
        for micro, weight, last in limit.in_step(update, shared, at_once, partial(in_step, accelerator, policy)):
            if last and interruption.agreed(accelerator):  # before the processes exchange gradients
                return None
            if interruption.requested and not is_sharded(policy):
                continue
            with syncing(accelerator, policy, last):
                with accelerator.autocast():  # what runs beside the wrapped forward, too
                    logprobs = views(policy, micro, perception, config.temperature)
                loss, micro_sums = objective(logprobs, counts)
                # Processes average their gradients; the denominators are already global, so undo the average.
                accelerator.backward(loss * accelerator.num_processes * weight)
            sums = {name: sums.get(name, 0) + value * weight for name, value in micro_sums.items()}
        return sums

    def alignment(objective: Objective, update: Batch, counts: Counts) -> float | None:
        """The cosine between the gradients of the policy loss and of the perception term; None on every rank: the run is
        to stop. Leaves nothing behind."""
        directions = []
        for name in ("surrogate", "perception_kl"):
            if gradients(objective.only(name), update, counts) is None:
                return None
            directions.append([p.grad.detach().clone() for p in policy.parameters() if p.grad is not None])
        return cosine(*directions)

    def end() -> None:
        """End the trackers and the connection of the processes, on every rank; the last wrapped model goes before it, and
        so does vLLM, which has connections of its own within it."""
        nonlocal policy
        policy = None
        accelerator.wait_for_everyone()
        engine.close()
        accelerator.end_training()

    interruption.deferred = True  # from here on, what asks the run to stop waits until it can be resumed exactly
    policy.train()
    while state.step < max_steps:
        step = state.step
        objective = perception.objective(config.algorithm, config.policy_weights, step, max_steps, state.gamma_factor)
        position = stream.state_dict()
        if is_unfinished(checkpoint):
            under_way = StepUnderWay.load(
                checkpoint, stream, accelerator.process_index, accelerator.num_processes, accelerator.device
            )
        else:
            under_way = collect(policy, reference, engine, stream, accelerator, config, step, limit, interruption)
        checkpoint = None

        started = time.perf_counter()
        for update in [] if under_way is None else under_way.remaining(config.updates_per_step):
            counts = global_counts(accelerator, update.completion_mask)
            exchanging = "always" if is_sharded(policy) else "last" if accelerator.num_processes > 1 else "never"
            if config.alignment_steps and step % config.alignment_steps == 0 and under_way.updates == 0:
                measure = partial(alignment, objective, update, counts)
                under_way.metrics["objective/alignment"] = limit.retry(measure, exchanging)
            sums = limit.retry(partial(gradients, objective, update, counts), exchanging)
            if sums is None:
                break
            norm = float(accelerator.clip_grad_norm_(policy.parameters(), config.max_grad_norm))
            if math.isfinite(norm):
                optimizer.step()
                under_way.norms.append(norm)
                state.skipped_updates = 0
            else:
                state.skipped_updates += 1
                log.say(
                    f"step {step + 1}: the gradient is not finite; update skipped ({state.skipped_updates} in a row)"
                )
            learning_rate = scheduler.get_last_lr()[0]
            scheduler.step()
            optimizer.zero_grad()
            under_way.add(sums)
            if state.skipped_updates >= config.max_skipped_updates:
                raise TrainingDiverged(
                    f"step {step + 1}: {state.skipped_updates} updates in a row had a gradient that is not finite. "
                    "Lower learning_rate or gamma and resume from the last checkpoint (--resume_from_checkpoint latest)."
                )
        if under_way is None or under_way.updates < config.updates_per_step:
            saved = save(run, state, processor, accelerator, config, position, under_way)
            end()
            raise Interrupted(
                f"stopped by {interruption.reason} in step {step + 1} of {max_steps}; saved {saved}. "
                "Go on with --resume_from_checkpoint latest."
            )

        metrics = under_way.metrics | {
            "time/update": time.perf_counter() - started,
            "objective/gamma": objective.weights.gamma,
            "optim/grad_norm": sum(under_way.norms) / len(under_way.norms) if under_way.norms else None,
            "optim/lr": learning_rate,
            "optim/skipped_updates": config.updates_per_step - len(under_way.norms),
        }
        made = row({"step": step + 1} | reduced(accelerator, under_way.batch, under_way.sums) | metrics)
        log.step(made)
        log.skipped_rows(stream.skipped)
        if (step + 1) % config.sample_steps == 0 or step == 0:
            log.samples(step + 1, under_way.batch)
        state.step += 1

        alarm, uneasy = (
            (None, False) if config.guard == "off" else on_main(accelerator, partial(watched, state.guard, made))
        )
        if config.gamma_control == "adaptive":
            state.gamma_factor = adapted(state.gamma_factor, uneasy or (made["objective/alignment"] or 0) < 0)
        if alarm is not None and config.guard == "lower" and state.gamma_factor > LEAST_GAMMA_FACTOR:
            good = on_main(accelerator, partial(forget_after, run / "checkpoints", alarm.since - 1))
            state.go_back(good, config)
            log.alarm(alarm, f"Back to step {state.step}, with gamma × {state.gamma_factor:g}.")
            log.go_back(state.step)
            continue
        stop = alarm is not None and config.guard != "warn"
        if alarm is not None:
            log.alarm(alarm, "Training stops." if stop else "Training goes on.")
        due = state.step == max_steps or (config.save_steps > 0 and state.step % config.save_steps == 0)
        if due or stop:
            saved = save(run, state, processor, accelerator, config)
            if uploads is not None:
                uploads.saved(saved)
        if stop:
            end()
            raise CollapseAhead(stopped_by_guard(run, alarm))

    log.close()
    stream.close()  # what it read ahead gives its memory back
    if interruption.agreed(accelerator):
        raise Interrupted(
            f"stopped by {interruption.reason} after the last step, before the end was measured. "
            "Go on with --resume_from_checkpoint latest."
        )
    interruption.deferred = False
    folder = run / "checkpoints"
    if accelerator.is_main_process and (newest := last_good(folder, max_steps)) is not None:
        # A kill may have left a part of the last rotation.
        rotate(folder, newest, config.save_total_limit, healthy_until(state, config))
    weights = whole_weights(model, accelerator.is_main_process)
    with whole(policy):
        if held_out is not None:
            held_out.measure(run, "after", engine, policy, processor, accelerator, config.model_name_or_path)
        if accelerator.is_main_process:
            export_model(run / "model", model, processor, config, weights)
            examples = held_out.examples(processor) if held_out is not None else []
            finish_run(run, model, processor, examples or stream.take(1), config)
            uploads.finish()
        accelerator.wait_for_everyone()
    end()
    return run


def save(
    run: Path,
    state: RunState,
    processor: Any,
    accelerator: PapoAccelerator,
    config: TrainConfig,
    position: dict[str, Any] | None = None,
    under_way: StepUnderWay | None = None,
) -> Path:
    """Write a checkpoint. Runs on every rank, and returns when it is there.

    In the middle of a step: `position` is the data stream's from before it, `under_way` what there is of it, if anything.
    """
    folder = run / "checkpoints"
    shares = folder / "partial-shares"
    if under_way is not None:
        if accelerator.is_main_process:
            shutil.rmtree(shares, ignore_errors=True)
        accelerator.wait_for_everyone()
        under_way.save(shares, accelerator.process_index)
        accelerator.wait_for_everyone()

    # Gathered by all processes, kept by the one that writes.
    main = accelerator.is_main_process
    weights, moments = whole_weights(state.model, main), named_moments(state.model, state.optimizer, main)

    def write() -> Path:
        here = last_good(folder, state.step)
        if position is not None and under_way is None and here is not None and here.name == f"step-{state.step:06d}":
            return here  # it was saved at the end of the last step
        if (run / "metrics.jsonl").exists():  # a checkpoint must not outlive the record of its steps
            sync(run / "metrics.jsonl")
        moving = state.state_dict() | ({} if position is None else {"stream": position})
        return save_checkpoint(
            folder,
            state.step,
            state.model,
            processor,
            moments,
            moving,
            config.save_total_limit,
            healthy_until(state, config),
            None if under_way is None else shares,
            weights,
        )

    return on_main(accelerator, write)


def watched(guard: Guard, made: dict[str, Any]) -> tuple[Alarm | None, bool]:
    """What the guard says of a step: an alarm, and whether some sign stands."""
    return guard.observe(made), guard.uneasy


def adapted(factor: float, trouble: bool) -> float:
    """The factor of an adaptive γ after a step: half of it in trouble (down to 1/64), else a little more, up to 1."""
    return max(factor / 2, 1 / 64) if trouble else min(factor * RECOVERY, 1.0)


def cosine(one: list[Tensor], other: list[Tensor]) -> float | None:
    """Of two directions in the space of all parameters; None where one of them is zero."""

    def product(a: list[Tensor], b: list[Tensor]) -> float:
        return whole_tensor(sum((x.double() * y.double()).sum() for x, y in zip(a, b, strict=True))).item()

    lengths = math.sqrt(product(one, one) * product(other, other))
    return product(one, other) / lengths if lengths > 0 and math.isfinite(lengths) else None


def healthy_until(state: RunState, config: TrainConfig) -> int | None:
    """The last step that the guard holds for healthy; None where nobody watches."""
    return None if config.guard == "off" else state.guard.healthy_until


def stopped_by_guard(run: Path, alarm: Alarm) -> str:
    """What to do after the guard stopped a run."""
    good = last_good(run / "checkpoints", alarm.since - 1)
    back = f"--resume_from_checkpoint {good}" if good else "a new output_dir"
    return (
        f"the guard stopped the run at step {alarm.step}, whose last good step is {alarm.since - 1}: "
        f"{'; '.join(sign.text for sign in alarm.signs)}. {alarm.remedy} Go on with {back}; what was seen is in {run}/guard.jsonl."
    )


def views(policy: torch.nn.Module, micro: Batch, perception: PerceptionPlugin, temperature: float) -> Logprobs:
    """What the terms read: the log-probs of each view, and where the estimator is exact, what it says of all tokens. The
    policy's has a gradient, and that of the other views where they are live."""
    ids, mask = micro.completion_ids, micro.completion_mask
    frozen = {"masked": micro.masked_logprobs, "noisy": micro.noisy_logprobs}
    if perception.exact:
        found = both_views(
            policy,
            micro.rows("clean"),
            micro.rows("masked"),
            ids,
            mask,
            temperature,
            perception.divergence,
            perception.live,
        )._asdict()
        clean, other = found.pop("logprobs"), {"masked": found.pop("masked_logprobs")} | found
    elif perception.live:
        # All views in one forward pass: they have equal lengths, and a wrapped policy is called once per backward.
        names = ("clean", *perception.views)
        rows = [row for name in names for row in micro.rows(name)]
        repeated = (tensor.repeat(len(names), 1) for tensor in (ids, mask))
        clean, *live = shared_prefix_logprobs(policy, rows, *repeated, temperature).chunk(len(names))
        other = dict(zip(perception.views, live, strict=True))
    else:
        clean = shared_prefix_logprobs(policy, micro.rows("clean"), ids, mask, temperature)
        other = frozen
    old = clean.detach() if micro.old_logprobs is None else micro.old_logprobs
    mask = mask.to(clean.device, non_blocking=True)
    return Logprobs(
        clean,
        old,
        micro.advantages,
        mask,
        micro.reference_logprobs,
        sampled=micro.sampled_logprobs,
        token_weights=micro.token_weights,
        perception_weights=micro.perception_weights,
        **other,
    )


def reduced(accelerator: PapoAccelerator, batch: Batch, sums: dict[str, Tensor]) -> dict[str, float]:
    """The logged means of a whole step, over all processes, in one exchange. Runs on every rank.

    Objective values are per token, rewards and lengths per completion.
    """
    tokens = batch.completion_mask.sum().float()
    finished = torch.tensor([float(completion.finished) for completion in batch.completions])
    per_completion = {f"reward/{name}": values.sum() for name, values in batch.rewards.items()}
    per_completion |= {"tokens/completion": tokens, "tokens/finished": finished.sum()}
    values = [*sums.values(), *per_completion.values(), tokens, torch.tensor(float(len(batch)))]
    stacked = torch.stack([value.detach().float().to(accelerator.device) for value in values])
    *totals, all_tokens, completions = accelerator.reduce(stacked, "sum").tolist()
    means = dict.fromkeys((f"objective/{name}" for name in OPTIONAL), None)  # null where not computed
    found = dict(zip([*sums, *per_completion], totals, strict=True))
    for name in per_completion:
        means[name] = found[name] / max(completions, 1)
    for name in sums:
        found[name] /= max(all_tokens, 1)
    if "perception_kl" in sums:
        variance = found.pop("perception_kl_squared") - found["perception_kl"] ** 2
        means["objective/perception_kl_variance"] = max(variance, 0.0)
    return means | {f"objective/{name}": value for name, value in found.items() if name in sums}
