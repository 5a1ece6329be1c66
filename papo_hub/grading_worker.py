"""Is this final answer the same as that one? The judgement, and the process that makes its expensive half safe.

`same` reads two answers as a person would: choice letters, words, lists, equations, units, percentages, numbers. That
part is plain text work. What is left, expressions, it hands to a callback. In the process started from this file the
callback is `mathematics`, on top of math-verify and SymPy, which can be made to run forever or to eat all memory;
`papo_hub.rewards` starts that process, sends it one JSON line a verdict and replaces it when it dies.

The file imports the standard library alone at its top and is run by its path, so that a worker starts within a second.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import unicodedata
from collections.abc import Callable
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from functools import lru_cache

MEMORY_BYTES = 2 << 30
MAX_LENGTH = 2_000  # characters; nothing that long is a final answer
MAX_DEPTH = 40  # of nested brackets
MAX_ITEMS = 16  # of a list: matching two lists is quadratic

# (answer, candidate, factor, tolerance) → whether answer == factor * candidate, relatively to within the tolerance
Mathematics = Callable[[str, str, Fraction, Fraction], bool]

_ROUNDING = Fraction(1, 10**25)  # what 30 digits may be off by

# ---------------------------------------------------------------------------------------------------------------------
# Spelling

_SYMBOLS = str.maketrans(
    {
        "−": "-", "–": "-", "—": "-", "×": r"\times ", "÷": "/", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ",
        "∗": "*", "⁄": "/", "∕": "/", "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ",
        "≈": r"\approx ", "±": r"\pm ", "∓": r"\mp ", "∪": r"\cup ", "∩": r"\cap ", "∅": r"\emptyset ",
        "∈": r"\in ", "∠": r"\angle ", "△": r"\triangle ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ",
        "γ": r"\gamma ", "λ": r"\lambda ", "º": "°", "˚": "°", "∘": "°", "，": ",", "；": ";", "：": ":", "（": "(",
        "）": ")", "。": ".", "“": '"', "”": '"', "‘": "'", "’": "'", "∶": ":",
    }
)  # fmt: skip
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_STYLE = (
    r"(?:text(?:bf|it|rm|sf|tt|normal|up)?|math(?:rm|bf|it|sf|cal|tt)"
    r"|mbox|hbox|operatorname|boldsymbol|bm|emph|underline)"
)

_REWRITES = [  # in this order; the first one keeps the others, which look past white space, from quadratic time
    (r"\s+", lambda m: " "),
    (r"\\(?:displaystyle|textstyle|limits|nolimits|left|right|[bB]igg?[lr]?)(?![A-Za-z])\.?", lambda m: ""),
    (r"\\[dtc]frac(?![A-Za-z])", lambda m: r"\frac"),
    (r"\\\$|\$|(?<!\\)\\[()\[\]]", lambda m: " "),
    (r"[€£¥₩₹]|\\(?:pounds|euro)(?![A-Za-z])", lambda m: " "),
    (r"\{,\}|\\,(?=\d{3}(?!\d))", lambda m: ","),
    (r"(?<!\\)\\[,;:! ]|~|\\q?quad(?![A-Za-z])", lambda m: " "),
    (rf"\\{_STYLE}\s*\*?\s*\{{([^{{}}]*)\}}", lambda m: f" {m[1]} "),
    (rf"\\{_STYLE}\s*\*?\s*\{{([^{{}}]*)\}}", lambda m: f" {m[1]} "),  # once more for a style within a style
    (r"\{\s*\\(?:rm|bf|it|sf)\s+([^{}]*)\}", lambda m: f" {m[1]} "),
    (r"\^?\s*\{?\s*\\(?:circ|degree|degrees|textdegree)(?![A-Za-z])\s*\}?|\^\s*\{?°\}?", lambda m: "°"),
    (r"\\([%&#])", lambda m: m[1]),
    (r"\\(leq|geq|neq|leqslant|geqslant)(?![A-Za-z])", lambda m: "\\" + m[1][:2]),
    (r"<=|>=|!=", lambda m: {"<=": r"\le ", ">=": r"\ge ", "!=": r"\ne "}[m[0]]),
    (r"\\(?:cfrac|frac)\s*(\d)\s*(\d)(?!\d)", lambda m: rf"\frac{{{m[1]}}}{{{m[2]}}}"),
    (r"(\d{0,40})\.(\d{0,40})\\(?:overline|bar|dot)\s*\{?(\d{1,40})\}?", lambda m: _repeating(*m.groups())),
    (r"([\^_])\s*\{\s*(\w)\s*\}", lambda m: m[1] + m[2]),
    (r"\^\s*(-?\d{2,})", lambda m: f"^{{{m[1]}}}"),  # x^10 in plain writing; TeX would read x^1 times 0
    (r"\*\*(?=\s*[\d({a-z-])(?<=[\w)}]\*\*)", lambda m: "^"),
    (r"\\varnothing(?![A-Za-z])|\\\{\s*\\\}", lambda m: r"\emptyset"),
    (r"^\s*\\\{\s*[a-z]\s*(?:\||\\mid\b|:)(.*)\\\}\s*$", lambda m: m[1]),  # {x | x > 3} states what x > 3 does
    (r"\s*/\s*", lambda m: "/"),
    (r"\s+", lambda m: " "),
]
_REWRITES = [(re.compile(pattern), change) for pattern, change in _REWRITES]
_PHRASE = re.compile(
    r"(?:(?:so|thus|therefore|hence),?\s+)?(?:the\s+)?(?:(?:final|correct|right|best)\s+)?(?:answer|option|choice)\b\s*(?:is\b|=|:)?\s*(?=\S)",
    re.I,
)
_NUMBER_WORDS = {
    "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8",
    "nine": "9", "ten": "10", "eleven": "11", "twelve": "12", "infinity": r"\infty", "pi": r"\pi",
}  # fmt: skip


def _repeating(whole: str, fixed: str, period: str) -> str:
    """0.1(6) → (16 - 1) / 90."""
    digits = len(period)
    denominator = (10**digits - 1) * 10 ** len(fixed)
    numerator = int(whole + fixed + period) - int((whole + fixed) or "0")
    return rf"\frac{{{numerator}}}{{{denominator}}}"


@lru_cache(maxsize=4096)
def normalise(text: str) -> str:
    """One spelling for what means the same to a reader: no styles, spaces, dollars, or closing stops."""
    if r"\begin" not in text:  # where a double backslash would end a row
        text = re.sub(r"\\\\+(?=[A-Za-z])", r"\\", text)  # commands escaped once too often
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+", lambda m: f"^{{{m[0].translate(_SUPERSCRIPTS)}}}", text)
    text = re.sub(r"[¼-¾⅐-⅞]", lambda m: " " + unicodedata.normalize("NFKC", m[0]), text).translate(_SYMBOLS)
    text = unicodedata.normalize("NFKC", text).translate(_SYMBOLS)
    text = re.sub(r"√\s*(\d+(?:\.\d+)?|[A-Za-z]|(?=[({]))", lambda m: rf"\sqrt{{{m[1]}}}" if m[1] else "sqrt", text)
    for pattern, change in _REWRITES:
        text = pattern.sub(change, text)
    text = text.strip().strip('`"').strip()
    if len(text) > 4 and text.startswith("**") and text.endswith("**"):
        text = text[2:-2]
    text = _PHRASE.sub("", text, count=1) if _PHRASE.match(text) else text
    text = re.sub(r"[\s.,;:]+$", "", text).strip()
    while text.startswith("{") and _closes(text) == len(text) - 1:
        text = text[1:-1].strip()
    return _NUMBER_WORDS.get(text.lower(), text)


def squash(text: str) -> str:
    """Without white space, but for that between digits: 1 6 is not 16."""
    return re.sub(r"\s+(?!\d)|(?<!\d)\s+", "", text)


# ---------------------------------------------------------------------------------------------------------------------
# Brackets and lists


def _tokens(text: str):
    """(position, token): single characters, but `\\{`, `\\}` and other escaped characters are one token."""
    position = 0
    while position < len(text):
        length = 2 if text[position] == "\\" and position + 1 < len(text) else 1
        yield position, text[position : position + length]
        position += length


_OPEN, _CLOSE = {"(", "[", "{", r"\{"}, {")", "]", "}", r"\}"}


def _closes(text: str) -> int:
    """The position of the bracket that closes the one at the start; -1 if there is none."""
    depth = 0
    for position, token in _tokens(text):
        depth += (token in _OPEN) - (token in _CLOSE)
        if depth == 0:
            return position
    return -1


def _depth(text: str) -> int:
    depth = deepest = 0
    for _, token in _tokens(text):
        depth += (token in _OPEN) - (token in _CLOSE)
        deepest = max(deepest, depth)
    return deepest


def _split(text: str, separators: str) -> list[str]:
    """Cut at separators outside of all brackets; empty pieces are dropped."""
    pieces, depth, start = [], 0, 0
    for position, token in _tokens(text):
        depth += (token in _OPEN) - (token in _CLOSE)
        if depth == 0 and token in separators:
            pieces.append(text[start:position])
            start = position + 1
    pieces.append(text[start:])
    return [piece.strip() for piece in pieces if piece.strip()]


_THOUSANDS = re.compile(
    r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])|(?<![\d.] )(?<![\d.])[1-9]\d{0,2}(?: \d{3})+(?![\d ])"
)


def _listed(text: str) -> tuple[str, list[str]]:
    """("()" | "[)" | … | "{}" for a set | "" for a bare enumeration, its items); a single item is bare."""
    kind, text = "", re.sub(r"^[A-Z](?=\(.*,.*\)$)", "", text)  # A(1, 2) is the point (1, 2)
    opener = next((bracket for bracket in (r"\{", "(", "[") if text.startswith(bracket)), None)
    closer = {r"\{": r"\}"}.get(opener, text[-1:])
    if opener and _closes(text) == (end := len(text) - len(closer)):
        inner = text[len(opener) : end].strip()
        if len(_split(inner, ",;")) > 1 or opener == r"\{":
            kind, text = (opener + closer).replace("\\", ""), inner
    if kind in ("", "{}"):
        text = re.sub(r"\s+(?:or|and)\s+|\\(?:lor|vee)(?![A-Za-z])", " , ", text)
    items = []
    for item in _split(text, ",;"):
        if r"\pm" in item and kind in ("", "{}"):
            items += [item.replace(r"\pm", "+").replace(r"\mp", "-"), item.replace(r"\pm", "-").replace(r"\mp", "+")]
        else:
            items.append(item)
    return kind, items


# ---------------------------------------------------------------------------------------------------------------------
# Numbers and units

_DECIMAL = r"(?:\d+(?:\.\d*)?|\.\d+)"
_NUMBER = re.compile(
    rf"(?P<sign>[+-]?)\s*(?:(?P<decimal>{_DECIMAL})(?:[eE](?P<e>[+-]?\d{{1,3}}))?"
    rf"(?:\s*(?:\\times|\\cdot|\*|x)\s*10\^\{{?(?P<ten>[+-]?\d{{1,3}})\}}?)?"
    r"|(?:(?P<whole>\d+)\s+(?=\d)|(?P<mixed>\d*)\s*(?=\\))?"
    r"(?:(?P<p>\d+)/(?P<q>\d+)|\\frac\s*\{\s*(?P<n>-?\d+)\s*\}\s*\{\s*(?P<d>\d+)\s*\}))"
)


def number(text: str) -> Fraction | None:
    """A number written in digits (42, -3.5, 1/2, 1 1/2, 2\\frac{1}{2}, 1.6e-19, 3 \\times 10^8), exactly; else None."""
    match = _NUMBER.fullmatch(text.strip())
    if match is None or len(text) > 300:
        return None
    if match["decimal"]:
        value = Fraction(match["decimal"]) * Fraction(10) ** (int(match["e"] or 0) + int(match["ten"] or 0))
    else:
        below = int(match["q"] or match["d"])
        if below == 0:
            return None
        above, whole = int(match["p"] or match["n"]), match["whole"] or match["mixed"]
        if whole and above < 0:
            return None
        value = int(whole or 0) + Fraction(above, below)
    return -value if match["sign"] == "-" else value


_TOKEN = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+|\\(?:frac|sqrt|pi|cdot|times)(?![A-Za-z])|[-+*/^(){}])")
_PI = Decimal("3.14159265358979323846264338327950288419716939937510582097")
_DIGITS = 50


class _Constant:
    """Reads sums, products, quotients, powers and roots of numbers and pi. What else there is, raises ValueError."""

    def __init__(self, text: str) -> None:
        self.tokens, position = [], 0
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise ValueError(text)
            self.tokens.append(match[1])
            position = match.end()
        self.tokens.append("")

    def take(self, *expected: str) -> str:
        """The next token, which is removed if it is one of those expected; "" if it is not."""
        return self.tokens.pop(0) if self.tokens[0] in expected and len(self.tokens) > 1 else ""

    def sum(self) -> Decimal:
        value = -self.product() if self.take("-") else self.product()
        while sign := self.take("+", "-"):
            value += self.product() if sign == "+" else -self.product()
        return value

    def product(self) -> Decimal:
        value, divided = self.power(), False
        while self.tokens[0] not in ("", "+", "-", ")", "}"):
            if self.take("/"):
                value, divided = value / self.power(), True
            elif self.take("*", r"\cdot", r"\times"):
                value *= self.power()
            elif divided or self.tokens[0][0] in ".0123456789" or self.tokens[0] == r"\frac":
                raise ValueError("1/2x, 2 3 and mixed numbers are for a better reader")
            else:
                value *= self.power()
        return value

    def power(self) -> Decimal:
        value = self.atom()
        if self.take("^"):
            exponent = self.group() if self.tokens[0] == "{" else self.atom()
            if exponent != int(exponent) or abs(exponent) > 64:
                raise ValueError("an exponent that may not be cheap or exact")
            value **= int(exponent)
        return value

    def atom(self) -> Decimal:
        if self.take("("):
            return self.closed(")")
        if self.take(r"\pi"):
            return +_PI
        if self.take(r"\sqrt"):
            return self.group().sqrt()
        if self.take(r"\frac"):
            return self.group() / self.group()
        if self.tokens[0][:1] in tuple(".0123456789"):
            return Decimal(self.tokens.pop(0))
        raise ValueError(self.tokens[0])

    def group(self) -> Decimal:
        if not self.take("{"):
            raise ValueError(self.tokens[0])
        return self.closed("}")

    def closed(self, bracket: str) -> Decimal:
        value = self.sum()
        if not self.take(bracket):
            raise ValueError(bracket)
        return value


def constant(text: str) -> Fraction | None:
    """The value of \\frac{3\\sqrt{2}}{4} + 2\\pi and the like to 50 digits; None if it is anything else, or within
    1e-20 of zero, where cancelled digits could be all there is. A hundred times faster than computer algebra."""
    try:
        with localcontext(Context(prec=_DIGITS)):
            reader = _Constant(text)
            value = reader.sum()
    except (ValueError, ArithmeticError, IndexError):
        return None
    return Fraction(value) if reader.tokens == [""] and abs(value) > Decimal("1e-20") else None


def close(a, b, exact: bool, tolerance: Fraction = Fraction(0), rounding: Fraction = Fraction(0)) -> bool:
    """Equal up to a relative error: `tolerance`, or `rounding`, that of the arithmetic itself. Unless both are `exact`,
    six decimal places and six digits are enough: 0.333333 is 1/3, but 0.33 is not, nor is 3.14 pi."""
    difference, size = abs(a - b), max(abs(a), abs(b))
    if difference <= max(tolerance, rounding) * size or difference <= rounding * rounding:
        return True
    return not exact and difference <= Fraction(5, 10**7) and difference <= Fraction(2, 10**6) * size


def _unit_table() -> dict[str, tuple[tuple[str, int], Fraction]]:
    """unit → ((dimension, power), its size in the dimension's first unit)."""
    rows = """
        L 1 1000    m meter meters metre metres
        L 1 10      cm centimeter centimeters centimetre centimetres
        L 1 1       mm millimeter millimeters millimetre millimetres
        L 1 100     dm decimeter decimeters decimetre decimetres
        L 1 1000000 km kilometer kilometers kilometre kilometres
        L 1 127/5   in inch inches
        L 1 1524/5  ft foot feet
        L 1 4572/5  yd yard yards
        L 1 1609344 mi mile miles
        L 3 1000000 L l liter liters litre litres
        L 3 1000    mL ml milliliter milliliters millilitre millilitres
        T 1 1       s sec second seconds
        T 1 60      min mins minute minutes
        T 1 3600    h hr hrs hour hours
        T 1 86400   day days
        M 1 1       g gram grams
        M 1 1000    kg kilogram kilograms
        M 1 1/1000  mg milligram milligrams
        M 1 1000000 t ton tons tonne tonnes
        A 1 1       ° deg degree degrees
        C 1 1       dollar dollars USD usd
        C 1 1/100   cent cents
        ? 1 1       N J W V A K Pa Hz kPa kJ kW kWh mol rad radian radians °C °F ℃ Ω ohm ohms
        ? 1 1       unit units sq square cubic per
    """
    table = {}
    for row in rows.strip().splitlines():
        dimension, power, size, *names = row.split()
        table |= {name: ((dimension, int(power)), Fraction(size)) for name in names}
    return table


_UNITS = _unit_table()
_UNIT_NAMES = "|".join(sorted(map(re.escape, _UNITS), key=len, reverse=True))
_UNIT = re.compile(
    rf"(?P<value>.*[\d)}}%]|.*\\pi)(?P<unit>(?P<gap>\s*)(?:{_UNIT_NAMES})(?:\s*\^\s*\{{?-?\d\}}?)?"
    rf"(?:(?:\s*(?:/|\\cdot|\*|-)\s*|\s+)(?:{_UNIT_NAMES})(?:\s*\^\s*\{{?-?\d\}}?)?){{0,3}})\s*"
)
_WORD_UNIT = re.compile(r"(?P<value>[-+]?[\d.,/ ]*\d)\s*(?P<unit>[^\W\d_]{3,}(?: [^\W\d_]+){0,2}|[^\W\d_a-zA-Z]{1,6})")
_TRIGONOMETRY = re.compile(r"\\?(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_NO_UNITS = {
    "or",
    "and",
    "not",
    "to",
    "than",
    "more",
    "less",
    "sin",
    "cos",
    "tan",
    "log",
    "sqrt",
    "least",
    "most",
    "about",
    "pi",
    "out",
    "of",
    "if",
}


def _measure(text: str) -> tuple[str, str]:
    """(value, unit); the unit is "" where there is none."""
    if text.endswith("%") or re.search(r"\d\s*(?:percent|pct)$", text, re.I):
        return re.sub(r"\s*(?:%|percent|pct)$", "", text, flags=re.I), "%"
    if (match := _UNIT.fullmatch(text)) and not _TRIGONOMETRY.search(text):
        unit = match["unit"].strip()
        if match["gap"] or len(unit) > 1 or unit == "°":  # 3m may be three times m; 3 m is not
            return match["value"].strip(), unit
    if (match := _WORD_UNIT.fullmatch(text)) and not _NO_UNITS & set(match["unit"].lower().split()):
        return match["value"].strip(), match["unit"]
    return text, ""


def _unit(text: str) -> tuple[tuple[str, int], Fraction] | None:
    """The dimension and size of a single unit, squared and cubed ones included; None if unknown or compound."""
    match = re.fullmatch(r"(?:(sq|square|cubic) )?(\S+?)(?:\s*\^\s*\{?([23])\}?)?", text)
    (dimension, power), size = _UNITS.get(match[2], (("?", 1), Fraction(1))) if match else (("?", 1), Fraction(1))
    if dimension == "?":
        return None
    times = {"sq": 2, "square": 2, "cubic": 3}.get(match[1], int(match[3] or 1))
    return (dimension, power * times), size**times


# ---------------------------------------------------------------------------------------------------------------------
# Words and choices

_LABEL = re.compile(r"[(\[]?\s*([A-Za-z])\s*[)\]]?")
_LABELLED = re.compile(
    r"(?:[(\[]\s*([A-Za-z])\s*[)\]]\s*[.:]?|([A-Za-z])\s*[.:)]|([A-Z])\s+(?=-?\d|\\frac|\\sqrt))\s*(\S.*)", re.S
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


def _is_words(text: str) -> bool:
    if _WORDS.fullmatch(text) is None:
        return False
    words = _words(text)
    return (max(map(len, words)) >= 3 or words == ["no"]) and not _FUNCTIONS & set(words)


def _words(text: str) -> list[str]:
    words = re.findall(r"[^\W_]+", text.casefold())
    return [word for word in words if word not in ("a", "an", "the")] or words


# ---------------------------------------------------------------------------------------------------------------------
# The judgement


def same(answer: str, candidate: str, mathematics: Mathematics) -> bool:
    """Whether `candidate` is the answer. What `mathematics` raises passes through."""
    if max(len(answer), len(candidate)) > MAX_LENGTH:
        return squash(answer) == squash(candidate) != ""
    answer, candidate = normalise(answer), normalise(candidate)
    if not answer or not candidate:
        return False
    if squash(answer) == squash(candidate):
        return True
    if max(_depth(answer), _depth(candidate)) > MAX_DEPTH:
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
    if _LETTERS.fullmatch(answer):
        ours, theirs = re.findall("[A-J]", answer), re.findall("[A-J]", candidate)
        unordered = len(ours) == 2 or ours == sorted(ours)  # a segment, or several choices; else an order was asked for
        same_letters = sorted(ours) == sorted(theirs) if unordered else ours == theirs
        return bool(_LETTERS.fullmatch(candidate)) and same_letters

    merged = [_THOUSANDS.sub(lambda m: re.sub("[, ]", "", m[0]), text) for text in (answer, candidate)]
    if _same_lists(*merged, mathematics):
        return True
    return merged != [answer, candidate] and _same_lists(answer, candidate, mathematics)  # 100,200 can be a list too


def _same_lists(answer: str, candidate: str, mathematics: Mathematics) -> bool:
    (kind, ours), (given, theirs) = _listed(answer), _listed(candidate)
    if not (1 <= len(ours) <= MAX_ITEMS and 1 <= len(theirs) <= MAX_ITEMS):
        return False
    if len(ours) != len(theirs):  # still the same may be: (x, y) = (1, 2) and (1, 2); 1 < x < 2 and (1, 2)
        if len(ours) == 1 and _is_named(answer):
            return _same_lists(_value(answer), candidate, mathematics)
        if len(theirs) == 1 and _is_named(candidate):
            return _same_lists(answer, _value(candidate), mathematics)
        relation = answer if len(ours) == 1 else candidate if len(theirs) == 1 else ""
        return bool(_INEQUALITY.search(relation)) and mathematics(answer, candidate, Fraction(1), Fraction(0))
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
    return mathematics(answer, candidate, Fraction(1), Fraction(0))


def _sides(text: str) -> list[str]:
    return _split(re.sub(r"\\in(?![A-Za-z])", "=", text), "=")


def _value(text: str) -> str:
    return (_sides(text) or [""])[-1]


_INEQUALITY = re.compile(r"[<>]|\\[lg][et](?![A-Za-z])")


def _is_named(text: str) -> bool:
    """Whether it begins with `name =`, where a name is no part of the answer: x, x_1, f(x), \\angle ABC, S_{ABC}."""
    sides = _sides(text)
    name = re.sub(r"_\{[^{}]*\}|_\w|\\angle\s*\d+", "", sides[0]) if len(sides) > 1 else ""
    return bool(name) and re.fullmatch(r"[A-Za-z\\|\s{}'(),]*", name) is not None


def _same_values(answer: str, candidate: str, mathematics: Mathematics, tolerance: Fraction = Fraction(0)) -> bool:
    """Two values with or without units. A unit that only one side gives is no difference."""
    (ours, our_unit), (theirs, their_unit) = _measure(answer), _measure(candidate)
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
        our_size, their_size = _unit(our_unit), _unit(their_unit)
        if our_size and their_size:
            if our_size[0] != their_size[0]:
                return False
            factor = their_size[1] / our_size[1]
        elif _UNIT.fullmatch(f"1 {our_unit}") and _UNIT.fullmatch(f"1 {their_unit}"):
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
        return close(ours, factor * theirs, exact, tolerance, _ROUNDING)
    if _is_words(candidate) or any(re.fullmatch(r"[\d. ]*\d \d[\d. ]*", text) for text in (answer, candidate)):
        return False
    ours, theirs = answer.split(":"), candidate.split(":")
    if len(ours) > 2 or len(theirs) > 2:  # a:b:c: proportional, by the first part
        return len(ours) == len(theirs) and all(
            _equal(f"({a})/({ours[0]})", f"({c})/({theirs[0]})", factor, mathematics, tolerance)
            for a, c in zip(ours[1:], theirs[1:], strict=True)
        )
    return mathematics(answer, candidate, factor, tolerance)


# ---------------------------------------------------------------------------------------------------------------------
# Mathematics: from here on only in the worker


@lru_cache(maxsize=1024)
def _parsed(text: str):
    """SymPy's object for an expression in LaTeX or plain writing; None where it is neither."""
    from math_verify import LatexExtractionConfig, LatexNormalizationConfig, parse

    text = re.sub(r"(?<![\\A-Za-z])(sqrt|sin|cos|tan|cot|sec|csc|log|ln|exp|pi)(?![A-Za-z])", r"\\\1 ", text)
    text = re.sub(r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text).replace("*", r"\cdot ")
    if _TRIGONOMETRY.search(text):
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
    import sympy
    from math_verify import verify

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
    import sympy

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
    return bool(pairs) and all(close(a, c, exact, tolerance, rounding=_ROUNDING) for a, c in pairs)


def main() -> None:
    """Requests on standard input, verdicts on standard output: one JSON value a line, `true` once at the start. The
    only argument is the processor time for one verdict, in seconds, after which the kernel ends the process."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path) != here]  # files here must not shadow libraries
    replies, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints must not look like a verdict
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which closes our input
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):  # not on this system: the parent's limit remains
        pass

    def reply(verdict: bool) -> None:
        replies.write(json.dumps(verdict) + "\n")
        replies.flush()

    def limit(seconds: float) -> None:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_PROF, seconds)  # unhandled SIGPROF: the kernel ends the process

    cpu_seconds = float(sys.argv[1])
    mathematics("2x", "x+x", Fraction(1), Fraction(0))  # imports and first-time work count against no verdict
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


if __name__ == "__main__":
    main()
