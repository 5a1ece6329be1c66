"""What vLLM can do besides, for training: take weights from a running model, and sample at a temperature that its log-probs
know of. Imported where vLLM is, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from vllm.config import ModelConfig, set_current_vllm_config
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader import BaseModelLoader, register_model_loader
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

WEIGHTS_COME_LATER = "papo_hub"


@register_model_loader(WEIGHTS_COME_LATER)
class Zeros(BaseModelLoader):
    """A load format in which all parameters are 0 until the policy's are pushed. vLLM's own for this case ("dummy") also
    overwrites what no checkpoint brings back: the mean and deviation by which pictures are normalised."""

    def download_model(self, model_config: ModelConfig) -> None:
        """There is nothing to download."""

    def load_weights(self, model: nn.Module, model_config: ModelConfig) -> None:
        for parameter in model.parameters():
            parameter.data.zero_()


class TrainingExtension:
    """Methods that vLLM mixes into its worker (`worker_extension_cls`) and runs by name: `self.model_runner` and
    `self.vllm_config` are the worker's."""

    def take_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Load all weights, by their names in a Hugging Face model, one layer at a time.

        Raises RuntimeError where a parameter got none.
        """
        model = self.model_runner.get_model()
        with set_current_vllm_config(self.vllm_config):
            initialize_layerwise_reload(model)
            loaded = model.load_weights(weights)
            finalize_layerwise_reload(model, self.vllm_config.model_config)
            for module in model.modules():
                # On the CPU a layer keeps a packed copy of its matrix, and the reload passes over a head that is tied to
                # the embeddings: no weight has its name.
                if isinstance(module, ParallelLMHead):
                    module.quant_method.process_weights_after_loading(module)
        missing = {name for name, _ in model.named_parameters()} - set(loaded)
        if missing:
            raise RuntimeError(
                f"vLLM's {type(model).__name__} got no weights for {', '.join(sorted(missing)[:5])} "
                f"({len(missing)} in all): it names them otherwise than transformers does."
            )

    def set_temperature(self, temperature: float) -> None:
        """Divide the model's logits by it, so that the log-probs of what is sampled at temperature 1 are those of the
        tempered distribution, before anything is left out of the draw."""
        for module in self.model_runner.get_model().modules():
            if isinstance(module, LogitsProcessor):
                if not hasattr(module, "untempered_scale"):
                    module.untempered_scale = module.scale
                module.scale = module.untempered_scale / temperature
