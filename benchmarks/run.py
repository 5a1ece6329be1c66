"""Speed and memory of papo_hub against TRL 1.5.0's PAPO: the same work on both sides, in turns.

    python -m benchmarks.run [--quick] [--repeats 5] [--output FOLDER] [--peer PYTHON]

Every part is first run once on both sides without a clock, and their results are compared; where they differ, nothing is
timed. Writes results.json with every sample, then the table and the plots of report.py.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

from benchmarks.report import write_report
from benchmarks.work import TEXT, VISION, Shape, save_model

HERE = Path(__file__).parent
ANSWER_WITHIN = 600  # seconds; a part takes one minute at most on two slow cores
LOGPROBS_AGREE = 1e-4  # nats; float32 rounding is a few 1e-6
GRADIENTS_AGREE = 1e-3  # relative, of the norm

# part → the worker's method; its options on each side; what differs in the run that is compared and not timed.
PARTS: dict[str, tuple[str, dict[str, dict[str, Any]], dict[str, Any]]] = {
    "rollout": ("rollout", {"ours": {}, "peer": {}}, {"greedy": True}),
    "score": ("logprobs", {"ours": {"train": False}, "peer": {"train": False}}, {"view": "masked"}),
    "update": ("logprobs", {"ours": {"train": True}, "peer": {"train": True}}, {"positions": "1d"}),
    "step": (
        "step",
        {
            "ours": {"masked": "live"},
            "ours frozen": {"masked": "frozen"},
            "peer": {"masked": "live"},
            "peer checkpointing": {"masked": "live", "checkpointing": True},
        },
        {},
    ),
}
CONDITIONS = [
    "float32 on the CPU, attention by torch's scaled_dot_product_attention, no dropout, all completions of a group in one "
    "batch. No activation checkpointing on either side; the row 'TRL as it comes' has TRL's default, which is on.",
    "TRL's loss leaves out mm_token_type_ids, so its update runs with one-dimensional positions; ours is timed with the "
    "model's own, three-dimensional ones. Both sides are compared with one-dimensional positions (update, clean image), "
    "and with the model's own (score, masked image), which TRL's reference pass uses.",
    "Rollouts are compared under greedy decoding and timed under sampling at temperature 1, the end of sequence "
    "suppressed, so that every completion has T tokens (TRL: min_new_tokens), and so the image tokens, at which TRL's next "
    "forward pass would fail (suppress_tokens).",
    "A step is processor, generation, reward, reference log-probs (beta 0.01), masked and clean view, backward, clipping, "
    "AdamW: ours by `collect` and the objective, as in recipes/minimal_loop.py; TRL's by its data loader's batch, its "
    "`training_step`, and the clipping and optimizer step that `train` adds. Its losses differ by design "
    "(docs/differences.md), so tokens are compared instead. TRL's mask hides single values, ours patches; both pass "
    "through the model whole.",
    "TRL's masked view is always live, so its one step stands beside both of ours.",
    "The prompt is processed before rollout, score and update are timed, on both sides, and within the step.",
    "Without torchvision both sides use papo_hub's loader of the stock processor without its video part.",
    "Every sample starts from the same weights; the sides take turns, and who is first alternates.",
    "Peak memory: resident set above the loaded models and the inputs, one thread, a fresh process a side and shape.",
]


@dataclass(frozen=True)
class Cell:
    """One part at one shape, to be measured `repeats` times a side."""

    part: str
    shape: Shape
    repeats: int


class Worker:
    """One side's process. Raises RuntimeError where it fails, TimeoutError where it does not answer."""

    def __init__(self, python: str, name: str, model: str, threads: int, log: IO[str]) -> None:
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": str(HERE.parent),
        }
        command = [python, "-m", "benchmarks.worker", name, model, str(threads)]
        self.name, self.log = name, log
        self.versions: dict[str, str] = {}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        )

    def ask(self, method: str, shape: Shape, options: dict[str, Any], **how: bool) -> dict[str, Any]:
        command = {"part": method, "shape": asdict(shape), "options": options} | how
        print(json.dumps(command), file=self.process.stdin, flush=True)
        return self.answer()

    def answer(self) -> dict[str, Any]:
        ready, _, _ = select.select([self.process.stdout], [], [], ANSWER_WITHIN)
        if not ready:
            self.process.kill()
            raise TimeoutError(f"{self.name} did not answer within {ANSWER_WITHIN} s")
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            raise RuntimeError(f"{self.name} ended by itself; the last it said:\n{self.log.read()[-2000:]}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{self.name} failed:\n{answer['error']}")
        return answer


@contextmanager
def workers(pythons: dict[str, str], model: str, threads: int) -> Iterator[dict[str, Worker]]:
    """A process a side, each in its own environment, ended when done."""
    with ExitStack() as stack:
        sides: dict[str, Worker] = {}
        for name, python in pythons.items():
            log = stack.enter_context(tempfile.TemporaryFile("w+"))
            sides[name] = Worker(python, name, model, threads, log)
            stack.callback(sides[name].process.wait)
            stack.callback(sides[name].process.kill)
        for worker in sides.values():
            worker.versions = worker.answer()["versions"]
        yield sides


def plan(quick: bool, repeats: int) -> dict[int, list[Cell]]:
    """What is measured, by the number of threads: on one thread all parts of the four shapes and the curves around them;
    on two, the update and the step of the shapes with short completions."""
    prompts, completions, group = ((128, 320), (8, 24), 8) if quick else ((256, 1024), (64, 256), 8)
    even = [Shape(p, group, t) for p in prompts for t in completions]
    main = [Cell(part, shape, repeats) for shape in even for part in PARTS]
    ragged = [
        Cell("update", replace(shape, ragged=True), repeats) for shape in even if shape.completion == completions[1]
    ]
    curves = [replace(shape, generations=g) for shape in even for g in (group // 4, group // 2)]
    curves += [replace(even[0], prompt=2 * prompts[0]), replace(even[0], completion=2 * completions[0])]
    curve_cells = [Cell("update", shape, min(repeats, 3)) for shape in curves]
    short = [cell for cell in main if cell.part in ("update", "step") and cell.shape.completion == completions[0]]
    return {1: main + ragged + curve_cells, 2: short}


def measure(cell: Cell, sides: dict[str, Worker], threads: int) -> dict[str, Any]:
    """Compare, then time a cell: its record for results.json."""
    method, columns, compared = PARTS[cell.part]

    def ask(column: str, extra: dict[str, Any] | None = None, **how: bool) -> dict[str, Any]:
        return sides[column.split()[0]].ask(method, cell.shape, columns[column] | (extra or {}), **how)

    results = {column: ask(column, compared, check=True) for column in columns}
    samples: dict[str, list[float]] = {column: [] for column in columns}
    for repeat in range(cell.repeats):
        for column in list(columns)[:: 1 if repeat % 2 == 0 else -1]:
            samples[column].append(ask(column)["seconds"])
    return {
        "part": cell.part,
        "threads": threads,
        "shape": asdict(cell.shape),
        "agreement": agreement(cell, results),
        "passed_through": {column: {k: r[k] for k in ("tokens", "patches")} for column, r in results.items()},
        "seconds": samples,
    }


def agreement(cell: Cell, results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """How far the two sides are apart. Raises RuntimeError where that is more than rounding."""
    ours, peer = results["ours"], results["peer"]
    if cell.part in ("rollout", "step"):
        if any(result["value"] != peer["value"] for result in results.values()):
            raise RuntimeError(f"{cell.part} at {cell.shape}: the sides made different tokens")
        return {}
    pairs = zip(sum(ours["value"], []), sum(peer["value"], []), strict=True)
    apart = {"logprobs": max(abs(a - b) for a, b in pairs)}
    allowed = {"logprobs": LOGPROBS_AGREE}
    if cell.part == "update":
        apart["gradient_norm"] = abs(ours["gradient_norm"] / peer["gradient_norm"] - 1)
        allowed["gradient_norm"] = GRADIENTS_AGREE
    for name, value in apart.items():
        if not value <= allowed[name]:
            raise RuntimeError(f"{cell.part} at {cell.shape}: {name} differ by {value:.2g}, more than {allowed[name]}")
    return apart


def peak_memory(shape: Shape, pythons: dict[str, str], model: str) -> dict[str, Any]:
    """MiB that one update takes above what was held before, each side in a fresh process."""
    record: dict[str, Any] = {"shape": asdict(shape)}
    for name, python in pythons.items():
        with workers({name: python}, model, threads=1) as sides:
            record[name] = sides[name].ask("logprobs", shape, {"train": True}, memory=True)["mebibytes"]
    return record


def machine() -> dict[str, Any]:
    """What it ran on."""
    cpu, memory = platform.processor() or platform.machine(), None
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
        memory = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    return {"cpu": cpu, "cores": os.cpu_count(), "memory_gib": memory, "system": platform.system()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed and memory of papo_hub against TRL 1.5.0's PAPO.")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, once: whether everything runs")
    parser.add_argument("--repeats", type=int, help="samples a part and side; default 5, quick 1")
    parser.add_argument("--output", type=Path, help="default benchmarks/results, quick runs/bench-quick")
    parser.add_argument("--peer", default=str(HERE / ".venv/bin/python"), help="the python that has trl==1.5.0")
    given = parser.parse_args()
    repeats = given.repeats or (1 if given.quick else 5)
    output = given.output or (HERE.parent / "runs/bench-quick" if given.quick else HERE / "results")
    pythons = {"ours": sys.executable, "peer": given.peer}

    cells = plan(given.quick, repeats)
    total, done = sum(map(len, cells.values())), 0
    results: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "model": {"text": TEXT, "vision": VISION},
        "conditions": CONDITIONS,
        "timings": [],
    }
    with tempfile.TemporaryDirectory() as model:
        save_model(Path(model))
        for threads, planned in cells.items():
            with workers(pythons, model, threads) as sides:
                results["versions"] = {name: worker.versions for name, worker in sides.items()}
                for shape in {cell.shape: None for cell in planned}:
                    ids = [worker.ask("prompt_ids", shape, {}, check=True)["value"] for worker in sides.values()]
                    if ids[0] != ids[1] or len(ids[0]) != shape.prompt:
                        raise RuntimeError(f"{shape}: the sides read different prompts")
                for cell in planned:
                    record = measure(cell, sides, threads)
                    results["timings"].append(record)
                    done += 1
                    seconds = ", ".join(
                        f"{name} {sorted(s)[len(s) // 2]:.2f} s" for name, s in record["seconds"].items()
                    )
                    print(f"{done}/{total}  {threads} thread(s)  {cell.part} at {cell.shape}: {seconds}", flush=True)
        even = {cell.shape: None for cell in cells[1] if cell.part == "step"}
        results["memory"] = [peak_memory(shape, pythons, model) for shape in even]

    output.mkdir(parents=True, exist_ok=True)
    (output / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(write_report(output))


if __name__ == "__main__":
    main()
