"""A gradient that is not finite never reaches the weights, and a run of them ends the run."""

import pytest
import torch
from safetensors.torch import load_file

from papo_hub.objectives import terms
from papo_hub.tracking import read_metrics
from papo_hub.trainer import TrainingDiverged, train

pytestmark = pytest.mark.usefixtures("without_report")


@pytest.fixture
def poisoned(monkeypatch):
    """poisoned(updates): the perception term of these updates (0-based, over the run) gets a gradient of NaN."""

    def make(updates):
        original, count = terms.perception_kl, iter(range(10**6))

        def perception_kl(logprobs, masked_logprobs, estimator="k3"):
            values = original(logprobs, masked_logprobs, estimator)
            if values.requires_grad and next(count) in updates:
                values.register_hook(lambda gradient: gradient * float("nan"))
            return values

        monkeypatch.setattr(terms, "perception_kl", perception_kl)

    return make


@pytest.fixture
def metrics(tmp_path):
    def read(*keys):
        return [tuple(row[key] for key in keys) for row in read_metrics(tmp_path / "run" / "metrics.jsonl")]

    return read


def test_a_skipped_update_changes_no_weight(fast_config, poisoned, metrics, tiny_model_folder, capfd):
    poisoned({0, 1})
    run = train(fast_config(max_steps=1, prompts_per_update=2, max_skipped_updates=3))
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_model_folder, run / "model"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert metrics("optim/skipped_updates", "optim/grad_norm") == [(2, None)]
    assert "step 1: the gradient is not finite; update skipped (2 in a row)" in "".join(capfd.readouterr())


def test_the_other_update_of_the_step_is_made(fast_config, poisoned, metrics, tiny_model_folder):
    poisoned({0})
    run = train(fast_config(max_steps=1, prompts_per_update=2))
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_model_folder, run / "model"))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all(after[name].isfinite().all() for name in after)
    ((skipped, norm),) = metrics("optim/skipped_updates", "optim/grad_norm")
    assert skipped == 1 and norm > 0


def test_too_many_in_a_row_stop_the_run(fast_config, poisoned, metrics):
    poisoned(range(100))
    with pytest.raises(TrainingDiverged, match="step 2: 2 updates in a row .* Lower learning_rate or gamma and resume"):
        train(fast_config(max_steps=5, max_skipped_updates=2))
    assert metrics("step") == [(1,)]


def test_only_those_in_a_row_count(fast_config, poisoned, metrics):
    poisoned({0, 2, 4})
    train(fast_config(max_steps=5, max_skipped_updates=2))
    assert metrics("optim/skipped_updates") == [(1,), (0,), (1,), (0,), (1,)]


def test_the_count_survives_a_resume(fast_config, poisoned):
    poisoned({1})
    run = train(fast_config(max_steps=2, max_skipped_updates=2, save_steps=1))
    poisoned(range(100))
    resumed = fast_config(max_steps=3, max_skipped_updates=2, resume_from_checkpoint="latest")
    with pytest.raises(TrainingDiverged, match="step 3: 2 updates in a row"):
        train(resumed)
    assert (run / "checkpoints" / "step-000002").is_dir()
