"""Whether the perception term pulls where the reward pulls: what is measured, that it changes nothing, and what an adaptive
γ makes of it."""

import math

import pytest
import torch
from safetensors.torch import load_file

from papo_hub import trainer
from papo_hub.config import ConfigError
from papo_hub.guard import Guard
from papo_hub.objectives import PAPO_G, Objective, Weights
from papo_hub.tracking import read_metrics
from papo_hub.trainer import adapted, cosine, train

pytestmark = pytest.mark.usefixtures("without_report")


@pytest.fixture
def run(fast_config, warm_model_folder, tmp_path):
    """run(name, ...) → (weights, rows of metrics.jsonl without times)."""

    def make(name, **overrides):
        settings = {"model_name_or_path": str(warm_model_folder), "output_dir": str(tmp_path / name), "max_steps": 4}
        settings |= {"gamma": 0.1, "prompts_per_update": 2, "micro_batch_size": 3}
        folder = train(fast_config(**settings | overrides))
        rows = [
            {name: value for name, value in row.items() if not name.startswith("time/")}
            for row in read_metrics(folder / "metrics.jsonl")
        ]
        return load_file(folder / "model" / "model.safetensors"), rows

    return make


def test_the_cosine_by_hand():
    """(3, 4, 0) and (4, 3, 0), in two pieces: 24 / 25."""
    one, other = ([torch.tensor([a, b]), torch.tensor([c])] for a, b, c in ((3.0, 4.0, 0.0), (4.0, 3.0, 0.0)))
    assert cosine(one, other) == pytest.approx(0.96)
    assert cosine(one, [-x for x in one]) == pytest.approx(-1.0)
    assert cosine(one, [0 * x for x in one]) is None


def test_one_term_alone():
    objective = Objective(PAPO_G, Weights(gamma=0.02, beta=0.01))
    (term,) = objective.only("perception_kl").terms
    assert term.name == "perception_kl" and objective.only("perception_kl").weights == objective.weights
    assert Objective(PAPO_G, Weights()).only("perception_kl").weights.gamma == 1.0  # after its annealing


def test_it_is_measured_now_and_then_and_changes_nothing(run):
    weights, rows = run("measured", alignment_steps=2)
    plain_weights, plain_rows = run("plain")
    assert all(torch.equal(weights[name], plain_weights[name]) for name in weights)
    found = [row.pop("objective/alignment") for row in rows]
    assert [row.pop("objective/alignment") for row in plain_rows] == [None] * 4
    assert rows == plain_rows
    assert [value is None for value in found] == [False, True, False, True]
    assert all(-1 <= value <= 1 and value != 0 for value in found[::2])


def test_it_is_the_angle_of_the_whole_gradients(run, monkeypatch):
    """The sum of both directions, clipped by nothing, is the gradient of an objective of both terms."""
    seen = {}

    def spy(one, other):
        seen.setdefault("directions", (one, other))
        return cosine(one, other)

    clip = trainer.PapoAccelerator.clip_grad_norm_

    def first(accelerator, parameters, norm):
        parameters = list(parameters)
        seen.setdefault("whole", [parameter.grad.clone() for parameter in parameters if parameter.grad is not None])
        return clip(accelerator, parameters, norm)

    monkeypatch.setattr(trainer, "cosine", spy)
    monkeypatch.setattr(trainer.PapoAccelerator, "clip_grad_norm_", first)
    run("run", alignment_steps=1, max_steps=1, beta=0.0)
    for a, b, both in zip(*seen["directions"], seen["whole"], strict=True):
        torch.testing.assert_close(a + b, both, rtol=0, atol=1e-6)
    assert max(float(b.abs().max()) for b in seen["directions"][1]) > 1e-4


def test_an_adaptive_gamma_backs_off_at_once_and_comes_back_slowly():
    factors, factor = [], 1.0
    for trouble in [False, True, True, False, False]:
        factor = adapted(factor, trouble)
        factors.append(factor)
    assert factors == pytest.approx([1.0, 0.5, 0.25, 0.2625, 0.275625])
    for _ in range(20):
        factor = adapted(factor, True)
    assert factor == 1 / 64
    assert adapted(0.99, False) == 1.0


@pytest.mark.parametrize("what", ["alignment", "sign"])
def test_gamma_follows_what_is_seen(run, monkeypatch, what):
    if what == "alignment":
        values = iter([-0.2, 0.3, -0.1, 0.5])
        monkeypatch.setattr(trainer, "cosine", lambda one, other: next(values))
        _, rows = run("run", alignment_steps=1, gamma_control="adaptive")
        factors = [1.0, 0.5, 0.525, 0.2625]
    else:

        class Uneasy(Guard):
            def observe(self, row):
                self.uneasy = row["step"] == 2
                return None

        monkeypatch.setattr(trainer, "Guard", Uneasy)
        _, rows = run("run", gamma_control="adaptive")
        factors = [1.0, 1.0, 0.5, 0.525]
    assert [row["objective/gamma"] for row in rows] == pytest.approx([0.1 * factor for factor in factors])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"gamma": 0.0, "alignment_steps": 2}, "alignment_steps: 2, but gamma is 0"),
        ({"gamma": 0.0, "gamma_control": "adaptive"}, "gamma_control: adaptive, but gamma is 0"),
        ({"gamma": 0.1, "gamma_control": "adaptive", "guard": "off"}, "needs something to go by"),
        ({"alignment_steps": -1}, "alignment_steps: -1 must be at least 0"),
    ],
)
def test_what_cannot_work_is_refused(fast_config, settings, message):
    with pytest.raises(ConfigError, match=message):
        fast_config(**settings)


def test_no_advantage_no_direction(run, monkeypatch):
    monkeypatch.setattr("papo_hub.experience.group_advantages", lambda rewards, size: torch.zeros_like(rewards))
    _, rows = run("run", alignment_steps=1, max_steps=1)
    assert rows[0]["objective/alignment"] is None and not math.isnan(rows[0]["objective/perception_kl"])
