"""Where the recipes, accelerate configs and card templates lie: in the wheel beside the code, in a checkout above it."""

from __future__ import annotations

from pathlib import Path


def resource(name: str) -> Path:
    """A file or folder such as "recipes/tiny/papo_g.yaml". Raises FileNotFoundError where it is in neither place."""
    package = Path(__file__).resolve().parent
    for folder in (package, package.parent):
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(
        f"{name} is neither in nor beside {package}: reinstall papo_hub, its package data is incomplete."
    )
