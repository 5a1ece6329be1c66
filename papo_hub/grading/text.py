"""How an answer is written: one spelling for what means the same, its brackets, and the items of a list."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

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
    (r"\\mathbb\s*\{?\s*R\s*\}?(?!\s*\^)", lambda m: r"(-\infty,\infty)"),
    (r"\\([lr])angle(?![A-Za-z])", lambda m: "(" if m[1] == "l" else ")"),
    (r"\\log\s*_\s*\{?e\}?(?![A-Za-z])", lambda m: r"\ln "),
    (r"(?<=\d)\s*\\Omega(?![A-Za-z])", lambda m: " Ω"),
    (r"^\s*(?:USD|RMB|EUR)\s*(?=\d)", lambda m: ""),
    (r"^\s*(?:about|approximately|roughly|around)\s+(?=[-\d\\])", lambda m: ""),
    (r"^\s*(-?[\d.,]+)\s*\([A-Za-z ]{3,40}\)\s*$", lambda m: m[1]),  # 8 (eight)
    (r"^\s*(\d+)\s+to\s+(\d+)\s*$", lambda m: f"{m[1]}:{m[2]}"),
    (
        r"^\s*(\d{1,3})\s*(?:h|hrs?|hours?),?(?:\s+and)?\s+(\d{1,2})\s*(?:m|mins?|minutes?)\s*$",
        lambda m: f"{60 * int(m[1]) + int(m[2])} minutes",
    ),
    (r"^\s*[A-Za-z][A-Za-z ]{0,80}\s(?:is|equals|are)\s+(?=[-\d\\])", lambda m: ""),
    (r"\s*/\s*", lambda m: "/"),
    (r"\s+", lambda m: " "),
]
_REWRITES = [(re.compile(pattern), change) for pattern, change in _REWRITES]
_PHRASE = re.compile(
    r"(?:(?:so|thus|therefore|hence),?\s+)?(?:the\s+)?(?:(?:final|correct|right|best)\s+)?(?:answer|option|choice)\b\s*(?:is\b|=|:)?\s*(?=\S)",
    re.I,
)
_WORDS = {
    "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8",
    "nine": "9", "ten": "10", "eleven": "11", "twelve": "12", "thirteen": "13", "fourteen": "14", "fifteen": "15",
    "sixteen": "16", "seventeen": "17", "eighteen": "18", "nineteen": "19", "twenty": "20",
    "thirty": "30", "forty": "40", "fifty": "50", "sixty": "60", "seventy": "70", "eighty": "80", "ninety": "90",
    "infinity": r"\infty", "pi": r"\pi", "all real numbers": r"(-\infty,\infty)", "all reals": r"(-\infty,\infty)",
    "no solution": r"\emptyset", "no solutions": r"\emptyset", "empty set": r"\emptyset",
    "the empty set": r"\emptyset",
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
    return _WORDS.get(text.lower(), text)


def squash(text: str) -> str:
    """Without white space, but for that between digits: 1 6 is not 16."""
    return re.sub(r"\s+(?!\d)|(?<!\d)\s+", "", text)


def _tokens(text: str) -> Iterator[tuple[int, str]]:
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


def nesting(text: str) -> int:
    """How deep the brackets are nested; 0 without any."""
    depth = deepest = 0
    for _, token in _tokens(text):
        depth += (token in _OPEN) - (token in _CLOSE)
        deepest = max(deepest, depth)
    return deepest


def split(text: str, separators: str) -> list[str]:
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


def without_thousands(text: str) -> str:
    """1,000 and 1 000 as 1000."""
    return _THOUSANDS.sub(lambda m: re.sub("[, ]", "", m[0]), text)


def listed(text: str) -> tuple[str, list[str]]:
    """("()" | "[)" | … | "{}" for a set | "" for a bare enumeration, its items); a single item is bare."""
    kind, text = "", re.sub(r"^[A-Z](?=\(.*,.*\)$)", "", text)  # A(1, 2) is the point (1, 2)
    opener = next((bracket for bracket in (r"\{", "(", "[") if text.startswith(bracket)), None)
    closer = {r"\{": r"\}"}.get(opener, text[-1:])
    if opener and _closes(text) == (end := len(text) - len(closer)):
        inner = text[len(opener) : end].strip()
        if len(split(inner, ",;")) > 1 or opener == r"\{":
            kind, text = (opener + closer).replace("\\", ""), inner
    if kind in ("", "{}"):
        text = re.sub(r"\s+(?:or|and)\s+|\\(?:lor|vee)(?![A-Za-z])", " , ", text)
    items = []
    for item in split(text, ",;"):
        if r"\pm" in item and kind in ("", "{}"):
            items += [item.replace(r"\pm", "+").replace(r"\mp", "-"), item.replace(r"\pm", "-").replace(r"\mp", "+")]
        else:
            items.append(item)
    return kind, items
