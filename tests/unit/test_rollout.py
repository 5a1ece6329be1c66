"""Sampling: greedy as transformers' own generate, the right distribution, no image tokens, one generator."""

from itertools import pairwise

import pytest
import torch
from transformers import AutoModelForImageTextToText

from papo_hub.batch import pad_completions
from papo_hub.logprobs import append_completions, padded_logprobs, prompt_inputs
from papo_hub.modeling.tiny import SPECIAL
from papo_hub.rollout import Sampling, TransformersEngine
from papo_hub.rollout.decoding import start_decoding
from papo_hub.rollout.transformers import draw

VISION_TOKENS = [
    SPECIAL.index(token) for token in ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
]
END = SPECIAL.index("<|im_end|>")
GREEDY = Sampling(temperature=0, max_completion_length=12)


@pytest.fixture(params=["shared prefix", "repeated cache"])
def model(tiny_model_folder, request):
    """Sharpened, so that the greedy choice has no near ties and distributions are far from uniform."""
    model = AutoModelForImageTextToText.from_pretrained(tiny_model_folder).eval()
    if request.param == "repeated cache":
        does_not_fit(model)
    bias_logits(model, torch.zeros(model.config.text_config.vocab_size), scale=4.0)
    return model


def does_not_fit(model):
    """A hook on the output layer, even one that changes nothing: prompts are not shared then."""
    model.lm_head.register_forward_hook(lambda *_: None)


def bias_logits(model, bias, scale=1.0):
    """The model's logits become scale · logits + bias."""
    head = model.lm_head
    before = torch.zeros_like(bias) if head.bias is None else head.bias.detach()
    head.weight = torch.nn.Parameter(head.weight.detach() * scale)
    head.bias = torch.nn.Parameter(before * scale + bias)


def generate(model, processor, prompts, num_generations=1, sampling=GREEDY, seed=0, batch_size=64, view="clean"):
    engine = TransformersEngine(model, processor.tokenizer, batch_size)
    return engine.generate(prompts, num_generations, sampling, torch.Generator().manual_seed(seed), view)


def ids_of(completions):
    return [completion.token_ids for completion in completions]


@torch.no_grad()
def first_token_logits(model, prompt, view="clean"):
    inputs, _ = prompt_inputs(model, [getattr(prompt, view)])
    return model(**inputs).logits[0, -1]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("view", ["clean", "masked"])
def test_greedy_is_transformers_generate(warm_model_folder, tiny_processor, tiny_prompts, view, shared):
    """On a model that has learned something: one with random weights hardly looks at positions."""
    model = AutoModelForImageTextToText.from_pretrained(warm_model_folder).eval()
    if not shared:
        does_not_fit(model)
    assert type(start_decoding(model, [tiny_prompts[0].clean], 1)).__name__.startswith(
        "Shared" if shared else "Repeated"
    )
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


def test_pairs_of_tokens_follow_their_joint_distribution(model, tiny_processor, tiny_prompts):
    """What the second token sees of the first: p(a) · p(b | a), with an end-of-sequence token as neither of them."""
    prompt, vocabulary = tiny_prompts[1], model.lm_head.out_features
    completions = generate(
        model, tiny_processor, [prompt], 8000, Sampling(1.0, 1.0, 2, min_completion_length=2), batch_size=8000
    )
    pairs = torch.tensor(ids_of(completions))
    counts = torch.bincount(pairs[:, 0] * vocabulary + pairs[:, 1], minlength=vocabulary**2)

    excluded = [*VISION_TOKENS, *TransformersEngine(model, tiny_processor.tokenizer).stop_ids]
    firsts = torch.tensor([token for token in range(vocabulary) if token not in excluded])[:, None]
    with torch.no_grad():
        inputs, position = prompt_inputs(model, [prompt.clean] * len(firsts))
        after = model(**append_completions(inputs, position, firsts, torch.ones_like(firsts)), logits_to_keep=1).logits[
            :, 0
        ]
    logits = torch.cat([first_token_logits(model, prompt)[None], after])
    logits[:, excluded] = -torch.inf
    first, *second = logits.double().softmax(-1)
    joint = torch.zeros(vocabulary, vocabulary, dtype=torch.float64)
    joint[firsts[:, 0]] = first[firsts] * torch.stack(second)
    assert chi_square(counts, joint.flatten()) < 1.5  # seen: 1.1, of some 250 degrees of freedom
    assert chi_square(counts, (first[:, None] * first).flatten()) > 5  # had the second token not seen the first


@pytest.mark.parametrize("sampling", [Sampling(0.7, 0.5, 9), Sampling(1.0, 1.0, 9), Sampling(0.0, 1.0, 9)], ids=str)
def test_log_probs_are_the_models_own(model, tiny_processor, tiny_prompts, sampling):
    """Whatever top-p and the suppressed tokens took out of the draw; at temperature 1 where there was no draw."""
    bias = torch.zeros(model.lm_head.out_features)
    bias[VISION_TOKENS], bias[END] = 5.0, 3.0
    bias_logits(model, bias)
    completions = generate(model, tiny_processor, tiny_prompts, 4, sampling)
    ids, mask = pad_completions(completions, 0)
    rows = [prompt.clean for prompt in tiny_prompts for _ in range(4)]
    with torch.no_grad():
        expected = padded_logprobs(model, rows, ids, mask, sampling.temperature or 1.0)
    for completion, row in zip(completions, expected, strict=True):
        assert len(completion.logprobs) == len(completion.token_ids)
        torch.testing.assert_close(
            torch.tensor(completion.logprobs), row[: len(completion.token_ids)], rtol=0, atol=1e-4
        )


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


def test_draw_at_the_ends_of_the_unit_interval():
    """Probabilities 0, 1/4, 0, 1/4, 1/4, 1/4, 0, which a softmax gives without rounding: what is impossible is not drawn
    even by the least and the greatest number there is, and 1/4 falls to the next."""
    scores = torch.tensor([0, 1, 0, 1, 1, 1, 0]).log().expand(5, -1)
    heights = torch.tensor([0, 0.2499, 0.25, 0.5, 1 - 2**-53], dtype=torch.float64)[:, None]
    assert draw(scores, heights).tolist() == [1, 1, 3, 4, 5]


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


def test_with_a_seed_each_a_completion_depends_on_nothing_that_is_sampled_beside_it(
    model, tiny_processor, tiny_prompts
):
    """Neither on the other prompts and their order, nor on how many there are of its own, nor on the chunks."""

    def sampled(prompts, num_generations, seeds, batch_size=64):
        engine = TransformersEngine(model, tiny_processor.tokenizer, batch_size)
        return ids_of(engine.generate(prompts, num_generations, Sampling(1.0, 1.0, 6), seeds))

    first, second = tiny_prompts[:2]
    together = sampled([first, second], 3, range(6))
    assert len({tuple(ids) for ids in together}) == 6
    assert sampled([second, first], 3, [3, 4, 5, 0, 1, 2]) == together[3:] + together[:3]
    assert sampled([first, second], 2, [0, 1, 3, 4]) == together[:2] + together[3:5]
    assert sampled([first, second], 3, range(6), batch_size=1) == together
    assert [sampled([second], 1, [seed])[0] for seed in (3, 4, 5)] == together[3:]
    assert sampled([first], 3, [2, 1, 0]) == together[2::-1]
    assert sampled([first], 2, [7, 7])[0] == sampled([first], 2, [7, 7])[1]


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


def test_an_end_token_waits_for_the_least_length(model, tiny_processor, tiny_prompts):
    bias = torch.zeros(model.lm_head.out_features)
    bias[END] = 1000.0
    bias_logits(model, bias)
    for least in (0, 1, 4):
        sampling = Sampling(
            1.0, 0.9, 6, min_completion_length=least
        )  # top-p of what remains, not of the end token alone
        completions = generate(model, tiny_processor, tiny_prompts, 2, sampling)
        for ids in ids_of(completions):
            assert len(ids) == least + 1 and ids[-1] == END and END not in ids[:-1]


# --- stopping on a boxed answer, from a script ------------------------------------------------------------------------------


class Script:
    """A decoder whose model wants to say these tokens, whatever was taken; and how many it was given a step."""

    def __init__(self, lines, vocabulary):
        self.lines, self.vocabulary, self.place, self.steps = lines, vocabulary, 0, []
        self.told = [[] for _ in lines]
        self.rows = list(range(len(lines)))

    @property
    def logits(self):
        wanted = [self.lines[row][min(self.place, len(self.lines[row]) - 1)] for row in self.rows]
        return 50.0 * torch.nn.functional.one_hot(torch.tensor(wanted), self.vocabulary).float()

    def step(self, tokens):
        self.place += 1
        self.steps.append(len(tokens))
        for row, token in zip(self.rows, tokens.tolist(), strict=True):
            self.told[row].append(token)

    def keep(self, rows):
        self.rows = [self.rows[row] for row in rows]


@pytest.fixture
def say(tiny_model_folder, tiny_processor, tiny_prompts, monkeypatch):
    """say(texts, sampling) → the completions of a model that spells these texts, a character a token, and the script."""
    model = AutoModelForImageTextToText.from_pretrained(tiny_model_folder)

    def say(texts, sampling):
        lines = [tiny_processor.tokenizer.convert_tokens_to_ids(list(text)) for text in texts]
        script = Script(lines, model.lm_head.out_features)
        monkeypatch.setattr("papo_hub.rollout.transformers.start_decoding", lambda *_: script)
        return generate(model, tiny_processor, tiny_prompts[:1], len(texts), sampling), script

    return say


ANSWERS = {  # what is said, and where a completion ends that stops once its answer is complete
    r"so \boxed{12} or 13, maybe": r"so \boxed{12}",
    r"\boxed{\frac{1}{2}} is it": r"\boxed{\frac{1}{2}}",
    r"{a} and } but \boxed{7}!": r"{a} and } but \boxed{7}",
    r"\boxed{open {x}, {y} and so on": None,
    r"boxed{3} without the command": None,
    "nothing of the kind in here": None,
}


def test_stops_on_boxed(say):
    completions, script = say(list(ANSWERS), Sampling(1.0, 1.0, 24, stop_on_boxed=True))
    for completion, (text, until), told in zip(completions, ANSWERS.items(), script.told, strict=True):
        assert completion.finished == (until is not None)
        assert completion.text == (until or text[:24])
        assert len(completion.logprobs) == len(completion.token_ids) == len(completion.text)
        assert told == completion.token_ids[:-1]  # the last one is not computed with
    lengths = [len(completion.token_ids) for completion in completions]
    assert len(set(lengths)) == 4
    assert script.steps == [sum(length > step for length in lengths) for step in range(1, 24)]


def test_goes_on_behind_a_boxed_answer_unless_told(say):
    completions, _ = say(list(ANSWERS), Sampling(1.0, 1.0, 24))
    assert {len(completion.token_ids) for completion in completions} == {24}
    assert not any(completion.finished for completion in completions)


def test_an_answer_complete_at_the_length_limit_is_finished(say):
    (completion,), _ = say([r"\boxed{4}"], Sampling(1.0, 1.0, 9, stop_on_boxed=True))
    assert completion.text == r"\boxed{4}" and completion.finished and len(completion.token_ids) == 9
