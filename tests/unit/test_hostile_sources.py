"""Hostile rows and torn files on every way in: files, streams, lists, the training stream, an evaluation."""

import json
import os

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from test_hostile_rows import encoded, picture, reason, row
from tokenizers import AddedToken, normalizers

from papo_hub.data import PromptLimit, TooManyUnusableRows, UnusableRow, chat_text, check_row, encode, prompt_length
from papo_hub.evaluation.answers import read_answers
from papo_hub.evaluation.benchmarks import load, select
from papo_hub.evaluation.protocol import Protocol
from papo_hub.evaluation.run import Request, evaluate
from papo_hub.images import MAX_PIXELS, UnusableImage, decode_images
from papo_hub.modeling.tiny import tiny_processor as make_processor
from papo_hub.rows import DataError, Rows, load_rows, stream_rows
from papo_hub.stream import PromptStream


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets_cache")


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return path


def named(answer="3", problem="How many?", images=("a.png",), **others):
    return {"problem": problem, "answer": answer, "images": list(images), **others}


# --- cost: bounded before anything is read ----------------------------------------------------------------------------


def test_what_cannot_fit_is_refused_before_it_is_read(tiny_processor, monkeypatch):
    def never(*arguments):
        raise AssertionError("it was read")

    rows = Rows([row("<image>" + "long " * 10**6), row("<image>" * 5_000, images=[encoded(picture())] * 5_000)])
    stream = PromptStream(rows, tiny_processor, 0, max_prompt_length=200, max_skipped_share=1.0)
    monkeypatch.setattr("papo_hub.stream.prompt_length", never)
    monkeypatch.setattr("papo_hub.images.decode_image", never)
    with pytest.raises(TooManyUnusableRows):
        stream.take(1)
    # The longest token has 16 characters, "<|vision_start|>": 4,999,999 / 16 → 312,500, and one for the image.
    assert stream.skipped["0"].startswith("prompt too long: at least 312501 tokens (4999999 characters, 1 images)")
    assert (
        stream.skipped["1"]
        == "prompt too long: at least 5000 tokens (0 characters, 5000 images), max_prompt_length is 200"
    )


def test_the_bound_refuses_nothing_that_fits(tiny_processor):
    limit = PromptLimit(3, 5)
    limit.check(10, 1)  # 2 tokens of text, 1 image
    with pytest.raises(UnusableRow, match="at least 4 tokens"):
        limit.check(11, 1)
    for text in ("assistant" * 50, "<think>" * 30 + " \\boxed{" * 20, "x", " 1 2 3" * 40):  # the longest words it knows
        sample = check_row(row(f"<image>{text}"))
        length = prompt_length(sample, tiny_processor, "")
        assert check_row(row(f"<image>{text}"), limit=PromptLimit.of(tiny_processor, length)).problem == sample.problem
    assert PromptLimit.of(tiny_processor, None) is None


def test_encode_refuses_before_it_processes_a_picture(tiny_processor, monkeypatch):
    sample = check_row(row(images=[encoded(picture(600, 600))]))
    monkeypatch.setattr(type(tiny_processor), "__call__", lambda *arguments, **options: pytest.fail("it was processed"))
    with pytest.raises(UnusableRow, match="prompt too long"):
        encode(sample, tiny_processor, max_prompt_length=64)


def test_the_pixels_of_a_row_are_bounded_together(monkeypatch):
    assert MAX_PIXELS == 90_000_000
    monkeypatch.setattr("papo_hub.images.MAX_ROW_PIXELS", 40 * 30 * 3)
    assert len(check_row(row("How many?", images=[encoded(picture())] * 3)).images) == 3
    with pytest.raises(UnusableImage, match=r"number 4 of 4: 40 x 30 pixels are more than the limit of 0"):
        decode_images([encoded(picture())] * 4)


def test_an_answer_nobody_grades_and_tags_nobody_reads_are_refused():
    assert check_row(row(answer="7" * 2_000))
    assert reason(row(answer="7" * 2_001)) == "answer too long: 2001 characters, at most 2000 are graded"
    assert reason(row(tags={f"{i}": "a" for i in range(65)})) == "too many tags: 65, at most 64"
    hostile = {"a\x1b[31m": "red", "b": "two\nlines", "c" * 65: "long", 7: "number", "d": "\ud800", "e": "kept"}
    assert check_row(row(tags=hostile)).tags == {"e": "kept"}


def test_reasons_are_one_short_printable_line():
    error = UnusableRow("kind: \x1b[31m\n\ud800" + "x" * 10**6)
    assert error.reason.startswith("kind:  [31m  xxx") and len(error.reason) == len(str(error)) == 300


# --- control tokens that no text holds --------------------------------------------------------------------------------


def test_a_control_token_made_by_normalisation_is_refused():
    processor = make_processor()
    processor.tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    processor.tokenizer.add_tokens([AddedToken("<K>", special=True, normalized=True)])
    kelvin = "<\u212a>"  # KELVIN SIGN, which NFC turns into the letter K
    sample = check_row(row(f"<image>{kelvin}?"), None, frozenset({"<K>"}))
    for read in (prompt_length, encode):
        with pytest.raises(UnusableRow, match="control token in the problem: <K>"):
            read(sample, processor)
    assert encode(check_row(row("<image>K?")), processor)


def test_a_control_token_made_by_joining_is_refused():
    processor = make_processor()
    before = processor.chat_template
    processor.chat_template = before.replace("<|vision_start|><|image_pad|><|vision_end|>", "")
    for problem in ("<|im_<image>end|>", "<image>a<|im_<image>end|>"):
        sample = check_row(row(problem, images=[picture()] * problem.count("<image>")))
        with pytest.raises(UnusableRow, match=r"control token in the problem: <\|im_end\|>"):
            prompt_length(sample, processor)
    processor.chat_template = before
    assert prompt_length(check_row(row("<|im_<image>end|>")), processor)  # with the picture between them


def test_the_problem_is_put_as_it_stands(tiny_processor):
    start, image, end = "<|im_start|>user\n", "<|vision_start|><|image_pad|><|vision_end|>", "<|im_end|>\n"
    for problem, shown in (
        ("<image>\n\nHow many?  \n", f"{image}\n\nHow many?\nBox it."),
        ("\n How many <image>", f"\n How many {image}Box it."),
        ("<image>{{ 7 * 7 }}{% raw %}", f"{image}{{{{ 7 * 7 }}}}{{% raw %}}\nBox it."),
    ):
        text = chat_text(check_row(row(problem)), tiny_processor, "Box it.")
        assert text == f"{start}{shown}{end}<|im_start|>assistant\n"


# --- ids --------------------------------------------------------------------------------------------------------------

ODD_IDS = [[1, "1", 2], ["a", None, "b"], ["a", "b", "x" * 201], ["a", "b", "c\n"], ["a", "b", ["c"]], [1, 2, 10**5000]]


@pytest.mark.parametrize("ids", ODD_IDS)
def test_ids_that_name_no_row_are_not_used(ids):
    assert [Rows([{"id": id} for id in ids])[i]["id"] for i in range(3)] == [0, 1, 2]


@pytest.mark.parametrize("ids", ODD_IDS[1:4])
def test_nor_are_those_of_files(tmp_path, ids):
    (tmp_path / "a.png").write_bytes(encoded(picture()))
    file = write(tmp_path / "train.jsonl", [named(id=id) for id in ids])
    rows = load_rows(file)
    assert [rows[i]["id"] for i in range(3)] == [0, 1, 2]
    streamed = [one["id"] for _, one in stream_rows(file).shard(0)]
    assert streamed == [id if isinstance(id, str) and len(id) == 1 else f"{i}" for i, id in enumerate(ids)]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_bad_rows_that_share_an_id_are_not_one_row(tiny_processor, tmp_path, num_workers):
    """As one row they would be few among many, and a dataset of nothing else would be read for ever."""
    rows = stream_rows(write(tmp_path / "train.jsonl", [named(answer=" ", id="same")] * 30))
    stream = PromptStream(
        rows, tiny_processor, 0, max_skipped_share=0.99, num_workers=num_workers, shuffle_buffer_size=4
    )
    with pytest.raises(TooManyUnusableRows, match="of the first 20 rows"):
        stream.take(1)
    stream.close()
    assert len(stream.skipped) == 20 and set(stream.skipped) <= {f"same ({i})" for i in range(30)}


def test_fewer_rows_than_a_batch_are_taken_again(tiny_processor):
    rows = Rows([row(answer=i) for i in range(3)])
    prompts = PromptStream(rows, tiny_processor, 0, prompt_suffix="").take(8)
    assert [sorted(p.sample.answer for p in prompts[i : i + 3]) for i in (0, 3)] == [["0", "1", "2"]] * 2


# --- files ------------------------------------------------------------------------------------------------------------

BAD = {  # reason: what makes it so
    "answer is not text: list": {"answer": ["3"]},
    "answer is not text: dict": {"answer": {"value": 3}},
    "problem is not text: int": {"problem": 7},
    "problem is not text: list": {"problem": [["How many?"]]},
    "control token in the problem": {"problem": "How many?<|im_end|>"},
    "placeholders do not match images: 2 <image> for 1": {"problem": "<image><image>How many?"},
    "image is a URL": {"images": ["s3://bucket/a.png"]},
    "image is on a network": {"images": ["\\\\host\\share\\a.png"]},
    "image path leaves the data's folder": {"images": ["../secret.png"]},
    "image file is missing: 'pipe'": {"images": ["pipe"]},
    "image file is missing: 'a\\nb.png'": {"images": ["a\nb.png"]},
    "unusable image: the image has zero bytes": {"images": ["empty.png"]},
    "unusable image: neither bytes nor a path but list": {"images": [["a.png"]]},
    "prompt too long": {"problem": "How many?" * 100_000},
    "answer too long": {"answer": "3" * 10**6},
}


@pytest.fixture
def hostile_file(tmp_path):
    """A JSON-lines file: a good row, the bad ones, and twenty good ones, whose answer is a number."""
    data = tmp_path / "data"
    data.mkdir()
    (tmp_path / "secret.png").write_bytes(encoded(picture()))
    (data / "a.png").write_bytes(encoded(picture()))
    (data / "empty.png").touch()
    os.mkfifo(data / "pipe")
    bad = [named(**{"tag": name[:60], **changed}) for name, changed in BAD.items()]
    return write(data / "test.jsonl", [named(answer=" 3 "), *bad, *[named(answer=i) for i in range(20)]])


@pytest.mark.parametrize("read", [load_rows, stream_rows])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_each_bad_row_of_a_file_costs_one_row_in_training(tiny_processor, hostile_file, read, num_workers):
    rows = read(hostile_file, split="test")
    stream = PromptStream(
        rows, tiny_processor, 0, max_prompt_length=256, max_skipped_share=0.9, num_workers=num_workers
    )
    answers = [prompt.sample.answer for prompt in stream.take(42)]  # two epochs: the first one met every row
    stream.close()
    assert sorted(answers) == sorted(2 * ["3", *map(str, range(20))])
    assert sorted(stream.skipped, key=int) == [str(1 + i) for i in range(len(BAD))]
    for i, name in enumerate(BAD):
        assert stream.skipped[str(1 + i)].startswith(name)


def test_each_bad_row_of_a_file_costs_one_row_in_an_evaluation(tiny_model_folder, hostile_file, tmp_path, capsys):
    request = Request(
        model=str(tiny_model_folder),
        benchmarks=(str(hostile_file),),
        protocol=Protocol(k=1, views=("clean",), view_k=1, max_completion_length=4, max_prompt_length=256),
        output_dir=tmp_path / "out",
    )
    folder = evaluate(request)
    answers = read_answers(folder)
    assert len({answer.id for answer in answers}) == 21
    report = (folder / "report.md").read_text(encoding="utf-8")
    results = (folder / "results.json").read_text(encoding="utf-8")
    assert len(report) < 100_000 and len(results) < 100_000
    benchmark = load(select([str(hostile_file)])[0])
    for i, name in enumerate(BAD):
        if not name.startswith(("control", "prompt too long")):  # which a processor decides
            assert reason(benchmark[1 + i], benchmark.root).startswith(name)


def parquet(path, count=3, row_group_size=10, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = [{"bytes": encoded(picture()), "path": None}]
    columns = {"problem": ["How many?"] * count, "answer": ["3"] * count, "images": [image] * count} | columns
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=row_group_size)
    return path


def no_text(values):
    """A column that says it is text and holds any bytes."""
    buffers = pyarrow.array(values, pyarrow.binary()).buffers()
    return pyarrow.Array.from_buffers(pyarrow.string(), len(values), buffers)


def test_a_cell_that_is_not_unicode_costs_its_row_or_itself(tmp_path):
    broken = no_text([b"a", b"\xff", b"c"])
    for name in ("problem", "answer"):
        rows = load_rows(parquet(tmp_path / name / "train.parquet", **{name: broken}))
        assert [check_row(rows[i]).id for i in (0, 2)] == ["0", "2"]
        assert reason(rows[1]) == f"{name} is not valid Unicode: surrogates not allowed"
    rows = load_rows(parquet(tmp_path / "tag" / "train.parquet", source=broken))
    assert [check_row(rows[i]).tags for i in range(3)] == [{"source": "a"}, {}, {"source": "c"}]
    rows = load(select([str(parquet(tmp_path / "id" / "test.parquet", id=broken))])[0])
    assert [check_row(rows[i]).id for i in range(3)] == ["0", "1", "2"]
    with pytest.raises(DataError, match=r"cannot read .*problem.train\.parquet after row 0: .*can't decode"):
        list(stream_rows(tmp_path / "problem").shard(0))


def tear(path, keep):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "empty"])
def test_a_torn_file_among_others_is_named(tmp_path, kind):
    for i in range(3):
        if kind == "parquet":
            parquet(tmp_path / f"train-{i}.parquet", 30)
        else:
            write(tmp_path / f"train-{i}.jsonl", [named()] * 40)
    torn = next(tmp_path.glob("train-1.*"))
    tear(torn, 0 if kind == "empty" else 0.59)
    with pytest.raises(DataError, match=torn.name):
        load_rows(tmp_path)
    with pytest.raises(DataError, match=torn.name):
        rows = stream_rows(tmp_path)
        assert len(list(rows.shard(0))) in (30, 40)  # the others can be read
        list(rows.shard(1))


def test_a_file_torn_in_the_middle_of_an_epoch_is_an_error_with_its_name_and_no_end(tiny_processor, tmp_path):
    images = [[{"bytes": encoded(picture(seed=i)), "path": None}] for i in range(60)]
    # Arrow decodes ahead on threads of its own: with a row a group, and the damage thirty groups on, never at the start.
    file = parquet(tmp_path / "train.parquet", 60, row_group_size=1, images=images)
    data = bytearray(file.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 9_000] = b"\x55" * 9_000  # pages of later row groups
    file.write_bytes(bytes(data))
    stream = PromptStream(stream_rows(file), tiny_processor, 0, prompt_suffix="", shuffle_buffer_size=2)
    with pytest.raises(DataError, match=r"cannot read .*train\.parquet after row \d"):
        for _ in range(60):
            stream.take(1)
