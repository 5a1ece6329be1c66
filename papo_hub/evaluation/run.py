"""`papo-hub evaluate`: a model and benchmarks → answers.jsonl, results.json, report.md and pictures in one folder."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import nn
from transformers import ProcessorMixin

from papo_hub.card import fingerprint, write_benchmark_results, write_entry
from papo_hub.config import ConfigError
from papo_hub.evaluation.answers import FILE, Answer, Transcript, begun, read_answers
from papo_hub.evaluation.benchmarks import Benchmark, load, select
from papo_hub.evaluation.protocol import Protocol, check_grader
from papo_hub.evaluation.report import summary, write_report
from papo_hub.evaluation.results import tabulate
from papo_hub.evaluation.runner import Skipped, Task, answer
from papo_hub.evaluation.settings import (
    SETTINGS,
    describe,
    describe_numerics,
    joined,
    read,
    read_settings,
    settings_of,
    write,
)
from papo_hub.evaluation.views import CLEAN
from papo_hub.hub.cache import read_commit
from papo_hub.modeling import load_processor, load_vlm
from papo_hub.preparation import check_sees
from papo_hub.rewards import accuracy_rewards, last_boxed
from papo_hub.rollout import Sampling, TransformersEngine

RESULTS = "results.json"
PATIENCE = timedelta(days=2)  # of a process for the others; the backends' own is 10 to 30 minutes


@dataclass(frozen=True)
class Request:
    """What is asked of an evaluation."""

    model: str  # a run, a model folder, or a Hub id
    benchmarks: tuple[str, ...] = ("tiny",)
    protocol: Protocol = field(default_factory=Protocol)
    revision: str | None = None
    output_dir: Path | None = None
    limit: int | None = None  # problems of each benchmark; at least 1
    split: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    prompt_suffix: str | None = None  # None: the benchmark's, or the run's, or the standard one
    min_pixels: int | None = None
    max_pixels: int | None = None
    dtype: str = "auto"
    attn_implementation: str | None = None


@dataclass(frozen=True)
class Model:
    """Where a model lies, and the recipe it was trained with if it is that of a run."""

    place: str
    revision: str | None
    label: str
    folder: Path  # where its evaluation goes unless told otherwise
    recipe: dict[str, Any] = field(default_factory=dict)


def find_model(name: str, revision: str | None = None) -> Model:
    """The model of a run folder, a model folder, or a Hub id. Raises ConfigError where it is none of them."""
    path = Path(name).expanduser()
    if path.is_dir():
        if revision:
            raise ConfigError(f"--revision names a version of a Hub repository, but {path} is a folder: remove it.")
        label = "/".join(path.absolute().parts[-2:])
        if (path / "config.json").is_file():
            return Model(f"{path}", None, label, Path("evaluations", label.replace("/", "-")))
        if (path / "config.yaml").is_file():
            if not (path / "model" / "config.json").is_file():
                raise ConfigError(
                    f"The run {path} has no model yet: its training is not over. Finish it (--resume_from_checkpoint "
                    f"latest), or name one of its checkpoints, {path}/checkpoints/*."
                )
            return Model(f"{path / 'model'}", None, label, path / "evaluation" / "final", _recipe(path / "config.yaml"))
        raise ConfigError(f"{path} is neither a model (config.json) nor a run (config.yaml).")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name, re.ASCII) or name.startswith("."):
        raise ConfigError(f"There is no model or run at {name!r}, and it is no Hub id (OWNER/NAME) either.")
    label = name + (f"@{revision}" if revision else "")
    return Model(name, revision, label, Path("evaluations", re.sub(r"[^\w.-]", "--", label)))


def _recipe(file: Path) -> dict[str, Any]:
    try:
        recipe = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError):
        recipe = None
    if not isinstance(recipe, dict):
        raise ConfigError(f"{file} is damaged, so how its model was trained is unknown: name {file.parent / 'model'}.")
    return recipe


def evaluate(request: Request, say: Callable[[str], None] = print) -> Path:
    """Answer, grade, tabulate and report. Runs on every rank. What the folder holds already is not answered again.

    Returns:
        The folder, with settings.json, answers.jsonl, results.json, report.md and figures/.

    Raises:
        ConfigError: an option that cannot be, a model without eyes or files, a folder that holds another evaluation.
        FileNotFoundError, DataError: a dataset that is not there or cannot be used.
        AnswersError: a transcript with a wrong line.
    """
    if request.limit is not None and request.limit < 1:
        raise ConfigError(f"limit: {request.limit} must be at least 1.")
    model = find_model(request.model, request.revision)
    pixels = _pixel_limits(request, model.recipe)
    benchmarks = select(request.benchmarks, columns=request.columns, split=request.split)
    check_sees(model.place, model.revision, "MODEL")
    # Shares of the work differ by hours on a full benchmark; who has finished waits. A process that dies ends the launch.
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)])
    with accelerator.main_process_first():  # what is downloaded is downloaded once
        rows = {benchmark.name: load(benchmark, request.limit) for benchmark in benchmarks}
        processor, network = load_model(model, request)
    network = network.to(accelerator.device)

    benchmarks = [
        replace(benchmark, prompt_suffix=_suffix(benchmark, request, model.recipe)) for benchmark in benchmarks
    ]
    identity = {
        "name": model.label,
        "revision": model.revision,
        "commit": read_commit(model.place, model.revision, "model"),
        "weights": fingerprint(Path(model.place)),
        "base": model.recipe.get("model_name_or_path"),
    }
    numerics = describe_numerics(network, accelerator, pixels)
    settings = describe(identity, benchmarks, request.protocol, request.limit, numerics, accelerator.num_processes)
    folder = request.output_dir or model.folder
    settings = joined(folder, settings)
    accelerator.wait_for_everyone()  # everyone has read it before it changes
    if accelerator.is_main_process:
        write(folder / SETTINGS, settings)
    tasks = [
        Task(
            benchmark.name,
            rows[benchmark.name],
            request.limit,
            benchmark.prompt_suffix,
            Sampling(max_completion_length=benchmark.max_completion_length),
        )
        for benchmark in benchmarks
    ]
    engine = TransformersEngine(network, processor.tokenizer, request.protocol.batch_size)
    answers, skipped = answer(engine, network, processor, tasks, request.protocol, accelerator, folder)
    if accelerator.is_main_process:
        finish(folder, answers, settings, skipped, say)
    accelerator.wait_for_everyone()
    return folder


def regrade(source: Path, grader: str, output_dir: Path | None = None, say: Callable[[str], None] = print) -> Path:
    """The report of a transcript whose answers are graded anew, without a model. Returns its folder.

    `source` is an answers.jsonl or the folder of one, and stays as it is. Raises FileNotFoundError, AnswersError, or
    ConfigError: an unknown grader, nothing to grade, a folder that holds answers of its own.
    """
    check_grader(grader)
    home = (source if source.is_dir() else source.parent).resolve()
    answers = read_answers(source)
    settings = read_settings(home) or settings_of(answers)
    answers = _asked_for(answers, settings)
    if not any(answer.view == CLEAN for answer in answers):
        raise ConfigError(f"{source} holds no answer to a clean image: name an answers.jsonl that does, or its folder.")
    settings |= {"regraded_from": f"{source}", "protocol": settings["protocol"] | {"grader": grader}}
    verdicts = accuracy_rewards([a.response for a in answers], [a.answer for a in answers], grader)
    graded = [
        replace(answer, verdict=verdict, extracted=last_boxed(answer.response))
        for answer, verdict in zip(answers, verdicts, strict=True)
    ]
    folder = output_dir or home.with_name(f"{home.name}-{grader}")
    if folder.resolve() == home or begun(folder) and "regraded_from" not in (read_settings(folder) or {}):
        raise ConfigError(f"{folder} holds answers of a model, which would be lost: choose another --output_dir.")
    (folder / FILE).unlink(missing_ok=True)
    Transcript(folder).append(graded)
    write(folder / SETTINGS, settings)
    changed = sum(a.verdict != b.verdict for a, b in zip(answers, graded, strict=True))
    say(f"{len(graded)} answers graded anew by {grader}: {changed} verdicts changed.")
    skipped = [Skipped(**row) for row in (read(home / RESULTS) or {}).get("skipped", [])]
    finish(folder, graded, settings, skipped, say)
    return folder


def finish(
    folder: Path,
    answers: list[Answer],
    settings: dict[str, Any],
    skipped: list[Skipped],
    say: Callable[[str], None] | None,
) -> dict[str, Any]:
    """Write results.json, report.md, figures/, and what a card and the Hub take; say the table. Returns the results."""
    results = tabulate(answers, settings, skipped)
    write(folder / RESULTS, results)
    write_entry(results, folder)
    write_benchmark_results(results, folder)
    report = write_report(folder)
    if say is not None:
        say(f"{summary(results)}\n\nThe report is {report}.")
    return results


def _suffix(benchmark: Benchmark, request: Request, recipe: dict[str, Any]) -> str:
    """Asked for; else what the table says; else, on a user's own data, what the run was trained with."""
    if request.prompt_suffix is not None:
        return request.prompt_suffix
    trained_with = recipe.get("prompt_suffix")
    return trained_with if benchmark.group == "local" and trained_with is not None else benchmark.prompt_suffix


def load_model(model: Model, request: Request) -> tuple[ProcessorMixin, nn.Module]:
    """(processor, network) to ask, not to train, on the CPU, with the run's limits of pixels unless others are asked for.

    Raises ConfigError where files are missing or an option does not fit the model.
    """
    pixels = _pixel_limits(request, model.recipe)
    size = {} if pixels is None else {"size": dict(zip(("shortest_edge", "longest_edge"), pixels, strict=True))}
    try:
        processor = load_processor(model.place, revision=model.revision, padding_side="left", **size)
        network = load_vlm(
            model.place,
            revision=model.revision,
            dtype=request.dtype,
            attn_implementation=request.attn_implementation,
        )
        return processor, network.eval().requires_grad_(False)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"MODEL: {model.place} cannot be loaded: {str(error).strip().splitlines()[0]}") from error


def _pixel_limits(request: Request, recipe: dict[str, Any]) -> list[int] | None:
    """[least, most] pixels of an image; None: the processor's own limits."""
    least = request.min_pixels or recipe.get("min_pixels")
    most = request.max_pixels or recipe.get("max_pixels")
    if (least is None) != (most is None):
        raise ConfigError("min_pixels and max_pixels go together: set both, or neither.")
    if least is not None and not 0 < least <= most:
        raise ConfigError(f"min_pixels: {least} must be at least 1 and at most max_pixels: {most}.")
    return None if least is None else [least, most]


def _asked_for(answers: list[Answer], settings: dict[str, Any]) -> list[Answer]:
    """The answers that results follow from: a transcript may hold more, of earlier benchmarks, views or a larger k."""
    names, protocol = {row["name"] for row in settings["benchmarks"]}, settings["protocol"]
    counts = {view: protocol["k" if view == CLEAN else "view_k"] for view in protocol["views"]}
    return [a for a in answers if a.benchmark in names and a.sample < counts.get(a.view, 0)]
