"""What versions a repository has, and what made each: `papo-hub versions OWNER/NAME`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from papo_hub.card import headline, method_name
from papo_hub.hub.client import Client
from papo_hub.hub.publish import Repository

RECORDS = ("config.yaml", "evaluation.json", "provenance.json")  # of a version that papo_hub pushed
LARGEST = 1_000_000  # bytes; theirs have a few thousand
NOTHING = "–"


@dataclass(frozen=True)
class Row:
    """One branch or tag. `None` where the version does not say."""

    version: str
    kind: str
    commit: str
    variant: str | None
    gamma: float | None
    base: str | None
    dataset: str | None
    overall: float | None  # avg@k in percent
    vision: float | None
    k: int | None
    date: datetime


def versions(repo_id: str, client: Client | None = None) -> list[Row]:
    """Every tag and branch of a model repository, tags first, newest first.

    Raises HubError: no such repository, or no way to it.
    """
    repository = Repository(client or Client(), repo_id)
    branches, tags = repository.refs()
    told: dict[str, dict[str, Any]] = {}
    rows = []
    for kind, refs in (("tag", tags), ("branch", branches)):
        for name, commit in refs.items():
            if commit not in told:
                told[commit] = _record(repository, commit)
            rows.append(Row(version=name, kind=kind, commit=commit, **told[commit]))
    return sorted(rows, key=lambda row: (row.kind == "tag", row.date), reverse=True)


def table(rows: list[Row]) -> str:
    """The rows in columns, as text."""
    measured = {row.k for row in rows if row.k}
    average = f"avg@{measured.pop() if len(measured) == 1 else 'k'}"
    titles = {
        "version": "version", "kind": "kind", "commit": "commit", "variant": "variant", "gamma": "γ", "base": "base",
        "dataset": "dataset", "overall": f"{average} overall", "vision": f"{average} vision", "date": "date",
    }  # fmt: skip
    cells = [list(titles.values()), *([_cell(getattr(row, name)) for name in titles] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(titles))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def _record(repository: Repository, commit: str) -> dict[str, Any]:
    """What a commit says of its model, read from the files that a push puts there."""
    held = repository.held(commit)
    recipe: dict[str, Any] = {}
    origin: dict[str, Any] = {}
    figures: dict[str, Any] = {}
    for name in RECORDS:
        if name in held and held[name].size < LARGEST:
            file = Path(repository.call(f"read {name} of", "hf_hub_download", filename=name, revision=commit))
            try:
                if name == "evaluation.json":
                    figures = headline(file.parent)
                elif isinstance(content := yaml.safe_load(file.read_text(encoding="utf-8")), dict):  # JSON is YAML
                    # A list may unfold without end: yaml repeats what it has read by reference.
                    content = {name: value for name, value in content.items() if isinstance(value, str | int | float)}
                    recipe, origin = (content, origin) if name == "config.yaml" else (recipe, content)
            except (yaml.YAMLError, ValueError, RecursionError):
                continue  # somebody else's file of that name
    newest = repository.call("list the commits of", "list_repo_commits", revision=commit)[0]
    dataset = recipe.get("dataset_name")
    revision = recipe.get("dataset_revision") or str(origin.get("dataset_commit") or "")[:10]
    objective = recipe.get("objective")
    return {
        "variant": method_name(objective) or objective,
        "gamma": recipe.get("gamma"),
        "base": recipe.get("model_name_or_path"),
        "dataset": f"{dataset}@{revision}" if dataset and revision else dataset,
        "overall": figures.get("overall"),
        "vision": figures.get("vision"),
        "k": figures.get("k"),
        "date": newest.created_at,
    }


def _cell(value: Any) -> str:
    if value is None:
        return NOTHING
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M")
    text = f"{value:g}" if isinstance(value, float) else str(value)
    text = text[:10] if re.fullmatch("[0-9a-f]{40}", text) else text
    return "".join(char if char.isprintable() else " " for char in text)[:60]
