"""The objectives against hand arithmetic, against a second implementation, and against what theory says of them."""

import math
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from papo_hub.objectives import (
    DAPO,
    GRPO,
    GRPO_V,
    OBJECTIVES,
    PAPO_D,
    PAPO_G,
    Counts,
    Logprobs,
    Objective,
    Weights,
    gamma_at,
    terms,
    with_reduction,
)

PERCEPTION = {"perception_kl", "entropy", "masked_entropy"}
WEIGHTS = Weights(
    gamma=0.02, eta_clean=0.05, eta_masked=0.03, beta=0.01, epsilon=0.2, epsilon_high=0.28, robustness=0.04
)


def sample(seed=0, rows=4, width=5, spread=0.3, dtype=torch.float64, live=False):
    """Random log-probs with ragged completions; what lies on padding is rubbish."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    policy = -torch.rand(rows, width, generator=generator, dtype=torch.float64) * 2
    lengths = torch.randint(0, width + 1, (rows,), generator=generator)
    lengths[0] = width
    mask = torch.arange(width) < lengths[:, None]
    others = [policy + spread * draw(rows, width) for _ in range(4)]
    policy, *others = ((x.masked_fill(~mask, float("nan"))).to(dtype) for x in (policy, *others))
    old, reference, masked, noisy = others
    masked = masked.requires_grad_() if live else masked
    return Logprobs(policy.requires_grad_(), old, draw(rows).to(dtype), mask, reference, masked, noisy)


def counts_of(x):
    return Counts(x.completion_mask.sum().double(), float(len(x.advantages)))


def rows_of(x, rows):
    """Some completions of `x`, still part of its graph."""
    values = (getattr(x, f.name) for f in fields(Logprobs))
    return Logprobs(*(None if value is None else value[rows] for value in values))


def evaluate(algorithm, weights, x, counts=None):
    """Loss, gradient by the policy's log-probs, gradient by the masked ones (None: they carry none)."""
    x.policy.grad = None
    if x.masked is not None:
        x.masked.grad = None
    loss, _ = Objective(algorithm, weights)(x, counts or counts_of(x))
    loss.backward()
    return loss.detach(), x.policy.grad, None if x.masked is None else x.masked.grad


# --- algorithms are data ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("papo", "baseline"), [(PAPO_G, GRPO), (PAPO_D, DAPO)])
def test_without_its_perception_terms_papo_is_its_baseline(papo, baseline):
    assert tuple(term for term in papo if term.name not in PERCEPTION) == baseline
    assert {term.name for term in papo} - {term.name for term in baseline} == PERCEPTION


@pytest.mark.parametrize(("papo", "baseline"), [(PAPO_G, GRPO), (PAPO_D, DAPO)])
def test_zero_weights_are_the_baseline_bit_for_bit(papo, baseline):
    x = sample(dtype=torch.float32)
    weights = replace(WEIGHTS, gamma=0.0, eta_clean=0.0, eta_masked=0.0)
    loss, gradient, _ = evaluate(papo, weights, x)
    expected_loss, expected_gradient, _ = evaluate(baseline, weights, x)
    assert torch.equal(loss, expected_loss)
    assert torch.equal(gradient, expected_gradient)
    assert not torch.equal(loss, evaluate(papo, WEIGHTS, x)[0])


def test_what_each_algorithm_is_made_of():
    table = {name: [(t.name, t.weight, t.sign, t.reduction) for t in terms] for name, terms in OBJECTIVES.items()}

    def perception(reduction):
        return [
            ("perception_kl", "gamma", -1, reduction),
            ("entropy", "eta_clean", 1, reduction),
            ("masked_entropy", "eta_masked", 1, reduction),
        ]

    grpo = [("surrogate", None, 1, "sequence"), ("reference_kl", "beta", 1, "sequence")]
    dapo = [("surrogate", None, 1, "token")]
    expected = {"grpo": grpo, "dapo": dapo}
    expected |= {"papo_g": grpo + perception("sequence"), "papo_d": dapo + perception("token")}
    expected["dvrp"] = expected["papo_d"] + [("robustness_kl", "robustness", 1, "token")]
    expected["grpo_v"] = grpo + [("verified_likelihood", "robustness", -1, "sequence")]
    assert table == expected


def test_with_reduction_changes_the_reduction_only():
    changed = with_reduction(PAPO_G, "token")
    assert {term.reduction for term in changed} == {"token"}
    assert with_reduction(changed, "sequence") == PAPO_G


def test_what_an_objective_needs():
    assert Objective(PAPO_G, WEIGHTS).needs_reference and Objective(PAPO_G, WEIGHTS).needs_masked
    assert not Objective(PAPO_G, replace(WEIGHTS, beta=0.0)).needs_reference
    assert not Objective(PAPO_D, WEIGHTS).needs_reference
    assert not Objective(GRPO, WEIGHTS).needs_masked
    assert not Objective(PAPO_G, Weights(eta_clean=0.1)).needs_masked
    assert Objective(PAPO_G, Weights(eta_masked=0.1)).needs_masked
    assert Objective(PAPO_G, Weights(gamma=0.1)).needs_masked


def test_a_term_without_weight_needs_no_input():
    x = replace(sample(), reference=None, masked=None)
    loss, _, _ = evaluate(PAPO_G, Weights(eta_clean=0.1), x)
    assert loss.isfinite()


# --- hand arithmetic --------------------------------------------------------------------------------------------------


def hand():
    """Two completions, of two tokens and of one, with round numbers.

    π / π_old:  1.0, 1.5 | 0.5           A: 1 | -2
    log π:     -1.0, -1.0 | -2.0
    log π_ref - log π and log π_mask - log π: 0, ln 2 | ln 2,   ln 2, 0 | ln 2
    """
    ln2 = math.log(2)
    policy = torch.tensor([[-1.0, -1.0], [-2.0, 7.0]], dtype=torch.float64)
    old = policy - torch.tensor([[1.0, 1.5], [0.5, 1.0]], dtype=torch.float64).log()
    reference = policy + torch.tensor([[0.0, ln2], [ln2, 0.0]], dtype=torch.float64)
    masked = policy + torch.tensor([[ln2, 0.0], [ln2, 0.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True], [True, False]])
    return Logprobs(policy.requires_grad_(), old, torch.tensor([1.0, -2.0]).double(), mask, reference, masked)


# surrogate: -1, -1.28 | 1.6 (0.5 → 0.8, A = -2).  k = k3(ln 2) = 2 - ln 2 - 1: KL_ref 0, k | k; KL_prcp k, 0 | k.
# H: 1, 1 | 2.  H_mask: 1 - ln 2, 1 | 2 - ln 2.
# Token means (÷ 3):    surrogate -0.68/3, KL_ref and KL_prcp 2k/3, H 4/3, H_mask (4 - 2 ln 2)/3
# Sequence means:       surrogate (-1.14 + 1.6)/2 = 0.23, KL_ref (k/2 + k)/2 = 0.75k, KL_prcp 0.75k, H (1 + 2)/2 = 1.5,
#                       H_mask ((2 - ln 2)/2 + 2 - ln 2)/2 = 1.5 - 0.75 ln 2
def test_papo_d_by_hand():
    k, ln2 = 1 - math.log(2), math.log(2)
    expected = -0.68 / 3 - 0.02 * 2 * k / 3 + 0.05 * 4 / 3 + 0.03 * (4 - 2 * ln2) / 3
    loss, gradient, _ = evaluate(PAPO_D, WEIGHTS, hand())
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    # By log π: surrogate -1, 0 | 0; -γ·(1 - 2) = +0.02, 0 | +0.02; -η1 = -0.05 each; the frozen η2 nothing; all ÷ 3.
    assert gradient.tolist() == [
        pytest.approx([-1.03 / 3, -0.05 / 3], abs=1e-12),
        pytest.approx([-0.03 / 3, 0.0], abs=1e-12),
    ]


def test_papo_g_by_hand():
    k, ln2 = 1 - math.log(2), math.log(2)
    expected = 0.23 + 0.01 * 0.75 * k - 0.02 * 0.75 * k + 0.05 * 1.5 + 0.03 * (1.5 - 0.75 * ln2)
    loss, gradient, _ = evaluate(PAPO_G, WEIGHTS, hand())
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    # ÷ (2 completions · 2 tokens) in the first row, ÷ (2 · 1) in the second; β·(1 - 2) = -0.01 where π_ref = 2π.
    assert gradient.tolist() == [
        pytest.approx([-1.03 / 4, -0.06 / 4], abs=1e-12),
        pytest.approx([-0.04 / 2, 0.0], abs=1e-12),
    ]


def test_logged_sums_by_hand():
    k, ln2 = 1 - math.log(2), math.log(2)
    _, sums = Objective(PAPO_G, WEIGHTS)(hand(), Counts(3.0, 2.0))
    expected = {
        "surrogate": -0.68,
        "entropy": 4.0,
        "clip_fraction_high": 1.0,  # the second token
        "clip_fraction_low": 1.0,  # the third
        "reference_kl": 2 * k,
        "perception_kl": 2 * k,
        "perception_kl_squared": 2 * k**2,
        "masked_entropy": 4 - 2 * ln2,
    }
    assert {name: value.item() for name, value in sums.items()} == pytest.approx(expected, abs=1e-12)
    assert not any(value.requires_grad for value in sums.values())
    _, first = Objective(PAPO_G, WEIGHTS)(rows_of(hand(), slice(0, 1)), Counts(3.0, 2.0))
    assert (first["clip_fraction_high"], first["clip_fraction_low"]) == (1, 0)


def test_logged_is_what_the_logprobs_allow_whatever_the_terms():
    assert Objective(DAPO, WEIGHTS)(hand(), Counts(3.0, 2.0))[1].keys() >= {"reference_kl", "perception_kl"}
    bare = replace(hand(), reference=None, masked=None)
    assert Objective(DAPO, WEIGHTS)(bare, Counts(3.0, 2.0))[1].keys() == {
        "surrogate",
        "entropy",
        "clip_fraction_high",
        "clip_fraction_low",
    }


# --- a second implementation: the formulas, one token at a time, with derivatives worked out by hand ------------------


def slow_token(log_pi, log_old, log_ref, log_mask, log_noisy, advantage, w, live, use):
    """(loss, d/d log π, d/d log π_mask) of one token, as a dict by term."""

    def held(x):
        return min(max(x, -20.0), 20.0), abs(x) <= 20.0

    log_ratio, free = held(log_pi - log_old)
    ratio = math.exp(log_ratio)
    low, high = 1 - w.epsilon, 1 + w.epsilon_high
    clipped = min(max(ratio, low), high)
    if ratio * advantage <= clipped * advantage:
        value, slope = -ratio * advantage, -ratio * advantage if free else 0.0
    else:
        value, slope = -clipped * advantage, 0.0
    if w.delta is not None and advantage < 0 and value > -w.delta * advantage:
        value, slope = -w.delta * advantage, 0.0
    parts = {"surrogate": (value, slope, 0.0)}

    def k3(other):
        d, free = held(other - log_pi)
        value = math.exp(d) - d - 1
        slope = 1 - math.exp(d) if free and value < 10 else 0.0
        return min(value, 10.0), slope, -slope

    def perception():
        d, free = held(log_mask - log_pi)
        if w.estimator == "k2":
            return d * d / 2, -d * free, d * free
        return k3(log_mask)

    parts["reference_kl"] = (*k3(log_ref)[:2], 0.0)
    parts["robustness_kl"] = (*k3(log_noisy)[:2], 0.0)
    parts["verified_likelihood"] = (max(advantage, 0.0) * log_noisy, 0.0, 0.0)
    parts["perception_kl"] = perception()
    parts["entropy"] = (-log_pi, -1.0, 0.0)
    parts["masked_entropy"] = (-log_mask, 0.0, -1.0)
    weight = {
        "surrogate": 1.0,
        "reference_kl": w.beta,
        "robustness_kl": w.robustness,
        "verified_likelihood": -w.robustness,
        "perception_kl": -w.gamma,
        "entropy": w.eta_clean,
        "masked_entropy": w.eta_masked,
    }
    total = [sum(weight[name] * parts[name][i] for name in use) for i in range(3)]
    return total[0], total[1], total[2] if live else 0.0


def slow_objective(name, reduction, w, x, live):
    """PAPO's equations with plain floats: loss and both gradients (nested lists)."""
    use = {"surrogate"} | ({"reference_kl"} if name in ("grpo", "papo_g", "grpo_v") else set())
    use |= PERCEPTION if name.startswith("papo") or name == "dvrp" else set()
    use |= {"robustness_kl"} if name == "dvrp" else set()
    use |= {"verified_likelihood"} if name == "grpo_v" else set()
    rows, width = x.policy.shape
    lengths = x.completion_mask.sum(-1).tolist()
    loss, by_policy, by_masked = 0.0, [[0.0] * width for _ in range(rows)], [[0.0] * width for _ in range(rows)]
    for i in range(rows):
        share = 1 / max(sum(lengths), 1) if reduction == "token" else 1 / (rows * max(lengths[i], 1))
        for t in range(lengths[i]):
            tokens = (y[i, t].item() for y in (x.policy, x.old, x.reference, x.masked, x.noisy))
            value, slope, masked_slope = slow_token(*tokens, float(x.advantages[i]), w, live, use)
            loss += share * value
            by_policy[i][t] = share * slope
            by_masked[i][t] = share * masked_slope
    return loss, by_policy, by_masked


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(sorted(OBJECTIVES)),
    reduction=st.sampled_from([None, "token", "sequence"]),
    live=st.booleans(),
    estimator=st.sampled_from(["k2", "k3"]),
    delta=st.sampled_from([None, 1.5, 3.0]),
    spread=st.sampled_from([0.05, 0.5, 3.0, 30.0]),
    rows=st.integers(1, 5),
    width=st.integers(1, 6),
    seed=st.integers(0, 10**6),
    weights=st.tuples(*[st.sampled_from([0.0, 0.01, 0.3])] * 5),
)
def test_agrees_with_the_slow_implementation(
    name, reduction, live, estimator, delta, spread, rows, width, seed, weights
):
    gamma, eta_clean, eta_masked, beta, robustness = weights
    w = Weights(gamma, eta_clean, eta_masked, beta, 0.2, 0.28, delta, estimator, robustness)
    algorithm = OBJECTIVES[name] if reduction is None else with_reduction(OBJECTIVES[name], reduction)
    reduction = reduction or ("token" if name in ("dapo", "papo_d", "dvrp") else "sequence")
    x = sample(seed, rows, width, spread, live=live)
    expected = slow_objective(name, reduction, w, x, live)
    loss, by_policy, by_masked = evaluate(algorithm, w, x)
    scale = max(1.0, abs(expected[0]))
    assert abs(loss.item() - expected[0]) < 1e-10 * scale
    for found, wanted in ((by_policy, expected[1]), (by_masked, expected[2])):
        wanted = torch.tensor(wanted, dtype=torch.float64)
        found = torch.zeros_like(wanted) if found is None else found
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)

    single = Logprobs(
        *(
            v.detach().float() if v is not None and v.dtype == torch.float64 else v
            for v in (getattr(x, f.name) for f in fields(x))
        )
    )
    loss32, _ = Objective(algorithm, w)(single, counts_of(x))
    assert loss32.item() == pytest.approx(expected[0], rel=2e-5, abs=1e-6)


# --- denominators -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
@pytest.mark.parametrize("cuts", [[1], [2], [1, 3], [1, 2, 3]])
def test_micro_batches_sum_to_the_whole(name, cuts):
    x = sample(seed=3)
    objective = Objective(OBJECTIVES[name], WEIGHTS)
    counts = counts_of(x)
    loss, gradient, _ = evaluate(OBJECTIVES[name], WEIGHTS, x)
    _, sums = objective(x, counts)

    x.policy.grad = None
    edges = [0, *cuts, 4]
    parts = [objective(rows_of(x, slice(a, b)), counts) for a, b in zip(edges, edges[1:], strict=False)]
    total = sum(part for part, _ in parts)
    total.backward()
    torch.testing.assert_close(total.detach(), loss, rtol=0, atol=1e-14)
    torch.testing.assert_close(x.policy.grad, gradient, rtol=0, atol=1e-15)
    for key, value in sums.items():
        torch.testing.assert_close(sum(part[key] for _, part in parts), value, rtol=1e-14, atol=1e-14)


def test_each_reduction_uses_its_own_count():
    x = sample()
    once, twice = counts_of(x), Counts(counts_of(x).tokens * 2, counts_of(x).sequences)
    assert torch.equal(evaluate(PAPO_G, WEIGHTS, x, twice)[0], evaluate(PAPO_G, WEIGHTS, x, once)[0])
    torch.testing.assert_close(evaluate(PAPO_D, WEIGHTS, x, twice)[0] * 2, evaluate(PAPO_D, WEIGHTS, x, once)[0])


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
@pytest.mark.parametrize("rubbish", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_padding_has_neither_value_nor_gradient(name, rubbish):
    x = sample(live=True)  # NaN on padding
    mask = x.completion_mask

    def padded_with(value):
        found = {f.name: getattr(x, f.name) for f in fields(Logprobs)}
        data = {name: values.detach().clone() for name, values in found.items() if values is not None}
        for key in ("policy", "old", "reference", "masked", "noisy"):
            data[key].masked_fill_(~mask, value)
        return Logprobs(**data | {key: data[key].requires_grad_() for key in ("policy", "masked")})

    loss, *gradients = evaluate(OBJECTIVES[name], WEIGHTS, padded_with(-1.0))
    broken = padded_with(rubbish)
    found, *found_gradients = evaluate(OBJECTIVES[name], WEIGHTS, broken)
    assert torch.equal(found, loss)
    for a, b in zip(found_gradients, gradients, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert torch.equal(a, b) and (a[~mask] == 0).all()
    _, sums = Objective(OBJECTIVES[name], WEIGHTS)(broken, counts_of(broken))
    assert all(value.isfinite() for value in sums.values())


def test_an_update_without_a_token_is_zero_and_differentiable():
    x = replace(sample(), completion_mask=torch.zeros(4, 5, dtype=torch.bool))
    for algorithm in OBJECTIVES.values():
        loss, gradient, _ = evaluate(algorithm, WEIGHTS, x)
        assert loss == 0 and (gradient == 0).all()


def test_bfloat16_logprobs_give_a_float32_loss():
    x = sample(dtype=torch.bfloat16)
    loss, gradient, _ = evaluate(PAPO_G, WEIGHTS, x)
    assert loss.dtype == torch.float32 and gradient.dtype == torch.bfloat16
    wide = Logprobs(
        **{
            f.name: v.detach().float() if v is not None and v.is_floating_point() else v
            for f in fields(x)
            for v in [getattr(x, f.name)]
        }
    )
    assert torch.equal(loss, Objective(PAPO_G, WEIGHTS)(wide, counts_of(x))[0])


# --- the schedule -----------------------------------------------------------------------------------------------------


def test_fixed_gamma():
    assert [gamma_at(step, 10, 0.02, None, 0.5) for step in (0, 5, 9)] == [0.02] * 3


def test_annealed_gamma():
    # 0.01 → 0 over the first half of 10 steps: 1/5 less a step, then 0.
    found = [gamma_at(step, 10, 0.01, 0.0, 0.5) for step in range(10)]
    assert found == pytest.approx([0.01, 0.008, 0.006, 0.004, 0.002, 0, 0, 0, 0, 0], abs=1e-15)
    assert gamma_at(2, 10, 0.01, 0.03, 0.4) == pytest.approx(0.02)  # it may rise: half way after 2 of 4 steps
    assert [gamma_at(step, 10, 0.01, 0.0, 0.0) for step in (0, 1)] == [0.01, 0.0]  # at once


def test_etas_are_scaled_with_gamma():
    weights = WEIGHTS.discounted(0.005)  # a quarter of 0.02
    assert (weights.gamma, weights.eta_clean, weights.eta_masked) == pytest.approx((0.005, 0.0125, 0.0075))
    assert replace(weights, gamma=0.02, eta_clean=0.05, eta_masked=0.03) == WEIGHTS
    assert WEIGHTS.discounted(0.02) == WEIGHTS
    assert Objective(PAPO_D, WEIGHTS.discounted(0.0)).active == DAPO


def test_etas_without_gamma_stay():
    assert Weights(eta_clean=0.05).discounted(0.0) == Weights(eta_clean=0.05)


# --- what the sampled terms are in expectation ------------------------------------------------------------------------
# One token of a vocabulary of 7: the expectation over samples of π is a sum over the vocabulary with π held fixed.


@pytest.fixture
def views():
    generator = torch.Generator().manual_seed(0)
    clean, masked = (torch.randn(7, generator=generator, dtype=torch.float64) for _ in range(2))
    return clean.requires_grad_(), masked.requires_grad_()


def expected_over_samples(values, log_pi):
    return (log_pi.detach().exp() * values).sum()


def gradients(loss, *inputs):
    found = torch.autograd.grad(loss, inputs, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs, strict=True)]


def kl(log_p, log_q):
    return (log_p.exp() * (log_p - log_q)).sum()


def test_k3_estimates_the_divergence_of_clean_from_masked(views):
    log_pi, log_mask = (x.log_softmax(-1) for x in views)
    estimate = expected_over_samples(terms.perception_kl(log_pi, log_mask), log_pi)
    torch.testing.assert_close(estimate, kl(log_pi, log_mask), rtol=0, atol=1e-14)


def test_k3_as_a_loss_has_the_gradient_of_the_reverse_divergence(views):
    clean, masked = views
    log_pi, log_mask = clean.log_softmax(-1), masked.log_softmax(-1)
    by_clean, by_masked = gradients(expected_over_samples(terms.perception_kl(log_pi, log_mask), log_pi), clean, masked)
    (reverse,) = gradients(kl(log_mask, log_pi), clean)
    forward, forward_masked = gradients(kl(log_pi, log_mask), clean, masked)
    torch.testing.assert_close(by_clean, reverse, rtol=0, atol=1e-14)
    torch.testing.assert_close(by_masked, forward_masked, rtol=0, atol=1e-14)
    assert (by_clean - forward).abs().max() > 0.05


def test_k2_as_a_loss_has_the_gradient_of_the_divergence(views):
    clean, masked = views
    log_pi, log_mask = clean.log_softmax(-1), masked.log_softmax(-1)
    (by_clean,) = gradients(expected_over_samples(terms.perception_kl(log_pi, log_mask, "k2"), log_pi), clean)
    torch.testing.assert_close(by_clean, gradients(kl(log_pi, log_mask), clean)[0], rtol=0, atol=1e-14)


def test_entropy_of_samples_has_no_gradient_on_policy(views):
    clean, _ = views
    log_pi = clean.log_softmax(-1)
    assert gradients(expected_over_samples(terms.entropy(log_pi), log_pi), clean)[0].abs().max() < 1e-15
    # Off-policy the same term acts: samples of another distribution.
    stale = torch.full((7,), 1 / 7, dtype=torch.float64)
    assert gradients((stale * terms.entropy(log_pi)).sum(), clean)[0].abs().max() > 0.01


def test_frozen_masked_entropy_has_no_gradient():
    x = sample()
    with_eta, without = (evaluate(PAPO_D, replace(WEIGHTS, eta_masked=eta), x) for eta in (WEIGHTS.eta_masked, 0.0))
    assert with_eta[0] != without[0]
    assert torch.equal(with_eta[1], without[1])


def test_live_net_weight_on_the_masked_branch_is_eta_minus_gamma(views):
    """-γ·KL + η2·H_mask: γ pulls π_mask away from π, η2 pulls it back, by the same gradient (of the cross-entropy)."""
    clean, masked = views
    log_pi, log_mask = clean.log_softmax(-1), masked.log_softmax(-1)
    (direction,) = gradients(expected_over_samples(-log_mask, log_pi), masked)
    mask = torch.ones(1, 7, dtype=torch.bool)
    for gamma, eta in ((0.02, 0.03), (0.02, 0.02), (0.04, 0.01)):
        w = Weights(gamma=gamma, eta_masked=eta)
        loss = expected_over_samples(
            eta * terms.entropy(log_mask) - gamma * terms.perception_kl(log_pi, log_mask), log_pi
        )
        torch.testing.assert_close(gradients(loss, masked)[0], (eta - gamma) * direction, rtol=0, atol=1e-15)
        # The same through the objective, on samples: on-policy, token after token, each as often as π has it.
        x = Logprobs(log_pi[None], log_pi.detach()[None], torch.zeros(1), mask, masked=log_mask[None])
        objective = Objective(PAPO_D, w)
        losses = [objective(one_token(x, o), Counts(1.0, 1.0))[0] for o in range(7)]
        (found,) = gradients(sum(p * loss for p, loss in zip(log_pi.exp().tolist(), losses, strict=True)), masked)
        torch.testing.assert_close(found, (eta - gamma) * direction, rtol=0, atol=1e-14)


def one_token(x, o):
    column = slice(o, o + 1)
    return Logprobs(
        x.policy[:, column], x.old[:, column], x.advantages, x.completion_mask[:, column], masked=x.masked[:, column]
    )


# --- what of the divergence counts --------------------------------------------------------------------------------------


def one(policy, masked, advantages, **others):
    """Completions without padding; nothing but the perception KL in the loss, with weight 1 and sign -1."""
    policy, masked = (torch.tensor(values, dtype=torch.float64) for values in (policy, masked))
    advantages = torch.tensor(advantages, dtype=torch.float64)
    mask = torch.ones(policy.shape, dtype=torch.bool)
    return Logprobs(policy.requires_grad_(), policy.detach(), advantages, mask, masked=masked, **others)


ONLY_PERCEPTION = tuple(term for term in PAPO_D if term.name == "perception_kl")
# k3 of d = -1, -2, -3, 0: e^d - d - 1 = 1/e, e^-2 + 1, e^-3 + 2, 0.
K3 = [0.3678794412, 1.1353352832, 2.0497870684, 0.0]


def perception_loss(x, **weights):
    loss, sums = Objective(ONLY_PERCEPTION, Weights(gamma=1.0, **weights))(x, counts_of(x))
    return loss, sums


def test_the_largest_share_of_tokens_counts():
    """⌈0.3 · 4⌉ = 2 of 4 tokens; the log shows all."""
    x = one([[-1.0] * 4], [[-2.0, -3.0, -4.0, -1.0]], [1.0])
    loss, sums = perception_loss(x, perception_top_p=0.3)
    assert loss.item() == pytest.approx(-(K3[1] + K3[2]) / 4, abs=1e-9)
    assert sums["perception_kl"].item() == pytest.approx(sum(K3), abs=1e-9)
    loss.backward()
    assert (x.policy.grad != 0).tolist() == [[False, True, True, False]]


def test_what_is_above_the_clip_counts_as_the_clip():
    x = one([[-1.0] * 4], [[-2.0, -3.0, -4.0, -1.0]], [1.0])
    loss, _ = perception_loss(x, perception_clip=1.0)
    assert loss.item() == pytest.approx(-(K3[0] + 1.0 + 1.0 + 0.0) / 4, abs=1e-9)
    loss.backward()
    assert (x.policy.grad != 0).tolist() == [[True, False, False, False]]


def test_dependence_is_rewarded_on_better_completions_and_punished_on_worse():
    x = one([[-1.0, -1.0], [-1.0, -1.0]], [[-2.0, -1.0], [-3.0, -1.0]], [0.5, -2.0])
    x = replace(x, perception_weights=x.advantages)
    loss, sums = perception_loss(x)
    assert loss.item() == pytest.approx(-(0.5 * K3[0] - 2.0 * K3[1]) / 4, abs=1e-9)
    assert sums["perception_kl"].item() == pytest.approx(K3[0] + K3[1], abs=1e-9)  # the divergence itself
    loss.backward()
    by_none = one([[-1.0, -1.0], [-1.0, -1.0]], [[-2.0, -1.0], [-3.0, -1.0]], [0.5, -2.0])
    perception_loss(by_none)[0].backward()
    assert torch.equal(x.policy.grad, by_none.policy.grad * x.advantages[:, None])


def test_better_completions_are_also_learned_with_noise():
    """λ = 0.5. First row: A = 2, two tokens: -0.5 · 2 · (-1 - 3) / 2 = 2, of two completions. The second is worse: nothing."""
    policy = torch.full((2, 2), -1.0, dtype=torch.float64, requires_grad=True)
    noisy = torch.tensor([[-1.0, -3.0], [-2.0, -5.0]], dtype=torch.float64, requires_grad=True)
    advantages, mask = torch.tensor([2.0, -2.0], dtype=torch.float64), torch.ones(2, 2, dtype=torch.bool)
    x = Logprobs(policy, policy.detach(), advantages, mask, noisy=noisy)
    plain, _ = Objective(GRPO_V, Weights())(x, counts_of(x))
    loss, _ = Objective(GRPO_V, Weights(robustness=0.5))(x, counts_of(x))
    assert (loss - plain).item() == pytest.approx(1.0, abs=1e-12)
    loss.backward()
    assert torch.equal(noisy.grad, torch.tensor([[-0.25, -0.25], [0.0, 0.0]], dtype=torch.float64))


def test_token_weights_are_weights_of_the_advantage():
    """And of nothing else. r = 1: the surrogate is -A·w."""
    policy = torch.full((1, 3), -1.0, dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([[0.0, 2.0, 0.5]], dtype=torch.float64)
    advantage, mask = torch.tensor([2.0], dtype=torch.float64), torch.ones(1, 3, dtype=torch.bool)
    masked = torch.full((1, 3), -2.0, dtype=torch.float64)
    x = Logprobs(policy, policy.detach(), advantage, mask, masked=masked, token_weights=weights)
    loss, _ = Objective(PAPO_D, Weights(gamma=0.1))(x, counts_of(x))
    assert loss.item() == pytest.approx(-2.0 * 2.5 / 3 - 0.1 * K3[0], abs=1e-9)


def test_what_is_known_of_the_whole_vocabulary_takes_the_place_of_estimates():
    """By hand: divergence 0.5, entropies 0.7 and 1.1 a token."""
    given = {"divergence": 0.5, "entropy": 0.7, "masked_entropy": 1.1}
    exact = {name: torch.full((1, 2), value, dtype=torch.float64) for name, value in given.items()}
    x = one([[-1.0, -1.0]], [[-2.0, -3.0]], [0.0], **exact)
    loss, sums = Objective(PAPO_D, Weights(gamma=0.1, eta_clean=0.01, eta_masked=0.02))(x, counts_of(x))
    assert loss.item() == pytest.approx(-0.1 * 0.5 + 0.01 * 0.7 + 0.02 * 1.1, abs=1e-12)
    found = {name: sums[name].item() / 2 for name in ("perception_kl", "entropy", "masked_entropy")}
    assert found == {name: pytest.approx(value) for name, value in zip(found, given.values(), strict=True)}


def test_samples_of_another_engine_count_by_how_likely_the_policy_finds_them():
    """On-policy, A = 2: -A · w at each token, w = min(π_old / π_sampled, 2). Token 1: e^(-1 + 1.2) = 1.22140; token 2:
    e^(-1 + 2) = 2.718, so 2. The mean of -2.44281 and -4 is -3.22140; uncorrected, -2. The gap: (0.2 + 1) / 2 = 0.6."""
    logprobs = torch.full((1, 2), -1.0, dtype=torch.float64, requires_grad=True)
    sampled = torch.tensor([[-1.2, -2.0]], dtype=torch.float64)
    x = Logprobs(logprobs, logprobs.detach(), torch.tensor([2.0]), torch.ones(1, 2, dtype=torch.bool), sampled=sampled)
    corrected, sums = Objective(GRPO, Weights())(x, Counts(2, 1))
    assert corrected.item() == pytest.approx(-3.22140, abs=1e-5) and sums["sampling_gap"].item() / 2 == pytest.approx(
        0.6
    )
    (gradient,) = torch.autograd.grad(corrected, logprobs)
    torch.testing.assert_close(gradient, torch.tensor([[-1.22140, -2.0]], dtype=torch.float64), atol=1e-5, rtol=0)
    plain, _ = Objective(GRPO, Weights(importance_correction=False))(x, Counts(2, 1))
    assert plain.item() == pytest.approx(-2.0)
    weighted = replace(x, token_weights=torch.tensor([[0.5, 1.0]], dtype=torch.float64))  # both weights count
    assert Objective(GRPO, Weights())(weighted, Counts(2, 1))[0].item() == pytest.approx(-(1.22140 + 4) / 2, abs=1e-5)
