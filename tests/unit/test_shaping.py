"""Weights of tokens by how much they depend on the image: by hand, and what holds for all."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from papo_hub.objectives.shaping import TOKEN_WEIGHTINGS, completion_means, pgpo_weights, top_tokens, vppo_weights


def tensor(rows):
    return torch.tensor(rows, dtype=torch.float64)


def lengths(*values):
    return torch.arange(max(values)) < torch.tensor(values)[:, None]


@pytest.mark.parametrize(
    ("share", "kept"),
    [
        (0.2, [0, 0, 0, 0, 1]),  # ⌈1.0⌉
        (0.21, [0, 1, 0, 0, 1]),  # ⌈1.05⌉
        (0.4, [0, 1, 0, 0, 1]),
        (0.6, [1, 1, 0, 0, 1]),  # of the two 0.1 the first
        (1.0, [1, 1, 1, 1, 1]),
    ],
)
def test_the_largest_values_are_kept(share, kept):
    values = tensor([[0.1, 0.2, 0.1, 0.0, 0.9]])
    assert top_tokens(values, lengths(5), share).int().tolist() == [kept]


def test_each_completion_keeps_its_own_and_no_padding():
    values = tensor([[0.1, 9.0, 9.0], [0.3, 0.2, 0.1], [5.0, 5.0, 5.0]])
    assert top_tokens(values, lengths(1, 3, 0), 0.5).int().tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]


def test_a_share_that_is_whole_is_not_rounded_up():
    """0.2 · 15 is a little more than 3 in binary."""
    assert top_tokens(torch.arange(15.0)[None], lengths(15), 0.2).sum() == 3


def test_vppo_by_hand():
    """Means 1, 2, 4: normalised 0, 1/3, 1, whose mean is 4/9. α = 0.9 + 0.1 · 9/4 · (0, 1/3, 1): mean 1."""
    dependence = tensor([[0.5, 1.5, 1.0], [4.0, 0.0, 99.0], [4.0, 99.0, 99.0]])
    weights = vppo_weights(dependence, lengths(3, 2, 1), share=0.4)
    alpha = [0.9, 0.9 + 0.225 / 3, 0.9 + 0.225]
    expected = [[0.0, alpha[0], alpha[0]], [alpha[1], 0.0, 0.0], [alpha[2], 0.0, 0.0]]
    torch.testing.assert_close(weights, tensor(expected), rtol=0, atol=1e-12)
    assert sum(alpha) / 3 == pytest.approx(1)


def test_vppo_where_all_depend_alike():
    assert vppo_weights(torch.ones(2, 2), lengths(2, 2), share=0.5).tolist() == [[1, 0], [1, 0]]


def test_vppo_counts_those_of_other_processes():
    """Two processes with two completions each: as one with four."""
    dependence = tensor([[1.0, 3.0], [0.0, 1.0], [5.0, 5.0], [2.0, 0.0]])
    mask = lengths(2, 2, 2, 2)
    whole = vppo_weights(dependence, mask)
    means = completion_means(dependence, mask)
    parts = [vppo_weights(dependence[rows], mask[rows], lambda own: means) for rows in (slice(0, 2), slice(2, 4))]
    assert torch.equal(torch.cat(parts), whole)
    alone = torch.cat([vppo_weights(dependence[rows], mask[rows]) for rows in (slice(0, 2), slice(2, 4))])
    assert not torch.equal(alone, whole)


def test_pgpo_by_hand():
    """log(1 + S) = 0, 1, 2, 0.4: I = 0, 1/2, 1, 1/5. Weights 0, 1 + 2 · 0.1/0.6 = 4/3, 3, 1/2: their sum 29/6, to be 4."""
    dependence = tensor([[0.0, math.e - 1, math.e**2 - 1, math.exp(0.4) - 1, 99.0]])
    weights = pgpo_weights(dependence, lengths(4, 5)[:1])
    expected = [value * 24 / 29 for value in (0.0, 4 / 3, 3.0, 1 / 2)]
    torch.testing.assert_close(weights, tensor([[*expected, 0.0]]), rtol=0, atol=1e-12)


def test_pgpo_where_all_depend_alike():
    assert pgpo_weights(tensor([[0.3, 0.3], [7.0, 8.0]]), lengths(2, 1)).tolist() == [[1, 1], [1, 0]]


@pytest.mark.parametrize("name", sorted(TOKEN_WEIGHTINGS))
@given(seed=st.integers(0, 10**6), rubbish=st.sampled_from([float("nan"), float("inf"), 1e30]))
def test_what_holds_for_all(name, seed, rubbish):
    """Never negative, nothing on padding whatever lies there, no gradient, and the policy loss keeps its strength."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 7, (5,), generator=generator)
    counts[0] = 6
    mask = torch.arange(6) < counts[:, None]
    dependence = torch.rand(5, 6, generator=generator, dtype=torch.float64) * 3
    weights = TOKEN_WEIGHTINGS[name](dependence.masked_fill(~mask, rubbish), mask)
    assert (weights >= 0).all() and (weights[~mask] == 0).all() and weights.isfinite().all()
    assert torch.equal(weights, TOKEN_WEIGHTINGS[name](dependence, mask))
    if name == "pgpo":
        torch.testing.assert_close(weights.sum(-1), counts.double(), rtol=0, atol=1e-9)
    else:
        assert ((weights > 0).sum(-1) == (0.4 * counts.double()).ceil()).all()
