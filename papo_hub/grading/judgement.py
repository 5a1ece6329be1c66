"""Is this final answer the same as that one, to a reader?

`same` reads choice letters, words, lists, equations, units, percentages and numbers as a person would. That is plain
text work, and fast. What is left, expressions, it hands to a callback: `mathematics`, or one that declines.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from .effort import hopeless
from .quantities import ROUNDING, close, constant, in_full, is_unit, measure, number, unit_size
from .text import listed, nesting, normalise, split, squash, without_thousands

MAX_LENGTH = 2_000  # characters; nothing that long is a final answer
MAX_DEPTH = 40  # of nested brackets
MAX_ITEMS = 16  # of a list: matching two lists is quadratic

# (answer, candidate, factor, tolerance) → whether answer == factor * candidate, relatively to within the tolerance
Mathematics = Callable[[str, str, Fraction, Fraction], bool]

_LABEL = re.compile(r"[(\[]?\s*([A-Za-z])\s*[)\]]?")
_LABELLED = re.compile(
    r"(?:[(\[]\s*([A-Za-z])\s*[)\]]\s*[.:]?|([A-Za-z])\s*[.:)]|([A-Z])\s+(?=-?\d|\(|\\frac|\\sqrt))\s*(\S.*)", re.S
)
_ANOTHER = re.compile(r"(?:and|or|,|&|/)\s|[(\[]?[A-Z][)\]]?$|.*(?:^|[\s(,;])[A-J][).:](?:\s|$)", re.S)
_CALLED = re.compile(
    r"(?:point|figure|graph|line|set|group|statement|shape|pattern|image|picture|diagram|letter)\s+(?=\S+$)", re.I
)
_LETTERS = re.compile(r"[A-J](?:\s*(?:,|;|&|and)?\s*[A-J])+")
_WORDS = re.compile(r"[^\W\d_]+(?:[\s.'-]+[^\W\d_]+)*")
_FUNCTIONS = {"sin", "cos", "tan", "cot", "sec", "csc", "log", "exp", "sqrt", "arcsin", "arccos", "arctan"}


def _choice(text: str) -> tuple[str, str]:
    """(label, content) of "A", "(A)", "A. 12"; the label is "" where the text names no single choice."""
    text = _CALLED.sub("", text, count=1) if _CALLED.match(text) else text
    if match := _LABEL.fullmatch(text):
        return match[1], ""
    if (match := _LABELLED.fullmatch(text)) and not _ANOTHER.match(match[4]):
        return match[1] or match[2] or match[3], match[4]
    return "", text


def _same_letter(a: str, b: str) -> bool:
    return a == b or (a.upper() == b.upper() and a.upper() in "ABCDEFGHIJ")


def _bare_letters(text: str) -> str:
    """(A), (C) as A, C."""
    bare = re.sub(r"[(\[]([A-J])[)\]]", r"\1", text)
    return bare if _LETTERS.fullmatch(bare) else text


def _is_words(text: str) -> bool:
    if _WORDS.fullmatch(text) is None:
        return False
    words = _words(text)
    return (max(map(len, words)) >= 3 or words == ["no"]) and not _FUNCTIONS & set(words)


def _words(text: str) -> list[str]:
    words = re.findall(r"[^\W_]+", text.casefold())
    return [word for word in words if word not in ("a", "an", "the", "to", "on")] or words


def same(answer: str, candidate: str, mathematics: Mathematics) -> bool:
    """Whether `candidate` is the answer. What `mathematics` raises passes through."""
    if max(len(answer), len(candidate)) > MAX_LENGTH:
        return squash(answer) == squash(candidate) != ""
    answer, candidate = normalise(answer), normalise(candidate)
    if not answer or not candidate:
        return False
    if squash(answer) == squash(candidate):
        return True
    if max(nesting(answer), nesting(candidate)) > MAX_DEPTH:
        return False

    label, content = _choice(answer)
    given, given_content = _choice(candidate)
    if label and (label.isupper() or content):
        if given:
            return _same_letter(label, given)
        return bool(content) and same(content, given_content, mathematics)
    if label and given and _same_letter(label, given):
        return True
    if answer.lower() in ("yes", "no", "true", "false"):  # a reason may follow, the opposite may not
        first, *reason = re.findall(r"\w+", candidate.lower())[:50] or [""]
        comma = re.match(r"\w+\s*[,.;:]", candidate)
        return (
            first == answer.lower() and bool(comma or not reason) and not {"yes", "no", "true", "false"} & set(reason)
        )
    answer, candidate = (_bare_letters(text) for text in (answer, candidate))
    if _LETTERS.fullmatch(answer):
        ours, theirs = re.findall("[A-J]", answer), re.findall("[A-J]", candidate)
        unordered = len(ours) == 2 or ours == sorted(ours)  # a segment, or several choices; else an order was asked for
        same_letters = sorted(ours) == sorted(theirs) if unordered else ours == theirs
        return bool(_LETTERS.fullmatch(candidate)) and same_letters

    merged = [without_thousands(text) for text in (answer, candidate)]
    if _same_lists(*merged, mathematics):
        return True
    return merged != [answer, candidate] and _same_lists(answer, candidate, mathematics)  # 100,200 can be a list too


def _same_lists(answer: str, candidate: str, mathematics: Mathematics) -> bool:
    (kind, ours), (given, theirs) = listed(answer), listed(candidate)
    if not (1 <= len(ours) <= MAX_ITEMS and 1 <= len(theirs) <= MAX_ITEMS):
        return False
    if len(ours) != len(theirs):  # still the same may be: (x, y) = (1, 2) and (1, 2); 1 < x < 2 and (1, 2)
        if len(ours) == 1 and _is_named(answer):
            return _same_lists(_value(answer), candidate, mathematics)
        if len(theirs) == 1 and _is_named(candidate):
            return _same_lists(answer, _value(candidate), mathematics)
        if _INEQUALITY.search(candidate if len(ours) == 1 else answer) and None not in (
            intervals := [_interval(item) for item in (theirs if len(ours) == 1 else ours)]
        ):  # x < 1 or x > 2, and a union
            union = r"\cup ".join(interval for _, interval in intervals)
            one_variable = len({variable for variable, _ in intervals}) == 1
            return one_variable and _computed(answer if len(ours) == 1 else candidate, union, mathematics)
        relation = answer if len(ours) == 1 else candidate if len(theirs) == 1 else ""
        return bool(_INEQUALITY.search(relation)) and _computed(answer, candidate, mathematics)
    if len(ours) == 1:
        return _same_items(ours[0], theirs[0], mathematics)
    if kind != given and not ({kind, given} <= {"", "()"} or {kind, given} <= {"", "{}"}):
        return False
    if {kind, given} - {"", "{}"}:  # a point, a tuple, an interval: in order
        return all(_same_items(ours[i], theirs[i], mathematics) for i in range(len(ours)))
    for item in ours:
        match = next((i for i, other in enumerate(theirs) if _same_items(item, other, mathematics)), None)
        if match is None:
            return False
        del theirs[match]
    return True


def _same_items(answer: str, candidate: str, mathematics: Mathematics) -> bool:
    """One item each: words, an equation, a rounded value, or a plain value."""
    if squash(answer) == squash(candidate):
        return True
    if _is_words(answer):
        return _words(answer) == _words(candidate)
    if (
        (clocks := [_CLOCK.fullmatch(text) for text in (answer, candidate)])
        and all(clocks)
        and any(c[2] for c in clocks)
    ):
        hours, halves = {clock[1] for clock in clocks}, {clock[2].lower() for clock in clocks if clock[2]}
        return len(hours) == len(halves) == 1
    shapes = [_SHAPE.fullmatch(text) for text in (answer, candidate)]
    if all(shapes):  # an angle's vertex is in the middle; a triangle is that of its corners, a segment that of its ends
        kinds, (ours, theirs) = {shape[1] for shape in shapes} - {None}, (shape[2] for shape in shapes)
        if kinds:
            swapped = theirs == ours[::-1] or (kinds == {"triangle"} and sorted(theirs) == sorted(ours))
            return len(kinds) == 1 and (ours == theirs or swapped)
    intervals = _interval(answer), _interval(candidate)
    if None not in intervals:
        (our_variable, ours), (their_variable, theirs) = intervals
        return our_variable == their_variable and _same_lists(ours, theirs, mathematics)

    for text, other, swap in ((candidate, answer, False), (answer, candidate, True)):
        pieces = re.split(r"\\(?:approx|simeq|doteq)(?![A-Za-z])", text)
        if len(pieces) > 1:
            values = [_value(piece) for piece in pieces if piece.strip()]
            near = all(
                _same_values(values[i], values[i + 1], mathematics, Fraction(1, 20)) for i in range(len(values) - 1)
            )
            return near and any(
                _same_lists(value, other, mathematics) if swap else _same_lists(other, value, mathematics)
                for value in values
            )

    ours, theirs = _sides(answer), _sides(candidate)
    if len(ours) == len(theirs) == 1:
        return _same_values(answer, candidate, mathematics)
    named = _is_named(answer), _is_named(candidate)
    if all(named) and squash(ours[0]) == squash(theirs[0]):
        return _same_lists(ours[-1], theirs[-1], mathematics)
    if len(theirs) == 1:
        return named[0] and _same_lists(ours[-1], candidate, mathematics)
    if len(ours) == 1:
        values = theirs[1:] if named[1] else theirs  # in 2 + 3 = 5 every side must be right: 7 = 5 is no 5
        return all(_same_lists(answer, value, mathematics) for value in values)
    return _computed(answer, candidate, mathematics)


def _sides(text: str) -> list[str]:
    return split(re.sub(r"\\in(?![A-Za-z])", "=", text), "=")


def _value(text: str) -> str:
    return (_sides(text) or [""])[-1]


_CLOCK = re.compile(r"(\d{1,2}:[0-5]\d)\s*(?:([ap])\.?\s*m\.?)?", re.I)
_SHAPE = re.compile(r"(?:\\(triangle|angle|overline|widehat)\s*)?\{?([A-Z]{2,3})\}?")
_BOUND = r"([^<>=\\]*(?:\\(?:frac|sqrt|pi|infty)[^<>=\\]*)*)"
_LESS = r"\s*(<|\\le(?![A-Za-z]))\s*"
_BELOW, _BETWEEN = re.compile(rf"([a-z]){_LESS}{_BOUND}"), re.compile(rf"{_BOUND}{_LESS}([a-z]){_LESS}{_BOUND}")
_ABOVE = re.compile(rf"{_BOUND}{_LESS}([a-z])")


def _interval(text: str) -> tuple[str, str] | None:
    """("x", "(1,2]") of 1 < x \\le 2; None if it is no such statement."""
    if not _INEQUALITY.search(text):
        return None
    if re.search(r">|\\ge(?![A-Za-z])", text):  # 3 > x > 1 is 1 < x < 3
        pieces = re.split(r"(>|\\ge(?![A-Za-z]))", text)
        text = " ".join({">": "<", r"\ge": r"\le"}.get(piece, piece) for piece in reversed(pieces))
    text = text.strip()
    if match := _BELOW.fullmatch(text):
        return match[1], rf"(-\infty,{match[3]}" + (")" if match[2] == "<" else "]")
    if match := _ABOVE.fullmatch(text):
        return match[3], ("(" if match[2] == "<" else "[") + rf"{match[1]},\infty)"
    if match := _BETWEEN.fullmatch(text):
        return match[3], ("(" if match[2] == "<" else "[") + f"{match[1]},{match[5]}" + (
            ")" if match[4] == "<" else "]"
        )
    return None


_INEQUALITY = re.compile(r"[<>]|\\[lg][et](?![A-Za-z])")


def _is_named(text: str) -> bool:
    """Whether it begins with `name =`, where a name is no part of the answer: x, x_1, f(x), \\angle ABC, S_{ABC}."""
    sides = _sides(text)
    name = re.sub(r"_\{[^{}]*\}|_\w|\\angle\s*\d+", "", sides[0]) if len(sides) > 1 else ""
    return bool(name) and re.fullmatch(r"[A-Za-z\\|\s{}'(),]*", name) is not None


def _same_values(answer: str, candidate: str, mathematics: Mathematics, tolerance: Fraction = Fraction(0)) -> bool:
    """Two values with or without units. A unit that only one side gives is no difference."""
    if (unfolded := [in_full(text) for text in (answer, candidate)]) != [answer, candidate]:
        if _same_values(*unfolded, mathematics, tolerance):
            return True
        if answer != unfolded[0] and candidate != unfolded[1]:  # else "How many million?" may have been asked
            return False
    (ours, our_unit), (theirs, their_unit) = measure(answer), measure(candidate)
    factor = Fraction(1)
    if (our_unit == "%") != (their_unit == "%"):
        hundredth = Fraction(1, 100) if their_unit == "%" else Fraction(100)
        if _equal(ours, theirs, hundredth, mathematics, tolerance):
            return True
        amount = number(ours)  # the question may have asked for per cent; below 1 it rather asked for a share
        return amount is not None and abs(amount) >= 1 and _equal(ours, theirs, factor, mathematics, tolerance)
    if our_unit == "°" != their_unit and r"\pi" in theirs:
        theirs = rf"({theirs})\cdot\frac{{180}}{{\pi}}"
    elif their_unit == "°" != our_unit and r"\pi" in ours:
        ours = rf"({ours})\cdot\frac{{180}}{{\pi}}"
    elif our_unit and their_unit and squash(our_unit) != squash(their_unit):
        our_size, their_size = unit_size(our_unit), unit_size(their_unit)
        if our_size and their_size:
            if our_size[0] != their_size[0]:
                return False
            factor = their_size[1] / our_size[1]
        elif is_unit(our_unit) and is_unit(their_unit):
            return False  # m/s is not km/h; words such as "apples" and "pieces" count nothing
    return _equal(ours, theirs, factor, mathematics, tolerance)


def _equal(answer: str, candidate: str, factor: Fraction, mathematics: Mathematics, tolerance: Fraction) -> bool:
    exact = "." not in answer + candidate
    ours, theirs = number(answer), number(candidate)
    if ours is not None and theirs is not None:
        return close(ours, factor * theirs, exact, tolerance)
    ours = constant(answer) if ours is None else ours
    theirs = constant(candidate) if theirs is None else theirs
    if ours is not None and theirs is not None:
        return close(ours, factor * theirs, exact, tolerance, ROUNDING)
    if _is_words(candidate) or any(re.fullmatch(r"[\d. ]*\d \d[\d. ]*", text) for text in (answer, candidate)):
        return False
    ours, theirs = answer.split(":"), candidate.split(":")
    if len(ours) > 2 or len(theirs) > 2:  # a:b:c: proportional, by the first part
        return len(ours) == len(theirs) and all(
            _equal(f"({a})/({ours[0]})", f"({c})/({theirs[0]})", factor, mathematics, tolerance)
            for a, c in zip(ours[1:], theirs[1:], strict=True)
        )
    return _computed(answer, candidate, mathematics, factor, tolerance)


def _computed(
    answer: str,
    candidate: str,
    mathematics: Mathematics,
    factor: Fraction = Fraction(1),
    tolerance: Fraction = Fraction(0),
) -> bool:
    return not (hopeless(answer) or hopeless(candidate)) and mathematics(answer, candidate, factor, tolerance)
