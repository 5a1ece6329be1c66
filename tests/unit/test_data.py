"""Rows → samples → prompts: what is refused, what the model reads, and an order that survives a resume."""

import io
import json
import os
import random
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from papo_hub.batch import Sample
from papo_hub.data import PROMPT_SUFFIX, UnusableRow, check_row, describe, encode, prompt_length, special_tokens
from papo_hub.masking import RandomPatchMask
from papo_hub.randomness import derived_generator
from papo_hub.rows import Rows, load_rows, stream_rows

VISUAL_QA = Path(
    os.environ.get("PAPO_VISUAL_QA", Path(__file__).resolve().parents[3] / "shared" / "data" / "visual_qa")
)
MASK = RandomPatchMask(patch_size=14, ratio=0.6)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class ImageTextProcessor(Qwen2_5_VLProcessor):
    """Without the video part, which needs torchvision."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs):
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        super(Qwen2_5_VLProcessor, self).__init__(image_processor, tokenizer, chat_template=chat_template)


@pytest.fixture(scope="module")
def processor():
    """One token a byte; one image token 28 × 28 pixels, at most 16 an image."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    marks = ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", extra_special_tokens=marks
    )
    tokenizer.add_tokens([AddedToken("<|turn|>", special=True), AddedToken("<|image_pad|>", special=False)])
    image_processor = Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 16 * 28 * 28})
    return ImageTextProcessor(image_processor, tokenizer, chat_template=CHAT_TEMPLATE)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets_cache")


def picture(width=56, height=28, colour="white"):
    return Image.new("RGB", (width, height), colour)


def png(image=None, **kwargs):
    file = io.BytesIO()
    (image or picture()).save(file, "PNG", **kwargs)
    return file.getvalue()


def row(problem="<image>How many?", answer="3", images=None, **others):
    return {"problem": problem, "answer": answer, "images": [png()] if images is None else images, **others}


def reason(bad_row, **kwargs):
    with pytest.raises(UnusableRow) as caught:
        check_row(bad_row, **kwargs)
    return caught.value.reason


# --- row → Sample -----------------------------------------------------------------------------------------------------


def test_a_good_row_becomes_a_sample():
    sample = check_row(row(id=7, source="geometry", solution="x" * 65, images=[png(picture(40, 30, "red"))]))
    assert (sample.id, sample.problem, sample.answer) == ("7", "<image>How many?", "3")
    assert sample.tags == {"source": "geometry"}  # 65 characters group nothing
    assert [(image.size, image.mode, image.getpixel((0, 0))) for image in sample.images] == [
        ((40, 30), "RGB", (255, 0, 0))
    ]


def test_a_mapping_of_tags_is_taken_alone():
    sample = check_row(row(tags={"dependence": "high", "level": None}, source="geometry"))
    assert sample.tags == {"dependence": "high"}


@pytest.mark.parametrize(
    ("images", "count"), [(png(), 1), (picture(), 1), ({"bytes": png(), "path": None}, 1), ([png(), picture()], 2)]
)
def test_images_alone_or_in_a_list_and_placeholders_put_in_front(images, count):
    sample = check_row(row("How many?", images=images))
    assert len(sample.images) == count
    assert sample.problem == "<image>" * count + "How many?"


@pytest.mark.parametrize(("answer", "text"), [(3, "3"), (-0.5, "-0.5"), (" \\frac12\n", "\\frac12"), ("no", "no")])
def test_answers_become_text(answer, text):
    assert check_row(row(answer=answer)).answer == text


HOSTILE = [
    (row(images=[b""]), "unusable image"),
    (row(images=[png()[:60]]), "unusable image"),
    (row(images=[{"bytes": None, "path": None}]), "unusable image"),
    (row(images=[{"bytes": "a.png", "path": None}]), "unusable image"),  # text where bytes belong is no path
    (row(images=[[png()]]), "unusable image"),
    (row(images=[png(), png()]), "placeholders do not match images: 1 <image> for 2"),
    (row("<image><image>How many?"), "placeholders do not match images: 2 <image> for 1"),
    (row(images=[]), "no image"),
    ({"problem": "How many?", "answer": "3"}, "no image"),
    (row(""), "empty problem"),
    (row("<image> \n"), "empty problem"),
    (row(None), "empty problem"),
    (row(5), "problem is not text: int"),
    (row("<image>\ud800"), "problem is not valid Unicode"),
    (row(answer=" "), "empty answer"),
    (row(answer=None), "empty answer"),
    (row(answer=["3"]), "answer is not text: list"),
    (row(answer={"value": 3}), "answer is not text: dict"),
    (row(answer=True), "answer is not text: bool"),
    (row(answer=float("nan")), "answer is not text: float"),
    (row(answer=10**5000), "answer is not text: int"),
    (row(images=["a.png"]), "image is a path"),
    (row(images=["https://example.org/a.png"]), "image is a URL"),
    (row(images=[{"bytes": None, "path": "file:///a.png"}]), "image is a URL"),
    (row(images=["data:image/png;base64,aGk="]), "image is a URL"),
]


@pytest.mark.parametrize(("bad_row", "expected"), HOSTILE)
def test_unusable_rows_say_why(bad_row, expected):
    assert reason(bad_row).startswith(expected)


def test_control_tokens_in_the_problem_are_refused(processor):
    forbidden = special_tokens(processor)
    assert {"<|im_end|>", "<|image_pad|>", "<|video_pad|>", "<|endoftext|>"} <= forbidden
    # Control tokens without a role, and image tokens that a tokenizer does not mark as special, count as well.
    assert (
        "<|turn|>" in forbidden and processor.tokenizer.added_tokens_decoder[processor.image_token_id].special is False
    )
    for token in forbidden:
        assert reason(row(f"<image>a{token}b"), forbidden=forbidden) == f"control token in the problem: {token}"
    assert check_row(row("<image>is a<|b and b|>c?"), forbidden=forbidden)
    assert check_row(row(answer="<|im_end|>"), forbidden=forbidden)  # the model never reads the answer
    # A tokenizer whose image token is the placeholder itself refuses no honest row.
    assert check_row(row(), forbidden=frozenset({"<image>"}))


def test_paths_stay_in_the_folder(tmp_path):
    data, outside = tmp_path / "data", tmp_path / "secret.png"
    (data / "images").mkdir(parents=True)
    outside.write_bytes(png())
    (data / "images" / "a.png").write_bytes(png(picture(30, 20)))
    (data / "link.png").symlink_to(outside)
    (data / "up").symlink_to(tmp_path)
    (data / "inner.png").symlink_to(data / "images" / "a.png")
    (data / "loop").symlink_to(data / "loop")
    for good in ("images/a.png", "images/../inner.png", str(data / "images" / "a.png")):
        assert check_row(row(images=[good]), data).images[0].size == (30, 20)
    assert check_row(row(images={"bytes": None, "path": "images/a.png"}), data)
    for bad in (
        "../secret.png",
        "link.png",
        "up/secret.png",
        "images/../../secret.png",
        str(outside),
        "/etc/passwd",
        "..",
    ):
        assert reason(row(images=[bad]), root=data).startswith("image path leaves the data's folder"), bad
    for missing in ("b.png", "images", ""):
        assert reason(row(images=[missing]), root=data).startswith("image file is missing"), missing
    for odd in ("loop", "a\0b", "x" * 5000, "\ud800.png"):
        assert reason(row(images=[odd]), root=data).startswith(
            ("image path cannot be read", "image file is missing")
        ), odd


def test_a_snapshot_in_the_hub_cache_may_link_to_its_blobs(tmp_path):
    repository = tmp_path / "datasets--someone--shapes"
    snapshot = repository / "snapshots" / "0123" / "data"
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (repository / "blobs" / "ab").write_bytes(png())
    (snapshot / "a.png").symlink_to("../../../blobs/ab")
    (tmp_path / "token.png").write_bytes(png())
    (snapshot / "b.png").symlink_to(tmp_path / "token.png")
    assert check_row(row(images=["a.png"]), snapshot)
    assert reason(row(images=["b.png"]), root=snapshot).startswith("image path leaves the data's folder")


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters(exclude_categories=()), max_size=12),  # lone surrogates and NUL too
    st.binary(max_size=12),
    st.sampled_from(["<image>", "<image>x<image>", "<|im_end|>", "..", "/", "a\0", "http://a", png(), png()[:-20]]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.fixed_dictionaries({}, optional={"bytes": inner, "path": inner, "x": inner})
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    hostile=st.fixed_dictionaries(
        {}, optional=dict.fromkeys(("problem", "answer", "images", "id", "tags", "source"), VALUES)
    ),
    honest=st.sets(st.sampled_from(["problem", "answer", "images"])),
    rooted=st.booleans(),
)
def test_any_row_is_a_sample_or_unusable(tmp_path, hostile, honest, rooted):
    candidate = {**hostile, **{name: row()[name] for name in honest}}
    try:
        sample = check_row(candidate, tmp_path if rooted else None, frozenset({"<|im_end|>"}))
    except UnusableRow as error:
        assert error.reason
        return
    assert isinstance(sample, Sample)
    assert sample.problem.count("<image>") == len(sample.images) > 0
    assert sample.answer.strip() == sample.answer != ""
    assert "<|im_end|>" not in sample.problem
    assert all(image.mode == "RGB" for image in sample.images)


# --- files ------------------------------------------------------------------------------------------------------------


def table(count=3, **columns):
    images = datasets.List(datasets.Image())
    built = {
        "problem": ["<image>How many?"] * count,
        "answer": ["3"] * count,
        "images": [[picture()]] * count,
        **columns,
    }
    features = datasets.Features(
        {
            name: images if name == "images" else datasets.Value("string")
            for name in built
            if name not in ("id", "image")
        }
        | {
            name: datasets.Image() if name == "image" else datasets.Value("int64")
            for name in built
            if name in ("id", "image")
        }
    )
    return datasets.Dataset.from_dict(built, features=features)


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return path


def test_parquet_with_a_broken_image_loses_that_row_alone(tmp_path):
    good, bad = {"bytes": png(), "path": None}, {"bytes": b"not an image", "path": None}
    table(images=[[good], [bad], [good]], source=["a", "b", "c"]).to_parquet(tmp_path / "some [odd] name.parquet")
    rows = load_rows(tmp_path / "some [odd] name.parquet")
    assert len(rows) == 3
    assert check_row(rows[2], rows.root).tags == {"source": "c"}
    assert check_row(rows[2], rows.root).id == "2"
    assert reason(rows[1]).startswith("unusable image")


def test_columns_by_other_names_and_a_single_image(tmp_path):
    other = table(image=[picture(20, 10)] * 3, id=[4, 5, 6])
    other = other.rename_columns({"problem": "question"})
    other.to_parquet(tmp_path / "data.parquet")
    rows = load_rows(tmp_path, columns={"problem": "question", "images": "image"})
    sample = check_row(rows[1])
    assert (sample.id, sample.problem, sample.images[0].size) == ("5", "<image>How many?", (20, 10))
    with pytest.raises(ValueError, match=r"no column 'problem'; it has question.*`problem_column`"):
        load_rows(tmp_path, columns={"images": "image"})


def test_an_id_that_is_not_unique_names_nothing(tmp_path):
    table(id=[4, 4, 6]).to_parquet(tmp_path / "data.parquet")
    assert [load_rows(tmp_path)[i]["id"] for i in range(3)] == [0, 1, 2]


@pytest.mark.parametrize("name", ["train.jsonl", "nested/train.jsonl"])
def test_json_lines_with_paths_beside_pictures(tmp_path, name):
    data = write_jsonl(tmp_path / name, [row(images=["pictures/a.png"], answer=i) for i in range(3)])
    write_jsonl(data.with_name("test.jsonl"), [row(images=["pictures/a.png"])])
    (data.parent / "pictures").mkdir()
    for stem in "abcdef":  # more pictures than tables
        (data.parent / "pictures" / f"{stem}.png").write_bytes(png())
    for source in (tmp_path, data):
        rows = load_rows(source)
        assert [check_row(rows[i], rows.root).answer for i in range(len(rows))] == ["0", "1", "2"]
    assert len(load_rows(tmp_path, split="test")) == 1
    assert len(load_rows(data, split="train[:2]")) == 2
    with pytest.raises(ValueError, match=r"split 'validation'.*no file there names it, only test\.jsonl, train\.jsonl"):
        load_rows(tmp_path, split="validation")


def test_the_other_layouts_of_a_folder(tmp_path):
    table().save_to_disk(tmp_path / "saved")
    datasets.DatasetDict(train=table(2), test=table(1)).save_to_disk(tmp_path / "both")
    for split, count in (("train", 2), ("test", 1)):
        (tmp_path / "hub" / "data").mkdir(parents=True, exist_ok=True)
        table(count).to_parquet(tmp_path / "hub" / "data" / f"{split}-00000-of-00001.parquet")
    (tmp_path / "card").mkdir()
    table(4).to_parquet(tmp_path / "card" / "first.parquet")
    configs = "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: first.parquet\n"
    (tmp_path / "card" / "README.md").write_text(f"---\nlicense: mit\n{configs}---\n")
    table(5).to_parquet(tmp_path / "card" / "second.parquet")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(png())
    write_jsonl(
        tmp_path / "pictures" / "metadata.jsonl", [{"file_name": "a.png", "problem": "How many?", "answer": "3"}]
    )

    for name, split, count in [("saved", "train", 3), ("both", "test", 1), ("hub", "train", 2), ("hub", "test", 1)]:
        rows = load_rows(tmp_path / name, split=split)
        assert len(rows) == count
        assert check_row(rows[0], rows.root).answer == "3"
    assert len(load_rows(tmp_path / "card")) == 4
    table(2).to_parquet(tmp_path / "card" / "first.parquet")
    assert len(load_rows(tmp_path / "card")) == 2, "no cached rows of files that have changed"
    rows = load_rows(tmp_path / "pictures", columns={"images": "image"})
    assert check_row(rows[0], rows.root).problem == "<image>How many?"
    with pytest.raises(ValueError, match="no split 'dev'; it has train, test"):
        load_rows(tmp_path / "both", split="dev")


def test_what_cannot_be_loaded_says_so(tmp_path):
    for missing in (tmp_path / "no.parquet", "./nowhere", "train.jsonl"):
        with pytest.raises(FileNotFoundError, match="no such data file or folder"):
            load_rows(missing)
    with pytest.raises(FileNotFoundError, match=r"'nobody/nothing'.*HF_HUB_OFFLINE"):
        load_rows("nobody/nothing")
    (tmp_path / "broken.jsonl").write_text('{"problem": "a"\n')
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    (tmp_path / "blank.jsonl").write_text("")
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
    (tmp_path / "empty").mkdir()
    for unreadable in ("broken.jsonl", "broken.parquet", "blank.jsonl", "notes.csv"):
        with pytest.raises(ValueError, match=f"cannot read the dataset .*{unreadable}"):
            load_rows(tmp_path / unreadable)
    with pytest.raises(FileNotFoundError, match="cannot find the dataset .*empty"):
        load_rows(tmp_path / "empty")
    table(0).to_parquet(tmp_path / "none.parquet")
    with pytest.raises(ValueError, match="none.parquet.*no data"):
        load_rows(tmp_path / "none.parquet")
    with pytest.raises(ValueError, match="revision 'v1'"):
        load_rows(tmp_path / "none.parquet", revision="v1")


def streamed(rows):
    """[(key, row)] of all shards."""
    return [pair for shard in range(rows.num_shards) for pair in rows.shard(shard)]


def test_streamed_rows_are_those_that_would_be_loaded(tmp_path):
    good, bad = {"bytes": png(), "path": None}, {"bytes": b"not an image", "path": None}
    for name, images in (("a", [[bad], [good]]), ("b", [[good], [good]])):
        table(2, images=images, source=[name, name]).rename_columns({"problem": "question"}).to_parquet(
            tmp_path / f"train-{name}.parquet"
        )
    rows = stream_rows(tmp_path, columns={"problem": "question"})
    loaded = load_rows(tmp_path, columns={"problem": "question"})
    found = streamed(rows)
    assert [key for key, _ in found] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [row["id"] for _, row in found] == ["0-0", "0-1", "1-0", "1-1"]
    assert [{**row, "id": i} for i, (_, row) in enumerate(found)] == [loaded[i] for i in range(4)]
    assert [key for key, _ in rows.shard(1, 1)] == [(1, 1)]
    assert reason(found[0][1]).startswith("unusable image")  # left undecoded until here


def test_streamed_json_lines_and_saved_folders(tmp_path):
    data = write_jsonl(tmp_path / "nested" / "train.jsonl", [row(images=["a.png"], answer=i) for i in range(3)])
    (data.parent / "a.png").write_bytes(png())
    rows = stream_rows(tmp_path)
    assert [(row["id"], check_row(row, rows.root).answer) for _, row in streamed(rows)] == [
        (str(i), f"{i}") for i in range(3)
    ]
    table(id=[4, 4, 6]).save_to_disk(tmp_path / "saved")
    assert [row["id"] for _, row in streamed(stream_rows(tmp_path / "saved"))] == [4, 4, 6]


def test_what_cannot_be_streamed_says_so(tmp_path):
    table().to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"no column 'question'.*`problem_column`"):
        stream_rows(tmp_path, columns={"problem": "question"})
    with pytest.raises(ValueError, match="cannot read the dataset"):
        stream_rows(tmp_path / "train.parquet", split="train[:2]")
    with pytest.raises(FileNotFoundError, match=r"'nobody/nothing'.*HF_HUB_OFFLINE"):
        stream_rows("nobody/nothing")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="cannot read the dataset .*broken"):
        stream_rows(tmp_path / "broken.parquet")
    table(0).to_parquet(tmp_path / "none.parquet")
    with pytest.raises(ValueError, match="none.parquet.*has no rows"):
        stream_rows(tmp_path / "none.parquet")


def test_a_streamed_hub_dataset_follows_no_paths(monkeypatch):
    asked = []

    def load_dataset(name, **options):
        asked.append((name, options))
        return table(images=[[{"bytes": None, "path": "a.png"}]] * 3).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = stream_rows("someone/shapes", split="test", revision="v2")
    assert asked == [("someone/shapes", {"split": "test", "revision": "v2", "streaming": True})]
    assert (
        reason(streamed(rows)[0][1], root=rows.root) == "image is a path: these rows have no folder that it could be in"
    )


def test_a_hub_dataset_is_asked_for_by_split_and_revision(monkeypatch):
    asked = []

    def load_dataset(name, **options):
        asked.append((name, options))
        return table(images=[[{"bytes": b"broken", "path": None}]] * 3)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = load_rows("someone/shapes", split="test", revision="v2")
    assert asked == [("someone/shapes", {"split": "test", "revision": "v2"})]
    assert rows.root.name == "datasets--someone--shapes"
    assert reason(rows[0], root=rows.root).startswith("unusable image")  # left undecoded until here
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: table(0))
    with pytest.raises(ValueError, match="'someone/shapes' .* has no rows"):
        load_rows("someone/shapes")


# --- Sample → Prompt --------------------------------------------------------------------------------------------------


def test_what_the_model_reads(processor):
    sample = check_row(row("Is <image> larger than <image>?", images=[png(picture(56, 28)), png(picture(56, 56))]))
    prompt = encode(sample, processor, "Think.")
    # 28 × 28 pixels a token: 2 and 4.
    expected = (
        "<|im_start|>user\nIs <|vision_start|>" + "<|image_pad|>" * 2 + "<|vision_end|> larger than <|vision_start|>"
        "" + "<|image_pad|>" * 4 + "<|vision_end|>?\nThink.<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = prompt.clean["input_ids"]
    assert processor.tokenizer.decode(ids[0]) == expected
    assert ids.shape == (1, prompt.length) == prompt.clean["attention_mask"].shape
    assert prompt.clean["image_grid_thw"].tolist() == [[1, 2, 4], [1, 4, 4]]
    assert torch.equal(prompt.clean["mm_token_type_ids"], (ids == processor.image_token_id).long())
    assert prompt.clean["mm_token_type_ids"].sum() == 6
    assert prompt.masked is None and prompt.masked_images == ()
    assert encode(sample, processor, "").length == prompt.length - len("\nThink.")
    assert processor.tokenizer.decode(encode(sample, processor).clean["input_ids"][0]).count(PROMPT_SUFFIX) == 1


def test_both_views_differ_in_pixels_alone(processor):
    sample = check_row(row("<image><image>Same?", images=[png(picture(140, 84)), png(picture(140, 84))]))
    prompt = encode(sample, processor, mask=MASK, generator=derived_generator(0))
    assert prompt.clean.keys() == prompt.masked.keys()
    for name, value in prompt.clean.items():
        assert torch.equal(value, prompt.masked[name]) == (name != "pixel_values"), name
    # The masks of the two images are different draws of the one generator, in order.
    generator = derived_generator(0)
    for image, masked in zip(sample.images, prompt.masked_images, strict=True):
        assert MASK(image, generator).tobytes() == masked.tobytes()
    assert prompt.masked_images[0].tobytes() != prompt.masked_images[1].tobytes()
    assert all(image.getcolors() == [(140 * 84, (255, 255, 255))] for image in sample.images)
    with pytest.raises(ValueError, match="must keep the size"):
        encode(sample, processor, mask=lambda image, generator: image.crop((0, 0, 28, 28)))

    class CropsBorders(ImageTextProcessor):
        def __call__(self, images, **kwargs):
            return super().__call__(images=[image.crop(image.convert("L").getbbox()) for image in images], **kwargs)

    cropping = CropsBorders(processor.image_processor, processor.tokenizer, chat_template=CHAT_TEMPLATE)
    half_black = picture(140, 84, "black")
    half_black.paste("white", (0, 0, 70, 84))
    with pytest.raises(ValueError, match="views? differ in .* under CropsBorders"):
        encode(sample, cropping, mask=lambda image, generator: half_black)


def test_length_from_sizes_is_the_encoded_length(processor):
    sizes = random.Random(0)
    for _ in range(30):
        images = [picture(sizes.randint(1, 180), sizes.randint(1, 180)) for _ in range(sizes.randint(1, 3))]
        sample = check_row(row("Größe " * sizes.randint(1, 4), images=images))
        assert prompt_length(sample, processor) == encode(sample, processor).length


def test_length_is_encoded_where_sizes_do_not_tell(processor, monkeypatch):
    sample = check_row(row())
    expected = prompt_length(sample, processor)
    monkeypatch.setattr(processor.image_processor, "merge_size", (2, 2))
    monkeypatch.setattr("papo_hub.data.encode", lambda *args: replace(encoded, sample=sample))
    encoded = encode_with_merge_size(processor, sample)
    assert prompt_length(sample, processor) == expected


def encode_with_merge_size(processor, sample):
    processor.image_processor.merge_size = 2
    try:
        return encode(sample, processor)
    finally:
        processor.image_processor.merge_size = (2, 2)


def test_overlong_prompts_are_unusable(processor):
    sample = check_row(row())
    length = prompt_length(sample, processor)
    assert encode(sample, processor, max_prompt_length=length).length == length
    with pytest.raises(UnusableRow, match=f"prompt too long: {length} tokens, max_prompt_length is {length - 1}"):
        encode(sample, processor, max_prompt_length=length - 1)


def test_a_leading_token_of_the_template_is_not_doubled(processor):
    from tokenizers.processors import TemplateProcessing

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(processor.tokenizer.backend_tokenizer.to_str())
    )
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    start = tokenizer.convert_tokens_to_ids("<s>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", start)])
    for template in (CHAT_TEMPLATE, "<s>" + CHAT_TEMPLATE):
        doubled = ImageTextProcessor(processor.image_processor, tokenizer, chat_template=template)
        prompt = encode(check_row(row()), doubled)
        assert prompt.clean["input_ids"][0].tolist().count(start) == 1
        assert prompt_length(check_row(row()), doubled) == prompt.length


def test_no_chat_template_is_said(processor):
    bare = ImageTextProcessor(processor.image_processor, processor.tokenizer)
    with pytest.raises(ValueError, match="no chat template"):
        encode(check_row(row()), bare)


# --- a whole dataset ---------------------------------------------------------------------------------------------------


def numbered(count, bad=()):
    """Rows whose id is their index; those in `bad` have no answer."""
    return Rows([row(answer=None if i in bad else str(i), images=[picture(28, 28)]) for i in range(count)])


def test_describe(processor):
    text = describe(numbered(10, bad={1}), processor, first=3)
    assert text.splitlines()[0] == "10 rows; columns: problem, answer, images, id"
    assert "row 1: unusable: empty answer" in text
    length = prompt_length(check_row(row(images=[picture(28, 28)])), processor)
    assert f"row 0: 28×28; {length} tokens; '<image>How many?' → '0'" in text
    assert "tokens" not in describe(numbered(2))
