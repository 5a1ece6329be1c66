"""Processors of the Qwen-VL family, also where torchvision is missing.

The stock processors carry a video part that cannot be built without torchvision. The classes here are those same
processors without it: images and text go through the inherited code, so the outputs are the stock ones (with the PIL
image processor), and what they save is a stock folder.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from transformers import AutoProcessor, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.utils import AUDIO_TOKENIZER_NAME, cached_file, is_torchvision_available
from transformers.video_processing_utils import BaseVideoProcessor

from .loading import HUB_OPTIONS, UntrustedModel, own_code, read_config
from .thinking import readable_tags

VIDEO_FILE = "video_preprocessor_config.json"  # vLLM asks for it, even where videos are switched off
CLASS_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")  # in AutoProcessor's order


class _WithoutVideo:
    """Mixed into a stock processor, removes its video part and keeps that part's settings for saving."""

    video_processor_type: str

    def __init_subclass__(cls, stock: type[ProcessorMixin], **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Saved files name the processor by `__name__`: the stock one, which every reader knows. Pickle reads
        # `__qualname__`.
        cls.__name__ = stock.__name__

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | dict | None = None):
        # transformers derives the parts of a processor from this signature.
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        shared = ("patch_size", "temporal_patch_size", "merge_size", "image_mean", "image_std")
        self._video_config = {name: getattr(image_processor, name) for name in shared if hasattr(image_processor, name)}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any):
        """As the stock method; the folder's video settings are kept, for `save_pretrained` to write them back."""
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        hub = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
        settings, _ = BaseVideoProcessor.get_video_processor_dict(pretrained_model_name_or_path, **hub)
        processor._video_config = {k: v for k, v in settings.items() if k not in ("image_processor_type", "auto_map")}
        return processor

    def __call__(self, images: Any = None, text: Any = None, videos: Any = None, **kwargs: Any):
        """The stock call, images and text only. Raises ValueError for videos."""
        if videos is not None:
            raise ValueError("this processor reads images and text; install torchvision to process videos")
        return super().__call__(images=images, text=text, **kwargs)

    def to_json_file(self, json_file_path: str | os.PathLike) -> None:
        """Write processor_config.json, and the video settings beside it."""
        super().to_json_file(json_file_path)
        settings = {**self._video_config, "video_processor_type": self.video_processor_type}
        text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
        Path(json_file_path).with_name(VIDEO_FILE).write_text(text, encoding="utf-8")


class ImageTextProcessor(_WithoutVideo, Qwen2_5_VLProcessor, stock=Qwen2_5_VLProcessor):
    """Qwen2.5-VL's processor for images and text, without torchvision."""

    video_processor_type = "Qwen2VLVideoProcessor"


class Qwen2ImageTextProcessor(_WithoutVideo, Qwen2VLProcessor, stock=Qwen2VLProcessor):
    """Qwen2-VL's."""

    video_processor_type = "Qwen2VLVideoProcessor"


class Qwen3ImageTextProcessor(_WithoutVideo, Qwen3VLProcessor, stock=Qwen3VLProcessor):
    """Qwen3-VL's."""

    video_processor_type = "Qwen3VLVideoProcessor"


WITHOUT_VIDEO = {cls.__name__: cls for cls in (ImageTextProcessor, Qwen2ImageTextProcessor, Qwen3ImageTextProcessor)}


class PapoProcessor:
    """What AutoProcessor finds for a `PapoConfig` whose folder names no processor: the backbone's own."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, trust_remote_code: bool | None = None, **kwargs: Any
    ) -> ProcessorMixin:
        # AutoProcessor passes on what it was told, which concerns this class; the backbone's needs no code.
        return load_processor(pretrained_model_name_or_path, **kwargs)


def image_processor_class() -> type:
    """The image processor class of the Qwen-VL family that can run here: torchvision's, else PIL's."""
    if is_torchvision_available():
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

        return Qwen2VLImageProcessor
    return Qwen2VLImageProcessorPil


def load_processor(path_or_id: str | os.PathLike, **kwargs: Any) -> ProcessorMixin:
    """The processor of a model folder or Hub id, plain or PAPO.

    It is the stock one wherever that can be built. Without torchvision, a Qwen-VL processor is replaced by the same
    processor without video, whose output for images and text is that of the stock one with a PIL image processor. Where
    the tokenizer has <think> as an untrained token, it reads the tag as plain text (`thinking`).

    Args:
        path_or_id: a folder or a Hub id.
        **kwargs: what `AutoProcessor.from_pretrained` takes, e.g. `revision`,
            `size={"shortest_edge": 200_704, "longest_edge": 1_003_520}` (pixels an image), `padding_side="left"`.

    Raises:
        UntrustedModel: it has code of its own, which is never run, or an audio part, which would load a further model.
        ValueError, OSError: as AutoProcessor does, e.g. where no processor is found.
    """
    hub = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
    try:
        processor = _processor_class(path_or_id, hub).from_pretrained(path_or_id, trust_remote_code=False, **kwargs)
    except ValueError as error:
        raise own_code(path_or_id, error) from error
    readable_tags(processor)
    return processor


def _processor_class(path_or_id: str | os.PathLike, hub: dict[str, Any]) -> type:
    name = _named_class(path_or_id, hub)
    if name is None:
        config = read_config(path_or_id, **hub)
        stock = PROCESSOR_MAPPING[type(getattr(config, "vlm_config", config))]
        if is_torchvision_available():
            return stock
        name = stock.__name__
    return AutoProcessor if is_torchvision_available() else WITHOUT_VIDEO.get(name, AutoProcessor)


def _named_class(path_or_id: str | os.PathLike, hub: dict[str, Any]) -> str | None:
    """The processor class that the folder's files name, if one does. Raises UntrustedModel for an audio part."""
    named = None
    for name in (AUDIO_TOKENIZER_NAME, *CLASS_FILES):
        file = cached_file(path_or_id, name, _raise_exceptions_for_missing_entries=False, **hub)
        content = json.loads(Path(file).read_text(encoding="utf-8")) if file else {}
        if name == AUDIO_TOKENIZER_NAME and file or "audio_tokenizer" in content:
            raise UntrustedModel(
                f"{path_or_id} has an audio tokenizer, a model of its own: papo_hub reads images and text."
            )
        named = named or content.get("processor_class")
    return named
