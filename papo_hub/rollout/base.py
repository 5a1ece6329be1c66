"""What an engine that samples completions must do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from papo_hub.batch import Completion, Prompt


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn."""

    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0
    max_completion_length: int = 2048  # tokens
    min_completion_length: int = 0  # tokens before an end-of-sequence token may come
    stop_on_boxed: bool = False  # end a completion once it holds a complete \boxed{...}


class RolloutEngine(Protocol):
    def prepare(self) -> None:
        """Completions are wanted: those that come are of the policy's weights as they are now. Runs on every rank."""
        ...

    def generate(
        self,
        prompts: list[Prompt],
        num_generations: int,
        sampling: Sampling,
        generator: torch.Generator | Sequence[int],
        view: Literal["clean", "masked"] = "clean",
        given_up: Callable[[], bool] = lambda: False,
    ) -> list[Completion]:
        """P · G completions, prompt by prompt. All randomness comes from `generator`, or from P · G seeds, one a
        completion: what is drawn for it then depends on its seed alone, not on what is sampled beside it. Once `given_up`
        says that nobody wants them any more, it returns soon, with whatever there is."""
        ...

    def rest(self) -> None:
        """No completions are wanted until the policy may have changed: give memory back."""
        ...

    def close(self) -> None:
        """No completions are wanted any more."""
        ...
