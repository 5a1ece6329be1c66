"""A run measured before and after its training: the same answers and tables as `papo-hub evaluate`, in the run's folder."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import xxhash
from accelerate import Accelerator

from papo_hub.batch import Prompt
from papo_hub.config import ConfigError, TrainConfig
from papo_hub.data import UnusableRow, check_row, encode, special_tokens
from papo_hub.evaluation.answers import AnswersError
from papo_hub.evaluation.benchmarks import BENCHMARKS, Benchmark, load, select
from papo_hub.evaluation.protocol import Protocol
from papo_hub.evaluation.run import finish
from papo_hub.evaluation.runner import Task, answer
from papo_hub.evaluation.settings import SETTINGS, describe, describe_numerics, joined, write
from papo_hub.evaluation.views import CLEAN, mask_generator, mask_ratio, mask_view
from papo_hub.masking import RandomPatchMask
from papo_hub.preparation import columns, prompt_suffix
from papo_hub.rollout import RolloutEngine, Sampling

FILE = "evaluation.json"
GROUP_TAG = "dependence: "  # the subsets that evaluation.json gives apart


@dataclass(frozen=True)
class HeldOut:
    """The held-out problems of a run and how they are put to its policy."""

    benchmark: Benchmark
    task: Task
    protocol: Protocol
    pixels: list[int] | None  # least and most of an image; None: the processor's own limits

    @classmethod
    def of(cls, config: TrainConfig) -> HeldOut | None:
        """None where the recipe names no evaluation dataset. Raises as `papo_hub.evaluation.benchmarks.load`."""
        name = config.eval_dataset_name
        if name is None:
            return None
        known = BENCHMARKS.get(name) if name == "digits" else select([name], columns=columns(config))[0]
        benchmark = replace(
            known,
            split=config.eval_split,
            prompt_suffix=prompt_suffix(config),
            max_completion_length=config.max_completion_length,
        )
        sampling = Sampling(
            max_completion_length=config.max_completion_length,
            min_completion_length=config.min_completion_length,
            stop_on_boxed=config.stop_on_boxed,
        )
        rows = load(benchmark, config.eval_problems)
        masked = [mask_view(config.mask_ratio)] if config.mask_ratio > 0 else []  # baselines are measured on it too
        protocol = Protocol(
            k=config.eval_samples,
            view_k=config.eval_samples,
            views=(CLEAN, *masked),
            temperature=config.temperature,
            top_p=config.top_p,
            max_prompt_length=config.max_prompt_length,
            mask_patch_size=config.mask_patch_size,
            seed=config.seed,
            batch_size=config.rollout_batch_size,
            max_tokens=config.max_tokens_per_micro_batch,
        )
        task = Task(benchmark.name, rows, config.eval_problems, benchmark.prompt_suffix, sampling)
        pixels = None if config.min_pixels is None else [config.min_pixels, config.max_pixels]
        return cls(benchmark, task, protocol, pixels)

    def examples(self, processor: Any, count: int = 16) -> list[Prompt]:
        """The usable ones among the first `count` problems, in both views; of a run that masks nothing, none."""
        if self.protocol.kl_view is None:
            return []
        mask, prompts = RandomPatchMask(self.protocol.mask_patch_size, mask_ratio(self.protocol.kl_view)), []
        for index in range(min(count, len(self.task))):
            with contextlib.suppress(UnusableRow):
                sample = check_row(self.task.rows[index], self.task.rows.root, special_tokens(processor))
                suffix, longest = self.task.suffix(sample.problem), self.protocol.max_prompt_length
                generator = mask_generator(sample.id)
                prompts.append(encode(sample, processor, suffix, longest, mask=mask, generator=generator))
        return prompts

    def measure(
        self,
        run: Path,
        when: str,
        engine: RolloutEngine,
        policy: torch.nn.Module,
        processor: Any,
        accelerator: Accelerator,
        base: str,
    ) -> None:
        """Write RUN/evaluation/WHEN and the rows of evaluation.json. Runs on every rank.

        What an earlier start of the run left there is taken up where the policy is the same, and goes where it is not.
        """
        folder = run / "evaluation" / when
        # Without its wrapper, whose forward pass waits for the other processes: each has its own number of passes.
        policy = accelerator.unwrap_model(policy)
        if accelerator.is_main_process:
            model = {"name": f"{'/'.join(run.absolute().parts[-2:])}, {when} training", "base": base}
            model["weights"] = _digest(policy)
            numerics = describe_numerics(policy, accelerator, self.pixels, type(engine))
            limit = self.task.limit
            settings = describe(model, [self.benchmark], self.protocol, limit, numerics, accelerator.num_processes)
            try:
                settings = joined(folder, settings)
            except (ConfigError, AnswersError):
                shutil.rmtree(folder)
            write(folder / SETTINGS, settings)
        accelerator.wait_for_everyone()
        engine.prepare()
        answers, skipped = answer(engine, policy, processor, [self.task], self.protocol, accelerator, folder)
        engine.rest()
        if accelerator.is_main_process:
            results = finish(folder, answers, settings, skipped, say=None)
            file = run / FILE
            earlier = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
            kept = [row for row in earlier if row["when"] != when]
            write(file, kept + [{"when": when} | row for row in _summary(results["rows"])])


def _digest(model: torch.nn.Module) -> str:
    """Which weights these are."""
    total = xxhash.xxh3_128()
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        total.update(name.encode())
        # A copy: what numpy has looked at, a sharded model could not let go.
        total.update(value.detach().clone().cpu().flatten().view(torch.uint8).numpy())
    return total.hexdigest()


def _summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of evaluation.json: all problems and those of each visual dependence, clean and masked."""
    return [
        {
            "view": "masked" if mask_ratio(row["view"]) else row["view"],
            "group": row["subset"].removeprefix(GROUP_TAG),
            **{name: row[name] for name in ("accuracy", "low", "high", "perception_kl", "problems")},
            "samples": row["k"],
        }
        for row in rows
        if row["subset"] == "all" or row["subset"].startswith(GROUP_TAG)
    ]
