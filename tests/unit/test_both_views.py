"""Both views over the whole vocabulary, by either route, against all logits of the model's own forward."""

import pytest
import torch
from backbones import backbones
from torch import nn

from papo_hub import both_views as module
from papo_hub.batch import Completion, pad_completions
from papo_hub.both_views import both_views, unreadable_head
from papo_hub.logprobs import append_completions, prompt_inputs
from papo_hub.randomness import derived_generator
from papo_hub.shared_prefix import misfit

# float64, with the float32 casts inside the models. Nats; gradients: their distance over their length.
VALUE = 1e-10  # seen: 3e-14
GRADIENT = 1e-6  # seen: 5e-8
ARRANGEMENT = (0, 0, 1, 2, 3, 1)  # prompts of unequal lengths: one image, two, one, none
LENGTHS = (4, 1, 6, 3, 0, 5)
ALL = backbones()


@pytest.fixture(scope="module", params=ALL)
def backbone(request):
    return ALL[request.param]()


@pytest.fixture(scope="module")
def qwen():
    return ALL["qwen2_5_vl"]()


def arranged(backbone):
    """Prompts of both views (that without an image has but one), completions, their mask."""
    masked = [backbone.masked(prompt) if "pixel_values" in prompt else prompt for prompt in backbone.prompts]
    generator = derived_generator("completions of both views")
    rows = [torch.randint(60, 95, (length,), generator=generator).tolist() for length in LENGTHS]
    ids, mask = pad_completions([Completion(row, "", True) for row in rows], pad_token_id=0)
    return [backbone.prompts[i] for i in ARRANGEMENT], [masked[i] for i in ARRANGEMENT], ids, mask


def all_logits(model, prompts, ids, mask):
    inputs = append_completions(*prompt_inputs(model, prompts), ids, mask)
    return model(**inputs, use_cache=False).logits[:, -ids.shape[1] - 1 : -1]


def dense(model, clean, masked, ids, mask, temperature, divergence, live):
    p = (all_logits(model, clean, ids, mask) / temperature).log_softmax(-1)
    with torch.set_grad_enabled(live):
        q = (all_logits(model, masked, ids, mask) / temperature).log_softmax(-1)
    at = ids.unsqueeze(-1)
    if divergence == "kl":
        apart = (p.exp() * (p - q)).sum(-1)
    else:
        middle = ((p.exp() + q.exp()) / 2).log()
        apart = ((p.exp() * (p - middle)).sum(-1) + (q.exp() * (q - middle)).sum(-1)) / 2
    found = (
        p.gather(-1, at)[..., 0],
        q.gather(-1, at)[..., 0],
        -(p.exp() * p).sum(-1),
        -(q.exp() * q).sum(-1),
        apart,
    )
    return [values.masked_fill(~mask, 0) for values in found]


def with_gradients(compute, model, *arguments):
    values = list(compute(model, *arguments))
    weighted = [
        (value * torch.randn(value.shape, generator=derived_generator("weights", i), dtype=value.dtype)).sum()
        for i, value in enumerate(values)
        if value.requires_grad
    ]
    found = torch.autograd.grad(sum(weighted), list(model.parameters()), materialize_grads=True)
    return [value.detach() for value in values], found


def assert_equal(found, expected):
    for value, other in zip(found[0], expected[0], strict=True):
        assert other.abs().max() > 0.01  # something to compare
        torch.testing.assert_close(value, other, rtol=0, atol=VALUE)
    distance = sum((one - other).square().sum() for one, other in zip(found[1], expected[1], strict=True)).sqrt()
    length = sum(other.square().sum() for other in expected[1]).sqrt()
    assert distance < GRADIENT * length


@pytest.mark.parametrize("live", [False, True], ids=["frozen", "live"])
@pytest.mark.parametrize("divergence", ["kl", "js"])
def test_equals_all_logits(backbone, divergence, live):
    arguments = *arranged(backbone), 0.7, divergence, live
    found, expected = (with_gradients(compute, backbone.model, *arguments) for compute in (both_views, dense))
    assert_equal(found, expected)
    mask = arguments[3]
    assert all((value[~mask] == 0).all() for value in found[0])


def test_each_route_was_taken():
    assert misfit(ALL["gemma3"]().model) is not None and misfit(ALL["qwen2_5_vl"]().model) is None


def test_frozen_is_not_live(qwen):
    """What the comparison above would show."""
    given = *arranged(qwen), 0.7, "kl"
    frozen, live = (with_gradients(both_views, qwen.model, *given, live) for live in (False, True))
    with pytest.raises(AssertionError):
        assert_equal(frozen, live)


def test_views_that_are_equal_do_not_diverge(qwen):
    clean, _, ids, mask = arranged(qwen)
    for live in (False, True):
        views = both_views(qwen.model, clean, clean, ids, mask, live=live)
        assert views.divergence.abs().max() < 1e-12
        torch.testing.assert_close(views.logprobs, views.masked_logprobs, rtol=0, atol=1e-12)
        torch.testing.assert_close(views.entropy, views.masked_entropy, rtol=0, atol=1e-12)


def test_a_constant_view_is_without_dropout_and_leaves_the_mode(qwen, monkeypatch):
    modes = []
    original = module.run_inside
    monkeypatch.setattr(
        module, "run_inside", lambda model, *rest: modes.append(model.training) or original(model, *rest)
    )
    qwen.model.train()
    try:
        both_views(qwen.model, *arranged(qwen))
        assert modes == [False, True] and qwen.model.training
    finally:
        qwen.model.eval()


def test_logits_that_are_more_than_a_product_are_refused(qwen, monkeypatch):
    assert unreadable_head(qwen.model) is None
    monkeypatch.setattr(qwen.model.config.get_text_config(), "final_logit_softcapping", 30.0, raising=False)
    with pytest.raises(ValueError, match="changes its logits by final_logit_softcapping; use estimator: sampled"):
        both_views(qwen.model, *arranged(qwen))
    monkeypatch.undo()
    hook = qwen.model.get_output_embeddings().register_forward_hook(lambda *given: None)
    assert unreadable_head(qwen.model) == "the output layer has hooks"
    hook.remove()
    monkeypatch.setattr(qwen.model, "get_output_embeddings", lambda: nn.Identity())
    assert unreadable_head(qwen.model) == "the output layer is a Identity"
