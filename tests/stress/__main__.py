"""Runs that are killed over and over and must end as the run that was left alone, byte for byte.

    python -m tests.stress [--kills 50] [--seed N] [--folder F]        (make stress)

A run is started as a user starts it, killed (SIGKILL to all its processes) or stopped (SIGTERM) at a random moment, up to
three times, and resumed until it ends. Then its model is the reference's in every byte, its metrics.jsonl in every value
but the times, so are samples.md and guard.jsonl; no half-written folder is left; and a SIGTERM lost no finished step. What
was going on when it was killed is read from its folder and, where that tells nothing, from its own stack a moment before.
Ends with exit code 1 unless all of that holds in every run.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml

from .launch import Program, resumed, stopped, torchrun, tracebacks
from .reading import differences, evidence, rows, where

PATIENCE = 240  # seconds for any program
EXIT_CODE = 75
COMMON = {
    "prompt_suffix": "",
    "max_prompt_length": 256,
    "prompts_per_step": 4,
    "prompts_per_update": 2,
    "num_generations": 4,
    "micro_batch_size": 3,
    "max_completion_length": 12,
    "max_sampling_tries": 500,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "linear",
    "warmup_steps": 3,
    "max_steps": 6,
    "save_steps": 2,
    "save_total_limit": 2,
    "sample_steps": 2,
    "report_to": "none",
}
RECIPES = {
    "papo_g": {"objective": "papo_g", "gamma": 0.02, "beta": 0.01},
    "papo_d": {"objective": "papo_d", "gamma": 0.02, "masked_logprobs": "live", "dataloader_num_workers": 1},
    "streamed": {
        "objective": "papo_g",
        "gamma": 0.02,
        "beta": 0.01,
        "streaming": True,
        "shuffle_buffer_size": 4,
        "dataloader_num_workers": 1,
        "save_steps": 1,
    },
}
# (recipe, processes): two processes use both cores.
RUNS = [("papo_g", 1), ("papo_g", 2), ("papo_d", 1), ("streamed", 1), ("papo_d", 2), ("streamed", 2)]
FIRST_AIMS = {"any": 9, "save": 3, "rotation": 2, "end": 2, "start": 1}
LATER_AIMS = {"any": 6, "start": 4, "save": 3, "rotation": 2, "end": 2}


@dataclass
class Reference:
    """A run that nothing stopped."""

    folder: Path
    start: float  # seconds from its start to its first step
    steps: float  # seconds of its steps
    end: float  # seconds from its last checkpoint to its end


@dataclass
class Kill:
    """One kill, and what was going on then."""

    kind: str
    processes: int
    where: str
    rows: int  # steps in metrics.jsonl


@dataclass
class Outcome:
    """A run from its first start to its end."""

    kills: list[Kill] = field(default_factory=list)
    unfinished: int = 0  # stops that left a checkpoint in the middle of a step
    faults: list[str] = field(default_factory=list)


class Driver:
    """Makes the model and the data, the references as they are needed, and runs with kills."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.draw = folder, random.Random(seed)
        self.references: dict[tuple[str, int], Reference] = {}
        (folder / "stacks").mkdir(parents=True)
        self.model, self.shards = self._prepared()

    def _prepared(self) -> tuple[Path, Path]:
        os.environ |= {"HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        from papo_hub.dataset import build_dataset
        from papo_hub.warmup import WarmupConfig, warm_up

        settings = {"rows": 128, "max_steps": 60, "batch_size": 16, "prompt_suffix": ""}
        with (self.folder / "model.log").open("w") as log, contextlib.redirect_stderr(log):
            model = warm_up(WarmupConfig(output_dir=str(self.folder / "model"), **settings))
        return model, build_dataset("digits", self.folder / "shards", limit=15, progress=False).folder

    def recipe(self, name: str) -> Path:
        file = self.folder / f"{name}.yaml"
        if not file.exists():
            data = {"dataset_name": str(self.shards if name == "streamed" else "digits")}
            file.write_text(yaml.safe_dump({"model_name_or_path": str(self.model)} | data | COMMON | RECIPES[name]))
        return file

    def start(self, name: str, processes: int, run: Path, *options: str) -> Program:
        environment = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])}
        environment |= {"STRESS_STACKS": str(self.folder / "stacks")}
        arguments = ["--config", self.recipe(name), "--output_dir", run, *options]
        launcher = torchrun(processes) if processes > 1 else None
        return Program(arguments, run.with_suffix(".log"), launcher, environment=environment)

    def reference(self, name: str, processes: int) -> Reference:
        key = name, processes
        if key not in self.references:
            run = self.folder / f"{name}-{processes}"
            with self.start(name, processes, run) as program:
                program.until(lambda: program.begun, PATIENCE, every=0.02)
                begun = time.time()
                program.until((run / "checkpoints" / f"step-{steps(name):06d}").exists, PATIENCE)
                saved = time.time()
                if (code := program.wait(PATIENCE)) != 0:
                    raise SystemExit(f"the reference ended with {code}:\n{program.said[-3000:]}")
            self.references[key] = Reference(run, begun - program.started, saved - begun, time.time() - saved)
            print(f"reference {name}, {processes} process(es): {time.time() - program.started:.0f} s", flush=True)
        return self.references[key]

    def run(self, number: int, name: str, processes: int, at_most: int) -> Outcome:
        """Start, kill up to three times, resume to the end, compare."""
        reference, outcome = self.reference(name, processes), Outcome()
        run = self.folder / f"run{number:03d}-{name}-{processes}"
        try:
            self._kill_and_resume(run, name, processes, at_most, reference, outcome)
        except TimeoutError as error:
            outcome.faults.append(str(error))
        outcome.faults += differences(run, reference.folder)
        return outcome

    def _kill_and_resume(
        self, run: Path, name: str, processes: int, at_most: int, reference: Reference, outcome: Outcome
    ) -> None:
        told, options = None, ()
        for attempt in range(self.draw.choices((1, 2, 3), (2, 3, 4))[0]):
            if attempt == at_most:
                break
            aim = self._drawn(LATER_AIMS if attempt else FIRST_AIMS)
            sign = signal.SIGKILL if self.draw.random() < 0.55 else signal.SIGTERM
            with self.start(name, processes, run, *options) as program:
                here = self._strike(program, run, name, aim, sign, reference)
                if here is None:  # it was faster: it has ended
                    self._check_resumed(program, told, outcome)
                    told = None
                    break
                outcome.kills.append(Kill(sign.name, processes, here, len(rows(run))))
                self._check_resumed(program, told, outcome)
                told = self._check_stopped(program, run, here, outcome) if sign is signal.SIGTERM else None
            options = ("--resume_from_checkpoint", "latest")
        with self.start(name, processes, run, "--resume_from_checkpoint", "latest") as program:
            if (code := program.wait(PATIENCE)) != 0:
                outcome.faults.append(f"resumed, it ended with {code}: {program.said[-1500:]}")
            self._check_resumed(program, told, outcome, to_the_end=True)

    def _drawn(self, weights: dict[str, int]) -> str:
        return self.draw.choices(list(weights), list(weights.values()))[0]

    def _strike(
        self, program: Program, run: Path, name: str, aim: str, sign: signal.Signals, reference: Reference
    ) -> str | None:
        """Wait for the moment, kill, and tell what was going on; None where the program ended before."""
        last, folder = steps(name), run / "checkpoints"
        if aim == "start":
            moment = time.time() + self.draw.uniform(0.05, 1.1) * reference.start
            program.until(lambda: time.time() > moment, every=0.01)
        elif aim == "end":
            program.until((folder / f"step-{last:06d}").exists, PATIENCE)
            time.sleep(self.draw.random() * reference.end)
        elif aim in ("save", "rotation"):
            nth = self.draw.randrange(3 if aim == "save" or name == "streamed" else 1)  # let some pass
            for i in range(nth + 1):
                if not program.until(lambda: evidence(folder, program.started) == aim, PATIENCE, every=0.0005):
                    return None
                if i < nth:
                    program.until(lambda: evidence(folder, program.started) != aim, PATIENCE)
            time.sleep(self.draw.random() * (0.04 if aim == "save" else 0.003))
        else:
            if not program.until(lambda: program.begun, PATIENCE, every=0.02):
                return None
            left = (last - len(rows(run))) / last * reference.steps
            moment = time.time() + self.draw.random() * left
            program.until(lambda: time.time() > moment, every=0.01)
        stack = None if evidence(folder, program.started) else self._stack(program)
        if sign is signal.SIGKILL:
            if not program.running:
                return None
            program.kill()
            return evidence(folder, program.started) or where(stack, program, last - len(rows(run)))
        here = evidence(folder, program.started) or where(stack, program, last - len(rows(run)))
        if not program.running:
            return None
        program.process.send_signal(sign)
        return here

    def _stack(self, program: Program) -> str | None:
        """What the main process writes when it is asked where it stands."""
        if not (workers := program.workers()):
            return None
        file = self.folder / "stacks" / str(workers[0].pid)
        if not file.exists():
            return None  # not yet ready to answer: the signal would end it
        size = file.stat().st_size
        try:
            workers[0].send_signal(signal.SIGUSR2)
        except psutil.NoSuchProcess:
            return None
        deadline, seen = time.monotonic() + 1, size
        while time.monotonic() < deadline and (seen == size or file.stat().st_size > seen):  # it is written in pieces
            seen = file.stat().st_size
            time.sleep(0.003)
        return file.read_text()[size:]

    def _check_stopped(self, program: Program, run: Path, here: str, outcome: Outcome) -> tuple[Path, int] | None:
        """SIGTERM: one message, its exit code, no finished step lost. Returns the checkpoint it left, and its step."""
        code, alone = program.wait(PATIENCE), outcome.kills[-1].processes == 1
        messages = re.findall(r"stopped by (.*)", program.said)
        if "Finished: " in program.said and code in (0, 1, -signal.SIGTERM, EXIT_CODE):
            return None  # there was nothing left to stop
        if not program.begun and code == -signal.SIGTERM:
            return None  # nor anything there yet
        if code != (EXIT_CODE if alone else 1) and (alone or program.begun):
            outcome.faults.append(f"stopped during {here} it ended with {code}: {program.said[-1500:]}")
        if len(messages) != 1 and (alone or program.begun):
            outcome.faults.append(f"stopped during {here} it said {messages}: {program.said[-1500:]}")
        if tracebacks(program.said):
            outcome.faults.append(f"stopped during {here} it left a traceback: {program.said[-3000:]}")
        found = stopped(program.said)
        if not found:
            return None  # before its first step, or after its last
        reason, step, saved = found[0]
        outcome.unfinished += saved.name.endswith("-unfinished")
        expected = {f"step-{step - 1:06d}", f"step-{step:06d}-unfinished"}
        if saved.name not in expected or not (saved / "trainer_state.json").is_file() or len(rows(run)) != step - 1:
            outcome.faults.append(f"stopped in step {step}, it saved {saved} and had {len(rows(run))} rows")
        return saved, step - 1

    def _check_resumed(
        self, program: Program, told: tuple[Path, int] | None, outcome: Outcome, to_the_end: bool = False
    ) -> None:
        """What SIGTERM left is what the next start went on from."""
        went_on = resumed(program.said)
        if told is not None and (went_on or to_the_end) and went_on != told:
            outcome.faults.append(f"it was stopped with {told} and went on from {went_on}")


def steps(name: str) -> int:
    return (COMMON | RECIPES[name])["max_steps"]


def table(outcomes: list[Outcome]) -> str:
    """What was done to the runs, and what became of them."""
    lines = ["| signal | processes | kills | in runs that ended as the reference |", "|---|---|---|---|"]
    kills, good = Counter(), Counter()
    for outcome in outcomes:
        for kill in outcome.kills:
            kills[kill.kind, kill.processes] += 1
            good[kill.kind, kill.processes] += not outcome.faults
    lines += [
        f"| {kind} | {processes} | {n} | {good[kind, processes]} |" for (kind, processes), n in sorted(kills.items())
    ]
    lines.append(f"| all | | {kills.total()} | {good.total()} |")
    at = Counter((kill.where, kill.kind) for outcome in outcomes for kill in outcome.kills)
    lines += ["", "| killed during | SIGKILL | SIGTERM |", "|---|---|---|"]
    lines += [
        f"| {name} | {at[name, 'SIGKILL']} | {at[name, 'SIGTERM']} |" for name in sorted({name for name, _ in at})
    ]
    several = Counter(len(outcome.kills) for outcome in outcomes)
    lines += ["", f"{len(outcomes)} runs; killed once {several[1]}, twice {several[2]}, three times {several[3]}."]
    lines.append(f"Stopped in the middle of a step, which was then taken along: {sum(o.unfinished for o in outcomes)}.")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.stress", description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="end after so many")
    parser.add_argument("--seed", type=int, default=None, help="of the moments; printed, to be used again")
    parser.add_argument("--folder", type=Path, default=None, help="where the runs go, and stay; must not exist")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # and what it started ends with it
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    folder = (options.folder or Path(tempfile.mkdtemp(), "stress")).resolve()
    print(f"{options.kills} kills, seed {seed}, in {folder}", flush=True)
    driver, outcomes, started = Driver(folder, seed), [], time.time()
    while (done := sum(len(outcome.kills) for outcome in outcomes)) < options.kills:
        number = len(outcomes)
        name, processes = RUNS[number % len(RUNS)]
        outcome = driver.run(number, name, processes, options.kills - done)
        outcomes.append(outcome)
        for kill in outcome.kills:
            print(f"{name:9}{processes} process(es)  {kill.kind} during {kill.where}, {kill.rows} steps logged")
        print(f"  {'DIFFERS: ' + '; '.join(outcome.faults) if outcome.faults else 'equal'}  ", end="")
        print(f"({done + len(outcome.kills)} kills, {time.time() - started:.0f} s)", flush=True)
    print("\n" + table(outcomes))
    failed = any(outcome.faults for outcome in outcomes)
    if options.folder is None and not failed:
        shutil.rmtree(folder.parent)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
