"""The supervised start: imitate written solutions, so that reinforcement learning has something to select from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from papo_hub.batch import Completion, Prompt, pad_completions
from papo_hub.config import ConfigError, key
from papo_hub.data import check_row, encode
from papo_hub.digits import DigitRows
from papo_hub.modeling import load_processor, load_vlm
from papo_hub.modeling.tiny import build_tiny
from papo_hub.objectives import reduce
from papo_hub.plugins import global_counts, syncing
from papo_hub.preparation import check_sees, columns, prompt_suffix
from papo_hub.randomness import derived_generator
from papo_hub.rows import load_rows
from papo_hub.shared_prefix import shared_prefix_logprobs


@dataclass
class WarmupConfig:
    """Every key of a warm-up recipe."""

    output_dir: str = key(help="where the model folder is written")
    model_name_or_path: str | None = key(None, "the model to start from; null: the tiny model with random weights")
    dataset_name: str = key("digits", "a dataset with a solution column, or `digits`")
    dataset_split: str = key("train", "its split")
    solution_column: str = key("solution", "column with the response to imitate")
    problem_column: str = key("problem", "column with the question")
    answer_column: str = key("answer", "column with the answer")
    images_column: str = key("images", "column with the images")
    prompt_suffix: str | None = key(None, "appended to each problem; null: the request for <think> and \\boxed{}")
    rows: int = key(2048, "the first so many rows are used")
    digit_scans: int | None = key(None, "digits only: show only the first so many scans; null: all of the split")
    hide_hinted: float = key(0.0, "digits only: probability with which a digit that the text carries is blackened")
    max_steps: int = key(300, "optimizer steps")
    batch_size: int = key(64, "rows of a step, over all processes")
    learning_rate: float = key(3e-3, "AdamW's learning rate, decayed linearly to 0")
    max_grad_norm: float = key(1.0, "gradient clipping")
    seed: int = key(42, "of weights and order")

    def __post_init__(self) -> None:
        for name in ("rows", "max_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} must be at least 1.")


def warm_up(config: WarmupConfig) -> Path:
    """Train, and write a plain model folder with its processor. Runs on every rank. Returns the folder.

    Raises:
        ConfigError: a batch that does not divide among the processes, data without solutions, or no model to start from.
    """
    accelerator = Accelerator()
    rank, world = accelerator.process_index, accelerator.num_processes
    if config.batch_size % world:
        raise ConfigError(f"batch_size: {config.batch_size} does not divide among {world} processes.")
    folder = Path(config.output_dir)
    start = config.model_name_or_path
    if start is None:
        start = folder / "random"
        if accelerator.is_main_process:
            build_tiny(start, config.seed)
        accelerator.wait_for_everyone()
    check_sees(str(start), None, "model_name_or_path")
    processor = load_processor(start)
    model = load_vlm(start, dtype=torch.float32)
    examples = _examples(config, processor)

    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=config.max_steps)
    policy, optimizer = accelerator.prepare(model, optimizer)
    policy.train()
    bar = tqdm(range(config.max_steps), desc="warm-up", disable=not accelerator.is_main_process, dynamic_ncols=True)
    losses = []
    for step in bar:
        generator = derived_generator(config.seed, "warm-up", step)
        chosen = torch.randint(len(examples), (config.batch_size,), generator=generator).tolist()
        prompts, targets = zip(*(examples[i] for i in chosen[rank::world]), strict=True)
        ids, mask = pad_completions(list(targets), processor.tokenizer.pad_token_id or 0)
        with syncing(accelerator, policy, last=True):
            with accelerator.autocast():
                logprobs = shared_prefix_logprobs(policy, [prompt.clean for prompt in prompts], ids, mask)
            loss = reduce.token_mean(-logprobs, mask.to(logprobs.device), global_counts(accelerator, mask).tokens)
            accelerator.backward(loss * world)
        accelerator.clip_grad_norm_(policy.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        losses.append(accelerator.reduce(loss.detach(), "sum").item())
        bar.set_postfix(loss=f"{losses[-1]:.3f}")
    if accelerator.is_main_process:
        accelerator.unwrap_model(policy).save_pretrained(folder)
        processor.save_pretrained(folder)
        (folder / "warmup.json").write_text(json.dumps({"loss": losses}), encoding="utf-8")
    accelerator.wait_for_everyone()
    return folder


def _examples(config: WarmupConfig, processor) -> list[tuple[Prompt, Completion]]:
    """Each row as a prompt and the solution to imitate, which ends in the end-of-sequence token."""
    if config.dataset_name == "digits":
        table = DigitRows(config.dataset_split, config.rows, config.seed, config.digit_scans, config.hide_hinted)
        root = None
    else:
        rows = load_rows(config.dataset_name, config.dataset_split, columns(config))
        table, root = rows.table, rows.root
    examples = []
    for index in tqdm(range(min(config.rows, len(table))), desc="encoding", leave=False, dynamic_ncols=True):
        row = table[index]
        solution = row.get(config.solution_column)
        if not isinstance(solution, str):
            raise ConfigError(
                f"row {index} of {config.dataset_name} has no text in solution_column: {config.solution_column}."
            )
        ids = processor.tokenizer(solution, add_special_tokens=False).input_ids + [processor.tokenizer.eos_token_id]
        prompt = encode(check_row(row, root), processor, prompt_suffix(config))
        examples.append((prompt, Completion(ids, solution, True)))
    return examples
