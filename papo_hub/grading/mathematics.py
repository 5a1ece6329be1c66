"""Equality of two expressions by math-verify and SymPy.

Both can be made to run forever or to eat all memory, and take a second to import: only the worker imports this file.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache, partial

import sympy
from math_verify import LatexExtractionConfig, LatexNormalizationConfig, parse, verify

from .judgement import same
from .quantities import ROUNDING, TRIGONOMETRY, close


@lru_cache(maxsize=1024)
def _parsed(text: str):
    """SymPy's object for an expression in LaTeX or plain writing; None where it is neither."""
    text = re.sub(r"(?<![\\A-Za-z])(sqrt|sin|cos|tan|cot|sec|csc|log|ln|exp|pi)(?![A-Za-z])", r"\\\1 ", text)
    text = re.sub(r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text).replace("*", r"\cdot ")
    if TRIGONOMETRY.search(text):
        text = re.sub(r"(\d+(?:\.\d+)?)\s*°", r"(\1\\cdot\\frac{\\pi}{180})", text)
    text = text.replace("°", "")  # else every angle of the expression is in degrees
    spelling = LatexNormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all", equations=False
    )
    # The signal-based limits of math-verify are off: they cannot interrupt the long computations, and the kernel can.
    parsed = parse(
        rf"\boxed{{{text}}}",
        [LatexExtractionConfig(boxed_match_priority=0, normalization_config=spelling)],
        fallback_mode="no_fallback",
        parsing_timeout=None,
    )
    return parsed[0] if parsed else None


def mathematics(answer: str, candidate: str, factor: Fraction, tolerance: Fraction) -> bool:
    """Equality of two expressions: matrices by element; expressions by value, at sample points where they have
    variables; equations, inequalities, intervals and sets by math-verify."""
    ours, theirs = _parsed(answer), _parsed(candidate)
    if ours is None or theirs is None:
        return False
    exact = "." not in answer + candidate
    if isinstance(ours, sympy.MatrixBase) and isinstance(theirs, sympy.MatrixBase):
        return ours.shape == theirs.shape and all(
            _same_expressions(a, c, factor, exact, tolerance) for a, c in zip(ours, theirs, strict=True)
        )
    if isinstance(ours, sympy.Expr) and isinstance(theirs, sympy.Expr):
        return _same_expressions(ours, theirs, factor, exact, tolerance)
    return factor == 1 and verify(ours, theirs, allow_set_relation_comp=True, timeout_seconds=None)


def _same_expressions(ours, theirs, factor: Fraction, exact: bool, tolerance: Fraction) -> bool:
    """By value to 30 digits; math-verify's fixed number of places would make 10^-19 and 10^-20 equal. With variables,
    at points of mixed signs: the values must agree wherever both are real."""
    theirs = theirs * sympy.Rational(factor.numerator, factor.denominator)
    symbols = sorted(ours.free_symbols | theirs.free_symbols, key=str)
    points = [
        {symbol: sympy.Rational(sign ** (i + shift) * (37 + 11 * i), 29 + shift) for i, symbol in enumerate(symbols)}
        for shift, sign in enumerate((1, -1, -1))
    ]
    real_pairs, other_pairs = [], []
    for point in points if symbols else [{}]:
        a, c = (sympy.N(expression.subs(point).doit(), 30) for expression in (ours, theirs))
        if not (a.is_number and c.is_number) or any(value.has(sympy.nan, sympy.zoo, sympy.oo) for value in (a, c)):
            continue
        (real_pairs if a.is_real and c.is_real else other_pairs).append((a, c))
    pairs = real_pairs or other_pairs
    return bool(pairs) and all(close(a, c, exact, tolerance, rounding=ROUNDING) for a, c in pairs)


def load() -> Callable[[str, str], bool]:
    """(answer, candidate) → the verdict, with everything imported that SymPy imports when it first meets it."""
    grade = partial(same, mathematics=mathematics)
    for answer, candidate in [
        ("2x", "x+x"),
        (r"\sqrt{x^2+1}", r"\sqrt{1+x^2}"),
        ("y=2x+1", "2x-y+1=0"),
        (r"\log_2 30", r"\log_2 31"),
        (r"\sin 15^\circ", r"\cos 7"),
        ("x>3", r"(3,\infty)"),
        (r"(-\infty,1)\cup(2,\infty)", r"x<1 \text{ or } x>2"),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&2\\3&5\end{pmatrix}"),
    ]:
        grade(answer, candidate)
    return grade
