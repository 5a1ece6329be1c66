"""A tiny vision-language model of a real architecture, made on the spot: Qwen2.5-VL with 0.2 million parameters.

Same classes, files and chat format as the released models; only the sizes are small and the weights random. It serves the
quick start, the tests, and anyone who wants to step through a training run on a laptop.
"""

from __future__ import annotations

import string
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForImageTextToText, GenerationConfig, PreTrainedTokenizerFast, Qwen2_5_VLConfig

from .processing_papo import ImageTextProcessor, image_processor_class

SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
WORDS = ["<think>", "</think>", " \\boxed{", "\\boxed{", "user", "assistant", "sum", "largest", "evens", " ?"]
WORDS += [f" {digit}" for digit in range(10)]

CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>{%- else -%}{{ part.text }}{%- endif -%}
{%- endfor -%}
{%- endif -%}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}
"""


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Characters, plus whole tokens for the words of the digits task. Anything that is not ASCII is unknown."""
    characters = [c for c in string.printable if c not in "\x0b\x0c\r"]
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, "<|unk|>", *WORDS, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unk|>"))
    longest_first = sorted(WORDS, key=len, reverse=True)
    pattern = "|".join("".join(c if c.isalnum() else f"\\x{{{ord(c):x}}}" for c in word) for word in longest_first)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(f"{pattern}|[\\s\\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<|unk|>",
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=SPECIAL[1:],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def tiny_processor() -> ImageTextProcessor:
    """The processor of the tiny model: images from 28 × 28 px on, at most 128 × 28 × 28 px."""
    images = image_processor_class()(size={"shortest_edge": 28 * 28, "longest_edge": 128 * 28 * 28})
    return ImageTextProcessor(image_processor=images, tokenizer=tiny_tokenizer(), chat_template=CHAT_TEMPLATE)


def tiny_config(vocabulary: int) -> Qwen2_5_VLConfig:
    """Qwen2.5-VL's configuration at 0.2 million parameters."""
    token = {name: i for i, name in enumerate(SPECIAL)}
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": 64,
            "intermediate_size": 192,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "initializer_range": 0.05,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0, "mrope_section": [4, 2, 2]},
            "bos_token_id": token["<|endoftext|>"],
            "eos_token_id": token["<|im_end|>"],
            "pad_token_id": token["<|endoftext|>"],
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_heads": 2,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [0],
            "initializer_range": 0.05,
        },
        image_token_id=token["<|image_pad|>"],
        video_token_id=token["<|video_pad|>"],
        vision_start_token_id=token["<|vision_start|>"],
        vision_end_token_id=token["<|vision_end|>"],
        tie_word_embeddings=True,
    )


def build_tiny(path: str | Path, seed: int = 0) -> Path:
    """Write the tiny model with random weights, and its processor, to a folder. Returns the folder."""
    processor = tiny_processor()
    with torch.random.fork_rng(devices=[]):  # Hugging Face initialises from the global generator
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(tiny_config(len(processor.tokenizer)))
    model.generation_config = GenerationConfig(
        eos_token_id=processor.tokenizer.eos_token_id, pad_token_id=processor.tokenizer.pad_token_id
    )
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return Path(path)
