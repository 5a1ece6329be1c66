"""What the tests share: no network, one thread, a tiny model on disk, and a recipe that runs in seconds."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported
os.environ.setdefault("ACCELERATE_USE_CPU", "true")  # the same numbers on every machine
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import signal
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from papo_hub.batch import Prompt, Sample
from papo_hub.config import TrainConfig, build
from papo_hub.data import encode
from papo_hub.masking import RandomPatchMask
from papo_hub.modeling import load_processor
from papo_hub.modeling.tiny import build_tiny
from papo_hub.randomness import derived_generator
from papo_hub.trainer import train
from papo_hub.warmup import WarmupConfig, warm_up

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # started in a script's background, which programs inherit
    signal.signal(signal.SIGINT, signal.default_int_handler)

FAST = {
    "dataset_name": "digits",
    "prompt_suffix": "",
    "max_prompt_length": 256,
    "objective": "papo_g",
    "gamma": 0.02,
    "prompts_per_step": 4,
    "prompts_per_update": 4,
    "num_generations": 2,
    "micro_batch_size": 8,
    "max_completion_length": 8,
    "max_steps": 3,
    "learning_rate": 1e-3,
    "save_steps": 0,
    "log_completions": False,
    "report_to": None,
}


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory) -> Path:
    """The tiny model with random weights, and its processor."""
    return build_tiny(tmp_path_factory.mktemp("tiny") / "model", seed=0)


@pytest.fixture(scope="session")
def warm_model_folder(tmp_path_factory) -> Path:
    """The tiny model after a few seconds of imitation: it answers in the right form, is sometimes right, and stops at
    different lengths, so that rewards and gradients are real."""
    folder = tmp_path_factory.mktemp("warm") / "model"
    return warm_up(WarmupConfig(output_dir=str(folder), rows=128, max_steps=60, batch_size=16, prompt_suffix=""))


@pytest.fixture(scope="session")
def tiny_processor(tiny_model_folder):
    return load_processor(tiny_model_folder)


@pytest.fixture(scope="session")
def tiny_prompts(tiny_processor) -> list[Prompt]:
    """Three prompts of unequal lengths in both views; the second has two images."""

    def picture(width, height):
        pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
        return Image.fromarray(pixels.numpy())

    generator, mask = derived_generator("tiny prompts"), RandomPatchMask(14, 0.9)
    samples = [
        Sample("a", "<image>sum: ? 4 ?", "9", (picture(84, 28),)),
        Sample("b", "first <image> then <image> which is largest?", "2", (picture(56, 84), picture(28, 56))),
        Sample("c", "<image>evens: 1 2 3", "1", (picture(28, 28),)),
    ]
    return [encode(sample, tiny_processor, "", mask=mask, generator=generator) for sample in samples]


@pytest.fixture
def fast_config(tiny_model_folder, tmp_path):
    """A recipe of a few seconds: fast_config(**overrides) → TrainConfig, its run in tmp_path / "run"."""

    def make(**overrides) -> TrainConfig:
        places = {"model_name_or_path": str(tiny_model_folder), "output_dir": str(tmp_path / "run")}
        return build(FAST | places | overrides)

    return make


@pytest.fixture(scope="session")
def finished_run(tiny_model_folder, tmp_path_factory) -> Path:
    """A run of two steps, measured before and after; not to be changed: copy it."""
    folder = tmp_path_factory.mktemp("finished")
    places = {"model_name_or_path": str(tiny_model_folder), "output_dir": str(folder / "run")}
    measured = {"max_steps": 2, "eval_dataset_name": "digits", "eval_problems": 6, "eval_samples": 2}
    return train(build(FAST | places | measured))


@pytest.fixture
def fresh_accelerate():
    """accelerate fixes the precision once a process; a test that needs another than the rest asks for this."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def without_report(monkeypatch) -> None:
    """Runs end with their model: no figures, no card."""
    monkeypatch.setattr("papo_hub.trainer.finish_run", lambda *arguments: None)
