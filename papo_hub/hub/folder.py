"""What of a folder goes to the Hub: its files with their hashes, and how they differ from what a revision holds."""

from __future__ import annotations

import fnmatch
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from papo_hub.hub.client import HubError

HIDDEN_BUT_SENT = (".eval_results",)  # the folder in which the Hub looks for evaluation results
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
TOKEN = re.compile(r"\b(hf|api_org)_[A-Za-z0-9]{30,}")  # a whole one: a word such as hf_datasets is no reason to refuse
SEARCHED_FOR_TOKENS = (".md", ".yaml", ".yml", ".json", ".jsonl", ".txt", ".jinja", ".py")

# What a version consists of. A file of these names that the new version lacks is removed with it: a loader that finds
# the old single file beside the new shards takes the old one. Anything else that people added to a repository stays.
PARTS = {
    "model": "*.safetensors *.safetensors.index.json *config.json *.py *.bin *.bin.index.json tokenizer* vocab* merges* "
    "chat_template* special_tokens_map.json added_tokens.json config.yaml metrics.jsonl evaluation.json provenance.json "
    "figures/* .eval_results/* last-checkpoint/*",
    "dataset": "data/* statistics.json skipped_rows.jsonl",
}


@dataclass(frozen=True)
class Item:
    """One file: `path` in the repository, `file` here, and the two names by which the Hub knows its bytes."""

    path: str
    file: Path
    size: int
    sha256: str
    blob: str  # SHA-1 of a git blob: how the Hub names what is not in large file storage


def listing(folder: Path, token: str | None = None) -> list[Item]:
    """Every file below `folder` that is sent, hidden ones and caches excepted, sorted by path.

    Raises:
        HubError: there is none; a link leads out of the folder; a file is pickled, or holds `token` or another one.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise HubError(f"There is no folder {folder} to push.")
    root, items = folder.resolve(), []
    for file in sorted(folder.rglob("*")):
        parts = file.relative_to(folder).parts
        if any(part == "__pycache__" or (part[0] == "." and part not in HIDDEN_BUT_SENT) for part in parts):
            continue
        if not file.resolve().is_relative_to(root):
            raise HubError(f"{file} is a link that leads out of {folder}; replace it by what it points to.")
        if not file.is_file():
            continue
        if file.suffix.lower() in PICKLED:
            raise HubError(
                f"{file} is of a format that runs code when it is loaded; only safetensors are pushed. "
                "Remove it, or save the weights again with save_pretrained."
            )
        if file.suffix.lower() in SEARCHED_FOR_TOKENS:
            refuse_tokens(file, token)
        items.append(Item("/".join(parts), file, file.stat().st_size, *hashes(file)))
    if not items:
        raise HubError(f"{folder} holds nothing to push.")
    return items


def refuse_tokens(file: Path, token: str | None) -> None:
    """Raises HubError for a text that holds `token`, or something that reads like an access token."""
    with file.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if TOKEN.search(line) or (token and token in line):
                raise HubError(f"{file}, line {number} holds what reads like an access token; take it out, then push.")


def hashes(file: Path) -> tuple[str, str]:
    """(sha256, git blob SHA-1) of a file, in one reading."""
    sha256, blob = hashlib.sha256(), hashlib.sha1(f"blob {file.stat().st_size}\0".encode(), usedforsecurity=False)
    with file.open("rb") as handle:
        while chunk := handle.read(1 << 20):
            sha256.update(chunk)
            blob.update(chunk)
    return sha256.hexdigest(), blob.hexdigest()


def difference(items: list[Item], held: dict[str, Any], repo_type: str) -> tuple[list[Item], list[str]]:
    """(files to send, files to remove) that turn what a revision holds into this version.

    Args:
        held: path → RepoFile, as `list_repo_tree` gives them.
    """
    here = {item.path for item in items}
    changed = [item for item in items if not (item.path in held and same(item, held[item.path]))]
    stale = [path for path in held if path not in here and is_part(path, repo_type)]
    return changed, sorted(stale)


def same(item: Item, remote: Any) -> bool:
    """Whether the Hub holds these very bytes."""
    return remote.size == item.size and (
        remote.lfs.sha256 == item.sha256 if remote.lfs is not None else remote.blob_id == item.blob
    )


def is_part(path: str, repo_type: str) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in PARTS[repo_type].split())
