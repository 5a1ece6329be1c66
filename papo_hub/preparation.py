"""What a run starts from: checks that need no weights, data, processor, models, and the record of how it was made."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from transformers import AutoModelForImageTextToText

from papo_hub.checkpoint import find_checkpoint
from papo_hub.config import ConfigError, TrainConfig
from papo_hub.data import PROMPT_SUFFIX
from papo_hub.digits import DigitRows
from papo_hub.files import replace_file
from papo_hub.hub.cache import read_commit
from papo_hub.hub.resume import SCHEME, fetch_checkpoint
from papo_hub.lora import add_adapter, is_adapter, load_adapter
from papo_hub.modeling import UntrustedModel, check_model_files, load_processor, load_vlm, read_config
from papo_hub.parts import freeze
from papo_hub.plugins import PerceptionPlugin, on_main
from papo_hub.redaction import redacted
from papo_hub.rows import Rows, StreamedRows, load_rows, stream_rows
from papo_hub.stream import PromptStream
from papo_hub.tracking import provenance


def check_model(config: TrainConfig) -> None:
    """Refuse a model that cannot see, before its weights load. Raises ConfigError."""
    check_sees(config.model_name_or_path, config.model_revision, "model_name_or_path")


def check_sees(name_or_path: str, revision: str | None, key: str) -> None:
    """Refuse what is no vision-language model, or not only numbers; `key` is what the user calls it. Raises ConfigError."""
    try:
        model_config = read_config(name_or_path, revision=revision)
        sees = type(model_config) in AutoModelForImageTextToText._model_mapping
        if sees:
            check_model_files(name_or_path, revision=revision)
    except UntrustedModel as error:
        raise ConfigError(f"{key}: {error}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{key}: no model at {name_or_path!r}: {str(error).splitlines()[0]} "
            "For the tiny recipes, run recipes/warmup.py first (or papo-hub quickstart, which does)."
        ) from None
    if not sees:
        raise ConfigError(
            f"{key}: {name_or_path} is a {model_config.model_type} model, which reads no images; take a vision-language "
            "model such as Qwen/Qwen2.5-VL-3B-Instruct."
        )


def check_run_folder(run: Path, checkpoint: Path | None, config: TrainConfig) -> None:
    """Refuse to write a new run over an old one. Raises ConfigError."""
    if checkpoint is None and (run / "metrics.jsonl").exists() and config.resume_from_checkpoint is None:
        raise ConfigError(
            f"output_dir: {run} already holds a run. Continue it with --resume_from_checkpoint latest, "
            "or choose another --output_dir."
        )


def chosen_checkpoint(run: Path, config: TrainConfig, accelerator: Accelerator) -> Path | None:
    """The checkpoint to resume from, if any. Runs on every rank.

    Raises as `fetch_checkpoint` and `find_checkpoint`.
    """
    address = config.resume_from_checkpoint
    if address and address.startswith(SCHEME):
        with accelerator.main_process_first():  # what lies on the Hub is brought here once
            address = str(fetch_checkpoint(address, run))
    # It reads all of a checkpoint, to check it: once is enough.
    return on_main(accelerator, lambda: find_checkpoint(address, run / "checkpoints"))


def training_rows(config: TrainConfig) -> Rows | StreamedRows:
    """The training data. Raises FileNotFoundError or ValueError, as `load_rows`."""
    if config.dataset_name == "digits":
        if config.streaming:
            raise ConfigError("streaming: the digits task is made on the spot, there is nothing to stream; remove it.")
        return Rows(DigitRows(config.dataset_split, seed=config.seed))
    read = stream_rows if config.streaming else load_rows
    return read(config.dataset_name, config.dataset_split, columns(config), config.dataset_revision)


def recipe_processor(config: TrainConfig) -> Any:
    """The processor of the model, with the recipe's pixel limits."""
    limits = pixel_limits(config)
    return load_processor(config.model_name_or_path, revision=config.model_revision, padding_side="left", **limits)


def prompt_stream(
    rows: Rows | StreamedRows, processor: Any, config: TrainConfig, perception: PerceptionPlugin
) -> PromptStream:
    """The training prompts in their order, with the views that the perception terms need."""
    return PromptStream(
        rows,
        processor,
        config.seed,
        prompt_suffix=prompt_suffix(config),
        max_prompt_length=config.max_prompt_length,
        mask=perception.mask,
        noise=perception.noise,
        max_skipped_share=config.max_skipped_share,
        num_workers=config.dataloader_num_workers,
        shuffle_buffer_size=config.shuffle_buffer_size,
    )


def steps_of(config: TrainConfig, rows: int | None) -> int:
    """Rollout batches of the run: max_steps, or what num_train_epochs over `rows` rows makes.

    None: nobody knows how many rows there are. Raises ConfigError where max_steps is null then.
    """
    if rows is None and config.max_steps is None:
        raise ConfigError(
            "max_steps: a streamed dataset does not say how many rows it has, so epochs cannot be turned into steps. "
            "Set max_steps, or streaming: false."
        )
    return config.max_steps or max(int(config.num_train_epochs * rows / config.prompts_per_step), 1)


def columns(config: TrainConfig) -> dict[str, str]:
    return {"problem": config.problem_column, "answer": config.answer_column, "images": config.images_column}


def prompt_suffix(config: TrainConfig) -> str:
    return PROMPT_SUFFIX if config.prompt_suffix is None else config.prompt_suffix


def pixel_limits(config: TrainConfig) -> dict[str, Any]:
    """The processor's `size`, where the recipe sets pixel limits."""
    if config.min_pixels is None and config.max_pixels is None:
        return {}
    return {"size": {"shortest_edge": config.min_pixels, "longest_edge": config.max_pixels}}


def load_model(
    config: TrainConfig, checkpoint: Path | None = None, dtype: torch.dtype | None = None
) -> torch.nn.Module:
    """The model of the recipe, or that of a checkpoint, in the recipe's dtype unless another is given; what the recipe
    freezes is frozen, and its adapter in place: a new one, or the checkpoint's.

    Raises ConfigError where its weights are no safetensors, where the checkpoint has an adapter and the recipe none or the
    other way round, and as `freeze` and `add_adapter`.
    """
    adapter = config.lora_rank > 0
    if checkpoint is not None and is_adapter(checkpoint) != adapter:
        raise ConfigError(
            f"resume_from_checkpoint: {checkpoint} holds {'a model' if adapter else 'a LoRA adapter'}, but lora_rank is "
            f"{config.lora_rank}; write that of its run (its config.yaml)."
        )
    whole = None if adapter else checkpoint
    try:
        model = load_vlm(
            whole or config.model_name_or_path,
            revision=None if whole else config.model_revision,
            dtype=dtype or getattr(torch, config.dtype),
            attn_implementation=config.attn_implementation,
        )
    except UntrustedModel as error:
        raise ConfigError(f"{'resume_from_checkpoint' if whole else 'model_name_or_path'}: {error}") from None
    freeze(model, config.frozen_parts)
    if adapter:
        add_adapter(model, config)
        if checkpoint is not None:
            load_adapter(model, checkpoint)
    if config.activation_checkpointing:
        model.gradient_checkpointing_enable()
    return model


def load_reference(config: TrainConfig) -> torch.nn.Module:
    """The reference model: the recipe's, in bfloat16 where the policy computes in it."""
    return load_model(config, dtype=torch.bfloat16 if config.mixed_precision == "bf16" else None)


def write_provenance(run: Path, config: TrainConfig, num_processes: int, resumed: bool) -> str:
    """config.yaml and provenance.json: enough to make the run again. Returns the name by which trackers know the run.

    The name is unique and stays the same when the run is resumed, so that its curves go on instead of starting anew.
    """
    file, record = run / "provenance.json", provenance(config, num_processes)
    record["model_commit"] = read_commit(config.model_name_or_path, config.model_revision, "model")
    record["dataset_commit"] = read_commit(config.dataset_name, config.dataset_revision, "dataset")
    now = record["started"]
    record["run"] = f"{run.parent.name}-{run.name}-{now}".strip("-")
    if resumed and file.exists():
        first = json.loads(file.read_text(encoding="utf-8"))
        record |= {"run": first["run"], "started": first["started"], "resumed": [*first.get("resumed", []), now]}
    run.mkdir(parents=True, exist_ok=True)
    # A recipe may name a place by a link with a password in it; what is written is read by others.
    replace_file(run / "config.yaml", yaml.safe_dump(redacted(asdict(config)), sort_keys=False, allow_unicode=True))
    replace_file(file, json.dumps(redacted(record), indent=1))
    return record["run"]
