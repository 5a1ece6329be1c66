"""The peer's side: PAPO as in TRL 1.5.0, by its own trainer's methods, on the given work.

Imported in the peer's environment only.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import cache

import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForImageTextToText

from benchmarks.work import IMAGE_TOKENS, Shape, Work, chat_messages, make_work, reward
from papo_hub.modeling import load_processor

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
from trl.experimental.papo import PAPOConfig, PAPOTrainer

PACKAGES = ("trl", "torch", "transformers", "accelerate")


def digit_share(completions: list[list[dict[str, str]]], **columns) -> list[float]:
    """The reward of both sides, in the form that TRL asks for."""
    return [reward(messages[0]["content"]) for messages in completions]


class Side:
    """The same methods as ours.Side."""

    def __init__(self, folder: str) -> None:
        # Without torchvision the stock processor cannot be loaded; this is the same one without its video part.
        self.processor = load_processor(folder, padding_side="left")
        self.policy = AutoModelForImageTextToText.from_pretrained(folder)
        self.work: Callable[[Shape], Work] = cache(lambda shape: make_work(shape, self.processor))
        self.trainers: dict[Shape, PAPOTrainer] = {}
        self.folder = tempfile.TemporaryDirectory()

    @property
    def models(self) -> tuple[torch.nn.Module, ...]:
        return self.policy, *(trainer.ref_model for trainer in self.trainers.values())

    def _trainer(self, shape: Shape) -> PAPOTrainer:
        """The trainer with its defaults, but for what the work fixes."""
        if shape in self.trainers:
            return self.trainers[shape]
        work = self.work(shape)
        config = PAPOConfig(
            output_dir=self.folder.name,
            loss_type="grpo",
            perception_loss_weight=0.02,
            mask_ratio=0.6,
            der_loss_weight1=0.0,
            der_loss_weight2=0.0,
            beta=0.01,
            num_generations=shape.generations,
            per_device_train_batch_size=shape.generations,
            gradient_accumulation_steps=1,
            max_completion_length=shape.completion,
            # A sampled image token would end its next forward pass with an error.
            generation_kwargs={"min_new_tokens": shape.completion, "suppress_tokens": IMAGE_TOKENS},
            gradient_checkpointing=False,  # by default it is on: less memory for more time
            bf16=False,
            optim="adamw_torch",
            learning_rate=1e-6,
            weight_decay=0.01,
            use_cpu=True,
            report_to="none",
        )
        row = {"prompt": [{"role": "user", "content": work.question}], "image": work.image}
        self.trainers[shape] = PAPOTrainer(
            self.policy,
            reward_funcs=digit_share,
            args=config,
            train_dataset=Dataset.from_list([row]),
            processing_class=self.processor,
        )
        return self.trainers[shape]

    def _tokenized(self, shape: Shape) -> tuple:
        """What the trainer makes of its G rows before it generates: ids, images, image inputs."""
        work = self.work(shape)
        rows = [chat_messages(work.question, work.image) for _ in range(shape.generations)]
        return self._trainer(shape)._tokenize_prompts(rows)

    def prompt_ids(self, shape: Shape) -> Callable[[], list[int]]:
        return lambda: self._tokenized(shape)[0][0]

    def rollout(self, shape: Shape, greedy: bool = False) -> Callable[[], list[list[int]]]:
        trainer, inputs = self._trainer(shape), self._tokenized(shape)

        def run() -> list[list[int]]:
            trainer.generation_config.do_sample = not greedy
            return trainer._generate_single_turn(*inputs)[0]

        return run

    def logprobs(
        self, shape: Shape, train: bool, positions: str | None = None, view: str = "clean"
    ) -> Callable[[], Tensor]:
        """`positions` by default as in the trainer: its loss leaves out mm_token_type_ids, its reference pass does not."""
        trainer, work = self._trainer(shape), self.work(shape)
        image = work.image if view == "clean" else work.masked_image
        text = self.processor.apply_chat_template(
            chat_messages(work.question, image), add_generation_prompt=True, tokenize=False
        )
        inputs = self.processor(
            images=[[image]] * shape.generations, text=[text] * shape.generations, padding=True, return_tensors="pt"
        )
        arguments = {name: inputs[name] for name in ("pixel_values", "image_grid_thw")}
        if (positions or ("1d" if train else "rotary 3d")) != "1d":
            kinds = inputs["mm_token_type_ids"]
            arguments["mm_token_type_ids"] = torch.cat([kinds, kinds.new_zeros(work.completion_ids.shape)], dim=1)
        input_ids = torch.cat([inputs["input_ids"], work.completion_ids], dim=1)
        attention_mask = torch.cat([inputs["attention_mask"], work.completion_mask.long()], dim=1)
        mask = work.completion_mask

        def run() -> Tensor:
            with torch.set_grad_enabled(train):
                logprobs, _ = trainer._get_per_token_logps_and_entropies(
                    self.policy,
                    input_ids,
                    attention_mask,
                    shape.completion,
                    num_images=[1] * shape.generations,
                    **arguments,
                )
                if train:
                    (-(logprobs * mask).sum() / mask.sum()).backward()
            return logprobs.detach() * mask

        return run

    def step(self, shape: Shape, masked: str, checkpointing: bool = False) -> Callable[[], int]:
        """Generation, reference, both views and the update, as `Trainer.train` calls them; `masked` is always live.

        `checkpointing`: with activation checkpointing, which is TRL's default.
        """
        if masked != "live":
            raise ValueError("TRL computes the masked view with gradient at every update: it has no frozen one")
        trainer = self._trainer(shape)
        trainer.current_gradient_accumulation_steps = 1  # what `train` sets before its first step
        optimizer = trainer.create_optimizer()
        rows = next(iter(trainer.get_train_dataloader()))

        def run() -> int:
            if checkpointing:
                self.policy.gradient_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
            trainer.training_step(self.policy, rows, None)
            self.policy.gradient_checkpointing_disable()
            trainer.accelerator.clip_grad_norm_(self.policy.parameters(), trainer.args.max_grad_norm)
            optimizer.step()
            self.policy.zero_grad()
            return int(trainer._buffered_inputs[0]["completion_mask"].sum())

        return run
