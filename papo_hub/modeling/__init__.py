"""The model that travels to the Hub, its configuration and processor. Importing registers them in the Auto classes."""

from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from .configuration_papo import PapoConfig
from .loading import UntrustedModel, check_model_files, load_vlm, read_config
from .modeling_papo import PapoForConditionalGeneration
from .processing_papo import PapoProcessor, load_processor

AutoConfig.register(PapoConfig.model_type, PapoConfig)
AutoModelForImageTextToText.register(PapoConfig, PapoForConditionalGeneration)
AutoProcessor.register(PapoConfig, PapoProcessor)
# What makes `save_pretrained` copy the code beside the weights, so that the folder loads without this package.
PapoConfig.register_for_auto_class()
PapoForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")

__all__ = [
    "PapoConfig",
    "PapoForConditionalGeneration",
    "UntrustedModel",
    "check_model_files",
    "load_processor",
    "load_vlm",
    "read_config",
]
