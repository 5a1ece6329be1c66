"""Datasets for the Hub: what is refused, what is written byte by byte, and that what loads back is what went in."""

import hashlib
import io
import json
import os
import random
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from papo_hub.card import check_card
from papo_hub.data import UnusableRow, check_row
from papo_hub.dataset import build, build_dataset, check_publishable, content_hash, parquet, source_rows
from papo_hub.dataset.tally import Tally, answer_kind
from papo_hub.rows import DataError, load_rows, stream_rows

VISUAL_QA = Path(
    os.environ.get("PAPO_VISUAL_QA", Path(__file__).resolve().parents[3] / "shared" / "data" / "visual_qa")
)


def noise(width=20, height=10, mode="RGB", seed=0):
    shape = (height, width) if mode == "L" else (height, width, len(mode))
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8), mode)


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def row(**changes):
    return {"problem": "<image>How many?", "answer": "3", "images": [encoded(noise())], **changes}


@pytest.fixture
def source(tmp_path):
    """source(*rows) → a folder with train.jsonl; images are given as bytes and lie in files beside it."""

    def write(*rows, name="source", split="train"):
        folder = tmp_path / name
        (folder / "pictures").mkdir(parents=True, exist_ok=True)
        lines = []
        for i, one in enumerate(rows):
            names = []
            for j, image in enumerate(one["images"]):
                names.append(image if isinstance(image, str) else f"pictures/{split}-{i}-{j}.png")
                if isinstance(image, bytes):
                    (folder / names[-1]).write_bytes(image)
            lines.append(json.dumps({**one, "images": names}) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
        return folder

    return write


def make(source, folder, **options):
    return build_dataset(source, folder, progress=False, **options)


def files(folder):
    """path → sha256 of everything in a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def front_matter(folder):
    return yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---\n")[1])


# --- there and back ---------------------------------------------------------------------------------------------------


def test_the_digits_task_becomes_a_dataset_and_loads_back(tmp_path):
    out = tmp_path / "digits"
    report = make("digits", out, splits=("train", "test"), limit=24, tags=("kind", "dependence"))
    assert sorted(files(out)) == [
        "README.md",
        "data/test-00000-of-00001.parquet",
        "data/train-00000-of-00001.parquet",
        "statistics.json",
    ]
    loaded = datasets.load_dataset(str(out))
    assert loaded["train"].features == datasets.Features(
        {
            "problem": datasets.Value("string"),
            "answer": datasets.Value("string"),
            "images": datasets.List(datasets.Image()),
            "id": datasets.Value("string"),
            "kind": datasets.Value("string"),
            "dependence": datasets.Value("string"),
        }
    )
    for split in ("train", "test"):
        given = source_rows("digits", split, limit=24)
        expected = content_hash(given)
        assert report.statistics["splits"][split]["content_hash"] == expected
        assert content_hash(loaded[split]) == content_hash(load_rows(out, split)) == expected
        assert loaded[split]["kind"][:] == [given[i]["kind"] for i in range(24)]
        assert loaded[split]["images"][5][0].tobytes() == given[5]["images"][0].tobytes()
    assert json.loads((out / "statistics.json").read_text(encoding="utf-8")) == report.statistics
    assert check_card(out / "README.md", "dataset") == []
    assert str(report).splitlines()[1].startswith("train: 24 rows, 24 images")


def test_files_are_embedded_byte_for_byte(tmp_path, source):
    turned = encoded(
        noise(30, 12), "JPEG", quality=90, exif=b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"
    )
    images = [encoded(noise()), turned, encoded(noise(mode="RGBA")), encoded(noise(mode="L"), "BMP")]
    rows = [row(images=[image], answer=str(i), id=f"r{i}") for i, image in enumerate(images)]
    rows.append(row(problem="Which of the two?", images=images[:2], answer=" 7 ", id="two"))
    folder = source(*rows)
    report = make(folder, tmp_path / "out")
    table = pyarrow.parquet.read_table(tmp_path / "out/data/train-00000-of-00001.parquet").to_pylist()
    assert [image["bytes"] for one in table for image in one["images"]] == images + images[:2]
    assert {image["path"] for one in table for image in one["images"]} == {None}
    assert [one["id"] for one in table] == ["r0", "r1", "r2", "r3", "two"]
    make(tmp_path / "out", tmp_path / "again")  # from bytes in parquet, where it was from files
    parquet_file = "data/train-00000-of-00001.parquet"
    assert files(tmp_path / "again")[parquet_file] == files(tmp_path / "out")[parquet_file]
    assert (table[4]["problem"], table[4]["answer"]) == ("<image><image>Which of the two?", "7")
    loaded = datasets.load_dataset(str(tmp_path / "out"), split="train")
    assert loaded[1]["images"][0].size == (12, 30), "upright"
    streamed = [one for _, one in stream_rows(tmp_path / "out").shard(0)]
    hashes = {content_hash(some) for some in (load_rows(folder), load_rows(tmp_path / "out"), loaded, streamed)}
    assert hashes == {report.statistics["splits"]["train"]["content_hash"]}


def test_equal_input_gives_equal_bytes_and_a_rebuild_replaces(tmp_path, source):
    rows = [row(answer=str(i), images=[encoded(noise(seed=i))]) for i in range(5)] + [row(images=[b"broken"])]
    folder = source(*rows)
    for name in ("one/out", "two/out"):
        make(folder, tmp_path / name, drop_unusable=True)
    first = files(tmp_path / "one/out")
    assert first == files(tmp_path / "two/out") and "skipped_rows.jsonl" in first
    source(*rows[:3])
    make(folder, tmp_path / "one/out")
    assert len(load_rows(tmp_path / "one/out")) == 3
    assert set(first) - set(files(tmp_path / "one/out")) == {"skipped_rows.jsonl"}
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["out"]


def test_other_rows_of_the_same_size_are_seen(tmp_path, source):
    for answer in "34":
        make(source(row(answer=answer)), tmp_path / "out")
        assert datasets.load_dataset(str(tmp_path / "out"), split="train")["answer"][:] == [answer]
        assert load_rows(tmp_path / "out")[0]["answer"] == answer


def test_large_data_goes_into_several_files_and_groups(tmp_path, source, monkeypatch):
    rows = [row(answer=str(i), images=[encoded(noise(40, 40, seed=i), compress_level=0)]) for i in range(10)]
    size = len(rows[0]["images"][0]) + 30
    monkeypatch.setattr(parquet, "SHARD_BYTES", 4 * size)
    monkeypatch.setattr(parquet, "GROUP_ROWS", 3)
    folder = source(*rows)
    report = make(folder, tmp_path / "out")
    paths = sorted((tmp_path / "out/data").iterdir())
    assert [path.name for path in paths] == [f"train-0000{i}-of-00003.parquet" for i in range(3)]
    metadata = [pyarrow.parquet.ParquetFile(path).metadata for path in paths]
    assert [one.num_rows for one in metadata] == [4, 4, 2]
    assert [[one.row_group(i).num_rows for i in range(one.num_row_groups)] for one in metadata] == [[3, 1], [3, 1], [2]]
    assert content_hash(load_rows(tmp_path / "out")) == content_hash(load_rows(folder))
    assert report.statistics["splits"]["train"]["files"] == 3
    assert stream_rows(tmp_path / "out").num_shards == 3
    monkeypatch.setattr(parquet, "GROUP_BYTES", 2 * len(rows[0]["images"][0]))  # groups end with their bytes, too
    make(folder, tmp_path / "out")
    metadata = pyarrow.parquet.ParquetFile(paths[0]).metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [2, 2]
    assert len(load_rows(tmp_path / "out")) == 10
    assert make(folder, tmp_path / "out", limit=7).statistics["splits"]["train"]["rows"] == 7


def test_columns_by_other_names_and_ids_that_are_not_unique(tmp_path, source):
    folder = source(*(row(question=f"<image>{i}?", id="same") for i in range(2)))
    report = make(folder, tmp_path / "out", columns={"problem": "question"})
    assert load_rows(tmp_path / "out").table["id"][:] == ["0", "1"]
    assert load_rows(tmp_path / "out")[1]["problem"] == "<image>1?"
    assert report.statistics["splits"]["train"]["ids"] == "row numbers"
    with pytest.raises(DataError, match="the split 'train' has no text column level; it has "):
        make(folder, tmp_path / "out", tags=("level",))


@pytest.mark.skipif(not VISUAL_QA.exists(), reason="no visual_qa data (PAPO_VISUAL_QA)")
def test_real_rows(tmp_path):
    report = make(VISUAL_QA, tmp_path / "out", tags=("source",))
    found = report.statistics["splits"]["train"]
    assert (found["rows"], found["images"], found["skipped"], found["repeated"]) == (236, 236, 0, 0)
    assert found["answers"] == {"number": 110, "choice": 118, "expression": 8}
    assert (min(found["width"]["min"], found["height"]["min"]), found["width"]["max"]) == (31, 1265)
    given, built = load_rows(VISUAL_QA), load_rows(tmp_path / "out")
    assert content_hash(built) == content_hash(given) == found["content_hash"]
    assert [one["images"][0]["bytes"] for one in built.table] == [one["images"][0]["bytes"] for one in given.table]
    assert built.table["source"][:] == given.table["source"][:]


# --- the content hash -------------------------------------------------------------------------------------------------


def test_the_hash_is_of_pixels_and_not_of_files():
    image = noise()
    forms = [image, encoded(image), encoded(image, "BMP"), {"bytes": encoded(image, compress_level=0), "path": "x"}]
    assert len({content_hash([row(images=[form])]) for form in forms}) == 1
    # By hand: sha256 of (length, id) and the row's own hash, that of (length, text) twice, (length, size) and pixels.
    own = hashlib.sha256()
    for part in (b"<image>How many?", b"3", b"20x10"):
        own.update(len(part).to_bytes(8, "big") + part)
    own.update(image.tobytes())
    total = hashlib.sha256((1).to_bytes(8, "big") + b"0" + own.digest())
    assert content_hash([row(images=[image])]) == total.hexdigest()


def test_every_difference_changes_the_hash():
    image, other = noise(), noise()
    other.putpixel((3, 3), tuple(255 - value for value in other.getpixel((3, 3))))
    variants = [
        [row(id="a"), row(id="b")],
        [row(id="b"), row(id="a")],
        [row(id="a"), row(id="b", answer="4")],
        [row(id="a"), row(id="b", problem="<image>How much?")],
        [row(id="a"), row(id="b", images=[other])],
        [row(id="a"), row(id="b", images=[image.resize((10, 20))])],
        [row(id="a")],
        [row(id="ab")],
        [row(id="a", problem="<image>How many?3", answer="3")],
        [row(id="a", problem="<image>How many?", answer="33")],
        [row(id="a", problem="<image>x<image>", answer="1", images=[image, other])],
        [row(id="a", problem="<image>x<image>", answer="1", images=[other, image])],
    ]
    assert len({content_hash(some) for some in variants}) == len(variants)
    flat = [Image.new("RGB", size) for size in ((10, 20), (20, 10))]  # the same bytes, of other shapes
    assert content_hash([row(images=[flat[0]])]) != content_hash([row(images=[flat[1]])])


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from("12"), st.sampled_from("wxyz")),
        min_size=1,
        max_size=4,
        unique_by=lambda row: row[2],  # ids that are not unique name nothing
    )
)
def test_rows_hash_alike_where_they_are_alike(content):
    image = noise(2, 2)

    def rows(some):
        return [{"problem": p, "answer": a, "id": i, "images": [image]} for p, a, i in some]

    first = content_hash(rows(content))
    assert content_hash(rows(content)) == first
    moved = content[1:] + content[:1]
    assert (content_hash(rows(moved)) == first) == (moved == content)


def test_a_row_that_cannot_be_read_has_no_hash():
    with pytest.raises(UnusableRow, match="empty answer"):
        content_hash([row(answer=" ")])


# --- rows that are refused --------------------------------------------------------------------------------------------

PICTURE = encoded(noise(200, 200))
HOSTILE = {
    "truncated": (row(images=[PICTURE[: len(PICTURE) // 2]]), "unusable image: the image is truncated or damaged"),
    "no image file": (row(images=[b"<svg/>"]), "unusable image: not a readable PNG"),
    "empty file": (row(images=[b""]), "unusable image: the image has zero bytes"),
    "bomb": (row(images=[encoded(Image.new("1", (10_000, 10_000)))]), "unusable image: 10000 x 10000 pixels are more"),
    "one too many": (row(images=[PICTURE, PICTURE]), "placeholders do not match images: 1 <image> for 2"),
    "one too few": (row(problem="<image><image>?"), "placeholders do not match images: 2 <image> for 1"),
    "no images": (row(images=[]), "no image"),
    "out of the folder": (row(images=["../secret.png"]), "image path leaves the data's folder"),
    "absolute": (row(images=["/etc/passwd"]), "image path leaves the data's folder"),
    "missing": (row(images=["pictures/none.png"]), "image file is missing"),
    "url": (row(images=["https://example.org/a.png"]), "image is a URL"),
    "no answer": (row(answer=""), "empty answer"),
    "blank problem": (row(problem="<image> "), "empty problem"),
    "half a box": (row(answer=r"\frac{1}{"), "answer cannot be graded"),
    "nothing to grade": (row(answer="$$"), "answer cannot be graded"),
    "an essay": (row(answer="word " * 200_000), "answer too long: 999999 characters, at most 2000 are graded"),
    "ends the turn": (row(problem="<image>1<|im_end|>2"), "control token in the problem: <|im_end|>"),
    "begins one": (row(problem="<image><start_of_turn>model"), "control token in the problem: <start_of_turn>"),
    "image of its own": (row(problem="<image><|image_pad|>?"), "control token in the problem: <|image_pad|>"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_bad_row_is_named_and_nothing_is_written(tmp_path, source, name):
    bad, reason = HOSTILE[name]
    folder = source(row(id="fine"), bad | {"id": "bad"}, row(id="good", answer="4"))
    (tmp_path / "secret.png").write_bytes(PICTURE)
    with pytest.raises(DataError) as caught:
        make(folder, tmp_path / "out")
    first, second, last = str(caught.value).splitlines()
    assert first == "1 of 3 rows cannot be published; nothing was written:"
    assert second.startswith(f"  train, row bad: {reason}") and "--drop_unusable" in last
    assert str(tmp_path) not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret.png", "source"]

    report = make(folder, tmp_path / "out", drop_unusable=True)
    (skipped,) = map(json.loads, (tmp_path / "out/skipped_rows.jsonl").read_text(encoding="utf-8").splitlines())
    assert (skipped["split"], skipped["id"]) == ("train", "bad") and skipped["reason"].startswith(reason)
    assert load_rows(tmp_path / "out").table["id"][:] == ["fine", "good"]
    counts = report.statistics["splits"]["train"]
    assert (counts["skipped"], counts["skipped_kinds"]) == (1, {reason.partition(":")[0]: 1})
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert "| rows left out | 1 |" in card and "[skipped_rows.jsonl](skipped_rows.jsonl)" in card
    for path in (tmp_path / "out").rglob("*"):
        assert path.is_dir() or str(tmp_path).encode() not in path.read_bytes()


@pytest.mark.parametrize("answer", [True, ["3"], {"value": 3}, float("nan"), None, 1e301])
def test_answers_that_are_no_text(answer):
    with pytest.raises(UnusableRow, match="answer"):
        check_publishable(row(answer=answer))


@settings(max_examples=100, deadline=None)
@given(answer=st.text(max_size=12) | st.integers() | st.floats(), problem=st.text(max_size=30))
def test_what_is_published_passes_training_and_the_reward(answer, problem):
    try:
        sample, images = check_publishable({"problem": problem, "answer": answer, "images": [PICTURE]})
    except UnusableRow as error:
        assert error.reason
        return
    again = check_row({"problem": sample.problem, "answer": sample.answer, "images": images})
    assert (again.problem, again.answer, images) == (sample.problem, sample.answer, [PICTURE])
    assert answer_kind(sample.answer) in ("number", "choice", "text", "expression")


def test_reasons_are_the_same_in_every_run(tmp_path):
    images = datasets.List(datasets.Image())
    columns = {"problem": ["a?", "b?"], "answer": ["1", "2"], "images": [[PICTURE], [b"broken"]]}
    columns["images"] = [[{"bytes": content, "path": None}] for (content,) in columns["images"]]
    features = datasets.Features(
        {"problem": datasets.Value("string"), "answer": datasets.Value("string"), "images": images}
    )
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "train.parquet")
    make(tmp_path / "train.parquet", tmp_path / "out", drop_unusable=True)
    (line,) = (tmp_path / "out/skipped_rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["reason"].endswith("image: cannot identify image file"), "without the address of an object"


def test_megabytes_are_no_reason(tmp_path, source):
    big = encoded(noise(1500, 1000), compress_level=0)
    assert len(big) > 4_000_000
    folder = source(row(problem="<image>" + "long " * 500_000), row(images=[big]))
    report = make(folder, tmp_path / "out")
    assert report.statistics["splits"]["train"]["problem_characters"]["max"] == 2_500_007
    assert content_hash(load_rows(tmp_path / "out")) == content_hash(load_rows(folder))
    assert len((tmp_path / "out/README.md").read_text(encoding="utf-8")) < 10_000


def test_many_bad_rows_are_counted_and_few_are_shown(tmp_path, source):
    folder = source(*(row(answer="" if i % 2 else "1") for i in range(20)))
    with pytest.raises(DataError) as caught:
        make(folder, tmp_path / "out")
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("10 of 20 rows") and lines[6] == "  and 5 more" and len(lines) == 8
    assert lines[1:3] == ["  train, row 1: empty answer", "  train, row 3: empty answer"]
    folder = source(*(row(answer="") for _ in range(3)))
    with pytest.raises(DataError, match="no row of the split 'train' is usable:\n  train, row 0: empty answer"):
        make(folder, tmp_path / "out", drop_unusable=True)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


# --- statistics and card ----------------------------------------------------------------------------------------------


def test_statistics_by_hand(tmp_path, source):
    small, wide = encoded(noise(20, 10)), encoded(noise(300, 100, seed=1))
    train = [
        row(problem="<image>a?", answer="12", images=[small]),
        row(problem="<image>b<image>?", answer="(B)", images=[small, wide]),
        row(problem="<image>a?", answer="12", images=[encoded(noise(20, 10), "BMP")]),  # the first row's content
        row(problem="<image>longer?", answer="red", images=[wide]),
    ]
    test = [row(problem="<image>a?", answer="12", images=[small]), row(answer=r"\sqrt{2}", images=[wide])]
    source(*train)
    folder = source(*test, split="test")
    report = make(folder, tmp_path / "out", splits=("train", "test"))
    found = report.statistics["splits"]["train"]
    sizes = [len(small), len(small) + len(wide), len(encoded(noise(20, 10), "BMP")), len(wide)]
    expected = {
        "rows": 4,
        "images": 5,
        "bytes": sum(sizes),
        "images_per_row": {"min": 1, "median": 1, "max": 2},
        "width": {"min": 20, "median": 20, "max": 300},
        "height": {"min": 10, "median": 10, "max": 100},
        "longer_side": {"up to 64": 3, "up to 512": 2},
        "problem_characters": {"min": 9, "median": 9, "max": 16},
        "answer_characters": {"min": 2, "median": 2, "max": 3},
        "answers": {"number": 2, "choice": 1, "text": 1},
        "repeated": 1,
        "in_earlier_splits": 0,
        "skipped": 0,
    }
    assert {name: found[name] for name in expected} == expected
    assert report.statistics["splits"]["test"]["in_earlier_splits"] == 1
    assert report.statistics["splits"]["test"]["answers"] == {"number": 1, "expression": 1}
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    for line in (
        "| | train | test |",
        "| rows | 4 | 2 |",
        "| image width, px | 20 / 20 / 300 | 20 / 20 / 300 |",
        "| rows that are in an earlier split | 0 | 1 |",
        "| answers by kind: text | 1 | 0 |",
        "| images by longer side, px: up to 512 | 2 | 1 |",
        f"| train | `{content_hash(load_rows(folder))}` |",
    ):
        assert line in card.splitlines(), line
    assert "where a split repeats rows of another" in card
    matter = front_matter(tmp_path / "out")
    assert [split["num_examples"] for split in matter["dataset_info"]["splits"]] == [4, 2]
    on_disk = sum(path.stat().st_size for path in (tmp_path / "out/data").iterdir())
    assert matter["dataset_info"]["download_size"] == on_disk
    arrow_bytes = [split["num_bytes"] for split in matter["dataset_info"]["splits"]]
    assert sum(sizes) < arrow_bytes[0] < sum(sizes) + 500 and matter["dataset_info"]["dataset_size"] == sum(arrow_bytes)
    assert matter["size_categories"] == "n<1K" and matter["license"] == "unknown"
    assert datasets.load_dataset_builder(str(tmp_path / "out")).info.splits["test"].num_examples == 2


def test_the_sides_of_images_are_counted_up_to_their_bounds():
    tally = Tally()
    for width in (64, 65, 2048, 2049):
        tally.add(check_row(row(images=[Image.new("RGB", (width, 20))])), [b""], set())
    assert tally.result()["longer_side"] == {"up to 64": 1, "up to 128": 1, "up to 2048": 1, "above 2048": 1}


@pytest.mark.parametrize(
    ("kind", "answers"),
    {
        "number": ["3", "-1.5", "1,234", r"\frac{1}{3}", "12 cm", "50%", "30°", r"\boxed{4}", "12 apples"],
        "choice": ["A", "(B)", "C. 12", "D) both of them", "J"],
        "text": ["red", "no", "Yes", "New York", r"\text{blue}", "三角形", "猫", "He went home", "isosceles triangle"],
        "expression": [r"3\pi", r"\sqrt{2}", "x+1", "x = 3", "(1,2)", r"(0, \infty)", "sin x", "K", "AB", "3:4",
                       r"\begin{pmatrix}1\\2\end{pmatrix}"],
    }.items(),
)  # fmt: skip
def test_kinds_of_answers(kind, answers):
    assert {answer: answer_kind(answer) for answer in answers} == dict.fromkeys(answers, kind)


def test_the_card_says_how_to_load_and_train(tmp_path, source):
    folder = source(row())
    make(
        folder, tmp_path / "out", repo_id="alice/shapes", tag="v1.0", license="mit", language="en", pretty_name="Shapes"
    )
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert 'load_dataset("alice/shapes", revision="v1.0", split="train")' in card
    assert (
        "papo-hub train RECIPE.yaml --dataset_name alice/shapes --dataset_revision v1.0 --dataset_split train" in card
    )
    assert "No licence was stated" not in card and "more than once" not in card
    matter = front_matter(tmp_path / "out")
    assert (matter["license"], matter["language"], matter["pretty_name"]) == ("mit", "en", "Shapes")
    assert matter["configs"] == [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]}]
    make(folder, tmp_path / "it's here")
    card = (tmp_path / "it's here/README.md").read_text(encoding="utf-8")
    assert 'load_dataset("./it\'s here", split="train")' in card and "No licence was stated" in card
    assert "--dataset_name './it'\"'\"'s here' " in card
    assert "Built from local files: source, by papo_hub" in card


def test_nothing_in_the_rows_becomes_markup_of_the_card(tmp_path, source):
    evil = (
        "<image>|[x](javascript:alert(1))|<script>alert(1)</script>\n\n# Mine ``` ![](https://e.org/x.png) /home/me/x/y"
    )
    secret = "hf_" + "abcdefghijklmnopqrst"
    rows = [row(problem=evil, answer=f"`{secret}`", id="|<b>|"), row(images=[f"pictures/{secret}|<i>.png"])]
    make(source(*rows), tmp_path / "out", drop_unusable=True, pretty_name="<b>|x|</b>\n# y")
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    body = card.split("---\n", 2)[2]
    assert check_card(tmp_path / "out/README.md", "dataset") == []
    for markup in ("<script", "](javascript", "![](", "/home/me", secret, "<b>", "<i>", "\n# Mine", "\n# y"):
        assert markup not in body
    (problem,) = [line for line in body.splitlines() if line.startswith("| problem | ")]
    assert problem.count("|") == 3 and "&#60;script&#62;" in problem


# --- the folder -------------------------------------------------------------------------------------------------------


def test_a_failure_leaves_what_was_there(tmp_path, source, monkeypatch):
    folder = source(row())
    make(folder, tmp_path / "out")
    before = files(tmp_path / "out")
    source(row(answer="5"))

    def fail(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "render_card", fail)
    for name in ("out", "new"):
        with pytest.raises(KeyboardInterrupt):
            make(folder, tmp_path / name)
    assert files(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_a_card_that_would_not_be_accepted_stops_all(tmp_path, source, monkeypatch):
    monkeypatch.setattr(build, "check_card", lambda path, kind: [f"no {kind}: {path.is_file()}"])
    with pytest.raises(DataError, match="the card of out would not be accepted: no dataset: True"):
        make(source(row()), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_other_peoples_folders_are_left_alone(tmp_path, source):
    folder = source(row())
    for name in ("mine", "file", "json"):
        (tmp_path / name).mkdir()
    (tmp_path / "mine/notes.txt").write_text("important")
    (tmp_path / "json/statistics.json").write_text("[1]")
    (tmp_path / "plain").write_text("important")
    for name in ("mine", "json", "plain"):
        with pytest.raises(DataError, match="exists and is no dataset that was built here"):
            make(folder, tmp_path / name)
    assert (tmp_path / "mine/notes.txt").read_text() == (tmp_path / "plain").read_text() == "important"
    for place in (folder, folder / "built"):
        with pytest.raises(DataError, match="lies within the source"):
            make(folder, place)
    make(folder, tmp_path / "file")  # an empty one is nobody's


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repo_id": "no owner"}, "repo_id: 'no owner' must be OWNER/NAME"),
        ({"tag": 'v1", x="'}, "tag: .* must be a version such as v1.0"),
        ({"license": "GPL"}, "license: 'GPL' is none that the Hub knows.*license_link"),
        ({"license": "other"}, "license: 'other' is none"),
        ({"splits": ("train[:5]",)}, r"splits: 'train\[:5\]' must be the name of a split"),
        ({"splits": ()}, "name each split once, got none"),
        ({"splits": ("train", "train")}, "name each split once, got train, train"),
        ({"limit": 0}, "limit: 0 must be at least 1"),
        ({"revision": "v1"}, "revision 'v1' names a version of a Hub dataset"),
        ({"splits": ("train", "test")}, "no file there names it|no split"),
    ],
)
def test_what_is_asked_for_wrongly_is_said_before_any_work(tmp_path, source, monkeypatch, options, message):
    monkeypatch.setattr(build, "_write_split", lambda *arguments: pytest.fail("rows were read"))
    with pytest.raises(ValueError, match=message):
        make(source(row()), tmp_path / "out", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_nothing_draws_from_the_global_state(tmp_path):
    before = random.getstate()
    make("digits", tmp_path / "out", limit=2)
    assert random.getstate() == before
