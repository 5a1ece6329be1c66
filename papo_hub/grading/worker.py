"""The process that grades what takes mathematics: `Worker` is the parent's handle on it, `main` is what runs in it.

SymPy can be made to run forever or to eat all memory, so the kernel limits the process, the parent kills it where the
kernel does not, and the next verdict starts another. They exchange one JSON value a line. The process imports this
folder as a package of its own, `grading`: it starts within a second, without papo_hub, torch or the caller's __main__.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import threading
from fractions import Fraction

from .judgement import same

logger = logging.getLogger(__name__)

MEMORY_BYTES = 2 << 30
START_SECONDS = 120  # for the worker to import its libraries; about one where nothing else runs
CPU_SECONDS = 2  # for one verdict: processor time of the worker, so that a busy machine changes no verdict
WALL_SECONDS = 20  # the same where the system knows no such limit, or the worker does nothing at all

PACKAGE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "__init__.py")
# The package by its place, not by way of sys.path, where the other files of papo_hub would shadow libraries.
_START = (
    "import sys; from importlib.util import module_from_spec as create, spec_from_file_location as find; "
    "sys.modules['grading'] = create(find('grading', sys.argv[1])); "
    "from grading.worker import main; main(float(sys.argv[2]))"
)


def command() -> list[str]:
    """What starts the process; -P keeps the current folder from shadowing libraries, too."""
    return [sys.executable, "-P", "-c", _START, PACKAGE, str(CPU_SECONDS)]


class Worker:
    """One grading process, started when first needed, shared by all threads, replaced when it dies."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._losses = 0

    def same(self, answer: str, candidate: str) -> bool:
        """Whether `candidate` is the answer; False if there is no verdict within the limits.

        Raises RuntimeError if the process does not start.
        """
        with self._lock:
            if self._process is None:
                self._start()
            verdict = self._exchange(json.dumps([answer, candidate]), WALL_SECONDS)
            if verdict is None:
                self._losses += 1
                if self._losses == 1:
                    logger.warning(
                        "no verdict within the limits: counts as wrong (reported once): %.99r against %.99r",
                        candidate,
                        answer,
                    )
            return bool(verdict)

    def _start(self) -> None:
        self._process = subprocess.Popen(
            command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,  # nothing is left in a buffer that a fork could write twice
        )
        if self._exchange(None, START_SECONDS) is None:
            raise RuntimeError(
                "the grading process did not start; is math-verify installed? "
                f"To see its error: {shlex.join(command())} < {os.devnull}"
            )

    def _exchange(self, request: str | None, seconds: float) -> bool | None:
        """The reply; None, and no process any more, if it died or had to be killed."""
        process, reply = self._process, b""
        timer = threading.Timer(seconds, process.kill)
        timer.daemon = True
        timer.start()
        try:
            if request is not None:
                process.stdin.write(request.encode() + b"\n")
            reply = process.stdout.readline()
        except OSError:  # a broken pipe: it died
            pass
        finally:
            timer.cancel()
            # Also after an interrupt in between: a late reply must never answer another request.
            if not reply.endswith(b"\n"):
                self._stop()
        return json.loads(reply) if reply.endswith(b"\n") else None

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()

    def close(self) -> None:
        """Ends the process; the next verdict starts another."""
        with self._lock:
            self._stop()

    def forget(self) -> None:
        """In a forked child: the process is the parent's, and so is, perhaps, the thread that holds the lock."""
        self._lock, process, self._process = threading.Lock(), self._process, None
        if process is not None:
            process.stdin.close()
            process.stdout.close()
            process.returncode = 0  # not our child: never to be waited for


def main(cpu_seconds: float) -> None:
    """Requests on standard input, verdicts on standard output: one JSON value a line, `true` once at the start. After
    `cpu_seconds` of processor time for one verdict the kernel ends the process."""
    replies, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints must not look like a verdict
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which closes our input
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):  # not on this system: the parent's limit remains
        pass
    from .mathematics import mathematics  # within the limits, and never in the parent

    def reply(verdict: bool) -> None:
        replies.write(json.dumps(verdict) + "\n")
        replies.flush()

    def limit(seconds: float) -> None:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_PROF, seconds)  # unhandled SIGPROF: the kernel ends the process

    mathematics("2x", "x+x", Fraction(1), Fraction(0))  # first-time work counts against no verdict
    reply(True)
    for line in sys.stdin:
        answer, candidate = json.loads(line)
        limit(cpu_seconds)
        try:
            verdict = bool(same(answer, candidate, mathematics))
        except Exception:  # whatever SymPy raises on what a model wrote: not an answer
            verdict = False
        limit(0)
        reply(verdict)
