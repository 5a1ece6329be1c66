"""What cards read: the mappings in a run's files, and which of its names are repositories of the Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from papo_hub.card.escape import plain
from papo_hub.config import is_repository_id


def mapping(path: Path) -> dict[str, Any]:
    """A YAML or JSON file that must hold a mapping.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it cannot be read, or holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: a model card needs it")
    try:
        content = (json.loads if path.suffix == ".json" else yaml.safe_load)(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:  # whose text quotes the file
        raise ValueError(f"{path} cannot be read: {plain(error)}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a mapping, not {type(content).__name__}")
    return content


def recipe(run: Path) -> dict[str, Any]:
    """The resolved recipe of a run. Raises as `mapping`."""
    return mapping(Path(run) / "config.yaml")


def optional(path: Path) -> dict[str, Any]:
    """As `mapping`, but empty where there is no such file."""
    return mapping(path) if path.is_file() else {}


def hub_ids(value: Any, run: Path) -> list[str]:
    """Those of one or several names in a recipe that are repositories OWNER/NAME of the Hub.

    A name that is a folder here, or was one where the run was started (somewhere above its own folder), is not.
    """
    roots = [Path(), *Path(run).resolve().parents]
    names = value if isinstance(value, list) else [value]
    return [name for name in names if is_repository_id(name) and not any((root / name).exists() for root in roots)]
