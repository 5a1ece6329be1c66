"""Whatever a dataset stores as an image → the RGB pixels a model is shown.

Datasets come from strangers: every way in which a file can be unusable ends in one exception with a readable reason, so
that a row can be skipped and counted instead of stopping a run.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 90_000_000  # about what Pillow itself starts to warn at: 270 MB once decoded
MAX_ASPECT_RATIO = 200  # Qwen2-VL's image processor (and its successors) raise above this

# A closed list: among Pillow's other readers some start external programs (EPS) or parse formats nobody trains on.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "PPM", "TIFF")

# What Pillow's readers raise on damaged files; its bomb warning only where a caller turns warnings into errors.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


class UnusableImage(ValueError):
    """An image that cannot be trained on; the message says why."""


def decode_image(source: bytes | Image.Image | Mapping | Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The image as upright, fully loaded RGB, independent of its source.

    `source` is encoded bytes, a PIL image, a `{"bytes", "path"}` mapping as `datasets` stores it, or a Path. A Path is
    opened as it is, so it must come from the caller's own configuration; a path *inside a row* is data and is refused.
    EXIF orientation is applied, the first frame of an animation is taken, and see `to_rgb` for the colours. The size is
    checked in the header, before a single pixel is decoded.

    Raises UnusableImage (a ValueError): no, truncated or foreign data; more than `max_pixels` pixels; one side more
    than MAX_ASPECT_RATIO times the other; a colour space without a conversion to RGB.
    """
    if isinstance(source, Mapping):
        path, source = source.get("path"), source.get("bytes")
        if source is None:
            raise UnusableImage(
                f"the row holds no bytes, only the path {path!r}, which is not opened on a dataset's word; "
                "embed the images when saving the dataset, or pass pathlib.Path(path) if you trust it"
            )
    if isinstance(source, Image.Image):
        return _finish(source, max_pixels)
    if isinstance(source, Path):
        if not source.is_file():
            raise UnusableImage(f"{source} is not a file")
        file = source
    elif isinstance(source, (bytes, bytearray, memoryview)):
        if not len(source):
            raise UnusableImage("the image has zero bytes")
        file = io.BytesIO(source)
    else:
        raise UnusableImage(
            f"an image must be bytes, a PIL image, a mapping with 'bytes', or a Path, not {type(source).__name__}"
        )
    try:
        image = Image.open(file, formats=FORMATS)
    except _DAMAGE as error:
        reason = str(error).removesuffix(f" {file!r}")  # which is an address of memory, another in each run
        raise UnusableImage(f"not a readable {', '.join(FORMATS)} image: {reason}") from error
    with image:
        return _finish(image, max_pixels)


def to_rgb(image: Image.Image) -> Image.Image:
    """The same picture in mode RGB, of the same size, never the same object.

    Transparency (RGBA, LA, a palette's or a tRNS colour) is laid over white, as Qwen's own loading utility does:
    diagrams are drawn in black on a transparent ground, and a plain conversion would put them on black. Grey values of
    more than 8 bits are scaled to their white level, where Pillow would clip them.

    Raises UnusableImage if Pillow knows no conversion.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _eight_bit(image)
    try:
        if image.has_transparency_data:
            ground = Image.new("RGBA", image.size, "white")
            return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
        return image.copy() if image.mode == "RGB" else image.convert("RGB")
    except ValueError as error:
        raise UnusableImage(f"mode {image.mode} cannot be converted to RGB: {error}") from error


def _eight_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits or floats → L. White is the smallest usual white level that no value exceeds."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    levels = (1.0, 255.0, 65535.0) if image.mode == "F" else (65535.0,)
    brightest = values.max()
    white = next((level for level in levels if brightest <= level), brightest)
    return Image.fromarray((values.clip(0) * (255 / white)).round().clip(0, 255).astype(np.uint8))


def _finish(image: Image.Image, max_pixels: int) -> Image.Image:
    width, height = image.size
    if min(width, height) < 1:
        raise UnusableImage(f"the image is empty: {width} x {height} pixels")
    if width * height > max_pixels:
        raise UnusableImage(f"{width} x {height} pixels are more than the limit of {max_pixels}")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise UnusableImage(
            f"{width} x {height} pixels: one side is more than {MAX_ASPECT_RATIO} times the other, "
            "which vision processors refuse"
        )
    try:
        image.load()
        upright = ImageOps.exif_transpose(image)
        return to_rgb(upright)
    except UnusableImage:
        raise
    except _DAMAGE as error:
        raise UnusableImage(f"the image is truncated or damaged: {error}") from error
