"""One side in a process of its own: holds its model, answers commands, a JSON line each, over stdin and stdout.

    python -m benchmarks.worker {ours|peer} MODEL_FOLDER THREADS

{"part": "step", "shape": {...}, "options": {...}} runs a part once and answers {"seconds": ...}. With "check": true the answer
is instead what the two sides are compared by, and what passed through the models; with "memory": true, the peak of memory
above what was held before, in MiB.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.metadata
import json
import os
import platform
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from benchmarks.work import Shape, counting


class Worker:
    def __init__(self, name: str, folder: str) -> None:
        module = importlib.import_module(f"benchmarks.{name}")
        self.versions = {"python": platform.python_version()}
        self.versions |= {package: importlib.metadata.version(package) for package in module.PACKAGES}
        self.side = module.Side(folder)
        self.weights = {name: value.clone() for name, value in self.side.policy.state_dict().items()}

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        """Prepare, run and time one part, from the same weights each time."""
        policy = self.side.policy
        policy.load_state_dict(self.weights)
        policy.zero_grad()
        run = getattr(self.side, command["part"])(Shape(**command["shape"]), **command.get("options", {}))
        gc.collect()
        if command.get("memory"):
            before = _reset_peak()
            run()
            return {"mebibytes": (_peak() - before) / 2**20}
        if command.get("check"):
            with counting(*self.side.models) as counts:
                result = run()
            norm = torch.stack([p.grad.norm() for p in policy.parameters() if p.grad is not None] or [torch.zeros(())])
            value = result.tolist() if isinstance(result, torch.Tensor) else result
            return {"value": value, "gradient_norm": norm.norm().item(), **counts}
        start = time.perf_counter()
        run()
        return {"seconds": time.perf_counter() - start}


def _reset_peak() -> int:
    """Forget the peak so far where the system can (Linux); the memory held now, in bytes."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    """The largest resident set so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main(name: str, folder: str, threads: str) -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries that print do not disturb the answers
    torch.set_num_threads(int(threads))
    worker = Worker(name, folder)
    print(json.dumps({"versions": worker.versions}), file=answers)
    for line in sys.stdin:
        try:
            answer = worker.answer(json.loads(line))
        except Exception:  # the orchestrator raises it where it can be seen
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
