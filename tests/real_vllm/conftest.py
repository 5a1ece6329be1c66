"""A model that vLLM can run on a CPU, whose attention kernels know no heads of 16 numbers as the tiny model has them."""

import pytest
import torch
from PIL import Image

from papo_hub.batch import Sample
from papo_hub.data import encode
from papo_hub.masking import RandomPatchMask
from papo_hub.modeling import load_processor, load_vlm, tiny
from papo_hub.randomness import derived_generator


@pytest.fixture(scope="session")
def wide_model_folder(tmp_path_factory):
    """The tiny model, random, with two heads of 32 numbers instead of four of 16."""

    def wide(vocabulary):
        config = narrow(vocabulary)
        config.text_config.num_attention_heads, config.text_config.num_key_value_heads = 2, 1
        config.text_config.rope_parameters["mrope_section"] = [8, 4, 4]
        return config

    narrow = tiny.tiny_config
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "tiny_config", wide)
        return tiny.build_tiny(tmp_path_factory.mktemp("wide") / "model")


@pytest.fixture(scope="session")
def processor(wide_model_folder):
    """With pixel limits that are not the folder's own."""
    size = {"shortest_edge": 28 * 28, "longest_edge": 12 * 28 * 28}
    return load_processor(wide_model_folder, padding_side="left", size=size)


@pytest.fixture(scope="session")
def prompts(processor):
    """In both views: one image above the pixel limit; two images; a text of more than a block of vLLM's cache, which is 128
    tokens on a CPU: nothing of a shorter prompt is remembered."""

    def picture(width, height):
        pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
        return Image.fromarray(pixels.numpy())

    generator = derived_generator("vllm prompts")
    samples = [
        Sample("a", "<image>sum: ? 4 ?", "9", (picture(224, 168),)),
        Sample("b", "first <image> then <image> which is largest?", "2", (picture(56, 84), picture(28, 56))),
        Sample("c", f"<image>evens: {' 1 2 3' * 60}", "60", (picture(20, 20),)),
    ]
    mask = RandomPatchMask(14, 0.9)
    return [encode(sample, processor, "", mask=mask, generator=generator) for sample in samples]


@pytest.fixture
def model(wide_model_folder):
    return load_vlm(wide_model_folder, dtype=torch.float32)


@pytest.fixture(scope="session")
def shared_engine(wide_model_folder, processor):
    """One for all tests: a process has one vLLM in its life."""
    from papo_hub.rollout import VllmEngine

    first = load_vlm(wide_model_folder, dtype=torch.float32)
    return VllmEngine(first, processor, max_length=512, batch_size=16, memory=0.1)


@pytest.fixture
def engine(shared_engine, model):
    """It samples from `model`."""
    shared_engine.model = model
    shared_engine.rest()
    return shared_engine
