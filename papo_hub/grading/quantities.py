"""Numbers, constants and units: what an answer is worth, exactly or to 50 digits, and when two values are close."""

from __future__ import annotations

import re
from decimal import Context, Decimal, localcontext
from fractions import Fraction

ROUNDING = Fraction(1, 10**25)  # what 30 digits may be off by

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
TRIGONOMETRY = re.compile(r"\\?(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_NO_UNITS = {
    "or", "and", "not", "to", "than", "more", "less", "sin", "cos", "tan", "log", "sqrt", "least", "most", "about", "pi",
    "out", "of", "if",
}  # fmt: skip


def measure(text: str) -> tuple[str, str]:
    """(value, unit); the unit is "" where there is none."""
    if text.endswith("%") or re.search(r"\d\s*(?:percent|pct)$", text, re.I):
        return re.sub(r"\s*(?:%|percent|pct)$", "", text, flags=re.I), "%"
    if (match := _UNIT.fullmatch(text)) and not TRIGONOMETRY.search(text):
        unit = match["unit"].strip()
        if match["gap"] or len(unit) > 1 or unit == "°":  # 3m may be three times m; 3 m is not
            return match["value"].strip(), unit
    if (match := _WORD_UNIT.fullmatch(text)) and not _NO_UNITS & set(match["unit"].lower().split()):
        return match["value"].strip(), match["unit"]
    return text, ""


def is_unit(text: str) -> bool:
    """Whether it is a unit of the table, or up to four of them: m/s, but not apples."""
    return _UNIT.fullmatch(f"1 {text}") is not None


def unit_size(text: str) -> tuple[tuple, Fraction] | None:
    """The dimension and size of a unit, squared and cubed ones and quotients of two included; None if unknown."""
    text = re.sub(r"\s+per\s+", "/", text)
    text = re.sub(r"\s*(?:\\cdot|\s)\s*([A-Za-z]+)\s*\^\s*\{?-1\}?", r"/\1", text)
    if text.count("/") == 1:
        above, below = map(unit_size, text.split("/"))
        return None if above is None or below is None else ((above[0], below[0]), above[1] / below[1])
    match = re.fullmatch(r"(?:(sq|square|cubic) )?(\S+?)(?:\s*\^\s*\{?([23])\}?)?", text)
    (dimension, power), size = _UNITS.get(match[2], (("?", 1), Fraction(1))) if match else (("?", 1), Fraction(1))
    if dimension == "?":
        return None
    times = {"sq": 2, "square": 2, "cubic": 3}.get(match[1], int(match[3] or 1))
    return (dimension, power * times), size**times


_POWERS = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}


def in_full(text: str) -> str:
    """3 million as 3 \\times 10^{6}."""
    return re.sub(
        rf"(?<=\d)\s*({'|'.join(_POWERS)})(?![A-Za-z])",
        lambda m: rf" \times 10^{{{_POWERS[m[1].lower()]}}}",
        text,
        flags=re.I,
    )
