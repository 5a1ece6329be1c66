"""The processes that grade what takes mathematics: `Workers` is the parent's handle on them, `main` is what runs in one.

SymPy can be made to run forever or to eat all memory, so the kernel limits who grades, and who dies is replaced. Each
process imports its libraries once and then only supervises: a fork of it grades, and the next fork is ready in
milliseconds. Without fork the process grades itself, and is started anew. All exchange one JSON value a line, in turn.
The process imports this folder as a package of its own, `grading`: it starts within a second, without papo_hub, torch or
the caller's __main__.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import queue
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module

logger = logging.getLogger(__name__)

GRADERS = {"math": "mathematics", "mathruler": "mathruler"}  # name → the module here that loads it
LIBRARIES = {"math": "math-verify", "mathruler": "mathruler"}

MEMORY_BYTES = 2 << 30
START_SECONDS = 120  # for a process to import its libraries; about one where nothing else runs
CPU_SECONDS = 0.5  # for one verdict: processor time of who grades, so that a busy machine changes no verdict
WALL_SECONDS = 60  # the same where the system knows no such limit, or nobody does anything at all
MOST_WORKERS = 8  # of one process

PACKAGE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "__init__.py")
# The package by its place, not by way of sys.path, where the other files of papo_hub would shadow libraries.
_START = (
    "import sys; from importlib.util import module_from_spec as create, spec_from_file_location as find; "
    "sys.modules['grading'] = create(find('grading', sys.argv[1])); "
    "from grading.worker import main; main(sys.argv[2], float(sys.argv[3]))"
)


def command(grader: str) -> list[str]:
    """What starts the process; -P keeps the current folder from shadowing libraries, too."""
    return [sys.executable, "-P", "-c", _START, PACKAGE, grader, str(CPU_SECONDS)]


def cores() -> int:
    """How many processors this process may use, divided by the number of processes that `torchrun` and `accelerate
    launch` started on this machine: each of them grades."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, available // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


class Worker:
    """One process, started when first needed, replaced when it dies. For one thread at a time."""

    def __init__(self, grader: str) -> None:
        self.grader = grader
        self.process: subprocess.Popen | None = None

    def grade(self, answer: str, candidate: str) -> bool | None:
        """Whether `candidate` is the answer; None if there is no verdict within the limits.

        Raises RuntimeError if the process does not start.
        """
        if self.process is None:
            self._start()
        return self._exchange(json.dumps([answer, candidate]), WALL_SECONDS)

    def _start(self) -> None:
        # A group of its own: Ctrl-C is for the parent alone, which closes the input, and the fork is killed with it.
        group = {"process_group": 0} if hasattr(os, "killpg") else {}
        self.process = subprocess.Popen(
            command(self.grader),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,  # nothing is left in a buffer that a fork could write twice
            **group,
        )
        if self._exchange(None, START_SECONDS) is None:
            raise RuntimeError(
                f"the grading process did not start; is {LIBRARIES[self.grader]} installed? "
                f"To see its error: {shlex.join(command(self.grader))} < {os.devnull}"
            )

    def _exchange(self, request: str | None, seconds: float) -> bool | None:
        """The reply; None if there is none, and no process any more if it died or had to be killed."""
        process, reply = self.process, b""
        timer = threading.Timer(seconds, _kill, [process])
        timer.daemon = True
        timer.start()
        try:
            if request is not None:
                _write(process.stdin.fileno(), request.encode() + b"\n")
            reply = process.stdout.readline()
        except OSError:  # a broken pipe: it died
            pass
        finally:
            timer.cancel()
            # Also after an interrupt in between: a late reply must never answer another request.
            if not reply.endswith(b"\n"):
                self.close()
        return json.loads(reply) if reply.endswith(b"\n") else None

    def close(self) -> None:
        """Ends the process; the next verdict starts another."""
        process, self.process = self.process, None
        if process is not None:
            _kill(process)
            process.wait()
            process.stdin.close()
            process.stdout.close()

    def forget(self) -> None:
        """In a forked child: the process is the parent's."""
        process, self.process = self.process, None
        if process is not None:
            process.stdin.close()
            process.stdout.close()
            process.returncode = 0  # not our child: never to be waited for


class Workers:
    """As many workers as there are cores, shared by all threads; those that nobody needed have no process."""

    def __init__(self, grader: str) -> None:
        self.grader = grader
        self._fill()

    def _fill(self) -> None:
        self.workers = [Worker(self.grader) for _ in range(min(cores(), MOST_WORKERS))]
        self._losses = 0
        self._lock = threading.Lock()
        self._idle: queue.LifoQueue[Worker] = queue.LifoQueue()  # last in, first out: the one that is running already
        for worker in self.workers:
            self._idle.put(worker)

    def grade(self, answer: str, candidate: str) -> bool:
        """Whether `candidate` is the answer; False if there is no verdict within the limits.

        Raises RuntimeError if a process does not start.
        """
        worker = self._idle.get()
        try:
            verdict = worker.grade(answer, candidate)
        finally:
            self._idle.put(worker)
        if verdict is None:
            with self._lock:
                self._losses += 1
                first = self._losses == 1
            if first:
                logger.warning(
                    "no verdict within the limits: counts as wrong (reported once): %.99r against %.99r",
                    candidate,
                    answer,
                )
        return bool(verdict)

    def close(self) -> None:
        """Ends the processes; the next verdict starts others."""
        for worker in self.workers:
            worker.close()

    def forget(self) -> None:
        """In a forked child: the processes are the parent's, and so are, perhaps, the threads that use them."""
        for worker in self.workers:
            worker.forget()
        self._fill()


def _kill(process: subprocess.Popen) -> None:
    """Ends it, and its fork."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()


def _write(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]


def main(grader: str, cpu_seconds: float) -> None:
    """Requests on standard input, verdicts on standard output: one JSON value a line, `true` once at the start, `null`
    where there is no verdict within the limits."""
    # Whatever a library prints must not look like a verdict.
    replies = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    _limit_memory()
    # Within the limits, and never in the parent; what is done for the first time counts against no verdict.
    grade = import_module(f".{GRADERS[grader]}", __package__).load()
    gc.collect()
    gc.freeze()  # nor is what was loaded searched for garbage again, which takes as long as a slow verdict
    _write(replies, b"true\n")
    if hasattr(os, "fork"):
        _supervise(sys.stdin.fileno(), replies, grade, cpu_seconds)
    else:
        _serve(sys.stdin.fileno(), replies, grade, cpu_seconds)


def _limit_memory() -> None:
    with suppress(ImportError, ValueError, OSError):  # not on this system: the parent's limit remains
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _supervise(requests: int, replies: int, grade: Callable[[str, str], bool], cpu_seconds: float) -> None:
    """Hands each request to a fork, which answers it or dies of it; the next one then goes to another."""
    fork = None
    with os.fdopen(requests, "rb") as lines:
        for line in lines:
            fork = fork or _Fork((requests, replies), grade, cpu_seconds)
            reply = fork.ask(line)
            if reply is None:
                fork = None
            _write(replies, reply or b"null\n")


class _Fork:
    """A fork of this process that grades."""

    def __init__(self, others: tuple[int, ...], grade: Callable[[str, str], bool], cpu_seconds: float) -> None:
        requests, ours = os.pipe()
        theirs, replies = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            for file in (ours, theirs, *others):  # else its input would never end
                os.close(file)
            try:
                _serve(requests, replies, grade, cpu_seconds)
            finally:
                os._exit(0)
        os.close(requests)
        os.close(replies)
        self.requests, self.replies = ours, os.fdopen(theirs, "rb")

    def ask(self, line: bytes) -> bytes | None:
        """Its reply; None, and no process any more, if it died."""
        reply = b""
        with suppress(OSError):
            _write(self.requests, line)
            reply = self.replies.readline()
        if reply.endswith(b"\n"):
            return reply
        os.close(self.requests)
        self.replies.close()
        os.waitpid(self.pid, 0)
        return None


def _serve(requests: int, replies: int, grade: Callable[[str, str], bool], cpu_seconds: float) -> None:
    """Grades, until its input ends or, after `cpu_seconds` of processor time for one verdict, the kernel ends it."""
    with os.fdopen(requests, "rb") as lines:
        for line in lines:
            answer, candidate = json.loads(line)
            _limit_time(cpu_seconds)
            try:
                verdict = bool(grade(answer, candidate))
            except Exception:  # whatever a library raises on what a model wrote: not an answer
                verdict = False
            _limit_time(0)
            _write(replies, json.dumps(verdict).encode() + b"\n")


def _limit_time(seconds: float) -> None:
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)  # unhandled SIGPROF: the kernel ends the process
