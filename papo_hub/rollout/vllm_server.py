"""Sampling in a vLLM server: other GPUs, another machine. Prompts go there as chats with pictures, weights over vLLM's own
interface for them (`/start_weight_update` and so on), by NCCL or through a folder that both sides see.

The server is started by hand (docs/vllm.md) with the extension of `vllm_worker`. All processes of the run sample from it;
the main one sends the weights.
"""

from __future__ import annotations

import base64
import io
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from papo_hub.batch import Completion, Prompt
from papo_hub.config import ConfigError
from papo_hub.rollout.base import Sampling
from papo_hub.rollout.transformers import image_token_ids, stop_token_ids
from papo_hub.rollout.vllm import check_prompt, completion, completion_seeds, named_weights, sampling_options
from papo_hub.shared_prefix import bare

FILE_BYTES = 2**30  # of weights in a file: neither the memory nor the disk holds all of them a second time
ATTEMPTS, PAUSE = 4, 0.5  # to connect, and seconds between them
PATIENCE = 3600  # seconds for an answer: the longest completion, behind all others in the queue
LOOK_AROUND = 0.5  # seconds between looks whether the completions are still wanted
NOT_THE_SERVERS = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}  # its model's file may name others


class ServerError(RuntimeError):
    """The vLLM server refused something, or is gone."""


class Server:
    """The HTTP interface of a vLLM server that was started with VLLM_SERVER_DEV_MODE=1."""

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url.rstrip("/")

    def call(self, path: str, body: dict[str, Any] | None = None, method: str = "POST") -> Any:
        """What it answers, from JSON. A connection that is refused is tried again. Raises ServerError with its words."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        asked = urllib.request.Request(f"{self.base_url}/{path}", data, headers, method=method)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with urllib.request.urlopen(asked, timeout=PATIENCE) as answer:
                    text = answer.read()
                return json.loads(text) if text else None
            except urllib.error.HTTPError as error:
                said = error.read().decode(errors="replace")[:500]
                raise ServerError(f"vLLM at {self.base_url} answers /{path} with {error.code}: {said}") from None
            except OSError as error:
                refused = isinstance(
                    getattr(error, "reason", error), ConnectionRefusedError
                )  # it asked for nothing yet
                if not refused or attempt == ATTEMPTS:
                    raise ServerError(f"vLLM at {self.base_url} does not answer /{path}: {error}") from None
            time.sleep(PAUSE)


class Sender(Protocol):
    def send(self) -> None:
        """Send all weights as they are now. Runs on the main process."""
        ...


class FolderSender:
    """Weights through a folder that the server sees under the same name, a file of at most 1 GiB at a time."""

    def __init__(self, server: Server, model: torch.nn.Module, folder: Path) -> None:
        self.server, self.model, self.folder = server, model, folder

    def send(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder.resolve() / "weights.safetensors"
        self.server.call("start_weight_update")
        try:
            for part in parts(named_weights(self.model), FILE_BYTES):
                save_file({name: value.cpu().contiguous() for name, value in part.items()}, file)
                self.server.call("update_weights", {"update_info": {"path": str(file)}})
        finally:
            file.unlink(missing_ok=True)
        self.server.call("finish_weight_update")


class NcclSender:
    """Weights from this GPU to those of the server, by vLLM's own sender."""

    def __init__(self, server: Server, model: torch.nn.Module) -> None:
        from vllm.distributed.weight_transfer import (
            HTTPVLLMWeightSyncClient,
            ModuleSource,
            WeightTransferTrainerFactory,
        )
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
        from vllm.utils.network_utils import get_ip, get_open_port

        workers = server.call("get_world_size", method="GET")["world_size"]
        meeting = NCCLTrainerInitInfo(get_ip(), get_open_port(), 1 + workers, rank=0)
        client = HTTPVLLMWeightSyncClient(server.base_url, timeout=PATIENCE)
        self.sender = WeightTransferTrainerFactory.trainer_init(meeting, client=client, source=ModuleSource(model))

    def send(self) -> None:
        self.sender.send_weights()


class VllmServerEngine:
    """Samples from a vLLM server that is sent the weights of a Hugging Face model.

    Args:
        model: the bare model (not wrapped by accelerate).
        processor: of the prompts; the server has its own, whose reading of each prompt is compared.
        base_url: such as http://localhost:8000.
        folder: that both sides see, for the weights; None: they go by NCCL.
        batch_size: completions asked for at the same time.

    Raises ConfigError where no server answers, or NCCL is asked for without a GPU.
    """

    def __init__(
        self, model: torch.nn.Module, processor: Any, base_url: str, folder: str | None = None, batch_size: int = 64
    ) -> None:
        self.model, self.tokenizer = bare(model), processor.tokenizer
        self.stop_ids = sorted(stop_token_ids(self.model, self.tokenizer))
        self.suppressed = sorted(image_token_ids(self.model.config))
        self.server = Server(base_url)
        if folder is None and self.model.device.type != "cuda":
            raise ConfigError(
                "vllm_server_weights_folder: without a folder the weights go by NCCL, from a GPU to GPUs, and the model is on "
                f"the {self.model.device.type}; name a folder that the server sees, too."
            )
        try:
            self.name = self.server.call("v1/models", method="GET")["data"][0]["id"]
        except ServerError as error:
            raise ConfigError(f"vllm_server_base_url: {error}. docs/vllm.md has the command that starts one.") from None
        self.folder, self.sender = folder, None
        self.pool = ThreadPoolExecutor(batch_size)
        self.temperature: float | None = None
        self.stale = True

    def prepare(self) -> None:
        """See `RolloutEngine.prepare`: the main process sends the weights, the others wait until they are there."""
        if not self.stale:
            return
        several = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
        if not several or torch.distributed.get_rank() == 0:
            if self.sender is None:
                through_folder = self.folder is not None
                self.sender = (
                    FolderSender(self.server, self.model, Path(self.folder))
                    if through_folder
                    else NcclSender(self.server, self.model)
                )
            self.sender.send()
            # What the old weights computed: keys and values of prompts, features of images.
            if not self.server.call("reset_prefix_cache")["success"]:
                raise ServerError(
                    f"vLLM at {self.server.base_url} is busy for somebody else: it keeps its prefix cache."
                )
            self.server.call("reset_encoder_cache")
        if several:
            torch.distributed.barrier()
        self.stale = False

    def generate(
        self,
        prompts: list[Prompt],
        num_generations: int,
        sampling: Sampling,
        generator: torch.Generator | Sequence[int],
        view: Literal["clean", "masked"] = "clean",
        given_up: Callable[[], bool] = lambda: False,
    ) -> list[Completion]:
        """See `RolloutEngine.generate`, after `prepare`. Completions carry their tokens' log-probs in vLLM.

        Raises PromptMismatch; ServerError where the server fails, and RuntimeError before `prepare`.
        """
        if self.stale:
            raise RuntimeError("prepare() sends the weights, on every rank; call it before generate().")
        if (tempered := sampling.temperature or 1.0) != self.temperature:
            self.server.call("collective_rpc", {"method": "set_temperature", "args": [str(tempered)]})
            self.temperature = tempered
        seeds = completion_seeds(generator, len(prompts) * num_generations)
        chats = [chat(prompt, view) for prompt in prompts]
        waiting = [
            self.pool.submit(
                self._ask, chats[i // num_generations], sampling_options(sampling, seed, self.stop_ids, self.suppressed)
            )
            for i, seed in enumerate(seeds)
        ]
        while wait(waiting, LOOK_AROUND, FIRST_EXCEPTION).not_done:
            failed = any(future.done() and future.exception() for future in waiting)
            if failed or given_up():
                for future in waiting:
                    future.cancel()
                self.server.call("abort_requests", {})
                if not failed:
                    return []
                break
        answers = [future.result() for future in waiting]
        for i, answer in enumerate(answers):
            check_prompt(prompts[i // num_generations], answer["prompt_token_ids"], self.tokenizer)
        return [self._completion(answer["choices"][0], sampling) for answer in answers]

    def rest(self) -> None:
        """See `RolloutEngine.rest`."""
        self.stale = True

    def close(self) -> None:
        """See `RolloutEngine.close`; the server stays."""
        self.pool.shutdown(cancel_futures=True)

    def _ask(self, content: list[dict[str, Any]], options: dict[str, Any]) -> dict[str, Any]:
        """One completion of a chat."""
        options = NOT_THE_SERVERS | options | {"logprobs": True, "top_logprobs": 0}
        messages = [{"role": "user", "content": content}]
        asked = {"model": self.name, "messages": messages, "return_token_ids": True, **options}
        return self.server.call("v1/chat/completions", asked)

    def _completion(self, choice: dict[str, Any], sampling: Sampling) -> Completion:
        logprobs = [token["logprob"] for token in choice["logprobs"]["content"]]
        return completion(self.tokenizer, choice["token_ids"], logprobs, choice["finish_reason"] == "stop", sampling)


def chat(prompt: Prompt, view: Literal["clean", "masked"]) -> list[dict[str, Any]]:
    """The user's turn as an OpenAI server takes it, pictures without loss."""
    images = iter(prompt.sample.images if view == "clean" else prompt.masked_images)
    return [
        {"type": "image_url", "image_url": {"url": as_url(next(images))}}
        if part is None
        else {"type": "text", "text": part}
        for part in prompt.turn
    ]


def as_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def parts(weights: Iterator[tuple[str, Tensor]], most: int) -> Iterator[dict[str, Tensor]]:
    """The weights in their order, in parts of at most so many bytes; a larger one goes alone."""
    part: dict[str, Tensor] = {}
    size = 0
    for name, value in weights:
        if part and size + value.nbytes > most:
            yield part
            part, size = {}, 0
        part[name] = value
        size += value.nbytes
    yield part
