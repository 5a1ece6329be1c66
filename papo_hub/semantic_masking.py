"""The masked view that hides what a vision encoder looks at: cells ranked by its attention (PAPO, arXiv 2507.06448,
semantic-aware masking)."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate
from transformers import AutoImageProcessor, AutoModel

from papo_hub.images import to_rgb
from papo_hub.masking import blackened, cell_grid
from papo_hub.modeling.loading import load_safely

MOST_PATCHES = 576  # that the encoder sees at once: its attention grows with their square
LAYERS = (5 / 12, 9 / 12)  # of the encoder's depth: layers 6 to 9 of 12


@dataclass(frozen=True)
class SemanticPatchMask:
    """The cells that the encoder attends to most turn black: ⌈ratio · cells⌉ of them, of equal ones the first.

    A cell's saliency is the attention of the class token to it, the mean over heads and over the layers 6 to 9 of 12 (of
    another depth, as many in the same place). The encoder sees the image with one of its patches a cell, or fewer where
    there are more than 576 cells. Deterministic: nothing is drawn from the generator.

    Args:
        encoder: a folder or Hub id of a vision transformer with a class token, as "facebook/dinov2-base". Loaded once a
            process, from safetensors, on the CPU.
        patch_size: side of a cell, in pixels of the original image.
        ratio: share of the cells that are hidden.

    Raises ValueError unless 0 <= ratio <= 1 and patch_size is an integer >= 1; where the encoder shows no attention or has
    no class token, and OSError where there is none, when the first image is masked.
    """

    encoder: str
    patch_size: int = 14  # pixels
    ratio: float = 0.6

    def __post_init__(self) -> None:
        if not isinstance(self.patch_size, int) or self.patch_size < 1:
            raise ValueError(f"patch_size must be an integer of at least 1 pixel, not {self.patch_size!r}")
        if not 0 <= self.ratio <= 1:
            raise ValueError(f"ratio is a share and must lie in [0, 1], not {self.ratio!r}")

    def __call__(self, image: Image.Image, generator: torch.Generator | None = None) -> Image.Image:
        """A new RGB image of the same size."""
        ranks = self.saliency(image).flatten()
        count = math.ceil(self.ratio * ranks.size - 1e-9)  # 0.2 · 15 is 3, though not in binary
        hidden = np.zeros(ranks.size, dtype=bool)
        hidden[np.argsort(-ranks, kind="stable")[:count]] = True
        return blackened(image, hidden.reshape(cell_grid(image, self.patch_size)), self.patch_size)

    @torch.no_grad()
    def saliency(self, image: Image.Image) -> np.ndarray:
        """(rows, columns) of cells: the attention of the class token to each."""
        model, processor, options = _encoder(self.encoder)
        cells = cell_grid(image, self.patch_size)
        shrink = min(1.0, math.sqrt(MOST_PATCHES / (cells[0] * cells[1])))
        rows, columns = (max(int(side * shrink), 1) for side in cells)
        side = model.config.patch_size
        # What lies beyond the right and bottom edges belongs to cut cells: the grid starts at the top left corner.
        whole = Image.new("RGB", (cells[1] * self.patch_size, cells[0] * self.patch_size))
        whole.paste(to_rgb(image))
        seen = whole.resize((columns * side, rows * side), Image.Resampling.BICUBIC)
        pixels = processor(seen, do_resize=False, do_center_crop=False, return_tensors="pt")["pixel_values"]
        layers = model(pixels, output_attentions=True, **options).attentions
        if not layers:
            raise ValueError(f"mask_encoder: {self.encoder} shows no attention, so nothing ranks the patches.")
        first, last = (int(share * len(layers)) for share in LAYERS)
        chosen = torch.stack(layers[first : max(last, first + 1)])  # (layers, 1, heads, tokens, tokens)
        if chosen.shape[-1] <= rows * columns:
            raise ValueError(f"mask_encoder: {self.encoder} has no class token whose attention ranks the patches.")
        attention = chosen[:, 0, :, 0, -rows * columns :].mean((0, 1)).view(1, 1, rows, columns)
        if (rows, columns) != cells:
            attention = interpolate(attention, size=cells, mode="bilinear", align_corners=False)
        return attention[0, 0].numpy()


@lru_cache(maxsize=2)
def _encoder(name: str) -> tuple[torch.nn.Module, Any, dict[str, bool]]:
    """The encoder, its image processor, and what its forward needs to take images of any size."""
    model = load_safely(AutoModel, name, attn_implementation="eager", dtype=torch.float32).eval()
    if "interpolate_pos_encoding" in inspect.signature(model.forward).parameters:
        options = {"interpolate_pos_encoding": True}
    else:
        options = {}
    return model, AutoImageProcessor.from_pretrained(name, trust_remote_code=False, backend="pil"), options
