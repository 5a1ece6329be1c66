"""Our side: papo_hub's own functions on the given work."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

from benchmarks.work import MASK, Shape, Work, make_work, reward
from papo_hub.batch import Batch, Prompt, Sample
from papo_hub.config import TrainConfig
from papo_hub.data import encode
from papo_hub.experience import collect
from papo_hub.interruption import Interruption
from papo_hub.memory import MicroBatchLimit
from papo_hub.modeling import load_processor
from papo_hub.objectives import Logprobs
from papo_hub.plugins import PapoAccelerator, PerceptionPlugin, RewardPlugin, RolloutPlugin, global_counts
from papo_hub.rollout import Sampling, TransformersEngine
from papo_hub.rows import Rows
from papo_hub.shared_prefix import shared_prefix_logprobs
from papo_hub.stream import PromptStream

PACKAGES = ("torch", "transformers", "accelerate")


class DigitShare(RewardPlugin):
    """The reward of both sides, in the form that `collect` asks for."""

    def __call__(self, responses: list[str], answers: list[str]) -> dict[str, Tensor]:
        values = torch.tensor([reward(response) for response in responses])
        return {"mean": values, "accuracy": values, "format": torch.zeros_like(values)}


class Side:
    """Each method prepares its part and returns it as a function without arguments: what that takes is what is timed.

    `logprobs` gives (G, T) log-probs, `rollout` a list of G lists of token ids, `step` the number of tokens trained on.
    """

    def __init__(self, folder: str) -> None:
        self.processor = load_processor(folder, padding_side="left")
        self.policy = AutoModelForImageTextToText.from_pretrained(folder)
        self.reference = AutoModelForImageTextToText.from_pretrained(folder).requires_grad_(False).eval()
        self.optimizer = torch.optim.AdamW(self.policy.parameters(), lr=1e-6, weight_decay=0.01)
        self.work: Callable[[Shape], Work] = cache(lambda shape: make_work(shape, self.processor))

    @property
    def models(self) -> tuple[torch.nn.Module, ...]:
        return self.policy, self.reference

    def _prompt(self, work: Work) -> Prompt:
        sample = Sample("0", f"<image>{work.question}", "0", (work.image,))
        return encode(sample, self.processor, "", mask=lambda image, generator: work.masked_image)

    def prompt_ids(self, shape: Shape) -> Callable[[], list[int]]:
        return lambda: self._prompt(self.work(shape)).clean["input_ids"][0].tolist()

    def rollout(self, shape: Shape, greedy: bool = False) -> Callable[[], list[list[int]]]:
        """G completions of exactly T tokens."""
        prompt = self._prompt(self.work(shape))
        engine = TransformersEngine(self.policy, self.processor.tokenizer, batch_size=shape.generations)
        length = {"max_completion_length": shape.completion, "min_completion_length": shape.completion}
        sampling = Sampling(temperature=0.0 if greedy else 1.0, **length)
        generator = torch.Generator().manual_seed(0)

        def run() -> list[list[int]]:
            completions = engine.generate([prompt], shape.generations, sampling, generator)
            return [completion.token_ids for completion in completions]

        return run

    def logprobs(
        self, shape: Shape, train: bool, positions: str | None = None, view: str = "clean"
    ) -> Callable[[], Tensor]:
        """One view of all completions; `train`: with the backward pass of their mean.

        `positions`: "rotary 3d", the model's own and the default, or "1d", what it falls back to without
        mm_token_type_ids.
        """
        work = self.work(shape)
        prompt = getattr(self._prompt(work), view)
        if positions == "1d":
            prompt = {name: value for name, value in prompt.items() if name != "mm_token_type_ids"}

        def run() -> Tensor:
            with torch.set_grad_enabled(train):
                logprobs = shared_prefix_logprobs(self.policy, prompt, work.completion_ids, work.completion_mask)
                if train:
                    (-logprobs.sum() / work.completion_mask.sum()).backward()
            return logprobs.detach()

        return run

    def step(self, shape: Shape, masked: str) -> Callable[[], int]:
        """PAPO-G from the row of a dataset to the changed weights; `masked`: the masked view "frozen" or "live"."""
        work = self.work(shape)
        config = TrainConfig(
            model_name_or_path="",
            dataset_name="",
            output_dir="",
            objective="papo_g",
            gamma=0.02,
            beta=0.01,
            masked_logprobs=masked,
            prompt_suffix="",
            prompts_per_step=1,
            prompts_per_update=1,
            num_generations=shape.generations,
            rollout_batch_size=shape.generations,
            max_completion_length=shape.completion,
            min_completion_length=shape.completion,
        )
        accelerator = PapoAccelerator(
            cpu=True,
            perception_plugin=PerceptionPlugin.from_config(config),
            rollout_plugin=RolloutPlugin.from_config(config),
            reward_plugin=DigitShare.from_config(config),
        )
        row = {"id": 0, "problem": f"<image>{work.question}", "answer": "0", "images": [work.image]}
        stream = PromptStream(Rows([row]), self.processor, seed=0, prompt_suffix="", mask=MASK)
        engine = accelerator.rollout_plugin.engine(self.policy, self.processor)
        objective = accelerator.perception_plugin.objective(config.algorithm, config.policy_weights)
        policy, optimizer = accelerator.prepare(self.policy, self.optimizer)

        limit = MicroBatchLimit(config.max_tokens_per_micro_batch, config.micro_batch_size, print)
        interruption = Interruption()

        def run() -> int:
            batch = collect(policy, self.reference, engine, stream, accelerator, config, 0, limit, interruption).batch
            loss, _ = objective(self._views(policy, batch, masked), global_counts(accelerator, batch.completion_mask))
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            return int(batch.completion_mask.sum())

        return run

    def _views(self, policy: torch.nn.Module, batch: Batch, masked: str) -> Logprobs:
        ids, mask = batch.completion_ids, batch.completion_mask
        if masked == "live":
            rows = batch.rows("clean") + batch.rows("masked")
            clean, masked_logprobs = shared_prefix_logprobs(policy, rows, ids.repeat(2, 1), mask.repeat(2, 1)).chunk(2)
        else:
            clean, masked_logprobs = (
                shared_prefix_logprobs(policy, batch.rows("clean"), ids, mask),
                batch.masked_logprobs,
            )
        return Logprobs(clean, clean.detach(), batch.advantages, mask, batch.reference_logprobs, masked_logprobs)
