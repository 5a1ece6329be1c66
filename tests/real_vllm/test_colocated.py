"""A real vLLM in this process against the policy: the same prompts, weights and log-probs, before and after an update."""

import json

import pytest
import torch

from papo_hub.rollout import Sampling, TransformersEngine
from tests.real_vllm.helpers import EXACT, GREEDY, favoured, gap, launch, only_allowed_tokens, sample, shaken

pytestmark = pytest.mark.vllm


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
    favoured(model, (*engine.suppressed, *engine.stop_ids))
    only_allowed_tokens(engine, prompts)


def test_who_gives_up_gets_nothing_and_can_ask_again(engine, model, prompts):
    asked = []

    def given_up():
        asked.append(True)
        return len(asked) > 3

    assert sample(engine, prompts, Sampling(max_completion_length=12), given_up=given_up) == []
    assert len(asked) == 4
    engine.rest()
    assert gap(sample(engine, prompts, GREEDY), model, prompts) < EXACT


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


def test_several_updates_a_step(wide_model_folder, tmp_path):
    """Old log-probs are the policy's own, not those that vLLM gave."""
    rows = launch(tmp_path, wide_model_folder, "--prompts_per_update", "2")
    assert all(0 < row["objective/sampling_gap"] < 1e-4 for row in rows)


def test_an_adapter_is_merged_into_what_vllm_gets(wide_model_folder, tmp_path):
    """Rates at which the adapter's first update shows; vLLM with the base model alone would be off by 1e-2."""
    rows = launch(tmp_path, wide_model_folder, "--lora_rank", "4", "--lora_alpha", "64", "--learning_rate", "1e-2")
    assert all(0 < row["objective/sampling_gap"] < 1e-4 for row in rows)
