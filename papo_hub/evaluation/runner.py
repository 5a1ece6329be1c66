"""Answers to problems, into a transcript: each a function of model, problem, view and seed alone.

The work is cut into units of fixed problems, whatever the number of processes and wherever an earlier run was killed, so
that all of them decode the same things side by side and write the same answers. What the transcript holds is not
answered again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm

from papo_hub.batch import Prompt, Sample
from papo_hub.data import PROMPT_SUFFIX, PromptLimit, UnusableRow, chat_text, check_row, encode, special_tokens
from papo_hub.evaluation.answers import Answer, Key, Transcript, begun, digest, merge, read_answers
from papo_hub.evaluation.dependence import visual_dependence
from papo_hub.evaluation.protocol import Protocol
from papo_hub.evaluation.views import CLEAN, seen
from papo_hub.modeling.thinking import opened_tag
from papo_hub.randomness import derived_generator
from papo_hub.rewards import accuracy_rewards, format_reward, last_boxed
from papo_hub.rollout import RolloutEngine, Sampling
from papo_hub.rows import DataError, Rows


@dataclass(frozen=True)
class Task:
    """A benchmark as it is put to a model."""

    name: str
    rows: Rows
    limit: int | None = None  # its first so many rows
    prompt_suffix: str = PROMPT_SUFFIX
    sampling: Sampling = Sampling()  # temperature, top-p and a limit of length are the protocol's to say

    def __len__(self) -> int:
        return min(len(self.rows), self.limit or len(self.rows))

    def suffix(self, problem: str) -> str:
        """A problem that asks for a box itself needs no further request."""
        return "" if r"\boxed" in problem else self.prompt_suffix


@dataclass(frozen=True)
class Skipped:
    """A row that could not be used, and why."""

    benchmark: str
    id: str
    reason: str


@dataclass(frozen=True)
class _Unit:
    task: Task
    view: str
    rows: range


def answer(
    engine: RolloutEngine,
    policy: torch.nn.Module,
    processor: Any,
    tasks: list[Task],
    protocol: Protocol,
    accelerator: Accelerator,
    folder: Path,
) -> tuple[list[Answer], list[Skipped]]:
    """Complete the transcript in `folder`. Runs on every rank.

    Returns:
        On the main process all answers, in the order of tasks, rows, views and samples, and the rows that were skipped.
        On the others two empty lists.

    Raises, on every rank:
        AnswersError: the transcript cannot be read.
        DataError: no row of a task can be used.
    """
    known = {answer.key for answer in read_answers(folder)} if begun(folder) else set()
    accelerator.wait_for_everyone()  # everyone has read before anyone writes
    if accelerator.is_main_process:
        merge(folder)
    accelerator.wait_for_everyone()
    transcript = Transcript(folder, accelerator.process_index)
    limits = special_tokens(processor), PromptLimit.of(processor, protocol.max_prompt_length)
    units = list(_units(tasks, protocol))[accelerator.process_index :: accelerator.num_processes]
    was_training = policy.training
    policy.eval()
    total = sum(len(unit.rows) * protocol.samples(unit.view) for unit in units)
    skipped: set[Skipped] = set()
    ids = {task.name: [f"{task.rows[index]['id']}" for index in range(len(task))] for task in tasks}
    places = {(name, id): index for name, found in ids.items() for index, id in enumerate(found)}
    answered = {key.benchmark for key in known if key.view == CLEAN and (key.benchmark, key.id) in places}
    bar = tqdm(
        total=total, unit=" answers", disable=not accelerator.is_main_process, dynamic_ncols=True, mininterval=0.5
    )
    for unit in units:
        bar.set_description(f"{unit.task.name}, {unit.view}", refresh=False)
        count = protocol.samples(unit.view)
        if any(key not in known for index in unit.rows for key in _keys(unit, ids[unit.task.name][index], count)):
            rows = [unit.task.rows[index] for index in unit.rows]
            prompts = list(_prompts(rows, unit, processor, limits, protocol, skipped))
            answered.update(unit.task.name for _ in prompts if unit.view == CLEAN)
            if any(key not in known for prompt in prompts for key in _keys(unit, prompt.sample.id, count)):
                new = _answer(engine, policy, processor, unit, prompts, protocol, accelerator)
                transcript.append(answer for answer in new if answer.key not in known)
        bar.update(len(unit.rows) * count)
    bar.close()
    policy.train(was_training)
    reasons = {(row.benchmark, row.id): row for row in sorted(gather_object(list(skipped)), key=astuple, reverse=True)}
    unusable = [reasons[place] for place in places if place in reasons]  # each once, whatever its views
    answered = set(gather_object(list(answered)))  # after which all have written
    for task in tasks:
        if task.name not in answered:
            reason = next((row.reason for row in unusable if row.benchmark == task.name), "it has none")
            raise DataError(f"no row of {task.name} can be used for evaluation; the first reason: {reason}")
    return (_ordered(folder, places, tasks, protocol), unusable) if accelerator.is_main_process else ([], [])


def _ordered(folder: Path, places: dict[tuple[str, str], int], tasks: list[Task], protocol: Protocol) -> list[Answer]:
    """The finished transcript in its order; whatever else it holds, of other benchmarks or views, stays behind that."""
    names = {task.name: place for place, task in enumerate(tasks)}
    views = {view: place for place, view in enumerate(protocol.views)}
    last = len(places) + len(tasks) + len(views)

    def order(answer: Answer) -> tuple:
        place = places.get((answer.benchmark, answer.id), last)
        return names.get(answer.benchmark, last), place, views.get(answer.view, last), answer.sample, answer.key

    return [
        answer
        for answer in merge(folder, order)
        if (answer.benchmark, answer.id) in places
        and answer.view in views
        and answer.sample < protocol.samples(answer.view)
    ]


def _units(tasks: list[Task], protocol: Protocol) -> Iterator[_Unit]:
    """What is decoded side by side. The clean views of all tasks come first: of a long evaluation they are the result."""
    for views in ((CLEAN,), [view for view in protocol.views if view != CLEAN]):
        for task in tasks:
            for view in views:
                size = max(protocol.batch_size // protocol.samples(view), 1)
                for start in range(0, len(task), size):
                    yield _Unit(task, view, range(start, min(start + size, len(task))))


def _keys(unit: _Unit, id: str, count: int) -> Iterator[Key]:
    return (Key(unit.task.name, id, unit.view, sample) for sample in range(count))


def _prompts(
    rows: list[dict],
    unit: _Unit,
    processor: Any,
    limits: tuple[frozenset[str], PromptLimit],
    protocol: Protocol,
    skipped: set[Skipped],
) -> Iterator[Prompt]:
    """The rows as they are put to the model; a bad one costs itself."""
    task, compared = unit.task, protocol.kl_view if unit.view == CLEAN else None

    def shown(sample: Sample, view: str) -> Prompt:
        images = seen(sample.images, view, sample.id, protocol.mask_patch_size)
        suffix = task.suffix(sample.problem)
        return encode(replace(sample, images=images), processor, suffix, protocol.max_prompt_length)

    for row in rows:
        try:
            sample = check_row(row, task.rows.root, *limits)
            yield replace(shown(sample, unit.view), masked=shown(sample, compared).clean if compared else None)
        except UnusableRow as error:
            skipped.add(Skipped(task.name, f"{row['id']}", error.reason))


def _answer(
    engine: RolloutEngine,
    policy: torch.nn.Module,
    processor: Any,
    unit: _Unit,
    prompts: list[Prompt],
    protocol: Protocol,
    accelerator: Accelerator,
) -> list[Answer]:
    """The answers of a unit, graded."""
    task, view, count = unit.task, unit.view, protocol.samples(unit.view)
    seeds = [
        derived_generator(protocol.seed, task.name, prompt.sample.id, view, sample).initial_seed()
        for prompt in prompts
        for sample in range(count)
    ]
    sampling = protocol.sampling(task.sampling)
    with accelerator.autocast():
        completions = engine.generate(prompts, count, sampling, seeds)
        divergences: list[float | None] = [None] * len(completions)
        if view == CLEAN and protocol.kl_view:
            temperature = protocol.temperature or 1.0
            values, _ = visual_dependence(policy, prompts, completions, count, temperature, protocol.max_tokens)
            divergences = values.double().sum(-1).tolist()
    opened, texts = opened_tag(processor), [completion.text for completion in completions]
    references = [prompt.sample.answer for prompt in prompts for _ in range(count)]
    verdicts = accuracy_rewards(texts, references, protocol.grader)
    hashes = [_hash(prompt, processor, task) for prompt in prompts]
    return [
        Answer(
            benchmark=task.name,
            id=prompts[i // count].sample.id,
            view=view,
            sample=i % count,
            seed=seeds[i],
            prompt=hashes[i // count],
            answer=references[i],
            response=completion.text,
            extracted=last_boxed(completion.text),
            verdict=verdicts[i],
            format=format_reward(opened + completion.text),
            tokens=len(completion.token_ids),
            finished=completion.finished,
            perception_kl=divergences[i],
            tags=prompts[i // count].sample.tags,
        )
        for i, completion in enumerate(completions)
    ]


def _hash(prompt: Prompt, processor: Any, task: Task) -> str:
    """Of the text and the pixels that the model was shown."""
    sample = prompt.sample
    images = [part for image in sample.images for part in (f"{image.size}", image.tobytes())]
    return digest(chat_text(sample, processor, task.suffix(sample.problem)), *images)
