"""How problems are put to a model and what counts: the paper's protocol is the default."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import get_args

from papo_hub.config import ConfigError
from papo_hub.evaluation.views import BLANK, CLEAN, mask_ratio, mask_view
from papo_hub.rewards import Grader
from papo_hub.rollout import Sampling

GRADERS = get_args(Grader)
VIEWS = (CLEAN, mask_view(0.3), mask_view(0.6), mask_view(0.9), BLANK)


@dataclass(frozen=True)
class Protocol:
    """k answers a problem at temperature 1, graded as mathematics (PAPO, arXiv 2507.06448, section 4), and how the same
    problems fare where less of the image is shown. Raises ConfigError for what cannot be done."""

    k: int = 8  # answers to the clean image
    view_k: int = 2  # answers to each other view: a mean over all problems needs fewer
    views: tuple[str, ...] = VIEWS
    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0
    max_completion_length: int | None = None  # tokens; None: the benchmark's
    max_prompt_length: int = 8192  # tokens; a longer prompt is skipped
    mask_patch_size: int = 14  # pixels
    seed: int = 42
    grader: str = "math"
    batch_size: int = 64  # answers decoded together
    max_tokens: int = 16384  # of a forward pass that measures the perception KL

    def __post_init__(self) -> None:
        for name in ("k", "view_k", "max_prompt_length", "mask_patch_size", "batch_size", "max_tokens"):
            _refuse(getattr(self, name) < 1, f"{name}: {getattr(self, name)} must be at least 1.")
        _refuse(
            self.max_completion_length is not None and self.max_completion_length < 1,
            f"max_completion_length: {self.max_completion_length} must be at least 1.",
        )
        _refuse(
            not 0 <= self.temperature < math.inf,
            f"temperature: {self.temperature} must be a finite number of at least 0 (0: greedy).",
        )
        _refuse(not 0 < self.top_p <= 1, f"top_p: {self.top_p} must lie in (0, 1].")
        for name in ("k", "view_k"):
            _refuse(
                self.temperature == 0 and getattr(self, name) > 1,
                f"{name}: {getattr(self, name)}, but greedy answers (temperature: 0) are all the same; "
                f"write {name}: 1, or a temperature above 0.",
            )
        check_grader(self.grader)
        _refuse(CLEAN not in self.views, "views: the clean one must be among them; the others are compared with it.")
        distinct = {mask_ratio(view) for view in self.views}  # mask-0.60 is mask-0.6
        _refuse(len(distinct) < len(self.views), f"views: {' '.join(self.views)} names one twice.")

    @property
    def kl_view(self) -> str | None:
        """The view that the perception KL compares with the clean one: the paper's ratio, or the nearest to it."""
        masked = [view for view in self.views if mask_ratio(view)]
        return min(masked, key=lambda view: abs(mask_ratio(view) - 0.6), default=None)

    def samples(self, view: str) -> int:
        return self.k if view == CLEAN else self.view_k

    def sampling(self, benchmark: Sampling) -> Sampling:
        """A benchmark's sampling, at this temperature and with this limit of length."""
        limit = self.max_completion_length or benchmark.max_completion_length
        return replace(benchmark, temperature=self.temperature, top_p=self.top_p, max_completion_length=limit)


def check_grader(name: str) -> None:
    """Raises ConfigError for one that is unknown."""
    _refuse(name not in GRADERS, f"grader: {name!r} is none of {', '.join(GRADERS)}.")


def _refuse(condition: bool, message: str) -> None:
    if condition:
        raise ConfigError(message)
