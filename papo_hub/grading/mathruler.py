"""The verdict of MathRuler, the library that graded the numbers published with PAPO.

It evaluates what a model wrote and has no limits of time: only the worker imports this file.
"""

from __future__ import annotations

import re
from collections.abc import Callable


def boxed(response: str) -> str:
    """From the last `\\boxed{` to the brace that closes it, "" where none does: all of a response that the library's
    verdict depends on, found in linear time. Escaped braces count as braces, as there."""
    start, depth = response.rfind(r"\boxed{"), 0
    for match in re.compile("[{}]").finditer(response, start) if start >= 0 else ():
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return response[start : match.end()]
    return ""


def load() -> Callable[[str, str], bool]:
    """(answer, response) → the verdict of the official reward function, which first drops the white space around
    `<`, `>` and `/`."""
    from mathruler.grader import extract_boxed_content, grade_answer

    def grade(answer: str, response: str) -> bool:
        return grade_answer(extract_boxed_content(re.sub(r"\s*([<>/])\s*", r"\1", response)), answer)

    for answer, candidate in [
        ("x+1", "1+x"),
        (r"\frac{1}{x}", "1/x"),
        (r"2\sqrt{3}", r"\sqrt{12}"),
        ("(1,x)", "(1,y)"),
    ]:
        grade(answer, rf"\boxed{{{candidate}}}")
    return grade
