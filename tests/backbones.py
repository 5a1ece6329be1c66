"""Tiny random models of seven architectures, each with prompts as its own processor makes them.

A route that computes log-probs faster must give the plain route's numbers on every one of them. They differ in what
such routes tend to get wrong: rotary positions in three dimensions or one, images as patches, tiles or padded stacks of
tiles, features added inside the text layers, sliding windows, image tokens that see one another in both directions.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from PIL import Image
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForImageTextToText, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.gemma3.processing_gemma3 import Gemma3Processor
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.internvl.processing_internvl import InternVLProcessor
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

from papo_hub.randomness import derived_generator

# Text and the sizes of its images in pixels, (width, height). "@" stands where an image goes.
PROMPTS = (
    ("@ how many?", [(96, 32)]),
    ("of @ and then @ which is the larger one?", [(40, 72), (64, 64)]),
    ("sum @", [(32, 32)]),
    ("no picture, 2 + 2?", []),
)
TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT |= {"num_key_value_heads": 2, "max_position_embeddings": 2048}
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION |= {"image_size": 32, "patch_size": 8}
TILE = {"height": 32, "width": 32}
CHARACTERS = string.digits + string.ascii_letters + string.punctuation + " \n"


@dataclass(frozen=True)
class Backbone:
    """A random model in float64 and what its processor returns for prompts of unequal lengths.

    The prompts have one image, two images of different sizes, one smaller image, and none; where the architecture cuts
    images into tiles, the numbers of tiles differ.
    """

    name: str
    model: PreTrainedModel
    prompts: list[dict[str, Tensor]]

    def masked(self, prompt: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same prompt with other pixels. Of the same shape: no token and no position moves."""
        generator = derived_generator("masked", self.name)
        noise = torch.randn(prompt["pixel_values"].shape, generator=generator)
        return prompt | {"pixel_values": noise.to(prompt["pixel_values"].dtype)}


def backbones() -> dict[str, Callable[[], Backbone]]:
    """Name → how to build it. Deterministic; the global random state is left as it was."""
    makers = (qwen2_vl, qwen2_5_vl, qwen3_vl, internvl, smolvlm, llava_onevision, gemma3)
    return {maker.__name__: partial(build, maker) for maker in makers}


def build(maker: Callable) -> Backbone:
    config, processor, placeholder = maker()
    with torch.random.fork_rng(devices=[]):  # Hugging Face initialises from the global generator
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config).double().eval()
    generator = derived_generator("backbone", maker.__name__)
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases too: nothing is left at 0 or 1, where it would not show
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    prompts = []
    for text, sizes in PROMPTS:
        images = [picture(width, height, generator) for width, height in sizes]
        text = text.replace("@", placeholder)
        row = processor(text=[text], images=[images] if images else None, return_tensors="pt")  # one list a prompt
        prompts.append(dict(row))
    return Backbone(maker.__name__, model, prompts)


def picture(width: int, height: int, generator: torch.Generator) -> Image.Image:
    return Image.fromarray(torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8).numpy())


def tokenizer(*special: str, **named: str) -> PreTrainedTokenizerFast:
    """One token a character, and the special ones; `named` are those that processors look up as attributes."""
    special = ["<pad>", "<eos>", *special, *named.values()]
    vocabulary = {token: i for i, token in enumerate([*special, *CHARACTERS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="?", extra_special_tokens=named
    )


def without_video(stock: type) -> type:
    """The stock processor less its video part, which needs torchvision. Its parts follow from the signature."""

    class Processor(stock):
        def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **settings):
            super().__init__(image_processor, tokenizer, chat_template=chat_template, **settings)

    return Processor


# Each maker returns the configuration, the processor and what stands for an image in the processor's input.


def qwen(model_type: str, stock: type, patch_size: int, vision: dict, mrope: dict, tied: bool, **text):
    tokens = tokenizer("<|vision_start|>", "<|vision_end|>", image_token="<|image_pad|>", video_token="<|video_pad|>")
    config = CONFIG_MAPPING[model_type](
        text_config=TEXT | text | token_ids(tokens) | {"rope_parameters": {"rope_type": "default"} | mrope},
        vision_config={"depth": 2, "num_heads": 2, "patch_size": patch_size, "spatial_merge_size": 2} | vision,
        image_token_id=tokens.image_token_id,
        video_token_id=tokens.video_token_id,
        vision_start_token_id=tokens.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokens.convert_tokens_to_ids("<|vision_end|>"),
        tie_word_embeddings=tied,
    )
    images = Qwen2VLImageProcessorPil(
        patch_size=patch_size, merge_size=2, size={"shortest_edge": 28 * 28, "longest_edge": 96 * 96}
    )
    placeholder = "<|vision_start|><|image_pad|><|vision_end|>"
    return config, without_video(stock)(images, tokens), placeholder


def qwen2_vl():
    vision = {"embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2}
    mrope = {"rope_theta": 1000.0, "mrope_section": [2, 1, 1]}
    return qwen("qwen2_vl", Qwen2VLProcessor, 7, vision, mrope, tied=True)


def qwen2_5_vl():
    """Attention within windows of the image in the first vision layer."""
    vision = {"hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 32}
    vision |= {"window_size": 28, "fullatt_block_indexes": [1]}
    mrope = {"rope_theta": 1000.0, "mrope_section": [2, 1, 1]}
    return qwen("qwen2_5_vl", Qwen2_5_VLProcessor, 7, vision, mrope, tied=False)


def qwen3_vl():
    """Features of an earlier vision layer are added to the image tokens behind the first text layer."""
    vision = {"hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 32}
    vision |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    mrope = {"rope_theta": 1000.0, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    return qwen("qwen3_vl", Qwen3VLProcessor, 8, vision, mrope, tied=False, head_dim=8)


def internvl():
    """Tiles and a thumbnail; the tiles of all images of a prompt lie one behind the other."""
    tokens = tokenizer(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    config = CONFIG_MAPPING["internvl"](
        text_config=TEXT | token_ids(tokens) | {"model_type": "qwen2"},
        vision_config=VISION,
        image_token_id=tokens.context_image_token_id,
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    images = GotOcr2ImageProcessorPil(size=TILE, max_patches=4, crop_to_patches=True)
    return config, without_video(InternVLProcessor)(images, tokens, image_seq_length=4), "<IMG_CONTEXT>"


def smolvlm():
    """Tiles and a whole view; (1, tiles, 3, height, width) a prompt, with a mask of its pixels."""
    grid = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    tokens = tokenizer("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *grid)
    config = CONFIG_MAPPING["smolvlm"](
        text_config=TEXT | token_ids(tokens) | {"model_type": "llama"},
        vision_config=VISION,
        image_token_id=tokens.convert_tokens_to_ids("<image>"),
        pad_token_id=tokens.pad_token_id,
        scale_factor=2,
        tie_word_embeddings=True,
    )
    images = Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    return config, Idefics3Processor(images, tokens, image_seq_len=4), "<image>"


def llava_onevision():
    """One image is cut into tiles, (1, tiles, 3, height, width); of several each is a single tile."""
    tokens = tokenizer(image_token="<image>", video_token="<video>")
    pinpoints = [[height, width] for height in (32, 64) for width in (32, 64, 96)]
    config = CONFIG_MAPPING["llava_onevision"](
        text_config=TEXT | token_ids(tokens) | {"model_type": "qwen2"},
        vision_config=VISION | {"model_type": "siglip_vision_model", "vision_use_head": False},
        image_token_index=tokens.image_token_id,
        video_token_index=tokens.video_token_id,
        image_grid_pinpoints=pinpoints,
        tie_word_embeddings=False,
    )
    images = LlavaOnevisionImageProcessorPil(size=TILE, image_grid_pinpoints=pinpoints)
    processor = without_video(LlavaOnevisionProcessor)(
        images, tokens, num_image_tokens=16, vision_feature_select_strategy="full"
    )
    return config, processor, "<image>"


def gemma3():
    """The first text layer sees a sliding window; the tokens of an image see one another in both directions."""
    tokens = tokenizer(boi_token="<start_of_image>", image_token="<image_soft_token>", eoi_token="<end_of_image>")
    text = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16}
    text |= {"layer_types": ["sliding_attention", "full_attention"]}
    config = CONFIG_MAPPING["gemma3"](
        text_config=TEXT | token_ids(tokens) | text,
        vision_config=VISION | {"vision_use_head": False},
        image_token_index=tokens.image_token_id,
        boi_token_index=tokens.boi_token_id,
        eoi_token_index=tokens.eoi_token_id,
        mm_tokens_per_image=4,
        tie_word_embeddings=True,
    )
    images = Gemma3ImageProcessorPil(size=TILE)
    return config, Gemma3Processor(images, tokens, image_seq_length=4), "<start_of_image>"


def token_ids(tokens: PreTrainedTokenizerFast) -> dict[str, int]:
    return {
        "vocab_size": len(tokens),
        "pad_token_id": tokens.pad_token_id,
        "bos_token_id": tokens.eos_token_id,
        "eos_token_id": tokens.eos_token_id,
    }
