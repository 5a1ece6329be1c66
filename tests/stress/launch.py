"""Training as processes of their own: started as a user starts it, watched from outside, stopped and killed."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ROOT / "recipes" / "train.py"
BEGUN = "memory, computed"  # the last line of a run before its first step


def torchrun(processes: int) -> list[str]:
    """The launcher's command, with the connection of its processes on this machine's loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    return [*launcher, "--master-addr", "127.0.0.1", "--master-port", str(port)]


def accelerate() -> list[str]:
    """`accelerate launch` of one process."""
    launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    return [*launcher, "--config_file", str(ROOT / "accelerate_configs" / "cpu.yaml")]


class Program:
    """A script with what it starts, in a session of its own; its output goes to the end of a file.

    Args:
        arguments: of the script.
        log: the file.
        launcher: a command that takes the script; None: Python itself.
        script: recipes/train.py, or one that calls it.
        environment: besides this process's own.
    """

    def __init__(
        self,
        arguments: Iterable[object],
        log: Path,
        launcher: list[str] | None = None,
        script: Path = TRAIN,
        environment: Mapping[str, str] = {},
    ) -> None:
        given = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}
        given |= {"TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
        given |= {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
        self.script, self._log = str(script), log
        command = [*(launcher or [sys.executable]), self.script, *map(str, arguments)]
        with log.open("ab") as output, _interruptible():
            self._from = output.tell()
            self.process = subprocess.Popen(
                command, env=os.environ | given | environment, stdout=output, stderr=output, start_new_session=True
            )
        self.started = time.time()

    @property
    def said(self) -> str:
        """What it and its processes have printed; a progress bar's moves count as lines."""
        with self._log.open("rb") as file:
            file.seek(self._from)
            return file.read().decode(errors="replace").replace("\r", "\n")

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def tree(self) -> list[psutil.Process]:
        """What lives of it: itself first."""
        with contextlib.suppress(psutil.NoSuchProcess):
            own = psutil.Process(self.process.pid)
            return [own, *own.children(recursive=True)]
        return []

    def workers(self) -> list[psutil.Process]:
        """Its processes that train, in the order of their ranks."""
        found = {}
        for process in self.tree():
            with contextlib.suppress(psutil.Error):
                command = process.cmdline()
                if self.script in command and "torch.distributed.run" not in command and "launch" not in command:
                    found[int(process.environ().get("RANK", "0"))] = process
        return [found[rank] for rank in sorted(found)]

    def kill(self) -> None:
        """SIGKILL to everything at once."""
        tree = self.tree()
        for process in reversed(tree):  # the launcher last: its end would be told to those that train
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(tree, 30)
        self.process.wait(30)

    def wait(self, seconds: float) -> int:
        """Its exit code (minus the signal that ended it); a program that takes longer is killed and an error."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise TimeoutError(f"still running after {seconds} s:\n{self.said[-3000:]}") from None

    def until(self, condition: Callable[[], bool], seconds: float = 120, every: float = 0.002) -> bool:
        """Wait for a condition. False: it ended before that. A program that takes longer is killed and an error."""
        deadline = time.monotonic() + seconds
        while not condition():
            if not self.running:
                return condition()
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"did not come to it in {seconds} s:\n{self.said[-3000:]}")
            time.sleep(every)
        return True

    @property
    def begun(self) -> bool:
        """Whether its first step has begun."""
        return BEGUN in self.said

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.running:
            self.kill()


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """What a shell starts in the background ignores Ctrl-C, and so does all that it starts."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def tracebacks(said: str) -> list[str]:
    """Those that are not torchrun's own: what it says when its processes end is not ours to choose."""
    return [part for part in said.split("Traceback (most recent call last)")[1:] if "elastic" not in part[:2000]]


def stopped(said: str) -> list[tuple[str, int, Path]]:
    """(reason, step it was in, checkpoint it left) for each message of a run that stopped before its end."""
    found = re.findall(r"stopped by (.+) in step (\d+) of \d+; saved (.+)\. Go on with", said)
    return [(reason, int(step), Path(saved)) for reason, step, saved in found]


def resumed(said: str) -> tuple[Path, int] | None:
    """(checkpoint, steps finished) that a run went on from."""
    found = re.search(r"resumed from (\S+) at step (\d+)", said)
    return found and (Path(found[1]), int(found[2]))
