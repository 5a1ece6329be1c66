"""The rewards of a response: is its boxed answer right, and does it keep the format?

PAPO (arXiv 2507.06448) trains on 0.9 * accuracy + 0.1 * format. Both are 0 or 1. A response is whatever a model
sampled: reading it takes linear time, and the mathematics runs in a process that may be lost.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import re
import subprocess
import sys
import threading
from fractions import Fraction
from functools import lru_cache

from . import grading_worker

logger = logging.getLogger(__name__)

START_SECONDS = 120  # for the worker to import its libraries; about one where nothing else runs
CPU_SECONDS = 2  # for one verdict: processor time of the worker, so that a busy machine changes no verdict
WALL_SECONDS = 20  # the same where the system knows no such limit, or the worker does nothing at all

_BRACES = re.compile(r"\\boxed\s*\{|\\\\(?!boxed)|\\[{}]|[{}]")
_OPENING = re.compile(r"\s*<\s*think\s*>")
_CLOSING = re.compile(r"<\s*/\s*think\s*>")


def last_boxed(text: str) -> str | None:
    """The content of the last `\\boxed{...}` whose braces balance; None if there is none. Linear time.

    "Last" is by where a box begins: of nested ones, the innermost. Escaped braces (`\\{`) are text, not braces.
    """
    open_braces: list[tuple[int, bool]] = []  # (where its content begins, whether it is a box)
    last: tuple[int, int] | None = None
    for match in _BRACES.finditer(text):
        token = match[0]
        if token == "}":
            if open_braces:
                start, boxed = open_braces.pop()
                if boxed and (last is None or start > last[0]):
                    last = (start, match.start())
        elif token == "{" or token.startswith(r"\boxed"):
            open_braces.append((match.end(), token != "{"))
    return None if last is None else text[slice(*last)].strip()


def format_reward(response: str) -> float:
    """1.0 if the response is `<think>...</think>` and then a `\\boxed{...}`, else 0.0.

    The rule of the official code: with white space around `<`, `>` and `/` dropped, the whole response matches
    `<think>.*</think>.*\\boxed{.*}.*`. The same verdicts, found with searches instead of backtracking.
    """
    opening = _OPENING.match(response)
    closing = opening and _CLOSING.search(response, opening.end())
    if not closing:
        return 0.0
    box = response.find(r"\boxed{", closing.end())
    return float(box >= 0 and response.find("}", box) >= 0)


def accuracy_reward(response: str, answer: str) -> float:
    """1.0 if the content of the response's last `\\boxed{...}` is the answer, else 0.0; without a box, 0.0.

    Graded as a person would: choice letters ("(A)", "A. 12"), words, numbers, units, percentages, lists, equations, and
    the rest as mathematics by math-verify and SymPy. A decimal equals an exact value to six digits: 3.14 is not pi. The
    answer may itself be in dollars or a box. Whatever the text, it raises nothing and takes bounded time: a verdict
    that would take longer is 0.0. Safe in threads and after a fork.

    Raises RuntimeError if the grading process cannot be started at all.
    """
    boxed = last_boxed(response)
    return 0.0 if boxed is None else _verdict(boxed, last_boxed(answer) or answer)


def combine(accuracy: float, format: float, format_weight: float = 0.1) -> float:
    """(1 - format_weight) * accuracy + format_weight * format; the paper's 0.9 and 0.1."""
    return (1 - format_weight) * accuracy + format_weight * format


class _Unsure(Exception):
    """Text alone does not decide."""


def _needs_mathematics(answer: str, candidate: str, factor: Fraction, tolerance: Fraction) -> bool:
    raise _Unsure


@lru_cache(maxsize=16_384)
def _verdict(candidate: str, answer: str) -> float:
    try:
        return float(grading_worker.same(answer, candidate, _needs_mathematics))
    except _Unsure:
        return float(_worker.same(answer, candidate))


class _Worker:
    """One grading process, started when first needed, shared by all threads, replaced when it dies."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._losses = 0

    def same(self, answer: str, candidate: str) -> bool:
        """Raises RuntimeError if the process does not start."""
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
        # By its path: neither this package (with torch) nor the caller's __main__ is imported again.
        self._process = subprocess.Popen(
            [sys.executable, grading_worker.__file__, str(CPU_SECONDS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,  # nothing is left in a buffer that a fork could write twice
        )
        if self._exchange(None, START_SECONDS) is None:
            raise RuntimeError(
                "the grading process did not start; is math-verify installed? "
                f"To see its error: {sys.executable} {grading_worker.__file__} {CPU_SECONDS} < {os.devnull}"
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
            if not reply.endswith(
                b"\n"
            ):  # also after an interrupt in between: a late reply must never answer another request
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
        with self._lock:
            self._stop()

    def forget(self) -> None:
        """In a forked child: the process is the parent's, and so is, perhaps, the thread that holds the lock."""
        self._lock, process, self._process = threading.Lock(), self._process, None
        if process is not None:
            process.stdin.close()
            process.stdout.close()
            process.returncode = 0  # not our child: never to be waited for


_worker = _Worker()
atexit.register(_worker.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_worker.forget)
