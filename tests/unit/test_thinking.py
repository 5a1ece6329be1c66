"""Tokenizers that have <think> as a token of its own: untrained it becomes text, trained it stays and counts."""

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForImageTextToText, AutoTokenizer, PreTrainedTokenizerFast

from papo_hub.batch import Sample
from papo_hub.data import PROMPT_SUFFIX, encode
from papo_hub.modeling import load_processor
from papo_hub.modeling.processing_papo import ImageTextProcessor, image_processor_class
from papo_hub.modeling.thinking import TAGS, note_on_tags, opened_tag
from papo_hub.modeling.tiny import CHAT_TEMPLATE, SPECIAL, tiny_config
from papo_hub.plugins import RewardPlugin
from papo_hub.rewards import format_reward
from papo_hub.trainer import train

OPENING = CHAT_TEMPLATE.replace("<|im_start|>assistant\n{% endif", "<|im_start|>assistant\n<think>\n{% endif")
ANSWER = "<think> 3 4</think> \\boxed{7}"


def bytes_tokenizer(special: bool, listed: bool) -> PreTrainedTokenizerFast:
    """A token a byte, then the special ones, the tags and one more; `listed`: the tags in the vocabulary itself, too."""
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *SPECIAL, *(TAGS if listed else ())]
    backend = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    backend.add_tokens([AddedToken(tag, special=special, normalized=False) for tag in (*TAGS, "<after>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<|endoftext|>", eos_token="<|im_end|>", padding_side="left"
    )


@pytest.fixture
def folder(tmp_path):
    """folder(template, special, listed): a tiny model with such a tokenizer."""

    def make(template=CHAT_TEMPLATE, special=False, listed=False):
        tokenizer = bytes_tokenizer(special, listed)
        assert [tokenizer.convert_tokens_to_ids(tag) for tag in (*TAGS, "<after>")] == [263, 264, 265]
        images = image_processor_class()(size={"shortest_edge": 28 * 28, "longest_edge": 128 * 28 * 28})
        processor = ImageTextProcessor(image_processor=images, tokenizer=tokenizer, chat_template=template)
        config = tiny_config(len(tokenizer))
        for name, token in (("image", "<|image_pad|>"), ("video", "<|video_pad|>")):
            setattr(config, f"{name}_token_id", tokenizer.convert_tokens_to_ids(token))
        for name in ("start", "end"):
            setattr(config, f"vision_{name}_token_id", tokenizer.convert_tokens_to_ids(f"<|vision_{name}|>"))
        config.text_config.eos_token_id = tokenizer.eos_token_id
        with torch.random.fork_rng(devices=[]):
            AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path / "model")
        processor.save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return make


def spoken(tokenizer, text) -> str:
    """What a rollout of these tokens reads as."""
    return tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True)


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("listed", [False, True])
def test_untrained_tags_are_read_and_written_as_text(folder, tiny_prompts, tmp_path, special, listed):
    place = folder(special=special, listed=listed)
    untouched, processor = AutoTokenizer.from_pretrained(place), load_processor(place)
    tokenizer = processor.tokenizer
    # Stock: the prompt holds tokens that nobody trained, and so would any answer with a tag.
    assert {263, 264} < set(untouched(PROMPT_SUFFIX).input_ids)
    sample = Sample("a", "<image>sum?", "7", tiny_prompts[0].sample.images)
    prompt = encode(sample, processor, PROMPT_SUFFIX)
    assert not {263, 264} & set(prompt.clean["input_ids"][0].tolist())
    text = tokenizer.decode(prompt.clean["input_ids"][0])
    assert PROMPT_SUFFIX in text and text.count("<|image_pad|>") == int((prompt.clean["input_ids"] == 261).sum()) > 0
    assert tokenizer("<think>").input_ids == [untouched(sign).input_ids[0] for sign in "<think>"]

    assert not {263, 264} & set(tokenizer(ANSWER).input_ids) and format_reward(spoken(tokenizer, ANSWER)) == 1.0
    assert format_reward(spoken(untouched, ANSWER)) == float(not special)
    assert opened_tag(processor) == "" and "plain text" in note_on_tags(processor)

    other = "a <after> b<|im_end|>"  # all else keeps its id, the ones of the tags too
    assert tokenizer(other).input_ids == untouched(other).input_ids and len(tokenizer) == len(untouched)
    processor.save_pretrained(tmp_path / "saved")  # whoever loads the trained model reads prompts as it was trained
    stock = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert stock(PROMPT_SUFFIX).input_ids == tokenizer(PROMPT_SUFFIX).input_ids


@pytest.mark.parametrize("special", [False, True])
def test_trained_tags_stay_and_the_opening_of_the_template_counts(folder, special):
    processor = load_processor(folder(OPENING, special=special))
    tokenizer = processor.tokenizer
    assert tokenizer("<think>").input_ids == [263]
    assert opened_tag(processor) == "<think>" and "opens <think>" in note_on_tags(processor)
    answer = spoken(tokenizer, ANSWER.removeprefix("<think>"))
    assert format_reward(answer) == 0.0 and format_reward(opened_tag(processor) + answer) == 1.0


def test_ordinary_tokenizers_are_left_alone(tiny_processor):
    assert note_on_tags(tiny_processor) is None and opened_tag(tiny_processor) == ""
    assert len(tiny_processor.tokenizer("<think>").input_ids) == 1  # a word of the vocabulary, trained as any other


@pytest.mark.usefixtures("without_report")
@pytest.mark.parametrize("template, said", [(CHAT_TEMPLATE, "plain text"), (OPENING, "opens <think>")])
def test_a_run_says_so_and_rewards_what_the_template_began(folder, fast_config, monkeypatch, capfd, template, said):
    read = []
    grade = RewardPlugin.__call__

    def watched(self, responses, answers):
        read.extend(responses)
        return grade(self, responses, answers)

    monkeypatch.setattr(RewardPlugin, "__call__", watched)
    train(fast_config(model_name_or_path=folder(template), max_steps=1))
    out = capfd.readouterr().out
    assert sum("note: " in line and said in line for line in out.splitlines()) == 1
    assert len(read) == 8 and all(text.startswith("<think>") == (template == OPENING) for text in read)
