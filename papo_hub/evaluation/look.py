"""What an answer owes to the image, and to which parts of it: how far the model's next-token distributions move when the
image is masked, and when one cell of it is hidden. Any vision-language model, no training, no gradient, no file written.

Shapes: T tokens of the answer; R rows and C columns of cells. Divergences are KL(clean ‖ other) over the whole vocabulary,
in nats (PAPO, arXiv 2507.06448, section 3.2, token by token), of an answer that stays the same in all views.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

import torch
from accelerate import PartialState
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm
from transformers import ProcessorMixin

from papo_hub.batch import Completion, Sample, pad_completions
from papo_hub.both_views import constant_states, unreadable_head
from papo_hub.config import ConfigError
from papo_hub.data import PROMPT_SUFFIX, UnusableRow, check_row, encode, special_tokens
from papo_hub.evaluation.run import Request, find_model, load_model
from papo_hub.head import head_views
from papo_hub.masking import RandomPatchMask
from papo_hub.preparation import check_sees
from papo_hub.randomness import derived_generator
from papo_hub.rollout import Sampling, TransformersEngine
from papo_hub.rollout.transformers import image_token_ids
from papo_hub.shared_prefix import bare

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels of the image


@dataclass(frozen=True)
class Look:
    """One answer, and what it owes to the image."""

    question: str
    prompt_suffix: str  # what the question was followed by
    tokens: list[str]  # T texts; "" where a token is part of a character, which stands at the last of its tokens
    sampled: bool  # whether the model gave the answer, or the user
    finished: bool  # False where the length limit cut it
    image: Image.Image
    masked_image: Image.Image
    boxes: list[Box]  # of the R · C cells, row by row
    divergence: Tensor  # (T,): from the masked view
    cells: Tensor  # (T, R, C): from the image without that cell
    rounding: Tensor  # (T,): from the clean view computed once more among the others; what is no larger says nothing


@torch.no_grad()
def look(
    model: nn.Module,
    processor: ProcessorMixin,
    image: Image.Image,
    question: str,
    answer: str | None = None,
    *,
    cells: int = 8,
    mask: RandomPatchMask | None = None,
    seed: int = 0,
    prompt_suffix: str = "",
    max_new_tokens: int = 256,
    max_tokens: int = 16_384,
    progress: bool = False,
) -> Look:
    """Answer the question, and measure how far each token's distribution moves when parts of the image are hidden.

    Args:
        model: an AutoModelForImageTextToText model, bare or PAPO's.
        image: see `papo_hub.images` for what becomes of colours.
        answer: None: the model's own, sampled greedily. Else exactly this text, without an end-of-sequence token.
        cells: along the image's longer side; the shorter one has as many as keep them nearly square.
        mask: of the masked view. Default: the trainer's, `RandomPatchMask()`.
        seed: of the mask.
        prompt_suffix: put behind the question on a line of its own.
        max_new_tokens: of a sampled answer.
        max_tokens: of prompts and answers that pass through the model at a time; one view goes alone if it has more.
        progress: show a bar while views are computed.

    Raises:
        ConfigError: question or answer are empty or hold control tokens, the image is unusable, a number is below 1, or
            the model's hidden states do not give its logits.
        DataError: the processor has no chat template.
    """
    check_request(question, answer, cells=cells, max_new_tokens=max_new_tokens, max_tokens=max_tokens)
    if (reason := unreadable_head(model)) is not None:
        raise ConfigError(f"MODEL: its distributions cannot be compared, since {reason}. Take another model.")
    sample = _sample(question, image, processor)
    image = sample.images[0]
    try:
        generator = derived_generator("look", seed)
        prompt = encode(sample, processor, prompt_suffix, mask=mask or RandomPatchMask(), generator=generator)
    except UnusableRow as error:
        raise ConfigError(f"question: {error.reason}.") from None

    if answer is None:
        engine = TransformersEngine(model, processor.tokenizer, batch_size=1)
        sampling = Sampling(temperature=0, max_completion_length=max_new_tokens)
        completion = engine.generate([prompt], 1, sampling, [seed])[0]
    else:
        completion = _given(answer, model, processor)
    ids, real = pad_completions([completion], 0)

    (rows, columns), boxes = cell_boxes(image.size, cells)
    hidden = (encode(replace(sample, images=(without(image, box),)), processor, prompt_suffix).clean for box in boxes)
    views = chain((prompt.clean, prompt.masked), hidden)
    at_once = max(max_tokens // (prompt.length + ids.shape[1]), 1)
    bar = tqdm(total=2 + len(boxes), unit=" views", disable=not progress, dynamic_ncols=True)
    parts = []
    for part in _divergences(model, prompt.clean, views, ids, real, at_once):
        parts.append(part)
        bar.update(len(part))
    bar.close()
    rounding, divergence, *of_cells = torch.cat(parts)
    return Look(
        question=question,
        prompt_suffix=prompt_suffix,
        tokens=token_texts(processor.tokenizer, completion.token_ids),
        sampled=answer is None,
        finished=completion.finished,
        image=image,
        masked_image=prompt.masked_images[0],
        boxes=boxes,
        divergence=divergence,
        cells=torch.stack(of_cells, dim=-1).unflatten(-1, (rows, columns)),
        rounding=rounding,
    )


def _divergences(
    model: nn.Module,
    clean: dict[str, Tensor],
    views: Iterator[dict[str, Tensor]],
    ids: Tensor,
    mask: Tensor,
    at_once: int,
) -> Iterator[Tensor]:
    """KL(clean ‖ view) of each token, (views, T), for up to `at_once` views at a time; the clean view passes once."""
    states = constant_states(model, [clean], ids, mask)
    head, chosen = bare(model).get_output_embeddings(), ids[0].to(states.device)
    while some := list(islice(views, at_once)):
        n = len(some)
        others = constant_states(model, some, ids.repeat(n, 1), mask.repeat(n, 1))
        divergence = head_views(states.repeat(n, 1), others, head, chosen.repeat(n)).divergence
        yield divergence.view(n, -1).clamp(min=0).cpu()  # rounding can take it below


def check_request(question: str, answer: str | None, **numbers: int) -> None:
    """What can be refused before a model is loaded.

    Raises ConfigError: question or answer are empty, or one of the `numbers` is below 1.
    """
    if not question.strip():
        raise ConfigError("question: is empty; ask something about the image.")
    if answer is not None and not answer.strip():
        raise ConfigError("answer: is empty; write one, or leave it out to see the model's own.")
    for name, value in numbers.items():
        if value < 1:
            raise ConfigError(f"{name}: {value} must be at least 1.")


def _sample(question: str, image: Image.Image, processor: ProcessorMixin) -> Sample:
    row = {"problem": question, "answer": "unknown", "images": [image]}  # nothing is graded
    try:
        return check_row(row, forbidden=special_tokens(processor))
    except UnusableRow as error:
        raise ConfigError(f"question and image cannot be put to the model: {error.reason}.") from None


def _given(answer: str, model: nn.Module, processor: ProcessorMixin) -> Completion:
    ids = processor.tokenizer(answer, add_special_tokens=False).input_ids
    if wrong := sorted(image_token_ids(bare(model).config) & set(ids)):
        names = ", ".join(processor.tokenizer.convert_ids_to_tokens(wrong))
        raise ConfigError(f"answer: holds {names}, which stands for an image that is not there; take it out.")
    return Completion(ids, answer, finished=True)


def cell_boxes(size: tuple[int, int], cells: int) -> tuple[tuple[int, int], list[Box]]:
    """(rows, columns) and the boxes of the cells, row by row: `cells` along the longer side of a (width, height), never
    more than pixels. They are fractions of the image, so that they stay where they are when a processor resizes it."""
    columns, rows = (min(side, max(round(cells * side / max(size)), 1)) for side in size)
    across, down = ([i * side // n for i in range(n + 1)] for side, n in zip(size, (columns, rows), strict=True))
    boxes = [
        (across[column], down[row], across[column + 1], down[row + 1])
        for row in range(rows)
        for column in range(columns)
    ]
    return (rows, columns), boxes


def without(image: Image.Image, box: Box) -> Image.Image:
    """A new image, black within the box, as the trainer's mask makes what it hides."""
    result = image.copy()
    result.paste((0, 0, 0), box)
    return result


def token_texts(tokenizer: Any, ids: list[int]) -> list[str]:
    """What each token adds to the decoded text; together they are the text."""
    texts, shown = [], ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:end], skip_special_tokens=False)
        if text.endswith("\N{REPLACEMENT CHARACTER}") and end < len(ids):  # the first bytes of a character
            texts.append("")
        else:
            texts.append(text[len(shown) :])
            shown = text
    return texts


def open_model(name: str) -> tuple[nn.Module, ProcessorMixin, str, str]:
    """(model, processor, prompt suffix, label) of a run, a model folder or a Hub id.

    A run's model is asked as it was trained: with its suffix and its limits of pixels. Any other gets the question alone.
    Raises ConfigError where it is no vision-language model, or cannot be loaded.
    """
    found = find_model(name)
    check_sees(found.place, found.revision, "MODEL")
    processor, model = load_model(found, Request(name))
    suffix = found.recipe.get("prompt_suffix", PROMPT_SUFFIX if found.recipe else "")
    return model.to(PartialState().device), processor, PROMPT_SUFFIX if suffix is None else suffix, found.label
