"""How sure a measured mean is: bootstrap intervals, paired differences, standard errors. Pure, and seeded by an argument.

The unit is the problem: the k answers to one problem are not independent, so a problem enters as one value, the mean of
its answers, and problems are what is resampled. Percentile bootstrap (Efron, 1979), for macro averages within each
benchmark; significance by flipping the signs of paired differences (Fisher's randomisation test). The percentile
interval is somewhat too narrow below about thirty problems, and a single problem gives an interval of no width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 10_000
_CHUNK = 1 << 20  # numbers drawn at a time: 8 MB, whatever the number of problems


class Interval(NamedTuple):
    """Both ends, in the units of what was measured."""

    low: float
    high: float


class PairedDifference(NamedTuple):
    """Mean of a - b over the same problems, its interval, and the two-sided p-value of "there is no difference"."""

    difference: float
    low: float
    high: float
    p: float


def standard_error(values: ArrayLike) -> float | None:
    """std(values) / sqrt(N) with N - 1 in the variance; values (N,), one a problem.

    None for a single problem, whose spread nothing tells. Raises ValueError for no value, NaN or infinity.
    """
    values = _checked(values, "values")
    return None if len(values) == 1 else float(values.std(ddof=1) / np.sqrt(len(values)))


def bootstrap_mean(values: ArrayLike, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Percentile bootstrap interval of the mean over problems; values (N,), one mean a problem.

    One problem gives the degenerate interval (value, value): no width does not mean no doubt. Raises ValueError for no
    value, NaN or infinity, a level outside (0, 1), resamples below 1.
    """
    return bootstrap_macro([values], level, resamples, seed)


def bootstrap_macro(
    groups: Sequence[ArrayLike], level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Interval of the mean of group means, each group (N_i,) resampled within itself: benchmarks are fixed, their
    problems are a sample. Raises ValueError as `bootstrap_mean`, and for no group."""
    arrays = [_checked(group, f"group {i}") for i, group in enumerate(groups)]
    return _interval(_resampled_macro(arrays, resamples, seed), level)


def bootstrap_ratio(
    numerators: ArrayLike,
    denominators: ArrayLike,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Interval of sum(numerators) / sum(denominators) over problems, both (N,): a quantity per token from its sum and the
    tokens of each problem, drawn together. Raises ValueError as `bootstrap_mean`, for unequal lengths, and for a
    denominator that is not above 0: leave out problems without tokens."""
    numerators, denominators = _pair(numerators, denominators, "numerators", "denominators")
    if denominators.min() <= 0:
        raise ValueError(
            f"denominators: that of problem {int(denominators.argmin())} is {denominators.min():g} and must be above 0; "
            "leave out the problems that have none."
        )
    draw = np.random.default_rng(seed)
    sums = [
        (numerators[chosen].sum(1), denominators[chosen].sum(1)) for chosen in _draws(len(numerators), resamples, draw)
    ]
    top, bottom = (np.concatenate(column) for column in zip(*sums, strict=True))
    return _interval(top / bottom, level)


def paired_difference(
    a: ArrayLike, b: ArrayLike, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> PairedDifference:
    """Mean of a - b over the same problems, a and b (N,) in the same order, with its interval over problems and p.

    p is the share of the sign patterns of the problems' differences whose mean is at least as far from 0 as the one
    found: of all of them where they are no more than `resamples`, else (count + 1) / (resamples + 1) of as many random
    ones. Problems that do not differ say nothing about the sign; where none differs p is 1. Raises ValueError as
    `bootstrap_mean`, and for unequal lengths.
    """
    return paired_macro([(a, b)], level, resamples, seed)


def paired_macro(
    groups: Sequence[tuple[ArrayLike, ArrayLike]], level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> PairedDifference:
    """`paired_difference` of the mean of group means: each group (a, b) is one benchmark's problems, both (N_i,).

    Problems are resampled within their group, and every problem's sign flips on its own.
    """
    pairs = [_pair(a, b, f"a of group {i}", f"b of group {i}") for i, (a, b) in enumerate(groups)]
    differences = [a - b for a, b in pairs]
    low, high = _interval(_resampled_macro(differences, resamples, seed), level)
    shares = np.concatenate([d / (len(d) * len(differences)) for d in differences])  # they add up to the difference
    return PairedDifference(float(shares.sum()), low, high, _sign_flip_p(shares, resamples, seed))


def _checked(values: ArrayLike, name: str) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"{name}: shape {array.shape}, expected (N,): one number a problem.")
    if not array.size:
        raise ValueError(f"{name}: empty; at least one problem is needed.")
    if not np.isfinite(array).all():
        where = int(np.flatnonzero(~np.isfinite(array))[0])
        raise ValueError(f"{name}: {array[where]} at problem {where}; every problem needs a finite number.")
    return array


def _pair(a: ArrayLike, b: ArrayLike, *names: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    first, second = _checked(a, names[0]), _checked(b, names[1])
    if len(first) != len(second):
        raise ValueError(f"{names[0]} and {names[1]}: {len(first)} and {len(second)} problems, which must be the same.")
    return first, second


def _chunks(width: int, resamples: int) -> Iterator[int]:
    if resamples < 1:
        raise ValueError(f"resamples: {resamples}, must be at least 1.")
    rows = max(_CHUNK // width, 1)
    for start in range(0, resamples, rows):
        yield min(rows, resamples - start)


def _draws(size: int, resamples: int, draw: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Indices drawn with replacement, (rows, size) at a time."""
    for rows in _chunks(size, resamples):
        yield draw.integers(size, size=(rows, size))


def _resampled_macro(groups: list[NDArray[np.float64]], resamples: int, seed: int) -> NDArray[np.float64]:
    """(resamples,): the mean of group means in each resample."""
    if not groups:
        raise ValueError("groups: empty; at least one is needed.")
    draw = np.random.default_rng(seed)
    means = [
        np.concatenate([group[chosen].mean(1) for chosen in _draws(len(group), resamples, draw)]) for group in groups
    ]
    return np.mean(means, axis=0)


def _interval(resampled: NDArray[np.float64], level: float) -> Interval:
    if not 0 < level < 1:
        raise ValueError(f"level: {level}, must lie between 0 and 1.")
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def _sign_flip_p(shares: NDArray[np.float64], resamples: int, seed: int) -> float:
    shares = shares[shares != 0]
    found = abs(shares.sum())
    least = found - 1e-9 * np.abs(shares).sum()  # rounding must not part equal sums
    if len(shares) < 63 and 2 ** len(shares) <= resamples:
        patterns = np.arange(2 ** len(shares))[:, None] >> np.arange(len(shares)) & 1
        return float(np.mean(np.abs((2 * patterns - 1) @ shares) >= least))
    draw, count = np.random.default_rng(seed), 0
    for rows in _chunks(len(shares), resamples):
        signs = 2.0 * draw.integers(2, size=(rows, len(shares))) - 1
        count += int((np.abs(signs @ shares) >= least).sum())
    return (count + 1) / (resamples + 1)
