r"""How much of its accuracy a model owes to the image: the same problems, seen in several views.

With a_i(view) the mean verdict of problem i in a view ("clean", "mask-0.6": patches hidden with probability 0.6, "blank"):

    accuracy(view)      mean_i a_i(view)
    gap(view)           mean over the problems seen in both of a_i(clean) - a_i(view)
    relative gap(view)  gap(view) / mean over the same problems of a_i(clean)
    perception KL       sum of the responses' KL[clean ‖ masked] / sum of their tokens          (nats per token)

Accuracies and gaps are shares, 0 to 1; intervals are 95 % bootstrap intervals over problems. A gap of 0 says that the
image is not used: the answers come from the text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from papo_hub.metrics import base
from papo_hub.statistics import Interval, bootstrap_mean, bootstrap_ratio, standard_error

DESCRIPTION = """
How much accuracy drops when the image is hidden: accuracy in each view of the same problems (the clean image, patches
masked at several ratios, a blank image), and the gap between the clean view and each other one, paired by problem, with
bootstrap intervals. Optionally the divergence between the clean and the masked view per token, the quantity that PAPO's
perception loss raises.
"""

INPUTS = r"""
One row is one problem in one view.

Args:
    predictions: N lists of responses; the only one of a row may stand there itself. In the configuration "verdicts": N lists
        of verdicts in [0, 1].
    references: N reference answers. Not in the configuration "verdicts".
    views: N names: "clean", "mask-R" with R the share of patches hidden, "blank", or another.
    ids: N texts that name the problem; they pair the views.
    grader: how a boxed answer is compared with the reference; default "math".
    perception_kl: for each row the sum of KL[clean ‖ masked] over the tokens of its responses, in nats, or None.
    tokens: for each row the tokens that this sum is over, or None.

Returns:
    curve: one entry a view, by mask ratio: view, mask_ratio (0 clean, None if the view has none), accuracy, low, high,
        standard_error, problems.
    gap: for each view but the clean one: difference (clean - view), low, high, problems (seen in both).
    relative_gap: for each such view the gap as a share of the clean accuracy; None where that is 0.
    perception_kl, perception_kl_low, perception_kl_high: nats per token; only with the option.

Examples:

    >>> import evaluate
    >>> from papo_hub import metrics
    >>> vision_dependency = evaluate.load(metrics.path("vision_dependency"), "verdicts")
    >>> results = vision_dependency.compute(
    ...     predictions=[[1, 1], [1, 0], [0, 0], [1, 0]],
    ...     views=["clean", "clean", "mask-0.6", "mask-0.6"], ids=["a", "b", "a", "b"],
    ... )
    >>> [(point["view"], point["mask_ratio"], point["accuracy"]) for point in results["curve"]]
    [('clean', 0.0, 0.75), ('mask-0.6', 0.6, 0.25)]
    >>> results["gap"]
    {'mask-0.6': {'difference': 0.5, 'low': 0.0, 'high': 1.0, 'problems': 2}}
    >>> results["relative_gap"]
    {'mask-0.6': 0.6666666666666666}
"""

CLEAN = "clean"


def vision_dependency(views: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """`curve`, `gap` and `relative_gap` of the metric, from view → problem → mean verdict in [0, 1].

    Raises ValueError without a clean view, for a view without problems or with none that the clean one has, and for a
    ratio that is none.
    """
    if CLEAN not in views:
        raise ValueError(f"views: {', '.join(views) or 'none'}; the clean one is missing, and every gap is against it.")
    ratios = {view: mask_ratio(view) for view in views}
    order = sorted(views, key=lambda view: (ratios[view] is None, ratios[view] or 0, view))
    others = [view for view in order if view != CLEAN]
    curve = [_point(view, ratios[view], list(views[view].values())) for view in order]
    gap, relative = {}, {}
    for view in others:
        shared = [problem for problem in views[CLEAN] if problem in views[view]]
        if not shared:
            raise ValueError(f"ids: the views clean and {view} have no problem in common; they are paired by id.")
        clean = np.array([views[CLEAN][problem] for problem in shared])
        differences = clean - [views[view][problem] for problem in shared]
        low, high = bootstrap_mean(differences)
        gap[view] = {"difference": float(differences.mean()), "low": low, "high": high, "problems": len(shared)}
        relative[view] = float(differences.mean() / clean.mean()) if clean.any() else None
    return {"curve": curve, "gap": gap, "relative_gap": relative}


def perception_kl_per_token(sums: Sequence[float], tokens: Sequence[int]) -> tuple[float, Interval]:
    """Nats per token, sum(sums) / sum(tokens), and its 95 % bootstrap interval over problems; both (N,), one a problem.

    Raises ValueError for none, unequal lengths, and a problem without tokens.
    """
    interval = bootstrap_ratio(sums, tokens)
    return float(np.sum(sums) / np.sum(tokens)), interval


def mask_ratio(view: str) -> float | None:
    """0 for "clean", R for "mask-R", None for another view. Raises ValueError for an R outside (0, 1]."""
    if view == CLEAN:
        return 0.0
    if not view.startswith("mask-"):
        return None
    ratio = view.removeprefix("mask-")
    if not re.fullmatch(r"\d(?:\.\d+)?", ratio) or not 0 < float(ratio) <= 1:
        raise ValueError(f"views: {view!r} is no masked view; write mask-R with R above 0 and up to 1, as mask-0.6.")
    return float(ratio)


def _point(view: str, ratio: float | None, values: list[float]) -> dict[str, Any]:
    if not values:
        raise ValueError(f"views: {view} has no problems.")
    low, high = bootstrap_mean(values)
    return {
        "view": view,
        "mask_ratio": ratio,
        "accuracy": float(np.mean(values)),
        "low": low,
        "high": high,
        "standard_error": standard_error(values),
        "problems": len(values),
    }


class VisionDependency(base.ProblemMetric):
    """Vision dependency for `evaluate.load`; see the module."""

    options = ("grader", "perception_kl", "tokens")
    configurations = ("default", "verdicts")

    def _info(self):
        return self.info_of(DESCRIPTION, INPUTS, "references", "views", "ids")

    def measure(self, predictions, views, ids, references=None, grader="math", perception_kl=None, tokens=None):
        graded = predictions if references is None else base.grade(predictions, references, grader)
        by_view: dict[str, dict[str, float]] = {}
        for view, problem, verdicts in zip(views, ids, graded, strict=True):
            if problem in by_view.setdefault(view, {}):
                raise ValueError(
                    f"ids: problem {problem} occurs twice in the view {view}; its responses belong in one row."
                )
            by_view[view][problem] = float(np.mean(verdicts))
        return vision_dependency(by_view) | _divergence(perception_kl, tokens, len(ids))


def _divergence(
    sums: Sequence[float | None] | None, tokens: Sequence[int | None] | None, rows: int
) -> dict[str, float]:
    if sums is None:
        return {}
    if tokens is None or not len(sums) == len(tokens) == rows:
        raise ValueError(f"perception_kl and tokens: each needs an entry (or None) for each of the {rows} rows.")
    measured = [(nats, count) for nats, count in zip(sums, tokens, strict=True) if nats is not None and count]
    if not measured:
        raise ValueError("perception_kl: None everywhere; leave the option out.")
    mean, (low, high) = perception_kl_per_token(*zip(*measured, strict=True))
    return {"perception_kl": mean, "perception_kl_low": low, "perception_kl_high": high}
