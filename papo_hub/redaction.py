"""Nothing that opens a door leaves in a text: tokens, and the signed part of a link."""

from __future__ import annotations

import re

# What reads like an access token, its first group or the next being what may be shown of it. hf_transfer is a library.
TOKEN = re.compile(
    r"((?:hf|api_org)_)(?!transfer\b)[A-Za-z0-9]{8,}\w*|(Bearer\s+)[^\s'\"]+|(sk-)[\w-]{20,}|(ghp_)[A-Za-z0-9]{20,}"
)
SIGNED = re.compile(r"(https?://[^\s?'\"<>]+)\?[^\s'\"<>]+")  # storage links carry their permission in the query


def redact(text: object, *secrets: str | None) -> str:
    """`text` without tokens, without the query of any link, and without `secrets`."""
    redacted = str(text)
    for secret in filter(None, secrets):
        redacted = redacted.replace(secret, "…")
    return SIGNED.sub(r"\1?…", TOKEN.sub(lambda found: f"{found[found.lastindex]}…", redacted))
