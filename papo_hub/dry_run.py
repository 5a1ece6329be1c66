"""What a recipe would do, without loading a weight: its arithmetic, its data, and the memory that it needs."""

from __future__ import annotations

import datasets
from transformers import AutoConfig, PreTrainedConfig

from papo_hub.config import TrainConfig, notices
from papo_hub.data import describe
from papo_hub.memory import GPUS, MemoryPlan, memory_plan
from papo_hub.modeling import read_config
from papo_hub.plugins import PerceptionPlugin
from papo_hub.preparation import check_model, columns, prompt_suffix, recipe_processor, steps_of, training_rows
from papo_hub.rows import DataError

# Where the Hub is out of reach: the sizes of the models that the recipes name, as their config.json has them.
KNOWN = {
    "Qwen/Qwen2.5-VL-3B-Instruct": {
        "model_type": "qwen2_5_vl",
        "text_config": {
            "vocab_size": 151936,
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        },
        "vision_config": {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 2048,
        },
        "tie_word_embeddings": True,
    },
    "Qwen/Qwen2.5-VL-7B-Instruct": {
        "model_type": "qwen2_5_vl",
        "text_config": {
            "vocab_size": 152064,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "tie_word_embeddings": False,
        },
        "vision_config": {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 3584,
        },
        "tie_word_embeddings": False,
    },
    "Qwen/Qwen3-VL-2B-Thinking": {
        "model_type": "qwen3_vl",
        "text_config": {
            "vocab_size": 151936,
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "tie_word_embeddings": True,
        },
        "vision_config": {
            "depth": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_heads": 16,
            "out_hidden_size": 2048,
            "deepstack_visual_indexes": [5, 11, 17],
        },
        "tie_word_embeddings": True,
    },
}

SUSTAINED = 50e12  # FLOP a second, assumed: a third of what a card of 24 GB does at its best in bfloat16 (about 150)


def dry_run_report(config: TrainConfig) -> str:
    """The report as text. Raises ConfigError or DataError for what would stop the real run, as far as it can be seen."""
    model_config, source = _model_config(config)
    plan = memory_plan(config, model_config, source)
    parts = [_arithmetic(config), _data(config), f"{plan.table()}\n{_work(config, plan)}"]
    parts += [f"note: {notice}" for notice in notices(config)]
    return "\n\n".join([*parts, "Nothing was trained: this was a dry run."])


def _model_config(config: TrainConfig) -> tuple[PreTrainedConfig, str]:
    if config.model_name_or_path in KNOWN:
        try:
            return read_config(config.model_name_or_path, revision=config.model_revision), "its config.json"
        except OSError:
            sizes = KNOWN[config.model_name_or_path]
            return AutoConfig.for_model(**sizes), "sizes known here (the Hub is out of reach)"
    check_model(config)
    return read_config(config.model_name_or_path, revision=config.model_revision), "its config.json"


def _arithmetic(config: TrainConfig) -> str:
    completions = config.prompts_per_update * config.num_generations
    fitting = [gpus for gpus in GPUS if config.prompts_per_update % gpus == 0]
    shares = ", ".join(f"{completions // gpus} on {gpus}" for gpus in fitting)
    return (
        f"objective     {config.objective}: gamma {config.gamma}, eta {config.eta_clean}/{config.eta_masked}, "
        f"beta {config.beta}, clip {config.epsilon}/{config.epsilon_high}\n"
        f"a step        {config.prompts_per_step} prompts × {config.num_generations} completions, "
        f"{config.updates_per_step} updates of {completions} completions\n"
        f"an update     the same on any number of processes: {shares}; each in micro-batches of at most "
        f"{config.max_tokens_per_micro_batch} tokens"
        + (f" and {config.micro_batch_size} completions" if config.micro_batch_size else "")
    )


def step_flop(config: TrainConfig, plan: MemoryPlan) -> float:
    """Floating-point operations of a step, at most: every prompt and completion at its full length, each prompt once.

    Two a parameter and token in a forward pass. A backward pass takes as many for the gradient of the activations, and again
    as many for that of the parameters, of which only the trained ones have one.
    """
    perception = PerceptionPlugin.from_config(config)
    tokens = config.prompts_per_step * (
        config.max_prompt_length + config.num_generations * config.max_completion_length
    )
    old = config.updates_per_step > 1 or perception.weighs_tokens
    sampled = config.dtype == "float32" and config.mixed_precision == "no"  # then sampling gives the old log-probs
    frozen = len(perception.frozen_views) + (perception.exact and not perception.live)
    once = 1 + (old and not sampled) + (config.beta > 0) + frozen  # sampling, old, reference, other views
    update = 1 + config.activation_checkpointing + 1 + plan.trained / plan.parameters
    views = 1 + len(perception.views) if perception.live else 1
    return 2 * plan.parameters * tokens * (once + views * update)


def _work(config: TrainConfig, plan: MemoryPlan) -> str:
    flop = step_flop(config, plan)
    return (
        f"work          {flop / 1e15:,.3g} PFLOP a step if every prompt and answer were as long as it may be: "
        f"{flop / SUSTAINED / 60:,.3g} minutes at {SUSTAINED / 1e12:g} TFLOP/s"
    )


def _data(config: TrainConfig) -> str:
    wanted = columns(config)
    try:
        if not config.streaming and (
            config.dataset_name == "digits"
            or "/" not in config.dataset_name
            or config.dataset_name.startswith((".", "/"))
        ):
            rows = training_rows(config)
            steps = f"{steps_of(config, len(rows))} steps"
            described = describe(rows, recipe_processor(config), prompt_suffix=prompt_suffix(config))
            return f"data          {config.dataset_name}, {steps}\n{described}"
        builder = datasets.load_dataset_builder(config.dataset_name, revision=config.dataset_revision)
    except (OSError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).splitlines()[0][:120]
        return (
            f"data          {config.dataset_name}: not checked, it cannot be reached from here ({reason})\n"
            f"              it must have the columns {', '.join(wanted.values())}"
        )
    features = builder.info.features or {}
    missing = [f"{column} ({name}_column)" for name, column in wanted.items() if features and column not in features]
    if missing:
        raise DataError(f"{config.dataset_name} lacks {', '.join(missing)}; it has {', '.join(features)}.")
    split = (builder.info.splits or {}).get(config.dataset_split)
    steps = f", {split.num_examples} rows, {steps_of(config, split.num_examples)} steps" if split else ""
    return (
        f"data          {config.dataset_name}{steps}; columns {', '.join(features) or 'unknown until it is downloaded'}"
    )
