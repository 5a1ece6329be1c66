"""Arms × seeds × set-ups, as many at a time as there are cores; what is finished stays finished.

A run is what recipes/train.py does, in a process of its own. Its folder, RUNS/SETUP/ARM/SEED, is the entry of the table of
finished runs: outcome.json is written last, and a folder that has it is not made again. What was interrupted begins anew.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from lab.outcome import Outcome, measure
from lab.setups import SETUPS
from papo_hub import cli

ROOT = Path(__file__).parents[1]
OUTCOME = "outcome.json"
KEPT = ("metrics.jsonl", "config.yaml", OUTCOME)
# One core and no network for each; set before the process starts that the runs are forked from.
ENVIRONMENT = {"ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["papo_hub.cli", "papo_hub.trainer", "papo_hub.warmup", "sklearn.datasets"])
COMMON = {
    "guard": "off",
    "report_to": "none",
    "save_steps": 0,
    "sample_steps": 1_000_000,
    "log_completions": False,
}


@dataclass(frozen=True)
class Arm:
    """A recipe of recipes/tiny and what is changed in it; "{runs}" in a value stands for the folder of all runs. `label` is
    how tables and figures call it."""

    name: str
    label: str
    recipe: str
    options: dict[str, Any] = field(default_factory=dict)

    def but(self, suffix: str, label: str, **options: Any) -> Arm:
        """The same with more changes, under its own name."""
        return Arm(f"{self.name}_{suffix}", label, self.recipe, self.options | options)


@dataclass(frozen=True)
class Run:
    setup: str
    arm: Arm
    seed: int

    def folder(self, runs: Path) -> Path:
        return runs / self.setup / self.arm.name / str(self.seed)

    def outcome(self, runs: Path) -> Outcome:
        """Raises FileNotFoundError where the run is not finished, ValueError where it was made with other options."""
        file = self.folder(runs) / OUTCOME
        outcome = Outcome(**json.loads(file.read_text(encoding="utf-8")))
        if outcome.options != self.arm.options:
            raise ValueError(f"{file.parent} was made with {outcome.options}, not {self.arm.options}: delete it.")
        return outcome

    def finished(self, runs: Path) -> bool:
        """Raises ValueError as `outcome`."""
        try:
            self.outcome(runs)
        except FileNotFoundError:
            return False
        return True


def sweep(wanted: Iterable[Run], runs: Path, jobs: int | None = None) -> None:
    """Make the runs that are missing, warm-ups first; seed by seed, so that what there is compares at any time.

    Raises RuntimeError with the end of its log for a run that failed, when the others are done.
    """
    os.environ.update(ENVIRONMENT)
    wanted = list({run.folder(runs): run for run in wanted}.values())
    warm = dict.fromkeys((run.setup, run.seed) for run in wanted)
    for setup in {run.setup: None for run in wanted}:
        SETUPS[setup].dataset(runs)
    missing = sorted((run for run in wanted if not run.finished(runs)), key=lambda run: run.seed)
    _parallel("warm-ups", [(_warm_up, setup, seed, runs) for setup, seed in warm if not _warm(runs, setup, seed)], jobs)
    _parallel("runs", [(_train, run, runs) for run in missing], jobs)


def _parallel(what: str, calls: Sequence[tuple], jobs: int | None) -> None:
    failures = []
    with ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
        started = [pool.submit(*call) for call in calls]
        for done in tqdm(as_completed(started), what, len(started), disable=not calls, smoothing=0):
            if error := done.exception():
                failures.append(str(error))
                tqdm.write(str(error), file=sys.stderr)
    if failures:
        raise RuntimeError(f"{len(failures)} of {len(calls)} {what} failed; the first:\n{failures[0]}")


def _warm(runs: Path, setup: str, seed: int) -> Path | None:
    folder = runs / setup / "warmup" / str(seed)
    return folder if (folder / "warmup.json").exists() else None


def _warm_up(setup: str, seed: int, runs: Path) -> None:
    folder = runs / setup / "warmup" / str(seed)
    shutil.rmtree(folder, ignore_errors=True)
    rows = SETUPS[setup].write_warmup_rows(folder / "rows.parquet", seed)
    options = {
        "output_dir": folder,
        "dataset_name": rows,
        "max_steps": SETUPS[setup].warmup_steps,
        "seed": seed,
        "digit_scans": None,
        "hide_hinted": 0,
    }
    _start("warmup", "warmup", options, folder)
    rows.unlink()


def _train(run: Run, runs: Path) -> None:
    folder = run.folder(runs)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    data = SETUPS[run.setup].dataset(runs)
    options = COMMON | {
        "model_name_or_path": _warm(runs, run.setup, run.seed),
        "output_dir": folder,
        "dataset_name": data,
        "eval_dataset_name": data,
        "seed": run.seed,
    }
    started = time.monotonic()
    changes = {
        name: value.format(runs=runs) if isinstance(value, str) else value for name, value in run.arm.options.items()
    }
    _start("train", run.arm.recipe, options | changes, folder)
    outcome = measure(folder, run.setup, run.arm.name, run.seed, run.arm.options, time.monotonic() - started)
    for path in folder.iterdir():
        if path.name not in KEPT:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    partial = folder / f"partial-{OUTCOME}"
    partial.write_text(outcome.to_json(), encoding="utf-8")
    partial.rename(folder / OUTCOME)


def _start(command: str, recipe: str, options: dict[str, Any], folder: Path) -> None:
    """`papo_hub.cli.COMMAND_command` in a process of its own, with its output in FOLDER.log, which stays if it fails.

    It is forked from one that has imported everything: a tenth of a short run. Raises RuntimeError where it fails.
    """
    values = {name: "null" if value is None else f"{value}" for name, value in options.items()}
    arguments = ["--config", str(ROOT / f"recipes/tiny/{recipe}.yaml")]
    arguments += [part for name, value in values.items() for part in (f"--{name}", value)]
    log = folder.with_suffix(".log")
    process = PROCESSES.Process(target=_inside, args=(command, arguments, log))
    process.start()
    process.join()
    if process.exitcode:
        last = log.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise RuntimeError(f"{folder} failed with exit code {process.exitcode}:\n{last}")
    log.unlink()


def _inside(command: str, arguments: list[str], log: Path) -> None:
    with log.open("w", encoding="utf-8") as output:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(output.fileno(), stream.fileno())
    sys.exit(getattr(cli, f"{command}_command")(arguments))
