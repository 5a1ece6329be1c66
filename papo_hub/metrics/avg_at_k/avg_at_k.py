r"""Accuracy over k responses a problem: avg@k, pass@k, majority@k.

With v_ij the verdict (0 or 1) of response j to problem i, n_i its responses and c_i the right ones among them:

    avg@k       mean_i mean_j v_ij
    pass@k      mean_i (1 - C(n_i - c_i, k) / C(n_i, k))       (unbiased; Chen et al., arXiv 2107.03374, equation 1)
    majority@k  mean_i of the mean verdict of the answer that is given most often (Wang et al., arXiv 2203.11171)

All are shares, 0 to 1. The functions return one value a problem, (N,), so that a report can resample problems.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import comb
from typing import Any

import numpy as np

from papo_hub.grading.text import normalise, squash
from papo_hub.metrics import base
from papo_hub.rewards import last_boxed
from papo_hub.statistics import standard_error

DESCRIPTION = """
Accuracy over k sampled responses a problem, as PAPO reports it (avg@8): the mean over problems of the share of right
responses, with its standard error over problems; pass@k (a right one among k) and majority@k (the vote of k).
A response is right if the content of its last \\boxed{} is the reference answer.
"""

INPUTS = r"""
Args:
    predictions: N lists of responses; the only response to a problem may stand there itself. In the configuration "verdicts":
        N lists of verdicts in [0, 1].
    references: N reference answers. Not in the configuration "verdicts".
    k: responses a vote and a pass are over; default: as many as every problem has. avg_at_k is over all responses.
    grader: how a boxed answer is compared with the reference; default "math".

Returns:
    avg_at_k, pass_at_k: shares of 1.
    majority_at_k: share of 1; not in the configuration "verdicts".
    standard_error: of avg_at_k, over problems; None for one problem.
    k, problems: what they are over.

Raises ValueError for a problem with fewer than k responses.

Examples:

    >>> import evaluate
    >>> from papo_hub import metrics
    >>> avg_at_k = evaluate.load(metrics.path("avg_at_k"))
    >>> responses = [[r"\boxed{8}", r"so \boxed{8.0}", r"\boxed{7}", "8"], [r"\boxed{A}", r"\boxed{B}", r"\boxed{B}", ""]]
    >>> avg_at_k.compute(predictions=responses, references=["8", "A"])
    {'avg_at_k': 0.375, 'standard_error': 0.125, 'pass_at_k': 1.0, 'k': 4, 'problems': 2, 'majority_at_k': 0.3333333333333333}

    >>> verdicts = evaluate.load(metrics.path("avg_at_k"), "verdicts")
    >>> verdicts.compute(predictions=[[1, 1, 0, 0], [1, 0, 0, 0]], k=2)
    {'avg_at_k': 0.375, 'standard_error': 0.125, 'pass_at_k': 0.6666666666666667, 'k': 2, 'problems': 2}
"""

LONGEST_ANSWER = 2_000  # characters; what is longer is compared as it stands


def average_at_k(verdicts: Sequence[Sequence[float]]) -> np.ndarray:
    """Mean verdict of each problem, (N,) in [0, 1], from N lists of verdicts.

    Raises ValueError for no problem, a problem without verdicts, or a verdict outside [0, 1].
    """
    _check(verdicts, 1)
    return np.array([np.mean(problem) for problem in verdicts])


def pass_at_k(verdicts: Sequence[Sequence[float]], k: int) -> np.ndarray:
    """Probability that k responses, drawn from the n of a problem without replacement, have a right one: (N,).

    A response is right if its verdict is 1. Raises ValueError as `average_at_k`, and for fewer than k verdicts.
    """
    _check(verdicts, k)
    counts = [(len(problem), sum(verdict == 1 for verdict in problem)) for problem in verdicts]
    return np.array([1 - comb(n - right, k) / comb(n, k) for n, right in counts])


def majority_at_k(
    extracted: Sequence[Sequence[str | None]], verdicts: Sequence[Sequence[float]], k: int | None = None
) -> np.ndarray:
    """Verdict of each problem's most frequent answer among its first k (None: all) responses: (N,) in [0, 1].

    Args:
        extracted: N lists of answers, the contents of the responses' last boxes; None casts no vote.
        verdicts: N lists of their verdicts.

    Answers that read the same once normalised (`$\\frac12$` and `\\frac{1}{2}`) are one. Where several answers lead, each
    counts equally: the expected verdict of drawing among them. Without any vote: 0. Raises ValueError as `average_at_k`,
    for fewer than k verdicts, and for answers and verdicts of different numbers.
    """
    _check(verdicts, k or 1)
    if [len(problem) for problem in extracted] != [len(problem) for problem in verdicts]:
        raise ValueError("extracted and verdicts: each problem needs as many answers (or None) as verdicts.")
    return np.array([_vote(answers[:k], given[:k]) for answers, given in zip(extracted, verdicts, strict=True)])


def accuracy(
    verdicts: Sequence[Sequence[float]],
    extracted: Sequence[Sequence[str | None]] | None = None,
    k: int | None = None,
) -> dict[str, Any]:
    """The metric's results from N lists of verdicts; `majority_at_k` only where the extracted answers are given.

    `k` None: the smallest number of responses that a problem has. Raises ValueError as the functions above.
    """
    average = average_at_k(verdicts)
    k = min(len(problem) for problem in verdicts) if k is None else k
    results = {
        "avg_at_k": float(average.mean()),
        "standard_error": standard_error(average),
        "pass_at_k": float(pass_at_k(verdicts, k).mean()),
        "k": k,
        "problems": len(average),
    }
    if extracted is not None:
        results["majority_at_k"] = float(majority_at_k(extracted, verdicts, k).mean())
    return results


def _check(verdicts: Sequence[Sequence[float]], k: int) -> None:
    if not len(verdicts):
        raise ValueError("verdicts: no problems; pass those of at least one.")
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"k: {k!r} must be a whole number of at least 1.")
    for i, problem in enumerate(verdicts):
        if len(problem) < k:
            raise ValueError(
                f"problem {i} has {len(problem)} responses, fewer than k = {k}: sample more, or ask for a smaller k."
            )
        for verdict in problem:
            if not 0 <= verdict <= 1:
                raise ValueError(f"problem {i} has the verdict {verdict!r}; verdicts lie between 0 and 1.")


def _vote(answers: Sequence[str | None], verdicts: Sequence[float]) -> float:
    spellings = [None if answer is None else _spelling(answer) for answer in answers]
    votes = Counter(spelling for spelling in spellings if spelling is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    leading = {spelling for spelling, count in votes.items() if count == most}
    # Each leader has as many votes as the others, so that the mean over their votes is the mean over them.
    return float(np.mean([v for spelling, v in zip(spellings, verdicts, strict=True) if spelling in leading]))


def _spelling(answer: str) -> str:
    return squash(normalise(answer) if len(answer) <= LONGEST_ANSWER else answer)


class AvgAtK(base.ProblemMetric):
    """avg@k, pass@k and majority@k for `evaluate.load`; see the module."""

    options = ("k", "grader")
    configurations = ("default", "verdicts")

    def _info(self):
        return self.info_of(DESCRIPTION, INPUTS, "references")

    def measure(self, predictions, references=None, k=None, grader="math"):
        if references is None:
            return accuracy(predictions, k=k)
        extracted = [[last_boxed(response) for response in responses] for responses in predictions]
        return accuracy(base.grade(predictions, references, grader), extracted, k)
