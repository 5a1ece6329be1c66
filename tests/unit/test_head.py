"""The output layer in chunks against the plain formulas over all logits, their gradients by autograd."""

from math import log

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from papo_hub.head import head_logprobs, head_views
from papo_hub.randomness import derived_generator

N, WIDTH, VOCABULARY = 7, 5, 11
EXACT = 1e-13  # float64, of log-probs and of the largest entry of a gradient; seen: 6e-15
SINGLE = 5e-6  # float32; seen: 1.4e-6
# bfloat16 products. The log-probs are those of the plain formula in the same precision, since both start from the same
# rounded logits (seen: 1e-6); its gradients are rounded elsewhere (seen: 0.007).
ROUNDED = 5e-6
ROUNDED_GRADIENT = 0.02
CHUNKS = pytest.mark.parametrize("elements", [1, 3 * VOCABULARY, 2**24], ids=["rows", "three rows", "whole"])


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=derived_generator("head", seed, *shape), dtype=torch.float64).to(dtype)


def make(bias=True, dtype=torch.float64, hidden_dtype=None):
    head = nn.utils.skip_init(nn.Linear, WIDTH, VOCABULARY, bias=bias, dtype=dtype)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(random(*parameter.shape, seed=1))
    hidden = random(N, WIDTH, dtype=hidden_dtype or dtype).requires_grad_()
    ids = torch.tensor([0, 10, 3, 3, 7, 0, 5])
    return head, hidden, ids


def dense(hidden, head, ids, temperature):
    """Log-probs and entropies from all logits at once."""
    logits = head(hidden)
    log_p = (logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature).log_softmax(-1)
    return log_p.gather(-1, ids[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


def dense_divergence(hidden, masked, head, temperature, kind):
    p, q = (
        (logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature).softmax(-1)
        for logits in (head(hidden), head(masked))
    )
    middle = (p + q) / 2

    def kl(a, b):
        return (a * (a / b).log()).sum(-1)

    return kl(p, q) if kind == "kl" else (kl(p, middle) + kl(q, middle)) / 2


def dense_views(hidden, masked, head, ids, temperature, kind="kl"):
    (logprobs, entropy), (masked_logprobs, masked_entropy) = (
        dense(states, head, ids, temperature) for states in (hidden, masked)
    )
    divergence = dense_divergence(hidden, masked, head, temperature, kind)
    return logprobs, masked_logprobs, entropy, masked_entropy, divergence


def gradients(values, *leaves):
    """Of a sum in which every value has another weight."""
    total = sum((value * random(len(value), seed=2 + i, dtype=value.dtype)).sum() for i, value in enumerate(values))
    return torch.autograd.grad(total, leaves, retain_graph=True)


def assert_near(values, expected, tolerance):
    for value, other in zip(values, expected, strict=True):
        scale = other.detach().abs().max().item()
        assert scale > 0.01  # something to compare
        torch.testing.assert_close(value, other, rtol=0, atol=tolerance * max(scale, 1.0 if value.ndim == 1 else 0))


@pytest.fixture
def quarters():
    """Two tokens of logits 0 and ln 3, and both 0: probabilities 1/4 and 3/4, and 1/2 each."""
    head = nn.Linear(1, 2, bias=False, dtype=torch.float64)
    head.weight.data = torch.tensor([[0.0], [log(3)]], dtype=torch.float64)
    return head, torch.ones(2, 1, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64)


@pytest.mark.parametrize(("temperature", "small"), [(1.0, 1 / 4), (0.5, 1 / 10)])
def test_log_probs_and_entropies_by_hand(quarters, temperature, small):
    """At temperature 1/2 the odds of 3 to 1 are squared: 9 to 1."""
    head, hidden, even = quarters
    ids = torch.tensor([0, 1])
    entropy = -small * log(small) - (1 - small) * log(1 - small)
    views = head_views(hidden, even, head, ids, temperature)
    assert views.logprobs.tolist() == pytest.approx([log(small), log(1 - small)], abs=1e-12)
    assert views.masked_logprobs.tolist() == pytest.approx([log(1 / 2)] * 2, abs=1e-12)
    assert views.entropy.tolist() == pytest.approx([entropy, entropy], abs=1e-12)
    assert views.masked_entropy.tolist() == pytest.approx([log(2)] * 2, abs=1e-12)
    alone = head_logprobs(hidden, head, ids, temperature)
    assert alone.tolist() == pytest.approx([log(small), log(1 - small)], abs=1e-12)


def divergence(hidden, masked, head, temperature=1.0, kind="kl"):
    return head_views(hidden, masked, head, torch.zeros(len(hidden), dtype=torch.long), temperature, kind).divergence


def test_divergences_by_hand(quarters):
    """KL((1/4, 3/4) ‖ (1/2, 1/2)) = 1/4 ln(1/2) + 3/4 ln(3/2); the middle of the two is (3/8, 5/8)."""
    head, hidden, even = quarters
    kl = 1 / 4 * log(1 / 2) + 3 / 4 * log(3 / 2)
    js = (1 / 4 * log(2 / 3) + 3 / 4 * log(6 / 5) + 1 / 2 * log(4 / 3) + 1 / 2 * log(4 / 5)) / 2
    assert divergence(hidden, even, head).tolist() == pytest.approx([kl, kl], abs=1e-12)
    assert divergence(hidden, even, head, kind="js").tolist() == pytest.approx([js, js], abs=1e-12)
    sharper = 1 / 10 * log(1 / 5) + 9 / 10 * log(9 / 5)
    assert divergence(hidden, even, head, 0.5).tolist() == pytest.approx([sharper] * 2, abs=1e-12)


def test_divergence_of_what_never_meets_is_bounded(quarters):
    """(1, 0) and (0, 1): ln 2, though the logarithms of what has no probability are huge."""
    head, hidden, _ = quarters
    far = divergence(1e4 * hidden, -1e4 * hidden, head, kind="js")
    assert far.tolist() == pytest.approx([log(2)] * 2, abs=1e-12)
    with pytest.raises(ValueError, match="write kl or js"):
        divergence(hidden, hidden, head, kind="hellinger")


@CHUNKS
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_equal_the_plain_formula(monkeypatch, elements, bias, temperature):
    monkeypatch.setattr("papo_hub.head.CHUNK_ELEMENTS", elements)
    head, hidden, ids = make(bias)
    leaves = [hidden, *head.parameters()]
    found, expected = [head_logprobs(hidden, head, ids, temperature)], dense(hidden, head, ids, temperature)[:1]
    assert_near(found, expected, EXACT)
    assert_near(gradients(found, *leaves), gradients(expected, *leaves), EXACT)


@CHUNKS
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["kl", "js"])
def test_both_views_equal_the_plain_formula(monkeypatch, elements, bias, kind):
    monkeypatch.setattr("papo_hub.head.CHUNK_ELEMENTS", elements)
    head, hidden, ids = make(bias)
    masked = random(N, WIDTH, seed=9).requires_grad_()
    leaves = [hidden, masked, *head.parameters()]
    found = head_views(hidden, masked, head, ids, 0.7, kind)
    expected = dense_views(hidden, masked, head, ids, 0.7, kind)
    assert_near(found, expected, EXACT)
    assert_near(gradients(found, *leaves), gradients(expected, *leaves), EXACT)


@CHUNKS
def test_a_masked_view_without_gradient_is_a_constant(monkeypatch, elements):
    """Of the output layer, too: its gradient is that of the clean view alone."""
    monkeypatch.setattr("papo_hub.head.CHUNK_ELEMENTS", elements)
    head, hidden, ids = make()
    masked = random(N, WIDTH, seed=9)
    leaves = [hidden, *head.parameters()]
    found = head_views(hidden, masked, head, ids, 0.7)
    assert [value.requires_grad for value in found] == [True, False, True, False, True]
    with torch.no_grad():
        log_q = (head(masked) / 0.7).log_softmax(-1)
    log_p = (head(hidden) / 0.7).log_softmax(-1)
    expected = (log_p.exp() * (log_p - log_q)).sum(-1)
    assert_near(gradients([found.divergence], *leaves), gradients([expected], *leaves), EXACT)
    through_both = dense_views(hidden, masked, head, ids, 0.7)[-1]
    other = gradients([through_both], head.weight)[0] - gradients([expected], head.weight)[0]
    assert other.abs().max() > 0.01  # what the comparison would show


@CHUNKS
def test_a_tied_weight_gets_both_gradients(monkeypatch, elements):
    monkeypatch.setattr("papo_hub.head.CHUNK_ELEMENTS", elements)
    head, _, ids = make(bias=False)

    def of_weight(function):
        hidden = nn.functional.embedding(ids.flip(0), head.weight).tanh()
        return gradients([function(hidden, head, ids, 0.7)], head.weight)

    assert_near(of_weight(head_logprobs), of_weight(lambda *given: dense(*given)[0]), EXACT)


@CHUNKS
def test_gradcheck(monkeypatch, elements):
    """Against finite differences."""
    monkeypatch.setattr("papo_hub.head.CHUNK_ELEMENTS", elements)
    head, hidden, ids = make()
    masked = random(N, WIDTH, seed=9).requires_grad_()

    def layer(weight, bias):
        made = nn.utils.skip_init(nn.Linear, WIDTH, VOCABULARY, dtype=torch.float64)
        del made.weight, made.bias
        made.weight, made.bias = weight, bias
        return made

    def alone(hidden, weight, bias):
        return head_logprobs(hidden, layer(weight, bias), ids, 0.7)

    def both(hidden, masked, weight, bias):
        return tuple(head_views(hidden, masked, layer(weight, bias), ids, 0.7, "js"))

    assert torch.autograd.gradcheck(alone, (hidden, head.weight, head.bias))
    assert torch.autograd.gradcheck(both, (hidden, masked, head.weight, head.bias))


@CHUNKS
def test_float32(monkeypatch, elements):
    monkeypatch.setattr("papo_hub.head.CHUNK_ELEMENTS", elements)
    head, hidden, ids = make(dtype=torch.float32)
    masked = random(N, WIDTH, seed=9, dtype=torch.float32).requires_grad_()
    leaves = [hidden, masked, *head.parameters()]
    values = head_views(hidden, masked, head, ids, 0.7)
    alone = head_logprobs(hidden, head, ids, 0.7)
    assert {value.dtype for value in [*values, alone]} == {torch.float32}
    found = gradients(values, *leaves)
    head = head.double()
    hidden, masked = (states.detach().double().requires_grad_() for states in (hidden, masked))
    expected = dense_views(hidden, masked, head, ids, 0.7)
    assert_near([value.double() for value in values], expected, SINGLE)
    assert_near([alone.double()], expected[:1], SINGLE)
    assert_near([value.double() for value in found], gradients(expected, hidden, masked, *head.parameters()), SINGLE)


@CHUNKS
@pytest.mark.parametrize("how", ["bfloat16 weights", "float32 hidden states", "autocast"])
@pytest.mark.parametrize("what", [head_logprobs, head_views])
def test_bfloat16(monkeypatch, elements, how, what):
    """Sums over the vocabulary and over chunks are in float32, gradients come back in the dtype of what they belong to."""
    monkeypatch.setattr("papo_hub.head.CHUNK_ELEMENTS", elements)
    weights = torch.float32 if how == "autocast" else torch.bfloat16
    states = torch.float32 if how == "float32 hidden states" else torch.bfloat16
    states = torch.float32 if how == "autocast" else states
    head, hidden, ids = make(dtype=weights, hidden_dtype=states)
    masked = random(N, WIDTH, seed=9, dtype=states).requires_grad_()
    both = what is head_views
    leaves = [hidden, *([masked] if both else []), *head.parameters()]
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        values = what(hidden, masked, head, ids, 0.7) if both else [what(hidden, head, ids, 0.7)]
        plain = (states if how == "autocast" else states.bfloat16() for states in (hidden, masked))
        expected = dense_views(*plain, head, ids, 0.7)[: len(values)]
    assert {value.dtype for value in values} == {torch.float32}
    assert_near(values, expected, ROUNDED)
    found = gradients(values, *leaves)
    assert [value.dtype for value in found] == [leaf.dtype for leaf in leaves]
    assert_near(found, gradients(expected, *leaves), ROUNDED_GRADIENT)


@pytest.mark.parametrize("what", ["logprobs", "views"])
def test_rounding_does_not_add_up_over_chunks(monkeypatch, what):
    """A thousand chunks of one token: the weight's gradient in bfloat16 is that of float32, rounded once."""
    monkeypatch.setattr("papo_hub.head.CHUNK_ELEMENTS", 1)
    head, hidden, ids = make(dtype=torch.bfloat16)
    hidden, ids = hidden.detach().repeat(150, 1), ids.repeat(150)
    if what == "logprobs":
        head_logprobs(hidden, head, ids).sum().backward()
    else:
        head_views(hidden, torch.zeros_like(hidden), head, ids).logprobs.sum().backward()
    wide = nn.Linear(WIDTH, VOCABULARY, dtype=torch.float32)
    wide.load_state_dict(head.state_dict())
    dense(hidden.float(), wide, ids, 1.0)[0].sum().backward()
    for parameter, exact in zip(head.parameters(), wide.parameters(), strict=True):
        error = (parameter.grad.float() - exact.grad).abs().max() / exact.grad.abs().max()
        assert error < 0.01  # seen: 0.005, of one rounding; 0.1 where it adds up


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that an operation returns."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_iter(result) if isinstance(leaf, torch.Tensor)]
        self.elements = max([self.elements, *(tensor.numel() for tensor in tensors)])
        return result


@pytest.mark.parametrize("what", ["logprobs", "kl", "js"])
def test_all_logits_never_exist(monkeypatch, what):
    """Forward and backward, at once or bit by bit: the largest tensor is a chunk of logits, and what is kept from one pass
    for the other is little more than hidden states and weight."""
    monkeypatch.setattr("papo_hub.head.CHUNK_ELEMENTS", 4 * 1000)
    tokens, vocabulary = 64, 1000
    head = nn.Linear(3, vocabulary)
    hidden, masked = (random(tokens, 3, seed=seed, dtype=torch.float32).requires_grad_() for seed in (0, 1))
    ids = torch.arange(tokens)
    compute = {
        "logprobs": lambda: head_logprobs(hidden, head, ids, 0.7),
        "kl": lambda: sum(head_views(hidden, masked, head, ids, 0.7)),
        "js": lambda: sum(head_views(hidden, masked, head, ids, 0.7, "js")),
    }[what]
    kept = []
    with (
        Largest() as forward,
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t),
    ):
        value = compute().sum()
    with Largest() as backward:
        value.backward()
    assert forward.elements == 4 * vocabulary  # a chunk was seen, and nothing beyond it
    assert backward.elements == 4 * vocabulary
    assert sum(kept) < 2 * head.weight.numel()
    with Largest() as plain:
        dense(hidden, head, ids, 0.7)[0].sum().backward()
    assert plain.elements == tokens * vocabulary  # what the watch would have seen


@CHUNKS
def test_backward_twice(monkeypatch, elements):
    """What one backward pass keeps for the other is left as it was."""
    monkeypatch.setattr("papo_hub.head.CHUNK_ELEMENTS", elements)
    head, hidden, ids = make()
    total = head_logprobs(hidden, head, ids, 0.7).sum()
    first = torch.autograd.grad(total, [hidden, *head.parameters()], retain_graph=True)
    second = torch.autograd.grad(total, [hidden, *head.parameters()])
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))


def test_what_needs_no_gradient_gets_none():
    """A frozen output layer, and hidden states without gradient."""
    head, hidden, ids = make()
    head.requires_grad_(False)
    (found,) = torch.autograd.grad(head_logprobs(hidden, head, ids, 0.7).sum(), hidden)
    (expected,) = torch.autograd.grad(dense(hidden, head, ids, 0.7)[0].sum(), hidden)
    assert_near([found], [expected], EXACT)
    head.requires_grad_(True)
    head_logprobs(hidden.detach(), head, ids).sum().backward()
    assert hidden.grad is None and head.weight.grad is not None
    with torch.no_grad():
        assert not head_logprobs(hidden, head, ids).requires_grad
        assert not any(value.requires_grad for value in head_views(hidden, hidden, head, ids))


def test_no_tokens():
    head, hidden, ids = make()
    views = head_views(hidden[:0], hidden[:0], head, ids[:0])
    logprobs = head_logprobs(hidden[:0], head, ids[:0])
    assert {value.shape for value in [*views, logprobs]} == {(0,)}
    (sum(value.sum() for value in views) + logprobs.sum()).backward()
    assert hidden.grad.shape == hidden.shape and (hidden.grad == 0).all() and (head.weight.grad == 0).all()
