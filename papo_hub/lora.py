"""LoRA through PEFT: small matrices beside the language model's linear layers are all that is trained.

A layer computes W x + (alpha / r) B A x with W frozen, B (out, r) and A (r, in); B starts at 0, so that a run begins at the
base model (Hu et al., 2021, arXiv 2106.09685). The adapters are put into the model in place: it stays the class that it
was, and without its adapters it is the reference policy, for which no second model is loaded. They are kept in float32
whatever the weights are in: in bfloat16 a small update would be lost.

This is the only file that knows how PEFT names and stores things.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.utils import ADAPTER_SAFE_WEIGHTS_NAME

from papo_hub.config import ConfigError, TrainConfig
from papo_hub.parts import part_of
from papo_hub.randomness import derived_generator
from papo_hub.redaction import public_path

ALL_LINEAR = "all-linear"


def add_adapter(model: nn.Module, config: TrainConfig) -> None:
    """Put a new adapter into the model, and freeze all else.

    Raises ConfigError where PEFT is not installed, and where `lora_target_modules` names no layer of the language model.
    """
    try:
        import peft
    except ImportError:
        raise ConfigError("lora_rank: LoRA needs PEFT: pip install 'papo_hub[peft]', or write lora_rank: 0.") from None
    settings = peft.LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        target_modules=target_modules(model, config.lora_target_modules),
        base_model_name_or_path=public_path(config.model_name_or_path),
        revision=config.model_revision,
    )
    peft.inject_adapter_in_model(settings, model)
    for name, layer in adapted(model).items():
        a, b = (matrices["default"].weight for matrices in (layer.lora_A, layer.lora_B))
        for weight in (a, b):
            weight.data = weight.data.to(torch.promote_types(weight.dtype, torch.float32))
        if not a.is_meta:  # as PEFT does, which draws from the global state
            generator = derived_generator(config.seed, "adapter", name, device=a.device)
            nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)


def target_modules(model: nn.Module, wanted: str) -> str:
    """A regular expression for the full names of the layers to adapt: those of the language model's linear layers, the
    output layer excepted, whose last name is among the `wanted` (with commas; "all-linear": all)."""
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module is not model.get_output_embeddings()
        and part_of(name) == "language_model"
    ]
    places = sorted({re.match(r".*?(?=\.layers\.)", name)[0] for name in linear})
    kinds = sorted({name.rpartition(".")[2] for name in linear})
    chosen = kinds if wanted == ALL_LINEAR else [name.strip() for name in wanted.split(",")]
    if unknown := sorted(set(chosen) - set(kinds)):
        raise ConfigError(
            f"lora_target_modules: the language model has no linear layers {', '.join(unknown)}; it has {', '.join(kinds)}. "
            f"Name some of these, with commas, or {ALL_LINEAR}."
        )
    return rf"({'|'.join(map(re.escape, places))})\..*\.({'|'.join(map(re.escape, chosen))})"


def adapted(model: nn.Module) -> dict[str, nn.Module]:
    """Name → layer of those with an adapter; none where the model has no adapter."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}


@contextlib.contextmanager
def without_adapter(model: nn.Module) -> Iterator[None]:
    """Within, the model (wrapped by accelerate or not) computes as if it had no adapter."""
    layers = adapted(model).values()
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def adapter_weights(model: nn.Module) -> dict[str, Tensor]:
    """The adapter's matrices by the names that they have in PEFT's files. Not copied."""
    return {
        f"base_model.model.{name}.{matrix}.weight": getattr(layer, matrix)["default"].weight
        for name, layer in adapted(model).items()
        for matrix in ("lora_A", "lora_B")
    }


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter instead of a model."""
    return (folder / ADAPTER_SAFE_WEIGHTS_NAME).is_file()


def save_adapter(model: nn.Module, folder: Path) -> None:
    """Write the adapter as PEFT does: adapter_model.safetensors, and adapter_config.json, which names the base model."""
    model.peft_config["default"].save_pretrained(folder)
    tensors = {name: weight.detach().cpu().contiguous() for name, weight in adapter_weights(model).items()}
    save_file(tensors, folder / ADAPTER_SAFE_WEIGHTS_NAME, metadata={"format": "pt"})


@torch.no_grad()
def load_adapter(model: nn.Module, folder: Path) -> None:
    """Put a saved adapter into the place of the model's. Raises ConfigError where it has other layers or another rank."""
    weights = adapter_weights(model)
    with safe_open(folder / ADAPTER_SAFE_WEIGHTS_NAME, framework="pt") as file:
        saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    if {name: tensor.shape for name, tensor in saved.items()} != {name: w.shape for name, w in weights.items()}:
        raise ConfigError(
            f"resume_from_checkpoint: the adapter in {folder} is of other layers or another rank than lora_rank and "
            "lora_target_modules say; write those of its run (its config.yaml)."
        )
    for name, weight in weights.items():
        weight.copy_(saved[name])


@torch.no_grad()
def merged_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name → tensor of the plain model that computes the same, one by one and at least in float32: in bfloat16, W + BA
    would often round to W. Tied weights are the same tensor. The model itself stays as it is."""
    layers, seen = adapted(model), {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        owner, _, rest = name.rpartition(".base_layer.")
        if ".lora_" in name:
            continue
        if id(tensor) not in seen:
            wide = tensor.detach()
            if wide.is_floating_point():
                wide = wide.to(torch.promote_types(wide.dtype, torch.float32))
            if rest == "weight" and owner in layers:
                wide = wide + layers[owner].get_delta_weight("default")
            seen[id(tensor)] = wide.cpu()
        yield name.replace(".base_layer.", "."), seen[id(tensor)]
