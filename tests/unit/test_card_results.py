"""evaluation.json for others: headline figures, and the Hub's evaluation results where they can be honest."""

import json

import pytest
import yaml
from huggingface_hub import EvalResultEntry
from huggingface_hub._eval_results import parse_eval_result_entries

from papo_hub.card import headline, write_eval_results


def row(when="after", view="clean", group="all", accuracy=0.625, **others):
    return {"when": when, "view": view, "group": group, "accuracy": accuracy, "problems": 40, "samples": 8, **others}


ROWS = [
    row(),
    row(group="high", accuracy=0.51234),
    row(group="low", accuracy=0.9),
    row(view="masked", accuracy=0.1),
    row(when="before", accuracy=0.2),
    row(when="before", group="high", accuracy=0.3),
]


def make_run(folder, rows=ROWS, **recipe):
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(
        yaml.safe_dump({"eval_dataset_name": "owner/data", "eval_split": "test", **recipe})
    )
    if rows is not None:
        (folder / "evaluation.json").write_text(json.dumps(rows))
    return folder


def test_headline_is_after_training_on_clean_images(tmp_path):
    assert headline(make_run(tmp_path)) == {"overall": 62.5, "vision": 51.23, "k": 8}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (None, (None, None, None)),
        ([], (None, None, None)),
        ([row(when="before")], (None, None, None)),
        ([row(group="high", samples=4)], (None, 62.5, 4)),
        ([row(accuracy=None)], (None, None, 8)),
        ([row(accuracy="high", samples=True)], (None, None, None)),
        ([row(accuracy=0), row(group="high", accuracy=1)], (0.0, 100.0, 8)),
    ],
)
def test_headline_of_what_is_missing(tmp_path, rows, expected):
    assert headline(make_run(tmp_path, rows)) == dict(zip(("overall", "vision", "k"), expected, strict=True))


@pytest.mark.parametrize(
    "content", ["{", "{}", "[1]", '[{"when": "after", "view": "clean"}]', '[{"when": 1, "view": "", "group": ""}]']
)
def test_evaluations_that_are_none_are_named(tmp_path, content):
    (make_run(tmp_path) / "evaluation.json").write_text(content)
    with pytest.raises(ValueError, match=r"evaluation\.json (is not JSON|must hold a list of rows)"):
        headline(tmp_path)


def test_eval_results_read_back_by_the_library(tmp_path):
    folder = tmp_path / "pushed"
    run = make_run(tmp_path / "run", temperature=1.0, top_p=0.99)
    files = write_eval_results(run, folder)
    assert [file.relative_to(folder).as_posix() for file in files] == [
        ".eval_results/overall.yaml",
        ".eval_results/vision.yaml",
    ]
    notes = "avg@8 accuracy in percent, 40 problems of the split test, temperature 1, top_p 0.99, "
    notes += "measured by papo_hub on its own run"
    entries = [parse_eval_result_entries(yaml.safe_load(file.read_text())) for file in files]
    assert entries == [
        [EvalResultEntry("owner/data", "default", 62.5, notes=notes)],
        [EvalResultEntry("owner/data", "vision", 51.23, notes=notes)],
    ]
    assert {entry.task_id: entry.value for [entry] in entries} == {
        "default": headline(run)["overall"],
        "vision": headline(run)["vision"],
    }


@pytest.mark.parametrize(
    "recipe",
    [
        {"eval_dataset_name": None},
        {"eval_dataset_name": "digits"},
        {"eval_dataset_name": "here/data"},  # a folder
        {"eval_problems": 40},  # a part of the benchmark is not its task
    ],
)
def test_nothing_is_claimed_of_what_is_no_benchmark(tmp_path, recipe):
    (tmp_path / "here/data").mkdir(parents=True)
    assert write_eval_results(make_run(tmp_path / "run", **recipe), tmp_path) == []
    assert not (tmp_path / ".eval_results").exists()


def test_results_that_no_longer_hold_are_removed(tmp_path):
    run = make_run(tmp_path / "run")
    overall, vision = write_eval_results(run, tmp_path)
    other = overall.with_name("mmmu.yaml")
    other.write_text("[]")
    assert write_eval_results(make_run(run, [row()]), tmp_path) == [overall]
    assert overall.exists() and not vision.exists() and other.exists()


def test_nothing_secret_reaches_the_notes(tmp_path):
    run = make_run(tmp_path / "run", eval_split="hf_abcdefghijkl\n- x: y")
    (file, _) = write_eval_results(run, tmp_path)
    assert "abcdefghijkl" not in file.read_text()
    (entry,) = yaml.safe_load(file.read_text())
    assert entry.keys() == {"dataset", "value", "notes"} and "hf_… - x: y" in entry["notes"]
