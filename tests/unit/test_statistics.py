"""Intervals and p-values: by hand, by simulation, and against SciPy."""

import math
import tracemalloc
from itertools import product

import numpy as np
import pytest

from papo_hub import statistics
from papo_hub.statistics import (
    bootstrap_macro,
    bootstrap_mean,
    bootstrap_ratio,
    paired_difference,
    paired_macro,
    standard_error,
)


def normals(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=count)


# --- standard error ---------------------------------------------------------------------------------------------------


def test_the_standard_error_by_hand():
    # mean 1/2, squared deviations 4 * 1/4, variance 1/3, over 4 problems
    assert standard_error([0, 1, 0, 1]) == pytest.approx(math.sqrt(1 / 3 / 4))
    assert standard_error([0.7]) is None


# --- bootstrap --------------------------------------------------------------------------------------------------------


def test_the_resamples_of_two_problems_by_hand():
    """Of 0 and 1 the resampled mean is 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4."""
    assert bootstrap_mean([0, 1], level=0.95) == (0, 1)
    assert bootstrap_mean([0, 1], level=0.4) == (0.5, 0.5)  # its ends are the quantiles 0.3 and 0.7


def test_one_problem_gives_an_interval_of_no_width():
    assert bootstrap_mean([0.25]) == (0.25, 0.25)


def test_an_interval_has_the_width_that_theory_gives():
    """Of many problems: mean ± 1.96 standard errors."""
    values = normals(2000, seed=1)
    low, high = bootstrap_mean(values)
    assert low == pytest.approx(values.mean() - 1.96 * standard_error(values), abs=0.002)
    assert high == pytest.approx(values.mean() + 1.96 * standard_error(values), abs=0.002)


def test_an_interval_covers_the_true_mean_as_often_as_it_says():
    draw = np.random.default_rng(2)
    accuracy = draw.beta(1, 2, size=(400, 60))  # skewed, as accuracies are; the true mean is 1/3
    sets = draw.binomial(8, accuracy) / 8
    intervals = [bootstrap_mean(values, resamples=1000, seed=i) for i, values in enumerate(sets)]
    assert 0.92 <= np.mean([low <= 1 / 3 <= high for low, high in intervals]) <= 0.975


def test_macro_intervals_resample_within_each_group():
    """The mean over groups of very different sizes and levels: its variance is the mean of theirs over the groups."""
    groups = [normals(1000, seed=3), 5 + normals(100, seed=4)]
    low, high = bootstrap_macro(groups)
    middle = (groups[0].mean() + groups[1].mean()) / 2
    error = math.hypot(*map(standard_error, groups)) / 2
    assert (low, high) == pytest.approx((middle - 1.96 * error, middle + 1.96 * error), abs=0.005)
    assert bootstrap_macro([groups[0]]) == bootstrap_mean(groups[0])


def test_a_ratio_draws_both_sums_together():
    tokens = np.random.default_rng(5).integers(1, 1000, size=50)
    assert bootstrap_ratio(tokens / 4, tokens) == pytest.approx((0.25, 0.25))
    assert bootstrap_ratio([0, 2], [1, 3], level=0.4) == (0.5, 0.5)  # 0/2, 2/4 or 4/6
    assert bootstrap_ratio([0, 2], [1, 3]) == (0, 2 / 3)


def test_intervals_are_the_same_however_the_draws_are_cut(monkeypatch):
    """And the chunks are really many: 7 problems, 3 resamples at a time."""
    values, tokens = normals(7, seed=6), np.arange(1, 8)

    def everything():
        return (
            bootstrap_mean(values, seed=3),
            bootstrap_ratio(values, tokens, seed=3),
            paired_difference(values, tokens - 3, resamples=100, seed=3),
        )

    whole = everything()
    monkeypatch.setattr(statistics, "_CHUNK", 21)
    assert everything() == whole
    assert bootstrap_mean(values, seed=4) != whole[0]
    assert paired_difference(values, tokens - 3, resamples=100, seed=4).p != whole[2].p


def test_intervals_agree_with_scipy():
    scipy = pytest.importorskip("scipy.stats")
    values, tokens = np.random.default_rng(7).exponential(size=(2, 40))
    theirs = scipy.bootstrap(
        (values,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert bootstrap_mean(values) == pytest.approx((theirs.low, theirs.high), abs=0.012)
    theirs = scipy.bootstrap(
        (values, 1 + tokens),
        lambda a, b, axis=-1: a.sum(axis) / b.sum(axis),
        paired=True,
        n_resamples=10_000,
        method="percentile",
        rng=np.random.default_rng(0),
        vectorized=True,
    ).confidence_interval
    assert bootstrap_ratio(values, 1 + tokens) == pytest.approx((theirs.low, theirs.high), abs=0.012)


# --- paired differences -----------------------------------------------------------------------------------------------


def test_the_difference_of_pairs_by_hand():
    found = paired_difference([1, 1, 1, 0], [0, 0.5, 0, 0])
    assert found.difference == pytest.approx(2.5 / 4)
    # Of the 8 sign patterns of 1, 1/2, 1 two reach the sum 2.5 either way
    assert found.p == 2 / 8
    assert found.low < found.difference < found.high


def test_p_by_enumeration_with_ties():
    differences = np.array([0.5, 0.25, -0.25, 0.125, 0.25, 0.0])
    patterns = [np.dot(signs, differences) for signs in product((-1, 1), repeat=6)]
    expected = np.mean([abs(total) >= abs(differences.sum()) for total in patterns])
    assert paired_difference(differences, np.zeros(6)).p == expected
    assert paired_difference(0.1 * differences, np.zeros(6)).p == expected  # where sums are rounded


def test_random_sign_patterns_approach_all_of_them():
    a, b = 0.5 + normals(12, seed=8), normals(12, seed=9)
    exact = paired_difference(a, b, resamples=2**12).p
    drawn = paired_difference(a, b, resamples=2**12 - 1, seed=1).p
    assert 0.02 < exact < 0.6
    assert drawn != exact and drawn == pytest.approx(exact, abs=0.03)
    assert drawn * 2**12 == pytest.approx(round(drawn * 2**12))  # (count + 1) / (resamples + 1)
    # Ties count: of 14 differences of 1, sums of 12 and 14 either way
    values = [1] * 13 + [-1]
    assert paired_difference(values, [0] * 14, resamples=5000).p == pytest.approx(2 * (1 + 14) / 2**14, abs=0.0012)
    assert paired_difference(values, [0] * 14, resamples=2**14).p == 2 * (1 + 14) / 2**14


def test_p_is_never_zero_and_one_where_nothing_differs():
    assert paired_difference(np.ones(100), np.zeros(100), resamples=999).p == 1 / 1000
    assert paired_difference([0.5, 1], [0.5, 1]) == (0, 0, 0, 1)


def test_without_a_difference_p_is_uniform():
    """The error rate is the one asked for: 5 % of p lie at or below 0.05."""
    p = [paired_difference(normals(20, 2 * i), normals(20, 2 * i + 1), resamples=400, seed=i).p for i in range(400)]
    assert 0.025 <= np.mean(np.array(p) <= 0.05) <= 0.08
    assert 0.44 <= np.mean(p) <= 0.56


def test_macro_differences_weigh_groups_not_problems():
    groups = [([1, 1, 1, 1], [0, 0, 0, 0]), ([0], [1])]
    found = paired_macro(groups)
    assert found.difference == 0 and found.p == 1  # (1 - 1) / 2, though four of five problems differ one way
    single = paired_macro([([1, 0.5, 0], [0, 0, 0])])
    assert single == paired_difference([1, 0.5, 0], [0, 0, 0])
    # shares 1/4 + 1/4 + 1/2: two of the 8 patterns are as far from 0
    assert paired_macro([([1, 1], [0, 0]), ([1], [0])]).p == 2 / 8


def test_the_interval_of_a_paired_difference_is_over_the_pairs():
    """What both share drops out: it is narrower than that of either."""
    shared = 10 * normals(50, seed=10)
    found = paired_difference(shared + 0.1 * normals(50, seed=11) + 1, shared)
    assert found.low == pytest.approx(1, abs=0.1) and found.high == pytest.approx(1, abs=0.1)
    assert found[1:3] == bootstrap_mean(shared + 0.1 * normals(50, seed=11) + 1 - shared)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: standard_error([]), "values: empty"),
        (lambda: bootstrap_mean([]), "group 0: empty"),
        (lambda: bootstrap_mean([0.0, math.nan]), "nan at problem 1"),
        (lambda: bootstrap_mean([[0.0]]), r"shape \(1, 1\)"),
        (lambda: bootstrap_mean([0.0], level=95), "level: 95"),
        (lambda: bootstrap_mean([0.0], resamples=0), "resamples: 0"),
        (lambda: bootstrap_macro([]), "groups: empty"),
        (lambda: bootstrap_macro([[1.0], []]), "group 1: empty"),
        (lambda: bootstrap_ratio([1, 1], [1, 0]), "problem 1 is 0"),
        (lambda: bootstrap_ratio([1], [1, 2]), "1 and 2 problems"),
        (lambda: paired_difference([1], [1, 2]), "1 and 2 problems"),
        (lambda: paired_macro([]), "groups: empty"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_global_random_state_is_left_alone():
    np.random.seed(0)
    before = np.random.get_state()[1].tolist()
    bootstrap_mean([0, 1])
    paired_difference(normals(30, 1), normals(30, 2), resamples=10)
    assert np.random.get_state()[1].tolist() == before


def test_memory_stays_small_for_many_problems():
    """At once the draws would take 5,000 problems * 2,000 resamples * 8 bytes = 80 MB."""
    values = normals(5000, seed=12)
    tracemalloc.start()
    try:
        bootstrap_mean(values, resamples=2000)
        paired_difference(values, -values, resamples=2000)
        assert tracemalloc.get_traced_memory()[1] < 60e6
    finally:
        tracemalloc.stop()
