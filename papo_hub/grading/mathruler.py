"""The verdict of MathRuler, the library that graded the numbers published with PAPO.

It evaluates what a model wrote, as Python, and has no limits of time: only the worker imports this file, and what is no
mathematics is refused before it is evaluated.
"""

from __future__ import annotations

import re
import token
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any


def boxed(response: str) -> str:
    """From the last `\\boxed{` to the brace that closes it, "" where none does: all of a response that the library's
    verdict depends on, found in linear time. Escaped braces count as braces, as there."""
    start, depth = response.rfind(r"\boxed{"), 0
    for match in re.compile("[{}]").finditer(response, start) if start >= 0 else ():
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return response[start : match.end()]
    return ""


def _mathematics_alone(tokens: list[tuple[int, str]], names: dict, builtins: dict) -> list[tuple[int, str]]:
    """A transformation for SymPy's parser. Raises ValueError for a string, which SymPy's functions evaluate as Python
    once more, with every builtin; for an attribute, which leads from any object to the interpreter; and for names that
    begin with two underscores. The library allows two letters in an expression, but strings need none: "\\157"."""
    for kind, text in tokens:
        if "STRING" in token.tok_name[kind] or text == "." or text.startswith("__"):
            raise ValueError("no mathematics")
    return tokens


def load() -> Callable[[str, str], bool]:
    """(answer, response) → the verdict of the official reward function, which first drops the white space around
    `<`, `>` and `/`. What is no mathematics (strings, attributes) is a wrong answer, whatever it evaluates to."""
    from mathruler import grader
    from mathruler.grader import extract_boxed_content, grade_answer
    from sympy.parsing import sympy_parser

    def parse_expr(expression: str, transformations: tuple) -> Any:
        return sympy_parser.parse_expr(expression, transformations=(_mathematics_alone, *transformations))

    grader.sympy_parser = SimpleNamespace(**vars(sympy_parser) | {"parse_expr": parse_expr})

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
