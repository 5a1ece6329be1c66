"""Metrics that `evaluate.load` reads from a folder: `evaluate.load(metrics.path("avg_at_k"))`. No network, no model.

Each folder holds one metric, and in the same file the plain functions behind it.
"""

from pathlib import Path

NAMES = ("avg_at_k", "format_rate", "perception_error", "vision_dependency")


def path(name: str) -> str:
    """The folder of a metric, for `evaluate.load`. Raises ValueError for another name."""
    if name not in NAMES:
        raise ValueError(f"{name!r} is no metric: write one of {', '.join(NAMES)}.")
    return str(Path(__file__).parent / name)
