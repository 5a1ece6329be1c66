"""A step between its rollout and its last update, as a value: what the loop works on, and what a run that is stopped in
the middle of it takes along.

    unfinished-00000.safetensors    of each process: its share of the batch, everything frozen in it, the sums so far
    unfinished-00000.json           the texts, the numbers, and which prompts these are

Prompts are not written: the data stream gives them again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from papo_hub.batch import Batch, Completion, Prompt
from papo_hub.checkpoint import CheckpointError
from papo_hub.stream import PromptStream

FROZEN = (
    "completion_ids",
    "completion_mask",
    "advantages",
    "old_logprobs",
    "reference_logprobs",
    "masked_logprobs",
    "noisy_logprobs",
    "sampled_logprobs",
    "token_weights",
    "perception_weights",
)


@dataclass
class StepUnderWay:
    """This process's share of a rollout batch, and how far its updates have come."""

    batch: Batch
    drawn: int  # prompts that were taken from the stream for it, over all processes
    places: list[int]  # of the batch's prompts among those that this process took
    metrics: dict[str, Any]  # of its making
    updates: int = 0  # optimizer steps made from it
    sums: dict[str, Tensor] = field(default_factory=dict)  # token sums of these updates
    norms: list[float] = field(default_factory=list)  # their gradients' norms, where finite

    def remaining(self, updates: int) -> list[Batch]:
        """The parts that no update was made from yet, of `updates` equal ones; groups stay whole."""
        size = len(self.batch) // updates
        return [self.batch.select(slice(i * size, (i + 1) * size)) for i in range(self.updates, updates)]

    def add(self, sums: dict[str, Tensor]) -> None:
        """Count one more update, with its token sums."""
        self.updates += 1
        self.sums = {name: self.sums.get(name, 0) + value for name, value in sums.items()}

    def save(self, folder: Path, rank: int) -> None:
        """Write this process's files."""
        batch = self.batch
        tensors = {name: value for name in FROZEN if (value := getattr(batch, name)) is not None}
        tensors |= {f"rewards.{name}": value for name, value in batch.rewards.items()}
        tensors |= {f"sums.{name}": value for name, value in self.sums.items()}
        content = {
            "texts": [completion.text for completion in batch.completions],
            "finished": [completion.finished for completion in batch.completions],
            **{name: getattr(self, name) for name in ("drawn", "places", "metrics", "updates", "norms")},
        }
        folder.mkdir(parents=True, exist_ok=True)
        files = _files(folder, rank)
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, files[0])
        files[1].write_text(json.dumps(content), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, stream: PromptStream, rank: int, world_size: int, device: torch.device) -> StepUnderWay:
        """What `save` wrote. `stream` stands where it stood before the step, and is moved as the step moved it.

        Raises CheckpointError where another number of processes wrote it.
        """
        written = len(list(folder.glob("unfinished-*.json")))
        if written != world_size:
            raise CheckpointError(
                f"resume_from_checkpoint: {folder} was left by {written} processes in the middle of a step, with a share "
                f"of its completions in each; {world_size} cannot take them over. Start {written} processes, or go on "
                "from a checkpoint between two steps."
            )
        tensor_file, content_file = _files(folder, rank)
        tensors = {name: value.to(device) for name, value in load_file(tensor_file).items()}
        content = json.loads(content_file.read_text(encoding="utf-8"))
        taken: list[Prompt] = stream.take(content["drawn"], rank, world_size)
        prompts = [taken[place] for place in content["places"]]
        ids, mask = (tensors[name].cpu() for name in ("completion_ids", "completion_mask"))
        completions = [
            Completion(row[kept].tolist(), text, finished)
            for row, kept, text, finished in zip(ids, mask, content["texts"], content["finished"], strict=True)
        ]
        batch = Batch(
            prompts=prompts,
            prompt_index=torch.arange(len(prompts)).repeat_interleave(len(completions) // len(prompts)),
            completions=completions,
            rewards=_below(tensors, "rewards"),
            **{name: tensors.get(name) for name in FROZEN} | {"completion_ids": ids, "completion_mask": mask},
        )
        batch.rewards.update({name: value.cpu() for name, value in batch.rewards.items()})
        kept = {f.name: content[f.name] for f in fields(cls) if f.name in content}
        return cls(batch=batch, sums=_below(tensors, "sums"), **kept)


def _files(folder: Path, rank: int) -> tuple[Path, Path]:
    return folder / f"unfinished-{rank:05d}.safetensors", folder / f"unfinished-{rank:05d}.json"


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}."): value for name, value in tensors.items() if name.startswith(f"{prefix}.")}
