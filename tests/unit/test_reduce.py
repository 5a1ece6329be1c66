import pytest
import torch
from torch import tensor

from papo_hub.objectives import reduce

# Two completions: three tokens and one token. 1 + 2 + 6 = 9 and 5.
VALUES = tensor([[1.0, 2.0, 6.0], [5.0, 100.0, 100.0]], dtype=torch.float64)
MASK = tensor([[True, True, True], [True, False, False]])


def test_token_mean():
    assert reduce.token_mean(VALUES, MASK) == 3.5  # (9 + 5) / 4
    assert reduce.token_mean(VALUES, MASK, 10) == 1.4  # 14 / 10: the count of the whole update
    assert reduce.token_mean(VALUES, MASK, tensor(10.0)) == 1.4


def test_sequence_mean():
    assert reduce.sequence_mean(VALUES, MASK) == 4.0  # (9 / 3 + 5 / 1) / 2
    assert reduce.sequence_mean(VALUES, MASK, 16) == 0.5  # (3 + 5) / 16
    assert reduce.sequence_mean(VALUES, MASK, tensor(16.0)) == 0.5


def test_an_integer_mask_is_a_mask():
    assert reduce.token_mean(VALUES, MASK.long()) == 3.5
    assert reduce.sequence_mean(VALUES, MASK.long()) == 4.0


def test_an_empty_completion_adds_nothing_and_is_counted():
    mask = tensor([[True, True, True], [False, False, False]])
    assert reduce.token_mean(VALUES, mask) == 3.0  # 9 / 3
    assert reduce.sequence_mean(VALUES, mask) == 1.5  # (9 / 3 + 0) / 2


@pytest.mark.parametrize("mean", [reduce.token_mean, reduce.sequence_mean])
def test_no_token_at_all_is_zero(mean):
    nothing = torch.zeros_like(MASK)
    assert mean(VALUES, nothing) == 0
    assert mean(VALUES, nothing, 0) == 0
    assert mean(VALUES, nothing, tensor(0.0)) == 0


def test_token_mean_gradient():
    values = VALUES.clone().requires_grad_()
    reduce.token_mean(values, MASK).backward()
    assert values.grad.tolist() == [[0.25, 0.25, 0.25], [0.25, 0, 0]]  # 1 / 4 on each of 4 tokens


def test_sequence_mean_gradient():
    values = VALUES.clone().requires_grad_()
    reduce.sequence_mean(values, MASK).backward()
    # 1 / (2 completions · 3 tokens) and 1 / (2 · 1)
    torch.testing.assert_close(values.grad, tensor([[1 / 6] * 3, [0.5, 0, 0]], dtype=torch.float64), rtol=0, atol=1e-15)


@pytest.mark.parametrize("mean", [reduce.token_mean, reduce.sequence_mean])
@pytest.mark.parametrize("rubbish", [float("nan"), float("inf"), -float("inf")])
def test_padding_never_counts(mean, rubbish):
    values = VALUES.masked_fill(~MASK, rubbish).requires_grad_()
    result = mean(values, MASK)
    result.backward()
    assert result == mean(VALUES, MASK)
    assert values.grad.isfinite().all()
    assert (values.grad[~MASK] == 0).all()


@pytest.mark.parametrize("mean, count", [(reduce.token_mean, 4), (reduce.sequence_mean, 2)])
def test_parts_over_the_count_of_the_whole_sum_to_the_whole(mean, count):
    parts = mean(VALUES[:1], MASK[:1], count) + mean(VALUES[1:], MASK[1:], count)
    assert parts == mean(VALUES, MASK)
    mean_of_means = (mean(VALUES[:1], MASK[:1]) + mean(VALUES[1:], MASK[1:])) / 2
    # Token means of ragged parts do not average to the token mean; sequence means of equal parts do.
    assert (mean_of_means == mean(VALUES, MASK)) == (mean is reduce.sequence_mean)
