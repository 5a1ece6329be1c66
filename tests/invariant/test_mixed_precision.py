"""bfloat16 arithmetic over float32 weights: every pass takes it, and the passes agree with one another."""

import pytest
import torch
from safetensors.torch import load_file

from papo_hub.tracking import read_metrics
from papo_hub.trainer import train

pytestmark = pytest.mark.usefixtures("without_report", "fresh_accelerate")


def test_weights_stay_float32_and_all_passes_compute_alike(fast_config, warm_model_folder):
    settings = {"model_name_or_path": str(warm_model_folder), "mixed_precision": "bf16", "beta": 0.01, "max_steps": 2}
    run = train(fast_config(**settings, num_generations=4, max_completion_length=12))
    weights = load_file(run / "model" / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}
    start = load_file(warm_model_folder / "model.safetensors")
    assert any(not torch.equal(weights[name], start[name]) for name in start)
    first, _ = read_metrics(run / "metrics.jsonl")
    # Before the first update the policy is the reference model; what is left is the rounding of bfloat16.
    assert 0 <= first["objective/reference_kl"] < 1e-3
    assert first["objective/perception_kl"] > 0.01


def test_the_images_are_encoded_in_the_same_precision_in_training_as_in_rollouts(
    fast_config, warm_model_folder, monkeypatch
):
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

    encoded = []
    get_image_features = Qwen2_5_VLModel.get_image_features

    def spy(self, *arguments, **options):
        output = get_image_features(self, *arguments, **options)
        encoded.append(output.pooler_output[0].dtype)
        return output

    monkeypatch.setattr(Qwen2_5_VLModel, "get_image_features", spy)
    train(fast_config(model_name_or_path=str(warm_model_folder), mixed_precision="bf16", max_steps=1))
    assert len(encoded) >= 3  # rollout, masked view, update
    assert set(encoded) == {torch.bfloat16}
