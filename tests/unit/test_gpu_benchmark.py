"""benchmarks/gpu runs where there is no GPU, tiny, so that it is there when there is one."""

import json

import pytest
import torch

from benchmarks.gpu.__main__ import main, rollout_bytes
from benchmarks.gpu.model import build, prompt
from benchmarks.law import pass_flops


def test_it_measures_every_part_and_says_under_what_conditions(tmp_path, capsys):
    output = tmp_path / "gpu.json"
    options = ["--size", "tiny", "--device", "cpu", "--shapes", "64,2,4", "--repeats", "1", "--prompts", "2"]
    assert main([*options, "--output", str(output)]) == 0
    found = json.loads(output.read_text(encoding="utf-8"))
    assert found["conditions"]["command"].startswith("python -m benchmarks.gpu --size tiny")
    assert {(row["part"], row["route"]) for row in found["passes"]} == {
        (part, route) for part in ("score", "update") for route in ("shared", "rows without padding", "padded rows")
    }
    for row in found["passes"]:
        assert row["share_of_rate"] == pytest.approx(row["flops"] / row["seconds"] / found["rate"]["flops"])
        assert row["completion_tokens_per_second"] == pytest.approx(8 / row["seconds"])
    assert found["rollout"][0]["tokens_per_second"] == pytest.approx(16 / found["rollout"][0]["seconds"])
    assert 0 < found["error"]["shared_max"] < 0.05  # nats, in bfloat16
    assert f"Written to {output}" in capsys.readouterr().out


def test_the_floor_of_sampling_by_hand():
    architecture, model = build("tiny", torch.device("cpu"), torch.bfloat16, "sdpa")
    layers = sum(p.numel() for p in model.model.language_model.layers.parameters())
    # Two steps for 3 prompts of 10 tokens with 2 completions each. Keys and values: 2 · 2 layers · 2 heads · 16 wide, 2 bytes.
    weights = 2 * (layers + 512 * 64) * 2
    kept = 2 * 2 * 2 * 16 * 2 * 3 * (2 * 10 + 2 * (1 + 2))
    assert rollout_bytes(model, 10, 2, 2, 3) == weights + kept
    assert pass_flops(architecture, 64, 48, [4, 4], shared=True) < pass_flops(
        architecture, 64, 48, [4, 4], shared=False
    )


def test_a_prompt_has_its_image_where_the_model_looks_for_it():
    _, model = build("tiny", torch.device("cpu"), torch.float32, "sdpa")
    inputs = prompt(model, 20, 12).clean
    assert (
        int((inputs["input_ids"] == model.config.image_token_id).sum()) == 12 == int(inputs["mm_token_type_ids"].sum())
    )
    assert model(**inputs).logits.shape == (1, 20, 512)


def test_without_a_gpu_it_says_what_to_do(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit):
        main([])
    assert "--size tiny --device cpu" in capsys.readouterr().err
