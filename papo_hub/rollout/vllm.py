"""Sampling in vLLM, in this process: each process of the run has an engine of its own, on its own device.

vLLM reads the prompts itself: it gets their tokens with one an image, and the pictures. What it made of them is compared
with what the policy is trained on, token by token. The weights are the policy's: pushed before the first completion after
every update, straight from its tensors.

vLLM is imported when the engine is made, for it takes seconds and is not always there.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import Tensor

from papo_hub.batch import Completion, Prompt
from papo_hub.config import ConfigError
from papo_hub.lora import adapted, merged_weights
from papo_hub.rollout.base import Sampling
from papo_hub.rollout.transformers import holds_box, image_token_ids, stop_token_ids
from papo_hub.shared_prefix import bare

EXTENSION = "papo_hub.rollout.vllm_worker.TrainingExtension"
NEVER = -100.0  # added to the logit of a token that must not be sampled; vLLM's servers take no less
LARGEST_SEED = 2**62


class PromptMismatch(RuntimeError):
    """vLLM read a prompt otherwise than the policy does."""


class VllmEngine:
    """Samples from a vLLM engine that holds the weights of a Hugging Face model.

    Args:
        model: the bare model (not wrapped by accelerate).
        processor: of the prompts; vLLM gets the same, pixel limits included.
        max_length: tokens of a prompt and its completion.
        batch_size: completions decoded together.
        memory: share of the device's memory that vLLM takes while it samples.
        dtype: that vLLM computes in; None: that of the model's weights.

    Raises ConfigError where vLLM is not installed.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        processor: Any,
        max_length: int,
        batch_size: int = 64,
        memory: float = 0.3,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_vllm()
        self.model, self.tokenizer = bare(model), processor.tokenizer
        self.stop_ids = sorted(stop_token_ids(self.model, self.tokenizer))
        self.suppressed = sorted(image_token_ids(self.model.config))
        self.dtype = dtype or self.model.dtype
        self.on_gpu = torch.cuda.is_available()
        self._prepare_environment()
        with TemporaryDirectory() as folder:  # all that vLLM reads of the model: its sizes, and how prompts are made
            self.model.config.save_pretrained(folder)
            processor.save_pretrained(folder)
            self.llm = self._load(folder, max_length, batch_size, memory)
        self.awake, self.temperature = True, 1.0
        self.stale = True  # the weights are not the model's

    def _prepare_environment(self) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # tensors are handed over within this process
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # the threads are the training's, too

    def _load(self, folder: str, max_length: int, batch_size: int, memory: float) -> Any:
        from vllm import LLM

        from papo_hub.rollout.vllm_worker import WEIGHTS_COME_LATER

        several = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
        llm = LLM(
            model=folder,
            load_format=WEIGHTS_COME_LATER,
            generation_config="vllm",  # how to sample is said with every request
            dtype=str(self.dtype).removeprefix("torch."),
            max_model_len=max_length,
            max_num_seqs=batch_size,
            gpu_memory_utilization=memory,
            limit_mm_per_prompt={"video": 0},
            enable_sleep_mode=self.on_gpu,
            enforce_eager=not self.on_gpu,  # CUDA graphs pay, compiling for the CPU does not
            logprobs_mode="raw_logprobs",
            worker_extension_cls=EXTENSION,
            # This process's place among the others of the run: vLLM would take the first device in each of them.
            distributed_executor_backend="external_launcher" if several else None,
        )
        # It says at every push which layers have no weights of their own; `take_weights` checks that none are missing.
        logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").setLevel(logging.ERROR)
        return llm

    def generate(
        self,
        prompts: list[Prompt],
        num_generations: int,
        sampling: Sampling,
        generator: torch.Generator | Sequence[int],
        view: Literal["clean", "masked"] = "clean",
        given_up: Callable[[], bool] = lambda: False,
    ) -> list[Completion]:
        """See `RolloutEngine.generate`. Completions carry their tokens' log-probs in vLLM, whatever the sampling left out
        of the draw; they differ from the model's own by rounding.

        Raises PromptMismatch.
        """
        if not prompts:
            return []
        self.prepare()
        if (tempered := sampling.temperature or 1.0) != self.temperature:
            self.llm.collective_rpc("set_temperature", args=(tempered,))
            self.temperature = tempered
        seeds = completion_seeds(generator, len(prompts) * num_generations)
        requests = [request(prompt, view) for prompt in prompts for _ in range(num_generations)]
        options = [self._parameters(sampling_options(sampling, seed, self.stop_ids, self.suppressed)) for seed in seeds]
        # Autocast is the training's: it would change the arithmetic of vLLM's own layers.
        with torch.autocast(self.model.device.type, enabled=False):
            outputs = self._run(requests, options, given_up)
        if outputs is None:
            return []
        for i, output in enumerate(outputs):
            check_prompt(prompts[i // num_generations], output.prompt_token_ids, self.tokenizer)
        return [self._completion(output.outputs[0], sampling) for output in outputs]

    def prepare(self) -> None:
        """See `RolloutEngine.prepare`: the weights are pushed, once until the next `rest`."""
        if not self.stale:
            return
        if not self.awake:
            self.llm.wake_up(tags=["weights"])
        self.llm.collective_rpc("take_weights", args=(named_weights(self.model),))
        if not self.awake:
            self.llm.wake_up(tags=["kv_cache"])
        # What the old weights computed: keys and values of prompts, features of images.
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM holds on to keys and values of the old weights; a request must be under way.")
        self.llm.llm_engine.reset_encoder_cache()
        self.stale, self.awake = False, True

    def rest(self) -> None:
        """See `RolloutEngine.rest`. On a GPU, vLLM gives its memory back."""
        self.stale = True
        if self.on_gpu and self.awake:
            self.llm.sleep(level=2)  # the weights are forgotten: new ones come before the next completion
            self.awake = False

    def close(self) -> None:
        """See `RolloutEngine.close`. With vLLM ends the connection of this run's processes: call it on all, at the end."""
        self.llm.llm_engine.engine_core.shutdown()

    @staticmethod
    def _parameters(options: dict[str, Any]) -> Any:
        from vllm import SamplingParams

        return SamplingParams(**options, detokenize=False)

    def _run(self, requests: list[dict], options: list[Any], given_up: Callable[[], bool]) -> list[Any] | None:
        """The outputs in the order of the requests; None: given up."""
        engine, finished = self.llm.llm_engine, []
        ids = self.llm.enqueue(requests, options, use_tqdm=False)
        while engine.has_unfinished_requests():
            if given_up():
                engine.abort_request(ids, internal=True)
                return None
            finished += [output for output in engine.step() if output.finished]
        return sorted(finished, key=lambda output: int(output.request_id))  # numbered as they were asked for

    def _completion(self, output: Any, sampling: Sampling) -> Completion:
        logprobs = [found[token].logprob for found, token in zip(output.logprobs, output.token_ids, strict=True)]
        return completion(self.tokenizer, output.token_ids, logprobs, output.finish_reason == "stop", sampling)


def check_vllm() -> None:
    """Raises ConfigError where there is no vLLM."""
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "rollout_engine: vllm, but vLLM is not installed. Install it (pip install 'papo_hub[vllm]'; docs/vllm.md), or "
            "write rollout_engine: transformers."
        )


def named_weights(model: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weights as a checkpoint has them, one after the other; a tied one is there once. Adapters are merged into them."""
    if not adapted(model):
        return ((name, parameter.detach()) for name, parameter in model.named_parameters())
    tied = set(getattr(model, "all_tied_weights_keys", ()))
    return ((name, weight) for name, weight in merged_weights(model) if name not in tied)


def completion_seeds(generator: torch.Generator | Sequence[int], count: int) -> list[int]:
    """A seed a completion: those given, or as many drawn."""
    if not isinstance(generator, torch.Generator):
        return list(generator)
    return torch.randint(LARGEST_SEED, (count,), generator=generator, device=generator.device).tolist()


def request(prompt: Prompt, view: Literal["clean", "masked"]) -> dict[str, Any]:
    """A prompt as vLLM takes it: its tokens, one an image, and the pictures."""
    images = prompt.sample.images if view == "clean" else prompt.masked_images
    return {"prompt_token_ids": list(prompt.text_ids), "multi_modal_data": {"image": list(images)}}


def sampling_options(sampling: Sampling, seed: int, stop_ids: list[int], suppressed: list[int]) -> dict[str, Any]:
    """The fields of vLLM's SamplingParams. The logits come divided by the temperature already: what is left of it is
    whether to sample at all."""
    return {
        "temperature": 1.0 if sampling.temperature else 0.0,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_completion_length,
        "min_tokens": sampling.min_completion_length,
        "stop_token_ids": stop_ids,
        "logit_bias": dict.fromkeys(suppressed, NEVER),
        "logprobs": 0,  # of the token that was sampled
        "seed": seed,
    }


def check_prompt(prompt: Prompt, read: Sequence[int], tokenizer: Any) -> None:
    """Raises PromptMismatch where vLLM read other tokens than the policy is trained on."""
    trained, read = prompt.clean["input_ids"][0].tolist(), list(read)
    if trained == read:
        return
    place = next(
        (i for i, (a, b) in enumerate(zip(trained, read, strict=False)) if a != b), min(len(trained), len(read))
    )

    def around(ids: list[int]) -> str:
        return repr(tokenizer.decode(ids[max(place - 4, 0) : place + 4]))

    raise PromptMismatch(
        f"vLLM read the prompt of row {prompt.sample.id!r} otherwise than the policy: {len(read)} tokens for "
        f"{len(trained)}, which differ from token {place} on: {around(read)} in vLLM, {around(trained)} in training. "
        "Write rollout_engine: transformers, which reads what is trained on."
    )


def completion(
    tokenizer: Any, ids: Sequence[int], logprobs: list[float], finished: bool, sampling: Sampling
) -> Completion:
    """What vLLM sampled. It does not know the end of a box as an end: what it wrote behind is dropped."""
    length = box_end(tokenizer, list(ids)) if sampling.stop_on_boxed else None
    ids = list(ids)[:length]
    return Completion(
        ids, tokenizer.decode(ids, skip_special_tokens=True), finished or length is not None, logprobs[:length]
    )


def box_end(tokenizer: Any, ids: list[int]) -> int | None:
    """The number of tokens up to the end of the first complete `\\boxed{...}`; None where there is none."""
    return next((n for n in range(1, len(ids) + 1) if holds_box(tokenizer, ids[:n])), None)
