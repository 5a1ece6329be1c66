"""What the download cache knows of the repositories that a run reads."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import constants


def read_commit(name: str | None, revision: str | None, repo_type: str) -> str | None:
    """The commit that a Hub repository stood at when it was last read here; None for a folder, or where nobody noted it.

    Args:
        name: a Hub id or a local folder. revision: as the recipe has it; None: main. repo_type: "model" or "dataset".
    """
    revision = revision or "main"
    if not name or Path(name).exists():
        return None
    if re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    note = Path(constants.HF_HUB_CACHE, f"{repo_type}s--{name.replace('/', '--')}", "refs", revision)
    return note.read_text(encoding="utf-8").strip() if note.is_file() else None
