"""Random generators named by what they are for, so that a resumed run draws what the uninterrupted one would have."""

from __future__ import annotations

import hashlib

import torch


def derived_generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose stream depends on `key` (and its device) alone: `derived_generator(seed, "mask", epoch, row)`.

    The seed is the first 63 bits of the SHA-256 of the key's repr: independent of the process, the platform and the
    global random state, and unrelated for keys that differ anywhere.

    Raises TypeError for a part that is neither int nor str: other reprs may change between versions.
    """
    for part in key:
        if type(part) not in (int, str):
            raise TypeError(f"a generator is derived from ints and strings, got {type(part).__name__}: {part!r}")
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)
