"""Whatever a dataset stores as an image → the RGB pixels a model is shown.

Datasets come from strangers: every way in which a file can be unusable ends in one exception with a readable reason, so
that a row can be skipped and counted instead of stopping a run.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 90_000_000  # about what Pillow itself starts to warn at: 360 MB once decoded
MAX_BYTES = 8 * MAX_PIXELS  # of a file: what the largest picture takes uncompressed, four channels of 16 bits
MAX_ROW_PIXELS = 3 * MAX_PIXELS  # of all images of a row
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


_BAND = 1 << 20  # pixels that are converted at a time
_ORIENTATION = 0x0112  # the EXIF tag


class UnusableImage(ValueError):
    """An image that cannot be trained on; the message says why."""


def decode_image(source: bytes | Image.Image | Mapping | Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The image as upright, fully loaded RGB, independent of its source.

    `source` is encoded bytes, a PIL image, a `{"bytes", "path"}` mapping as `datasets` stores it, or a Path. A Path is
    opened as it is, so it must come from the caller's own configuration; a path *inside a row* is data and is refused.
    EXIF orientation is applied, the first frame of an animation is taken, and see `to_rgb` for the colours. The size is
    checked in the header, before a single pixel is decoded.

    Memory peaks at about 12 bytes a pixel, whatever the format.

    Raises UnusableImage (a ValueError): no, truncated or foreign data; more than `max_pixels` pixels or MAX_BYTES bytes;
    one side more than MAX_ASPECT_RATIO times the other; a colour space without a conversion to RGB.
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
        file, size = source, source.stat().st_size
    elif isinstance(source, (bytes, bytearray, memoryview)):
        file, size = io.BytesIO(source), len(source)
    else:
        raise UnusableImage(
            f"an image must be bytes, a PIL image, a mapping with 'bytes', or a Path, not {type(source).__name__}"
        )
    if size == 0:
        raise UnusableImage("the image has zero bytes")
    if size > MAX_BYTES:
        raise UnusableImage(f"{size} bytes are more than the limit of {MAX_BYTES}")
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
    convert = _from_levels(image) if image.mode in ("I", "F") or image.mode.startswith("I;16") else _over_white
    result = Image.new("RGB", image.size)
    try:
        for box in _bands(image):
            result.paste(convert(image.crop(box)), box)
    except ValueError as error:
        raise UnusableImage(f"mode {image.mode} cannot be converted to RGB: {error}") from error
    return result


def _bands(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """Boxes that make up the image: what lies between a format and RGB takes many times the memory of either."""
    rows = max(_BAND // image.width, 1)
    for top in range(0, image.height, rows):
        yield 0, top, image.width, min(top + rows, image.height)


def _over_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    ground = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")


def _from_levels(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """Grey of 16 or 32 bits or floats → RGB. White is the smallest usual white level that no value exceeds."""
    levels = (1.0, 255.0, 65535.0) if image.mode == "F" else (65535.0,)
    brightest = max(_values(image.crop(box)).max() for box in _bands(image))
    white = next((level for level in levels if brightest <= level), brightest)

    def convert(band: Image.Image) -> Image.Image:
        grey = (_values(band).clip(0) * (255 / white)).round().clip(0, 255)
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")

    return convert


def _values(image: Image.Image) -> np.ndarray:
    return np.nan_to_num(np.asarray(image).astype(np.float64))


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
        turned = image.getexif().get(_ORIENTATION, 1) != 1
        return to_rgb(ImageOps.exif_transpose(image) if turned else image)
    except UnusableImage:
        raise
    except _DAMAGE as error:
        raise UnusableImage(f"the image is truncated or damaged: {error}") from error


# --- the images of a row ----------------------------------------------------------------------------------------------


def listed(images: Any) -> Sequence[Any]:
    """None, one or several images, as several."""
    if isinstance(images, (list, tuple)):
        return images
    return [] if images is None else [images]


def image_sources(images: Any, root: Path | None = None) -> list[bytes | Path | Image.Image]:
    """What a row's images are to be decoded from; a Path is a file that lies within `root`. Raises UnusableImage."""
    if not (sources := listed(images)):
        raise UnusableImage("no image")
    return [_image_source(source, root) for source in sources]


def decode_images(sources: Sequence[bytes | Path | Image.Image]) -> tuple[Image.Image, ...]:
    """`decode_image` of each. Raises UnusableImage, also where they have more than MAX_ROW_PIXELS pixels together."""
    images: list[Image.Image] = []
    left = MAX_ROW_PIXELS
    for source in sources:
        try:
            images.append(decode_image(source, min(MAX_PIXELS, left)))
        except (UnusableImage, OSError) as error:
            number = f"number {len(images) + 1} of {len(sources)}: " if len(sources) > 1 else ""
            raise UnusableImage(f"{number}{error}") from error
        left -= images[-1].width * images[-1].height
    return tuple(images)


def _image_source(source: Any, root: Path | None) -> bytes | Path | Image.Image:
    if isinstance(source, Mapping):
        path, source = source.get("path"), source.get("bytes")
        if source is None and isinstance(path, str):
            source = _path_within(path, root)
    elif isinstance(source, str):
        source = _path_within(source, root)
    if not isinstance(source, (bytes, Path, Image.Image)):
        raise UnusableImage(f"unusable image: neither bytes nor a path but {type(source).__name__}")
    return source


def _path_within(name: str, root: Path | None) -> Path:
    """The file that a row names, if it lies within the data's folder once links and `..` are resolved."""
    if re.match(r"\s*(?:[a-zA-Z][a-zA-Z0-9+.-]*://|data:)", name):
        raise UnusableImage("image is a URL: download it next to the data")
    if re.match(r"\s*[\\/]{2}", name):  # a share: to look at it is to ask its host
        raise UnusableImage("image is on a network: copy it next to the data")
    if root is None:
        raise UnusableImage("image is a path: these rows have no folder that it could be in")
    try:
        path = Path(root, name).resolve()
        inside = path.is_relative_to(_fence(root.absolute()).resolve())
        is_file = inside and path.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a name too long, a NUL
        raise UnusableImage(f"image path cannot be read: {type(error).__name__}") from error
    if not inside:
        raise UnusableImage(f"image path leaves the data's folder: {name[:100]!r}")
    if not is_file:
        raise UnusableImage(f"image file is missing: {name[:100]!r}")
    return path


def _fence(root: Path) -> Path:
    """The folder that paths may not leave: `root`, but the whole cached repository for a snapshot in the Hub's cache,
    whose files are links to `blobs` beside it."""
    for folder in (root, *root.parents):
        if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("datasets--"):
            return folder.parent.parent
    return root
