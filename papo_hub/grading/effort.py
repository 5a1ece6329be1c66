"""What no computer algebra should be asked, told by its text: it would take forever, and is nobody's final answer."""

from __future__ import annotations

import re

MAX_EXPRESSION = 500  # characters; matrices of fractions are the longest that people write
MAX_EXPONENT = 10_000

_HOPELESS = re.compile(
    r"\\(?:i{0,3}int|oint|sum|prod|lim|bigcup|bigcap)(?![A-Za-z])"  # an answer states the value
    r"|\^\s*\{?\s*[+-]?\d{5,}"  # a huge power
    r"|\)\s*\^\s*\{?\s*[+-]?\d{3,}"  # a large power of a sum, which could be multiplied out
    r"|(?:(?:\^|\*\*)[^-+*/(){}\s^]{1,12}){3}"  # a tower, a^b^c^d
    r"|![\s)}\]]*!"  # the factorial of a factorial,
    r"|\d{5,}[\s)}\]]*!"  # of a large number,
    r"|\^[^()]{0,50}\)\s*!"  # of a power
    r"|\\binom\s*\{[^{}]{0,20}(?:\^|\d{5})"
)
_POWER_OF_POWER = re.compile(r"(?:\^|\*\*)\s*[{(]?\s*(\d+)\s*(?:\^|\*\*)\s*[{(]?\s*(\d+)(?=(.?))")


def hopeless(text: str) -> bool:
    """Whether computing it could take forever: towers of powers, huge factorials, sums and integrals, too long a text."""
    if len(text) > MAX_EXPRESSION or _HOPELESS.search(text):
        return True
    for match in _POWER_OF_POWER.finditer(text):  # 2^{3^2} is 512, 10^{10^{10}} is not to be written down
        base, exponent = int(match[1]), int(match[2])
        if match[3] == "^" or exponent > MAX_EXPONENT.bit_length() or base**exponent > MAX_EXPONENT:
            return True
    return False
