"""What a run's folder and its stack tell: what was going on at a moment, and in what it differs from another run."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from .launch import Program

WHERE = [  # functions, the first that is on the stack counts
    ("rotation", {"checkpoint.rotate"}),
    ("save", {"trainer.save"}),
    ("resume", {"unfinished.load", "run_state.load", "preparation.chosen_checkpoint"}),
    ("rollout", {"experience._sample"}),
    ("score", {"experience._score"}),
    ("update", {"trainer.gradients", "optimizer.step"}),
    ("end", {"report.export_model", "report.finish_run"}),
]


def rows(run: Path) -> list[dict]:
    """The rows of metrics.jsonl without the times."""
    found = []
    file = run / "metrics.jsonl"
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break  # a kill cut it short
        found.append({name: value for name, value in row.items() if not name.startswith("time/")})
    return found


def evidence(folder: Path, since: float) -> str | None:
    """ "save" or "rotation" where a checkpoint that was begun after `since` is in that state now."""
    names = []
    try:
        for entry in os.scandir(folder):
            if entry.stat().st_ctime >= since:
                if entry.name.startswith("removed-"):
                    return "rotation"
                names.append(entry.name)
    except FileNotFoundError:  # moving, or not there yet
        return None
    return "save" if any(name.startswith("partial-") for name in names) else None


def where(stack: str | None, program: Program, rows_left: int) -> str:
    """The part of the program that a stack stands in."""
    for thread in re.split(r"\n(?=Thread|Current thread)", stack or ""):
        if "in train_command" in thread:
            frames = {f"{file}.{function}" for file, function in re.findall(r'(\w+)\.py", line \d+ in (\w+)', thread)}
            for name, functions in WHERE:
                if frames & functions:
                    return name
            if program.begun and rows_left:
                return "between"  # these
    if not program.begun:
        return "start"
    return "not seen" if rows_left else "end"


def differences(run: Path, reference: Path) -> list[str]:
    """In what a run that was killed differs from the reference; empty where in nothing."""
    faults = []
    model = Path("model", "model.safetensors")
    if not (run / model).exists() or (run / model).read_bytes() != (reference / model).read_bytes():
        faults.append(f"{model} differs")
    ours, theirs = rows(run), rows(reference)
    if ours != theirs:
        first = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
        faults.append(f"metrics.jsonl differs: {len(ours)} rows of {len(theirs)}, first at {first}")
    for name in ("samples.md", "guard.jsonl"):
        texts = [(folder / name).read_text() if (folder / name).exists() else None for folder in (run, reference)]
        if texts[0] != texts[1]:
            faults.append(f"{name} differs")
    here, there = (sorted(path.name for path in (folder / "checkpoints").iterdir()) for folder in (run, reference))
    if here != there:
        faults.append(f"checkpoints/ has {here}, not {there}")
    left = [str(path.relative_to(run)) for path in run.rglob("*") if re.match("partial-|removed-|damaged-", path.name)]
    return faults + ([f"left behind: {left}"] if left else [])
