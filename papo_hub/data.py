"""Rows of a dataset → Sample → Prompt.

A dataset has three columns: `problem` (text with one `<image>` placeholder an image), `answer` and `images`. What a row
holds is never trusted: it becomes a `Sample` or is skipped with a reason (`UnusableRow`), and too many skipped rows
stop the run (`TooManyUnusableRows`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import ProcessorMixin

from papo_hub.batch import Prompt, Sample
from papo_hub.grading.judgement import MAX_LENGTH
from papo_hub.images import UnusableImage, decode_images, image_sources, listed
from papo_hub.masking import ViewMaker
from papo_hub.rows import COLUMNS, DataError, Rows, is_name

PLACEHOLDER = "<image>"
PROMPT_SUFFIX = (
    "Work the problem out as an internal monologue between <think> and </think>. "
    "After it, state the final answer inside \\boxed{}."
)

LONGEST_TAG = 64  # characters; a longer text groups nothing
MAX_TAGS = 64  # of a row that lists them
LONGEST_REASON = 300  # characters


class UnusableRow(ValueError):
    """One row that cannot be trained on; `reason` reads "kind" or "kind: detail", in one short printable line."""

    def __init__(self, reason: str):
        reason = "".join(char if char.isprintable() else " " for char in reason)
        self.reason = reason if len(reason) <= LONGEST_REASON else f"{reason[: LONGEST_REASON - 1]}…"
        super().__init__(self.reason)


class TooManyUnusableRows(DataError):
    """So many rows are unusable that the dataset, or a setting, is at fault."""


# --- row → Sample -----------------------------------------------------------------------------------------------------


def special_tokens(processor: ProcessorMixin) -> frozenset[str]:
    """The texts that the tokenizer reads as control: turn markers, image, padding and end tokens."""
    added = {str(token) for token in processor.tokenizer.added_tokens_decoder.values() if token.special}
    marks = {getattr(processor, f"{kind}_token", None) for kind in ("image", "video", "audio")}
    return frozenset(token for token in added | marks if token)


@dataclass(frozen=True)
class PromptLimit:
    """A length that no prompt may exceed, for text that no tokenizer has read and images that nobody has decoded.

    A token stands for at most `longest_token` characters, and an image takes at least one token: what is refused here
    could not have fitted. (Signs that a tokenizer does not know count in full, even where it makes one token of many.)
    """

    max_prompt_length: int
    longest_token: int

    @classmethod
    def of(cls, processor: ProcessorMixin, max_prompt_length: int | None) -> PromptLimit | None:
        if max_prompt_length is None:
            return None
        return cls(max_prompt_length, max(map(len, processor.tokenizer.get_vocab())))

    def check(self, characters: int, images: int) -> None:
        """Raises UnusableRow for a prompt that must be too long."""
        least = -(-characters // self.longest_token) + images
        if least > self.max_prompt_length:
            raise UnusableRow(
                f"prompt too long: at least {least} tokens ({characters} characters, {images} images), "
                f"max_prompt_length is {self.max_prompt_length}"
            )


def check_row(
    row: Mapping[str, Any],
    root: Path | None = None,
    forbidden: frozenset[str] = frozenset(),
    limit: PromptLimit | None = None,
) -> Sample:
    """The sample in a row, or UnusableRow with the reason.

    * A problem without any placeholder gets one an image in front; any other mismatch is unusable.
    * Text with one of the `forbidden` strings (`special_tokens`) is unusable: it could end the user's turn or stand for
      an image that is not there. Encoding it as plain text is no way out, since processors find tokens by their text.
    * Tags are what the mapping `tags` says, or else every other short text of the row.
    * Numbers as answers become text; of more than MAX_LENGTH characters, none is graded. A row without an image is
      unusable, as nothing could be perceived.
    * An image is bytes, a PIL image, a dict {bytes, path}, or a path within `root`; see `papo_hub.images`.
    * What cannot fit within the `limit` is refused before anything is made of it.
    * The id of a row that `is_name` names no row is empty.
    """
    if limit is not None and isinstance(row.get("problem"), str):
        limit.check(len(row["problem"].replace(PLACEHOLDER, "").strip()), len(listed(row.get("images"))))
    problem = _text("problem", row.get("problem"))
    answer = row.get("answer")
    if type(answer) in (int, float) and abs(answer) < 1e300:  # neither nan nor infinite, and short enough to print
        answer = str(answer)
    answer = _text("answer", answer).strip()
    if len(answer) > MAX_LENGTH:
        raise UnusableRow(f"answer too long: {len(answer)} characters, at most {MAX_LENGTH} are graded")

    try:
        sources = image_sources(row.get("images"), root)
    except UnusableImage as error:
        raise UnusableRow(f"{error}") from error
    placeholders = problem.count(PLACEHOLDER)
    if placeholders == 0:
        problem = PLACEHOLDER * len(sources) + problem
    elif placeholders != len(sources):
        raise UnusableRow(f"placeholders do not match images: {placeholders} {PLACEHOLDER} for {len(sources)}")
    words = problem.split(PLACEHOLDER)
    if not any(text.strip() for text in words):
        raise UnusableRow("empty problem")
    if found := sorted(token for token in forbidden if any(token in text for text in words)):
        raise UnusableRow(f"control token in the problem: {', '.join(found)}")

    try:
        images = decode_images(sources)
    except UnusableImage as error:
        raise UnusableRow(f"unusable image: {error}") from error
    tags = row["tags"] if isinstance(row.get("tags"), Mapping) else row
    if tags is not row and len(tags) > MAX_TAGS:
        raise UnusableRow(f"too many tags: {len(tags)}, at most {MAX_TAGS}")
    return Sample(
        id=str(row["id"]) if is_name(row.get("id")) else "",
        problem=problem,
        answer=answer,
        images=images,
        tags={
            name: value
            for name, value in tags.items()
            if name not in (*COLUMNS, "id") and _is_tag(name) and _is_tag(value)
        },
    )


def _is_tag(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= LONGEST_TAG and value.isprintable()


def _text(name: str, value: Any) -> str:
    if value is None:
        raise UnusableRow(f"empty {name}")
    if not isinstance(value, str):
        raise UnusableRow(f"{name} is not text: {type(value).__name__}")
    if not value.strip():
        raise UnusableRow(f"empty {name}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UnusableRow(f"{name} is not valid Unicode: {error.reason}") from error
    return value


# --- Sample → Prompt --------------------------------------------------------------------------------------------------


def chat_text(sample: Sample, processor: ProcessorMixin, prompt_suffix: str = PROMPT_SUFFIX) -> str:
    """The sample as one user turn in the model's chat format, with one image token an image.

    The suffix stands on a line of its own; white space at the problem's end gives way to it.

    Raises ValueError where the processor has no chat template.
    """
    if processor.chat_template is None:
        raise DataError(
            f"{type(processor).__name__} has no chat template, so problems cannot be put to the model: start from an "
            "instruction-tuned checkpoint, or add its chat_template.jinja to the model's folder"
        )
    parts = user_turn(sample, prompt_suffix)
    content = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts]
    messages = [{"role": "user", "content": content}]
    return processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def user_turn(sample: Sample, prompt_suffix: str = PROMPT_SUFFIX) -> tuple[str | None, ...]:
    """The texts of the sample in their order, with None for each image between them."""
    first, *rest = sample.problem.split(PLACEHOLDER)
    parts = [first] + [part for text in rest for part in (None, text)]
    if prompt_suffix:
        last = parts[-1].rstrip()
        parts[-1] = f"{last}\n{prompt_suffix}" if last else prompt_suffix
    return tuple(part for part in parts if part != "")


def prompt_length(sample: Sample, processor: ProcessorMixin, prompt_suffix: str = PROMPT_SUFFIX) -> int:
    """S, the tokens of the encoded prompt, image tokens included; from the images' sizes alone where possible.

    Raises UnusableRow where the problem has control tokens, in whatever way they came about.
    """
    ids = _text_ids(sample, processor, prompt_suffix)
    return _foreseen_length(ids, sample, processor) or encode(sample, processor, prompt_suffix).length


def _foreseen_length(ids: list[int], sample: Sample, processor: ProcessorMixin) -> int | None:
    """S, from the tokens with one an image; None where the images' sizes do not tell."""
    image_processor = processor.image_processor
    merge_size = getattr(image_processor, "merge_size", None)
    if not isinstance(merge_size, int) or not hasattr(image_processor, "get_number_of_image_patches"):
        return None
    patches = [image_processor.get_number_of_image_patches(image.height, image.width) for image in sample.images]
    return len(ids) - len(patches) + sum(count // merge_size**2 for count in patches)


def _text_ids(sample: Sample, processor: ProcessorMixin, prompt_suffix: str) -> list[int]:
    """The tokens of the prompt, one an image. Its control tokens are those of any problem, or UnusableRow is raised.

    `check_row` finds them in the text; here they are found where a tokenizer's normalisation makes them, or the joints
    between the problem and what surrounds it.
    """
    tokenizer = processor.tokenizer
    control = _control_ids(processor, len(tokenizer))

    def ids(problem: str) -> list[int]:
        text = chat_text(replace(sample, problem=problem), processor, prompt_suffix)
        return tokenizer(text, **_text_options(text, processor)).input_ids

    found = ids(sample.problem)
    harmless = PLACEHOLDER.join("x" if text.strip() else text for text in sample.problem.split(PLACEHOLDER))
    ours, usual = ([token for token in some if token in control] for some in (found, ids(harmless)))
    if ours != usual:
        extra = sorted((Counter(ours) - Counter(usual)).keys())
        named = ", ".join(tokenizer.convert_ids_to_tokens(extra)) or "in another order"
        raise UnusableRow(f"control token in the problem: {named}")
    return found


@lru_cache(maxsize=4)
def _control_ids(processor: ProcessorMixin, size: int) -> frozenset[int]:
    """The ids of `special_tokens` but that of unknown text. `size`: of the vocabulary, which may grow."""
    vocabulary = processor.tokenizer.get_vocab()
    ids = {vocabulary[token] for token in special_tokens(processor) if token in vocabulary}
    return frozenset(ids - {processor.tokenizer.unk_token_id})


def encode(
    sample: Sample,
    processor: ProcessorMixin,
    prompt_suffix: str = PROMPT_SUFFIX,
    max_prompt_length: int | None = None,
    *,
    mask: ViewMaker | None = None,
    noise: ViewMaker | None = None,
    generator: torch.Generator | None = None,
) -> Prompt:
    """The sample as the model reads it: `clean`, `masked` where a `mask` is given, `noisy` where `noise` is.

    Each image is masked once, in order, with draws from `generator`, and then gets its noise; all completions of the prompt
    share the results. The views have the same shapes and token ids (see `Prompt`) and differ in `pixel_values` alone.

    Raises UnusableRow for control tokens and for a prompt of more than `max_prompt_length` tokens, ValueError for a mask
    that changes an image's size, and for a processor without a chat template, RuntimeError where `prompt_length` would
    be wrong.
    """
    text_ids = _text_ids(sample, processor, prompt_suffix)
    foreseen = _foreseen_length(text_ids, sample, processor)
    check_length(foreseen or 0, max_prompt_length)  # before any picture is processed
    text = chat_text(sample, processor, prompt_suffix)

    def view(images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        options = _text_options(text, processor)
        return dict(processor(text=[text], images=list(images), return_tensors="pt", **options))

    clean = view(sample.images)
    length = clean["input_ids"].shape[1]
    check_length(length, max_prompt_length)
    if foreseen not in (None, length):  # processes that only foresee it would disagree on which prompts are too long
        raise RuntimeError(
            f"{length} tokens where {foreseen} were foreseen: `prompt_length` does not know how "
            f"{type(processor).__name__} counts image tokens"
        )

    def other_view(make: ViewMaker, kind: str) -> tuple[dict[str, torch.Tensor], tuple[Image.Image, ...]]:
        images = tuple(make(image, generator) for image in sample.images)
        for image, made in zip(sample.images, images, strict=True):
            if image.size != made.size:
                raise ValueError(f"the {kind} view turned a {image.size} image into {made.size}: it must keep the size")
        inputs = view(images)
        for name, value in clean.items():
            if name != "pixel_values" and not torch.equal(value, inputs[name]):
                raise ValueError(f"the clean and the {kind} view differ in {name} under {type(processor).__name__}")
        return inputs, images

    masked, masked_images = (None, ()) if mask is None else other_view(mask, "masked")
    noisy = None if noise is None else other_view(noise, "noisy")[0]
    turn = user_turn(sample, prompt_suffix)
    return Prompt(sample, clean, masked, masked_images, noisy, tuple(text_ids), turn)


def _text_options(text: str, processor: ProcessorMixin) -> dict[str, bool]:
    """Some templates write the first token that the tokenizer would add once more."""
    bos = processor.tokenizer.bos_token
    return {"add_special_tokens": False} if bos and text.startswith(bos) else {}


def check_length(length: int, max_prompt_length: int | None) -> None:
    """Raises UnusableRow for a prompt of more than `max_prompt_length` tokens."""
    if max_prompt_length is not None and length > max_prompt_length:
        raise UnusableRow(f"prompt too long: {length} tokens, max_prompt_length is {max_prompt_length}")


# --- a whole dataset ---------------------------------------------------------------------------------------------------


def describe(
    rows: Rows, processor: ProcessorMixin | None = None, prompt_suffix: str = PROMPT_SUFFIX, first: int = 5
) -> str:
    """What is in the dataset and what becomes of its first rows, as text; needs no model weights.

    With a processor, also the length of each prompt in tokens.
    """
    names = getattr(rows.table, "column_names", None) or list(rows[0])
    lines = [f"{len(rows)} rows; columns: {', '.join(names)}"]
    forbidden = frozenset() if processor is None else special_tokens(processor)
    for index in range(min(first, len(rows))):
        row = rows[index]
        try:
            sample = check_row(row, rows.root, forbidden)
        except UnusableRow as error:
            lines.append(f"row {row['id']}: unusable: {error.reason}")
            continue
        sizes = ", ".join(f"{image.width}×{image.height}" for image in sample.images)
        length = "" if processor is None else f"; {prompt_length(sample, processor, prompt_suffix)} tokens"
        problem = " ".join(sample.problem.split())
        lines.append(f"row {sample.id}: {sizes}{length}; {problem[:80]!r} → {sample.answer[:40]!r}")
    return "\n".join(lines)
