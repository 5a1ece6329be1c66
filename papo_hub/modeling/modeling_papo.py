"""The PAPO model: any vision-language backbone of transformers, and how much each token of an answer owes to the image.

Source of the measure: the perception divergence of PAPO, arXiv 2507.06448, taken token by token.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.utils import logging

from .configuration_papo import PERCEPTION_FIELDS, PapoConfig
from .loading import load_vlm

logger = logging.get_logger(__name__)

PROVENANCE_KEY = "papo"  # where a plain config.json records the perception fields; transformers and vLLM ignore it
TOKEN_TYPE_KEYS = ("mm_token_type_ids", "token_type_ids")  # a completion is text: zeros


class PapoForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """A vision-language backbone in `self.vlm`, to which `forward` and `generate` are delegated.

    Two formats on disk. The wrapper format (`save_pretrained(path)`) has `model_type: papo` and carries its own code.
    The plain format (`save_pretrained(path, as_backbone=True)`) is the backbone's own, readable without this package.
    Both record the perception fields of `PapoConfig`.
    """

    config_class = PapoConfig
    base_model_prefix = "vlm"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    # What the backbone supports is checked by the backbone.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: PapoConfig, vlm: PreTrainedModel | None = None):
        super().__init__(config)
        self.vlm = (
            AutoModelForImageTextToText.from_config(config.vlm_config, trust_remote_code=False) if vlm is None else vlm
        )
        self.post_init()

    @classmethod
    def from_backbone(
        cls, path_or_model: str | os.PathLike | PreTrainedModel, *, revision: str | None = None, **kwargs: Any
    ) -> PapoForConditionalGeneration:
        """Wrap a plain vision-language model; no weight is changed.

        Args:
            path_or_model: a folder, a Hub id, or a loaded model. A loaded model is shared with the wrapper, not copied.
            revision: branch, tag or commit of a Hub id.
            **kwargs: perception fields of `PapoConfig`, which take precedence over those the checkpoint records; and,
                for a folder or an id, what `AutoModelForImageTextToText.from_pretrained` takes.

        Raises:
            UntrustedModel, a ValueError: as `load_vlm`.
            ValueError: the checkpoint does not hold exactly the model's weights (the message names the keys), is
                already a PAPO one, or a perception field is out of range.
            TypeError: loading options were given along with a loaded model.
        """
        given = {name: kwargs.pop(name) for name in PERCEPTION_FIELDS if name in kwargs}
        if isinstance(path_or_model, PreTrainedModel):
            if kwargs or revision is not None:
                options = ", ".join(sorted({*kwargs, *(["revision"] if revision else [])}))
                raise TypeError(f"from_backbone: {options} cannot apply to a model that is already loaded")
            vlm = path_or_model
        else:
            vlm = _load_exactly(path_or_model, revision, **kwargs)
        if isinstance(vlm, PapoForConditionalGeneration) or vlm.config.model_type == PapoConfig.model_type:
            raise ValueError("from_backbone: this is already a PAPO model; load it with from_pretrained")

        recorded = getattr(vlm.config, PROVENANCE_KEY, None) or {}
        if unknown := sorted(set(recorded) - set(PERCEPTION_FIELDS)):
            logger.warning(
                f"from_backbone: {', '.join(unknown)} of the checkpoint's training record are not known here"
            )
        fields = {name: recorded[name] for name in PERCEPTION_FIELDS if name in recorded} | given
        config = cls.config_class(vlm_config=vlm.config, dtype=vlm.config.dtype, **fields)
        config.name_or_path = vlm.config.name_or_path
        with no_init_weights():  # a layer put in place after the model was built would be initialised anew
            model = cls(config, vlm=vlm)
        if recorded:  # one record, in PapoConfig
            delattr(vlm.config, PROVENANCE_KEY)
        return model.train(vlm.training)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> PapoForConditionalGeneration:
        """The inherited method, from safetensors alone."""
        return super().from_pretrained(*args, **{**kwargs, "use_safetensors": True})

    def save_pretrained(self, save_directory: str | os.PathLike, as_backbone: bool = False, **kwargs: Any) -> None:
        """Write the model as safetensors.

        Args:
            save_directory: the folder.
            as_backbone: write the backbone's own format, the perception fields under the key `papo` of config.json.
            **kwargs: as in `PreTrainedModel.save_pretrained` (`max_shard_size`, `state_dict`, ...). The keys of
                `state_dict` are this model's in both cases.
        """
        if not as_backbone:
            return super().save_pretrained(save_directory, **kwargs)
        if (state_dict := kwargs.get("state_dict")) is not None:
            prefix = f"{self.base_model_prefix}."
            kwargs["state_dict"] = {name.removeprefix(prefix): tensor for name, tensor in state_dict.items()}
        if self.config.perception:
            setattr(self.vlm.config, PROVENANCE_KEY, self.config.perception)
        try:
            return self.vlm.save_pretrained(save_directory, **kwargs)
        finally:
            if self.config.perception:
                delattr(self.vlm.config, PROVENANCE_KEY)

    def forward(self, *args: Any, **kwargs: Any):
        """The backbone's forward: same arguments, same output."""
        return self.vlm(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any):
        """The backbone's generate: same arguments, same output."""
        return self.vlm.generate(*args, **kwargs)

    @property
    def generation_config(self) -> GenerationConfig:
        """The backbone's, the one that `generate` reads."""
        return self.vlm.generation_config

    @generation_config.setter
    def generation_config(self, value: GenerationConfig) -> None:
        if "vlm" in self._modules:  # the base class sets a default before there is a backbone
            self.vlm.generation_config = value

    def get_output_embeddings(self) -> nn.Module | None:
        return self.vlm.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.vlm.set_output_embeddings(new_embeddings)

    @torch.no_grad()
    def visual_dependence(
        self,
        inputs: Mapping[str, Tensor],
        masked_pixel_values: Tensor,
        completion_ids: Tensor,
        completion_mask: Tensor | None = None,
        *,
        exact: bool = False,
    ) -> Tensor:
        """How much each token of an answer depends on the image: the divergence between the clean and the masked view.

        The default is the estimate of KL(clean || masked) that PAPO trains with, from the given token alone:
        exp(d) - d - 1 with d = log p(token | masked) - log p(token | clean), d limited to ±20. It is zero where the
        mask changes nothing, whatever the token; its mean over tokens sampled from the clean view is the divergence.

        Args:
            inputs: the processor's output for B prompts of S tokens, padded on the left: `input_ids` (B, S),
                `attention_mask` (B, S), `mm_token_type_ids` (B, S), `pixel_values`, `image_grid_thw`, ...
            masked_pixel_values: the pixel values of the masked images, of the shape of `inputs["pixel_values"]`.
            completion_ids: the answers' tokens, (B, T), padded on the right.
            completion_mask: (B, T), true on the answers' tokens. Default: all of them.
            exact: sum over the whole vocabulary instead: the divergence of the two next-token distributions.

        Returns:
            (B, T) float32 in nats, at least 0, and 0 on padding. Row b, column t belongs to `completion_ids[b, t]`.

        Raises:
            ValueError: shapes disagree, a prompt is padded on the right, an answer contains an image or video token, or
                `mm_token_type_ids` is missing although the backbone places its image tokens in three dimensions.
        """
        for name in ("image_token_id", "video_token_id"):
            token = getattr(self.config, name, None)
            if token is not None and (completion_ids == token).any():
                raise ValueError(
                    f"visual_dependence: completion_ids contains the {name} {token}, which stands for an image that is "
                    "not there; suppress it while sampling"
                )
        if completion_mask is None:
            completion_mask = torch.ones_like(completion_ids)
        clean = _append_completion(inputs, completion_ids, completion_mask)
        if masked_pixel_values.shape != clean["pixel_values"].shape:
            raise ValueError(
                f"visual_dependence: masked_pixel_values has shape {tuple(masked_pixel_values.shape)}, the clean ones "
                f"{tuple(clean['pixel_values'].shape)}; mask the image, then process it with the same settings"
            )
        logprobs = self._completion_logprobs(clean, completion_ids, full=exact)
        masked_logprobs = self._completion_logprobs(
            {**clean, "pixel_values": masked_pixel_values}, completion_ids, full=exact
        )
        if exact:
            divergence = nn.functional.kl_div(masked_logprobs, logprobs, reduction="none", log_target=True).sum(-1)
        else:
            difference = (masked_logprobs - logprobs).clamp(-20.0, 20.0)
            divergence = torch.expm1(difference) - difference
        return divergence.clamp_min(0.0).masked_fill(completion_mask == 0, 0.0)

    def _completion_logprobs(self, inputs: Mapping[str, Tensor], completion_ids: Tensor, full: bool) -> Tensor:
        """Log-probabilities (B, T) of the completion, or with `full` those of every token, (B, T, V)."""
        length = completion_ids.shape[1]
        logits = self.vlm(**inputs, use_cache=False, logits_to_keep=length + 1).logits[:, :-1].float()
        if full:
            return logits.log_softmax(-1)
        return logits.gather(-1, completion_ids.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)


def _load_exactly(path: str | os.PathLike, revision: str | None, **kwargs: Any) -> PreTrainedModel:
    """Load a plain checkpoint; refuse it unless its weights are exactly the model's."""
    if revision is not None:
        kwargs["revision"] = revision
    vlm, info = load_vlm(path, output_loading_info=True, **kwargs)
    problems = []
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if keys := sorted(key if isinstance(key, str) else key[0] for key in info.get(kind, ())):
            shown = ", ".join(keys[:8]) + (f", and {len(keys) - 8} more" if len(keys) > 8 else "")
            problems.append(f"{kind.replace('_', ' ')}: {shown}")
    if problems:
        raise ValueError(
            f"from_backbone: the checkpoint {path} does not hold exactly the weights of {type(vlm).__name__} "
            f"({'; '.join(problems)}); it may be incomplete or of another architecture"
        )
    return vlm


def _append_completion(
    inputs: Mapping[str, Tensor], completion_ids: Tensor, completion_mask: Tensor
) -> dict[str, Tensor]:
    """The model's inputs for prompt and completion in one row, (B, S + T); everything about the image stays."""
    prompt_ids = inputs["input_ids"]
    if completion_ids.shape != completion_mask.shape or completion_ids.shape[0] != prompt_ids.shape[0]:
        raise ValueError(
            f"visual_dependence: {prompt_ids.shape[0]} prompts, completion_ids {tuple(completion_ids.shape)}, "
            f"completion_mask {tuple(completion_mask.shape)}; expected (B, T) for both, a row for each prompt"
        )
    if "pixel_values" not in inputs:
        raise ValueError("visual_dependence: inputs has no pixel_values, so there is no image to depend on")
    if "image_grid_thw" in inputs and "mm_token_type_ids" not in inputs:
        raise ValueError(
            "visual_dependence: inputs has no mm_token_type_ids, and without it image tokens get one-dimensional "
            "positions; pass the processor's whole output"
        )
    attention_mask = inputs.get("attention_mask")
    if attention_mask is None:
        attention_mask = torch.ones_like(prompt_ids)
    if not attention_mask[:, -1].all():
        raise ValueError("visual_dependence: a prompt is padded on the right; pad prompts on the left")
    row = dict(inputs)
    row["input_ids"] = torch.cat([prompt_ids, completion_ids], dim=1)
    row["attention_mask"] = torch.cat([attention_mask, completion_mask.to(attention_mask)], dim=1)
    for key in TOKEN_TYPE_KEYS:
        if key in inputs:
            row[key] = torch.cat([inputs[key], torch.zeros_like(completion_ids, dtype=inputs[key].dtype)], dim=1)
    return row
