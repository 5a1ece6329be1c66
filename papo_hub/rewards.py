"""The rewards of a response: is its boxed answer right, and does it keep the format?

PAPO (arXiv 2507.06448) trains on 0.9 * accuracy + 0.1 * format. Both are 0 or 1. A response is whatever a model
sampled: reading it takes linear time, and the mathematics runs in a process that may be lost.
"""

from __future__ import annotations

import atexit
import os
import re
from fractions import Fraction
from functools import lru_cache

from .grading.judgement import same
from .grading.worker import Worker

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
        return float(same(answer, candidate, _needs_mathematics))
    except _Unsure:
        return float(_worker.same(answer, candidate))


_worker = Worker()
atexit.register(_worker.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_worker.forget)
