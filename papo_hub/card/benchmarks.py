"""results.json of `papo-hub evaluate` as others read it: the card's table, its model-index, the Hub's evaluation results."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData, eval_result_entries_to_yaml

from papo_hub.card.escape import plain, text, words
from papo_hub.card.files import optional
from papo_hub.config import is_repository_id

RESULTS = Path("evaluation", "final", "results.json")  # of a run
ENTRY = "model-index.yaml"
PLACE = ".eval_results"
OURS = "measured by papo_hub"  # in the notes of every result for the Hub
PARTS = (".safetensors", "config.json", "tokenizer.json", "chat_template.jinja")


def fingerprint(model: Path) -> str | None:
    """16 hexadecimal digits that stand for a model folder's weights, configurations and tokenizer; None without one."""
    total = hashlib.sha256()
    files = sorted(file for file in Path(model).glob("*") if file.is_file() and file.name.endswith(PARTS))
    for file in files:
        with file.open("rb") as stream:
            total.update(file.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()[:16] if files else None


def benchmark_results(run: Path) -> dict[str, Any]:
    """The results of the run's model on benchmarks; empty where it was not evaluated, or has been trained on since.

    Raises ValueError where the file does not hold what its name says.
    """
    file = Path(run) / RESULTS
    results = optional(file)
    if not results:
        return {}
    try:
        weights = results["settings"]["model"]["weights"]
        results["averages"], _clean(results)
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f"{file} is not what papo-hub evaluate writes: run it again") from None
    return results if weights == fingerprint(Path(run) / "model") else {}


def benchmark_table(results: dict[str, Any]) -> list[list[str]]:
    """Header and rows for a card: each benchmark, then the averages. Empty without results."""
    if not results:
        return []
    rows = [(text(row["title"]), f"{row['problems']:,}", row) for row in _clean(results)]
    averages = results["averages"].items()
    rows += [(f"**{name.capitalize()}**", f"{len(row['benchmarks'])} benchmarks", row) for name, row in averages]
    return [["benchmark", "problems", f"{_metric(results)}, %", "95 % interval"]] + [
        [name, size, f"{100 * row['accuracy']:.1f}", f"{100 * row['low']:.1f} to {100 * row['high']:.1f}"]
        for name, size, row in rows
    ]


def benchmark_text(results: dict[str, Any]) -> str:
    """How the numbers of `benchmark_table` came about. Empty without results."""
    return f"On benchmarks: {_how(results)}. Intervals are over problems." if results else ""


def model_index(results: dict[str, Any]) -> list[EvalResult]:
    """An entry a benchmark; empty without results."""
    found = []
    for row in _clean(results) if results else []:
        entry = _entry(results, row)
        hub = _on_hub(entry)
        found.append(
            EvalResult(
                task_type="image-text-to-text",
                dataset_name=words(row["title"]) or "benchmark",
                dataset_type=entry["dataset"] if hub else "local",
                dataset_split=words(entry["split"]) if entry.get("split") else None,
                dataset_revision=entry["commit"] if hub else None,
                metric_type="accuracy",
                metric_name=f"{_metric(results)} (%)",
                metric_value=_percent(row),
            )
        )
    return found


def write_benchmark_results(results: dict[str, Any], folder: Path) -> list[Path]:
    """Write `folder`/.eval_results/BENCHMARK.yaml for each benchmark that is a Hub dataset and was measured whole.

    Its task is the split. Returns the files. Those of an earlier call are removed first.
    """
    for file in Path(folder, PLACE).glob("*.yaml"):
        if OURS in file.read_text(encoding="utf-8"):
            file.unlink()
    written = []
    for row in _clean(results) if results else []:
        entry = _entry(results, row)
        if not _on_hub(entry) or entry.get("limit") is not None:
            continue
        found = EvalResultEntry(
            entry["dataset"],
            words(entry.get("split") or "") or "default",
            _percent(row),
            dataset_revision=entry["commit"],
            date=results["settings"].get("started"),
            notes=f"{_how(results)}, {row['problems']} problems, {OURS}",
        )
        written.append(write_result(found, folder, entry["name"]))
    return written


def write_result(entry: EvalResultEntry, folder: Path, name: str) -> Path:
    """Write `folder`/.eval_results/NAME.yaml; returns it."""
    file = Path(folder, PLACE, f"{name}.yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    content = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False, allow_unicode=True)
    file.write_text(content, encoding="utf-8")
    return file


def write_entry(results: dict[str, Any], folder: Path) -> Path:
    """Write `folder`/model-index.yaml: what a model card's front matter takes to show the results. Returns it."""
    file = Path(folder, ENTRY)
    name = plain(results["settings"]["model"]["name"])
    file.write_text(ModelCardData(model_name=name, eval_results=model_index(results)).to_yaml(), encoding="utf-8")
    return file


def _clean(results: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in results["rows"] if row["view"] == "clean" and row["subset"] == "all"]


def _entry(results: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    return next(entry for entry in results["settings"]["benchmarks"] if entry["name"] == row["benchmark"])


def _on_hub(entry: dict[str, Any]) -> bool:
    """A local folder may be called owner/name too, but has no commit."""
    return is_repository_id(entry.get("dataset")) and bool(entry.get("commit"))


def _percent(row: dict[str, Any]) -> float:
    return round(100 * row["accuracy"], 2)


def _metric(results: dict[str, Any]) -> str:
    return f"avg@{min(row['k'] for row in _clean(results))} accuracy"


def _how(results: dict[str, Any]) -> str:
    protocol = results["settings"]["protocol"]
    parts = [f"{_metric(results)} in percent"]
    parts += [f"{name.replace('_', '-')} {protocol[name]:g}" for name in ("temperature", "top_p") if name in protocol]
    parts += [f"graded by {words(protocol['grader'])}"] if "grader" in protocol else []
    return ", ".join(parts)
