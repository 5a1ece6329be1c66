"""A run that trains adapters: one model in memory, exact resumption, and two exports that say the same."""

import json

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

import papo_hub.preparation
from papo_hub.checkpoint import checkpoints
from papo_hub.config import ConfigError
from papo_hub.experience import score
from papo_hub.logprobs import padded_logprobs
from papo_hub.tracking import read_metrics
from papo_hub.trainer import train

TOLERANCE = 2e-5  # nats, in float32; seen: 1e-6. The base model is off by a hundred times the tolerance

pytestmark = pytest.mark.usefixtures("without_report")


@pytest.fixture
def config(fast_config, warm_model_folder, tmp_path):
    def make(name, **overrides):
        settings = {"model_name_or_path": warm_model_folder, "lora_rank": 4, "lora_alpha": 32, "beta": 0.01}
        settings |= {"prompts_per_update": 2, "num_generations": 4, "max_completion_length": 12, "max_steps": 4}
        settings |= {"save_steps": 2, "learning_rate": 1e-2, "output_dir": tmp_path / name}
        return fast_config(**settings | overrides)

    return make


@pytest.fixture
def loaded(monkeypatch):
    """The models that are loaded from here on."""
    found = []
    load = papo_hub.preparation.load_vlm

    def counted(*arguments, **options):
        found.append(load(*arguments, **options))
        return found[-1]

    monkeypatch.setattr(papo_hub.preparation, "load_vlm", counted)
    return found


def rows(run):
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in read_metrics(run / "metrics.jsonl")]


def logprobs(model, prompts):
    ids = torch.tensor([[40, 41, 42, 2], [50, 60, 70, 2], [33, 44, 55, 2]])
    with torch.no_grad():
        return padded_logprobs(model, [prompt.clean for prompt in prompts], ids, torch.ones_like(ids, dtype=torch.bool))


@pytest.mark.parametrize("other", [{}, {"attn_implementation": "eager"}], ids=["shared prefix", "padded rows"])
def test_a_run_resumes_exactly_with_one_model_loaded(config, loaded, monkeypatch, capfd, other):
    references = []

    def watched(model, batch, view, *rest):
        found = score(model, batch, view, *rest)
        if not any(p.requires_grad for p in model.parameters()):  # the adapter is off
            references.append((model, found))
        return found

    monkeypatch.setattr("papo_hub.experience.score", watched)
    whole = train(config("whole", **other))
    assert ("each prompt is computed once" in capfd.readouterr().out) == (not other)
    assert len(loaded) == 1 and len(references) == 4
    half = checkpoints(whole / "checkpoints")[0]
    again = train(config("again", resume_from_checkpoint=half, **other))
    assert len(loaded) == 2 and len(references) == 6  # a model a run, no second one for the reference
    assert all(model is loaded[i > 3] for i, (model, _) in enumerate(references))
    for (_, ours), (_, theirs) in zip(references[4:], references[2:4], strict=True):
        assert torch.equal(ours, theirs)

    assert rows(again) == rows(whole)[2:]
    kl = [row["objective/reference_kl"] for row in rows(whole)]
    assert kl[0] < kl[-1]  # it leaves the reference, which stays
    for name in ("adapter/adapter_model.safetensors", "model/model.safetensors"):
        ours, theirs = (load_file(run / name) for run in (again, whole))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_checkpoint_holds_the_adapter_and_its_moments_alone(config):
    run = train(config("run", max_steps=2))
    folder = run / "checkpoints" / "step-000002"
    adapter, moments = load_file(folder / "adapter_model.safetensors"), load_file(folder / "optimizer.safetensors")
    assert not list(folder.glob("model*.safetensors"))
    assert all(".lora_A." in name or ".lora_B." in name for name in adapter)
    assert len(adapter) == 28 and len(moments) == 3 * 28  # step and two moments
    assert all(".lora_" in name for name in moments)


def test_the_merged_model_and_the_adapter_say_the_same(config, tiny_prompts, warm_model_folder):
    run = train(config("run"))
    merged, info = AutoModelForImageTextToText.from_pretrained(run / "model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    base = AutoModelForImageTextToText.from_pretrained(warm_model_folder)
    assert (
        load_file(run / "model/model.safetensors").keys() == load_file(warm_model_folder / "model.safetensors").keys()
    )
    before = logprobs(base, tiny_prompts)
    described = json.loads((run / "adapter/adapter_config.json").read_text(encoding="utf-8"))
    assert described["base_model_name_or_path"] == f"…/{warm_model_folder.name}" and described["peft_type"] == "LORA"
    adapter = peft.PeftModel.from_pretrained(base, run / "adapter")
    ours, theirs = logprobs(merged, tiny_prompts), logprobs(adapter, tiny_prompts)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)
    assert (before - theirs).abs().max() > 100 * TOLERANCE
    with adapter.disable_adapter():
        torch.testing.assert_close(logprobs(adapter, tiny_prompts), before, rtol=0, atol=0)


def test_weights_in_bfloat16_are_merged_in_float32(config, fresh_accelerate):
    run = train(config("run", dtype="bfloat16", mixed_precision="bf16", max_steps=1, activation_checkpointing=True))
    merged = AutoModelForImageTextToText.from_pretrained(run / "model", dtype="auto")
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.float32}
    assert {tensor.dtype for tensor in load_file(run / "adapter/adapter_model.safetensors").values()} == {torch.float32}
    layer = merged.model.language_model.layers[0].self_attn.q_proj.weight
    assert not torch.equal(layer, layer.bfloat16().float())


def test_adapters_and_models_are_not_taken_for_one_another(config, finished_run):
    run = train(config("run", max_steps=1))
    with pytest.raises(ConfigError, match="holds a LoRA adapter, but lora_rank is 0"):
        train(config("run", lora_rank=0, resume_from_checkpoint="latest"))
    with pytest.raises(ConfigError, match="holds a model, but lora_rank is 4"):
        train(config("other", resume_from_checkpoint=checkpoints(finished_run / "checkpoints")[0]))
    assert len(rows(run)) == 1
