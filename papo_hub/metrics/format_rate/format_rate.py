r"""How many responses keep the format `<think>...</think> \boxed{...}`, and how many have a box at all.

    rate = mean_i mean_j f_ij,    f_ij 1 if response j to problem i is in the format, else 0

Shares, 0 to 1, each with its standard error over problems.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from papo_hub.metrics import base
from papo_hub.rewards import format_reward, last_boxed
from papo_hub.statistics import standard_error

DESCRIPTION = """
Share of responses that are <think>...</think> and then a \\boxed{}, the format that PAPO rewards, and share of responses
with a closed box: means over problems of each problem's share, with standard errors over problems.
"""

INPUTS = r"""
Args:
    predictions: N lists of responses; the only response to a problem may stand there itself.

Returns:
    format_rate, boxed_rate: shares of 1.
    format_standard_error, boxed_standard_error: over problems; None for one problem.

Examples:

    >>> import evaluate
    >>> from papo_hub import metrics
    >>> format_rate = evaluate.load(metrics.path("format_rate"))
    >>> results = format_rate.compute(predictions=[[r"<think>3 4 1</think> \boxed{8}", r"\boxed{8}"], ["8", "eight"]])
    >>> results["format_rate"], results["format_standard_error"], results["boxed_rate"], results["boxed_standard_error"]
    (0.25, 0.25, 0.5, 0.5)
"""


def format_rates(predictions: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
    """Of each problem the share of its responses in the format, and of those with a closed box: both (N,)."""
    formats = [np.mean([format_reward(response) for response in responses]) for responses in predictions]
    boxes = [np.mean([last_boxed(response) is not None for response in responses]) for responses in predictions]
    return np.array(formats), np.array(boxes)


class FormatRate(base.ProblemMetric):
    """The format rate for `evaluate.load`; see the module."""

    def _info(self):
        return self.info_of(DESCRIPTION, INPUTS)

    def measure(self, predictions) -> dict[str, Any]:
        formats, boxes = format_rates(predictions)
        return {
            "format_rate": float(formats.mean()),
            "format_standard_error": standard_error(formats),
            "boxed_rate": float(boxes.mean()),
            "boxed_standard_error": standard_error(boxes),
        }
