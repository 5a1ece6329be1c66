import io
import os
import random
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from papo_hub import images
from papo_hub.images import MAX_BYTES, UnusableImage, decode_image, to_rgb


def encode(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def photo(size=(40, 30)):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def pixels(image):
    return np.asarray(image)


def test_every_kind_of_source_gives_the_same_pixels(tmp_path):
    data = encode(photo())
    (tmp_path / "photo.png").write_bytes(data)
    sources = [data, bytearray(data), memoryview(data), photo(), {"bytes": data, "path": None}, tmp_path / "photo.png"]
    sources.append(Image.open(io.BytesIO(data)))  # lazy, as datasets hands it over
    for source in sources:
        image = decode_image(source)
        assert image.mode == "RGB" and type(image) is Image.Image
        assert (pixels(image) == pixels(photo())).all()


def test_the_result_does_not_share_pixels_with_its_source():
    source = photo()
    decode_image(source).putpixel((0, 0), (1, 2, 3))
    to_rgb(source).putpixel((0, 0), (1, 2, 3))
    assert (pixels(source) == pixels(photo())).all()


def test_exif_orientation_is_applied_once():
    tall = Image.new("RGB", (20, 10), "red")
    tall.paste("blue", (0, 0, 10, 10))  # left half blue
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees clockwise to show"
    image = decode_image(encode(tall, "PNG", exif=exif))
    assert image.size == (10, 20)
    assert image.getpixel((5, 2)) == (0, 0, 255) and image.getpixel((5, 17)) == (255, 0, 0)  # left is now on top
    assert (pixels(decode_image(image)) == pixels(image)).all()


def transparent(mode):
    """Black where opaque (left), transparent black at the right."""
    image = Image.new("LA", (2, 1), (0, 0))
    image.putpixel((0, 0), (0, 255))
    if mode == "P":
        palette = Image.new("P", (2, 1), 0)
        palette.putpalette([0, 0, 0, 0, 0, 0])
        palette.putpixel((1, 0), 1)
        palette.info["transparency"] = bytes([255, 0])
        return palette
    if mode == "PA":
        palette = Image.new("P", (2, 1), 0)
        palette.putpalette([0, 0, 0])
        palette.putalpha(image.getchannel("A"))
        return palette
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["LA", "RGBA", "PA", "P"])
def test_transparency_is_laid_over_white(mode):
    image = to_rgb(transparent(mode))
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [(0, 0, 0), (255, 255, 255)]


def test_transparent_colours_of_files_are_laid_over_white():
    grey = Image.new("L", (2, 1), 0)
    grey.putpixel((1, 0), 7)
    assert decode_image(encode(grey, transparency=7)).getpixel((1, 0)) == (255, 255, 255)
    assert decode_image(encode(transparent("P"), transparency=bytes([255, 0]))).getpixel((1, 0)) == (255, 255, 255)


def test_half_transparent_black_over_white_is_grey():
    # 255 * (1 - 128 / 255) = 127
    assert to_rgb(Image.new("RGBA", (1, 1), (0, 0, 0, 128))).getpixel((0, 0)) == (127, 127, 127)


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.array([[0, 255, 32768, 65535]], dtype=np.uint16)  # 32768 / 65535 * 255 = 127.502
    for source in (Image.fromarray(values), Image.fromarray(values.astype(np.int32))):
        assert pixels(decode_image(encode(source, "TIFF")))[0, :, 0].tolist() == [0, 1, 128, 255]
    assert pixels(decode_image(encode(Image.fromarray(values))))[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(
    "values, expected",
    [
        ([0, 0.5, 1], [0, 128, 255]),
        ([0, 100, 255], [0, 100, 255]),
        ([np.nan, -5, 0], [0, 0, 0]),
        ([0, 5e5, 1e6], [0, 128, 255]),
    ],
)
def test_float_images_are_scaled_to_their_white_level(values, expected):
    image = to_rgb(Image.fromarray(np.array([values], dtype=np.float32)))
    assert pixels(image)[0, :, 0].tolist() == expected


def test_cmyk_and_one_bit():
    assert decode_image(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF")).getpixel((0, 0)) == (255, 0, 0)
    assert decode_image(encode(Image.new("1", (8, 8), 1))).getpixel((0, 0)) == (255, 255, 255)


def test_the_first_frame_of_an_animation_is_taken():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    assert decode_image(encode(frames[0], "GIF", save_all=True, append_images=frames[1:])).getpixel((0, 0)) == (
        255,
        0,
        0,
    )


def png_header(width, height):
    """A PNG that claims a size and holds no pixels."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + body
        + struct.pack(">I", zlib.crc32(body))
        + struct.pack(">I", 0)
        + b"IDAT"
    )


@pytest.mark.parametrize(
    "side", [9_487, 12_000, 60_000]
)  # just above ours, above Pillow's warning, above Pillow's error
@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs_are_refused_from_the_header(side):
    with pytest.raises(UnusableImage, match="pixels|decompression bomb"):
        decode_image(png_header(side, side))


def test_the_limit_is_inclusive_and_checked_before_decoding():
    data = encode(photo((40, 30)))
    assert decode_image(data, max_pixels=1200).size == (40, 30)
    with pytest.raises(UnusableImage, match="40 x 30 pixels are more than the limit of 1199"):
        decode_image(data[:60], max_pixels=1199)  # the pixels are not even there
    with pytest.raises(UnusableImage, match="limit"):
        decode_image(photo(), max_pixels=10)


def test_extreme_sides_are_refused_as_the_processor_would():
    assert decode_image(Image.new("RGB", (200, 1))).size == (200, 1)
    for size in ((201, 1), (1, 201)):
        with pytest.raises(UnusableImage, match="200 times"):
            decode_image(Image.new("RGB", size))


@pytest.mark.parametrize("source", [b"", {"bytes": b"", "path": "a.png"}])
def test_zero_bytes(source):
    with pytest.raises(UnusableImage, match="zero bytes"):
        decode_image(source)


def test_a_path_inside_a_row_is_not_opened(tmp_path):
    photo().save(tmp_path / "photo.png")
    with pytest.raises(UnusableImage, match="only the path"):
        decode_image({"bytes": None, "path": str(tmp_path / "photo.png")})
    with pytest.raises(UnusableImage, match="not str"):
        decode_image(str(tmp_path / "photo.png"))


def test_a_path_must_be_a_file(tmp_path):
    for path in (tmp_path, tmp_path / "none.png", Path("/dev/zero")):
        with pytest.raises(UnusableImage, match="not a file"):
            decode_image(path)


@pytest.mark.parametrize(
    "data", [b"hello", b"<svg></svg>", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\x00" * 100]
)
def test_what_is_no_image(data):
    with pytest.raises(UnusableImage, match="not a readable"):
        decode_image(data)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_files(format):
    data = encode(photo(), format)
    with pytest.raises(UnusableImage):
        decode_image(data[: len(data) * 2 // 3])


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_damaged_files_raise_nothing_else(format):
    draw = random.Random(format)
    data = encode(photo(), format)
    for _ in range(60):
        damaged = bytearray(data)
        for _ in range(draw.randint(1, 8)):
            damaged[draw.randrange(min(len(data), 400))] = draw.randrange(256)
        try:
            assert decode_image(bytes(damaged)).mode == "RGB"
        except UnusableImage as error:
            assert str(error)


# --- files that lie ---------------------------------------------------------------------------------------------------


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_chunk(kind, body):
    """A PNG with a chunk behind its header."""
    data = encode(photo())
    return data[:33] + chunk(kind, body) + data[33:]


@pytest.mark.parametrize(
    ("kind", "before"), [(b"zTXt", b"comment\0\0"), (b"iCCP", b"profile\0\0"), (b"iTXt", b"comment\0\1\0\0\0")]
)
def test_what_a_chunk_inflates_to_is_bounded(kind, before):
    bomb = zlib.compress(b"\0" * (256 << 20))
    tracemalloc.start()
    try:
        assert decode_image(with_chunk(kind, before + bomb)).size == (40, 30)
    except UnusableImage as error:
        assert "too large" in str(error).lower()
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 16 << 20


@pytest.mark.parametrize("format", ["PNG", "WEBP", "JPEG"])
def test_a_huge_or_senseless_exif_costs_nothing(format):
    exif = Image.Exif()
    exif[0x010E] = "x" * 60_000
    assert decode_image(encode(photo(), format, exif=exif)).size == (40, 30)
    for junk in (
        b"Exif\0\0" + b"\xff" * 50_000,
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12\0\x03\xff\xff\xff\xff" * 5_000,
    ):
        try:
            assert decode_image(encode(photo(), format, exif=junk)).size == (40, 30)
        except UnusableImage as error:
            assert str(error)


def test_of_hundreds_of_frames_the_first_is_read_alone():
    frames = [Image.new("L", (8, 8), shade % 256) for shade in range(500)]
    for format in ("TIFF", "GIF"):
        data = encode(frames[7], format, save_all=True, append_images=frames)
        begun = time.process_time()
        assert decode_image(data).getpixel((0, 0)) == (7, 7, 7)
        assert time.process_time() - begun < 0.5


def test_a_tiff_whose_tiles_or_counts_lie_is_unusable():
    data = bytearray(encode(photo(), "TIFF"))
    (start,) = struct.unpack("<I", data[4:8])
    (count,) = struct.unpack("<H", data[start : start + 2])
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        for place, value in ((entry + 4, 2**32 - 1), (entry + 8, 2**31 - 1)):  # how many values, and the first
            lying = bytes(data[:place]) + struct.pack("<I", value) + bytes(data[place + 4 :])
            try:
                assert decode_image(lying).mode == "RGB"
            except UnusableImage as error:
                assert str(error)


def test_cmyk_as_jpeg():
    red = encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG")
    assert all(abs(a - b) <= 8 for a, b in zip(decode_image(red).getpixel((8, 8)), (255, 0, 0), strict=True))


def test_a_file_of_more_bytes_than_any_picture_needs_is_not_read(tmp_path):
    file = tmp_path / "large.png"
    file.write_bytes(encode(photo()))
    os.truncate(file, MAX_BYTES + 1)  # a hole: it takes no room on the disk
    with pytest.raises(UnusableImage, match=f"{MAX_BYTES + 1} bytes are more than the limit"):
        decode_image(file)
    os.truncate(file, MAX_BYTES)
    assert decode_image(file).size == (40, 30)


PEAK = """
import importlib.util, re, sys
from pathlib import Path

spec = importlib.util.spec_from_file_location("images", sys.argv[1])
spec.loader.exec_module(images := importlib.util.module_from_spec(spec))

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

before = peak()
image = images.decode_image(Path(sys.argv[2]))
print((peak() - before) / (image.width * image.height))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not say")
@pytest.mark.parametrize("mode", ["RGBA", "I;16", "F", "turned"])
def test_memory_is_bounded_by_the_number_of_pixels(tmp_path, mode):
    """12 bytes a pixel; converted at once, transparency took 19 and 16 bits took 27. In a process of its own: here the
    memory of other tests would be used again."""
    options = {"compression": "tiff_adobe_deflate"}
    if mode == "turned":
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = 6
    file = tmp_path / "image.tiff"
    file.write_bytes(encode(Image.new("RGB" if mode == "turned" else mode, (4_000, 2_000)), "TIFF", **options))
    command = [sys.executable, "-c", PEAK, images.__file__, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 3 < float(done.stdout) < 14.5


def test_bands_change_no_pixel(monkeypatch):
    images = [photo().convert(mode) for mode in ("RGB", "RGBA", "L", "P", "CMYK", "I", "F")]
    images.append(Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50))
    whole = [to_rgb(image).tobytes() for image in images]
    monkeypatch.setattr("papo_hub.images._BAND", 7 * 40)
    assert [to_rgb(image).tobytes() for image in images] == whole
