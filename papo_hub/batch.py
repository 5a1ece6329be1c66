"""What flows through a training step. This is the shape legend of the whole project.

    P  problems in a batch            G  completions of one problem (its group)
    B  = P * G completions            S  prompt tokens (image tokens included)
    T  completion tokens (padded)     V  vocabulary

Tensors of a batch are ordered problem by problem: completion i belongs to problem i // G. What is known without the model
lies on the CPU (tokens, masks, lengths), so that nothing waits for a device to find out a shape.
`completion_mask` (B, T) is True exactly on the trained tokens; everything to the right of a completion is padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """One usable problem: what a row of a dataset becomes once it has been checked."""

    id: str
    problem: str  # the text, with one "<image>" placeholder an image
    answer: str
    images: tuple[Image.Image, ...]  # RGB, in the order of their placeholders
    tags: dict[str, str] = field(default_factory=dict)  # e.g. {"dependence": "high"}; only ever used to group results


@dataclass(frozen=True)
class Prompt:
    """A sample as the model reads it, in both views.

    `clean` is what the processor returns for one row: `input_ids` (1, S), `attention_mask` (1, S), and where there are
    images `pixel_values`, `image_grid_thw`, `mm_token_type_ids` (1, S). `masked` and `noisy` differ in the pixel values
    alone and are None where nothing asks for that view.
    """

    sample: Sample
    clean: dict[str, Tensor]
    masked: dict[str, Tensor] | None = None
    masked_images: tuple[Image.Image, ...] = ()
    noisy: dict[str, Tensor] | None = None
    text_ids: tuple[int, ...] = ()  # the tokens with one an image, for an engine that reads the images itself
    turn: tuple[str | None, ...] = ()  # the user's turn, for one that writes the chat itself: texts, None for an image

    @property
    def length(self) -> int:
        """S, in tokens."""
        return self.clean["input_ids"].shape[1]


@dataclass(frozen=True)
class Completion:
    """One sampled answer."""

    token_ids: list[int]  # without padding; ends in an end-of-sequence token unless it was cut
    text: str  # decoded, special tokens dropped
    finished: bool  # False where the length limit cut it
    logprobs: list[float] | None = None  # of the tokens, under the model that sampled them and its temperature


@dataclass(frozen=True)
class Batch:
    """B completions with everything about them that stays fixed during the update."""

    prompts: list[Prompt]  # the P prompts
    prompt_index: Tensor  # (B,) which prompt each completion answers
    completions: list[Completion]  # B
    completion_ids: Tensor  # (B, T)
    completion_mask: Tensor  # (B, T) bool
    advantages: Tensor  # (B,)
    rewards: dict[str, Tensor]  # each (B,): "mean" (the weighted sum), "accuracy", "format"
    old_logprobs: Tensor | None = None  # (B, T); None: on-policy, the detached current ones serve
    reference_logprobs: Tensor | None = None  # (B, T); None where beta is 0
    masked_logprobs: Tensor | None = None  # (B, T); None where they are made at each update or nothing needs them
    noisy_logprobs: Tensor | None = None  # likewise
    sampled_logprobs: Tensor | None = None  # (B, T) in the engine that sampled; None where that is the policy itself
    token_weights: Tensor | None = None  # (B, T) of the advantages; None: all 1
    perception_weights: Tensor | None = None  # (B,) of the perception KL; None: all 1

    def __len__(self) -> int:
        return len(self.completions)

    def select(self, rows: slice) -> Batch:
        """The completions `rows`, their padding cut to the longest among them."""
        mask = self.completion_mask[rows]
        width = max(int(mask.sum(-1).max()), 1)

        def cut(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[rows, :width]

        return replace(
            self,
            prompt_index=self.prompt_index[rows],
            completions=self.completions[rows],
            completion_ids=self.completion_ids[rows, :width],
            completion_mask=mask[:, :width],
            advantages=self.advantages[rows],
            rewards={name: values[rows] for name, values in self.rewards.items()},
            old_logprobs=cut(self.old_logprobs),
            reference_logprobs=cut(self.reference_logprobs),
            masked_logprobs=cut(self.masked_logprobs),
            noisy_logprobs=cut(self.noisy_logprobs),
            sampled_logprobs=cut(self.sampled_logprobs),
            token_weights=cut(self.token_weights),
            perception_weights=None if self.perception_weights is None else self.perception_weights[rows],
        )

    def micros(
        self, max_tokens: int, max_completions: int | None = None, shared: bool = True
    ) -> Iterator[tuple[Batch, bool]]:
        """Consecutive micro-batches, each as large as both limits allow (a completion above them goes alone), and with
        whether it is the last. `shared`: the tokens of a prompt count once a micro-batch, not once a completion."""
        owners = self.prompt_index.tolist()
        lengths = [len(completion.token_ids) for completion in self.completions]
        prompts = [prompt.length for prompt in self.prompts]
        for rows in micro_slices(owners, prompts, lengths, max_tokens, max_completions, shared):
            yield self.select(rows), rows.stop == len(self)

    def tokens(self, shared: bool = True) -> int:
        """Tokens of the completions and their prompts; `shared`: a prompt counts once, not once a completion."""
        owners = self.prompt_index.tolist()
        prompts = sum(self.prompts[i].length for i in (set(owners) if shared else owners))
        return prompts + sum(len(completion.token_ids) for completion in self.completions)

    def rows(self, view: str = "clean") -> list[dict[str, Tensor]]:
        """The processor's output for each completion's prompt, in the given view ("clean", "masked", "noisy")."""
        return [getattr(self.prompts[i], view) for i in self.prompt_index.tolist()]


def micro_slices(
    owners: list[int],
    prompt_lengths: list[int],
    lengths: list[int],
    max_tokens: int,
    max_completions: int | None = None,
    shared: bool = True,
) -> Iterator[slice]:
    """Consecutive completions within both limits: completion i has lengths[i] tokens and answers prompt owners[i].

    `shared`: the tokens of a prompt count once a slice, not once a completion. A completion above the limits goes alone.
    """
    start, tokens, present = 0, 0, set()
    for i, owner in enumerate(owners):
        added = lengths[i] + (0 if shared and owner in present else prompt_lengths[owner])
        if i > start and (tokens + added > max_tokens or i - start == max_completions):
            yield slice(start, i)
            start, tokens, present = i, 0, set()
            added = lengths[i] + prompt_lengths[owner]
        tokens += added
        present.add(owner)
    yield slice(start, len(owners))


def pad_completions(completions: list[Completion], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Right-padded ids (B, T) and their mask (B, T)."""
    width = max((len(completion.token_ids) for completion in completions), default=0)
    ids = torch.full((len(completions), max(width, 1)), pad_token_id, dtype=torch.long)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for row, completion in enumerate(completions):
        length = len(completion.token_ids)
        ids[row, :length] = torch.tensor(completion.token_ids, dtype=torch.long)
        mask[row, :length] = True
    return ids, mask
