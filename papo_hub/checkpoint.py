"""Checkpoints: a plain model folder that loads with `from_pretrained`, plus what a resumed run needs beside it.

    checkpoints/step-000040/   model.safetensors config.json … processor files
                               optimizer.safetensors   moments, named "parameter/moment"
                               trainer_state.json      step, updates, data position, schedule; written last

A checkpoint is written under another name and renamed when it is complete, so a folder named `step-*` is whole.
Only safetensors and JSON are read back. All randomness derives from (seed, step), so there is no generator to save.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

STATE = "trainer_state.json"
OPTIMIZER = "optimizer.safetensors"


class CheckpointError(ValueError):
    """A checkpoint that cannot be resumed from."""


def save_checkpoint(
    folder: Path,
    step: int,
    model: torch.nn.Module,
    processor: Any,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    keep: int,
) -> Path:
    """Write `step-<step>` under `folder`; of the others keep the `keep` - 1 before it. Runs on the main process.

    Args:
        step: rollout batches finished.
        model: the bare model. optimizer: of its parameters, in `model.parameters()` order.
        state: JSON-able; what `load_state` gives back.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step:06d}"
    partial = folder / f"partial-{step:06d}"
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    processor.save_pretrained(partial)
    save_file(_named_moments(model, optimizer), partial / OPTIMIZER)
    (partial / STATE).write_text(json.dumps({"step": step} | state, indent=1), encoding="utf-8")
    for file in partial.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())  # a renamed folder must not be found empty after a power cut
    if final.exists():
        shutil.rmtree(final)
    partial.rename(final)
    kept = checkpoints(folder)
    newer = kept[kept.index(final) + 1 :]  # of a run that was resumed from an earlier step: no longer its future
    for old in [*kept[: kept.index(final) + 1][:-keep], *newer]:
        shutil.rmtree(old)
    fetched = folder.glob("hub-*") if len(kept) >= keep else ()  # from the Hub, older than any of these
    for obsolete in [*folder.glob("partial-*"), *fetched]:
        shutil.rmtree(obsolete)
    return final


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = [
        path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name) and (path / STATE).is_file()
    ]
    return sorted(found, key=lambda path: int(path.name[5:]))


def find_checkpoint(resume_from_checkpoint: str | None, folder: Path) -> Path | None:
    """The checkpoint to resume from: None, the newest for `latest` (None if there is none yet), or the folder given.

    Raises CheckpointError for a folder that holds no checkpoint.
    """
    if resume_from_checkpoint is None:
        return None
    if resume_from_checkpoint == "latest":
        return next(reversed(checkpoints(folder)), None)
    path = Path(resume_from_checkpoint)
    if not (path / STATE).is_file():
        there = ", ".join(checkpoint.name for checkpoint in checkpoints(folder)) or "none"
        raise CheckpointError(
            f"resume_from_checkpoint: no checkpoint at {path}; {folder} has: {there}. Or write `latest`."
        )
    return path


def load_state(checkpoint: Path) -> dict[str, Any]:
    """What was passed as `state`, and "step"."""
    return json.loads((checkpoint / STATE).read_text(encoding="utf-8"))


def load_optimizer(checkpoint: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put the saved moments back into a fresh optimizer. Raises CheckpointError where they belong to other parameters."""
    index = {name: i for i, (name, _) in enumerate(model.named_parameters())}
    moments: dict[int, dict[str, torch.Tensor]] = {}
    with safe_open(checkpoint / OPTIMIZER, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 (not a dict)
            name, moment = key.rsplit("/", 1)
            if name not in index:
                raise CheckpointError(f"{checkpoint / OPTIMIZER} holds {name}, which this model does not have.")
            moments.setdefault(index[name], {})[moment] = file.get_tensor(key)
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


def _named_moments(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    names = [name for name, _ in model.named_parameters()]
    return {
        f"{names[i]}/{moment}": value.detach().cpu().contiguous().clone()
        for i, moments in optimizer.state_dict()["state"].items()
        for moment, value in moments.items()
    }
