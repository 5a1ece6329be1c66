"""Nothing that opens a door leaves in a text: tokens, passwords, the signed part of a link. And nothing steers a terminal."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path
from typing import Any

# What reads like an access token, its first group or the next being what may be shown of it. hf_transfer is a library.
TOKEN = re.compile(
    r"((?:hf|api_org)_)(?!transfer\b)[A-Za-z0-9]{8,}\w*|(Bearer\s+)[^\s'\"]+|(sk-)[\w-]{20,}"
    r"|(gh[opsu]_|github_pat_)[A-Za-z0-9]{20,}\w*"
)
# Storage links carry their permission in the query, others have user:password; as a path, a link has lost a slash.
SIGNED = re.compile(r"((?:https?|s3|gs|hf)://?[^\s?'\"<>]+)\?[^\s'\"<>]+")
LOGIN = re.compile(r"(:/{1,2})[^\s/@]+@")
_SECRET = r"(?:token|secret|password|passwd|(?:api|access)[_-]?key)"
GIVEN = re.compile(rf"({_SECRET}=|--[\w-]*{_SECRET}\s+)\S+", re.IGNORECASE)  # WANDB_API_KEY=…, --hub_token …
_SECRET_NAME = re.compile(rf"{_SECRET}$", re.IGNORECASE)
_LEAST = 8  # characters of a secret; shorter values of the environment would take words out of every text


def redact(text: object, *secrets: str | None) -> str:
    """`text` without tokens, passwords, the query of any link, the credentials in the environment, and `secrets`."""
    redacted = str(text)
    held = (value for name, value in os.environ.items() if names_a_secret(name) and len(value) >= _LEAST)
    for secret in filter(None, (*held, *secrets)):
        redacted = redacted.replace(secret, "…")
    redacted = LOGIN.sub(r"\1…@", GIVEN.sub(r"\1…", redacted))
    return SIGNED.sub(r"\1?…", TOKEN.sub(lambda found: f"{found[found.lastindex]}…", redacted))


def redacted(value: Any) -> Any:
    """A value of JSON or YAML with every text in it as `redact` leaves it."""
    if isinstance(value, dict):
        return {name: redacted(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(item) for item in value]
    return redact(value) if isinstance(value, str) else value


def public_path(text: str) -> str:
    """An absolute path as its last part alone, which tells nothing of the machine; anything else as it is."""
    return f"…/{Path(text).name}" if text.startswith(("/", "~")) and len(text) > 1 else text


def names_a_secret(name: object) -> bool:
    """Whether a key or a variable is called like a credential: HF_TOKEN, AWS_SECRET_ACCESS_KEY."""
    return _SECRET_NAME.search(str(name)) is not None


def printable(text: object) -> str:
    """`redact(text)` for a terminal or a log: whatever is no visible character, line end or tab, as its code.

    A file name or an answer may hold escape sequences, which move the cursor, hide text or set the window's title.
    """
    return "".join(
        char if char in "\n\t" or unicodedata.category(char)[0] != "C" else ascii(char)[1:-1] for char in redact(text)
    )
