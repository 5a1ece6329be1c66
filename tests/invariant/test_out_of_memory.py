"""Where memory ends, less goes through the model at once, and the run is the one that was started so."""

import dataclasses
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file

from papo_hub import experience, trainer
from papo_hub.batch import Batch, Completion, Prompt
from papo_hub.checkpoint import checkpoints, load_state
from papo_hub.head import CHUNK_ELEMENTS
from papo_hub.memory import MemoryExhausted, MicroBatchLimit, memory_plan
from papo_hub.modeling.tiny import build_tiny
from papo_hub.shared_prefix import shared_prefix_logprobs
from papo_hub.tracking import read_metrics
from papo_hub.trainer import train

pytestmark = pytest.mark.usefixtures("without_report")
CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.64 GiB"
CPU = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"


@pytest.fixture
def recipe(fast_config, warm_model_folder, tmp_path):
    def make(name, **overrides):
        settings = {"model_name_or_path": str(warm_model_folder), "num_generations": 4, "max_completion_length": 12}
        settings |= {"prompts_per_update": 2, "micro_batch_size": None, "max_steps": 2, "beta": 0.01}
        return fast_config(**settings | {"output_dir": str(tmp_path / name)} | overrides)

    return make


@contextmanager
def memory_for(patch, tokens, where="forward", error=None):
    """Only so many tokens of completions and different prompts fit through the model; counts what did not."""
    failures = []
    error = error or torch.OutOfMemoryError(CUDA)

    def checked(model, prompts, ids, mask, *others):
        rows = {id(prompt): prompt["input_ids"].shape[1] for prompt in prompts}
        too_much = sum(rows.values()) + int(mask.sum()) > tokens
        if too_much and where == "forward":
            failures.append(None)
            raise error
        logprobs = shared_prefix_logprobs(model, prompts, ids, mask, *others)
        if too_much and logprobs.requires_grad:  # in the backward pass, when half of the gradients are there
            names = [name for name, _ in model.named_parameters()]
            parameter = dict(model.named_parameters())[names[len(names) // 2]]

            def fails(_):
                failures.append(None)
                handle.remove()
                raise error

            handle = parameter.register_post_accumulate_grad_hook(fails)
        return logprobs

    with patch.context() as inside:
        for module in (trainer, experience):
            inside.setattr(module, "shared_prefix_logprobs", checked)
        yield failures


def rows(run):
    found = read_metrics(run / "metrics.jsonl")
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in found]


def weights(run):
    return load_file(run / "model" / "model.safetensors")


@pytest.mark.parametrize("masked", ["frozen", "live"])
def test_it_is_the_run_that_was_started_with_less_at_once(recipe, monkeypatch, capfd, masked):
    """Bit for bit: the first pass of all already finds the limit."""
    with memory_for(monkeypatch, 60) as failures:
        run = train(recipe("run", masked_logprobs=masked))
    assert failures
    said = [line for line in capfd.readouterr().out.splitlines() if "out of memory with" in line]
    assert len(said) == len(failures)  # once each, and the limit stays
    found = int(said[-1].rsplit(" ", 1)[1])
    assert f"To start so: --max_tokens_per_micro_batch {found}" in said[-1]
    assert load_state(checkpoints(run / "checkpoints")[-1])["limit"] == {"tokens": found}
    small = train(recipe("small", masked_logprobs=masked, max_tokens_per_micro_batch=found))
    assert rows(run) == rows(small)
    assert all(torch.equal(value, weights(small)[name]) for name, value in weights(run).items())


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_an_update_is_repeated_from_its_beginning(recipe, monkeypatch, where):
    """What a failed backward pass left in the gradients is not there twice."""
    with monkeypatch.context() as patch:
        patch.setattr(experience, "shared_prefix_logprobs", shared_prefix_logprobs)
        with memory_for(monkeypatch, 100, where) as failures:
            patch.setattr(experience, "shared_prefix_logprobs", shared_prefix_logprobs)  # scores fit
            run = train(recipe("run", max_steps=1))
    assert failures
    whole = train(recipe("whole", max_steps=1))
    for name, value in rows(whole)[0].items():
        expected = None if value is None else pytest.approx(value, rel=2e-5, abs=1e-7)
        assert rows(run)[0][name] == expected, name
    start = load_file(f"{recipe('whole').model_name_or_path}/model.safetensors")
    moved = max(float((value - start[name]).abs().max()) for name, value in weights(whole).items())
    apart = max(float((value - weights(run)[name]).abs().max()) for name, value in weights(whole).items())
    assert moved > 5e-4 and apart < 0.02 * moved


def test_forgotten_gradients_would_show(recipe, monkeypatch):
    """The test above sees it when the repeated update keeps what the failed one left."""
    whole = train(recipe("whole", max_steps=1))
    with memory_for(monkeypatch, 100, "backward"), monkeypatch.context() as patch:
        patch.setattr(experience, "shared_prefix_logprobs", shared_prefix_logprobs)
        patch.setattr("accelerate.optimizer.AcceleratedOptimizer.zero_grad", lambda *given, **options: None)
        run = train(recipe("run", max_steps=1, prompts_per_update=4))
    assert rows(run)[0]["optim/grad_norm"] != pytest.approx(rows(whole)[0]["optim/grad_norm"], rel=1e-3)


def test_one_completion_that_does_not_fit_says_what_to_do(recipe, monkeypatch):
    with memory_for(monkeypatch, 3), pytest.raises(MemoryExhausted, match="single completion .* activation_checkpoint"):
        train(recipe("run"))


def test_the_memory_of_a_cpu_ends_likewise(recipe, monkeypatch):
    with memory_for(monkeypatch, 60, error=RuntimeError(CPU)) as failures:
        train(recipe("run", max_steps=1))
    assert failures


def test_another_fault_is_not_taken_for_it(recipe, monkeypatch):
    with memory_for(monkeypatch, 60, error=RuntimeError("shapes differ")), pytest.raises(RuntimeError, match="shapes"):
        train(recipe("run"))


def batch_of(lengths, prompt=10):
    """Completions of these lengths to one prompt."""
    prompt = Prompt(None, {"input_ids": torch.zeros(1, prompt, dtype=torch.long)})
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    completions = [Completion([0] * length, "", True) for length in lengths]
    owners = torch.zeros(len(lengths), dtype=torch.long)
    return Batch([prompt], owners, completions, mask.long(), mask, torch.zeros(len(lengths)), {})


def test_the_limit_by_hand():
    said = []
    limit = MicroBatchLimit(100, None, said.append)
    batch = batch_of([8, 8, 4, 4])  # 34 tokens with the prompt once, 64 with a prompt each
    assert (batch.tokens(), batch.tokens(shared=False)) == (34, 64)
    tried = []

    def compute():
        for micro, _ in limit.micros(batch, shared=True):
            tried.append(len(micro))
            if micro.tokens() > 20:
                raise torch.OutOfMemoryError(CUDA)
        return "done"

    assert limit.retry(compute) == "done"
    # 34 > 20, so at most 17: 10 + 8 alone is more, the next 8 does not fit beside, 10 + 4 and the last does not fit
    assert tried == [4, 1, 1, 1, 1] and limit.tokens == 17
    assert said == [
        "out of memory with 4 completions of 34 tokens at once: from here on at most 17 tokens, with the same results. "
        "To start so: --max_tokens_per_micro_batch 17"
    ]
    other = MicroBatchLimit(100, None, print)
    other.load_state_dict(limit.state_dict())
    assert other.tokens == 17
    other = MicroBatchLimit(12, None, print)  # lowered by hand before resuming
    other.load_state_dict(limit.state_dict())
    assert other.tokens == 12


def test_the_pass_that_exchanges_gradients_cannot_be_repeated_alone():
    limit = MicroBatchLimit(100, 2, print)
    seen = []

    def compute():
        for _micro, last in limit.micros(batch_of([8, 8, 4, 4]), shared=True):
            seen.append(last)
            if last:
                raise torch.OutOfMemoryError(CUDA)

    with pytest.raises(MemoryExhausted, match="exchange what they have.* --max_tokens_per_micro_batch 9$"):
        limit.retry(compute, exchanging="last")
    assert seen == [False, True] and limit.tokens == 100


def test_where_every_pass_exchanges_something_none_can_be_repeated_alone():
    limit = MicroBatchLimit(100, 2, print)

    def compute():
        for _micro, last in limit.micros(batch_of([8, 8, 4, 4]), shared=True):
            assert not last
            raise torch.OutOfMemoryError(CUDA)

    with pytest.raises(MemoryExhausted, match="exchange what they have"):
        limit.retry(compute, exchanging="always")


def test_processes_in_step_make_the_same_number_of_passes_and_count_each_completion_once():
    limit, batch = MicroBatchLimit(100, 2, print), batch_of([8, 8, 4, 4])

    def made(most):
        passes = limit.in_step(batch, True, 1, lambda own: max(own, most))
        return [(len(micro), weight, last) for micro, weight, last in passes]

    assert made(0) == [(2, 1.0, False), (2, 1.0, True)]
    assert made(4) == [(2, 1.0, False), (2, 1.0, False), (2, 0.0, False), (2, 0.0, True)]


def test_a_run_states_its_memory_plan(recipe, capfd):
    train(recipe("run", max_steps=1))
    (line,) = [line for line in capfd.readouterr().out.splitlines() if "memory, computed" in line]
    assert "for weights, gradients and optimizer" in line and "more in an update" in line and "while sampling" in line


def test_the_plan_by_hand(fast_config, tmp_path):
    """The tiny model: width 64, 2 layers, 2 heads of 16 for keys and values, 128 entries in the vocabulary."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    model_config = AutoConfig.from_pretrained(build_tiny(tmp_path / "model"))
    text = model_config.get_text_config()
    config = fast_config(max_prompt_length=100, max_completion_length=20, max_tokens_per_micro_batch=1000)
    config.micro_batch_size = None
    plan = memory_plan(config, model_config)
    width, layers, heads = text.hidden_size, text.num_hidden_layers, text.num_key_value_heads
    assert plan.resident["weights"] == 4 * plan.parameters == plan.resident["gradients"]
    assert plan.resident["optimizer (AdamW, two moments)"] == 8 * plan.parameters and plan.scoring == 0
    beside = memory_plan(
        dataclasses.replace(config, beta=0.01), model_config
    )  # a reference model, which comes and goes
    assert beside.scoring == 4 * plan.parameters + 17 * 4 * width * 1000
    assert beside.resident == plan.resident
    assert plan.update["activations, most tokens"] == layers * 17 * 4 * width * 1000
    # 64 completions of 20 tokens and their 32 prompts of 100: keys and values of each layer and head
    assert plan.rollout == 2 * layers * heads * (width // text.num_attention_heads) * 4 * (32 * 100 + 64 * 20)
    assert plan.trained == plan.parameters and "are trained" not in plan.table()

    # An adapter of rank 2: on each of a layer's seven matrices 2 · (in + out), in float32 over weights of 2 bytes.
    adapter = dataclasses.replace(config, lora_rank=2, dtype="bfloat16", beta=0.01)
    small = memory_plan(adapter, model_config)
    keys, inner = heads * (width // text.num_attention_heads), text.intermediate_size
    ends = [width + width, width + keys, width + keys, width + width, *[width + inner] * 3]
    assert small.trained == layers * 2 * sum(ends) and small.parameters == plan.parameters
    assert list(small.resident.values()) == [2 * plan.parameters, *(n * small.trained for n in (4, 4, 8))]
    assert small.scoring == 0
    assert small.update["output layer, a chunk of logits"] == CHUNK_ELEMENTS * 12  # no gradient of the layer's own
    assert "are trained" in small.table()

    # A frozen vision tower: its weights are there, its gradients and moments are not.
    part = memory_plan(dataclasses.replace(config, freeze_vision_tower=True), model_config)
    frozen = part.parameters - part.trained
    vision = model_config.vision_config  # its block's weights alone are qkv and output 4 · d², MLP 3 · d · i
    assert 4 * vision.hidden_size**2 + 3 * vision.hidden_size * vision.intermediate_size < frozen < part.parameters / 2
    assert plan.peak - part.peak == 12 * frozen
    model = AutoModelForImageTextToText.from_config(model_config)
    blocks = [*model.model.language_model.layers, *model.model.visual.blocks]
    sizes = [sum(p.numel() for p in block.parameters()) for block in blocks]
    # Whole on each GPU in an update: what is in no block, with its gradient, and two blocks; while sampling, everything.
    updating = sum(plan.update.values()) + 4 * (2 * (plan.parameters - sum(sizes)) + 2 * max(sizes))
    sampling = plan.rollout + 4 * plan.parameters
    assert plan.sharded(4) == 16 * plan.parameters // 4 + max(updating, sampling)
    assert plan.sharded(1) == plan.peak == 16 * plan.parameters + max(sum(plan.update.values()), plan.rollout)
    assert "That is more than there is" in plan.line(available=plan.peak - 1)
    assert "That is more than there is" not in plan.line(available=plan.peak)
