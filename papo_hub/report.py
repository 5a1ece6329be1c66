"""What a finished run shows: the pictures, one example with its tokens coloured by visual dependence, and the card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from papo_hub.batch import Prompt
from papo_hub.card import write_card
from papo_hub.config import TrainConfig
from papo_hub.data import PLACEHOLDER
from papo_hub.evaluation.dependence import visual_dependence
from papo_hub.figures import (
    Example,
    plot_before_after,
    plot_curves,
    plot_example,
    plot_overview,
    read_evaluation,
    write_example,
)
from papo_hub.files import replace_folder
from papo_hub.lora import adapted, merged_weights, save_adapter
from papo_hub.modeling import PapoForConditionalGeneration
from papo_hub.modeling.configuration_papo import PERCEPTION_FIELDS
from papo_hub.randomness import derived_generator
from papo_hub.rollout import Sampling, TransformersEngine


def export_model(
    folder: Path,
    model: torch.nn.Module,
    processor: Any,
    config: TrainConfig,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """The trained model in its backbone's plain format, its config.json recording how it was trained; an adapter merged into
    it, in float32, and in `adapter` beside it as it is.

    `weights`: the model's state dict where it is not whole on this process.
    Written aside and renamed: a folder that is there is whole.
    """
    backbone = model.vlm if isinstance(model, PapoForConditionalGeneration) else model
    recorded = {name: getattr(config, name) for name in PERCEPTION_FIELDS}
    partial = folder.with_name(f"partial-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    exported = PapoForConditionalGeneration.from_backbone(backbone, **recorded)
    if adapted(model):
        exported.save_pretrained(partial, as_backbone=True, state_dict=dict(merged_weights(backbone)))
        description = json.loads((partial / "config.json").read_text(encoding="utf-8"))
        description["dtype"] = "float32"  # that of the merged weights, where the model's may be bfloat16
        (partial / "config.json").write_text(json.dumps(description, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        shutil.rmtree(aside := folder.with_name("partial-adapter"), ignore_errors=True)
        save_adapter(model, aside)
        processor.save_pretrained(aside)
        replace_folder(aside, folder.with_name("adapter"))
    else:
        exported.save_pretrained(partial, as_backbone=True, state_dict=weights)
    processor.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def finish_run(run: Path, model: torch.nn.Module, processor: Any, prompts: list[Prompt], config: TrainConfig) -> None:
    """Write figures/, example.json and README.md of a run whose training is over. Runs on the main process.

    The example is greedy, on the prompt among `prompts` (with both views) on whose answer the image has most effect;
    without a masked view there is none.
    """
    plot_curves(run)
    seeing = [prompt for prompt in prompts if prompt.masked is not None]
    if seeing:
        example = most_dependent(model, processor, seeing, config)
        write_example(run, example)
        plot_example(run / "figures" / "example.png", *example)
        plot_overview(run / "figures" / "overview.png", run)
    if evaluation := read_evaluation(run):
        plot_before_after(run / "figures" / "before_after.png", evaluation)
    write_card(run)


def most_dependent(model: torch.nn.Module, processor: Any, prompts: list[Prompt], config: TrainConfig) -> Example:
    """The greedy answer that depends most on its image, among those to `prompts`."""
    engine = TransformersEngine(model, processor.tokenizer, config.rollout_batch_size)
    generator = derived_generator(config.seed, "example")  # greedy decoding draws nothing from it
    completions = engine.generate(prompts, 1, Sampling(0, 1.0, config.max_completion_length), generator)
    dependence, mask = visual_dependence(
        model, prompts, completions, 1, config.temperature, config.max_tokens_per_micro_batch
    )
    chosen = int((dependence.sum(-1) / mask.sum(-1).clamp(min=1)).argmax())
    prompt, completion = prompts[chosen], completions[chosen]
    question = " ".join(prompt.sample.problem.replace(PLACEHOLDER, " ").split())
    return Example(
        prompt.sample.images[0],
        prompt.masked_images[0],
        [processor.tokenizer.decode([token]) for token in completion.token_ids],
        dependence[chosen][mask[chosen]].tolist(),
        f"{question}   (answer: {prompt.sample.answer})",
    )
