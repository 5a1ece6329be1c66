"""The training loop: PAPO-G, PAPO-D and their baselines GRPO and DAPO, on accelerate alone.

Reads top to bottom, once. A step is one rollout batch and the updates made from it. Where it departs from the paper, the
official code or TRL: docs/differences.md.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate.utils import set_seed
from torch import Tensor
from transformers import get_scheduler
from transformers.utils.logging import disable_progress_bar

from papo_hub.batch import Batch
from papo_hub.checkpoint import find_checkpoint, load_optimizer, load_state, save_checkpoint
from papo_hub.config import TrainConfig, check_processes, notices
from papo_hub.evaluation.training import HeldOut
from papo_hub.experience import collect
from papo_hub.hub import Uploads
from papo_hub.objectives import Logprobs
from papo_hub.plugins import PapoAccelerator, PerceptionPlugin, RewardPlugin, RolloutPlugin, global_counts, syncing
from papo_hub.preparation import (
    check_model,
    check_run_folder,
    load_model,
    load_reference,
    prompt_stream,
    recipe_processor,
    resume_point,
    steps_of,
    training_rows,
    write_provenance,
)
from papo_hub.report import export_model, finish_run
from papo_hub.shared_prefix import misfit, shared_prefix_logprobs
from papo_hub.tracking import RunLog, trackers

OPTIONAL = (
    "perception_kl",
    "perception_kl_variance",
    "masked_entropy",
    "reference_kl",
)  # what an algorithm may do without


class TrainingDiverged(RuntimeError):
    """Too many updates in a row had a gradient that is not finite."""


def train(config: TrainConfig) -> Path:
    """Run a recipe. Runs on every rank; with several processes, once in their life, since its end dissolves their group.

    Returns:
        The run folder: config.yaml, provenance.json, metrics.jsonl, samples.md, checkpoints/, model/ (plain format),
        figures/, README.md, and evaluation.json where the recipe names an evaluation dataset.

    Raises:
        ConfigError: the recipe contradicts itself, the model or the number of processes.
        TooManyUnusableRows, SamplingExhausted, TrainingDiverged: the data or the run is past saving; each says what to do.
    """
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
    check_processes(config, accelerator.num_processes)
    check_model(config)
    run = Path(config.output_dir)
    with accelerator.main_process_first():  # what lies on the Hub is brought here once
        checkpoint = find_checkpoint(resume_point(config), run / "checkpoints")
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
    if config.beta > 0:
        reference = load_reference(config).requires_grad_(False).eval().to(accelerator.device)

    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    scheduler = get_scheduler(
        config.lr_scheduler_type, optimizer, config.warmup_steps, max_steps * config.updates_per_step
    )
    done, skipped_updates = 0, 0
    if checkpoint is not None:
        state = load_state(checkpoint)
        done, skipped_updates = state["step"], state["skipped_updates"]
        load_optimizer(checkpoint, model, optimizer)
        scheduler.load_state_dict(state["scheduler"])
        for group, rate in zip(optimizer.param_groups, scheduler.get_last_lr(), strict=True):
            group["lr"] = rate  # a schedule that is loaded does not set it until its next step
        stream.load_state_dict(state["stream"])
    policy, optimizer = accelerator.prepare(model, optimizer)
    model = accelerator.unwrap_model(policy)
    engine = rollout.engine(model, processor.tokenizer)

    disable_progress_bar()  # of transformers, for saving: the run has its own
    run_name = None
    if accelerator.is_main_process:
        run_name = write_provenance(run, config, accelerator.num_processes, resumed=checkpoint is not None)
    log = RunLog(run, config, accelerator, max_steps, done)
    for notice in notices(config):
        log.say(f"note: {notice}")
    shared = (reason := misfit(model)) is None
    log.say("each prompt is computed once for all its completions" if shared else f"one row a completion: {reason}")
    max_tokens = config.max_tokens_per_micro_batch // (2 if perception.live else 1)  # live: both views at once
    if checkpoint is not None:
        log.say(f"resumed from {checkpoint} at step {done}")
    accelerator.init_trackers(
        "papo_hub", config=asdict(config), init_kwargs={"trackio": {"name": run_name, "resume": "allow"}}
    )
    uploads = Uploads(run, config, log.say) if accelerator.is_main_process else None
    if held_out is not None and done == 0:
        held_out.measure(run, "before", engine, policy, processor, accelerator, config.model_name_or_path)

    policy.train()
    for step in range(done, max_steps):
        objective = perception.objective(config.algorithm, config.policy_weights, step, max_steps)
        batch, metrics = collect(policy, reference, engine, stream, accelerator, config, step)

        started = time.perf_counter()
        sums: dict[str, Tensor] = {}
        norms = []
        for update in split(batch, config.updates_per_step):
            counts = global_counts(accelerator, update.completion_mask)
            for micro, last in update.micros(max_tokens, config.micro_batch_size, shared):
                with syncing(accelerator, policy, last):
                    with accelerator.autocast():  # what runs beside the wrapped forward, too
                        logprobs = views(policy, micro, perception, config.temperature)
                    loss, micro_sums = objective(logprobs, counts)
                    # Processes average their gradients; the denominators are already global, so undo the average.
                    accelerator.backward(loss * accelerator.num_processes)
                sums = {name: sums.get(name, 0) + value for name, value in micro_sums.items()}
            norm = float(accelerator.clip_grad_norm_(policy.parameters(), config.max_grad_norm))
            if math.isfinite(norm):
                optimizer.step()
                norms.append(norm)
                skipped_updates = 0
            else:
                skipped_updates += 1
                log.say(f"step {step + 1}: the gradient is not finite; update skipped ({skipped_updates} in a row)")
            learning_rate = scheduler.get_last_lr()[0]
            scheduler.step()
            optimizer.zero_grad()
            if skipped_updates >= config.max_skipped_updates:
                raise TrainingDiverged(
                    f"step {step + 1}: {skipped_updates} updates in a row had a gradient that is not finite. "
                    "Lower learning_rate or gamma and resume from the last checkpoint (--resume_from_checkpoint latest)."
                )

        metrics["time/update"] = time.perf_counter() - started
        metrics |= {
            "objective/gamma": objective.weights.gamma,
            "optim/grad_norm": sum(norms) / len(norms) if norms else None,
            "optim/lr": learning_rate,
            "optim/skipped_updates": config.updates_per_step - len(norms),
        }
        log.step({"step": step + 1} | reduced(accelerator, batch, sums) | metrics)
        log.skipped_rows(stream.skipped)
        if (step + 1) % config.sample_steps == 0 or step == 0:
            log.samples(step + 1, batch)
        due = step + 1 == max_steps or (config.save_steps > 0 and (step + 1) % config.save_steps == 0)
        if due and accelerator.is_main_process:
            state = {
                "skipped_updates": skipped_updates,
                "scheduler": scheduler.state_dict(),
                "stream": stream.state_dict(),
            }
            folder = run / "checkpoints"
            uploads.saved(
                save_checkpoint(folder, step + 1, model, processor, optimizer, state, config.save_total_limit)
            )
        accelerator.wait_for_everyone()

    log.close()
    stream.close()  # what it read ahead gives its memory back
    if held_out is not None:
        held_out.measure(run, "after", engine, policy, processor, accelerator, config.model_name_or_path)
    if accelerator.is_main_process:
        export_model(run / "model", model, processor, config)
        examples = held_out.examples(processor) if held_out is not None else []
        finish_run(run, model, processor, examples or stream.take(1), config)
        uploads.finish()
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return run


def views(policy: torch.nn.Module, micro: Batch, perception: PerceptionPlugin, temperature: float) -> Logprobs:
    """The log-probs that the terms read, the policy's (and the live masked ones) with gradient."""
    ids, mask = micro.completion_ids, micro.completion_mask
    if perception.live:
        # Both views in one forward pass: they have equal lengths, and a wrapped policy is called once per backward.
        rows = micro.rows("clean") + micro.rows("masked")
        both = shared_prefix_logprobs(policy, rows, ids.repeat(2, 1), mask.repeat(2, 1), temperature)
        clean, masked = both.chunk(2)
    else:
        clean = shared_prefix_logprobs(policy, micro.rows("clean"), ids, mask, temperature)
        masked = micro.masked_logprobs
    old = clean.detach() if micro.old_logprobs is None else micro.old_logprobs
    mask = mask.to(clean.device, non_blocking=True)
    return Logprobs(clean, old, micro.advantages, mask, micro.reference_logprobs, masked)


def split(batch: Batch, updates: int) -> list[Batch]:
    """The batch in equal parts, one an optimizer step; groups stay whole."""
    size = len(batch) // updates
    return [batch.select(slice(i * size, (i + 1) * size)) for i in range(updates)]


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
