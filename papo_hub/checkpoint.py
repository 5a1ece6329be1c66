"""Checkpoints: a plain model folder that loads with `from_pretrained`, plus what a resumed run needs beside it.

    checkpoints/step-000040/              model.safetensors config.json … processor files; of a LoRA run, the adapter alone
                                          optimizer.safetensors   moments, named "parameter/moment"
                                          trainer_state.json      step, schedule, data position, guard, checksums; written last
                step-000041-unfinished/   the same in the middle of step 41, and what there is of it (papo_hub.unfinished)

A checkpoint is written under another name and renamed when it is complete, so a folder named `step-*` is whole; should a
disk damage it later, its checksums tell. Only safetensors and JSON are read back. All randomness derives from (seed,
step), so there is no generator to save.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from papo_hub.files import is_full, remove_folder, replace_folder
from papo_hub.lora import adapted, save_adapter
from papo_hub.parts import trainable
from papo_hub.sharding import divided_like, whole_tensor

logger = logging.getLogger(__name__)

STATE = "trainer_state.json"
OPTIMIZER = "optimizer.safetensors"
NAME = re.compile(r"step-(\d+)(-unfinished)?")
READ_AT_ONCE = 1 << 24  # bytes


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, or resumed from."""


def save_checkpoint(
    folder: Path,
    step: int,
    model: torch.nn.Module,
    processor: Any,
    moments: dict[str, torch.Tensor],
    state: dict[str, Any],
    keep: int,
    healthy: int | None = None,
    unfinished: Path | None = None,
    weights: dict[str, torch.Tensor] | None = None,
) -> Path:
    """Write `step-<step>` under `folder`, then remove older ones. Runs on the main process.

    Args:
        step: rollout batches finished.
        model: the bare model. moments: see `named_moments`.
        state: JSON-able; what `load_state` gives back.
        keep: how many checkpoints stay, this one among them.
        healthy: the newest checkpoint of a step up to this one stays besides.
        unfinished: a folder with what there is of the next step; its files go along.
        weights: the model's state dict where it is not whole on this process.

    Raises CheckpointError where the disk does not take it; what was there before is then untouched.
    """
    name = f"step-{step:06d}" if unfinished is None else f"step-{step + 1:06d}-unfinished"
    final, partial = folder / name, folder / f"partial-{name}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if adapted(model):
            save_adapter(model, partial)
        else:
            model.save_pretrained(partial, state_dict=weights)
        processor.save_pretrained(partial)
        save_file(moments, partial / OPTIMIZER)
        for file in [] if unfinished is None else unfinished.iterdir():
            file.rename(partial / file.name)
        files = {file.name: _checksum(file) for file in sorted(partial.iterdir())}
        (partial / STATE).write_text(json.dumps({"step": step} | state | {"files": files}, indent=1), encoding="utf-8")
        replace_folder(partial, final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)  # gives its space back
        raise CheckpointError(_not_written(final, error)) from error
    rotate(folder, final, keep, healthy)
    return final


def rotate(folder: Path, newest: Path, keep: int, healthy: int | None) -> None:
    """Remove what the newest checkpoint makes obsolete, each whole or not at all. Arguments as of `save_checkpoint`."""
    found = [path for path in checkpoints(folder) if _order(path) <= _order(newest)]  # no longer the future of a run
    kept = found[-keep:]
    if healthy is not None:
        kept.append(last_good(folder, healthy))
    for path in folder.iterdir():
        fetched = path.name.startswith("hub-") and len(found) >= keep  # from the Hub, older than any of these
        if fetched or (NAME.fullmatch(path.name) and path not in kept):
            remove_folder(path)
        elif path.name.startswith(("partial-", "removed-", "damaged-")):
            shutil.rmtree(path)


def _not_written(final: Path, error: Exception) -> str:
    good = checkpoints(final.parent)
    last = f"the last good one is {good[-1]}" if good else "there is none yet"
    if is_full(error):
        free = shutil.disk_usage(final.parent if final.parent.is_dir() else Path.cwd()).free / 2**30
        return (
            f"no space left for the checkpoint {final} ({free:.1f} GiB free); {last}. Make room and go on with "
            "--resume_from_checkpoint latest; a smaller save_total_limit keeps fewer."
        )
    return f"the checkpoint {final} could not be written: {error}; {last}. Go on with --resume_from_checkpoint latest."


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first; of each file, only the size is looked at."""
    found = [
        path for path in folder.glob("step-*") if NAME.fullmatch(path.name) and damage(path, thorough=False) is None
    ]
    return sorted(found, key=_order)


def _order(path: Path) -> tuple[int, bool]:
    step, unfinished = NAME.fullmatch(path.name).groups()
    return int(step), unfinished is None


def damage(checkpoint: Path, thorough: bool = True) -> str | None:
    """What is wrong with a checkpoint; None where nothing is. `thorough`: reads every byte, for its checksums."""
    try:
        files = load_state(checkpoint)["files"]
    except FileNotFoundError:
        return f"it has no {STATE}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{STATE} is damaged ({type(error).__name__})"
    for name, written in files.items():
        file = checkpoint / Path(name).name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != written["bytes"]:
            return f"{name} has {file.stat().st_size} bytes, not {written['bytes']}"
        if thorough and _checksum(file) != written:
            return f"{name} is not what was written (its checksum differs)"
    return None


def find_checkpoint(resume_from_checkpoint: str | None, folder: Path) -> Path | None:
    """The checkpoint to resume from: None, the newest for `latest` (None if there is none yet), or the folder given.

    With `latest`, a damaged one is passed over for the one before it, which is said, and renamed `damaged-*`, to count no
    more. Raises CheckpointError for a folder that holds no checkpoint or a damaged one, and where all are damaged.
    """
    if resume_from_checkpoint is None:
        return None
    if resume_from_checkpoint == "latest":
        named = [path for path in folder.glob("step-*") if NAME.fullmatch(path.name)]
        bad = []
        for path in sorted(named, key=_order, reverse=True):
            if (fault := damage(path)) is None:
                for obsolete in bad:
                    remove_folder(obsolete.with_name(f"damaged-{obsolete.name}"))
                    obsolete.rename(obsolete.with_name(f"damaged-{obsolete.name}"))
                return path
            logger.warning("%s is damaged and passed over: %s", path, fault)
            bad.append(path)
        if named:
            raise CheckpointError(
                f"resume_from_checkpoint: all checkpoints in {folder} are damaged. Begin anew in another output_dir."
            )
        return None
    path = Path(resume_from_checkpoint)
    if (fault := damage(path)) is not None:
        there = ", ".join(checkpoint.name for checkpoint in checkpoints(folder)) or "none"
        raise CheckpointError(
            f"resume_from_checkpoint: no checkpoint to go on from at {path}: {fault}. {folder} has: {there}. "
            "Name one of these, or write `latest`."
        )
    return path


def last_good(folder: Path, step: int) -> Path | None:
    """The newest checkpoint of a step up to this one."""
    return next((path for path in reversed(checkpoints(folder)) if load_state(path)["step"] <= step), None)


def forget_after(folder: Path, step: int) -> Path | None:
    """Remove the checkpoints of later steps; returns the newest that is left."""
    good = last_good(folder, step)
    for path in checkpoints(folder):
        if good is None or _order(path) > _order(good):
            remove_folder(path)
    return good


def is_unfinished(checkpoint: Path | None) -> bool:
    """Whether it was taken in the middle of a step, from which there is something."""
    return checkpoint is not None and any(checkpoint.glob("unfinished-*.json"))


def load_state(checkpoint: Path) -> dict[str, Any]:
    """What was passed as `state`, "step" and "files" (name → bytes and checksum of each)."""
    return json.loads((checkpoint / STATE).read_text(encoding="utf-8"))


def load_optimizer(checkpoint: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put the saved moments back into an optimizer. Raises CheckpointError where they belong to other parameters."""
    parameters = trainable(model)
    index = {name: i for i, name in enumerate(parameters)}
    moments: dict[int, dict[str, torch.Tensor]] = {}
    with safe_open(checkpoint / OPTIMIZER, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 (not a dict)
            name, moment = key.rsplit("/", 1)
            if name not in index:
                raise CheckpointError(
                    f"{checkpoint / OPTIMIZER} holds {name}, which this model does not have or train."
                )
            value = divided_like(file.get_tensor(key), parameters[name])
            moments.setdefault(index[name], {})[moment] = value
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


def named_moments(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, keep: bool = True
) -> dict[str, torch.Tensor]:
    """The optimizer's state as "parameter/moment" → whole tensor on the CPU; {} on a process that does not `keep` it. Runs
    on every rank. `optimizer`: of `trainable(model)`, in its order."""
    names = list(trainable(model))
    found = {}
    for i, moments in optimizer.state_dict()["state"].items():
        for moment, value in moments.items():
            tensor = whole_tensor(value.detach())
            if keep:
                found[f"{names[i]}/{moment}"] = tensor.cpu().contiguous().clone()
    return found


def _checksum(file: Path) -> dict[str, Any]:
    """Against accidents, not against an enemy: of what comes from the Hub, SHA-256 is checked on the way."""
    total, buffer, size = xxhash.xxh3_128(), bytearray(READ_AT_ONCE), 0
    with file.open("rb", buffering=0) as handle:
        while count := handle.readinto(buffer):
            total.update(memoryview(buffer)[:count])
            size += count
    return {"bytes": size, "xxh3": total.hexdigest()}
