"""Each formula against numbers worked out by hand, values and gradients."""

import math

import pytest
import torch
from torch import tensor

from papo_hub.objectives import terms

LOW, HIGH = 0.2, 0.28  # unequal, so that one in the place of the other shows


def row(*values):
    return tensor([values], dtype=torch.float64)


def with_gradient(term, *inputs):
    """The term's single value and its gradient by the first input."""
    first = row(inputs[0]).requires_grad_()
    value = term(first, *(row(x) for x in inputs[1:]))
    value.sum().backward()
    return value.item(), first.grad.item()


def surrogate(ratio, advantage, dual_clip=3.0, low=LOW, high=HIGH):
    """Loss and gradient by log π of one token whose ratio π / π_old is given."""

    def term(logprobs, old):
        return terms.clipped_surrogate(logprobs, old, tensor([advantage], dtype=torch.float64), low, high, dual_clip)

    return with_gradient(term, math.log(ratio) - 0.7, -0.7)


# d(-r·A) / d log π = -r·A where the clip does not bind, 0 where it does.
@pytest.mark.parametrize(
    ("ratio", "advantage", "dual_clip", "loss", "gradient"),
    [
        (1.0, 2.0, 3.0, -2.0, -2.0),  # on-policy: -1 · 2
        (1.1, 2.0, 3.0, -2.2, -2.2),  # inside: -1.1 · 2
        (1.25, 2.0, 3.0, -2.5, -2.5),  # above 1 + ε_low, below 1 + ε_high: inside
        (1.5, 2.0, 3.0, -2.56, 0.0),  # clipped high: min(1.5 · 2, 1.28 · 2) = 2.56
        (5.0, 2.0, 3.0, -2.56, 0.0),  # the dual clip is for A < 0 only
        (0.5, 2.0, 3.0, -1.0, -1.0),  # A > 0 is not clipped low: min(0.5 · 2, 0.8 · 2) = 1
        (0.9, -2.0, 3.0, 1.8, 1.8),  # inside: -min(0.9 · -2, 0.9 · -2)
        (0.75, -2.0, 3.0, 1.6, 0.0),  # above 1 - ε_high, below 1 - ε_low: clipped
        (0.5, -2.0, 3.0, 1.6, 0.0),  # clipped low: min(-1, 0.8 · -2) = -1.6
        (1.5, -2.0, 3.0, 3.0, 3.0),  # A < 0 is not clipped high: min(-3, -2.56) = -3
        (5.0, -2.0, 3.0, 6.0, 0.0),  # dual clip: 5 · 2 = 10, at most 3 · 2
        (5.0, -2.0, None, 10.0, 10.0),  # without it
        (5.0, -2.0, 4.0, 8.0, 0.0),  # another limit
        (5.0, 0.0, 3.0, 0.0, 0.0),  # no advantage, no loss
    ],
)
def test_clipped_surrogate(ratio, advantage, dual_clip, loss, gradient):
    value, slope = surrogate(ratio, advantage, dual_clip)
    assert value == pytest.approx(loss, abs=1e-12)
    assert slope == pytest.approx(gradient, abs=1e-12)


def test_surrogate_is_finite_at_any_ratio():
    # |log r| is held within 20: e^20 = 485165195.41, e^-20 = 2.0611536e-9; beyond it there is no gradient.
    assert surrogate(math.e**25, -1.0, None) == (pytest.approx(485165195.40979, rel=1e-12), 0)
    assert surrogate(math.e**-25, 1.0) == (pytest.approx(-2.061153622e-9, rel=1e-9), 0)


def test_surrogate_without_a_clip_range_keeps_the_on_policy_gradient():
    assert surrogate(1.0, 2.0, low=0.0, high=0.0) == (-2.0, -2.0)


def test_one_advantage_a_completion_or_one_a_token():
    logprobs, old = torch.zeros(2, 3), torch.zeros(2, 3)
    loss = terms.clipped_surrogate(logprobs, old, tensor([1.0, -2.0]), LOW, HIGH)
    assert loss.tolist() == [[-1, -1, -1], [2, 2, 2]]
    per_token = tensor([[1.0, 2.0, 3.0], [-1.0, -2.0, -3.0]])
    assert torch.equal(terms.clipped_surrogate(logprobs, old, per_token, LOW, HIGH), -per_token)


# d = log π_other - log π. k2 = d² / 2, k3 = e^d - d - 1; by log π: -d, 1 - e^d.
@pytest.mark.parametrize(
    ("estimator", "d", "value", "gradient"),
    [
        ("k2", -0.5, 0.125, 0.5),
        ("k3", -0.5, 0.1065306597, 0.3934693403),  # e^-0.5 = 0.6065306597
        ("k2", 2.0, 2.0, -2.0),
        ("k3", 2.0, 4.3890560989, -6.3890560989),  # e^2 = 7.3890560989
        ("k3", 0.0, 0.0, 0.0),
        ("k3", 3.0, 10.0, 0.0),  # e^3 - 4 = 16.09: at most 10, and flat there
        ("k3", -10.5, 9.5000275364, 0.9999724636),  # e^-10.5 = 2.75364e-5: just below the limit
        ("k3", -15.0, 10.0, 0.0),  # e^-15 + 14
        ("k3", -25.0, 10.0, 0.0),
        ("k2", -25.0, 200.0, 0.0),  # |d| within 20
        ("k2", -15.0, 112.5, 15.0),  # the limit of 10 is k3's alone
    ],
)
def test_perception_kl(estimator, d, value, gradient):
    found = with_gradient(lambda clean, masked: terms.perception_kl(clean, masked, estimator), -30.0, -30.0 + d)
    assert found == (pytest.approx(value, abs=1e-9), pytest.approx(gradient, abs=1e-9))


@pytest.mark.parametrize(("d", "value", "gradient"), [(-0.5, 0.1065306597, 0.3934693403), (3.0, 10.0, 0.0)])
def test_reference_kl(d, value, gradient):
    found = with_gradient(terms.reference_kl, -1.0, -1.0 + d)
    assert found == (pytest.approx(value, abs=1e-9), pytest.approx(gradient, abs=1e-9))


def test_live_masked_logprobs_get_a_gradient():
    # dk3 / d log π_mask = e^d - 1 = 0.6065306597 - 1
    masked = row(-1.5).requires_grad_()
    terms.perception_kl(row(-1.0), masked).sum().backward()
    assert masked.grad.item() == pytest.approx(-0.3934693403, abs=1e-9)


def test_the_paper_estimator_is_the_default():
    clean, masked = row(-1.0, -2.0), row(-1.5, -1.0)
    assert torch.equal(terms.perception_kl(clean, masked), terms.perception_kl(clean, masked, "k3"))


def test_unknown_estimator():
    with pytest.raises(ValueError, match="'k4' is neither k2 nor k3"):
        terms.perception_kl(row(-1.0), row(-1.0), "k4")


def test_importance_weights():
    """π_old / π_sampled: e^0.1 = 1.10517, e^-0.5 = 0.60653; e^1 = 2.71828 counts as 2; where both engines agree, 1."""
    old = row(-1.0, -2.0, -0.5, -3.0).requires_grad_()
    weights = terms.importance_weights(old, row(-1.1, -1.5, -1.5, -3.0))
    assert not weights.requires_grad
    torch.testing.assert_close(weights, row(1.10517, 0.60653, 2.0, 1.0), atol=1e-5, rtol=0)


def test_entropy():
    assert with_gradient(terms.entropy, -1.25) == (1.25, -1)


def test_clip_fractions():
    # Only what loses its gradient counts: above 1.28 with A > 0, below 0.8 with A < 0.
    ratios = tensor([[1.5, 1.25, 0.5, 0.75, 1.0]], dtype=torch.float64)
    for advantage, expected in ((1.0, ([1, 0, 0, 0, 0], [0] * 5)), (-1.0, ([0] * 5, [0, 0, 1, 1, 0]))):
        found = terms.clip_fractions(ratios.log(), torch.zeros_like(ratios), tensor([advantage]), LOW, HIGH)
        assert [part[0].tolist() for part in found] == list(expected)
    assert not any(part.any() for part in terms.clip_fractions(ratios.log(), ratios * 0, tensor([0.0]), LOW, HIGH))


def test_clip_fractions_count_where_the_gradient_is_zero():
    generator = torch.Generator().manual_seed(0)
    logprobs = torch.randn(8, 32, generator=generator, dtype=torch.float64).requires_grad_()
    old = torch.randn(8, 32, generator=generator, dtype=torch.float64)
    advantages = torch.randn(8, generator=generator, dtype=torch.float64)
    terms.clipped_surrogate(logprobs, old, advantages, LOW, HIGH, None).sum().backward()
    high, low = terms.clip_fractions(logprobs, old, advantages, LOW, HIGH)
    assert high.any() and low.any()
    assert torch.equal((high + low).bool(), logprobs.grad == 0)


TERMS = {
    "surrogate": lambda x, y: terms.clipped_surrogate(x, y, tensor([1.0, -1.0]), LOW, HIGH),
    "reference_kl": terms.reference_kl,
    "robustness_kl": terms.robustness_kl,
    "k2": lambda x, y: terms.perception_kl(x, y, "k2"),
    "k3": terms.perception_kl,
    "entropy": lambda x, y: terms.entropy(x),
}


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(name, dtype):
    generator = torch.Generator().manual_seed(0)
    x, y = (-torch.rand(2, 64, generator=generator).mul(3).to(dtype) for _ in range(2))
    x.requires_grad_()
    result = TERMS[name](x, y)
    assert result.dtype == torch.float32
    assert torch.equal(result, TERMS[name](x.float(), y.float()))
    result.sum().backward()
    assert x.grad.dtype == dtype and x.grad.isfinite().all()


@pytest.mark.parametrize("name", TERMS)
def test_float64_is_kept_and_gradients_are_those_of_finite_differences(name):
    generator = torch.Generator().manual_seed(1)
    x, y = (-torch.rand(2, 8, generator=generator, dtype=torch.float64).mul(3).requires_grad_() for _ in range(2))
    assert TERMS[name](x, y).dtype == torch.float64
    if name == "surrogate":
        y = y.detach()  # the old policy has none
    assert torch.autograd.gradcheck(TERMS[name], (x, y), eps=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("rubbish", [float("nan"), float("inf"), -float("inf")])
def test_one_broken_token_does_not_reach_another(name, rubbish):
    x = tensor([[-1.0, rubbish], [-2.0, -0.5]]).requires_grad_()
    y = tensor([[-1.2, -1.0], [-1.9, rubbish]])
    keep = tensor([[True, False], [True, False]])
    torch.where(keep, TERMS[name](x, y), 0.0).sum().backward()
    assert x.grad.isfinite().all()
    assert (x.grad[~keep] == 0).all() and (x.grad[keep] != 0).all()
