"""Decoding on every architecture: the tokens of `generate`, the log-probs of the padded route, and no work for what has
ended."""

from itertools import combinations

import pytest
import torch
from backbones import backbones, tokenizer

from papo_hub.batch import Prompt, Sample, pad_completions
from papo_hub.logprobs import padded_logprobs
from papo_hub.randomness import derived_generator
from papo_hub.rollout import Sampling, TransformersEngine, decoding
from papo_hub.rollout.decoding import RepeatedCacheDecoder, SharedPrefixDecoder, start_decoding
from papo_hub.shared_prefix import prompt_positions, shared_prefix_logprobs

EXACT = 1e-11  # float64; seen: 4e-15
SINGLE = 4e-5  # float32; seen: 1.2e-5, of logits around 10
HALF = 0.3  # bfloat16; seen: 0.15
LENGTH = 14
BUILDERS = backbones()


def built(name):
    """With an output layer of its own: one tied to the embeddings repeats the token before."""
    backbone = BUILDERS[name]()
    head = backbone.model.lm_head
    weight = torch.randn(head.weight.shape, generator=derived_generator("head of", name), dtype=head.weight.dtype)
    head.weight = torch.nn.Parameter(weight / 2)
    return backbone


@pytest.fixture(scope="module", params=BUILDERS)
def backbone(request):
    return built(request.param)


@pytest.fixture(scope="module")
def qwen():
    return built("qwen2_5_vl")


@pytest.fixture(autouse=True)
def small_capacity(monkeypatch):
    """Buffers grow at the third token, the fifth, the ninth."""
    monkeypatch.setattr(decoding, "FIRST_CAPACITY", 2)


def engine_of(backbone, *end_tokens):
    engine = TransformersEngine(backbone.model, tokenizer())
    engine.stop_ids = sorted({engine.tokenizer.eos_token_id, *end_tokens})
    return engine


def prompts_of(backbone, order=(0, 1, 2, 3)):
    return [Prompt(Sample(str(i), "", "", ()), backbone.prompts[i]) for i in order]


def greedy(model, prompt, end_tokens, suppressed):
    """transformers' own, one prompt at a time."""
    output = model.generate(
        **prompt,
        do_sample=False,
        max_new_tokens=LENGTH,
        eos_token_id=end_tokens,
        pad_token_id=0,
        suppress_tokens=suppressed,
    )
    return output[0, prompt["input_ids"].shape[1] :].tolist()


@pytest.fixture
def end_tokens(backbone):
    """End-of-sequence tokens that the greedy answers reach at different steps, one of them not at all."""
    free = [greedy(backbone.model, p, [1], engine_of(backbone).suppressed) for p in backbone.prompts]
    for first, second in combinations(sorted({token for ids in free for token in ids}), 2):
        lengths = [
            next((i for i, token in enumerate(ids, 1) if token in (first, second, 1)), LENGTH + 1) for ids in free
        ]
        if len(set(lengths)) > 2 and LENGTH not in lengths and min(lengths) > 1 and max(lengths) > LENGTH:
            return [1, first, second]
    raise AssertionError(f"{backbone.name}: no two tokens end its answers at three steps: {free}")


def test_which_decoder_runs(backbone):
    expected = RepeatedCacheDecoder if backbone.name == "gemma3" else SharedPrefixDecoder
    with torch.no_grad():
        assert type(start_decoding(backbone.model, backbone.prompts[:1], 1)) is expected


def test_greedy_is_transformers_generate(backbone, end_tokens, monkeypatch):
    """All prompts together, of unequal lengths; answers that end at different steps, and one that never does."""
    kept = []
    decoder = RepeatedCacheDecoder if backbone.name == "gemma3" else SharedPrefixDecoder
    keep = decoder.keep
    monkeypatch.setattr(decoder, "keep", lambda self, rows: kept.append(len(rows)) or keep(self, rows))
    engine = engine_of(backbone, *end_tokens)
    sampling = Sampling(temperature=0, max_completion_length=LENGTH)
    completions = engine.generate(prompts_of(backbone, (3, 1, 0, 2)), 2, sampling, torch.Generator())
    expected = [greedy(backbone.model, backbone.prompts[i], end_tokens, engine.suppressed) for i in (3, 1, 0, 2)]
    assert [c.token_ids for c in completions] == [ids for ids in expected for _ in range(2)]
    assert len({len(ids) for ids in expected}) > 2 and len(kept) >= 2 and all(n % 2 == 0 for n in kept)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_log_probs_are_those_of_the_padded_route(backbone, dtype):
    """Of ragged completions, most of which end early; under top-p, and with image tokens that the model would prefer."""
    model = backbone.model if dtype == torch.float64 else built(backbone.name).model.to(dtype)
    engine = TransformersEngine(model, tokenizer())
    engine.stop_ids = list(range(1, 97, 5))
    sampling = Sampling(0.7, 0.9, LENGTH, min_completion_length=1)
    completions = engine.generate(prompts_of(backbone), 4, sampling, torch.Generator().manual_seed(0))
    assert len({len(completion.token_ids) for completion in completions}) > 3
    ids, mask = pad_completions(completions, 0)
    with torch.no_grad():
        expected = padded_logprobs(model, [p for p in backbone.prompts for _ in range(4)], ids, mask, 0.7)
    for completion, row in zip(completions, expected, strict=True):
        found = torch.tensor(completion.logprobs, dtype=expected.dtype)
        tolerance = EXACT if dtype == torch.float64 else SINGLE
        torch.testing.assert_close(found, row[: len(found)], rtol=0, atol=tolerance)


@pytest.mark.parametrize("autocast", [True, False])
@torch.no_grad()
def test_bfloat16(qwen, autocast):
    """Runs, and its log-probs are those of the padded route but for rounding."""
    model = built("qwen2_5_vl").model.to(torch.float32 if autocast else torch.bfloat16)
    engine = TransformersEngine(model, tokenizer())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        completions = engine.generate(prompts_of(qwen), 3, Sampling(max_completion_length=6), torch.Generator())
        ids, mask = pad_completions(completions, 0)
        expected = padded_logprobs(model, [p for p in qwen.prompts for _ in range(3)], ids, mask)
    for completion, row in zip(completions, expected, strict=True):
        torch.testing.assert_close(
            torch.tensor(completion.logprobs), row[: len(completion.logprobs)], rtol=0, atol=HALF
        )


def test_what_decoding_leaves_behind_serves_in_training():
    """Positions are remembered from the rollout on; nothing remembered may be closed to autograd."""
    backbone = built("qwen2_5_vl")
    engine = TransformersEngine(backbone.model, tokenizer())
    completions = engine.generate(prompts_of(backbone), 2, Sampling(max_completion_length=3), torch.Generator())
    ids, mask = pad_completions(completions, 0)
    shared_prefix_logprobs(backbone.model, [p for p in backbone.prompts for _ in range(2)], ids, mask).sum().backward()
    assert backbone.model.lm_head.weight.grad.abs().max() > 0
    core = backbone.model.model
    assert not any(prompt_positions(core, prompt)[0].is_inference() for prompt in backbone.prompts)


# --- no work for what has ended, and no copy of a prompt ---------------------------------------------------------------------


def test_a_step_computes_one_token_for_each_completion_that_goes_on(qwen):
    seen = []
    layer = qwen.model.get_decoder().layers[0]
    handle = layer.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape[:2])))
    engine = TransformersEngine(qwen.model, tokenizer())
    engine.stop_ids = list(range(1, 97, 4))
    completions = engine.generate(prompts_of(qwen), 5, Sampling(1.0, 1.0, LENGTH), torch.Generator().manual_seed(1))
    handle.remove()
    lengths = [len(completion.token_ids) for completion in completions]
    assert len(set(lengths)) > 4
    prompt_tokens = sum(prompt["input_ids"].shape[1] for prompt in qwen.prompts)
    going = [sum(length > step for length in lengths) for step in range(1, max(lengths))]
    assert seen == [(1, prompt_tokens)] + [(1, count) for count in going]


def held(memory):
    """Of the keys and values of one layer: numbers held for prompts, and for completions."""
    prompts = sum(tensor.numel() for group in memory.groups for tensor in group.layers[0])
    return prompts, sum(tensor.numel() for tensor in memory.own[0])


@torch.no_grad()
def test_a_prompt_is_held_once(qwen):
    """Whatever the number of completions, until the last of them has ended; completions have room for as many tokens as
    the longest has, doubled when it is used up."""
    token = 2 * 2 * 8  # keys and values of 2 heads of width 8
    lengths = [qwen.prompts[i]["input_ids"].shape[1] for i in (3, 0)]
    decoder = start_decoding(qwen.model, [qwen.prompts[i] for i in (3, 0)], 6)
    capacities = []
    for count in range(1, 6):
        decoder.step(decoder.logits.argmax(-1))
        prompts, completions = held(decoder.memory)
        assert sum(lengths) * token <= prompts <= 2 * max(lengths) * token  # padded to alike lengths at most
        assert completions % (12 * token) == 0
        capacities.append(completions // (12 * token))
        assert capacities[-1] >= count
    assert capacities == [2, 2, 4, 4, 8]

    decoder.keep([0, 3, 7])
    assert held(decoder.memory) == (prompts, 3 * 8 * token)
    decoder.keep([2])  # the first prompt has no completion left
    assert held(decoder.memory) == (lengths[1] * token, 8 * token)
    decoder.step(decoder.logits.argmax(-1))
    assert decoder.logits.shape == (1, qwen.model.lm_head.out_features)


@torch.no_grad()
def test_what_is_kept_goes_on_as_if_alone(backbone):
    """Completions of several prompts that have taken different tokens; some go, the others do not notice. A prompt loses
    all of its own, in the middle."""
    tokens = torch.tensor([[70 + (5 * i + 3 * step) % 20 for i in range(8)] for step in range(5)])
    prompts = [backbone.prompts[i] for i in (3, 2, 0, 1)]
    whole, cut = (start_decoding(backbone.model, prompts, 2) for _ in range(2))
    rows = list(range(8))
    for step, keep in enumerate(([0, 1, 2, 3, 5, 6, 7], None, [0, 2, 4, 5, 6], [0, 2, 3, 4], [1, 3])):
        if keep is not None:
            cut.keep(keep)
            rows = [rows[place] for place in keep]
        whole.step(tokens[step])
        cut.step(tokens[step, rows])
        torch.testing.assert_close(cut.logits, whole.logits[rows], rtol=0, atol=1e-7)


@torch.no_grad()
def test_prompts_of_unlike_lengths_do_not_mix(qwen):
    """Far apart in length they are held in several groups, alike ones in one, padded."""
    text = qwen.prompts[3]

    def of(length):
        ids = torch.arange(length)[None] % 30 + 60
        return {name: torch.ones_like(ids) for name in ("attention_mask",)} | {"input_ids": ids}

    prompts = [of(9), of(20), of(21), of(90), of(100), text]
    prompts = sorted(prompts, key=lambda prompt: prompt["input_ids"].shape[1])
    decoder = start_decoding(qwen.model, prompts, 3)
    groups = decoder.memory.groups
    assert sorted(rank for group in groups for rank in group.ranks) == list(range(6)) and len(groups) == 2
    assert all(group.bias is not None for group in groups)
    assert all(block.is_view for block in decoder.memory.blocks)  # of prompts side by side, their queries are no copy
    alone = [start_decoding(qwen.model, [prompt], 3) for prompt in prompts]
    tokens = torch.arange(18) + 65
    for rows in (None, [0, 2, 3, 4, 5, 9, 10, 15]):
        if rows is not None:
            decoder.keep(rows)
        for _ in range(3):
            decoder.step(tokens if rows is None else tokens[rows])
            for one, own in zip(alone, tokens.split(3), strict=True):
                one.step(own)
            expected = torch.cat([one.logits for one in alone])
            expected = expected if rows is None else expected[rows]
            torch.testing.assert_close(decoder.logits, expected, rtol=0, atol=1e-7)
