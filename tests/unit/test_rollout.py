"""Sampling: greedy as transformers' own generate, the right distribution, no image tokens, one generator."""

from itertools import pairwise

import pytest
import torch
from transformers import AutoModelForImageTextToText

from papo_hub.logprobs import prompt_inputs
from papo_hub.modeling.tiny import SPECIAL
from papo_hub.rollout import Sampling, TransformersEngine

VISION_TOKENS = [
    SPECIAL.index(token) for token in ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
]
END = SPECIAL.index("<|im_end|>")
GREEDY = Sampling(temperature=0, max_completion_length=12)


@pytest.fixture
def model(tiny_model_folder):
    """Sharpened, so that the greedy choice has no near ties and distributions are far from uniform."""
    model = AutoModelForImageTextToText.from_pretrained(tiny_model_folder).eval()
    bias_logits(model, torch.zeros(model.config.text_config.vocab_size), scale=4.0)
    return model


def bias_logits(model, bias, scale=1.0):
    """The model's logits become scale · logits + bias."""
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits * scale + bias)


def generate(model, processor, prompts, num_generations=1, sampling=GREEDY, seed=0, batch_size=64, view="clean"):
    engine = TransformersEngine(model, processor.tokenizer, batch_size)
    return engine.generate(prompts, num_generations, sampling, torch.Generator().manual_seed(seed), view)


def ids_of(completions):
    return [completion.token_ids for completion in completions]


@torch.no_grad()
def first_token_logits(model, prompt, view="clean"):
    inputs, _ = prompt_inputs(model, [getattr(prompt, view)])
    return model(**inputs).logits[0, -1]


@pytest.mark.parametrize("view", ["clean", "masked"])
def test_greedy_is_transformers_generate(warm_model_folder, tiny_processor, tiny_prompts, view):
    """On a model that has learned something: one with random weights hardly looks at positions."""
    model = AutoModelForImageTextToText.from_pretrained(warm_model_folder).eval()
    ours = generate(model, tiny_processor, tiny_prompts, num_generations=2, view=view)
    for i, prompt in enumerate(tiny_prompts):
        inputs = getattr(prompt, view)
        theirs = model.generate(**inputs, do_sample=False, max_new_tokens=12, suppress_tokens=VISION_TOKENS)
        expected = theirs[0, prompt.length :].tolist()
        assert ours[2 * i].token_ids == ours[2 * i + 1].token_ids == expected
    assert len({tuple(ids) for ids in ids_of(ours)}) > 1
    if view == "masked":
        assert ids_of(ours) != ids_of(generate(model, tiny_processor, tiny_prompts, num_generations=2))


def first_token_counts(model, processor, prompt, sampling, draws=8000):
    completions = generate(model, processor, [prompt], draws, sampling, batch_size=draws)
    return torch.bincount(torch.tensor([c.token_ids[0] for c in completions]), minlength=model.lm_head.out_features)


def chi_square(counts, probabilities):
    """Pearson's statistic over its degrees of freedom, tokens expected fewer than 8 times taken together."""
    expected = probabilities * counts.sum()
    common = expected >= 8
    observed = torch.cat([counts[common], counts[~common].sum()[None]]).double()
    expected = torch.cat([expected[common], expected[~common].sum()[None]]).double()
    if expected[-1] < 8:
        observed, expected = observed[:-1], expected[:-1]
    return float(((observed - expected) ** 2 / expected).sum() / (len(expected) - 1))


def distribution(model, prompt, temperature=1.0):
    logits = first_token_logits(model, prompt)
    logits[VISION_TOKENS] = -torch.inf
    return (logits / temperature).softmax(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_first_token_follows_the_softmax(model, tiny_processor, tiny_prompts, temperature):
    """With some 50 degrees of freedom the statistic is 1 ± 0.2; the other temperature's is above 5."""
    counts = first_token_counts(model, tiny_processor, tiny_prompts[0], Sampling(temperature, 1.0, 1))
    assert chi_square(counts, distribution(model, tiny_prompts[0], temperature)) < 1.7
    assert chi_square(counts, distribution(model, tiny_prompts[0], 1.6 - temperature)) > 5


def test_top_p_removes_the_tail(model, tiny_processor, tiny_prompts):
    counts = first_token_counts(model, tiny_processor, tiny_prompts[0], Sampling(1.0, 0.5, 1))
    probabilities, order = distribution(model, tiny_prompts[0]).sort(descending=True)
    kept = order[: int((probabilities.cumsum(0) < 0.5).sum()) + 1]  # the fewest that reach one half
    assert 1 < len(kept) < 40
    assert counts[kept].sum() == counts.sum()
    nucleus = torch.zeros(len(counts)).index_copy(0, kept, probabilities[: len(kept)])
    assert chi_square(counts, nucleus / nucleus.sum()) < 2


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_vision_tokens_are_never_sampled(model, tiny_processor, tiny_prompts, temperature):
    bias = torch.zeros(model.lm_head.out_features)
    bias[VISION_TOKENS] = 1000.0
    bias_logits(model, bias)
    assert first_token_logits(model, tiny_prompts[0]).argmax() in VISION_TOKENS
    completions = generate(model, tiny_processor, tiny_prompts, 8, Sampling(temperature, 1.0, 6))
    sampled = {token for ids in ids_of(completions) for token in ids}
    assert sampled and not sampled & set(VISION_TOKENS)


def test_all_randomness_comes_from_the_generator(model, tiny_processor, tiny_prompts):
    sampling = Sampling(1.0, 1.0, 6)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = generate(model, tiny_processor, tiny_prompts, 3, sampling, seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again = generate(model, tiny_processor, tiny_prompts, 3, sampling, seed=7)
    assert first == again
    assert ids_of(generate(model, tiny_processor, tiny_prompts, 3, sampling, seed=8)) != ids_of(first)
    assert all(a != b for a, b in pairwise(ids_of(first[:3])))  # completions of one prompt are drawn apart


def test_chunks_change_no_greedy_token(model, tiny_processor, tiny_prompts):
    whole = ids_of(generate(model, tiny_processor, tiny_prompts, 2, batch_size=64))
    for batch_size in (1, 2, 4):  # one prompt at a time (at least), one, two and one
        assert ids_of(generate(model, tiny_processor, tiny_prompts, 2, batch_size=batch_size)) == whole


def test_an_end_token_finishes_and_is_kept(model, tiny_processor, tiny_prompts):
    bias = torch.zeros(model.lm_head.out_features)
    bias[END] = first_token_logits(model, tiny_prompts[0]).max() - 2  # likely, not certain
    bias_logits(model, bias)
    completions = generate(model, tiny_processor, tiny_prompts, 16, Sampling(1.0, 1.0, 6))
    lengths = {len(c.token_ids) for c in completions}
    assert len(lengths) > 2  # ragged
    for completion in completions:
        ids = completion.token_ids
        assert completion.finished == (ids[-1] == END)
        assert END not in ids[:-1] and 1 <= len(ids) <= 6
        assert completion.finished or len(ids) == 6
        assert completion.text == tiny_processor.tokenizer.decode([i for i in ids if i >= len(SPECIAL)])
    assert {completion.finished for completion in completions} == {True, False}


def test_the_model_can_name_further_end_tokens(model, tiny_processor, tiny_prompts):
    stop = int(generate(model, tiny_processor, tiny_prompts[:1])[0].token_ids[2])
    free = generate(model, tiny_processor, tiny_prompts[:1])[0].token_ids
    model.generation_config.eos_token_id = [stop, 0]
    (stopped,) = generate(model, tiny_processor, tiny_prompts[:1])
    assert stopped.token_ids == free[: free.index(stop) + 1] and stopped.finished
    assert TransformersEngine(model, tiny_processor.tokenizer).stop_ids == sorted({stop, 0, END})


@pytest.mark.parametrize("length", [1, 5])
def test_the_length_limit_cuts(model, tiny_processor, tiny_prompts, length):
    bias = torch.zeros(model.lm_head.out_features)
    bias[END] = -1000.0
    bias_logits(model, bias)
    for completion in generate(model, tiny_processor, tiny_prompts, 2, Sampling(1.0, 1.0, length)):
        assert len(completion.token_ids) == length and not completion.finished


def test_the_mode_of_the_model_is_left_as_it_was(model, tiny_processor, tiny_prompts):
    for mode in (True, False):
        model.train(mode)
        generate(model, tiny_processor, tiny_prompts[:1])
        assert model.training is mode
