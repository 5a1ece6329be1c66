"""What of a run moves from step to step: all that a checkpoint holds besides the weights, and how it is put back."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from papo_hub.checkpoint import load_optimizer, load_state
from papo_hub.config import TrainConfig
from papo_hub.guard import Guard
from papo_hub.memory import MicroBatchLimit
from papo_hub.preparation import load_model
from papo_hub.sharding import divided_like
from papo_hub.stream import PromptStream

PARTS = ("scheduler", "stream", "guard", "limit")
NUMBERS = ("skipped_updates", "gamma_factor")


@dataclass
class RunState:
    """The moving parts of a run, each with a `state_dict` of its own, and its numbers."""

    model: torch.nn.Module  # bare
    optimizer: Any  # of `trainable(model)`, in its order
    scheduler: Any
    stream: PromptStream
    guard: Guard
    limit: MicroBatchLimit
    step: int = 0  # rollout batches finished
    skipped_updates: int = 0  # in a row
    gamma_factor: float = 1.0  # halved by the guard

    def __post_init__(self) -> None:
        self._beginning = copy.deepcopy(self.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """As JSON; without the step, the weights and the optimizer's moments, which a checkpoint keeps elsewhere."""
        parts = {name: getattr(self, name).state_dict() for name in PARTS}
        return parts | {name: getattr(self, name) for name in NUMBERS}

    def load(self, checkpoint: Path | None) -> None:
        """Put everything but the weights back to where a checkpoint stands; None: to the beginning of the run."""
        if checkpoint is None:
            self.step, state = 0, copy.deepcopy(self._beginning)
            self.optimizer.state.clear()
        else:
            state = load_state(checkpoint)
            self.step = state["step"]
            load_optimizer(checkpoint, self.model, self.optimizer)
        for name in PARTS:
            getattr(self, name).load_state_dict(state[name])
        for name in NUMBERS:
            setattr(self, name, state[name])
        for group, rate in zip(self.optimizer.param_groups, self.scheduler.get_last_lr(), strict=True):
            group["lr"] = rate  # a schedule that is loaded does not set it until its next step

    def go_back(self, checkpoint: Path | None, config: TrainConfig) -> None:
        """To an earlier checkpoint of the same run, weights included, with half of γ from there on."""
        lowered = self.gamma_factor / 2
        own = self.model.state_dict()
        loaded = load_model(config, checkpoint).state_dict()
        self.model.load_state_dict({name: divided_like(value, own[name]) for name, value in loaded.items()})
        self.load(checkpoint)
        self.gamma_factor = lowered
