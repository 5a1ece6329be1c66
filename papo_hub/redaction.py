"""Nothing that opens a door leaves in a text: tokens, and the signed part of a link."""

from __future__ import annotations

import re

TOKEN = re.compile(
    r"\b(?:hf|api_org)_[A-Za-z0-9]{8,}|\bBearer\s+[^\s'\"]+|\bsk-[A-Za-z0-9_-]{20,}|\bghp_[A-Za-z0-9]{20,}"
)
SIGNED = re.compile(r"(https?://[^\s?'\"<>]+)\?[^\s'\"<>]+")  # storage links carry their permission in the query


def redact(text: object, *secrets: str | None) -> str:
    """`text` without tokens, without the query of any link, and without `secrets`."""
    redacted = str(text)
    for secret in filter(None, secrets):
        redacted = redacted.replace(secret, "…")
    return SIGNED.sub(r"\1?…", TOKEN.sub(lambda found: found[0][:3] + "…", redacted))
