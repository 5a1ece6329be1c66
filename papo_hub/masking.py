"""The masked view: image + generator → the image with parts of it hidden.

A mask is a callable `(image, generator) -> image` that returns RGB of the same size and never changes its input. It
draws from the generator it is handed and from nothing else, so a run can be repeated and resumed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from .images import to_rgb


@dataclass(frozen=True)
class RandomPatchMask:
    """Random patch masking (PAPO, arXiv 2507.06448, section 3.2).

    Each cell of `patch_size` x `patch_size` pixels, counted from the top left corner of the **original** image (before
    any processor resizes it), turns black with probability `ratio`, independently of the others; the cut cells along
    the right and bottom edges are cells like any other. `ratio` 0 hides nothing, 1 everything.

    Raises ValueError unless 0 <= ratio <= 1 and patch_size is an integer >= 1.
    """

    patch_size: int = 14  # pixels
    ratio: float = 0.6

    def __post_init__(self) -> None:
        if not isinstance(self.patch_size, int) or self.patch_size < 1:
            raise ValueError(f"patch_size must be an integer of at least 1 pixel, not {self.patch_size!r}")
        if not 0 <= self.ratio <= 1:
            raise ValueError(f"ratio is a probability and must lie in [0, 1], not {self.ratio!r}")

    def __call__(self, image: Image.Image, generator: torch.Generator) -> Image.Image:
        """A new RGB image of the same size. Advances `generator` by one draw a cell."""
        pixels = np.array(to_rgb(image))  # (height, width, 3), a copy
        height, width = pixels.shape[:2]
        cells = (-(-height // self.patch_size), -(-width // self.patch_size))  # rounded up: cut cells count
        hidden = torch.rand(cells, generator=generator, device=generator.device).cpu().numpy() < self.ratio
        hidden = hidden.repeat(self.patch_size, axis=0).repeat(self.patch_size, axis=1)[:height, :width]
        pixels[hidden] = 0
        return Image.fromarray(pixels)


MASKS = {"random": RandomPatchMask}  # by the name recipes use for it: `mask_strategy`
