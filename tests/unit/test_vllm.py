"""What the vLLM engine does around vLLM: requests, seeds, checks, and when it asks for new weights. Without vLLM, by a
stand-in for its `LLM`; a real one is in tests/real_vllm."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from papo_hub.batch import Batch, Completion, pad_completions
from papo_hub.config import ConfigError
from papo_hub.experience import sampled_logprobs
from papo_hub.modeling import load_vlm
from papo_hub.modeling.tiny import SPECIAL
from papo_hub.rollout import Sampling, VllmEngine, check_vllm, vllm
from papo_hub.rollout.vllm import PromptMismatch, box_end, completion_seeds, request, sampling_options
from papo_hub.unfinished import StepUnderWay

IMAGE, END = SPECIAL.index("<|image_pad|>"), SPECIAL.index("<|im_end|>")


class StandIn:
    """Reads prompts as the given function does, and answers each with "7", then its end."""

    def __init__(self, reads):
        self.reads, self.calls, self.waiting = reads, [], []
        self.llm_engine = self

    def enqueue(self, requests, options, use_tqdm):
        self.waiting = [str(i) for i in range(len(requests))]
        self.asked = list(zip(requests, options, strict=True))
        return [f"{id}-internal" for id in self.waiting]

    def has_unfinished_requests(self):
        return bool(self.waiting)

    def step(self):
        """The last one asked for ends first."""
        number = int(self.waiting.pop())
        found = [{token: SimpleNamespace(logprob=-float(number + 1))} for token in (9, END)]
        answer = SimpleNamespace(token_ids=[9, END], logprobs=found, finish_reason="stop")
        prompt = self.reads(self.asked[number][0]["prompt_token_ids"])
        return [SimpleNamespace(request_id=str(number), prompt_token_ids=prompt, outputs=[answer], finished=True)]

    def abort_request(self, ids, internal):
        assert internal and len(ids) == len(self.asked)
        self.waiting = []

    def collective_rpc(self, method, args):
        shown = [name for name, _ in args[0]] if method == "take_weights" else args[0]
        self.calls.append((method, shown))

    def reset_prefix_cache(self):
        self.calls.append(("reset_prefix_cache", None))
        return True

    def reset_encoder_cache(self):
        self.calls.append(("reset_encoder_cache", None))


@pytest.fixture
def engine(tiny_model_folder, tiny_processor, tiny_prompts, monkeypatch):
    trained = {prompt.text_ids: prompt.clean["input_ids"][0].tolist() for prompt in tiny_prompts}
    stand_in = StandIn(lambda ids: trained[tuple(ids)])
    monkeypatch.setattr(vllm, "check_vllm", lambda: None)
    monkeypatch.setattr(VllmEngine, "_prepare_environment", lambda self: None)
    monkeypatch.setattr(VllmEngine, "_load", lambda self, *arguments: stand_in)
    monkeypatch.setattr(VllmEngine, "_parameters", staticmethod(lambda options: options))
    return VllmEngine(load_vlm(tiny_model_folder), tiny_processor, max_length=64)


def sample(engine, prompts, sampling=None, seeds=None, **options):
    seeds = list(range(len(prompts))) if seeds is None else seeds
    return engine.generate(prompts, len(seeds) // len(prompts), sampling or Sampling(), seeds, **options)


def test_completions_come_in_the_order_of_the_prompts(engine, tiny_prompts):
    found = sample(engine, tiny_prompts, seeds=[11, 12, 13, 14, 15, 16])
    assert [c.logprobs for c in found] == [[-float(i), -float(i)] for i in range(1, 7)]
    assert [options["seed"] for _, options in engine.llm.asked] == [11, 12, 13, 14, 15, 16]
    assert all(c.token_ids == [9, END] and c.finished for c in found)
    assert found[0].text == engine.tokenizer.decode([9])


def test_a_prompt_is_sent_with_one_token_an_image_and_the_pictures_of_its_view(tiny_prompts):
    assert tiny_prompts[0].length > len(tiny_prompts[0].text_ids)
    for prompt, images in zip(tiny_prompts, (1, 2, 1), strict=True):
        sent = request(prompt, "clean")
        ids, trained = sent["prompt_token_ids"], prompt.clean["input_ids"][0].tolist()
        assert ids.count(IMAGE) == images <= trained.count(IMAGE)
        assert [i for i in ids if i != IMAGE] == [i for i in trained if i != IMAGE]
        assert sent["multi_modal_data"] == {"image": list(prompt.sample.images)}
        assert request(prompt, "masked") == sent | {"multi_modal_data": {"image": list(prompt.masked_images)}}


def test_another_reading_of_a_prompt_is_refused_with_both(engine, tiny_prompts):
    right = engine.llm.reads
    engine.llm.reads = lambda ids: [i for i in right(ids) if i != IMAGE][:6] + [9] * 3
    with pytest.raises(PromptMismatch) as caught:
        sample(engine, tiny_prompts[:1])
    trained = tiny_prompts[0].length
    assert f"prompt of row 'a' otherwise than the policy: 9 tokens for {trained}" in str(caught.value)
    assert "<|image_pad|>" in str(caught.value) and "rollout_engine: transformers" in str(caught.value)


def test_seeds_follow_from_the_generator(tiny_prompts):
    """As many as asked for, all different; given ones are taken as they are."""
    drawn = completion_seeds(torch.Generator().manual_seed(3), 50)
    assert drawn == completion_seeds(torch.Generator().manual_seed(3), 50) and len(set(drawn)) == 50
    assert drawn != completion_seeds(torch.Generator().manual_seed(4), 50)
    assert completion_seeds([5, 4], 2) == [5, 4]


def test_sampling_options():
    """The temperature is in the logits: only its being 0 is left to say."""
    sampling = Sampling(temperature=0.7, top_p=0.9, max_completion_length=20, min_completion_length=2)
    options = sampling_options(sampling, 8, [END], [IMAGE])
    assert options == {
        "temperature": 1.0,
        "top_p": 0.9,
        "max_tokens": 20,
        "min_tokens": 2,
        "stop_token_ids": [END],
        "logit_bias": {IMAGE: -100.0},
        "logprobs": 0,
        "seed": 8,
    }
    assert sampling_options(Sampling(temperature=0), 8, [], [])["temperature"] == 0


def test_weights_are_pushed_before_the_first_completion_after_a_rest(engine, tiny_prompts):
    sample(engine, tiny_prompts)
    names = [name for name, _ in engine.model.named_parameters()]
    push = [("take_weights", names), ("reset_prefix_cache", None), ("reset_encoder_cache", None)]
    assert engine.llm.calls == push
    sample(engine, tiny_prompts)
    assert engine.llm.calls == push, "the policy has not changed: nothing to push"
    engine.rest()
    engine.rest()
    assert engine.llm.calls == push, "nor is anything pushed until somebody asks"
    sample(engine, tiny_prompts, Sampling(temperature=0.5))
    sample(engine, tiny_prompts, Sampling(temperature=0.5))
    sample(engine, tiny_prompts, Sampling(temperature=0))
    assert engine.llm.calls == [*push, *push, ("set_temperature", 0.5), ("set_temperature", 1.0)]


def test_on_a_gpu_vllm_sleeps_between_rollouts(engine, tiny_prompts, monkeypatch):
    """The old weights are given up, so room for the new ones comes first, and that for keys and values when they are there."""
    llm, push = engine.llm, ["take_weights", "reset_prefix_cache", "reset_encoder_cache"]
    monkeypatch.setattr(llm, "sleep", lambda level: llm.calls.append((f"sleep {level}", None)), raising=False)
    monkeypatch.setattr(llm, "wake_up", lambda tags: llm.calls.append((f"wake {tags[0]}", None)), raising=False)
    engine.on_gpu = True
    sample(engine, tiny_prompts)
    engine.rest()
    engine.rest()
    sample(engine, tiny_prompts)
    woken = ["wake weights", "take_weights", "wake kv_cache", *push[1:]]
    assert [name for name, _ in llm.calls] == [*push, "sleep 2", *woken]


def test_a_cache_that_is_held_is_an_error(engine, tiny_prompts):
    engine.llm.reset_prefix_cache = lambda: False
    with pytest.raises(RuntimeError, match="old weights"):
        sample(engine, tiny_prompts)


def test_who_gives_up_gets_nothing(engine, tiny_prompts):
    assert sample(engine, tiny_prompts, given_up=lambda: len(engine.llm.waiting) < 3) == []
    assert not engine.llm.waiting
    assert engine.generate([], 2, Sampling(), []) == []


def test_a_completion_ends_behind_its_box(engine, tiny_prompts, tiny_processor):
    tokenizer = tiny_processor.tokenizer
    ids = tokenizer("a} \\boxed{1} \\boxed{2}").input_ids
    length = box_end(tokenizer, ids)
    assert tokenizer.decode(ids[:length]) == "a} \\boxed{1}" and box_end(tokenizer, ids[: length - 1]) is None
    output = SimpleNamespace(
        token_ids=ids, logprobs=[{i: SimpleNamespace(logprob=-1.0)} for i in ids], finish_reason="length"
    )
    cut = engine._completion(output, Sampling(stop_on_boxed=True))
    assert (cut.token_ids, cut.logprobs, cut.finished) == (ids[:length], [-1.0] * length, True)
    whole = engine._completion(output, Sampling())
    assert (whole.token_ids, whole.finished) == (ids, False)


def test_without_vllm_the_recipe_is_refused(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"papo_hub\[vllm\]"):
        check_vllm()


def test_what_vllm_said_of_its_samples_stays_with_them(tiny_prompts, tmp_path):
    """In a part of the batch, cut to its width, and where a run is stopped in the middle of a step."""
    completions = [Completion([9] * n, "", True, [-float(n)] * n) for n in (3, 1, 2, 2)]
    ids, mask = pad_completions(completions, 0)
    batch = Batch(
        tiny_prompts[:2], torch.tensor([0, 0, 1, 1]), completions, ids, mask, torch.zeros(4), {"mean": torch.zeros(4)}
    )
    batch = replace(batch, sampled_logprobs=sampled_logprobs(batch))
    assert batch.sampled_logprobs.tolist() == [[-3, -3, -3], [-1, 0, 0], [-2, -2, 0], [-2, -2, 0]]
    assert batch.select(slice(1, 3)).sampled_logprobs.tolist() == [[-1, 0], [-2, -2]]
    StepUnderWay(batch, 2, [0, 1], {}).save(tmp_path, 0)
    stream = SimpleNamespace(take=lambda count, rank, world: tiny_prompts[:count])
    again = StepUnderWay.load(tmp_path, stream, 0, 1, torch.device("cpu")).batch
    assert torch.equal(again.sampled_logprobs, batch.sampled_logprobs)
