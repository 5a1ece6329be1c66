"""settings.json: with what an evaluation was done, and whether another may go on in its folder."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from papo_hub.config import ConfigError
from papo_hub.evaluation.answers import FILE, Answer, begun, read_answers
from papo_hub.evaluation.benchmarks import BENCHMARKS, Benchmark
from papo_hub.evaluation.protocol import Protocol
from papo_hub.evaluation.views import CLEAN
from papo_hub.files import replace_file
from papo_hub.hub.cache import read_commit
from papo_hub.redaction import redacted
from papo_hub.rollout import TransformersEngine
from papo_hub.tracking import circumstances, package_versions

SETTINGS = "settings.json"
NUMERICS = ("dtype", "mixed_precision", "attn_implementation", "pixels", "engine")
# Of a protocol, between runs that fill one transcript. Another batch size can move an answer by its last digits, but who
# has run out of memory must be able to go on.
MAY_DIFFER = ("k", "view_k", "views", "batch_size", "max_tokens")


def describe_numerics(
    policy: torch.nn.Module, accelerator: Accelerator, pixels: list[int] | None, engine: type = TransformersEngine
) -> dict[str, Any]:
    """What of model and machine can move an answer: `NUMERICS` of settings.json."""
    dtype, attention = f"{policy.dtype}".removeprefix("torch."), policy.config._attn_implementation
    values = (dtype, accelerator.mixed_precision, attention, pixels, engine.__name__)
    return dict(zip(NUMERICS, values, strict=True))


def describe(
    model: dict[str, Any],
    benchmarks: list[Benchmark],
    protocol: Protocol,
    limit: int | None,
    numerics: dict[str, Any],
    processes: int,
) -> dict[str, Any]:
    """settings.json: enough to do the same again, and to see whether two evaluations can be compared."""
    settings = {
        "model": model,
        "benchmarks": [
            {
                "name": benchmark.name,
                "title": benchmark.title,
                "group": benchmark.group,
                "dataset": benchmark.dataset,
                "split": benchmark.split,
                "revision": benchmark.revision,
                "commit": read_commit(benchmark.dataset, benchmark.revision, "dataset"),
                "content": _content(Path(benchmark.dataset)),
                "limit": limit,
                "columns": dict(benchmark.columns),
                "prompt_suffix": benchmark.prompt_suffix,
                "max_completion_length": protocol.max_completion_length or benchmark.max_completion_length,
            }
            for benchmark in benchmarks
        ],
        "protocol": asdict(protocol) | {"views": list(protocol.views)},
        "kl_view": protocol.kl_view,
        **numerics,
        "versions": package_versions(),
        **circumstances(processes),
    }
    return redacted(settings)  # a dataset may be named by a link with a password in it


def settings_of(answers: list[Answer]) -> dict[str, Any]:
    """What a transcript tells by itself."""
    names, views = (list(dict.fromkeys(getattr(answer, name) for answer in answers)) for name in ("benchmark", "view"))
    counts = {
        name: 1 + max((answer.sample for answer in answers if (answer.view == CLEAN) == clean), default=0)
        for name, clean in (("k", True), ("view_k", False))
    }
    return {
        "model": {"name": "a model that the transcript does not name"},
        "benchmarks": [
            {"name": name, "title": name, "group": "local"}
            if name not in BENCHMARKS
            else {"name": name, "title": BENCHMARKS[name].title, "group": BENCHMARKS[name].group}
            for name in names
        ],
        "protocol": counts | {"views": views},
        "versions": package_versions(),
    }


def joined(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings, with what the folder holds already: benchmarks that are not asked for now, and the view that its
    perception KL is of. Raises ConfigError rather than mix answers that were got differently."""
    there = read_settings(folder)
    if not begun(folder):
        return settings
    if there is None:
        raise ConfigError(
            f"{folder} holds {FILE} without {SETTINGS}: choose another --output_dir, or delete the folder."
        )
    read_answers(folder)  # a line that is no answer ends it here, with nothing changed
    asked = {row["name"] for row in settings["benchmarks"]}
    held = there["benchmarks"] + there.get("held", [])
    shared = asked & {row["name"] for row in held}

    def compared(record: dict[str, Any], benchmarks: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            **{name: record.get(name) for name in NUMERICS},
            **{f"model {name}": record["model"].get(name) for name in ("commit", "weights")},
            **{name: value for name, value in record["protocol"].items() if name not in MAY_DIFFER},
            **{
                f"{row['name']}: {name}": value
                for row in benchmarks
                if row["name"] in shared
                for name, value in row.items()
                if name not in ("limit", "title", "group")
            },
            "kl_view (which follows from views)": record.get("kl_view") or there.get("kl_view") or settings["kl_view"],
        }

    before, now = compared(there, held), compared(settings, settings["benchmarks"])
    for name in now:
        if before.get(name) != now[name]:
            advice = f", or re-grade it: --from_answers {folder} --grader {now[name]}" if name == "grader" else ""
            raise ConfigError(
                f"{folder} holds an evaluation with another {name}: {before.get(name)!r}, not {now[name]!r}. "
                f"Choose another --output_dir{advice}, or delete the folder."
            )
    joined = {"kl_view": settings["kl_view"] or there.get("kl_view")}
    if others := [row for row in held if row["name"] not in asked]:
        joined["held"] = others
    return settings | joined


def _content(file: Path) -> str | None:
    """A hash of a local data file."""
    if not file.is_file():
        return None
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def write(file: Path, content: Any) -> None:
    """As JSON, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, json.dumps(content, indent=1) + "\n")


def read(file: Path) -> dict[str, Any] | None:
    """An object of JSON; None where there is no such file. Raises ConfigError for a file that does not hold what it should."""
    if not file.exists():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{file} is damaged ({error}): delete it, or choose another --output_dir.") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{file} is damaged: delete it, or choose another --output_dir.")
    return content


def read_settings(folder: Path) -> dict[str, Any] | None:
    """The settings of an evaluation folder; None where it has none. Raises ConfigError for what lacks their parts."""
    settings = read(folder / SETTINGS)
    if settings is not None:
        benchmarks = settings.get("benchmarks")
        named = isinstance(benchmarks, list) and all(isinstance(row, dict) and "name" in row for row in benchmarks)
        if not named or not all(isinstance(settings.get(part), dict) for part in ("model", "protocol")):
            raise ConfigError(
                f"{folder / SETTINGS} is damaged (it lacks model, benchmarks or protocol): delete it, or choose another "
                "--output_dir."
            )
    return settings
