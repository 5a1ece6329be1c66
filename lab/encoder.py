"""A vision encoder that knows digits: a tiny DINOv2 that has learned to name the three digits of an image from its class token.

Semantic masking hides what an encoder attends to. No pretrained one reads 28 × 84 pixels; this one is trained in seconds, on
the scans of the warm-up.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm
from transformers import Dinov2Config, Dinov2Model
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

from papo_hub.digits import PLACES, TILE, DigitRows
from papo_hub.randomness import derived_generator

STEPS, BATCH, SEED = 400, 64, 0
CONFIG = Dinov2Config(
    hidden_size=48, num_hidden_layers=3, num_attention_heads=4, mlp_ratio=2, patch_size=7, image_size=PLACES * TILE
)


def train_encoder(folder: Path) -> Path:
    """Write the encoder and its image processor, unless they are there."""
    if folder.exists():
        return folder
    rows = [DigitRows(scans=100, size=2048, seed=SEED)[index] for index in range(2048)]
    processor = BitImageProcessorPil(do_resize=False, do_center_crop=False)
    pixels = torch.cat([processor(row["images"], return_tensors="pt")["pixel_values"] for row in rows])
    digits = torch.tensor([[int(digit) for digit in row["reading"].split()] for row in rows])  # (N, 3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model, head = Dinov2Model(CONFIG), torch.nn.Linear(CONFIG.hidden_size, PLACES * 10)
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=2e-3)
    generator = derived_generator(SEED, "encoder")
    for _ in (bar := tqdm(range(STEPS), "encoder")):
        chosen = torch.randint(len(rows), (BATCH,), generator=generator)
        logits = head(model(pixels[chosen]).last_hidden_state[:, 0]).view(BATCH, 10, PLACES)
        loss = cross_entropy(logits, digits[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bar.set_postfix(loss=f"{loss.item():.2f}", right=f"{(logits.argmax(1) == digits[chosen]).float().mean():.0%}")
    partial = folder.with_name(f"partial-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    processor.save_pretrained(partial)
    partial.rename(folder)
    return folder


def ink(image: np.ndarray, patch: int = 7) -> np.ndarray:
    """How dark each cell of a grey image is, (rows, columns): what an encoder that sees digits should look at."""
    rows, columns = image.shape[0] // patch, image.shape[1] // patch
    return (255 - image.astype(float)).reshape(rows, patch, columns, patch).mean((1, 3))
