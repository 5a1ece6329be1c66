"""Perception-aware policy optimization (PAPO) of vision-language models, native to Hugging Face.

Importing this registers `PapoConfig` and `PapoForConditionalGeneration` for the Auto classes.
"""

from papo_hub.modeling import PapoConfig, PapoForConditionalGeneration
from papo_hub.version import __version__

__all__ = ["PapoConfig", "PapoForConditionalGeneration", "__version__"]
