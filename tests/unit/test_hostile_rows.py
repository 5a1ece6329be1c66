"""Rows that mean harm: each is used as it stands or skipped with a reason, and neither costs much. None ends a run."""

import io
import os
import struct
import time
import zlib
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from papo_hub.data import (
    LONGEST_REASON,
    PLACEHOLDER,
    PromptLimit,
    UnusableRow,
    check_row,
    encode,
    prompt_length,
    special_tokens,
)
from papo_hub.masking import RandomPatchMask
from papo_hub.modeling.tiny import SPECIAL
from papo_hub.randomness import derived_generator

LIMIT = 128  # tokens of a prompt
SUFFIX = "Think."
SECONDS = 5.0  # for any row
ROWS = 5_000
KINDS = {
    "empty problem", "problem is not text", "problem is not valid Unicode", "control token in the problem",
    "empty answer", "answer is not text", "answer is not valid Unicode", "answer too long",
    "no image", "unusable image", "placeholders do not match images", "image is a URL", "image is on a network",
    "image is a path", "image path leaves the data's folder", "image file is missing", "image path cannot be read",
    "prompt too long", "too many tags",
}  # fmt: skip


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def picture(width=40, height=30, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def row(problem="<image>How many?", answer="3", images=None, **others):
    return {
        "problem": problem,
        "answer": answer,
        "images": [encoded(picture())] if images is None else images,
        **others,
    }


def reason(hostile, *rules):
    with pytest.raises(UnusableRow) as caught:
        check_row(hostile, *rules)
    return caught.value.reason


# --- the fuzz test ----------------------------------------------------------------------------------------------------

TURNED = Image.Exif()
TURNED[0x0112] = 6
FRAMES = [picture(20, 20, seed) for seed in (1, 2, 3)]
GREY = Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 109)
SEEN_AS = {  # file → the picture that a model is to see; None: the format loses something
    encoded(picture()): picture(),
    encoded(picture(56, 84), "BMP"): picture(56, 84),
    encoded(picture(30, 20), "PPM"): picture(30, 20),
    encoded(picture(31, 29), "TIFF", compression="tiff_lzw"): picture(31, 29),
    encoded(picture(33, 22), "WEBP", lossless=True): picture(33, 22),
    encoded(picture(40, 20), "PNG", exif=TURNED): picture(40, 20).transpose(Image.Transpose.ROTATE_270),
    encoded(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:]): FRAMES[0],
    encoded(FRAMES[0], "TIFF", save_all=True, append_images=FRAMES[1:]): FRAMES[0],
    encoded(picture().convert("CMYK"), "TIFF"): picture().convert("CMYK").convert("RGB"),
    encoded(GREY): Image.fromarray((np.asarray(GREY) / 257).round().astype(np.uint8)).convert("RGB"),
    encoded(Image.new("RGB", (1, 1), "red")): Image.new("RGB", (1, 1), "red"),
    encoded(picture(24, 24), "JPEG"): None,
    encoded(picture(24, 24).convert("CMYK"), "JPEG"): None,
    encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]): None,
}
FILES = list(SEEN_AS)
HALVES = [token[: len(token) // 2] for token in SPECIAL] + [token[len(token) // 2 :] for token in SPECIAL]
SIGNS = [
    "\0",
    "\ud800",
    "\u202e",
    "\u200b",
    "é",
    "e\u0301",
    "\u212a",
    "中",
    "😀",
    "\r\n",
    "\u2028",
    "{{ 7 * 7 }}",
    "{% raw %}",
    "</s>",
]
NEAR_TOKENS = [
    "<|im_\u200bend|>",
    "<|IM_END|>",
    "<image >",
    "<ima<>ge>",
    "＜|im_end|＞",
    "<|im_end|",
    "[INST]",
    "<bos>",
]
PATHS = [
    "../secret.png", "/etc/passwd", "/dev/zero", "pipe", "link.png", "loop", "a\0.png", "a\nb.png", "none.png", "", ".",
    "x" * 5000, "\ud800.png", "file:///etc/passwd", "http://host/a.png", "s3://bucket/a.png", "//host/share/a.png",
    "\\\\host\\share\\a.png", "C:\\a.png", "data:image/png;base64,aGk=", "~/a.png", "$HOME/a.png", "here.png/../../a.png",
]  # fmt: skip
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**400), 10**400),
    st.floats(),
    st.text(st.characters(exclude_categories=()), max_size=12),
    st.binary(max_size=12),
    st.sampled_from(PATHS + SIGNS),
    st.sampled_from(FILES),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.fixed_dictionaries({}, optional={"bytes": inner, "path": inner, "x": inner})
    ),
    max_leaves=4,
)
WORDS = st.sampled_from(["sum: ? 4 ?", " How many?", "evens: 1 2 3", "\n", " 7", "a < b", "x|y", "\\boxed{", "<think>"])


@st.composite
def broken(draw):
    """A picture's file with bytes changed, cut, put in, or a header that lies."""
    data = bytearray(draw(st.sampled_from(FILES)))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(len(data) - 1, 0)) | st.integers(0, min(64, max(len(data) - 1, 0))))
        match draw(st.sampled_from(["change", "cut", "remove", "put in", "size"])):
            case "change" if data:
                data[place] = draw(st.sampled_from([0, 1, 127, 128, 255]))
            case "cut":
                del data[place:]
            case "remove":
                del data[place : place + draw(st.integers(1, 20))]
            case "put in":
                data[place:place] = draw(st.binary(max_size=8))
            case "size" if data.startswith(b"\x89PNG") and len(data) > 33:
                sides = st.sampled_from([0, 1, 40, 9_000, 65_535, 2**31 - 1])
                data[16:24] = struct.pack(">II", draw(sides), draw(sides))
                data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


@st.composite
def rows(draw):
    """(row, what must become of it: True: it is used, False: it is skipped, None: either)."""
    files = draw(st.lists(st.sampled_from(FILES), min_size=1, max_size=3))
    words = [draw(st.lists(WORDS, max_size=2).map("".join)) for _ in files] + [draw(WORDS) + "."]
    honest = {
        "problem": PLACEHOLDER.join(words),
        "answer": draw(st.sampled_from(["3", "no", 7, -0.5])),
        "images": files,
    }
    hostile, verdict = dict(honest), None
    where = draw(st.integers(0, len(files)))
    match draw(
        st.sampled_from(["honest", "image", "image", "token", "halves", "text", "path", "placeholders", "type", "more"])
    ):
        case "honest":
            verdict = True
        case "image":
            hostile["images"] = [*files[:where], draw(broken()), *files[where + 1 :]][: len(files)]
        case "token":
            words[where] += draw(st.sampled_from(SPECIAL)) + draw(WORDS)
            hostile["problem"], verdict = PLACEHOLDER.join(words), False
        case "halves":  # at either side of a placeholder, or of the end of the text
            words[where] += draw(st.sampled_from(HALVES + NEAR_TOKENS))
            words[(where + 1) % len(words)] = draw(st.sampled_from(HALVES)) + words[(where + 1) % len(words)]
            hostile["problem"] = PLACEHOLDER.join(words)
        case "text":
            words[where] += draw(st.sampled_from(SIGNS + NEAR_TOKENS) | st.text(st.characters(exclude_categories=())))
            words[where] *= draw(st.sampled_from([1, 1, 1, 40, 100_000 // max(len(words[where]), 1)]))
            hostile["problem"] = PLACEHOLDER.join(words)
        case "path":
            path = draw(st.sampled_from(PATHS))
            path = draw(st.sampled_from([path, {"bytes": None, "path": path}]))
            hostile["images"], verdict = [*files[:where], path, *files[where + 1 :]][-len(files) :], None
        case "placeholders":
            hostile["problem"], verdict = PLACEHOLDER * draw(st.sampled_from([1, 2, 3, 50])) + honest["problem"], False
        case "type":
            name = draw(st.sampled_from(["problem", "answer", "images", "id", "tags", "source"]))
            hostile[name] = draw(
                VALUES | st.sampled_from([None, "", " \n", PLACEHOLDER, "\ud800", [], ["3"], 10**5000])
            )
        case "more":
            match draw(st.sampled_from(["images", "answer", "tags", "id"])):
                case "images":
                    hostile["images"], verdict = files * 3_000, False
                    hostile["problem"] = PLACEHOLDER * len(hostile["images"]) + "How many?"
                case "answer":
                    hostile["answer"], verdict = draw(st.sampled_from(["1+" * 500_000, "\ud800", ["3"], " "])), False
                case "tags":
                    hostile["tags"] = {f"{i}": "a" for i in range(draw(st.sampled_from([10, 64, 65, 1_000])))}
                    verdict = len(hostile["tags"]) <= 64
                case "id":
                    hostile["id"], verdict = draw(st.sampled_from(["x" * 10**6, "a\x1b[31m\n", 10**5000, ["a"]])), True
    return hostile, verdict


def read(processor, hostile, root):
    """What training does with a row, in its order."""
    sample = check_row(hostile, root, special_tokens(processor), PromptLimit.of(processor, LIMIT))
    length = prompt_length(sample, processor, SUFFIX)
    prompt = encode(
        sample, processor, SUFFIX, LIMIT, mask=RandomPatchMask(14, 0.6), generator=derived_generator("hostile")
    )
    assert prompt.length == length <= LIMIT
    return prompt


def expected_text(prompt, known):
    """The prompt as the template writes it, by hand; signs that the tiny tokenizer does not know are <|unk|>."""
    counts = (prompt.clean["image_grid_thw"].prod(-1) // 4).tolist()
    first, *others = prompt.sample.problem.split(PLACEHOLDER)
    parts = [first] + [
        f"<|vision_start|>{'<|image_pad|>' * n}<|vision_end|>{text}" for n, text in zip(counts, others, strict=True)
    ]
    stem, last = "".join(parts[:-1]), parts[-1].rstrip()
    ends = "" if last.endswith("<|vision_end|>") or not stem + last else "\n"
    asked = f"{stem}{last}{ends}{SUFFIX}"
    return (
        f"<|im_start|>user\n{''.join(c if c in known else '<|unk|>' for c in asked)}<|im_end|>\n<|im_start|>assistant\n"
    )


def check_used(prompt, hostile, processor, known):
    """The model reads the text and sees the pictures of the row."""
    sample = prompt.sample
    ids = prompt.clean["input_ids"][0]
    assert processor.tokenizer.decode(ids) == expected_text(prompt, known)
    bare = hostile["problem"] if PLACEHOLDER in hostile["problem"] else PLACEHOLDER + hostile["problem"]
    assert sample.problem.lstrip(PLACEHOLDER) == bare.lstrip(PLACEHOLDER)
    sources = hostile["images"] if isinstance(hostile["images"], list) else [hostile["images"]]
    assert sample.problem.count(PLACEHOLDER) == len(sample.images) == len(sources)
    for image, masked, source in zip(sample.images, prompt.masked_images, sources, strict=True):
        assert image.mode == masked.mode == "RGB" and image.size == masked.size
        shown = SEEN_AS.get(source) if isinstance(source, bytes) else None
        assert shown is None or image.tobytes() == shown.tobytes()
    assert (ids == processor.image_token_id).sum() == prompt.clean["image_grid_thw"].prod(-1).sum() // 4
    assert prompt.clean.keys() == prompt.masked.keys()
    assert all(prompt.masked[name].shape == value.shape for name, value in prompt.clean.items())
    assert torch.equal(prompt.masked["input_ids"], prompt.clean["input_ids"])
    assert sample.answer == str(hostile["answer"]).strip()
    assert all(len(name) <= 64 and len(value) <= 64 for name, value in sample.tags.items())
    assert len(sample.id) <= 200 and sample.id.isprintable()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a picture, and with all that a path could come to grief on."""
    root = tmp_path_factory.mktemp("hostile") / "data"
    root.mkdir()
    picture().save(root.parent / "secret.png")
    picture().save(root / "here.png")
    (root / "link.png").symlink_to(root.parent / "secret.png")
    (root / "zero.png").symlink_to("/dev/zero")
    (root / "loop").symlink_to(root / "loop")
    os.mkfifo(root / "pipe")
    return root


def test_five_thousand_hostile_rows_are_used_as_they_stand_or_skipped_with_a_reason(tiny_processor, folder):
    seen, known = Counter(), {sign for sign in tiny_processor.tokenizer.get_vocab() if len(sign) == 1}

    @settings(
        max_examples=ROWS,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
    )
    @given(rows())
    def each(case):
        hostile, verdict = case
        begun = time.monotonic()
        try:
            prompt = read(tiny_processor, hostile, folder)
        except UnusableRow as error:
            seen[error.reason.partition(":")[0]] += 1
            assert verdict is not True, error.reason
            assert error.reason.partition(":")[0] in KINDS
            assert error.reason.isprintable() and len(error.reason) <= LONGEST_REASON
        else:
            seen["used"] += 1
            assert verdict is not False
            check_used(prompt, hostile, tiny_processor, known)
        assert time.monotonic() - begun < SECONDS

    each()
    assert seen.total() >= ROWS
    assert seen["used"] >= ROWS // 5 and set(seen) - {"used"} >= KINDS - {"image is a path"}, seen
