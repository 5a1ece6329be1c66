"""The other views: image + generator → the image with parts of it hidden, or with noise.

A view is made by a callable `(image, generator) -> image` that returns RGB of the same size and never changes its input. It
draws from the generator it is handed and from nothing else, so a run can be repeated and resumed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from .images import to_rgb

ViewMaker = Callable[[Image.Image, torch.Generator], Image.Image]


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
        cells = cell_grid(image, self.patch_size)
        hidden = torch.rand(cells, generator=generator, device=generator.device).cpu().numpy() < self.ratio
        return blackened(image, hidden, self.patch_size)


@dataclass(frozen=True)
class DiffusionNoise:
    """Gaussian noise as the forward process of a diffusion adds it (DVRP, arXiv 2601.06801; DDPM, arXiv 2006.11239).

        x' = √(1 - level) · x + √level · ε,   ε ~ N(0, 1), x in [-1, 1] a channel,   cut to [-1, 1]

    `level` 0 adds none, 1 leaves nothing but noise. Raises ValueError unless 0 <= level <= 1.
    """

    level: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.level <= 1:
            raise ValueError(f"level is a share of variance and must lie in [0, 1], not {self.level!r}")

    def __call__(self, image: Image.Image, generator: torch.Generator) -> Image.Image:
        """A new RGB image of the same size. Advances `generator` by one draw a channel and pixel."""
        pixels = np.asarray(to_rgb(image)) / 127.5 - 1  # (height, width, 3)
        noise = torch.randn(pixels.shape, generator=generator, device=generator.device).cpu().numpy()
        mixed = np.sqrt(1 - self.level) * pixels + np.sqrt(self.level) * noise
        return Image.fromarray(np.rint((mixed.clip(-1, 1) + 1) * 127.5).astype(np.uint8))


def cell_grid(image: Image.Image, patch_size: int) -> tuple[int, int]:
    """(rows, columns) of cells of patch_size x patch_size pixels, from the top left corner; cut ones count."""
    return -(-image.height // patch_size), -(-image.width // patch_size)


def blackened(image: Image.Image, hidden: np.ndarray, patch_size: int) -> Image.Image:
    """A new RGB image of the same size, black where `hidden` (rows, columns) is true of a cell."""
    pixels = np.array(to_rgb(image))  # (height, width, 3), a copy
    height, width = pixels.shape[:2]
    pixels[hidden.repeat(patch_size, axis=0).repeat(patch_size, axis=1)[:height, :width]] = 0
    return Image.fromarray(pixels)
