"""`--resume_from_checkpoint hub://OWNER/NAME@REVISION`: a pushed checkpoint brought back, every file checked by hash."""

from __future__ import annotations

import re
import shutil
from pathlib import Path, PurePosixPath

from papo_hub.checkpoint import STATE, CheckpointError
from papo_hub.config import is_repository_id
from papo_hub.hub.client import Client, HubError
from papo_hub.hub.folder import PICKLED, Item, hashes, same
from papo_hub.hub.publish import Repository
from papo_hub.hub.uploads import LAST

SCHEME = "hub://"
READ = (".safetensors", ".json", ".jinja", ".txt", ".model")  # what a checkpoint consists of; code is not among it
RECORDS = ("metrics.jsonl", "evaluation.json", "provenance.json")  # with which the curves go on


def fetch_checkpoint(address: str, run: Path, client: Client | None = None) -> Path:
    """Bring a checkpoint into `run`/checkpoints, and the records up to it where the run folder has none yet.

    What is there already, with the same hashes, is not fetched again.

    Args:
        address: hub://OWNER/NAME@REVISION; without @REVISION, main.

    Raises:
        CheckpointError: not such an address; no checkpoint there; files that are not what the Hub says they are.
        HubError: no way to it.
    """
    repo_id, at, revision = address.removeprefix(SCHEME).partition("@")
    if not is_repository_id(repo_id) or (at and not revision):
        raise CheckpointError(f"resume_from_checkpoint: {address!r} is not hub://OWNER/NAME@REVISION.")
    revision = revision or "main"
    repository = Repository(client or Client(), repo_id)
    branches, tags = repository.refs()
    commit = branches.get(revision) or tags.get(revision) or revision
    held = repository.held(commit)
    wanted = {path: remote for path, remote in held.items() if PurePosixPath(path).parent == PurePosixPath(LAST)}
    if f"{LAST}/{STATE}" not in wanted:
        raise CheckpointError(
            f"resume_from_checkpoint: {repo_id} at {revision} holds no checkpoint to go on from; runs with "
            "hub_strategy: checkpoint push one. Its weights can start a new run: model_name_or_path, model_revision."
        )
    if pickled := [path for path in wanted if path.lower().endswith(PICKLED)]:
        raise CheckpointError(
            f"resume_from_checkpoint: {repo_id} at {revision} holds {pickled[0]}, which is not loaded."
        )

    final = run / "checkpoints" / f"hub-{re.sub(r'[^0-9A-Za-z]', '-', commit)[:12]}"
    for path, remote in sorted(wanted.items()):
        if path.endswith(READ):
            _fetch(repository, commit, path, remote, final / PurePosixPath(path).name)
    if not (run / "metrics.jsonl").exists():
        for name in RECORDS:
            if name in held:
                _fetch(repository, commit, name, held[name], run / name)
    return final


def _fetch(repository: Repository, commit: str, path: str, remote, target: Path) -> None:
    """One file, complete and checked or not there at all."""
    if target.is_file() and same(Item(path, target, target.stat().st_size, *hashes(target)), remote):
        return
    cached = Path(repository.call(f"download {path} of", "hf_hub_download", filename=path, revision=commit))
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    try:
        shutil.copyfile(cached, partial)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise HubError(f"Could not write {target}: {error}. Free some space and run the command again.") from None
    if not same(Item(path, partial, partial.stat().st_size, *hashes(partial)), remote):
        partial.unlink()
        cached.resolve().unlink(missing_ok=True)  # else the next try would meet the same bytes
        raise CheckpointError(
            f"resume_from_checkpoint: {path} did not arrive as {repository.repo_id} holds it (its hash differs); "
            "run the same command again."
        )
    partial.rename(target)
