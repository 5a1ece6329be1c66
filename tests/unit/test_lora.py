"""LoRA: what is trained, what is saved, and that with, without and merged say what they should."""

import copy

import peft
import pytest
import torch
from backbones import backbones

from papo_hub.batch import Completion, pad_completions
from papo_hub.config import ConfigError, check_processes
from papo_hub.logprobs import padded_logprobs
from papo_hub.lora import adapted, add_adapter, load_adapter, merged_weights, save_adapter, without_adapter
from papo_hub.parts import part_of, trainable
from papo_hub.shared_prefix import misfit, shared_prefix_logprobs

BUILDERS = backbones()
TOLERANCE = 1e-6  # nats; seen: 0, since norms round to float32 what differs at 1e-16. A wrong scale: 0.01 and more
GRADIENT_TOLERANCE = 1e-6  # of the largest entry; seen: 2e-15, but norms may round to float32 either way


@pytest.fixture
def settings(fast_config):
    """settings(**overrides): the recipe of an adapter of rank 2 whose scale is neither 0 nor 1."""
    return lambda **overrides: fast_config(**{"lora_rank": 2, "lora_alpha": 6} | overrides)


@pytest.fixture(params=BUILDERS)
def backbone(request):
    return BUILDERS[request.param]()


def trained(model, config):
    """The model with an adapter, all in float64, whose B is no longer 0."""
    add_adapter(model, config)
    model.double()
    with torch.no_grad():
        for i, layer in enumerate(adapted(model).values()):
            weight = layer.lora_B["default"].weight
            weight.copy_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(i)))
    return model


def rows(backbone):
    ids, mask = pad_completions([Completion([60, 61, 62], "", True), Completion([70, 71], "", True)], 0)
    return [backbone.prompts[1], backbone.prompts[0]], ids, mask


def test_only_the_language_models_linear_layers_are_adapted(backbone, settings):
    linear = {
        name
        for name, module in backbone.model.named_modules()
        if type(module) is torch.nn.Linear and part_of(name) == "language_model" and not name.endswith("lm_head")
    }
    add_adapter(backbone.model, settings(model_name_or_path="Owner/Name", model_revision="v1"))
    described = backbone.model.peft_config["default"]
    assert (described.base_model_name_or_path, described.revision) == ("Owner/Name", "v1")
    assert adapted(backbone.model).keys() == linear and len(linear) == 14  # 7 in each of 2 layers
    assert len(trainable(backbone.model)) == 28 and all(".lora_" in name for name in trainable(backbone.model))


def test_both_routes_learn_the_same_and_without_its_adapter_it_is_the_base(backbone, settings):
    base = copy.deepcopy(backbone.model)
    model = trained(backbone.model, settings())
    prompts, ids, mask = rows(backbone)
    gradients = []
    for route in (shared_prefix_logprobs, padded_logprobs):
        logprobs = route(model, prompts, ids, mask)
        model.zero_grad()
        logprobs[mask].cos().sum().backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in trainable(model).items()})
        assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == gradients[
            -1
        ].keys()
        with torch.no_grad():
            plain = route(base, prompts, ids, mask)
            with without_adapter(model):
                assert torch.equal(route(model, prompts, ids, mask), plain)
            assert (logprobs - plain).abs().max() > 0.1
            assert torch.equal(route(model, prompts, ids, mask), logprobs)  # on again, and nothing was rounded
    assert all(parameter.requires_grad for name, parameter in model.named_parameters() if ".lora_" in name)
    assert (misfit(model) is None) == (backbone.name != "gemma3")
    for name, expected in gradients[1].items():
        scale = max(expected.abs().max().item(), 1e-3)
        torch.testing.assert_close(gradients[0][name], expected, rtol=0, atol=GRADIENT_TOLERANCE * scale, msg=name)


@torch.no_grad()
def test_merged_and_adapter_say_the_same(backbone, settings, tmp_path):
    """The merged weights in the plain model, and the folder read by PEFT over the base."""
    base, other = copy.deepcopy(backbone.model), copy.deepcopy(backbone.model)
    model = trained(backbone.model, settings())
    prompts, ids, mask = rows(backbone)
    expected = padded_logprobs(model, prompts, ids, mask)
    weights = dict(merged_weights(model))
    missing, unexpected = base.load_state_dict(weights, strict=False)
    assert not missing and not unexpected
    torch.testing.assert_close(padded_logprobs(base, prompts, ids, mask), expected, rtol=0, atol=TOLERANCE)

    save_adapter(model, tmp_path)
    read = peft.PeftModel.from_pretrained(other, str(tmp_path), autocast_adapter_dtype=False)
    torch.testing.assert_close(
        padded_logprobs(read.base_model.model, prompts, ids, mask), expected, rtol=0, atol=TOLERANCE
    )

    for layer in adapted(model).values():  # what the tolerance would see: a scale of 2 instead of 3
        layer.scaling["default"] = 2.0
    assert (padded_logprobs(model, prompts, ids, mask) - expected).abs().max() > 1e4 * TOLERANCE


def test_tied_weights_stay_one_tensor(settings):
    model = BUILDERS["qwen2_vl"]().model
    add_adapter(model, settings())
    weights = dict(merged_weights(model.bfloat16()))
    assert weights["lm_head.weight"] is weights["model.language_model.embed_tokens.weight"]
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


def test_a_small_update_survives_where_bfloat16_would_lose_it(settings):
    """1 + 2⁻¹⁰ is 1 in bfloat16, which has 8 bits: merged weights are float32."""
    model = BUILDERS["qwen2_5_vl"]().model
    add_adapter(model.bfloat16(), settings(lora_rank=1, lora_alpha=1))
    name, layer = next(iter(adapted(model).items()))
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert a.dtype == b.dtype == torch.float32
    with torch.no_grad():
        layer.base_layer.weight.fill_(1.0)
        a.fill_(2**-5)
        b.fill_(2**-5)
    merged = dict(merged_weights(model))[f"{name}.weight"]
    assert (merged == 1 + 2**-10).all() and (merged.bfloat16() == 1).all()


def test_an_adapter_begins_at_the_base_from_the_seed_alone(settings):
    first, again, other = (BUILDERS["qwen2_5_vl"]().model for _ in range(3))
    state = torch.get_rng_state()
    add_adapter(first, settings(seed=1))
    torch.rand(7)
    add_adapter(again, settings(seed=1))
    add_adapter(other, settings(seed=2))
    torch.set_rng_state(state)
    for name, layer in adapted(first).items():
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        assert torch.equal(a, adapted(again)[name].lora_A["default"].weight)
        assert not torch.equal(a, adapted(other)[name].lora_A["default"].weight)
        # Uniform in ± 1 / sqrt(in): kaiming with a = sqrt(5).
        assert 0.8 < a.abs().max() * a.shape[1] ** 0.5 <= 1.0 and not b.any()


def test_some_layers_only(settings):
    model = BUILDERS["qwen2_5_vl"]().model
    add_adapter(model, settings(lora_target_modules="q_proj, v_proj"))
    assert {name.rpartition(".")[2] for name in adapted(model)} == {"q_proj", "v_proj"} and len(adapted(model)) == 4
    with pytest.raises(ConfigError, match="no linear layers attn, lm_head; it has down_proj, gate_proj, k_proj"):
        add_adapter(BUILDERS["qwen2_5_vl"]().model, settings(lora_target_modules="q_proj,lm_head,attn"))


def test_an_adapter_of_another_rank_is_refused(settings, tmp_path):
    model, wider, fewer = (BUILDERS["qwen2_5_vl"]().model for _ in range(3))
    save_adapter(trained(model, settings()), tmp_path)
    add_adapter(wider, settings(lora_rank=4))
    add_adapter(fewer, settings(lora_target_modules="q_proj"))
    for other in (wider, fewer):
        with pytest.raises(ConfigError, match="other layers or another rank"):
            load_adapter(other, tmp_path)


def test_contradictions_are_refused(fast_config, monkeypatch):
    with pytest.raises(ConfigError, match="nothing to freeze"):
        fast_config(lora_rank=2, freeze_vision_tower=True)
    for key in ("lora_rank", "lora_alpha"):
        with pytest.raises(ConfigError, match=f"{key}: -1 must be at least"):
            fast_config(**{key: -1})
    with pytest.raises(ConfigError, match=r"divided among GPUs.*ddp\.yaml"):
        check_processes(fast_config(lora_rank=2), 2, sharded=True)
    server = {"rollout_engine": "vllm", "vllm_mode": "server", "vllm_server_base_url": "http://localhost:8000"}
    with pytest.raises(ConfigError, match="through a folder: set vllm_server_weights_folder"):
        fast_config(lora_rank=2, **server)
    with pytest.raises(ConfigError, match=r"whole on each GPU; with fsdp2\.yaml"):
        check_processes(fast_config(rollout_engine="vllm"), 2, sharded=True)
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ConfigError, match=r"pip install 'papo_hub\[peft\]'"):
        add_adapter(BUILDERS["qwen2_5_vl"]().model, fast_config(lora_rank=2))
