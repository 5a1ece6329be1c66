"""The tiny model: a stock architecture that stock classes load, the same for the same seed, with a tokenizer that
returns what it was given."""

import string

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, Qwen2_5_VLForConditionalGeneration

from papo_hub.digits import DigitRows
from papo_hub.modeling import load_processor
from papo_hub.modeling.tiny import SPECIAL, WORDS, build_tiny, tiny_tokenizer


def test_it_is_a_stock_model_of_a_fifth_of_a_million_parameters(tiny_model_folder):
    model, info = AutoModelForImageTextToText.from_pretrained(tiny_model_folder, output_loading_info=True)
    assert type(model) is Qwen2_5_VLForConditionalGeneration
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert 150_000 < sum(parameter.numel() for parameter in model.parameters()) < 250_000
    assert model.generation_config.eos_token_id == model.config.text_config.eos_token_id == 2


def test_the_seed_decides_the_weights_and_the_global_state_is_left_alone(tmp_path, tiny_model_folder):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    same, other = build_tiny(tmp_path / "same", seed=0), build_tiny(tmp_path / "other", seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    expected, found, different = (load_file(p / "model.safetensors") for p in (tiny_model_folder, same, other))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert any(not torch.equal(expected[name], different[name]) for name in expected)


@pytest.mark.parametrize(
    "text", [string.printable.translate({11: None, 12: None, 13: None}), "".join(WORDS), " 1 23  4"]
)
def test_the_tokenizer_returns_the_text(text, tiny_model_folder):
    for tokenizer in (tiny_tokenizer(), load_processor(tiny_model_folder).tokenizer):
        ids = tokenizer(text).input_ids
        assert tokenizer.decode(ids) == text
        assert tokenizer.unk_token_id not in ids


def test_words_are_whole_tokens_and_others_unknown():
    tokenizer = tiny_tokenizer()
    assert tokenizer.tokenize("<think> 9 ?</think> \\boxed{20}") == [
        "<think>", " 9", " ?", "</think>", " \\boxed{", "2", "0", "}",
    ]  # fmt: skip
    assert tokenizer("é").input_ids == [tokenizer.unk_token_id]
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    assert list(ids.values()) == list(range(len(SPECIAL)))
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.padding_side == "left"


def test_an_image_becomes_one_token_for_28_by_28_pixels(tiny_processor):
    row = DigitRows(size=1)[0]
    content = [{"type": "image"}, {"type": "text", "text": "sum: ? ? ?"}]
    text = tiny_processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    encoded = tiny_processor(text=[text], images=row["images"], return_tensors="pt")
    assert encoded["image_grid_thw"].tolist() == [[1, 2, 6]]
    assert (encoded["input_ids"] == SPECIAL.index("<|image_pad|>")).sum() == 3
    assert tiny_processor.tokenizer.decode(encoded["input_ids"][0], skip_special_tokens=True) == (
        "user\nsum: ? ? ?\nassistant\n"
    )
