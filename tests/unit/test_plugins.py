from dataclasses import fields

import pytest
import torch
from accelerate.utils import DistributedType, KwargsHandler

from papo_hub.config import ConfigError, TrainConfig, build
from papo_hub.objectives import DAPO, PAPO_D, PAPO_G, Weights
from papo_hub.plugins import (
    PapoAccelerator,
    PerceptionPlugin,
    RewardPlugin,
    RolloutPlugin,
    global_counts,
    syncing,
)

PLUGINS = (PerceptionPlugin, RolloutPlugin, RewardPlugin)


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch):
    for plugin in PLUGINS:
        for f in fields(plugin):
            monkeypatch.delenv(f"PAPO_{f.name.upper()}", raising=False)


@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_plugin_is_accelerates_and_its_fields_are_recipe_keys(plugin):
    assert issubclass(plugin, KwargsHandler)
    defaults = {f.name: f.default for f in fields(TrainConfig)}
    built = plugin()
    assert {f.name: getattr(built, f.name) for f in fields(plugin)} == {
        f.name: defaults[f.name] for f in fields(plugin)
    }


def test_argument_over_environment_over_default(monkeypatch):
    assert PerceptionPlugin().gamma == 0.0
    monkeypatch.setenv("PAPO_GAMMA", "2e-2")
    monkeypatch.setenv("PAPO_MASK_PATCH_SIZE", "28")
    monkeypatch.setenv("PAPO_MASKED_LOGPROBS", "live")
    monkeypatch.setenv("PAPO_GAMMA_END", "null")
    from_environment = PerceptionPlugin()
    assert (from_environment.gamma, from_environment.mask_patch_size) == (0.02, 28)
    assert from_environment.masked_logprobs == "live" and from_environment.gamma_end is None
    assert PerceptionPlugin(gamma=0.0).gamma == 0.0  # 0 is given, not absent
    assert PerceptionPlugin(gamma=0.5, mask_patch_size=7).mask_patch_size == 7


@pytest.mark.parametrize(
    ("plugin", "name", "value"),
    [
        (PerceptionPlugin, "gamma", "much"),
        (PerceptionPlugin, "gamma", "-1"),
        (PerceptionPlugin, "mask_patch_size", "1.5"),
        (PerceptionPlugin, "estimator", "k4"),
        (RolloutPlugin, "num_generations", "1"),
        (RolloutPlugin, "temperature", "0"),
        (RolloutPlugin, "top_p", ""),
        (RewardPlugin, "format_weight", "2"),
    ],
)
def test_a_bad_environment_value_is_named(monkeypatch, plugin, name, value):
    monkeypatch.setenv(f"PAPO_{name.upper()}", value)
    with pytest.raises(ConfigError, match=f"(?i){name}"):
        plugin()


@pytest.mark.parametrize(
    ("plugin", "values"),
    [
        (PerceptionPlugin, {"gamma": -0.1}),
        (PerceptionPlugin, {"mask_ratio": 0.0, "gamma": 0.1}),
        (PerceptionPlugin, {"gamma_end": 0.1}),
        (RolloutPlugin, {"max_completion_length": 0}),
        (RewardPlugin, {"format_weight": -0.1}),
    ],
)
def test_plugins_refuse_what_a_recipe_refuses(plugin, values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        plugin(**values)


def test_from_config_takes_the_recipe_even_where_the_environment_differs(monkeypatch):
    monkeypatch.setenv("PAPO_GAMMA", "0.5")
    monkeypatch.setenv("PAPO_GAMMA_END", "0.1")
    required = {"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o"}
    recipe = build(required | {"gamma": 0.02, "temperature": 0.7, "format_weight": 0.2})
    perception = PerceptionPlugin.from_config(recipe)
    assert perception.gamma == 0.02 and perception.gamma_end is None
    assert RolloutPlugin.from_config(recipe).sampling.temperature == 0.7
    assert RewardPlugin.from_config(recipe).format_weight == 0.2


def test_when_the_masked_view_is_needed():
    assert PerceptionPlugin().views == () and PerceptionPlugin().mask is None
    assert PerceptionPlugin(eta_clean=0.1).views == ()
    assert PerceptionPlugin(eta_masked=0.1).views == ("masked",)
    mask = PerceptionPlugin(gamma=0.1, mask_patch_size=7, mask_ratio=0.4).mask
    assert (mask.patch_size, mask.ratio) == (7, 0.4)
    assert not PerceptionPlugin(gamma=0.1).live
    assert PerceptionPlugin(gamma=0.1, masked_logprobs="live").live
    assert not PerceptionPlugin(masked_logprobs="live").live


def test_objective_joins_the_weights():
    plugin = PerceptionPlugin(gamma=0.02, eta_clean=0.05, eta_masked=0.03, estimator="sampled_k2")
    policy = Weights(beta=0.01, epsilon=0.1, epsilon_high=0.28, delta=None)
    objective = plugin.objective(PAPO_G, policy)
    assert objective.terms == PAPO_G
    assert objective.weights == Weights(0.02, 0.05, 0.03, 0.01, 0.1, 0.28, None, "k2")


def test_objective_follows_the_schedule():
    plugin = PerceptionPlugin(gamma=0.02, eta_clean=0.04, eta_masked=0.08, gamma_end=0.0, gamma_annealing_ratio=0.5)
    found = [plugin.objective(PAPO_D, step=step, max_steps=8).weights for step in (0, 1, 4, 7)]
    assert [(w.gamma, w.eta_clean, w.eta_masked) for w in found] == [
        pytest.approx(expected) for expected in [(0.02, 0.04, 0.08), (0.015, 0.03, 0.06), (0, 0, 0), (0, 0, 0)]
    ]
    assert plugin.objective(PAPO_D, step=7, max_steps=8).active == DAPO
    assert plugin.views == ("masked",)  # the masked view is still logged


def test_reward_plugin():
    rewards = RewardPlugin(format_weight=0.25)(
        ["<think>a</think>\\boxed{4}", "<think>a</think>\\boxed{5}", "\\boxed{4}", "4"], ["4"] * 4
    )
    assert rewards["accuracy"].tolist() == [1, 0, 1, 0]
    assert rewards["format"].tolist() == [1, 1, 0, 0]
    assert rewards["mean"].tolist() == [1, 0.25, 0.75, 0]
    assert rewards["mean"].dtype == torch.float32


def test_rollout_plugin():
    sampling = RolloutPlugin(temperature=0.5, top_p=0.9, max_completion_length=12).sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_completion_length) == (0.5, 0.9, 12)


def test_accelerator_carries_the_plugins():
    perception = PerceptionPlugin(gamma=0.02)
    accelerator = PapoAccelerator(cpu=True, perception_plugin=perception)
    assert accelerator.perception_plugin is perception
    assert accelerator.rollout_plugin == RolloutPlugin() and accelerator.reward_plugin == RewardPlugin()
    with pytest.raises(ValueError, match="gradient_accumulation_steps at 1"):
        PapoAccelerator(cpu=True, gradient_accumulation_steps=2)


@pytest.mark.parametrize("kind, version", [("DEEPSPEED", None), ("FSDP", 1), ("MEGATRON_LM", None)])
def test_what_divides_a_model_otherwise_is_refused(monkeypatch, kind, version):
    monkeypatch.setattr(PapoAccelerator, "distributed_type", DistributedType[kind])
    monkeypatch.setattr(PapoAccelerator, "is_fsdp2", version == 2)
    with pytest.raises(ConfigError, match=rf"distributed_type: {kind} is not supported here.*fsdp2\.yaml"):
        PapoAccelerator(cpu=True)


def test_global_counts():
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0]], dtype=torch.bool)
    counts = global_counts(PapoAccelerator(cpu=True), mask)
    assert (counts.tokens.item(), counts.sequences.item()) == (4, 3)  # an empty completion is one


def test_global_counts_sum_over_processes():
    class TwoProcesses:
        device = torch.device("cpu")

        def reduce(self, tensor, reduction):
            assert reduction == "sum"
            return tensor + torch.tensor([10.0, 2.0])  # what the other process counted

    counts = global_counts(TwoProcesses(), torch.ones(3, 4, dtype=torch.bool))
    assert (counts.tokens.item(), counts.sequences.item()) == (22, 5)


def test_gradients_are_exchanged_in_the_last_micro_batch_only():
    class Spy:
        calls = 0

        def no_sync(self, model):
            Spy.calls += 1
            return torch.no_grad()

    with syncing(Spy(), None, last=True):
        assert torch.is_grad_enabled()
    assert Spy.calls == 0
    with syncing(Spy(), None, last=False):
        assert not torch.is_grad_enabled()
    assert Spy.calls == 1
