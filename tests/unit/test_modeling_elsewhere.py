"""A saved model in another Python, one that has transformers but not this package."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, Qwen2_5_VLConfig

from papo_hub.modeling import PapoForConditionalGeneration

IMAGE = 4
RECORD = {"objective": "papo_g", "gamma": 0.02}


def tiny_model():
    text = {
        "vocab_size": 24,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "initializer_range": 0.3,
    }
    text |= {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [2, 1, 1]}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
    vision |= {"fullatt_block_indexes": [0]}
    tokens = {"vision_start_token_id": 2, "vision_end_token_id": 3, "image_token_id": IMAGE, "video_token_id": 5}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **tokens)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForImageTextToText.from_config(config).eval()


def tiny_inputs():
    """Two prompts of 6 tokens, each with an image of 4 × 2 patches, which is 2 image tokens."""
    ids = torch.tensor([[6, 2, IMAGE, IMAGE, 3, 8], [7, 2, IMAGE, IMAGE, 3, 9]])
    pixels = torch.randn(16, 3 * 2 * 14 * 14, generator=torch.Generator().manual_seed(1))
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == IMAGE).long(),
        "pixel_values": pixels,
        "image_grid_thw": torch.tensor([[1, 4, 2]] * 2),
    }


# An installed papo_hub would make the test blind, so the other Python refuses to find it.
PREAMBLE = """
import json, sys

class NoPapoHub:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "papo_hub":
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, NoPapoHub())
sys.path.insert(0, sys.argv[1])
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText
"""

LOAD = """
inputs = load_file("inputs.safetensors")
model = AutoModelForImageTextToText.from_pretrained("model", trust_remote_code=%s).eval()
with torch.no_grad():
    save_file({"logits": model(**inputs).logits.contiguous()}, "logits.safetensors")
assert "papo_hub" not in sys.modules
"""

WRAPPER = (
    PREAMBLE
    + LOAD % "True"
    + """
assert type(model).__module__.startswith("transformers_modules.")
answer = torch.tensor([[12, 13], [14, 15]])
save_file({"dependence": model.visual_dependence(inputs, inputs["pixel_values"] * 0, answer)}, "dependence.safetensors")
model.save_pretrained("plain", as_backbone=True)
model.save_pretrained("copy")
again = AutoModelForImageTextToText.from_pretrained("copy", trust_remote_code=True)
assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
print(json.dumps(model.config.perception))
"""
)

PLAIN = PREAMBLE + LOAD % "False" + "print(type(model).__name__, json.dumps(model.config.papo), sep='|')\n"


def run_elsewhere(script: str, folder: Path) -> str:
    """Run a script in an isolated Python (no PYTHONPATH, no user site, no current folder on the path) in `folder`."""
    home = Path(transformers.__file__).parents[1]  # the version under test
    environment = {**os.environ, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("HF_MODULES_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, str(home)], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1]


@pytest.fixture
def elsewhere(tmp_path):
    save_file(tiny_inputs(), tmp_path / "inputs.safetensors")
    return tmp_path


def logits(folder):
    return load_file(folder / "logits.safetensors")["logits"]


def test_wrapper_format_runs_its_own_code(elsewhere):
    model = PapoForConditionalGeneration.from_backbone(tiny_model(), **RECORD)
    model.save_pretrained(elsewhere / "model")
    assert json.loads(run_elsewhere(WRAPPER, elsewhere)) == RECORD
    inputs = tiny_inputs()
    with torch.no_grad():
        assert torch.equal(logits(elsewhere), model(**inputs).logits)

    ours = model.visual_dependence(inputs, inputs["pixel_values"] * 0, torch.tensor([[12, 13], [14, 15]]))
    torch.testing.assert_close(
        load_file(elsewhere / "dependence.safetensors")["dependence"], ours, rtol=1e-5, atol=1e-6
    )
    # What that Python wrote is readable here.
    again = PapoForConditionalGeneration.from_backbone(elsewhere / "plain")
    assert again.config.perception == RECORD
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))
    assert (elsewhere / "copy" / "modeling_papo.py").exists() and (
        elsewhere / "copy" / "configuration_papo.py"
    ).exists()
    assert type(PapoForConditionalGeneration.from_pretrained(elsewhere / "copy")) is PapoForConditionalGeneration


def test_plain_format_needs_no_code(elsewhere):
    model = PapoForConditionalGeneration.from_backbone(tiny_model(), **RECORD)
    model.save_pretrained(elsewhere / "model", as_backbone=True)
    name, record = run_elsewhere(PLAIN, elsewhere).split("|")
    assert name == "Qwen2_5_VLForConditionalGeneration" and json.loads(record) == RECORD
    with torch.no_grad():
        assert torch.equal(logits(elsewhere), model(**tiny_inputs()).logits)
