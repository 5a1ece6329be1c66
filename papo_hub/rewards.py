"""The rewards of a response: is its boxed answer right, and does it keep the format?

PAPO (arXiv 2507.06448) trains on 0.9 * accuracy + 0.1 * format. Both are 0 or 1. A response is whatever a model
sampled: reading it takes linear time, and the mathematics runs in a process that may be lost.
"""

from __future__ import annotations

import atexit
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import lru_cache
from typing import Literal

from .grading import mathruler
from .grading.judgement import MAX_LENGTH, same
from .grading.worker import GRADERS, Workers

Grader = Literal["math", "mathruler"]

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


def accuracy_reward(response: str, answer: str, grader: Grader = "math") -> float:
    """1.0 if the content of the response's last `\\boxed{...}` is the answer, else 0.0; without a box, 0.0.

    "math" grades as a person would: choice letters ("(A)", "A. 12"), words, numbers, units, percentages, lists,
    equations, and the rest as mathematics by math-verify and SymPy. A decimal equals an exact value to six digits: 3.14
    is not pi. The answer may itself be in dollars or a box. "mathruler" is the verdict of the library that graded the
    numbers published with PAPO: docs/grading.md compares the two.

    Whatever the text, it raises nothing and takes bounded time: a verdict that would take longer is 0.0. Safe in threads
    and after a fork.

    Raises ValueError for an unknown grader, RuntimeError if the grading process cannot be started at all.
    """
    _check(grader)
    return _verdict(grader, *_pair(response, answer, grader))


def accuracy_rewards(responses: Sequence[str], answers: Sequence[str], grader: Grader = "math") -> list[float]:
    """`accuracy_reward` of each response and its answer: equal pairs are decided once, and what takes mathematics is
    shared out to as many processes as there are cores.

    Raises as `accuracy_reward` does, and ValueError if there are not as many responses as answers.
    """
    _check(grader)
    pairs = [_pair(response, answer, grader) for response, answer in zip(responses, answers, strict=True)]
    distinct = list(dict.fromkeys(pairs))
    with ThreadPoolExecutor(len(_workers[grader].workers)) as threads:
        verdicts = dict(zip(distinct, threads.map(lambda pair: _verdict(grader, *pair), distinct), strict=True))
    return [verdicts[pair] for pair in pairs]


def combine(accuracy: float, format: float, format_weight: float = 0.1) -> float:
    """(1 - format_weight) * accuracy + format_weight * format; the paper's 0.9 and 0.1."""
    return (1 - format_weight) * accuracy + format_weight * format


def _check(grader: str) -> None:
    if grader not in GRADERS:
        raise ValueError(f"unknown grader {grader!r}: there are {' and '.join(map(repr, GRADERS))}")


def _pair(response: str, answer: str, grader: str) -> tuple[str, str]:
    """What the verdict depends on: (the part of the response that counts, the answer)."""
    if grader == "mathruler":
        return mathruler.boxed(response), answer
    return last_boxed(response) or "", last_boxed(answer) or answer  # an empty box is wrong as well


class _Unsure(Exception):
    """Text alone does not decide."""


def _needs_mathematics(answer: str, candidate: str, factor: Fraction, tolerance: Fraction) -> bool:
    raise _Unsure


def _verdict(grader: str, candidate: str, answer: str) -> float:
    if len(candidate) + len(answer) > 2 * MAX_LENGTH:  # nothing that the cache should hold
        return _verdict_once.__wrapped__(grader, candidate, answer)
    return _verdict_once(grader, candidate, answer)


@lru_cache(maxsize=16_384)
def _verdict_once(grader: str, candidate: str, answer: str) -> float:
    if grader == "math":
        try:
            return float(same(answer, candidate, _needs_mathematics))
        except _Unsure:
            pass
    elif len(candidate) > MAX_LENGTH:
        return float(candidate == rf"\boxed{{{answer}}}")
    return float(_workers[grader].grade(answer, candidate))


_workers = {grader: Workers(grader) for grader in GRADERS}
for _each in _workers.values():
    atexit.register(_each.close)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_each.forget)
