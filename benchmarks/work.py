"""The work that both sides do: one small Qwen2.5-VL, one question with an image, and completions that are given.

All of it follows from the shape alone, so each side makes it for itself and gets the same.
"""

from __future__ import annotations

import math
import string
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, GenerationConfig, Qwen2_5_VLConfig

from papo_hub.masking import RandomPatchMask
from papo_hub.modeling.tiny import SPECIAL, tiny_processor

VOCABULARY = 2048
MAX_PROMPT = 4096  # tokens
CELL = 28  # pixels: an image token stands for a square of CELL × CELL
IMAGE_TOKENS = [i for i, token in enumerate(SPECIAL) if "vision" in token or "image" in token or "video" in token]
MASK = RandomPatchMask(patch_size=14, ratio=0.6)
TEXT = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 768,
    "vocab_size": VOCABULARY,
}
# By FLOPs an image token costs as much of a text token as in the real models; see the law's `vision_share`.
VISION = {"hidden_size": 128, "depth": 2, "num_heads": 4, "intermediate_size": 384, "fullatt_block_indexes": [1]}


@dataclass(frozen=True)
class Shape:
    """P prompt tokens (three quarters of them the image's), G completions of T tokens; ragged: of T/G, 2T/G, …, T."""

    prompt: int
    generations: int
    completion: int
    ragged: bool = False

    @property
    def image_tokens(self) -> int:
        return self.prompt * 3 // 4

    @property
    def lengths(self) -> list[int]:
        """Tokens of each completion."""
        if not self.ragged:
            return [self.completion] * self.generations
        return [max(self.completion * (i + 1) // self.generations, 1) for i in range(self.generations)]

    def __str__(self) -> str:
        return f"P {self.prompt}, G {self.generations}, T {self.completion}{' ragged' if self.ragged else ''}"


@dataclass(frozen=True)
class Work:
    """What a shape stands for."""

    shape: Shape
    question: str
    image: Image.Image
    masked_image: Image.Image
    completion_ids: Tensor  # (G, T)
    completion_mask: Tensor  # (G, T) bool


def save_model(folder: Path) -> None:
    """Write the model, with random weights, and its processor."""
    processor = tiny_processor()
    processor.image_processor.size["longest_edge"] = MAX_PROMPT * CELL**2
    tokenizer = processor.tokenizer
    tokenizer.add_tokens([f"<{i}>" for i in range(VOCABULARY - len(tokenizer))])  # every id that is sampled has a text
    token = {name: i for i, name in enumerate(SPECIAL)}
    config = Qwen2_5_VLConfig(
        text_config=TEXT
        | {
            "max_position_embeddings": 2 * MAX_PROMPT,
            "initializer_range": 0.05,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [8, 12, 12]},
            "bos_token_id": token["<|endoftext|>"],
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "tie_word_embeddings": True,
        },
        vision_config=VISION | {"out_hidden_size": TEXT["hidden_size"], "initializer_range": 0.05},
        image_token_id=token["<|image_pad|>"],
        video_token_id=token["<|video_pad|>"],
        vision_start_token_id=token["<|vision_start|>"],
        vision_end_token_id=token["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):  # Hugging Face initialises from the global generator
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def make_work(shape: Shape, processor) -> Work:
    """The question, its image and the completions of a shape.

    Raises ValueError for a prompt too short to hold the chat format beside its image.
    """
    text_tokens = shape.prompt - shape.image_tokens - _chat_tokens(processor)
    if text_tokens < 1 or shape.prompt > MAX_PROMPT:
        raise ValueError(f"P = {shape.prompt} does not fit: 64 to {MAX_PROMPT} tokens do")
    alphabet = string.ascii_lowercase  # a token a letter
    generator = torch.Generator().manual_seed(0)
    rows = max(i for i in range(1, math.isqrt(shape.image_tokens) + 1) if shape.image_tokens % i == 0)
    size = (CELL * rows, CELL * (shape.image_tokens // rows), 3)
    image = Image.fromarray(torch.randint(0, 256, size, generator=generator, dtype=torch.uint8).numpy())
    ids = torch.randint(len(SPECIAL) + 1, VOCABULARY, (shape.generations, shape.completion), generator=generator)
    mask = torch.arange(shape.completion) < torch.tensor(shape.lengths).unsqueeze(1)
    return Work(
        shape,
        question=(alphabet * (text_tokens // len(alphabet) + 1))[:text_tokens],
        image=image,
        masked_image=MASK(image, generator),
        completion_ids=ids.masked_fill(~mask, processor.tokenizer.pad_token_id),
        completion_mask=mask,
    )


def _chat_tokens(processor) -> int:
    """Tokens of a prompt besides those of its image and its question."""
    text = processor.apply_chat_template(chat_messages("", None), add_generation_prompt=True, tokenize=False)
    return len(processor.tokenizer(text).input_ids) - 1


def chat_messages(question: str, image: Image.Image | None) -> list[dict]:
    """The question as a chat: the image, then the text."""
    return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]


def reward(text: str) -> float:
    """Any reward would do, as long as the completions of a group differ in it: the share of digits."""
    return sum(map(str.isdigit, text)) / max(len(text), 1)


@contextmanager
def counting(*models: torch.nn.Module) -> Iterator[dict[str, int]]:
    """Counts what passes through the models meanwhile: "tokens" of the language model, "patches" of the vision tower."""
    counts = {"tokens": 0, "patches": 0}

    def tokens(module, arguments, keywords):
        embedded = keywords.get("inputs_embeds")
        counts["tokens"] += math.prod((keywords["input_ids"] if embedded is None else embedded).shape[:2])

    def patches(module, arguments, keywords):
        counts["patches"] += len(arguments[0] if arguments else keywords["hidden_states"])

    hooks = []
    for model in models:
        hooks.append(model.model.language_model.register_forward_pre_hook(tokens, with_kwargs=True))
        hooks.append(model.model.visual.register_forward_pre_hook(patches, with_kwargs=True))
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()
