"""The padded route against the plainest one: one row at a time, no padding, positions left to the model."""

import copy

import pytest
import torch
from transformers import AutoModelForImageTextToText

from papo_hub.batch import Completion, pad_completions
from papo_hub.logprobs import padded_logprobs, selected_logprobs
from papo_hub.modeling import PapoForConditionalGeneration
from papo_hub.randomness import derived_generator

# The model computes its norms and rotary angles in float32 whatever its weights are. Seen: 1e-15 on log-probs, 7e-8 of
# a gradient's largest entry (the image features of several rows add up in another order).
TOLERANCE = 1e-7
GRADIENT_TOLERANCE = 5e-7
LENGTHS = (5, 1, 8, 3)


@pytest.fixture(scope="module")
def model(tiny_model_folder):
    return AutoModelForImageTextToText.from_pretrained(tiny_model_folder, dtype=torch.float64).eval()


@pytest.fixture(scope="module")
def prompts(tiny_prompts):
    """Of unequal lengths, with one image and with two."""
    return [prompt.clean for prompt in tiny_prompts[:2]]


def completions(lengths, seed=0):
    """Random text tokens (ids from 8 on: no special ones), padded. (B, T), (B, T)."""
    generator = derived_generator("test completions", seed)
    ids = [torch.randint(8, 120, (length,), generator=generator).tolist() for length in lengths]
    return pad_completions([Completion(row, "", True) for row in ids], pad_token_id=0)


def one_by_one(model, rows, ids, mask, temperature=1.0, drop=()):
    result = torch.zeros(ids.shape, dtype=torch.float64)
    for i, prompt in enumerate(rows):
        completion = ids[i][mask[i]].unsqueeze(0)
        inputs = dict(prompt)
        inputs["input_ids"] = torch.cat([prompt["input_ids"], completion], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["mm_token_type_ids"] = torch.cat([prompt["mm_token_type_ids"], torch.zeros_like(completion)], dim=1)
        for name in drop:
            del inputs[name]
        start = prompt["input_ids"].shape[1]
        logits = model(**inputs, use_cache=False).logits[0, start - 1 : -1]
        row = (logits / temperature).log_softmax(-1)[torch.arange(completion.shape[1]), completion[0]]
        result[i, : completion.shape[1]] = row
    return result


def gradients(model, values, weights):
    model.zero_grad()
    (values * weights).sum().backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    return found


def distinct(rows):
    return [copy.copy(row) for row in rows]


@pytest.mark.parametrize(
    "arrange",
    [
        pytest.param(lambda a, b: [a, a, b, b], id="shared objects"),
        pytest.param(lambda a, b: distinct([a, a, b, b]), id="equal but distinct objects"),
        pytest.param(lambda a, b: [b, a, b, a], id="shared, out of order"),
    ],
)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_equals_one_row_at_a_time(model, prompts, arrange, temperature):
    rows = arrange(*prompts)
    ids, mask = completions(LENGTHS)
    fast = padded_logprobs(model, rows, ids, mask, temperature)
    slow = one_by_one(model, rows, ids, mask, temperature)
    torch.testing.assert_close(fast, slow, rtol=0, atol=TOLERANCE)
    assert (slow[mask] < -0.1).all()  # numbers to compare, not zeros

    weights = torch.randn(ids.shape, generator=derived_generator("weights"), dtype=torch.float64)
    fast_gradients, slow_gradients = gradients(model, fast, weights), gradients(model, slow, weights)
    for name, expected in slow_gradients.items():
        scale = expected.abs().max().item()
        assert scale > 0, f"{name} has no gradient: nothing is compared"
        torch.testing.assert_close(fast_gradients[name], expected, rtol=0, atol=GRADIENT_TOLERANCE * scale, msg=name)


def test_shared_dict_is_a_list_of_that_dict(model, prompts):
    ids, mask = completions(LENGTHS)
    with torch.no_grad():
        shared = padded_logprobs(model, prompts[1], ids, mask)
        listed = padded_logprobs(model, [prompts[1]] * len(LENGTHS), ids, mask)
        slow = one_by_one(model, [prompts[1]] * len(LENGTHS), ids, mask)
    assert torch.equal(shared, listed)
    torch.testing.assert_close(shared, slow, rtol=0, atol=TOLERANCE)


def test_an_image_is_encoded_once_a_prompt(model, prompts, monkeypatch):
    encoded = []
    visual = model.model.visual
    original = visual.forward
    monkeypatch.setattr(visual, "forward", lambda *a, **k: encoded.append(len(k["grid_thw"])) or original(*a, **k))
    ids, mask = completions(LENGTHS)
    a, b = prompts
    with torch.no_grad():
        padded_logprobs(model, [a, a, b, b], ids, mask)
        assert encoded == [3]  # one image and two
        padded_logprobs(model, distinct([a, a, b, b]), ids, mask)
    assert encoded == [3, 6]


def test_a_model_that_takes_no_encoded_images_gets_them_repeated(model, prompts, monkeypatch):
    """Other architectures have no `mm_encoder_outputs`: the images are then repeated, to the same effect."""
    core, rows = model.model, [prompts[0], prompts[0], prompts[1], prompts[1]]
    ids, mask = completions(LENGTHS)
    original = core.forward

    def forward(input_ids=None, attention_mask=None, pixel_values=None, **kwargs):
        assert kwargs["mm_encoder_outputs"] is None
        assert len(pixel_values) == 2 * sum(len(prompt["pixel_values"]) for prompt in prompts)
        return original(input_ids=input_ids, attention_mask=attention_mask, pixel_values=pixel_values, **kwargs)

    with torch.no_grad():
        slow = one_by_one(model, rows, ids, mask)
        monkeypatch.setattr(core, "forward", forward)
        fast = padded_logprobs(model, rows, ids, mask)
    torch.testing.assert_close(fast, slow, rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_padding_does_not_leak(model, prompts):
    """What lies under the mask changes nothing, and comes back as 0."""
    ids, mask = completions(LENGTHS)
    clean = padded_logprobs(model, prompts * 2, ids, mask)
    other = padded_logprobs(model, prompts * 2, ids.masked_fill(~mask, 77), mask)
    assert torch.equal(clean, other)
    assert (clean[~mask] == 0).all()


def test_an_empty_completion_has_log_prob_and_gradient_zero(model, prompts):
    ids, mask = completions((4, 0))
    values = padded_logprobs(model, prompts, ids, mask)
    torch.testing.assert_close(values, one_by_one(model, prompts, ids, mask), rtol=0, atol=TOLERANCE)
    assert (values[1] == 0).all()
    found = gradients(model, values, torch.ones_like(values))
    alone = gradients(model, padded_logprobs(model, prompts[:1], ids[:1], mask[:1]), torch.ones(1, 4))
    for name, expected in alone.items():
        scale = expected.abs().max().item()
        torch.testing.assert_close(found[name], expected, rtol=0, atol=GRADIENT_TOLERANCE * scale, msg=name)

    nothing = padded_logprobs(model, prompts, *completions((0, 0)))
    assert nothing.shape == (2, 1) and (nothing == 0).all()


@torch.no_grad()
def test_positions_are_three_dimensional(model, prompts):
    """Without mm_token_type_ids the model places image tokens in one dimension, without a word: other numbers."""
    ids, mask = completions((5,))
    three = padded_logprobs(model, prompts[1], ids, mask)
    one = one_by_one(model, [prompts[1]], ids, mask, drop=["mm_token_type_ids"])
    assert (three - one).abs().max() > 1e-3

    # The route itself, deprived of them, gives the one-dimensional numbers: it does not make types up.
    bare = {name: value for name, value in prompts[1].items() if name != "mm_token_type_ids"}
    torch.testing.assert_close(padded_logprobs(model, bare, ids, mask), one, rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_the_wrapper_gives_the_same_numbers(model, prompts):
    ids, mask = completions(LENGTHS)
    rows = [prompts[0], prompts[0], prompts[1], prompts[1]]
    wrapper = PapoForConditionalGeneration.from_backbone(model)
    assert torch.equal(padded_logprobs(wrapper, rows, ids, mask), padded_logprobs(model, rows, ids, mask))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_selected_logprobs_by_hand(temperature):
    """Two tokens of logits 0 and ln 3: at temperature 1 their probabilities are 1/4 and 3/4; at 1/2, 1/10 and 9/10."""
    logits = torch.tensor([[[0.0, torch.log(torch.tensor(3.0))]] * 2])
    expected = {1.0: [0.25, 0.75], 0.5: [0.1, 0.9]}[temperature]
    values = selected_logprobs(logits, torch.tensor([[0, 1]]), temperature)
    torch.testing.assert_close(values.exp(), torch.tensor([expected]), rtol=0, atol=1e-6)


def test_selected_logprobs_in_chunks_and_in_float32(monkeypatch):
    generator = derived_generator("chunks")
    logits = torch.randn(5, 3, 11, generator=generator).bfloat16()
    ids = torch.randint(11, (5, 3), generator=generator)
    whole = selected_logprobs(logits, ids, 0.7)
    assert whole.dtype == torch.float32
    expected = (logits.float() / 0.7).log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(whole, expected, rtol=0, atol=2e-6)
    for elements in (1, 2 * 33, 3 * 33):  # one row at a time, two, three and the rest
        monkeypatch.setattr("papo_hub.logprobs.CHUNK_ELEMENTS", elements)
        assert torch.equal(selected_logprobs(logits, ids, 0.7), whole)
