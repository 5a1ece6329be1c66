"""What vLLM can do besides, for training: take weights from a running model, and sample at a temperature that its log-probs
know of. Imported where vLLM is, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from safetensors import safe_open
from torch import Tensor, nn
from vllm.config import ModelConfig, set_current_vllm_config
from vllm.distributed.weight_transfer import WeightTransferEngine, WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferInitInfo, WeightTransferUpdateInfo
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


class Reload:
    """New weights for a model in vLLM, in as many parts as they come, by their names in a Hugging Face model."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.loaded = model, set()
        initialize_layerwise_reload(model)

    def take(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        self.loaded |= set(self.model.load_weights(weights))

    def finish(self, model_config: ModelConfig) -> None:
        """Raises RuntimeError where a parameter got no weights."""
        finalize_layerwise_reload(self.model, model_config)
        for module in self.model.modules():
            # On the CPU a layer keeps a packed copy of its matrix, and the reload passes over a head that is tied to the
            # embeddings: no weight has its name.
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)
        missing = {name for name, _ in self.model.named_parameters()} - self.loaded
        if missing:
            raise RuntimeError(
                f"vLLM's {type(self.model).__name__} got no weights for {', '.join(sorted(missing)[:5])} "
                f"({len(missing)} in all): it names them otherwise than transformers does."
            )


class TrainingExtension:
    """Methods that vLLM mixes into its worker (`worker_extension_cls`) and runs by name: `self.model_runner` and
    `self.vllm_config` are the worker's."""

    def take_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """All weights, within one process. Raises RuntimeError where a parameter got none."""
        with set_current_vllm_config(self.vllm_config):
            reload = Reload(self.model_runner.get_model())
            reload.take(weights)
            reload.finish(self.vllm_config.model_config)

    def set_temperature(self, temperature: float | str) -> None:
        """Divide the model's logits by it, so that the log-probs of what is sampled at temperature 1 are those of the
        tempered distribution, before anything is left out of the draw."""
        for module in self.model_runner.get_model().modules():
            if isinstance(module, LogitsProcessor):
                if not hasattr(module, "untempered_scale"):
                    module.untempered_scale = module.scale
                module.scale = module.untempered_scale / float(temperature)


@dataclass
class Nothing(WeightTransferInitInfo):
    """There is nothing to agree on."""


@dataclass
class File(WeightTransferUpdateInfo):
    """A part of the weights: a safetensors file that the server can read."""

    path: str


class FolderTransfer(WeightTransferEngine[Nothing, File]):
    """A way for weights into a vLLM server, beside its own: files in a folder that trainer and server share. It works
    wherever both see that folder; vLLM's own need NVIDIA GPUs on both sides."""

    init_info_cls, update_info_cls = Nothing, File

    def init_transfer_engine(self, init_info: Nothing) -> None:
        """There is no connection to open."""

    def start_weight_update(self) -> None:
        self.reload = Reload(self.model)

    def update_weights(self, update_info: dict[str, str]) -> None:
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: File) -> None:
        with safe_open(update_info.path, framework="pt") as file:
            self.reload.take((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118 (not a dict)

    def finish_weight_update(self) -> None:
        self.reload.finish(self.model_config)

    def shutdown(self) -> None:
        """There is no connection to close."""


WeightTransferEngineFactory.register_engine("papo_hub_folder", FolderTransfer)
