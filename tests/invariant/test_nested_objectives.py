"""PAPO without its perception and entropy terms is its baseline, bit for bit, through the whole loop."""

import pytest
import torch
from safetensors.torch import load_file

from papo_hub.trainer import train

pytestmark = pytest.mark.usefixtures("without_report")


def run(fast_config, tmp_path, name, **overrides):
    settings = {"num_generations": 4, "max_completion_length": 12, "max_steps": 2, "weight_decay": 0.0}
    settings["max_sampling_tries"] = 500
    settings |= {"prompts_per_update": 2, "gamma": 0.0, "output_dir": tmp_path / name}
    return load_file(train(fast_config(**settings | overrides)) / "model" / "model.safetensors")


def equal(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("papo, baseline", [("papo_g", "grpo"), ("papo_d", "dapo")])
def test_papo_without_its_terms_is_its_baseline(fast_config, tmp_path, warm_model_folder, papo, baseline):
    start = {"model_name_or_path": warm_model_folder}
    expected = run(fast_config, tmp_path, "baseline", objective=baseline, **start)
    assert not equal(expected, load_file(warm_model_folder / "model.safetensors"))  # there was something to learn
    assert equal(run(fast_config, tmp_path, "papo", objective=papo, **start), expected)
    # Each of the terms that were left out would have shown.
    for i, term in enumerate([{"gamma": 0.02}, {"eta_clean": 0.05}]):
        assert not equal(run(fast_config, tmp_path, f"with {i}", objective=papo, **start, **term), expected)
