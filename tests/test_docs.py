"""The documents name only what exists, and every logged name is documented."""

import ast
import importlib
import json
import re
from dataclasses import fields
from itertools import product
from pathlib import Path

import pytest
import torch

from benchmarks import look
from papo_hub import (
    config,
    data,
    experience,
    head,
    images,
    logprobs,
    masking,
    objectives,
    plugins,
    prefix_attention,
    rewards,
    rollout,
    shared_prefix,
    trainer,
)
from papo_hub.batch import Batch, Completion, Prompt
from papo_hub.config import TrainConfig
from papo_hub.evaluation import training
from papo_hub.evaluation.answers import Answer
from papo_hub.evaluation.results import tabulate
from papo_hub.objectives import PAPO_G, Counts, Logprobs, Objective, Weights
from papo_hub.randomness import derived_generator
from papo_hub.rollout import decoding

ROOT = Path(__file__).parents[1]
METRIC = re.compile(r"(objective|reward|rollout|tokens|optim|time)/[a-z_]+")
KEYS = {f.name for f in fields(TrainConfig)}


def text(name: str) -> str:
    """A document without its formulas."""
    content = (ROOT / "docs" / name).read_text(encoding="utf-8")
    content = re.sub(r"^ *```math\n.*?^ *```$", "", content, flags=re.DOTALL | re.MULTILINE)
    assert "```" not in content
    return content


def quoted(content: str) -> set[str]:
    return {re.sub(r"\s+", " ", span) for span in re.findall(r"`([^`]+)`", content)}


def rows(content: str, first: str) -> list[list[str]]:
    """The cells of all tables whose first heading is `first`."""
    found, inside = [], False
    for line in content.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            inside = False
        elif cells[0] == first:
            inside = True
        elif inside and not set(cells[0]) <= {"-"}:
            found.append(cells)
    return found


# --- what is logged ---------------------------------------------------------------------------------------------------


class OneProcess:
    device = torch.device("cpu")

    @staticmethod
    def reduce(tensor, reduction):
        return tensor


def averaged_names() -> set[str]:
    """The names that `trainer.reduced` makes, from one step of the real objective on two tokens."""
    x = torch.full((2, 1), -1.0)
    mask = torch.ones(2, 1, dtype=torch.bool)
    _, sums = Objective(PAPO_G, Weights())(Logprobs(x, x, torch.zeros(2), mask, x, x), Counts(2, 2))
    reward_names = experience._Groups().rewards
    batch = Batch(
        prompts=[],
        prompt_index=torch.zeros(2),
        completions=[Completion([1], "", True)] * 2,
        completion_ids=mask.long(),
        completion_mask=mask,
        advantages=torch.zeros(2),
        rewards={name: torch.zeros(2) for name in reward_names},
    )
    return set(trainer.reduced(OneProcess(), batch, sums))


def written_names() -> set[str]:
    """The names that stand in the source as they are."""
    found = set()
    for module in (trainer, experience):
        for node in ast.walk(ast.parse(Path(module.__file__).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and METRIC.fullmatch(node.value):
                found.add(node.value)
    return found


def documented_metrics() -> list[str]:
    return [re.fullmatch(r"`(.+)`", row[0])[1] for row in rows(text("metrics.md"), "name")]


def test_every_logged_name_is_documented_once_and_nothing_else():
    assert len(averaged_names()) == 16 and len(written_names()) >= 10
    documented = documented_metrics()
    assert sorted(documented) == sorted(averaged_names() | written_names())
    assert "`step`" in text("metrics.md")


def test_every_field_of_an_evaluation_is_documented():
    answers = [
        Answer("own", id, view, 0, 1, "0", "2", "", None, 0.0, 0.0, 1, True, 0.5, {"dependence": level, "kind": level})
        for id, level in (("a", "high"), ("b", "high"), ("c", "low"))
        for view in ("clean", "mask-0.6")
    ]
    entry = {"name": "own", "title": "Own", "group": "local"}
    found = tabulate(answers, {"benchmarks": [entry], "protocol": {"views": ["clean", "mask-0.6"]}})
    summary = training._summary(found["rows"])
    assert {(row["view"], row["group"]) for row in summary} == set(product(("clean", "masked"), ("all", "high", "low")))
    documented = [name for row in rows(text("metrics.md"), "field") for name in re.findall(r"`(\w+)`", row[0])]
    assert all(sorted(["when", *row]) == sorted(documented) for row in summary)


# --- what is named ----------------------------------------------------------------------------------------------------

PLACES = (objectives, config, data, experience, images, logprobs, masking, plugins, rewards, rollout, trainer)
PLACES += (head, prefix_attention, shared_prefix, decoding)
OTHERS = {"Prompt": Prompt, "Batch": Batch, "Completion": Completion, "derived_generator": derived_generator}
FILES = {"metrics.jsonl", "evaluation.json", "evaluation/before/", "evaluation/after/"}
FILES |= {"skipped_rows.jsonl", "provenance.json"}
WORDS = {"step", "null"}


def exists(name: str) -> bool:
    """A recipe key, `key: value`, a value of such a key, a metric, a file, or anything importable that a document names."""
    key, colon, value = name.partition(": ")
    if colon:
        return key in KEYS and (value == "null" or accepted(key, value))
    if name in KEYS | FILES | WORDS or name in documented_metrics():
        return True
    if any(accepted(key, name) for key in ("objective", "estimator", "masked_logprobs", "mask_strategy")):
        return True
    if re.fullmatch(r"(objective|reward|tokens|time|optim|rollout)/\*", name):
        return any(metric.startswith(name[:-1]) for metric in documented_metrics())
    if "/" in name:
        return (ROOT / name).exists()
    return resolves(name)


def accepted(key: str, value: str) -> bool:
    try:
        config.coerce(key, value, config.typing.get_type_hints(TrainConfig)[key])
    except config.ConfigError:
        return False
    return True


def resolves(name: str) -> bool:
    head, *rest = name.split(".")
    if head == "papo_hub":
        place, attribute = name.rsplit(".", 1)
        return hasattr(importlib.import_module(place), attribute)
    starts = [getattr(place, head) for place in PLACES if hasattr(place, head)]
    starts += [OTHERS[head]] if head in OTHERS else []
    return any(has(start, rest) for start in starts)


def has(start: object, rest: list[str]) -> bool:
    for attribute in rest:
        if attribute in getattr(start, "__annotations__", {}):
            return attribute == rest[-1]
        if not hasattr(start, attribute):
            return False
        start = getattr(start, attribute)
    return True


FIELDS = {"clean", "masked", "completion_ids", "when", "before", "after", "view", "group", "all", "high", "low"}
FIELDS |= {
    "dependence",
    "accuracy",
    "perception_kl",
    "problems",
    "samples",
    "partial",
}  # of batches and evaluation rows


@pytest.mark.parametrize("document", ["objectives.md", "metrics.md"])
def test_documents_name_only_what_exists(document):
    names = quoted(text(document)) - FIELDS
    assert len(names) > 25
    assert [name for name in sorted(names) if not exists(name)] == []


def test_the_speed_document_names_only_what_exists():
    names = quoted(text("speed.md")) - {"make bench", "python -m benchmarks.idea docs/shared_prefix.png"}
    names = {name for name in names if not (ROOT / name).exists()} - {"completion_mask", "shared_prefix"}
    assert len(names) > 8
    assert [name for name in sorted(names) if not exists(name)] == []


def test_the_speed_tables_quote_the_benchmark():
    """Each ratio of the README's and the document's tables is the one of the committed results."""

    def table(document):
        lines = [line.strip("| ").split("|") for line in document.splitlines() if re.search(r"\d× \||\| 1/\d", line)]
        return {re.sub("[:,]", "", first).strip(): [cell.strip() for cell in cells] for first, *cells in lines}

    results = (ROOT / "benchmarks/results/README.md").read_text(encoding="utf-8").split("## 1 thread")[0]
    for document in (text("speed.md"), (ROOT / "README.md").read_text(encoding="utf-8")):
        quotes = table(document)
        same = [
            name for name, cells in table(results).items() for q in quotes if name.startswith(q) and cells == quotes[q]
        ]
        assert len(same) >= 5, same
        ours = [q for q in quotes if re.match("rollout|score|update forward|whole step|peak", q)]
        assert len(same) == len(ours), set(ours) - set(same)


def test_the_look_document_gives_the_measured_figures():
    folder = ROOT / "benchmarks/results"
    results = json.loads((folder / "look.json").read_text(encoding="utf-8"))
    models = [(model["name"], len(model["answers"])) for model in results["models"]]
    assert models == [(name, 100) for name in look.MODELS] and results["cells"] == look.CELLS
    table = look.figures_table(results)
    for document in (ROOT / "docs/look.md", folder / "look.md"):
        content = document.read_text(encoding="utf-8")
        assert table in content and "first 100 test questions" in content and "9 cells a row" in content, document


def test_differences_name_only_what_exists_here():
    names = set().union(*(quoted(row[2]) for row in rows(text("differences.md"), "what")))
    assert len(names) > 25
    assert [name for name in sorted(names) if not exists(name)] == []


def test_every_row_of_the_differences_has_its_four_cells():
    table = rows(text("differences.md"), "what")
    assert len(table) > 30
    assert [row[0] for row in table if len(row) != 4 or not row[0] or not row[2]] == []


def test_the_objectives_document_names_every_function_of_the_objective():
    names = quoted(text("objectives.md"))
    public = {name for name in objectives.__all__ if name not in ("OBJECTIVES", "Counts", "reduce", "terms")}
    public |= {f"terms.{name}" for name in ("clipped_surrogate", "reference_kl", "perception_kl", "entropy")}
    public |= {"terms.clip_fractions", "reduce.token_mean", "reduce.sequence_mean"}
    missing = {name for name in public if not any(name == known.split(".")[0] or name == known for known in names)}
    assert missing == set()


def test_links_between_documents_lead_somewhere():
    for document in (ROOT / "docs").glob("*.md"):
        for link in re.findall(r"\]\((?!https?://)([^)#]+)", document.read_text(encoding="utf-8")):
            assert (document.parent / link).exists(), f"{document.name}: {link}"


def test_the_example_of_an_extension_is_the_code():
    content = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n# (\S+)\n(.*?)```", content, flags=re.DOTALL)
    assert len(blocks) >= 5
    for path, code in blocks:
        assert code in (ROOT / path).read_text(encoding="utf-8"), f"{path}: {code}"


# --- what is said to be tested ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("document, least", [("reliability.md", 80), ("security.md", 20), ("vllm.md", 10)])
def test_every_test_that_a_document_names_exists(document, least):
    """`test_x.py::test_y`, and `::test_z` for another of the file named before it."""
    paths = list((ROOT / "tests").rglob("test_*.py"))
    known = {path.name: path.read_text(encoding="utf-8") for path in paths}
    assert len(known) == len(paths)  # a name stands for one file
    file, named = None, 0
    content = (ROOT / "docs" / document).read_text(encoding="utf-8")
    content = re.sub(r"```.*?```", "", content, flags=re.DOTALL)
    for there, test in re.findall(r"`(?:tests/\w+/)?(test_\w+\.py)?(?:::(test_\w+))?`", content):
        file = there or file
        assert file in known, file
        if test:
            named += 1
            assert re.search(rf"^def {test}\(", known[file], flags=re.MULTILINE), f"{file}::{test}"
    assert named > least
