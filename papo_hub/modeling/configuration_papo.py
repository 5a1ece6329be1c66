"""Configuration of a PAPO model: a backbone's configuration, and the perception objective it was trained with."""

from __future__ import annotations

import math
from typing import Any

from transformers import AutoConfig
from transformers.configuration_utils import PretrainedConfig

DEFAULT_BACKBONE = "qwen2_5_vl"

# The perception fields, in the order in which they are written. Each is optional: None means "not recorded".
PERCEPTION_FIELDS = (
    "objective",
    "gamma",
    "gamma_end",
    "gamma_annealing_ratio",
    "eta_clean",
    "eta_masked",
    "beta",
    "epsilon",
    "epsilon_high",
    "mask_strategy",
    "mask_ratio",
    "mask_patch_size",
    "masked_logprobs",
)
_WEIGHTS = ("gamma", "gamma_end", "eta_clean", "eta_masked", "beta", "epsilon_high")  # any non-negative number
_FRACTIONS = ("gamma_annealing_ratio", "mask_ratio", "epsilon")  # in [0, 1]
_MASKED_LOGPROBS = ("frozen", "live")


def check_perception(fields: dict[str, Any]) -> None:
    """Raise a ValueError that names the first perception field whose value cannot be; None is always allowed."""
    for name, value in fields.items():
        if value is None:
            continue
        if name in _WEIGHTS or name in _FRACTIONS:
            limit = 1.0 if name in _FRACTIONS else math.inf
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            if not number or not 0 <= value <= limit:
                expected = "a number from 0 to 1" if name in _FRACTIONS else "a non-negative number"
                raise ValueError(f"PapoConfig: {name} must be {expected}, got {value!r}")
        elif name == "mask_patch_size":
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"PapoConfig: mask_patch_size must be a positive number of pixels, got {value!r}")
        elif not isinstance(value, str) or not value:
            raise ValueError(f"PapoConfig: {name} must be a name, got {value!r}")
        elif name == "masked_logprobs" and value not in _MASKED_LOGPROBS:
            raise ValueError(f"PapoConfig: masked_logprobs must be one of {', '.join(_MASKED_LOGPROBS)}, got {value!r}")


class PapoConfig(PretrainedConfig):
    """What `PapoForConditionalGeneration` is built from.

    Whatever a reader looks up that PAPO does not define (`text_config`, `vision_config`, `image_token_id`, ...) is
    answered by the backbone's configuration, so code written for a plain vision-language model reads this one too.

    Args:
        vlm_config: the backbone's configuration, or its dictionary with a `model_type`. Default: Qwen2.5-VL.
        objective: name of the training objective, e.g. "papo_g".
        gamma: weight of the perception term at the start of training, >= 0.
        gamma_end: its weight once annealed, >= 0.
        gamma_annealing_ratio: fraction of the steps over which gamma moves to gamma_end, from 0 to 1.
        eta_clean: weight of the entropy of the view with the image (eta 1), >= 0.
        eta_masked: weight of the entropy of the masked view (eta 2), >= 0.
        beta: weight of the divergence from the reference model, >= 0.
        epsilon: lower clip range of the importance ratio, from 0 to 1.
        epsilon_high: upper clip range, >= 0.
        mask_strategy: how the image was masked, e.g. "random".
        mask_ratio: fraction of the cells that were masked, from 0 to 1.
        mask_patch_size: side of a masked cell, in pixels of the original image.
        masked_logprobs: "frozen" or "live", whether gradient flowed through the masked view.

    Raises:
        ValueError: a field is out of its range, or `vlm_config` names no known architecture.
    """

    model_type = "papo"
    sub_configs = {"vlm_config": AutoConfig}

    vlm_config: dict | PretrainedConfig | None = None
    objective: str | None = None
    gamma: float | None = None
    gamma_end: float | None = None
    gamma_annealing_ratio: float | None = None
    eta_clean: float | None = None
    eta_masked: float | None = None
    beta: float | None = None
    epsilon: float | None = None
    epsilon_high: float | None = None
    mask_strategy: str | None = None
    mask_ratio: float | None = None
    mask_patch_size: int | None = None
    masked_logprobs: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        # The backbone is attached last: the base class would reset an attention implementation chosen on it.
        vlm_config, self.vlm_config = self.vlm_config, None
        attention = kwargs.get("attn_implementation")
        super().__post_init__(**kwargs)
        self.vlm_config = _backbone_config(vlm_config)
        self._attn_implementation_internal = self.vlm_config._attn_implementation
        if attention is not None:
            self._attn_implementation = attention
        check_perception({name: getattr(self, name) for name in PERCEPTION_FIELDS})

    def __getattr__(self, name: str) -> Any:
        backbone = self.__dict__.get("vlm_config")
        if name.startswith("_") or backbone is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(backbone, name)

    @property
    def perception(self) -> dict[str, Any]:
        """The recorded perception fields, those that are None left out."""
        fields = {name: getattr(self, name) for name in PERCEPTION_FIELDS}
        return {name: value for name, value in fields.items() if value is not None}


def _backbone_config(config: dict | PretrainedConfig | None) -> PretrainedConfig:
    if isinstance(config, PretrainedConfig):
        if config.model_type == PapoConfig.model_type:
            raise ValueError("PapoConfig: vlm_config is itself a PapoConfig; pass its own vlm_config")
        return config
    fields = dict(config or {})
    return AutoConfig.for_model(fields.pop("model_type", DEFAULT_BACKBONE), **fields)
