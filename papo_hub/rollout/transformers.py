"""Sampling in the model's own forward pass: each prompt computed once, then one token a step for all completions.

`generate` of transformers draws from the global random state; here every draw comes from what is passed in. A completion
that has ended leaves the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from papo_hub.batch import Completion, Prompt
from papo_hub.logprobs import selected_logprobs
from papo_hub.rewards import last_boxed
from papo_hub.rollout.base import Sampling
from papo_hub.rollout.decoding import start_decoding

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

    def prepare(self) -> None:
        """Nothing to do: the model is the policy itself."""

    @torch.inference_mode()
    def generate(
        self,
        prompts: list[Prompt],
        num_generations: int,
        sampling: Sampling,
        generator: torch.Generator | Sequence[int],
        view: Literal["clean", "masked"] = "clean",
        given_up: Callable[[], bool] = lambda: False,
    ) -> list[Completion]:
        """See `RolloutEngine.generate`. A generator lives on the model's device.

        Each completion carries its tokens' log-probs under the model, whatever the sampling left out of the draw.
        """
        was_training = self.model.training
        self.model.eval()
        completions: list[list[Completion]] = [[] for _ in prompts]
        by_length = sorted(range(len(prompts)), key=lambda i: prompts[i].length)  # like with like
        at_once = max(self.batch_size // num_generations, 1)
        for start in range(0, len(prompts), at_once):
            if given_up():
                break
            chunk = by_length[start : start + at_once]
            rows = [getattr(prompts[i], view) for i in chunk]
            randomness = generator
            if not isinstance(generator, torch.Generator):
                randomness = [seed for i in chunk for seed in generator[i * num_generations :][:num_generations]]
            decoded = self._decode(rows, num_generations, sampling, randomness, given_up)
            for place, completion in enumerate(decoded):
                completions[chunk[place // num_generations]].append(completion)
        self.model.train(was_training)
        return [completion for group in completions for completion in group]

    def rest(self) -> None:
        """Nothing to give back."""

    def close(self) -> None:
        """Nothing to end."""

    def _decode(self, rows: list[dict[str, Tensor]], num_generations: int, sampling: Sampling, generator, given_up):
        """The completions of each prompt, in order. One transfer to the host a token."""
        device = next(self.model.parameters()).device
        decoder = start_decoding(self.model, rows, num_generations)
        count = len(rows) * num_generations
        process, heights = self._processors(sampling), _heights(generator, sampling.max_completion_length, device)
        never = torch.tensor(self.suppressed, dtype=torch.long, device=device)
        not_yet = torch.tensor(self.suppressed + self.stop_ids, dtype=torch.long, device=device)
        ids: list[list[int]] = [[] for _ in range(count)]
        finished = [False] * count
        wide = torch.promote_types(decoder.logits.dtype, torch.float32)
        logprobs = torch.zeros(count, sampling.max_completion_length, dtype=wide, device=device)
        active, index = list(range(count)), torch.arange(count, device=device)
        for step in range(sampling.max_completion_length):
            logits = decoder.logits.to(wide)
            excluded = not_yet if step < sampling.min_completion_length else never
            scores = process(None, logits.index_fill(1, excluded, -torch.inf))  # top-p chooses among what may come
            tokens = scores.argmax(-1) if sampling.temperature == 0 else draw(scores, heights(active, step))
            chosen = selected_logprobs(logits[:, None], tokens[:, None], sampling.temperature or 1.0)
            logprobs[index, step] = chosen[:, 0]
            for row, token in zip(active, tokens.tolist(), strict=True):
                ids[row].append(token)
                finished[row] = token in self.stop_ids or (
                    sampling.stop_on_boxed and holds_box(self.tokenizer, ids[row])
                )
            going = [place for place, row in enumerate(active) if not finished[row]]
            if not going or step + 1 == sampling.max_completion_length or given_up():
                break
            if len(going) < len(active):
                decoder.keep(going)
                active = [active[place] for place in going]
                tokens, index = tokens[going], index[going]
            decoder.step(tokens)
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        logprobs = logprobs.tolist()
        return [
            Completion(tokens, text, done, values[: len(tokens)])
            for tokens, text, done, values in zip(ids, texts, finished, logprobs, strict=True)
        ]

    def _processors(self, sampling: Sampling) -> LogitsProcessorList:
        process = LogitsProcessorList()
        if sampling.temperature not in (0, 1):
            process.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_p < 1:
            process.append(TopPLogitsWarper(sampling.top_p))
        return process


def holds_box(tokenizer, ids: list[int]) -> bool:
    """Whether the last token closed a `\\boxed{...}`."""
    return "}" in tokenizer.decode(ids[-1:]) and last_boxed(tokenizer.decode(ids)) is not None


def draw(scores: Tensor, heights: Tensor) -> Tensor:
    """One token of softmax(scores) a row, by a uniform random number (A, 1) each. (A, V) → (A,).

    By the inverse of the distribution function, which takes one random number where torch.multinomial takes V. In
    float64, in which the sum over a vocabulary loses no token; one of probability 0 is never drawn.
    """
    reached = scores.softmax(-1, dtype=torch.float64).cumsum(-1)
    return torch.searchsorted(reached, heights * reached[:, -1:], right=True)[:, 0]


def _heights(
    randomness: torch.Generator | Sequence[int], length: int, device: torch.device
) -> Callable[[list[int], int], Tensor]:
    """(completions, step) → their uniform random numbers (A, 1). With a seed a completion, each has `length` numbers of
    its own, whichever others are decoded beside it."""
    if isinstance(randomness, torch.Generator):
        options = {"dtype": torch.float64, "device": device, "generator": randomness}
        return lambda rows, step: torch.rand(len(rows), 1, **options)
    own = [
        torch.rand(length, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) for seed in randomness
    ]
    table = torch.stack(own).to(device)
    return lambda rows, step: table[rows, step, None]


def stop_token_ids(model: torch.nn.Module, tokenizer) -> set[int]:
    """The end-of-sequence tokens of the model's generation config and of the tokenizer."""
    configured = getattr(model.generation_config, "eos_token_id", None) if model.generation_config is not None else None
    ids = configured if isinstance(configured, (list, tuple)) else [configured]
    return {int(i) for i in [*ids, tokenizer.eos_token_id] if i is not None}


def image_token_ids(config) -> set[int]:
    """The ids that stand for images or videos, which must not be sampled."""
    return {int(value) for name in IMAGE_TOKENS if isinstance(value := getattr(config, name, None), int)}
