"""How an update is cut into micro-batches changes nothing but rounding."""

import pytest

from papo_hub import trainer
from papo_hub.objectives import Counts, Objective
from papo_hub.plugins import PapoAccelerator
from tests.precision import double, float64_throughout

COMPLETIONS = 8
TOLERANCE = 1e-12  # of the largest entry of all gradients; seen: 2e-15

pytestmark = pytest.mark.usefixtures("without_report")


@pytest.fixture
def gradient(fast_config, tmp_path, warm_model_folder, monkeypatch):
    """gradient(micro_batch_size, ...) → the gradients of a run's only update, before clipping, in float64."""
    found = []
    clip = PapoAccelerator.clip_grad_norm_

    def capture(accelerator, parameters, max_norm):
        parameters = list(parameters)
        found.append([parameter.grad.clone() for parameter in parameters])
        return clip(accelerator, parameters, max_norm)

    for name in ("load_model", "load_reference"):
        load = getattr(trainer, name)
        monkeypatch.setattr(trainer, name, lambda *arguments, load=load: double(load(*arguments)))
    monkeypatch.setattr(PapoAccelerator, "clip_grad_norm_", capture)

    def make(micro_batch_size, **overrides):
        settings = {"prompts_per_step": 2, "prompts_per_update": 2, "num_generations": 4, "max_completion_length": 14}
        settings |= {"model_name_or_path": warm_model_folder, "max_steps": 1, "beta": 0.01, "gamma": 0.3}
        settings |= {"micro_batch_size": micro_batch_size, "output_dir": tmp_path / f"run{len(found)}"}
        with float64_throughout():
            trainer.train(fast_config(**settings | overrides))
        return found[-1]

    return make


def difference(found, expected):
    """The largest difference over the largest entry."""
    scale = max(float(value.abs().max()) for value in expected)
    return max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)) / scale


VARIANTS = {
    "frozen": {},
    "live": {"masked_logprobs": "live"},
    "exact": {"estimator": "exact", "eta_clean": 0.1},
    "exact, live": {"estimator": "exact", "divergence": "js", "masked_logprobs": "live", "eta_masked": 0.1},
    "advantage": {"perception_weighting": "advantage", "perception_top_p": 0.4, "perception_clip": 2.0},
    "shuffled": {"perception_weighting": "shuffled", "estimator": "exact", "divergence": "js"},
    "vppo": {"objective": "grpo", "gamma": 0.0, "token_weighting": "vppo"},
    "pgpo": {"objective": "grpo", "gamma": 0.0, "token_weighting": "pgpo"},
    "dvrp": {"objective": "dvrp", "beta": 0.0, "robustness": 0.2, "masked_logprobs": "live"},
    "grpo_v": {"objective": "grpo_v", "gamma": 0.0, "robustness": 0.2, "masked_logprobs": "live"},
}


@pytest.mark.parametrize(
    "reduction, variant", [("sequence", "frozen"), ("sequence", "live"), *(("token", variant) for variant in VARIANTS)]
)
def test_micro_batches_change_no_gradient(gradient, reduction, variant, monkeypatch):
    settings = {"reduction": reduction} | VARIANTS[variant]
    lengths = []
    objective = Objective.__call__

    def spy(self, logprobs, counts):
        lengths.extend(logprobs.completion_mask.sum(-1).tolist())
        return objective(self, logprobs, counts)

    with monkeypatch.context() as patch:
        patch.setattr(Objective, "__call__", spy)
        whole = gradient(COMPLETIONS, **settings)
    assert len(lengths) == COMPLETIONS and len(set(lengths)) > 2  # ragged
    for size in (1, 3, 4):  # 8 × 1, 3 + 3 + 2, 2 × 4
        assert difference(gradient(size, **settings), whole) < TOLERANCE
    assert difference(gradient(None, **settings, max_tokens_per_micro_batch=60), whole) < TOLERANCE


@pytest.mark.parametrize("reduction, size", [("token", 2), ("sequence", 3)])
def test_a_mean_of_means_would_change_it(gradient, monkeypatch, reduction, size):
    """Denominators of each micro-batch, divided by their number: what accumulation usually does."""
    whole = gradient(COMPLETIONS, reduction=reduction)
    objective, pieces = Objective.__call__, -(-COMPLETIONS // size)

    def of_its_own(self, logprobs, counts):
        mask = logprobs.completion_mask
        return objective(self, logprobs, Counts(mask.sum() * pieces, mask.shape[0] * pieces))

    monkeypatch.setattr(Objective, "__call__", of_its_own)
    assert difference(gradient(size, reduction=reduction), whole) > 0.01
