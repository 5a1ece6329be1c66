"""evaluation.json as others read it: the rows of a run, its headline figures, the Hub's evaluation results."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResultEntry

from papo_hub.card.benchmarks import OURS, benchmark_results, write_benchmark_results, write_result
from papo_hub.card.escape import plain
from papo_hub.card.files import hub_ids, recipe
from papo_hub.figures import read_evaluation

# Headline → (the group of problems, the task of the benchmark that it answers to).
HEADLINES = {"overall": ("all", "default"), "vision": ("high", "vision")}


def evaluation_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows on the run's own evaluation dataset; empty where it was not evaluated.

    Raises:
        ValueError: evaluation.json does not hold rows with "when", "view" and "group".
    """
    try:
        rows = read_evaluation(folder)
    except ValueError:
        raise ValueError(f"{Path(folder) / 'evaluation.json'} is not JSON") from None
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and all(isinstance(row.get(key), str) for key in ("when", "view", "group"))
        for row in rows
    ):
        raise ValueError(f"{Path(folder) / 'evaluation.json'} must hold a list of rows with when, view and group")
    return rows


def percent(row: dict[str, Any]) -> float | None:
    """A row's accuracy in percent, two decimals; None where it has none."""
    value = row.get("accuracy")
    return round(100 * value, 2) if is_number(value) else None


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def samples(row: dict[str, Any]) -> int | None:
    """k of a row's avg@k; None where it does not say."""
    value = row.get("samples")
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def headline(folder: Path) -> dict[str, float | int | None]:
    """What a model did after training, on clean images: of a run, or of a folder that was pushed.

    Returns:
        "overall", avg@k in percent over all problems; "vision", over those of high vision dependence; "k", the answers
        sampled a problem. None for what evaluation.json does not hold.

    Raises:
        ValueError: evaluation.json does not hold what its name says.
    """
    found = _headlines(folder)
    k = next((samples(row) for row in found.values() if samples(row)), None)
    return {name: percent(found.get(name, {})) for name in HEADLINES} | {"k": k}


def write_eval_results(run: Path, folder: Path) -> list[Path]:
    """Write `folder`/.eval_results/overall.yaml and vision.yaml, the Hub's form of `headline`; returns what was written.

    The Hub takes a result for a dataset of its own and one of that dataset's tasks (huggingface.co/docs/hub/eval-results),
    and puts it on the dataset's leaderboard. So nothing is written, and the list is empty, where the run was not
    evaluated, where its evaluation dataset is no Hub repository (a folder, `digits`), or where only its first problems
    were measured (`eval_problems`). `overall` goes to the task `default`, `vision` to the task `vision`; whether the
    dataset's eval.yaml has them is for the Hub to find out, which otherwise keeps the file and lists nothing. What
    `papo-hub evaluate` measured adds a file a benchmark. Files of an earlier call are removed.

    Raises:
        FileNotFoundError: the run has no config.yaml.
        ValueError: a file of the run does not hold what its name says.
    """
    run = Path(run)
    config = recipe(run)
    data = hub_ids(config.get("eval_dataset_name"), run) if config.get("eval_problems") is None else []
    found = _headlines(run)
    written = write_benchmark_results(benchmark_results(run), folder)
    for name, (_, task) in HEADLINES.items():
        row = found.get(name, {})
        if data and percent(row) is not None:
            entry = EvalResultEntry(data[0], task, percent(row), notes=_notes(row, config))
            written.append(write_result(entry, folder, name))
    return written


def _headlines(folder: Path) -> dict[str, dict[str, Any]]:
    rows = {(row["when"], row["view"], row["group"]): row for row in evaluation_rows(folder)}
    found = {name: rows.get(("after", "clean", group)) for name, (group, _) in HEADLINES.items()}
    return {name: row for name, row in found.items() if row is not None}


def _notes(row: dict[str, Any], config: dict[str, Any]) -> str:
    """How the number came about, in a line."""
    k, problems = samples(row), row.get("problems")
    parts = [f"avg@{k} accuracy in percent" if k else "accuracy in percent"]
    parts += (
        [f"{problems} problems of the split {plain(config.get('eval_split', 'test'))}"] if is_number(problems) else []
    )
    parts += [f"{key} {config[key]:g}" for key in ("temperature", "top_p") if is_number(config.get(key))]
    return ", ".join([*parts, f"{OURS} on its own run"])
