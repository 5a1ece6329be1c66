"""The padded route on seven architectures, against one row at a time with nothing padded and positions left to the model."""

import copy
import inspect

import pytest
import torch
from backbones import backbones

from papo_hub.batch import Completion, pad_completions
from papo_hub.logprobs import padded_logprobs, prompt_inputs
from papo_hub.randomness import derived_generator

TOLERANCE = 1e-7  # seen: 2e-15
GRADIENT_TOLERANCE = 1e-6  # of the largest entry of a gradient; seen: 1.3e-7, where parts of a model compute in float32
VISIBLE = 0.05  # nats: what another image, position or context must move at least; seen: 0.1
LENGTHS = (5, 1, 8, 3)
PER_TOKEN = ("mm_token_type_ids", "token_type_ids")
BUILDERS = backbones()


@pytest.fixture(scope="module", params=BUILDERS)
def backbone(request):
    return BUILDERS[request.param]()


@pytest.fixture
def core(backbone):
    return backbone.model.model


def completions(lengths=LENGTHS):
    """Random characters (the first ids are special tokens), padded. (B, T), (B, T)."""
    generator = derived_generator("completions of backbones")
    ids = [torch.randint(60, 95, (length,), generator=generator).tolist() for length in lengths]
    return pad_completions([Completion(row, "", True) for row in ids], pad_token_id=0)


def followed_by(prompt, completion):
    """The prompt's inputs with a completion (T,) behind it; as a processor would type its tokens: text."""
    inputs = dict(prompt)
    inputs["input_ids"] = torch.cat([prompt["input_ids"], completion.unsqueeze(0)], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    for name in PER_TOKEN:
        if name in prompt:
            zeros = torch.zeros(1, len(completion), dtype=prompt[name].dtype)
            inputs[name] = torch.cat([prompt[name], zeros], dim=1)
    return inputs


def one_by_one(model, rows, ids, mask):
    result = torch.zeros(ids.shape, dtype=torch.float64)
    for i, prompt in enumerate(rows):
        completion = ids[i][mask[i]]
        start = prompt["input_ids"].shape[1]
        logits = model(**followed_by(prompt, completion), use_cache=False).logits[0, start - 1 : -1]
        result[i, : len(completion)] = logits.log_softmax(-1).gather(-1, completion.unsqueeze(-1)).squeeze(-1)
    return result


def gradients(model, values):
    weights = torch.randn(values.shape, generator=derived_generator("weights of backbones"), dtype=torch.float64)
    model.zero_grad()
    (values * weights).sum().backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return found


ARRANGEMENTS = [
    pytest.param((0, 1, 2, 3), id="all prompts"),
    pytest.param((3, 1, 1, 0), id="text first, one shared"),
    pytest.param((2, 0, 2, 0), id="shared, out of order"),
    pytest.param((1, 1, 1, 1), id="one shared"),
    pytest.param((3, 3, 3, 3), id="text only"),
]


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@torch.no_grad()
def test_padded_equals_one_row_at_a_time(backbone, arrangement):
    ids, mask = completions()
    rows = [backbone.prompts[i] for i in arrangement]
    fast = padded_logprobs(backbone.model, rows, ids, mask)
    slow = one_by_one(backbone.model, rows, ids, mask)
    torch.testing.assert_close(fast, slow, rtol=0, atol=TOLERANCE)
    assert (slow[mask] < -0.1).all()  # numbers to compare, not zeros


@torch.no_grad()
def test_the_views_of_a_prompt_in_one_batch(backbone):
    """Two rows of equal tokens and other pixels: neither takes the other's image."""
    clean = backbone.prompts[1]
    rows = [clean, backbone.masked(clean)] * 2
    ids, mask = completions()
    fast = padded_logprobs(backbone.model, rows, ids, mask)
    torch.testing.assert_close(fast, one_by_one(backbone.model, rows, ids, mask), rtol=0, atol=TOLERANCE)


def test_gradients_equal_those_of_one_row_at_a_time(backbone):
    """Through images that are encoded once for two rows, too."""
    ids, mask = completions()
    rows = [backbone.prompts[i] for i in (1, 0, 1, 3)]
    fast = gradients(backbone.model, padded_logprobs(backbone.model, rows, ids, mask))
    slow = gradients(backbone.model, one_by_one(backbone.model, rows, ids, mask))
    assert fast.keys() == slow.keys()
    assert any("vis" in name for name in slow) and any("layers.1.self_attn" in name for name in slow)
    for name, expected in slow.items():
        scale = max(expected.abs().max().item(), 1e-3)  # a key's bias has none: softmax does not see it
        torch.testing.assert_close(fast[name], expected, rtol=0, atol=GRADIENT_TOLERANCE * scale, msg=name)


@torch.no_grad()
def test_an_image_is_encoded_once_a_prompt(backbone, core, monkeypatch):
    encoded = []
    original = core.get_image_features

    def get_image_features(pixel_values, *args, **kwargs):
        encoded.append(pixel_values)
        return original(pixel_values, *args, **kwargs)

    monkeypatch.setattr(core, "get_image_features", get_image_features)
    ids, mask = completions()
    a, b = backbone.prompts[0], backbone.prompts[1]
    padded_logprobs(backbone.model, [a, b, a, b], ids, mask)
    (pixels,) = encoded
    assert len(pixels) == len(a["pixel_values"]) + len(b["pixel_values"])
    padded_logprobs(backbone.model, [copy.copy(row) for row in (a, b, a, b)], ids, mask)
    assert len(encoded[1]) == 2 * len(pixels)  # equal but distinct objects: no shortcut


@torch.no_grad()
def test_a_model_that_takes_no_encoded_images_gets_them_repeated(backbone, core, monkeypatch):
    rows = [backbone.prompts[i] for i in (1, 3, 0, 1)]
    ids, mask = completions()
    slow = one_by_one(backbone.model, rows, ids, mask)
    original = core.forward

    def forward(input_ids=None, attention_mask=None, pixel_values=None, **kwargs):
        assert kwargs.pop("mm_encoder_outputs") is None and pixel_values is not None
        return original(input_ids=input_ids, attention_mask=attention_mask, pixel_values=pixel_values, **kwargs)

    assert "mm_encoder_outputs" in inspect.signature(original).parameters
    monkeypatch.setattr(core, "forward", forward)
    fast = padded_logprobs(backbone.model, rows, ids, mask)
    torch.testing.assert_close(fast, slow, rtol=0, atol=TOLERANCE)


# --- the models are worth testing on ------------------------------------------------------------------------------------


@torch.no_grad()
def log_probs_at_end(model, inputs):
    return model(**inputs, use_cache=False).logits[0, -1].log_softmax(-1)


def moved(one, other):
    """By how much the log-prob of a token changes, in nats, at the most."""
    return (one - other).abs().max().item()


def test_the_image_shows(backbone):
    for prompt in backbone.prompts[:3]:
        clean, masked = (log_probs_at_end(backbone.model, p) for p in (prompt, backbone.masked(prompt)))
        assert moved(clean, masked) > VISIBLE


def test_each_of_two_images_shows(backbone):
    prompt = backbone.prompts[1]
    noise = backbone.masked(prompt)["pixel_values"]
    clean = log_probs_at_end(backbone.model, prompt)
    pieces = noise.shape[0] if noise.ndim != 5 else noise.shape[0] * noise.shape[1]  # patches, tiles or images
    some = max(pieces // 4, 1)
    for part in (slice(None, some), slice(-some, None)):  # of the first image, and of the last
        pixels = prompt["pixel_values"].clone().view(pieces, -1)
        pixels[part] = noise.view(pieces, -1)[part]
        other = log_probs_at_end(backbone.model, prompt | {"pixel_values": pixels.view_as(noise)})
        assert moved(clean, other) > VISIBLE


@torch.no_grad()
def test_positions_show(backbone):
    """A completion that starts three positions late; and, where positions have three dimensions, one in their place."""
    completion = torch.arange(60, 64)
    for prompt in backbone.prompts:
        start = prompt["input_ids"].shape[1]
        inputs = followed_by(prompt, completion)
        right = log_probs_at_end(backbone.model, inputs)
        at = prompt_inputs(backbone.model, [inputs])[0]["position_ids"]
        assert moved(right, log_probs_at_end(backbone.model, inputs | {"position_ids": at})) < TOLERANCE
        late = at.clone()
        late[..., start:] += 3
        assert moved(right, log_probs_at_end(backbone.model, inputs | {"position_ids": late})) > VISIBLE
        if at.ndim == 3:
            flat = torch.arange(at.shape[-1]).unsqueeze(0)
            assert moved(right, log_probs_at_end(backbone.model, inputs | {"position_ids": flat})) > VISIBLE


def test_context_shows(backbone):
    """The first word, the end of the prompt and the last token but one are seen from the end."""
    for prompt in backbone.prompts:
        inputs = followed_by(prompt, torch.arange(60, 68))
        right = log_probs_at_end(backbone.model, inputs)
        text = (inputs["input_ids"][0] != backbone.model.config.image_token_id).nonzero()[:, 0].tolist()
        for place in (text[0], text[-9], text[-2]):
            ids = inputs["input_ids"].clone()
            ids[0, place] = 70 if ids[0, place] != 70 else 71
            assert moved(right, log_probs_at_end(backbone.model, inputs | {"input_ids": ids})) > VISIBLE


def test_prompts_are_unequal(backbone):
    lengths = [prompt["input_ids"].shape[1] for prompt in backbone.prompts]
    assert len(set(lengths)) == len(lengths)
    shapes = [prompt["pixel_values"].shape for prompt in backbone.prompts[:3]]
    image_tokens = [int((p["input_ids"] == backbone.model.config.image_token_id).sum()) for p in backbone.prompts]
    assert image_tokens[3] == 0 and "pixel_values" not in backbone.prompts[3]
    if backbone.name != "gemma3":  # where every image has four tokens
        assert len(set(shapes)) == len(set(image_tokens[:3])) == 3
    if backbone.name in ("smolvlm", "llava_onevision"):  # stacks of tiles, to be padded
        assert len({shape[1] for shape in shapes}) == 3


def test_building_is_deterministic_and_leaves_the_global_generator(backbone):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        before = torch.get_rng_state()
        again = BUILDERS[backbone.name]()
        assert torch.equal(before, torch.get_rng_state())
    for one, other in zip(backbone.model.parameters(), again.model.parameters(), strict=True):
        assert one.dtype == torch.float64 and torch.equal(one, other)
    for one, other in zip(backbone.prompts, again.prompts, strict=True):
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
