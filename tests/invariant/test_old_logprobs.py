"""With several updates a rollout batch, the old log-probs are those of the sampling where they are exact."""

import pytest
import torch

from papo_hub import experience, trainer

pytestmark = pytest.mark.usefixtures("without_report", "fresh_accelerate")
TOLERANCE = 2e-5  # nats; float32, decoded token by token against a whole row; seen: 3e-6


@pytest.fixture
def run(fast_config, warm_model_folder, tmp_path, monkeypatch):
    """run(...) → the first batch, what a pass of its own gives for the old log-probs, and the views scored."""
    collect, score = experience.collect, experience.score
    found, views = [], []

    def spy_collect(policy, reference, engine, stream, accelerator, config, step, limit, interruption):
        under_way = collect(policy, reference, engine, stream, accelerator, config, step, limit, interruption)
        if not found:
            with accelerator.autocast():
                again = score(policy, under_way.batch, "clean", config.temperature, limit, interruption)
            found.extend([under_way.batch, again])
        return under_way

    monkeypatch.setattr(trainer, "collect", spy_collect)
    monkeypatch.setattr(experience, "score", lambda *given: views.append(given[2]) or score(*given))

    def make(**overrides):
        settings = {"model_name_or_path": str(warm_model_folder), "output_dir": str(tmp_path / "run"), "max_steps": 1}
        settings |= {"prompts_per_update": 2, "num_generations": 4, "max_completion_length": 14, "top_p": 0.9}
        trainer.train(fast_config(**settings | overrides))
        return *found, views

    return make


def test_in_float32_they_come_from_the_sampling(run):
    batch, passed, views = run()
    assert "clean" not in views
    assert torch.equal(batch.old_logprobs, experience.sampled_logprobs(batch))
    torch.testing.assert_close(batch.old_logprobs, passed, rtol=0, atol=TOLERANCE)
    assert (passed[batch.completion_mask] < -1e-3).any() and (batch.old_logprobs[~batch.completion_mask] == 0).all()


def test_in_mixed_precision_they_take_a_pass(run):
    batch, passed, views = run(mixed_precision="bf16")
    assert views.count("clean") == 1
    assert torch.equal(batch.old_logprobs, passed)


def test_with_one_update_there_are_none(run):
    batch, _, views = run(prompts_per_update=4)
    assert batch.old_logprobs is None and "clean" not in views
