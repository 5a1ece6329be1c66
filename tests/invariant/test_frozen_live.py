"""Frozen: the masked view is a constant of the rollout. Live: it is trained too."""

import pytest
import torch
from safetensors.torch import load_file

from papo_hub.objectives import Objective
from papo_hub.trainer import train

pytestmark = pytest.mark.usefixtures("without_report")


def run(fast_config, monkeypatch, tmp_path, name, **overrides):
    """The trained weights, and for each micro-batch whether the masked log-probs had a gradient, and their gap to 0."""
    seen = []
    objective = Objective.__call__

    def spy(self, logprobs, counts):
        seen.append((logprobs.masked.requires_grad, logprobs.masked.detach().clone()))
        return objective(self, logprobs, counts)

    settings = {"gamma": 0.1, "max_steps": 1, "prompts_per_update": 2, "output_dir": tmp_path / name}
    with monkeypatch.context() as patch:
        patch.setattr(Objective, "__call__", spy)
        folder = train(fast_config(**settings | overrides))
    return load_file(folder / "model" / "model.safetensors"), seen


def equal(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_frozen_has_no_gradient_and_live_has(fast_config, monkeypatch, tmp_path):
    frozen, frozen_seen = run(fast_config, monkeypatch, tmp_path, "frozen", masked_logprobs="frozen")
    live, live_seen = run(fast_config, monkeypatch, tmp_path, "live", masked_logprobs="live")
    assert [with_gradient for with_gradient, _ in frozen_seen] == [False, False]
    assert [with_gradient for with_gradient, _ in live_seen] == [True, True]
    assert not equal(frozen, live)
    # Before the first update both are the same numbers; at the second the live ones have moved with the policy.
    torch.testing.assert_close(frozen_seen[0][1], live_seen[0][1], rtol=0, atol=1e-5)
    assert (frozen_seen[1][1] - live_seen[1][1]).abs().max() > 1e-3


def test_eta_masked_trains_only_where_it_is_live(fast_config, monkeypatch, tmp_path, capfd):
    for mode, inert in (("frozen", True), ("live", False)):
        without, _ = run(fast_config, monkeypatch, tmp_path, f"{mode} 0", masked_logprobs=mode)
        capfd.readouterr()
        with_eta, _ = run(fast_config, monkeypatch, tmp_path, f"{mode} 1", masked_logprobs=mode, eta_masked=0.05)
        assert equal(without, with_eta) is inert
        assert ("eta_masked (η2) has no gradient" in "".join(capfd.readouterr())) is inert
