"""The parts of a vision-language model, and which of them are trained.

    vision tower      pixels → features of patches
    projector         features of patches → the text's embeddings; the mergers of the Qwen models, deepstack's included
    language model    embeddings, layers, and the output layer

Architectures name them differently, and some keep the projector inside the vision tower; a parameter's path tells.
"""

from __future__ import annotations

from torch import nn

from papo_hub.config import ConfigError

# What a step of a parameter's path may be called, in the order in which it decides.
PARTS = {
    "projector": {"merger", "deepstack_merger_list", "multi_modal_projector", "connector", "image_newline"},
    "language_model": {"language_model", "text_model", "lm_head"},
    "vision_tower": {"visual", "vision_tower", "vision_model"},
}


def part_of(name: str) -> str:
    """The part that a parameter or module belongs to, by its path ("model.visual.blocks.0.norm1.weight").

    Raises ConfigError for an architecture whose parts have other names.
    """
    steps = set(name.split("."))
    for part, names in PARTS.items():
        if steps & names:
            return part
    raise ConfigError(
        f"freeze_*, lora_rank: {name} is of no part that is known here, so this model cannot be frozen in parts; train "
        "all of it, or add its names to papo_hub/parts.py."
    )


def freeze(model: nn.Module, frozen: list[str]) -> None:
    """Take parts of a model (names of PARTS) out of training. Raises ConfigError as `part_of`."""
    for name, parameter in model.named_parameters() if frozen else ():
        parameter.requires_grad_(part_of(name) not in frozen)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name → parameter of all that is trained, in the model's order: what the optimizer holds, and a checkpoint's moments."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
