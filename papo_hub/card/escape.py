"""Text from files, made fit for a public document: nothing secret, and no markup but the template's own."""

from __future__ import annotations

import re
from typing import Any

from papo_hub.redaction import redact

# A folder of a machine: at least one "/name/" that neither continues a relative path nor follows a URL's scheme.
FOLDER = re.compile(
    r"(?:file:/*|(?<![\w./…])(?!(?<=:)//)(?:~[\w.-]*)?)/+(?:[^\s/<>…]+/+)+|\b[A-Za-z]:\\(?:[^\s\\…]+\\)+"
)


def plain(value: Any) -> str:
    """One line of printable text fit for the public: no credentials, no folders of the machine it was written on."""
    if isinstance(value, float):
        value = f"{value:g}"
    line = "".join(char if char.isprintable() else " " for char in str(value))
    return FOLDER.sub("…/", redact(line))


def text(value: Any) -> str:
    """Markdown that shows `plain(value)` and does nothing else.

    Character references can never open a tag, a link, a table cell or emphasis (CommonMark 0.31, section 2.5), so
    every character that might is written as one; so are outer underscores, and the dot of "www." and the colon of "://",
    which GitHub's Markdown makes links of. Not for the start of a line, where even a plain "-" has a meaning.
    """
    markup = r"""[^\w /,+.()%:;='"…-]|(?<=www)\.|:(?=/)|(?<![^\W_])_|_(?![^\W_])"""
    return re.sub(markup, lambda match: f"&#{ord(match[0])};", plain(value), flags=re.IGNORECASE)


def listed(value: Any) -> str:
    """`text` of a value, or of a list's items with commas."""
    return ", ".join(map(text, value if isinstance(value, list) else [value]))


def words(value: Any) -> str:
    """Letters, digits and spaces only, as names in the front matter need them."""
    return plain(re.sub(r"\W+", " ", plain(value)).strip())
