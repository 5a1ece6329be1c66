"""What a run leaves behind is complete, and stands without this package."""

import json
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from papo_hub import PapoForConditionalGeneration
from papo_hub.config import load_config
from papo_hub.tracking import read_metrics
from papo_hub.trainer import train

KEYS = {"step", "tokens/completion", "optim/grad_norm", "optim/lr"}
KEYS |= {f"reward/{name}" for name in ("mean", "accuracy", "format")}
KEYS |= {
    f"objective/{name}"
    for name in ("perception_kl", "perception_kl_variance", "reference_kl", "entropy", "masked_entropy")
}
KEYS |= {f"objective/clip_fraction_{side}" for side in ("high", "low")}
KEYS |= {f"time/{name}" for name in ("rollout", "score", "update")}

LOAD_ALONE = """
import sys
sys.modules["papo_hub"] = None
try:
    import papo_hub
except ImportError:
    pass
else:
    raise SystemExit("papo_hub is not blocked")
import json, torch
from transformers import AutoModelForImageTextToText
model, info = AutoModelForImageTextToText.from_pretrained(sys.argv[1], output_loading_info=True)
sums = {name: value.double().sum().item() for name, value in model.state_dict().items()}
print(json.dumps([type(model).__name__, {key: list(found) for key, found in info.items() if found}, sums]))
"""


@pytest.fixture
def config(fast_config):
    evaluation = {"eval_dataset_name": "digits", "eval_problems": 6, "eval_samples": 2}
    return fast_config(beta=0.01, max_steps=2, log_completions=True, **evaluation)


def test_a_run_folder_is_complete(config, tmp_path):
    run = train(config)
    files = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    expected = {"config.yaml", "provenance.json", "metrics.jsonl", "samples.md", "evaluation.json", "README.md"}
    expected |= {f"figures/{name}.png" for name in ("reward", "perception", "example", "overview", "before_after")}
    expected |= {"model/model.safetensors", "checkpoints/step-000002/trainer_state.json"}
    assert expected <= files
    for picture in run.glob("figures/*.png"):
        with Image.open(picture) as image:
            image.verify()

    assert load_config(run / "config.yaml") == config

    rows = read_metrics(run / "metrics.jsonl")
    assert len(rows) == 2
    for row in rows:
        assert set(row) >= KEYS
        assert all(isinstance(row[key], (int, float)) and row[key] == row[key] for key in KEYS)
    assert rows[0]["objective/reference_kl"] < 1e-6 < rows[1]["objective/reference_kl"]  # it starts at the reference
    assert 1 <= rows[0]["tokens/completion"] <= config.max_completion_length

    measured = json.loads((run / "evaluation.json").read_text())
    assert {(row["when"], row["view"]) for row in measured if row["group"] == "all"} == {
        (when, view) for when in ("before", "after") for view in ("clean", "masked")
    }
    for when in ("before", "after"):
        parts = [r for r in measured if r["when"] == when and r["view"] == "clean"]
        whole = next(row for row in parts if row["group"] == "all")
        assert whole["problems"] == 6 == sum(row["problems"] for row in parts) - 6
        assert whole["perception_kl"] > 0

    weights = load_file(run / "model" / "model.safetensors")
    wrapper = PapoForConditionalGeneration.from_backbone(run / "model")
    assert all(torch.equal(weights[name], value) for name, value in wrapper.vlm.state_dict().items() if name in weights)
    assert (
        wrapper.config.objective == "papo_g" and wrapper.config.gamma == config.gamma
    )  # the export says how it was made

    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", LOAD_ALONE, str(run / "model")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    name, problems, sums = json.loads(done.stdout)
    assert name == "Qwen2_5_VLForConditionalGeneration" and not problems
    assert all(sums[name] == value.double().sum().item() for name, value in weights.items() if name in sums)


def test_a_run_without_perception_terms_has_no_masked_view_to_show(fast_config):
    run = train(fast_config(objective="grpo", gamma=0.0, max_steps=1))
    assert {path.name for path in (run / "figures").iterdir()} == {"reward.png", "perception.png"}
    (row,) = read_metrics(run / "metrics.jsonl")
    assert row.get("objective/perception_kl") is None and row.get("objective/masked_entropy") is None
    assert "GRPO" in (run / "README.md").read_text()
