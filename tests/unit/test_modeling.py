"""The model class: wrapping changes no weight, both formats return bit for bit, visual dependence is a divergence."""

import importlib
import json
import pickle
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.utils import is_torchvision_available

import papo_hub.modeling
from papo_hub.modeling import PapoConfig, PapoForConditionalGeneration, load_processor
from papo_hub.modeling.processing_papo import ImageTextProcessor

SPECIAL = ["<|endoftext|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
PAD, END, VISION_START, VISION_END, IMAGE, VIDEO = range(6)
VOCABULARY = 24
RECORD = {"objective": "papo_g", "gamma": 0.02, "eta_clean": 0.05, "mask_ratio": 0.6, "mask_patch_size": 14}
BACKBONES = ("qwen2_5_vl", "qwen2_vl", "qwen3_vl")

without_torchvision = pytest.mark.skipif(
    is_torchvision_available(), reason="the fallback serves where torchvision is missing"
)


def tiny_config(model_type="qwen2_5_vl", tied=True):
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [2, 1, 1]},
        "tie_word_embeddings": tied,
        "pad_token_id": PAD,
        "bos_token_id": PAD,
        "eos_token_id": END,
    }
    vision = {"depth": 1, "num_heads": 2, "initializer_range": 0.3}
    if model_type == "qwen2_vl":
        vision |= {"embed_dim": 16, "hidden_size": 32}
    elif model_type == "qwen2_5_vl":
        vision |= {"hidden_size": 16, "intermediate_size": 32, "out_hidden_size": 32, "fullatt_block_indexes": [0]}
    else:
        text["head_dim"] = 8
        vision |= {"hidden_size": 16, "intermediate_size": 32, "out_hidden_size": 32, "patch_size": 14}
        vision |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    return AutoConfig.for_model(
        model_type,
        text_config=text,
        vision_config=vision,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        tie_word_embeddings=tied,
    )


def tiny_model(model_type="qwen2_5_vl", tied=True, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(tiny_config(model_type, tied)).eval()
    model.generation_config = GenerationConfig(max_new_tokens=5, eos_token_id=END, pad_token_id=PAD)
    return model


def tiny_inputs(prompts=2, seed=1):
    """Prompts of 8 and 6 tokens, padded on the left: one 56 × 28 px image each (2 image tokens), then text."""
    generator = torch.Generator().manual_seed(seed)
    image = [VISION_START, IMAGE, IMAGE, VISION_END]
    rows = [[6, 7, *image, 8, 9], [PAD, PAD, 10, *image, 11]][:prompts]
    ids = torch.tensor(rows)
    return {
        "input_ids": ids,
        "attention_mask": (ids != PAD).long(),
        "mm_token_type_ids": (ids == IMAGE).long(),
        "pixel_values": torch.randn(8 * prompts, 3 * 2 * 14 * 14, generator=generator),
        "image_grid_thw": torch.tensor([[1, 4, 2]] * prompts),
    }


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    path = tmp_path_factory.mktemp("plain")
    tiny_model().save_pretrained(path / "new")
    AutoModelForImageTextToText.from_pretrained(path / "new").save_pretrained(path)  # as any checkpoint in circulation
    shutil.rmtree(path / "new")
    return path


@pytest.fixture(scope="module")
def wrapped(plain, tmp_path_factory):
    path = tmp_path_factory.mktemp("wrapped")
    PapoForConditionalGeneration.from_backbone(plain, **RECORD).save_pretrained(path)
    return path


def weights(folder):
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def assert_same_tensors(ours, theirs):
    assert list(ours) == list(theirs)
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]), name


def backbone_state(model):
    return {name.removeprefix("vlm."): tensor for name, tensor in model.state_dict().items()}


# The configuration


def test_config_survives_its_dictionary_and_its_file(tmp_path):
    config = PapoConfig(vlm_config=tiny_config(), **RECORD, gamma_annealing_ratio=0.5, masked_logprobs="live")
    config.save_pretrained(tmp_path)
    for copy in (PapoConfig.from_dict(config.to_dict()), AutoConfig.from_pretrained(tmp_path)):
        assert type(copy) is PapoConfig
        assert (
            copy.perception == config.perception == {**RECORD, "gamma_annealing_ratio": 0.5, "masked_logprobs": "live"}
        )
        assert copy.vlm_config.to_dict() == config.vlm_config.to_dict()


def test_config_answers_like_its_backbone():
    config = PapoConfig(vlm_config=tiny_config())
    assert config.get_text_config().vocab_size == config.text_config.vocab_size == VOCABULARY
    assert config.get_text_config(decoder=True) is config.vlm_config.text_config
    assert config.image_token_id == IMAGE and config.vision_config.depth == 1
    assert config.perception == {} and config.model_type == "papo"
    with pytest.raises(AttributeError, match="no_such_key"):
        config.no_such_key  # noqa: B018
    assert PapoConfig().vlm_config.model_type == "qwen2_5_vl"
    as_dictionary = tiny_config("qwen2_vl").to_dict()
    assert PapoConfig(vlm_config=as_dictionary).vlm_config.to_dict() == as_dictionary


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("gamma", -0.01),
        ("gamma", float("nan")),
        ("gamma_end", float("inf")),
        ("gamma_annealing_ratio", 1.5),
        ("eta_clean", "0.03"),
        ("eta_masked", -1),
        ("beta", True),
        ("epsilon", 1.2),
        ("epsilon_high", -0.3),
        ("mask_ratio", 60),
        ("mask_patch_size", 0),
        ("mask_patch_size", 14.0),
        ("masked_logprobs", "frozzen"),
        ("objective", ""),
        ("mask_strategy", 3),
    ],
)
def test_config_refuses_what_cannot_be(field, value):
    with pytest.raises(ValueError, match=f"PapoConfig: {field} must be"):
        PapoConfig(vlm_config=tiny_config(), **{field: value})


def test_config_accepts_the_ends_of_each_range():
    PapoConfig(vlm_config=tiny_config(), gamma=0, epsilon=0, mask_ratio=1, gamma_annealing_ratio=1.0, epsilon_high=1.5)


def test_config_keeps_the_attention_chosen_on_the_backbone():
    backbone = tiny_config()
    backbone._attn_implementation = {"": "eager", "text_config": "eager", "vision_config": "sdpa"}
    config = PapoConfig(vlm_config=backbone)
    assert (
        config._attn_implementation
        == backbone._attn_implementation
        == backbone.text_config._attn_implementation
        == "eager"
    )
    assert backbone.vision_config._attn_implementation == "sdpa"
    config = PapoConfig(vlm_config=backbone, attn_implementation="sdpa")
    assert backbone._attn_implementation == backbone.text_config._attn_implementation == "sdpa"


def test_config_cannot_hold_itself():
    with pytest.raises(ValueError, match="itself a PapoConfig"):
        PapoConfig(vlm_config=PapoConfig(vlm_config=tiny_config()))


# Wrapping


def test_from_backbone_changes_no_weight(plain):
    model = PapoForConditionalGeneration.from_backbone(plain, **RECORD)
    theirs = Qwen2_5_VLForConditionalGeneration.from_pretrained(plain)
    assert_same_tensors(backbone_state(model), theirs.state_dict())
    assert model.config.perception == RECORD
    assert model.config.vlm_config is model.vlm.config  # one configuration, or resizing would go half way
    assert model.generation_config is model.vlm.generation_config and model.generation_config.max_new_tokens == 5
    assert not model.training and not model.vlm.training


def test_from_backbone_shares_a_loaded_model():
    vlm = tiny_model(tied=False).train()
    vlm.lm_head = torch.nn.Linear(32, VOCABULARY, bias=False)  # the library has not marked this one as initialised
    before = {name: tensor.clone() for name, tensor in vlm.state_dict().items()}
    model = PapoForConditionalGeneration.from_backbone(vlm, gamma=0.01)
    assert model.vlm is vlm and model.training
    assert_same_tensors(vlm.state_dict(), before)
    assert vlm.generation_config.max_new_tokens == 5


def test_from_backbone_of_an_untied_model(tmp_path):
    tiny_model(tied=False).save_pretrained(tmp_path)
    model = PapoForConditionalGeneration.from_backbone(tmp_path)
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    assert_same_tensors(backbone_state(model), tiny_model(tied=False).state_dict())


def test_from_backbone_names_missing_and_unexpected_keys(plain, tmp_path):
    shutil.copytree(plain, tmp_path, dirs_exist_ok=True)
    tensors = weights(plain)
    gone = next(name for name in tensors if name.endswith("layers.1.mlp.up_proj.weight"))
    save_file({k: v for k, v in tensors.items() if k != gone}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"missing keys: .*layers\.1\.mlp\.up_proj\.weight"):
        PapoForConditionalGeneration.from_backbone(tmp_path)
    save_file({**tensors, "model.layers.7.stray": torch.ones(2)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"unexpected keys: .*layers\.7\.stray"):
        PapoForConditionalGeneration.from_backbone(tmp_path)
    save_file({**tensors, gone: torch.ones(2, 2)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"mismatched keys: .*layers\.1\.mlp\.up_proj\.weight"):
        PapoForConditionalGeneration.from_backbone(tmp_path, ignore_mismatched_sizes=True)


def test_from_backbone_refuses_what_is_no_backbone(wrapped):
    with pytest.raises(ValueError, match="already a PAPO model"):
        PapoForConditionalGeneration.from_backbone(wrapped)
    model = tiny_model()
    with pytest.raises(TypeError, match="dtype cannot apply"):
        PapoForConditionalGeneration.from_backbone(model, dtype="bfloat16")
    with pytest.raises(TypeError, match="revision cannot apply"):
        PapoForConditionalGeneration.from_backbone(model, revision="v1")
    with pytest.raises(ValueError, match="gamma must be"):
        PapoForConditionalGeneration.from_backbone(model, gamma=-1)


def test_from_backbone_passes_loading_options_on(plain):
    model = PapoForConditionalGeneration.from_backbone(
        plain, dtype="bfloat16", attn_implementation="eager", device_map="cpu"
    )
    assert model.dtype == torch.bfloat16 and model.config.dtype == torch.bfloat16
    assert model.config._attn_implementation == model.vlm.model.language_model.config._attn_implementation == "eager"


# The wrapper format


@pytest.mark.parametrize("loader", [AutoModelForImageTextToText, PapoForConditionalGeneration])
def test_wrapper_format_comes_back(wrapped, plain, loader):
    model, info = loader.from_pretrained(wrapped, output_loading_info=True)
    assert type(model) is PapoForConditionalGeneration
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert_same_tensors(backbone_state(model), Qwen2_5_VLForConditionalGeneration.from_pretrained(plain).state_dict())
    assert model.config.perception == RECORD
    assert model.vlm.generation_config.max_new_tokens == 5
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight  # still tied
    assert model.config.vlm_config is model.vlm.config


def test_wrapper_format_carries_its_code(wrapped):
    names = {file.name for file in wrapped.iterdir()}
    assert names == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "configuration_papo.py",
        "loading.py",
        "modeling_papo.py",
    }
    config = json.loads((wrapped / "config.json").read_text())
    assert config["auto_map"] == {
        "AutoConfig": "configuration_papo.PapoConfig",
        "AutoModelForImageTextToText": "modeling_papo.PapoForConditionalGeneration",
    }
    assert config["vlm_config"]["model_type"] == "qwen2_5_vl" and "papo" not in config["vlm_config"]


def test_loading_options_reach_the_backbone(wrapped):
    model = AutoModelForImageTextToText.from_pretrained(
        wrapped, dtype=torch.bfloat16, attn_implementation="eager", device_map="cpu"
    )
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    configs = (model.config, model.vlm.config, model.vlm.config.text_config, model.vlm.config.vision_config)
    assert {c._attn_implementation for c in configs} == {"eager"}
    model.set_attn_implementation("sdpa")
    configs = (model.config, model.vlm.config, model.vlm.model.language_model.config, model.vlm.model.visual.config)
    assert {c._attn_implementation for c in configs} == {"sdpa"}


def test_sharded(wrapped, plain, tmp_path):
    model = PapoForConditionalGeneration.from_pretrained(wrapped)
    for folder, options in ((tmp_path / "wrapper", {}), (tmp_path / "plain", {"as_backbone": True})):
        model.save_pretrained(folder, max_shard_size="20KB", **options)
        assert len(list(folder.glob("model-*.safetensors"))) > 2 and (folder / "model.safetensors.index.json").exists()
        assert not list(folder.glob("*.bin"))
    again = PapoForConditionalGeneration.from_pretrained(tmp_path / "wrapper")
    assert_same_tensors(again.state_dict(), model.state_dict())
    again = PapoForConditionalGeneration.from_backbone(tmp_path / "plain")
    assert_same_tensors(again.state_dict(), model.state_dict())


# The plain format


def test_plain_format_is_the_original(wrapped, plain, tmp_path):
    PapoForConditionalGeneration.from_pretrained(wrapped).save_pretrained(tmp_path, as_backbone=True)
    assert_same_tensors(weights(tmp_path), weights(plain))
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "generation_config.json", "model.safetensors"}
    config, original = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path, plain))
    assert config.pop("papo") == RECORD
    assert config == original


def test_plain_format_keeps_both_generations_of_keys(plain, tmp_path):
    """Released checkpoints name tensors `visual.*`, `model.layers.*`; transformers 5 names modules otherwise."""
    old = weights(plain)
    assert "model.embed_tokens.weight" in old and any(name.startswith("visual.") for name in old)
    model = PapoForConditionalGeneration.from_backbone(plain)
    model.save_pretrained(tmp_path / "out", as_backbone=True)
    assert_same_tensors(weights(tmp_path / "out"), old)

    theirs = Qwen2_5_VLForConditionalGeneration.from_pretrained(plain)
    theirs.save_pretrained(tmp_path / "new", save_original_format=False)
    assert "model.language_model.embed_tokens.weight" in weights(tmp_path / "new")
    model = PapoForConditionalGeneration.from_backbone(tmp_path / "new")
    assert_same_tensors(backbone_state(model), theirs.state_dict())
    model.save_pretrained(tmp_path / "new_out", as_backbone=True, save_original_format=False)
    assert_same_tensors(weights(tmp_path / "new_out"), weights(tmp_path / "new"))


def test_plain_format_records_the_training(plain, tmp_path):
    model = PapoForConditionalGeneration.from_backbone(plain, **RECORD)
    model.save_pretrained(tmp_path, as_backbone=True)
    assert not hasattr(model.vlm.config, "papo")  # written, not left behind
    theirs = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(theirs) is Qwen2_5_VLForConditionalGeneration
    assert theirs.config.papo == RECORD

    again = PapoForConditionalGeneration.from_backbone(tmp_path, gamma=0.04, beta=0.0)
    assert again.config.perception == {**RECORD, "gamma": 0.04, "beta": 0.0}
    assert not hasattr(again.vlm.config, "papo")


def test_plain_format_without_a_record(plain, tmp_path):
    PapoForConditionalGeneration.from_backbone(plain).save_pretrained(tmp_path, as_backbone=True)
    assert "papo" not in json.loads((tmp_path / "config.json").read_text())


@pytest.mark.parametrize("as_backbone", [False, True])
def test_a_gathered_state_dict_is_what_is_saved(plain, tmp_path, as_backbone):
    model = PapoForConditionalGeneration.from_backbone(plain)
    gathered = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path, as_backbone=as_backbone, state_dict=gathered)
    again = (
        PapoForConditionalGeneration.from_backbone if as_backbone else PapoForConditionalGeneration.from_pretrained
    )(tmp_path)
    assert_same_tensors(again.state_dict(), gathered)


# Delegation


def test_forward_and_generate_are_the_backbones(plain):
    model = PapoForConditionalGeneration.from_backbone(plain)
    theirs = Qwen2_5_VLForConditionalGeneration.from_pretrained(plain)
    inputs = tiny_inputs()
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, theirs(**inputs).logits)
    ours = model.generate(**inputs, do_sample=False)
    assert (
        torch.equal(ours, theirs.generate(**inputs, do_sample=False)) and ours.shape[1] > inputs["input_ids"].shape[1]
    )
    model.generation_config.max_new_tokens = 2  # the wrapper's is the backbone's
    assert model.generate(**inputs, do_sample=False, eos_token_id=None).shape[1] == inputs["input_ids"].shape[1] + 2


def test_embeddings_and_resizing(plain):
    model = PapoForConditionalGeneration.from_backbone(plain)
    assert model.get_input_embeddings() is model.vlm.model.language_model.embed_tokens
    assert model.get_output_embeddings() is model.vlm.lm_head
    with torch.random.fork_rng(devices=[]):
        model.resize_token_embeddings(VOCABULARY + 4)
    assert model.vlm.lm_head.weight.shape[0] == model.config.get_text_config().vocab_size == VOCABULARY + 4
    assert model.vlm.lm_head.weight is model.vlm.model.language_model.embed_tokens.weight
    replacement = torch.nn.Embedding(VOCABULARY, 32)
    model.set_input_embeddings(replacement)
    assert model.vlm.get_input_embeddings() is replacement
    model.tie_weights()
    assert model.vlm.lm_head.weight is replacement.weight
    head = torch.nn.Linear(32, VOCABULARY, bias=False)
    model.set_output_embeddings(head)
    assert model.vlm.lm_head is head


def test_gradient_checkpointing_changes_no_gradient(plain):
    model = PapoForConditionalGeneration.from_backbone(plain).train()
    inputs = tiny_inputs()

    def gradients():
        model.zero_grad()
        model(**inputs).logits.square().mean().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    expected = gradients()
    assert not model.is_gradient_checkpointing
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing and model.vlm.model.language_model.layers[0].gradient_checkpointing
    actual = gradients()
    assert len(actual) > 20 and actual.keys() == expected.keys()
    torch.testing.assert_close(actual, expected)
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing


def test_a_new_model_is_initialised():
    """Not only loaded: built from its configuration, the way the library builds any model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(PapoConfig(vlm_config=tiny_config()))
    assert type(model) is PapoForConditionalGeneration
    weight = model.vlm.model.language_model.layers[0].mlp.up_proj.weight
    assert weight.std().item() == pytest.approx(0.3, rel=0.1)  # initializer_range, 2048 samples
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("model_type", BACKBONES)
def test_other_backbones(model_type, tmp_path):
    vlm = tiny_model(model_type)
    vlm.save_pretrained(tmp_path / "plain")
    model = PapoForConditionalGeneration.from_backbone(tmp_path / "plain", gamma=0.01)
    assert model.vlm.config.model_type == model_type
    inputs = tiny_inputs()
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, vlm(**inputs).logits)
    model.save_pretrained(tmp_path / "wrapper")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "wrapper")
    assert_same_tensors(backbone_state(again), vlm.state_dict())
    again.save_pretrained(tmp_path / "again", as_backbone=True)
    assert_same_tensors(weights(tmp_path / "again"), weights(tmp_path / "plain"))
    answer = torch.tensor([[12, 13, 14], [15, 16, 17]])
    dependence = again.visual_dependence(inputs, torch.zeros_like(inputs["pixel_values"]), answer)
    estimate, _ = by_hand(vlm, inputs, torch.zeros_like(inputs["pixel_values"]), answer)
    torch.testing.assert_close(dependence, estimate, rtol=1e-4, atol=1e-5)


# Visual dependence


def by_hand(vlm, inputs, masked_pixel_values, completion_ids):
    """Row by row, unpadded, all logits: (k3 estimate, exact divergence), each (B, T), float64 after the logits."""
    estimates, divergences = [], []
    for b in range(len(completion_ids)):
        ids = inputs["input_ids"][b][inputs["attention_mask"][b] == 1]
        row = torch.cat([ids, completion_ids[b]]).unsqueeze(0)
        image = {"image_grid_thw": inputs["image_grid_thw"][b : b + 1], "mm_token_type_ids": (row == IMAGE).long()}
        views = []
        for pixels in (inputs["pixel_values"], masked_pixel_values):
            with torch.no_grad():
                logits = vlm(input_ids=row, pixel_values=pixels[8 * b : 8 * b + 8], **image).logits[0]
            views.append(logits.double().log_softmax(-1))
        estimate, divergence = [], []
        for t, token in enumerate(completion_ids[b].tolist()):
            clean, masked = (view[len(ids) + t - 1] for view in views)
            ratio = (masked[token] - clean[token]).exp()
            estimate.append(ratio - ratio.log() - 1)
            divergence.append((clean.exp() * (clean - masked)).sum())
        estimates.append(torch.stack(estimate))
        divergences.append(torch.stack(divergence))
    return torch.stack(estimates).float(), torch.stack(divergences).float()


@pytest.fixture(scope="module")
def dependence_case(plain):
    model = PapoForConditionalGeneration.from_backbone(plain)
    inputs = tiny_inputs()
    masked = inputs["pixel_values"].clone()
    masked[::2] = 0
    return model, inputs, masked, torch.tensor([[12, 13, 14, 15], [16, 17, 18, 19]])


def test_visual_dependence_equals_two_forwards(dependence_case):
    model, inputs, masked, answer = dependence_case
    estimate, divergence = by_hand(model.vlm, inputs, masked, answer)
    assert estimate.min() > 1e-4 and divergence.min() > 1e-3  # nothing here is zero by accident
    torch.testing.assert_close(model.visual_dependence(inputs, masked, answer), estimate, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(
        model.visual_dependence(inputs, masked, answer, exact=True), divergence, rtol=1e-3, atol=1e-6
    )


def test_the_estimate_averages_to_the_divergence(dependence_case):
    """Over all tokens, weighted by the clean view's probabilities, exp(d) - d - 1 is the divergence exactly."""
    model, inputs, masked, _ = dependence_case
    one = {name: tensor[:1] for name, tensor in inputs.items()} | {"pixel_values": inputs["pixel_values"][:8]}
    with torch.no_grad():
        clean, hidden = (
            model(**{**one, "pixel_values": pixels[:8]}).logits[0, -1].log_softmax(-1)
            for pixels in (inputs["pixel_values"], masked)
        )
    estimates = torch.expm1(hidden - clean) - (hidden - clean)  # what stays for the two tokens no answer may contain
    tokens = torch.tensor([token for token in range(VOCABULARY) if token not in (IMAGE, VIDEO)])
    rows = {name: tensor.repeat(len(tokens), 1) for name, tensor in one.items()}
    estimates[tokens] = model.visual_dependence(rows, masked[:8].repeat(len(tokens), 1), tokens[:, None])[:, 0]
    exact = model.visual_dependence(one, masked[:8], torch.tensor([[7]]), exact=True)[0, 0]
    torch.testing.assert_close((clean.exp() * estimates).sum(), exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("exact", [False, True])
def test_visual_dependence_is_zero_where_nothing_is_hidden_and_on_padding(dependence_case, exact):
    model, inputs, masked, answer = dependence_case
    assert torch.equal(model.visual_dependence(inputs, inputs["pixel_values"], answer, exact=exact), torch.zeros(2, 4))
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    padded = model.visual_dependence(inputs, masked, answer.masked_fill(mask == 0, PAD), mask, exact=exact)
    assert torch.equal(padded[1, 2:], torch.zeros(2)) and not padded.requires_grad
    full = model.visual_dependence(inputs, masked, answer, exact=exact)
    torch.testing.assert_close(padded[mask == 1], full[mask == 1])


def test_visual_dependence_leaves_its_inputs_alone(dependence_case):
    model, inputs, masked, answer = dependence_case
    before = {name: tensor.clone() for name, tensor in inputs.items()}
    model.visual_dependence(inputs, masked, answer)
    assert_same_tensors(inputs, before)


def test_visual_dependence_says_what_is_wrong(dependence_case):
    model, inputs, masked, answer = dependence_case
    with pytest.raises(ValueError, match="masked_pixel_values has shape"):
        model.visual_dependence(inputs, masked[:8], answer)
    with pytest.raises(ValueError, match="no mm_token_type_ids"):
        model.visual_dependence({k: v for k, v in inputs.items() if k != "mm_token_type_ids"}, masked, answer)
    with pytest.raises(ValueError, match="no pixel_values"):
        model.visual_dependence({k: v for k, v in inputs.items() if k != "pixel_values"}, masked, answer)
    with pytest.raises(ValueError, match="2 prompts, completion_ids"):
        model.visual_dependence(inputs, masked, answer[:1])
    with pytest.raises(ValueError, match="completion_mask"):
        model.visual_dependence(inputs, masked, answer, torch.ones(2, 3))
    with pytest.raises(ValueError, match="contains the image_token_id 4"):
        model.visual_dependence(inputs, masked, answer.index_fill(1, torch.tensor([2]), IMAGE))
    with pytest.raises(ValueError, match="padded on the right"):
        model.visual_dependence({**inputs, "attention_mask": inputs["attention_mask"].flip(-1)}, masked, answer)


# Registration


def test_importing_twice_is_harmless(wrapped, monkeypatch):
    """As a notebook does: the same package again, then its modules made anew. The last one imported is in force."""
    ours = papo_hub.modeling
    importlib.reload(ours)
    assert type(AutoModelForImageTextToText.from_pretrained(wrapped)) is PapoForConditionalGeneration
    try:
        for name in [name for name in sys.modules if name.startswith("papo_hub.modeling")]:
            monkeypatch.delitem(sys.modules, name)
        anew = importlib.import_module("papo_hub.modeling")
        assert anew.PapoConfig is not PapoConfig
        assert type(AutoConfig.from_pretrained(wrapped)) is anew.PapoConfig
        assert type(AutoModelForImageTextToText.from_pretrained(wrapped)) is anew.PapoForConditionalGeneration
    finally:
        monkeypatch.undo()
        importlib.reload(ours)
    assert type(AutoModelForImageTextToText.from_pretrained(wrapped)) is PapoForConditionalGeneration


# The processor


def tiny_tokenizer():
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, "?", *"abcdefghij", "\n"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", behavior="isolated")
    tokenizer.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="?", pad_token=SPECIAL[PAD], eos_token=SPECIAL[END], padding_side="left"
    )


def tiny_processor():
    images = Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 4 * 28 * 28})
    return ImageTextProcessor(
        image_processor=images, tokenizer=tiny_tokenizer(), chat_template="{{ messages[0].content }}"
    )


def tiny_image(width=56, height=28, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


TEXT = f"a{SPECIAL[VISION_START]}{SPECIAL[IMAGE]}{SPECIAL[VISION_END]}b"


def test_processor_output():
    """56 × 28 px is 4 × 2 patches of 14, so 2 image tokens."""
    output = tiny_processor()(text=[TEXT, "ab"], images=[tiny_image()], padding=True, return_tensors="pt")
    a, b = 7, 8
    assert output["input_ids"].tolist() == [[a, VISION_START, IMAGE, IMAGE, VISION_END, b], [PAD] * 4 + [a, b]]
    assert output["mm_token_type_ids"].tolist() == [[0, 0, 1, 1, 0, 0], [0] * 6]
    assert output["attention_mask"].tolist() == [[1] * 6, [0, 0, 0, 0, 1, 1]]
    assert output["image_grid_thw"].tolist() == [[1, 2, 4]] and output["pixel_values"].shape == (8, 3 * 2 * 14 * 14)
    # The first patch is the image's upper left corner, scaled to [0, 1] and normalised; both frames are the image.
    processor = tiny_processor().image_processor
    corner = np.asarray(tiny_image(), dtype=np.float32)[:14, :14].transpose(2, 0, 1) / 255
    corner = (corner - np.array(processor.image_mean)[:, None, None]) / np.array(processor.image_std)[:, None, None]
    patch = output["pixel_values"][0].view(3, 2, 14, 14).numpy()
    np.testing.assert_allclose(patch, np.stack([corner, corner], axis=1), rtol=0, atol=1e-5)


def test_processor_writes_a_stock_folder(tmp_path):
    tiny_processor().save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {
        "chat_template.jinja",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "video_preprocessor_config.json",
    }
    config = json.loads((tmp_path / "processor_config.json").read_text())
    assert config["processor_class"] == "Qwen2_5_VLProcessor"
    assert config["image_processor"]["image_processor_type"] == "Qwen2VLImageProcessor"
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["processor_class"] == "Qwen2_5_VLProcessor"
    video = json.loads((tmp_path / "video_preprocessor_config.json").read_text())
    assert video["video_processor_type"] == "Qwen2VLVideoProcessor" and video["patch_size"] == 14


@without_torchvision
def test_load_processor_reads_what_was_saved(tmp_path):
    tiny_processor().save_pretrained(tmp_path)
    processor = load_processor(tmp_path)
    assert isinstance(processor, ImageTextProcessor) and processor.chat_template == tiny_processor().chat_template
    ours, theirs = (p(text=TEXT, images=tiny_image(), return_tensors="pt") for p in (processor, tiny_processor()))
    assert_same_tensors(dict(ours), dict(theirs))
    smaller = load_processor(tmp_path, size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28}, padding_side="right")
    assert smaller(text=TEXT, images=tiny_image(), return_tensors="pt")["image_grid_thw"].tolist() == [[1, 2, 2]]
    assert smaller.tokenizer.padding_side == "right"


@without_torchvision
def test_video_settings_survive(tmp_path):
    tiny_processor().save_pretrained(tmp_path)
    file = tmp_path / "video_preprocessor_config.json"
    settings = {**json.loads(file.read_text()), "max_frames": 17, "size": {"shortest_edge": 784, "longest_edge": 1568}}
    file.write_text(json.dumps(settings))
    load_processor(tmp_path).save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "video_preprocessor_config.json").read_text()) == settings


@without_torchvision
@pytest.mark.parametrize("folder", ["plain", "wrapped"])
@pytest.mark.parametrize("name", ["Qwen2_5_VLProcessor", "Qwen2VLProcessor", "Qwen3VLProcessor", None])
def test_load_processor_picks_the_family(folder, name, request, tmp_path):
    """The class that the files name; where they name none, that of the model."""
    shutil.copytree(request.getfixturevalue(folder), tmp_path, dirs_exist_ok=True)
    tiny_processor().save_pretrained(tmp_path)
    for file in (tmp_path / "processor_config.json", tmp_path / "tokenizer_config.json"):
        config = json.loads(file.read_text())
        del config["processor_class"]
        file.write_text(json.dumps(config | ({"processor_class": name} if name else {})))
    processor = load_processor(tmp_path)
    assert type(processor).__name__ == (name or "Qwen2_5_VLProcessor")
    assert not hasattr(processor, "video_processor")
    assert processor(text=TEXT, images=tiny_image())["mm_token_type_ids"] == [[0, 0, 1, 1, 0, 0]]
    if folder == "wrapped" and name is None:  # what the registration is for
        assert isinstance(AutoProcessor.from_pretrained(tmp_path), ImageTextProcessor)


def test_processor_is_picklable_and_refuses_videos():
    processor = pickle.loads(pickle.dumps(tiny_processor()))
    assert isinstance(processor, ImageTextProcessor)
    with pytest.raises(ValueError, match="install torchvision"):
        processor(text="a", videos=[np.zeros((2, 28, 28, 3))])


def test_load_processor_of_nothing(tmp_path):
    with pytest.raises((OSError, ValueError)):
        load_processor(tmp_path)
