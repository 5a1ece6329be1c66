"""papo-hub evaluate and compare: from the command line to a report, and one line that names the fix for bad input."""

import json
import shutil

import pytest
from PIL import Image

from papo_hub.cli import main
from papo_hub.evaluation.answers import FILE, read_answers

FAST = ["--k", "2", "--limit", "2", "--views", "clean", "blank", "--max-completion-length", "4"]


def contents(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def done(tiny_model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("command") / "a"
    assert main(["evaluate", f"{tiny_model_folder}", *FAST, "--output_dir", f"{folder}"]) == 0
    return folder


@pytest.fixture
def copied(done, tmp_path):
    return shutil.copytree(done, tmp_path / "copied")


@pytest.fixture
def refused(capsys, tmp_path, monkeypatch):
    """refused(*arguments) → the one line that it ends with."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def refused(*arguments):
        capsys.readouterr()
        assert main([*map(str, arguments)]) == 2
        lines = capsys.readouterr().err.splitlines()
        messages = [line for line in lines if line.startswith("error: ")]
        assert lines[-1:] == messages and not any("Traceback" in line for line in lines)
        assert list((tmp_path / "here").iterdir()) == []  # nothing was begun
        return messages[0]

    return refused


def test_an_evaluation_ends_with_its_table_and_report(done, tiny_model_folder, tmp_path, capsys):
    assert len(read_answers(done)) == 2 * (2 + 1)  # the other view gets a quarter of k, at least one answer
    results = json.loads((done / "results.json").read_text())
    assert results["settings"]["protocol"]["max_completion_length"] == 4  # --max-completion-length, with dashes
    capsys.readouterr()
    again = tmp_path / "again"
    assert main(["evaluate", f"{tiny_model_folder}", *FAST, "--output_dir", f"{again}"]) == 0
    printed = capsys.readouterr().out
    assert "digits" in printed and f"The report is {again / 'report.md'}." in printed
    assert (again / FILE).read_bytes() == (done / FILE).read_bytes()


def test_greedy_needs_no_word_about_k(tiny_model_folder, tmp_path):
    greedy = ["--temperature", "0", "--limit", "1", "--views", "clean", "blank", "--max_completion_length", "2"]
    assert main(["evaluate", f"{tiny_model_folder}", *greedy, "--output_dir", f"{tmp_path / 'a'}"]) == 0
    assert [(a.view, a.sample) for a in read_answers(tmp_path / "a")] == [("clean", 0), ("blank", 0)]


def test_a_file_with_other_columns(tiny_model_folder, tmp_path, refused):
    Image.new("RGB", (28, 28)).save(tmp_path / "a.png")
    row = {"question": "1 + 1", "answer": "2", "images": ["a.png"]}
    (tmp_path / "mine.jsonl").write_text(json.dumps(row) + "\n")
    arguments = ["evaluate", tiny_model_folder, *FAST, "--benchmarks", tmp_path / "mine.jsonl"]
    message = refused(*arguments, "--output_dir", tmp_path / "out")
    assert "no column 'problem'; it has" in message and "question" in message and "--problem_column" in message
    assert not (tmp_path / "out").exists()
    named = [*map(str, arguments), "--problem_column", "question", "--output_dir", f"{tmp_path / 'out'}"]
    assert main(named) == 0 and {a.benchmark for a in read_answers(tmp_path / "out")} == {"mine"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--benchmarks", "mathvist"], "'mathvist' is unknown. Did you mean mathvista"),
        (["--benchmarks", "there.parquet"], "no such file or folder: there.parquet"),
        (["--benchmarks", "digits", "--problem_column", "q"], "columns and split say how your own data is read"),
        (["--k", "0"], "k: 0 must be at least 1"),
        (["--view_k", "0"], "view_k: 0 must be at least 1"),
        (["--limit", "0"], "limit: 0 must be at least 1"),
        (["--k", "2", "--temperature", "0"], "k: 2, but greedy answers"),
        (["--views", "blank"], "views: the clean one must be among them"),
        (["--views", "clean", "dark"], "'dark' is no view: write clean, blank, or mask-R"),
        (["--grader", "exact"], "grader: 'exact' is none of math, mathruler"),
        (["--min_pixels", "784"], "min_pixels and max_pixels go together"),
        (["--max_pixels", "784"], "min_pixels and max_pixels go together"),
        (
            ["--min_pixels", "785", "--max_pixels", "784"],
            "min_pixels: 785 must be at least 1 and at most max_pixels: 784",
        ),
        (["--min_pixels", "-5", "--max_pixels", "784"], "min_pixels: -5 must be at least 1"),
        (["--attn_implementation", "fast"], "cannot be loaded: Specified `attn_implementation="),
        (["--revision", "v1"], "--revision names a version of a Hub repository"),
    ],
)
def test_an_option_that_cannot_be_is_named(tiny_model_folder, refused, tmp_path, options, said):
    assert said in refused("evaluate", tiny_model_folder, *options, "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [["--dtype", "int8"], ["--k", "many"], ["--kk", "2"], ["--views"]])
def test_what_argparse_refuses_ends_with_exit_code_2(tiny_model_folder, options, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", f"{tiny_model_folder}", *options])
    assert ended.value.code == 2 and options[0] in capsys.readouterr().err


def test_without_a_model_that_sees(refused, tmp_path, tiny_model_folder):
    assert "Name a MODEL to evaluate" in refused("evaluate")
    assert "Name a MODEL to evaluate" in refused("evaluate", tiny_model_folder, "--from_answers", tmp_path)
    assert "no model at 'some-one/not-there'" in refused("evaluate", "some-one/not-there")
    assert "no model or run at './nowhere'" in refused("evaluate", "./nowhere")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "config.json").write_text('{"model_type": "qwen2"}')
    message = refused("evaluate", tmp_path / "text")
    assert "is a qwen2 model, which reads no images; take a vision-language model" in message
    (tmp_path / "text" / "config.json").write_text('{"model_type": "no_such_type"}')
    assert "MODEL: no model at" in refused("evaluate", tmp_path / "text")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("gamma: 0.02\n")
    assert "has no model yet: its training is not over. Finish it" in refused("evaluate", tmp_path / "run")


@pytest.mark.parametrize("lost", ["model.safetensors", "processor_config.json", "tokenizer.json"])
def test_a_model_that_lacks_a_file_is_refused(refused, tiny_model_folder, tmp_path, lost):
    folder = shutil.copytree(tiny_model_folder, tmp_path / "model")
    (folder / lost).unlink()
    told = f"has no {lost}" if lost == "model.safetensors" else "cannot be loaded: "
    assert f"MODEL: {folder} {told}" in refused("evaluate", folder, "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_continued_stays_as_it_is(refused, copied, tiny_model_folder):
    command = ["evaluate", tiny_model_folder, *FAST, "--output_dir", copied]
    before = contents(copied)
    assert "another dtype: 'float32', not 'bfloat16'. Choose another" in refused(*command, "--dtype", "bfloat16")
    message = refused(*command, "--grader", "mathruler")
    assert "another grader: 'math', not 'mathruler'" in message
    assert f"re-grade it: --from_answers {copied} --grader mathruler" in message
    assert contents(copied) == before
    lines = before[next(file for file in before if file.name == FILE)].splitlines(keepends=True)
    (copied / FILE).write_bytes(b"".join([lines[0], b'{"benchmark": "digits"}\n', *lines[2:]]))
    before = contents(copied)
    message = refused(*command)
    assert f"{copied / FILE}, line 2 is no answer: lacks " in message and "Delete the line" in message
    assert contents(copied) == before
    (copied / "settings.json").write_text("{")
    assert "settings.json is damaged" in refused(*command)


def test_nothing_to_grade_anew(refused, tmp_path, copied):
    (tmp_path / "empty").mkdir()
    assert "no answers.jsonl in" in refused("evaluate", "--from_answers", tmp_path / "empty")
    assert "no such file" in refused("evaluate", "--from_answers", tmp_path / "none.jsonl")
    assert "grader: 'exact' is none of" in refused("evaluate", "--from_answers", copied, "--grader", "exact")
    assert "would be lost" in refused("evaluate", "--from_answers", copied, "--output_dir", copied)


def test_grading_anew_and_comparing(copied, tmp_path, capsys):
    assert main(["evaluate", "--from_answers", f"{copied}", "--grader", "mathruler"]) == 0
    regraded = tmp_path / "copied-mathruler"
    assert "6 answers graded anew by mathruler" in capsys.readouterr().out and (regraded / "report.md").exists()
    assert main(["compare", f"{copied}", f"{copied}", "--output", f"{tmp_path / 'page.html'}"]) == 0
    assert f"is {tmp_path / 'page.html'}." in capsys.readouterr().out and (tmp_path / "page.html").exists()
    assert main(["compare", f"{copied}", f"{copied}"]) == 0 and (copied / "comparison.html").exists()


def test_a_run_is_compared_by_the_evaluation_of_its_model(finished_run, tmp_path, capsys):
    run = shutil.copytree(finished_run, tmp_path / "run")
    assert main(["compare", f"{run / 'evaluation' / 'before'}", f"{run}"]) == 0  # after training
    printed = capsys.readouterr().out
    assert "before training" in printed and "after training" in printed
    assert (run / "evaluation" / "after" / "comparison.html").exists()


def test_what_cannot_be_compared_is_named(refused, copied, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("gamma: 0.02\n")
    message = refused("compare", tmp_path / "run", copied)
    assert "has not been evaluated: papo-hub evaluate" in message
    assert "no settings.json in" in refused("compare", tmp_path / "nowhere", copied)
    (copied / FILE).unlink()
    assert f"no {FILE} in" in refused("compare", copied, copied)
