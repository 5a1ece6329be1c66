"""The tags of an answer's format, <think> and </think>, where a tokenizer has them as tokens of their own.

Such a token is one of two things, which its name does not tell. A thinking model was trained on it, and its chat template
opens the tag in front of the answer: there the tokens stay, and the opening counts as the answer's (`opened_tag`). In an
instruction model (Qwen3-VL-Instruct) it was never trained: read in a prompt it is noise, and no answer contains it, so that
the format reward could not be earned. There the tags become plain text, in several tokens, as in models without them.
"""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer

TAGS = ("<think>", "</think>")
UNUSED = {tag: f"<|unused {tag[1:-1]}|>" for tag in TAGS}  # under which an untrained token keeps its id


def opened_tag(processor: Any) -> str:
    """ "<think>" where the chat template opens it in front of every answer, which then begins within; else nothing."""
    if processor.chat_template is None:
        return ""
    messages = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return TAGS[0] if prompt.rstrip().endswith(TAGS[0]) else ""


def readable_tags(processor: Any) -> None:
    """See to it that answers with both tags can be written, and are read as such."""
    tokenizer = processor.tokenizer
    added = {str(token): token for token in tokenizer.added_tokens_decoder.values()}
    if not added.keys() & set(TAGS):
        return
    trained = bool(opened_tag(processor))
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in backend["added_tokens"]:
        if token["content"] in TAGS and trained:
            token["special"] = False  # decoding leaves special tokens out
        elif token["content"] in TAGS:
            vocabulary, tag = backend["model"]["vocab"], token["content"]
            token["content"] = UNUSED[tag]
            if tag in vocabulary:  # some tokenizers list added tokens there, too
                vocabulary[UNUSED[tag]] = vocabulary.pop(tag)
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(backend))


def note_on_tags(processor: Any) -> str | None:
    """What a run has to say about the tags; None where they are nothing particular."""
    if opened_tag(processor):
        return "the chat template opens <think> in front of every answer; the format reward counts it as the answer's"
    if UNUSED[TAGS[0]] in processor.tokenizer.get_vocab():
        return (
            "the tokenizer has <think> as a token of its own that the chat template never uses, so it is taken for "
            "untrained: the tags are read and written as plain text, also with the tokenizer that is saved"
        )
    return None
