"""The parts of PAPO as accelerate users expect them: dataclass plugins, and an `Accelerator` that carries them.

Every plugin works alone in any accelerate loop. A field is, in this order: the explicit argument, the environment
variable `PAPO_<FIELD>`, the default.

    accelerator = PapoAccelerator(perception_plugin=PerceptionPlugin(gamma=0.02))
    objective = accelerator.perception_plugin.objective(PAPO_G)
"""

from __future__ import annotations

import contextlib
import datetime
import os
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs, KwargsHandler, broadcast_object_list
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy

from papo_hub.config import ConfigError, TrainConfig, check_perception, check_ranges, check_rollout, coerce
from papo_hub.masking import DiffusionNoise, RandomPatchMask, ViewMaker
from papo_hub.objectives import Counts, Objective, Term, Weights, gamma_at
from papo_hub.rewards import accuracy_rewards, combine, format_reward
from papo_hub.rollout import RolloutEngine, Sampling, TransformersEngine, VllmEngine, VllmServerEngine
from papo_hub.semantic_masking import SemanticPatchMask
from papo_hub.sharding import is_sharded

# How long processes wait for one that is there but does not come: the main one may save, measure or download meanwhile.
SUPPORTED = (
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.FSDP,
)
PATIENCE = datetime.timedelta(hours=1)
T = TypeVar("T")
DEFAULT_WEIGHTS = Weights()  # the paper's clip range, no reference KL


@dataclass
class _Plugin(KwargsHandler):
    """Fields left at None are filled from the environment, then from the recipe's default of the same name."""

    def __post_init__(self) -> None:
        defaults = {f.name: f.default for f in fields(TrainConfig)}
        hints = typing.get_type_hints(TrainConfig)
        for f in fields(self):
            if getattr(self, f.name) is None:
                given = os.environ.get(f"PAPO_{f.name.upper()}")
                value = defaults[f.name] if given is None else coerce(f"PAPO_{f.name.upper()}", given, hints[f.name])
                setattr(self, f.name, value)

    @classmethod
    def from_config(cls, config: TrainConfig) -> Any:
        """The plugin with the values of a recipe, which has been checked; the environment plays no part."""
        plugin = cls.__new__(cls)
        for f in fields(cls):
            setattr(plugin, f.name, getattr(config, f.name))
        return plugin


@dataclass
class PerceptionPlugin(_Plugin):
    """The perception terms: γ and its schedule, η1, η2, what of the divergence counts, and the views it needs."""

    gamma: float = None
    gamma_end: float = None
    gamma_annealing_ratio: float = None
    eta_clean: float = None
    eta_masked: float = None
    robustness: float = None
    estimator: str = None
    divergence: str = None
    perception_weighting: str = None
    perception_top_p: float = None
    perception_clip: float = None
    token_weighting: str = None
    noise_level: float = None
    mask_strategy: str = None
    mask_encoder: str = None
    mask_ratio: float = None
    mask_patch_size: int = None
    masked_logprobs: str = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_perception(self)

    @property
    def views(self) -> tuple[str, ...]:
        """The views besides the clean one that the terms of the objective read: "masked", "noisy"."""
        needed = {"masked": self.gamma > 0 or self.eta_masked > 0, "noisy": self.robustness > 0}
        return tuple(name for name, is_needed in needed.items() if is_needed)

    @property
    def frozen_views(self) -> tuple[str, ...]:
        """Those whose log-probs are computed once a rollout."""
        frozen = () if self.live else self.views[1:] if self.exact else self.views
        return tuple(dict.fromkeys([*(["masked"] if self.weighs_tokens else []), *frozen]))

    @property
    def weighs_tokens(self) -> bool:
        """Whether the advantages of the policy loss count by the tokens' dependence on the image."""
        return self.token_weighting != "none"

    @property
    def mask(self) -> ViewMaker | None:
        """(image, generator) → masked image; None where nothing needs the masked view."""
        if not ("masked" in self.views or self.weighs_tokens):
            return None
        if self.mask_strategy == "semantic":
            return SemanticPatchMask(self.mask_encoder, self.mask_patch_size, self.mask_ratio)
        return RandomPatchMask(self.mask_patch_size, self.mask_ratio)

    @property
    def noise(self) -> ViewMaker | None:
        """(image, generator) → image with noise; None where nothing needs the noisy view."""
        return DiffusionNoise(self.noise_level) if "noisy" in self.views else None

    @property
    def exact(self) -> bool:
        """Whether divergence and entropies are sums over the vocabulary."""
        return "masked" in self.views and self.estimator == "exact"

    @property
    def live(self) -> bool:
        """Whether the log-probs of the other views carry a gradient."""
        return bool(self.views) and self.masked_logprobs == "live"

    def objective(
        self,
        algorithm: tuple[Term, ...],
        policy_weights: Weights = DEFAULT_WEIGHTS,
        step: int = 0,
        max_steps: int = 1,
        gamma_factor: float = 1.0,
    ) -> Objective:
        """The algorithm with this plugin's weights as they stand at a step (0-based).

        `gamma_factor` scales γ alone: the entropy terms, which hold the divergence back, keep their weight.
        """
        full = replace(
            policy_weights,
            gamma=self.gamma,
            eta_clean=self.eta_clean,
            eta_masked=self.eta_masked,
            estimator="k2" if self.estimator == "sampled_k2" else "k3",
            robustness=self.robustness,
            perception_top_p=self.perception_top_p,
            perception_clip=self.perception_clip,
        )
        gamma = gamma_at(step, max_steps, self.gamma, self.gamma_end, self.gamma_annealing_ratio)
        weights = full.discounted(gamma)
        return Objective(algorithm, replace(weights, gamma=weights.gamma * gamma_factor))


@dataclass
class RolloutPlugin(_Plugin):
    """How completions are sampled."""

    num_generations: int = None
    temperature: float = None
    top_p: float = None
    max_prompt_length: int = None
    max_completion_length: int = None
    min_completion_length: int = None
    stop_on_boxed: bool = None
    rollout_batch_size: int = None
    rollout_engine: str = None
    vllm_mode: str = None
    vllm_server_base_url: str = None
    vllm_server_weights_folder: str = None
    vllm_gpu_memory_utilization: float = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rollout(self)

    @property
    def sampling(self) -> Sampling:
        return Sampling(
            self.temperature, self.top_p, self.max_completion_length, self.min_completion_length, self.stop_on_boxed
        )

    def engine(self, model: torch.nn.Module, processor: Any, dtype: torch.dtype | None = None) -> RolloutEngine:
        """An engine that samples from the (unwrapped) model; `dtype`: that vLLM computes in, None: the weights'.

        Raises ConfigError for vLLM where it is not installed, or no server answers.
        """
        if self.rollout_engine == "transformers":
            return TransformersEngine(model, processor.tokenizer, self.rollout_batch_size)
        if self.vllm_mode == "server":
            return VllmServerEngine(
                model, processor, self.vllm_server_base_url, self.vllm_server_weights_folder, self.rollout_batch_size
            )
        length = self.max_prompt_length + self.max_completion_length
        return VllmEngine(model, processor, length, self.rollout_batch_size, self.vllm_gpu_memory_utilization, dtype)


@dataclass
class RewardPlugin(_Plugin):
    """(1 - format_weight) · accuracy + format_weight · format."""

    format_weight: float = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, shares=("format_weight",))

    def __call__(self, responses: list[str], answers: list[str]) -> dict[str, Tensor]:
        """ "mean" (the weighted sum), "accuracy" and "format", each (B,) float32."""
        accuracy = accuracy_rewards(responses, answers)
        formats = [format_reward(response) for response in responses]
        total = [combine(a, f, self.format_weight) for a, f in zip(accuracy, formats, strict=True)]
        return {"mean": torch.tensor(total), "accuracy": torch.tensor(accuracy), "format": torch.tensor(formats)}


class PapoAccelerator(Accelerator):
    """An `Accelerator` with the PAPO plugins: `perception_plugin`, `rollout_plugin`, `reward_plugin`.

    Raises ValueError for `gradient_accumulation_steps` other than 1: the denominators already span the micro-batches, and
    `Accelerator.backward` would divide once more; ConfigError for what divides a model otherwise than FSDP2.
    """

    def __init__(
        self,
        *args: Any,
        perception_plugin: PerceptionPlugin | None = None,
        rollout_plugin: RolloutPlugin | None = None,
        reward_plugin: RewardPlugin | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("kwargs_handlers", [InitProcessGroupKwargs(timeout=PATIENCE)])
        super().__init__(*args, **kwargs)
        if self.gradient_accumulation_steps != 1:
            raise ValueError(
                "Leave gradient_accumulation_steps at 1: micro-batches are accumulated by global denominators."
            )
        if self.distributed_type not in SUPPORTED or (
            self.distributed_type == DistributedType.FSDP and not self.is_fsdp2
        ):
            raise ConfigError(
                f"distributed_type: {self.distributed_type.value} is not supported here; to divide a model among GPUs, use "
                "accelerate_configs/fsdp2.yaml (FSDP with fsdp_version: 2)."
            )
        if self.is_fsdp2 and self.mixed_precision == "bf16":
            # accelerate's own policy would also round gradients while they are summed, and the log-probs.
            policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
            self.state.fsdp_plugin.mixed_precision_policy = policy
        self.perception_plugin = perception_plugin or PerceptionPlugin()
        self.rollout_plugin = rollout_plugin or RolloutPlugin()
        self.reward_plugin = reward_plugin or RewardPlugin()

    def end_training(self) -> None:
        """End the trackers, and the connection of the processes. No wrapped model may be in use any more.

        Wrapped models go first: were theirs the last reference to that connection, its release would wait, with Python's
        lock in hand, for threads that need the lock. (Seen: one in four runs of two processes never ended.)
        """
        self.free_memory()
        super().end_training()


def global_counts(accelerator: Accelerator, completion_mask: Tensor) -> Counts:
    """Tokens and completions of one update over all processes. Runs on every rank.

    Counted before the first backward, so that neither the micro-batch size nor the number of processes changes a gradient.
    """
    local = torch.tensor([completion_mask.sum(), completion_mask.shape[0]], dtype=torch.float64)
    tokens, sequences = accelerator.reduce(local.to(accelerator.device, torch.float32), "sum")
    return Counts(tokens, sequences)


def on_main(accelerator: Accelerator, compute: Callable[[], T]) -> T:
    """What the main process computes, in all of them. Runs on every rank."""
    result = [compute() if accelerator.is_main_process else None]
    if accelerator.num_processes > 1:
        broadcast_object_list(result)
    return result[0]


@contextlib.contextmanager
def syncing(accelerator: Accelerator, model: torch.nn.Module, last: bool) -> Iterator[None]:
    """Exchange gradients between processes only in the last micro-batch of an update; those of a model that is divided
    among processes in each, since no process has room for all of them."""
    with contextlib.nullcontext() if last or is_sharded(model) else accelerator.no_sync(model):
        yield
