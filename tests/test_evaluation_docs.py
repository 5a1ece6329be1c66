"""docs/evaluation.md says everything that an evaluation takes and writes, its commands parse, its links lead somewhere."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from dataclasses import fields, replace
from pathlib import Path

import pytest
from PIL import Image

from papo_hub import batch, cli, metrics, rewards, statistics
from papo_hub.evaluation import compare, dependence, report, run
from papo_hub.evaluation import settings as settings_module
from papo_hub.evaluation.answers import FILE, Answer, parse
from papo_hub.evaluation.benchmarks import BENCHMARKS, GROUPS
from papo_hub.evaluation.protocol import Protocol
from papo_hub.evaluation.run import Request, evaluate, regrade
from papo_hub.metrics.avg_at_k import avg_at_k
from papo_hub.metrics.perception_error import perception_error
from papo_hub.metrics.vision_dependency import vision_dependency

ROOT = Path(__file__).parents[1]
NAMES = ("evaluation.md", "evaluation_benchmarks.md", "grading.md", "metrics.md", "differences.md")
TEXT = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")


def table(first: str) -> list[list[str]]:
    """The cells of the rows of the table whose first heading is `first`."""
    found = re.search(rf"^\| {re.escape(first)} \|.*\n\|[-| ]+\n((?:\|.*\n)+)", TEXT, flags=re.MULTILINE)
    assert found, first
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in found[1].splitlines()]


def named(first: str) -> list[str]:
    """What the table's first column names, in order: each name must stand there once."""
    return [name for row in table(first) for name in re.findall(r"`([^`]+)`", row[0])]


def paths(value: object, keys: dict[int, str], prefix: str = "", depth: int = 0) -> set[str]:
    """{"a": {"x": 1}, "b": [{"y": 2}]} as {"a.x", "b[].y"}; at a depth in `keys` all keys are called by that one name."""
    if isinstance(value, dict) and value:
        return set().union(
            *(
                paths(part, keys, f"{prefix}.{keys.get(depth, key)}".lstrip("."), depth + 1)
                for key, part in value.items()
            )
        )
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return set().union(*(paths(part, keys, f"{prefix}[]", depth) for part in value))
    return {prefix}


@pytest.fixture(scope="module")
def folder(tiny_model_folder, tmp_path_factory) -> Path:
    """An evaluation of the tiny model on digits and on own data with a row that cannot be used."""
    home = tmp_path_factory.mktemp("evaluated")
    Image.new("RGB", (56, 28), "red").save(home / "red.png")
    rows = [{"problem": "<image> 1 + 1?", "answer": "2", "images": [name]} for name in ("red.png", "missing.png")]
    (home / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    protocol = Protocol(k=1, view_k=1, views=("clean", "mask-0.6", "blank"), max_completion_length=2)
    request = Request(f"{tiny_model_folder}", ("tiny", f"{home / 'own.jsonl'}"), protocol, output_dir=home / "out")
    return evaluate(replace(request, limit=4), say=lambda text: None)


def read(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))


# --- files ------------------------------------------------------------------------------------------------------------


def test_every_field_of_an_answer_is_documented(folder):
    assert named("field of an answer") == [field.name for field in fields(Answer)]
    assert set(json.loads((folder / FILE).read_text().splitlines()[0])) == set(named("field of an answer"))


def test_the_example_of_an_answer_is_one():
    (line,) = re.findall(r"^```json\n(.*)\n```$", TEXT, flags=re.MULTILINE)
    answer = parse(line)
    assert answer.verdict == 1 and answer.answer == answer.extracted and answer.tags["reading"] in answer.response


def test_every_field_of_a_row_is_documented(folder):
    rows = read(folder / "results.json")["rows"]
    assert sorted(named("field of a row")) == sorted({key for row in rows for key in row})


def test_everything_beside_the_rows_is_documented(folder):
    results = read(folder / "results.json")
    found = {"settings", "rows"} | paths({"skipped": results["skipped"]}, {})
    for part in ("averages", "perception_errors"):
        found |= paths({part: results[part]}, {1: "GROUP" if part == "averages" else "BENCHMARK"})
    for entry in results["vision_dependency"].values():
        gaps = paths({"gaps": entry.pop("gaps")}, {1: "VIEW"})
        found |= {f"vision_dependency.BENCHMARK.{path}" for path in paths(entry, {}) | gaps}
    assert sorted(named("beside the rows")) == sorted(found)
    assert {path.partition(".")[0].partition("[")[0] for path in found} == results.keys()


def test_every_setting_is_documented(folder, tmp_path):
    settings = read(folder / "settings.json")
    settings["benchmarks"] = [entry | {"columns": None} for entry in settings["benchmarks"]]
    found = paths(settings | {"versions": None}, {})
    graded = read(regrade(folder, "math", tmp_path / "graded", say=lambda text: None) / "settings.json")
    found |= graded.keys() - settings.keys()
    documented = set(named("setting"))
    assert len(named("setting")) == len(documented)
    assert documented == found | {"held[]"}
    assert '"held"' in Path(settings_module.__file__).read_text(encoding="utf-8")


def test_every_file_of_the_folder_is_documented(folder):
    documented = set(named("in the folder"))
    written = {f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir()}
    assert written <= documented and {FILE, "report.md", "figures/"} <= written


# --- options and figures ----------------------------------------------------------------------------------------------


def options() -> dict[str, argparse.Action]:
    actions = cli._evaluation_parser()._actions
    return {next(iter(action.option_strings), action.metavar): action for action in actions if action.dest != "help"}


def test_every_option_is_documented_once():
    assert len(options()) > 20
    assert named("option") == list(options())


def test_the_documented_defaults_are_the_codes():
    defaults = {row[0].strip("`"): row[1] for row in table("option")}
    protocol = Protocol()
    for name in ("k", "temperature", "top_p", "max_prompt_length", "seed", "grader", "batch_size", "max_tokens"):
        assert defaults[f"--{name}"].strip("`") == f"{getattr(protocol, name)}", name
    assert defaults["--views"].strip("`").split() == list(protocol.views)
    assert defaults["--benchmarks"].strip("`").split() == options()["--benchmarks"].default
    assert defaults["--dtype"].strip("`") == options()["--dtype"].default
    assert protocol.view_k == protocol.k // 4 and defaults["--view_k"] == "k / 4"


def test_the_numbers_of_answers_are_the_tables():
    protocol, problems = Protocol(), sum(BENCHMARKS[name].problems for name in GROUPS["all"])
    asked = protocol.k + protocol.view_k * (len(protocol.views) - 1)
    assert f"{protocol.k} + {protocol.view_k} · {len(protocol.views) - 1} = {asked} a problem" in TEXT
    assert f"`all` has {problems:,} problems" in TEXT
    assert f"{protocol.k * problems:,} answers" in TEXT and f"{asked * problems:,}" in TEXT
    assert f"{asked * BENCHMARKS['digits'].problems:,} answers" in TEXT
    longest = {name: f"{entry.max_completion_length:,}" for name, entry in BENCHMARKS.items()}
    assert longest.pop("digits") == "16" and set(longest.values()) == {"2,048"}
    assert "2,048, for `digits` 16" in TEXT


def test_the_numbers_of_the_statistics_are_the_codes():
    assert f"{statistics.RESAMPLES:,} bootstrap resamples" in TEXT
    assert f"p < {compare.SIGNIFICANCE}" in TEXT and "up to ten in full" in TEXT and compare.MOST_FLIPS == 10
    assert f"{Protocol().mask_patch_size} × {Protocol().mask_patch_size} pixels" in TEXT


# --- metrics ----------------------------------------------------------------------------------------------------------

PLACES = (statistics, rewards, batch, avg_at_k, vision_dependency, perception_error, compare, dependence, report)


def test_every_number_of_a_row_is_defined():
    defined = " ".join(row[0].lower() for row in table("metric"))
    words = {"pass_at_k": "pass@k", "majority_at_k": "majority@k", "low": "`low`", "high": "`high`"}
    about = {"benchmark", "title", "group", "view", "subset", "k", "problems", "answers"}
    numbers = set(named("field of a row")) - about
    assert len(numbers) == 10
    assert [name for name in numbers if words.get(name, name.replace("_", " ")) not in defined] == []


def test_every_definition_names_the_function_that_computes_it():
    rows = table("metric")
    assert len(rows) >= 14 and {len(row) for row in rows} == {5}
    names = [name for row in rows for name in re.findall(r"`([^`]+)`", row[-1])]
    assert all(row[1] and "`" in row[-1] for row in rows)
    assert [name for name in names if not any(hasattr(place, name) for place in PLACES)] == []


def test_every_metric_to_load_is_documented():
    assert named("to load") == list(metrics.NAMES)


# --- commands and links -----------------------------------------------------------------------------------------------


def commands() -> list[str]:
    """The commands of the code blocks, and those that stand in the text with arguments."""
    blocks = "".join(re.findall(r"^```bash\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
    inline = re.findall(r"`(papo-hub \w+ [^`]+|accelerate launch -[^`]+)`", TEXT)
    return [line for line in blocks.splitlines() if line.strip()] + inline


@pytest.mark.parametrize("command", commands())
def test_every_command_is_accepted(command, monkeypatch):
    """By the real parsers, and by all that is checked before a model is read."""
    asked = []
    monkeypatch.setattr(run, "evaluate", asked.append)
    monkeypatch.setattr(run, "regrade", lambda *arguments: asked.append(arguments))
    monkeypatch.setattr(cli, "compare_command", lambda chosen: asked.append(chosen) or 0)
    words = shlex.split(command, comments=True)
    if words[0] == "accelerate":
        assert words[:3] == ["accelerate", "launch", "--config_file"]
        assert (ROOT / words[3]).exists() and words[4] == "recipes/evaluate.py" and (ROOT / words[4]).exists()
        code = cli.evaluate_command(words[5:])
    else:
        code = cli.main(words[1:])
    assert code == 0 and len(asked) == 1
    allowed = {"--config_file", "--output"} if "compare" in words else {"--config_file", *options()}
    assert [word for word in words if word.startswith("--") and word not in allowed] == [], "an abbreviation"
    if isinstance(asked[0], Request):
        run._pixel_limits(asked[0], {})
    for name in getattr(asked[0], "benchmarks", ()):
        assert name in GROUPS or name in BENCHMARKS or name == "problems.parquet", name


def test_there_are_commands():
    assert len(commands()) >= 10


def anchors(document: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", NAMES)
def test_every_internal_link_leads_to_a_heading(name):
    text = re.sub(
        r"^```.*?^```", "", (ROOT / "docs" / name).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    for target in re.findall(r"\]\((?!https?://)([^)\s]+)\)", text):
        file, _, anchor = target.partition("#")
        document = ROOT / "docs" / (file or name)
        assert document.exists(), target
        assert not anchor or anchor in anchors(document), target
