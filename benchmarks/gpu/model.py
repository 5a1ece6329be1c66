"""Qwen2.5-VL in the sizes of the 3B model, or tiny, with random weights made on the device; and prompts for it.

Speed depends on sizes and shapes alone, so no checkpoint and no tokenizer is needed: a prompt is tensors.
"""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from benchmarks.law import PATCH_VALUES, PATCHES_PER_TOKEN, QWEN_3B, Architecture
from papo_hub.batch import Prompt, Sample
from papo_hub.dry_run import KNOWN

TINY = Architecture(
    "tiny", 64, 2, 4, 2, 96, 512, vision_hidden=32, vision_blocks=2, vision_full_blocks=1, vision_mlp=48
)
TINY_SIZES = {
    "model_type": "qwen2_5_vl",
    "text_config": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]},
        "bos_token_id": 0,
        "eos_token_id": 0,
    },
    "vision_config": {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 64,
        "fullatt_block_indexes": [1],
    },
    "tie_word_embeddings": True,
    "image_token_id": 5,
    "video_token_id": 6,
    "vision_start_token_id": 7,
    "vision_end_token_id": 8,
}
SIZES = {"3b": (QWEN_3B, KNOWN["Qwen/Qwen2.5-VL-3B-Instruct"]), "tiny": (TINY, TINY_SIZES)}


class NoText:
    """In place of a tokenizer: what is sampled has no text, and no token ends it."""

    eos_token_id = None

    def batch_decode(self, ids: list[list[int]], skip_special_tokens: bool = True) -> list[str]:
        return [""] * len(ids)


def build(size: str, device: torch.device, dtype: torch.dtype, attention: str) -> tuple[Architecture, PreTrainedModel]:
    """The architecture's sizes and the model, in training mode, with `attention` for attn_implementation."""
    architecture, sizes = SIZES[size]
    torch.manual_seed(0)
    with torch.device(device):
        config = AutoConfig.for_model(**sizes)
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation=attention)
    model.generation_config.eos_token_id = None
    return architecture, model.train()


def prompt(model: PreTrainedModel, length: int, image: int, seed: int = 0) -> Prompt:
    """`length` tokens, of which `image` stand for one image of random pixels."""
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    ids = torch.randint(10, 200, (1, length), generator=generator)
    types = torch.zeros_like(ids)
    ids[0, 0], ids[0, image + 1] = config.vision_start_token_id, config.vision_end_token_id
    ids[0, 1 : image + 1], types[0, 1 : image + 1] = config.image_token_id, 1
    rows = max(i for i in range(1, int(image**0.5) + 1) if image % i == 0)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(image * PATCHES_PER_TOKEN, PATCH_VALUES, generator=generator),
        "image_grid_thw": torch.tensor([[1, 2 * rows, 2 * (image // rows)]]),
        "mm_token_type_ids": types,
    }
    return Prompt(Sample("0", "", "", ()), inputs)
