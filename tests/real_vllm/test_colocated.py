"""A real vLLM in this process against the policy: the same prompts, weights and log-probs, before and after an update."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from papo_hub.logprobs import padded_logprobs
from papo_hub.rollout import Sampling, TransformersEngine

pytestmark = pytest.mark.vllm
ROOT = Path(__file__).parents[2]
GREEDY = Sampling(temperature=0, max_completion_length=12)
EXACT = 1e-4  # nats; seen: 2e-6. Old weights, another temperature or another image are off by 1e-2 and more


def sample(engine, prompts, sampling, count=2, seed=0, **options):
    return engine.generate(prompts, count, sampling, torch.Generator().manual_seed(seed), **options)


def gap(completions, model, prompts, temperature=1.0, view="clean"):
    """The largest difference of a token's log-prob in vLLM and in the model."""
    size, found = len(completions) // len(prompts), 0.0
    for i, completion in enumerate(completions):
        ids = torch.tensor([completion.token_ids])
        with torch.no_grad():
            ours = padded_logprobs(model, getattr(prompts[i // size], view), ids, torch.ones_like(ids), temperature)
        found = max(found, (ours[0] - torch.tensor(completion.logprobs)).abs().max().item())
    return found


def shaken(model, part):
    """An update of the weights whose names hold `part`."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if part in name:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(0.7), Sampling(1.3, 0.5), Sampling(0)], ids=str)
@pytest.mark.parametrize("view", ["clean", "masked"])
def test_log_probs_are_the_policys(engine, model, prompts, sampling, view):
    """At any temperature and nucleus, under the whole distribution, for several images, on both views."""
    sampling = Sampling(sampling.temperature, sampling.top_p, max_completion_length=12)
    completions = sample(engine, prompts, sampling, view=view)
    temperature = sampling.temperature or 1.0
    assert gap(completions, model, prompts, temperature, view) < EXACT
    assert gap(completions, model, prompts, 2 * temperature, view) > 1e-2
    assert gap(completions, model, prompts, temperature, "masked" if view == "clean" else "clean") > 1e-3


@pytest.mark.parametrize("part", ["embed_tokens", "visual", "self_attn", "mlp", "norm"])
def test_after_a_push_the_outputs_follow_the_new_weights(engine, model, processor, prompts, part):
    """Each part of the model by itself: the embeddings are the output layer, too; keys, values and image features that the
    old weights made are forgotten."""
    before = sample(engine, prompts, GREEDY)
    shaken(model, part)
    assert sample(engine, prompts, GREEDY) == before  # not asked to follow yet
    assert gap(before, model, prompts) > 1e-3
    engine.rest()
    after = sample(engine, prompts, GREEDY)
    assert gap(after, model, prompts) < EXACT
    ours = sample(TransformersEngine(model, processor.tokenizer), prompts, GREEDY)
    assert [c.token_ids for c in after] == [c.token_ids for c in ours]
    assert [(c.text, c.finished) for c in after] == [(c.text, c.finished) for c in ours]


def test_a_completion_depends_on_its_seed_alone(engine, prompts):
    """Not on what is sampled beside it, nor on the global state."""
    sampling = Sampling(max_completion_length=8)
    torch.manual_seed(1)
    together = engine.generate(prompts, 2, sampling, [1, 2, 3, 4, 5, 6])
    torch.manual_seed(2)
    alone = engine.generate(prompts[1:2], 2, sampling, [3, 4])
    assert [c.token_ids for c in alone] == [c.token_ids for c in together[2:4]]
    other = engine.generate(prompts[1:2], 2, sampling, [4, 5])
    assert other[0].token_ids == alone[1].token_ids != other[1].token_ids


def test_what_must_not_be_sampled_is_not(engine, model, prompts):
    """However likely: image tokens never, an end not before the least length."""
    never, ends = engine.suppressed, engine.stop_ids
    with torch.no_grad():
        embeddings = model.get_input_embeddings().weight
        for token in (*never, *ends):  # alike, and larger than any other: theirs are the greatest logits, or the least
            embeddings[token] = 3 * embeddings[never[0]]
    completions = sample(engine, prompts, Sampling(max_completion_length=8, min_completion_length=3), count=16)
    lengths = {len(c.token_ids) for c in completions}
    assert not {token for c in completions for token in c.token_ids} & set(never)
    assert min(lengths) == 4 and all(c.token_ids[-1] in ends for c in completions if c.finished)


def test_who_gives_up_gets_nothing_and_can_ask_again(engine, model, prompts):
    asked = []

    def given_up():
        asked.append(True)
        return len(asked) > 3

    assert sample(engine, prompts, Sampling(max_completion_length=12), given_up=given_up) == []
    assert len(asked) == 4
    engine.rest()
    assert gap(sample(engine, prompts, GREEDY), model, prompts) < EXACT


def launch(folder, model, *overrides, processes=1):
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    settings = {
        "model_name_or_path": model,
        "output_dir": folder / "run",
        "rollout_engine": "vllm",
        "vllm_gpu_memory_utilization": 0.1,
        "max_steps": 2,
        "prompts_per_step": 4,
        "prompts_per_update": 4,
        "rollout_batch_size": 32,
        "learning_rate": 1e-2,
        "eval_dataset_name": "null",
        "save_steps": 0,
        "report_to": "none",
    }
    command += [str(ROOT / "recipes/train.py"), "--config", str(ROOT / "recipes/tiny/papo_g.yaml")]
    command += [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    done = subprocess.run([*command, *overrides], capture_output=True, text=True, cwd=folder, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr, done.stderr[-3000:]  # nor while it ends
    lines = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_learns_from_what_vllm_samples(wide_model_folder, tmp_path, processes):
    rows = launch(
        tmp_path, wide_model_folder, "--eval_dataset_name", "digits", "--eval_problems", "4", processes=processes
    )
    assert len(rows) == 2
    assert all(0 < row["objective/sampling_gap"] < 1e-4 for row in rows)  # the second after a push
    assert (tmp_path / "run" / "model" / "config.json").exists()
    measured = json.loads((tmp_path / "run" / "evaluation.json").read_text(encoding="utf-8"))
    assert {row["when"] for row in measured} == {"before", "after"}


def test_several_updates_a_step_and_dynamic_sampling(wide_model_folder, tmp_path):
    """Old log-probs are the policy's own, not those that vLLM gave."""
    rows = launch(tmp_path, wide_model_folder, "--prompts_per_update", "2", "--format_weight", "0.5")
    assert all(0 < row["objective/sampling_gap"] < 1e-4 for row in rows)
