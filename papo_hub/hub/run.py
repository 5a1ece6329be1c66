"""A run folder → the folder that is pushed → a version on the Hub.

What is pushed is `RUN/model` as it lies there. `prepare` puts beside its weights what a version needs to be trusted:
the card, the figures, the resolved recipe, the metrics of every step, the evaluation, the provenance.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import yaml
from filelock import FileLock

from papo_hub.card import check_card, method_name, write_card, write_eval_results
from papo_hub.card.files import recipe
from papo_hub.hub.client import Client, HubError
from papo_hub.hub.folder import listing
from papo_hub.hub.publish import Version, publish
from papo_hub.lora import is_adapter
from papo_hub.modeling import PapoForConditionalGeneration, load_processor
from papo_hub.redaction import printable, public_path, redact

FIGURES = ("overview.png", "reward.png", "perception.png", "before_after.png", "example.png")
PLACES = ("model_name_or_path", "dataset_name", "eval_dataset_name", "output_dir", "resume_from_checkpoint")


def push_run(
    run: Path,
    repo_id: str,
    *,
    revision: str = "main",
    tag: str | None = None,
    private: bool = False,
    format: str = "plain",
    client: Client | None = None,
    say: Callable[[str], None] = print,
) -> Version:
    """Push a finished run as one version.

    Args:
        run: a run folder with `model/`.
        repo_id: OWNER/NAME; created where it does not exist.
        revision: the branch, one per variant (`gamma-0.02`).
        tag: one per release (`v1.0`); never moved.
        format: `plain`, which loads without papo_hub; `papo`: the wrapper with its code beside it; `adapter`: of a run that
            trained one, the LoRA adapter alone.

    Raises:
        HubError: see `publish`; or the folder is no finished run.
    """
    run = Path(run)
    with preparing(run):
        folder, message = prepared(run, repo_id, revision, tag, format), describe(run)
        return publish(
            folder, repo_id, branch=revision, tag=tag, message=message, private=private, client=client, say=say
        )


@contextmanager
def preparing(run: Path) -> Iterator[None]:
    """One at a time works on a run's model folder, whose card names one version. Raises HubError where it cannot write."""
    try:
        with FileLock(run / "model.lock") if run.is_dir() else nullcontext():
            yield
    except OSError as error:
        raise HubError(
            f"Could not prepare {run}: {error.strerror or error} ({error.filename or run}). Nothing was sent. "
            "Free some space, or copy the run to a folder that you may write to."
        ) from None
    except ValueError as error:  # one of its files does not hold what its name says
        raise HubError(f"{run} cannot be pushed: {error}") from None


def prepared(run: Path, repo_id: str, revision: str, tag: str | None, format: str = "plain") -> Path:
    """The folder to push, ready: `RUN/model`, or `RUN/model-papo` for the wrapper format, or `RUN/adapter`. Raises HubError."""
    run = Path(run)
    folder = run / "model"
    if not (folder / "config.json").is_file() or not (run / "config.yaml").is_file():
        raise HubError(
            f"{run} is no finished run: it has no {'model/' if (run / 'config.yaml').is_file() else 'config.yaml'}. "
            "Finish it (--resume_from_checkpoint latest); the model is written at its end."
        )
    if format == "papo":
        folder = wrapped(folder, run / "model-papo")
    elif format == "adapter":
        folder = run / "adapter"
        if not is_adapter(folder):
            raise HubError(
                f"{run} has no adapter/: it was trained without LoRA (lora_rank). Push the model: --format plain."
            )
    return prepare(run, folder, repo_id, tag or (None if revision == "main" else revision))


def prepare(run: Path, folder: Path, repo_id: str, revision: str | None) -> Path:
    """Put beside the weights in `folder` everything else of a version; returns `folder`.

    Raises HubError where the card that comes of it does not hold its own checks.
    """
    (folder / "config.yaml").write_text(public_recipe(run), encoding="utf-8")
    for name in ("metrics.jsonl", "evaluation.json", *(f"figures/{figure}" for figure in FIGURES)):
        _beside(run / name, folder / name)
    if (run / "provenance.json").is_file():
        record = json.loads((run / "provenance.json").read_text(encoding="utf-8"))
        record["command"] = " ".join(public_path(word) for word in redact(record.get("command", "")).split(" "))
        (folder / "provenance.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    write_eval_results(run, folder)
    card = write_card(run, repo_id, revision, folder)
    if problems := check_card(card):
        raise HubError(f"The card {card} does not hold: {'; '.join(problems)}.")
    return folder


def wrapped(plain: Path, folder: Path) -> Path:
    """The wrapper format of a plain model folder, with the code that loads it without papo_hub."""
    partial = folder.with_name(f"partial-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    PapoForConditionalGeneration.from_backbone(plain, dtype="auto").save_pretrained(partial)
    load_processor(plain).save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def listed(folder: Path) -> str:
    """What would be sent, as text: size in bytes, sha256, path."""
    items = listing(folder)
    lines = [f"{item.size:>13,}  {item.sha256}  {printable(item.path)}" for item in items]
    return "\n".join([*lines, f"{sum(item.size for item in items):>13,}  bytes in {len(items)} files of {folder}"])


def describe(run: Path) -> str:
    """A commit message: the variant and how long it was trained."""
    config = recipe(run)
    name = method_name(config.get("objective")) or "papo_hub"
    gamma = f", gamma {config['gamma']:g}" if config.get("gamma") else ""
    metrics = run / "metrics.jsonl"
    steps = sum(1 for _ in metrics.open(encoding="utf-8")) if metrics.is_file() else 0
    return f"{name}{gamma}, {steps} steps"


def _beside(source: Path, target: Path) -> None:
    """`target` is a copy of `source`, and absent where that is."""
    if source == target:
        return
    if source.is_file():
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, target)
    else:
        target.unlink(missing_ok=True)


def public_recipe(run: Path) -> str:
    """The resolved recipe without the folders of the machine it ran on."""
    config = recipe(run)
    config |= {key: public_path(config[key]) for key in PLACES if isinstance(config.get(key), str)}
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
