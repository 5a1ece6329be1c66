"""The memory of a run: what it will need, and what it does when that is not there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from transformers import AutoModelForImageTextToText, PreTrainedConfig

from papo_hub.batch import Batch
from papo_hub.config import TrainConfig
from papo_hub.head import CHUNK_ELEMENTS
from papo_hub.lora import add_adapter
from papo_hub.parts import freeze, trainable

GIB = 2**30
GPUS = (1, 2, 4, 8)
T = TypeVar("T")


class MemoryExhausted(RuntimeError):
    """Out of memory where a smaller micro-batch cannot help."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one GPU, computed, not measured."""

    parameters: int  # of the model, without adapters
    trained: int  # those that learn: all, those that are not frozen, or the adapters'
    source: str  # of the sizes
    resident: dict[str, int]  # there all the time
    update: dict[str, int]  # besides, at most, in a forward and backward pass
    rollout: int  # besides, at most, while sampling: keys and values
    scoring: int  # besides, while the reference model is there, with a layer's activations; else it waits on the CPU
    gathered_update: int  # besides, where the model is sharded: the weights that a pass holds whole
    gathered_rollout: int  # the same while sampling: all of them

    @property
    def peak(self) -> int:
        return self.sharded(1)

    def sharded(self, gpus: int) -> int:
        """The most that each of these GPUs holds when weights, gradients and optimizer are divided among them; every GPU
        has micro-batches and keys and values of its own."""
        whole = (self.gathered_update, self.gathered_rollout) if gpus > 1 else (0, 0)
        share = sum(self.resident.values()) // gpus
        return share + max(sum(self.update.values()) + whole[0], max(self.rollout, self.scoring) + whole[1])

    def table(self) -> str:
        """Every part on a line, for a dry run."""
        lines = [
            f"memory        {self.parameters / 1e9:.2f} billion parameters, from {self.source}; a GPU alone, or one of several "
            "with a model each"
        ]
        if self.trained != self.parameters:
            lines.append(f"              {self.trained / 1e6:,.1f} million parameters are trained")
        parts = self.resident | self.update
        lines += [f"              {name:<34}{size / GIB:8.1f} GiB" for name, size in parts.items() if size]
        resident = sum(self.resident.values())
        lines.append(f"              {'update, at most':<34}{(resident + sum(self.update.values())) / GIB:8.1f} GiB")
        lines.append(
            f"              {'rollout, at most (keys and values)':<34}{(resident + self.rollout) / GIB:8.1f} GiB"
        )
        if self.scoring:
            lines.append(
                f"              {'scoring, with the reference model':<34}{(resident + self.scoring) / GIB:8.1f} GiB"
            )
        if self.resident["adapters (LoRA)"]:  # not trained on a sharded model
            return "\n".join(lines)
        shares = ", ".join(f"{_gib(self.sharded(gpus))} of each of {gpus}" for gpus in GPUS[1:])
        lines.append(f"              sharded (accelerate_configs/fsdp2.yaml), at most {shares} GPUs")
        return "\n".join(lines)

    def line(self, available: int | None = None) -> str:
        """One line for the start of a run. `available`: bytes of the device."""
        resident, update = sum(self.resident.values()), sum(self.update.values())
        text = (
            f"memory, computed: {_gib(resident)} for weights, gradients and optimizer, at most {_gib(update)} more in an "
            f"update, {_gib(self.rollout)} while sampling"
            + (f", {_gib(self.scoring)} while scoring with the reference model" if self.scoring else "")
        )
        if available is None:
            return text
        text += f", of {_gib(available)}"
        if self.peak > available:
            text += (
                ". That is more than there is: lower max_tokens_per_micro_batch or rollout_batch_size, set "
                "activation_checkpointing: true, or shard the model"
            )
        return text


def memory_plan(config: TrainConfig, model_config: PreTrainedConfig, source: str = "its config.json") -> MemoryPlan:
    """What a recipe needs, from the sizes in the model's configuration.

    Activations are the usual count of a transformer layer in bf16 (34 · hidden bytes a token, of which 2 · hidden remain
    with checkpointing and one layer is whole at a time); flash or SDPA attention adds no square term.
    """
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(model_config, trust_remote_code=False)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        units = [sum(p.numel() for p in module.parameters()) for module in sharded_units(model)]
        freeze(model, config.frozen_parts)
        if adapter := config.lora_rank > 0:
            add_adapter(model, config)
    trained = sum(parameter.numel() for parameter in trainable(model).values())
    text = model_config.get_text_config()
    weight = {"float32": 4, "bfloat16": 2}[config.dtype]
    half = config.mixed_precision == "bf16" or config.dtype == "bfloat16"
    compute = 2 if half else 4
    row = config.max_prompt_length + config.max_completion_length
    tokens = max(config.max_tokens_per_micro_batch, row)  # a completion above the limit goes alone
    if config.micro_batch_size is not None:
        tokens = min(tokens, config.micro_batch_size * row)
    layer = 17 * compute * text.hidden_size * tokens
    kept = compute * text.hidden_size * tokens
    layers = text.num_hidden_layers
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    key_value_heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    cached = 2 * layers * key_value_heads * head_dim * compute
    learns = model.get_output_embeddings().weight.requires_grad
    head = text.vocab_size * text.hidden_size * 4 if learns else 0  # its gradient is summed over the chunks in float32
    kept_trained = 4 if adapter else weight
    prompts = -(-config.rollout_batch_size // config.num_generations)
    decoded = config.rollout_batch_size * config.max_completion_length
    return MemoryPlan(
        parameters,
        trained,
        source,
        {
            "weights": parameters * weight,
            "adapters (LoRA)": trained * 4 if adapter else 0,
            "gradients": trained * kept_trained,
            "optimizer (AdamW, two moments)": 2 * trained * kept_trained,
        },
        {
            "activations, most tokens": layers * kept + layer if config.activation_checkpointing else layers * layer,
            "output layer, a chunk of logits": head + CHUNK_ELEMENTS * 4 * 3,
        },
        (prompts * config.max_prompt_length + decoded) * cached if config.rollout_engine == "transformers" else 0,
        parameters * (2 if half else 4) + layer if config.beta > 0 and not adapter else 0,
        # Embeddings and output layer stay whole during a pass, and their gradient; two layers while one is computed.
        gathered_update=(2 * (parameters - sum(units)) + 2 * max(units, default=0)) * compute,
        gathered_rollout=parameters * compute,
    )


def sharded_units(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The layers that are gathered one at a time where a model is sharded: what it says must not be split."""
    classes = set(model._no_split_modules or ())
    return [module for module in model.modules() if type(module).__name__ in classes]


def device_memory(device: torch.device) -> int | None:
    """Bytes of a GPU; None elsewhere."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"


class MicroBatchLimit:
    """How much goes through the model at once: halved where memory ends, for the rest of the run.

    The denominators of the objective are those of the whole update, so smaller micro-batches are the same mathematics.

    Args:
        tokens, completions: see `Batch.micros`.
        say: gets a line when the limit changes.
    """

    def __init__(self, tokens: int, completions: int | None, say: Callable[[str], None]) -> None:
        self.tokens, self.completions, self.say = tokens, completions, say
        self._under_way: tuple[Batch, int, bool] | None = None

    def micros(self, batch: Batch, shared: bool, views: int = 1) -> Iterator[tuple[Batch, bool]]:
        """As `Batch.micros`. `views`: how many of each completion go through the model together."""
        for micro, last in batch.micros(self.tokens // views, self.completions, shared):
            self._under_way = micro, micro.tokens(shared) * views, last
            yield micro, last

    def in_step(
        self, batch: Batch, shared: bool, views: int, passes: Callable[[int], int]
    ) -> Iterator[tuple[Batch, float, bool]]:
        """As `micros`, with the weight of each, 1; then the last again with weight 0, until there are passes(their number)
        of them. Only the very last is said to be the last."""
        own = sum(1 for _ in batch.micros(self.tokens // views, self.completions, shared))
        count = passes(own)
        for done, (micro, last) in enumerate(self.micros(batch, shared, views), 1):
            yield micro, 1.0, done == count
            if last:
                for again in range(own + 1, count + 1):
                    yield micro, 0.0, again == count

    def retry(self, compute: Callable[[], T], exchanging: Literal["never", "last", "always"] = "never") -> T:
        """The result of `compute`, which goes through `micros`; it is called again with less at once where memory ends.

        `exchanging`: in which micro-batches processes exchange something, so that one of them cannot repeat it alone.
        Raises MemoryExhausted there, and where a single completion is too much.
        """
        while True:
            try:
                return compute()
            except RuntimeError as error:  # torch.OutOfMemoryError, or the CPU's
                if not should_reduce_batch_size(error):
                    raise
                self._halve(str(error).splitlines()[0], exchanging)
            clear_device_cache(garbage_collection=True)  # out of the except block: the error holds on to tensors

    def _halve(self, fault: str, exchanging: str) -> None:
        micro, tokens, last = self._under_way
        smaller = max(tokens // 2, 1)
        if len(micro) == 1:
            raise MemoryExhausted(
                f"out of memory with a single completion ({tokens} tokens with its prompt): {fault} Set "
                "activation_checkpointing: true, lower max_completion_length, max_prompt_length or max_pixels, or shard "
                "the model, and go on with --resume_from_checkpoint latest."
            )
        if exchanging == "always" or (exchanging == "last" and last):
            raise MemoryExhausted(
                f"out of memory with {tokens} tokens in a pass in which processes exchange what they have, which cannot be "
                f"repeated: {fault} Go on with --resume_from_checkpoint latest --max_tokens_per_micro_batch {smaller}"
            )
        self.tokens = smaller
        self.say(
            f"out of memory with {len(micro)} completions of {tokens} tokens at once: from here on at most {smaller} "
            f"tokens, with the same results. To start so: --max_tokens_per_micro_batch {smaller}"
        )

    def state_dict(self) -> dict[str, int]:
        return {"tokens": self.tokens}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """A limit that was found is kept; one that the recipe lowers further counts."""
        self.tokens = min(self.tokens, state["tokens"])
