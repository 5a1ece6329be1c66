"""The views of an image in an evaluation: "clean", "mask-0.6" (patches hidden with that probability), "blank"."""

from __future__ import annotations

import re

import numpy as np
import torch
from PIL import Image

from papo_hub.config import ConfigError
from papo_hub.masking import RandomPatchMask
from papo_hub.randomness import derived_generator

CLEAN, BLANK = "clean", "blank"


def mask_view(ratio: float) -> str:
    """The name of the view in which each patch is hidden with probability `ratio`."""
    return f"mask-{ratio:.9f}".rstrip("0").rstrip(".")


def mask_ratio(view: str) -> float | None:
    """The ratio of a masked view, 0 for the clean one, None for the blank one.

    Raises ConfigError for what is no view.
    """
    if view in (CLEAN, BLANK):
        return 0.0 if view == CLEAN else None
    match = re.fullmatch(r"mask-(\d(?:\.\d+)?)", view)
    if not match or not 0 < float(match[1]) <= 1:
        raise ConfigError(f"{view!r} is no view: write clean, blank, or mask-R with a ratio R above 0 and up to 1.")
    return float(match[1])


def seen(images: tuple[Image.Image, ...], view: str, id: str, patch_size: int) -> tuple[Image.Image, ...]:
    """A problem's images in a view.

    The mask depends on the problem's id alone, so that every model is shown the same; what is hidden at one ratio is
    hidden at every larger one too. Blank: the image's own mean colour.
    """
    ratio = mask_ratio(view)
    if ratio is None:
        return tuple(Image.new("RGB", image.size, _mean_colour(image)) for image in images)
    if ratio == 0:
        return images
    mask, generator = RandomPatchMask(patch_size, ratio), mask_generator(id)
    return tuple(mask(image, generator) for image in images)


def mask_generator(id: str) -> torch.Generator:
    """What a problem's masks are drawn from."""
    return derived_generator("evaluation mask", id)


def _mean_colour(image: Image.Image) -> tuple[int, ...]:
    return tuple(int(round(channel)) for channel in np.asarray(image.convert("RGB")).mean((0, 1)))
