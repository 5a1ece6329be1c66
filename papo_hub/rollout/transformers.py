"""Batched sampling with a KV cache, in the model's own forward pass.

The prompts of a chunk are computed once and their cache is repeated for the G completions; then one token a step for all.
`generate` of transformers draws from the global random state; here every draw comes from the generator that is passed in.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from transformers import LogitsProcessorList, SuppressTokensLogitsProcessor, TemperatureLogitsWarper, TopPLogitsWarper

from papo_hub.batch import Completion, Prompt
from papo_hub.logprobs import prompt_inputs
from papo_hub.rollout.base import Sampling

# A sampled image token has no image behind it and breaks the next forward pass.
IMAGE_TOKENS = (
    "image_token_id",
    "image_token_index",
    "video_token_id",
    "video_token_index",
    "vision_start_token_id",
    "vision_end_token_id",
)


class TransformersEngine:
    """Samples from a Hugging Face model.

    Args:
        model: the bare model (not wrapped by accelerate).
        tokenizer: decodes, and adds its end-of-sequence token to the model's.
        batch_size: completions decoded together.
    """

    def __init__(self, model: torch.nn.Module, tokenizer, batch_size: int = 64) -> None:
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.stop_ids = sorted(stop_token_ids(model, tokenizer))
        self.suppressed = sorted(image_token_ids(model.config))

    @torch.no_grad()
    def generate(
        self,
        prompts: list[Prompt],
        num_generations: int,
        sampling: Sampling,
        generator: torch.Generator,
        view: Literal["clean", "masked"] = "clean",
    ) -> list[Completion]:
        """See `RolloutEngine.generate`. The generator lives on the model's device."""
        was_training = self.model.training
        self.model.eval()
        completions = []
        per_chunk = max(self.batch_size // num_generations, 1)
        for start in range(0, len(prompts), per_chunk):
            rows = [getattr(prompt, view) for prompt in prompts[start : start + per_chunk]]
            ids, lengths, finished = self._decode(rows, num_generations, sampling, generator)
            for row, length, done in zip(ids, lengths, finished, strict=True):
                tokens = row[:length]
                text = self.tokenizer.decode(tokens, skip_special_tokens=True)
                completions.append(Completion(tokens, text, done))
        self.model.train(was_training)
        return completions

    def _decode(self, rows: list[dict[str, Tensor]], num_generations: int, sampling: Sampling, generator) -> tuple:
        """Ids (lists), lengths and whether each of the len(rows) · G completions ended by itself."""
        device = next(self.model.parameters()).device
        inputs, position = prompt_inputs(self.model, rows)
        output = self.model(**inputs, use_cache=True, logits_to_keep=1)
        cache, logits = output.past_key_values, output.logits[:, -1]
        cache.batch_repeat_interleave(num_generations)
        logits = logits.repeat_interleave(num_generations, dim=0)
        attention = inputs["attention_mask"].repeat_interleave(num_generations, dim=0)
        position = position.repeat_interleave(num_generations, dim=0)

        process = self._processors(sampling, device)
        stops = torch.tensor(self.stop_ids, device=device)
        finished = torch.zeros(len(logits), dtype=torch.bool, device=device)
        lengths = torch.zeros(len(logits), dtype=torch.long, device=device)
        sampled = []
        for _ in range(sampling.max_completion_length):
            scores = process(None, logits.float())
            if sampling.temperature == 0:
                token = scores.argmax(-1, keepdim=True)
            else:
                token = torch.multinomial(scores.softmax(-1), 1, generator=generator)
            sampled.append(token)
            lengths += ~finished
            finished = finished | torch.isin(token[:, 0], stops)
            if finished.all():
                break
            attention = torch.cat([attention, attention.new_ones(len(attention), 1)], dim=1)
            output = self.model(
                input_ids=token, attention_mask=attention, position_ids=position, past_key_values=cache, use_cache=True
            )
            logits, position = output.logits[:, -1], position + 1
        return torch.cat(sampled, dim=1).tolist(), lengths.tolist(), finished.tolist()

    def _processors(self, sampling: Sampling, device) -> LogitsProcessorList:
        process = LogitsProcessorList()
        if self.suppressed:
            process.append(SuppressTokensLogitsProcessor(self.suppressed, device=device))
        if sampling.temperature not in (0, 1):
            process.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_p < 1:
            process.append(TopPLogitsWarper(sampling.top_p))
        return process


def stop_token_ids(model: torch.nn.Module, tokenizer) -> set[int]:
    """The end-of-sequence tokens of the model's generation config and of the tokenizer."""
    configured = getattr(model.generation_config, "eos_token_id", None) if model.generation_config is not None else None
    ids = configured if isinstance(configured, (list, tuple)) else [configured]
    return {int(i) for i in [*ids, tokenizer.eos_token_id] if i is not None}


def image_token_ids(config) -> set[int]:
    """The ids that stand for images or videos, which must not be sampled."""
    return {int(value) for name in IMAGE_TOKENS if isinstance(value := getattr(config, name, None), int)}
