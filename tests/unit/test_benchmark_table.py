"""The table of benchmarks: what it holds, what a name on the command line means, how rows of either form are read."""

import json
import zipfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from papo_hub.card.check import LICENSES
from papo_hub.config import ConfigError
from papo_hub.data import UnusableRow, check_row
from papo_hub.digits import DigitRows
from papo_hub.evaluation import benchmarks, official
from papo_hub.evaluation.benchmarks import BENCHMARKS, GROUPS, PAPER_RESULTS, load, select
from papo_hub.rows import DataError

ROOT = Path(__file__).parents[2]
PAPER = (
    "geometry3k",
    "mathvista",
    "we_math",
    "mmk12",
    "mathverse",
    "logicvista",
    "counting",
    "mmmu_pro",
    "mathverse_v",
)


def png(colour: str = "red", size: tuple[int, int] = (40, 30)) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def turns(problem: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": problem}, {"role": "assistant", "content": answer}]


def written(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def archive(path: Path, members: dict[str, bytes]) -> official.Archive:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return official.Archive(path)


# --- the table --------------------------------------------------------------------------------------------------------


def test_groups_are_the_papers():
    assert GROUPS["general"] == PAPER[:5] and GROUPS["vision"] == PAPER[5:]
    assert GROUPS["all"] == PAPER and GROUPS["tiny"] == ("digits",)
    assert list(BENCHMARKS) == ["digits", *PAPER] and not GROUPS.keys() & BENCHMARKS.keys()


def test_entries_are_complete():
    splits, archives = set(), set()
    for name, entry in BENCHMARKS.items():
        assert entry.name == name and entry.title and entry.answer_type and entry.original and entry.problems
        assert entry.licence in {*LICENSES, "not stated", "unverified"}
        if name != "digits":
            assert entry.dataset == "PAPOGalaxy/PAPO_eval" and entry.max_completion_length == 2048
            assert entry.archive.endswith("_images.zip") and entry.prompt_suffix
            splits.add(entry.split)
            archives.add(entry.archive)
    assert len(splits) == len(archives) == 9
    assert hash(BENCHMARKS["counting"]) != hash(BENCHMARKS["mmk12"])


def test_the_published_averages_follow_from_the_columns():
    """Means of two-decimal numbers, so off by at most half a unit of the last; one cell was cut instead of rounded."""
    cut = {("PAPO-G-7B", "overall")}  # 555.00 / 9 = 61.667, published as 61.66
    assert len(PAPER_RESULTS) == 8
    off = set()
    for model, results in PAPER_RESULTS.items():
        assert results.keys() == {*PAPER, "general", "vision", "overall"}
        for average, names in (("general", PAPER[:5]), ("vision", PAPER[5:]), ("overall", PAPER)):
            if abs(sum(results[name] for name in names) / len(names) - results[average]) > 0.005 + 1e-9:
                off.add((model, average))
    assert off == cut
    assert PAPER_RESULTS["PAPO-G-7B"]["overall"] == 61.66
    assert PAPER_RESULTS["PAPO-D-7B"]["counting"] == 91.38 and PAPER_RESULTS["GRPO-3B"]["geometry3k"] == 28.72


def test_the_document_lists_every_entry():
    document = (ROOT / "docs" / "evaluation_benchmarks.md").read_text(encoding="utf-8")
    for entry in BENCHMARKS.values():
        cells = [
            f"`{entry.name}`",
            entry.title,
            entry.answer_type,
            entry.original,
            entry.licence,
            f"{entry.problems:,}",
        ]
        line = next(line for line in document.splitlines() if line.startswith(f"| `{entry.name}` |"))
        assert all(cell in line for cell in cells), line
        if entry.archive:
            assert f"`{entry.split}`" in line


# --- choosing ---------------------------------------------------------------------------------------------------------


def names(*asked: str, **options) -> list[str]:
    return [benchmark.name for benchmark in select(asked, **options)]


def test_groups_and_names_once_each_in_the_tables_order():
    assert names("all") == list(PAPER)
    assert names("vision", "digits", "geometry3k", "counting", "general", "tiny") == ["digits", *PAPER]
    assert names("mathverse_v", "mmk12", "mmk12") == ["mmk12", "mathverse_v"]


def test_own_data(tmp_path):
    first = written(tmp_path / "my set.jsonl", [{"problem": "p", "answer": "1", "images": []}])
    (tmp_path / "other").mkdir()
    second = written(tmp_path / "other" / "my set.jsonl", [])
    third = written(tmp_path / "digits.jsonl", [])
    asked = [f"{second}", "alice/geometry3k", f"{first}", "digits", f"{tmp_path}/other", f"{first}", f"{third}"]
    chosen = select([*asked, "alice/set@v1.0"], columns={"answer": "solution"}, split="dev")
    assert [(entry.name, entry.group, entry.dataset, entry.revision) for entry in chosen] == [
        ("digits", "tiny", "digits", None),
        ("my-set", "local", f"{second}", None),
        ("geometry3k-2", "local", "alice/geometry3k", None),
        ("my-set-2", "local", f"{first}", None),
        ("other", "local", f"{tmp_path}/other", None),
        ("digits-2", "local", f"{third}", None),
        ("set", "local", "alice/set", "v1.0"),
    ]
    assert {entry.split for entry in chosen[1:]} == {"dev"}
    assert all(entry.columns == {"answer": "solution"} for entry in chosen[1:])
    assert chosen[0] == BENCHMARKS["digits"]
    assert select(["alice/set"])[0].split == "test"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["mathvers"], "'mathvers' is unknown. Did you mean mathverse or"),
        (["MathVerse-V"], "Did you mean mathverse_v"),
        (
            ["xyzzy"],
            "'xyzzy' is unknown. choose from the groups tiny, general, vision, all, the benchmarks digits, geo",
        ),
        (["data/rows.jsonl"], "no such file or folder: data/rows.jsonl"),
        (["./rows"], "no such file or folder: ./rows"),
        ([], "none named"),
    ],
)
def test_a_name_that_is_none_of_these(asked, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        select(asked)
    assert words in str(error.value)


@pytest.mark.parametrize("options", [{"split": "dev"}, {"columns": {"answer": "solution"}}])
def test_columns_and_split_need_own_data(options):
    with pytest.raises(ConfigError, match="only benchmarks of the table"):
        select(["all"], **options)


# --- reading ----------------------------------------------------------------------------------------------------------


def test_digits_are_the_quick_starts():
    rows = load(BENCHMARKS["digits"])
    assert len(rows) == 400 and len(load(BENCHMARKS["digits"], 7)) == 7 and len(load(BENCHMARKS["digits"], 500)) == 400
    sample, expected = check_row(rows[11], rows.root), DigitRows("test", 400)[11]
    assert (sample.id, sample.problem, sample.answer) == tuple(expected[key] for key in ("id", "problem", "answer"))
    assert np.array_equal(sample.images[0], expected["images"][0])
    solve = {"sum": sum, "largest": max, "evens": lambda digits: sum(digit in (0, 2, 4, 6, 8) for digit in digits)}
    for sample in (check_row(row, rows.root) for row in load(BENCHMARKS["digits"], 40)):
        reading = [int(digit) for digit in sample.tags["reading"].split(" ")]
        assert sample.answer == str(solve[sample.tags["kind"]](reading))
        hints = sample.problem.partition(": ")[2].split()
        assert all(hint in ("?", str(digit)) for hint, digit in zip(hints, reading, strict=True))


def test_own_rows_in_the_plain_form(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    rows = [
        {"question": "<image>one", "solution": 1, "images": ["a.png"], "id": "x", "level": "easy"},
        {"question": "<image>two", "solution": 2, "images": ["../a.png"], "id": "y", "level": "hard"},
        {"question": "<image>three", "solution": 3, "images": ["http://127.0.0.1/a.png"], "id": "z", "level": "hard"},
    ]
    (entry,) = select(
        [f"{written(tmp_path / 'mine.jsonl', rows)}"], columns={"problem": "question", "answer": "solution"}
    )
    read = load(entry)
    sample = check_row(read[0], read.root)
    assert (sample.id, sample.problem, sample.answer, sample.tags) == ("x", "<image>one", "1", {"level": "easy"})
    assert sample.images[0].getpixel((0, 0)) == (255, 0, 0)
    for index, reason in ((1, "leaves the data's folder"), (2, "URL")):
        with pytest.raises(UnusableRow, match=reason):
            check_row(read[index], read.root)
    assert len(load(entry, 2)) == 2
    with pytest.raises(DataError) as error:
        load(replace(entry, columns={}))
    assert "has question, solution, images" in str(error.value) and "--problem_column" in str(error.value)
    assert "messages (one turn of the user" in str(error.value)
    plain = written(tmp_path / "plain.jsonl", [{"problem": "<image>p", "answer": "1", "images": ["a.png"]}])
    with pytest.raises(DataError, match="no column 'text'"):  # a mapping of the user's is not guessed around
        load(replace(entry, dataset=f"{plain}", columns={"problem": "text"}))


def test_own_rows_in_turns(tmp_path):
    """Also as structs of lists, and in a table whose images are embedded."""
    rows = [
        {"messages": turns("<image>one", "1"), "images": [{"bytes": png(), "path": None}], "topic": "a"},
        {"messages": turns("<image>two", "2")[:1], "images": [{"bytes": png(), "path": None}], "topic": "b"},
        {"messages": turns("<image>three", "3") * 2, "images": [{"bytes": png(), "path": None}], "topic": "c"},
    ]
    table = datasets.Dataset.from_list(rows).cast_column("images", datasets.List(datasets.Image()))
    table.to_parquet(tmp_path / "turns.parquet")
    (entry,) = select([f"{tmp_path / 'turns.parquet'}"])
    read = load(entry)
    sample = check_row(read[0], read.root)
    assert (sample.id, sample.problem, sample.answer, sample.tags) == ("0", "<image>one", "1", {"topic": "a"})
    for index, reason in ((1, "empty answer"), (2, "empty problem")):
        with pytest.raises(UnusableRow, match=reason):
            check_row(read[index], read.root)
    lists = {"role": ["user", "assistant"], "content": ["<image>one", "1"]}
    assert official.said(lists, "user") == "<image>one" and official.said(lists, "assistant") == "1"


def test_rows_are_read_only_when_asked_for_and_only_the_first_ones():
    class Table(list):
        asked: list[int] = []

        def __getitem__(self, index):
            self.asked.append(index)
            return super().__getitem__(index)

    table = official.OfficialTable(Table([{"answer": turns("p", "1"), "images": []}] * 5), 3)
    assert len(table) == 3 and Table.asked == []
    assert table[2]["problem"] == "p" and Table.asked == [2]
    assert len(list(table)) == 3 and max(Table.asked) == 2
    for index in (3, -1):
        with pytest.raises(IndexError):
            table[index]


# --- the archive ------------------------------------------------------------------------------------------------------


def test_members_are_found_by_the_paths_of_rows(tmp_path):
    contents = {"set/1.png": b"one", "images/set/2.png": b"two", "data/images/set/3.png": b"three", "set/empty/": b""}
    found = archive(tmp_path / "a.zip", contents)
    assert found.read("./data/images/set/1.png") == found.read("images/set/1.png") == found.read("set/1.png") == b"one"
    assert found.read("./data/images/set/2.png") == b"two"
    assert found.read("./data/images/set/3.png") == b"three"
    for path in ("1.png", "set/empty", "set/empty/", "/set/1.png", "http://x/set/1.png", ""):
        with pytest.raises(UnusableRow, match=r"image is not in a\.zip"):
            found.read(path)


def test_a_name_that_climbs_is_refused_and_nothing_is_unpacked(tmp_path):
    (tmp_path / "in").mkdir()
    found = archive(tmp_path / "in" / "a.zip", {"../evil.png": b"evil", "set/good.png": b"good"})
    assert found.read("set/good.png") == b"good"
    for path in ("../evil.png", "./data/images/../evil.png", "data/images/../../evil.png", "set/../set/good.png"):
        with pytest.raises(UnusableRow, match=r"image path leaves a\.zip"):
            found.read(path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.zip", "in"]


def test_a_member_that_unpacks_to_too_much_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(official, "LARGEST_IMAGE", 1000)
    found = archive(tmp_path / "a.zip", {"bomb.png": bytes(1001), "fits.png": bytes(1000)})
    assert found.read("fits.png") == bytes(1000)
    monkeypatch.setattr(found.file, "open", lambda member: pytest.fail("it was unpacked"))
    with pytest.raises(UnusableRow, match="image too large: 1001 bytes in a.zip, the limit is 1000"):
        found.read("bomb.png")


def test_a_member_whose_size_is_a_lie_yields_no_more_than_it_claims(tmp_path, monkeypatch):
    """The directory claims 10 bytes for a member of 100,000."""
    archive(tmp_path / "a.zip", {"bomb.png": bytes(100_000)}).file.close()
    packed = (tmp_path / "a.zip").read_bytes()
    claimed, true = (10).to_bytes(4, "little"), (100_000).to_bytes(4, "little")
    assert packed.count(true) == 2  # in the member's own header and in the directory
    (tmp_path / "a.zip").write_bytes(packed.replace(true, claimed))
    with pytest.raises(UnusableRow, match=r"image is damaged in a\.zip: BadZipFile"):
        official.Archive(tmp_path / "a.zip").read("bomb.png")


def test_a_damaged_member_costs_its_row_and_a_damaged_archive_the_benchmark(tmp_path):
    archive(tmp_path / "a.zip", {"1.png": png(), "2.png": png("blue")}).file.close()
    packed = bytearray((tmp_path / "a.zip").read_bytes())
    packed[packed.index(b"1.png") + 20] ^= 255  # within the first member's data
    (tmp_path / "a.zip").write_bytes(packed)
    table = official.OfficialTable(
        [{"answer": turns("<image>p", "1"), "images": ["1.png", "2.png"][i:]} for i in (0, 1)]
    )
    table.archive = official.Archive(tmp_path / "a.zip")
    with pytest.raises(UnusableRow, match=r"image is damaged in a\.zip"):
        check_row(table[0])
    assert check_row(table[1]).images[0].getpixel((0, 0)) == (0, 0, 255)
    (tmp_path / "b.zip").write_bytes(b"Version https://git-lfs.github.com/spec/v1")
    with pytest.raises(DataError, match=r"b\.zip is no readable ZIP archive"):
        official.Archive(tmp_path / "b.zip")


def test_the_archive_is_fetched_only_where_rows_name_files(tmp_path, monkeypatch):
    """Rows of a table entry in either form; with images in the rows, no archive is needed."""
    monkeypatch.setattr(benchmarks, "_download", lambda entry: pytest.fail("fetched"))
    held = {"problem": "<image>p", "answer": "1", "images": [{"bytes": png(), "path": "1.png"}]}
    table = datasets.Dataset.from_list([held]).cast_column("images", datasets.List(datasets.Image()))
    table.to_parquet(tmp_path / "held.parquet")
    entry = replace(BENCHMARKS["counting"], dataset=f"{tmp_path / 'held.parquet'}")
    assert check_row(load(entry)[0]).answer == "1"

    archive(tmp_path / "c.zip", {"set/1.png": png("blue")}).file.close()
    monkeypatch.setattr(benchmarks, "_download", lambda entry: tmp_path / entry.archive)
    rows = [
        {"messages": turns("<image>p", "1"), "images": []},
        {"messages": turns("<image>p", "2"), "images": ["./data/images/set/1.png"]},
    ]
    entry = replace(entry, dataset=f"{written(tmp_path / 'named.jsonl', rows)}", archive="c.zip")
    assert check_row(load(entry)[1]).images[0].getpixel((0, 0)) == (0, 0, 255)
    with pytest.raises(UnusableRow, match="no image"):
        check_row(load(entry)[0])
