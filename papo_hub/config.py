"""One flat YAML recipe → a dataclass, each key open to `--key value` on the command line.

A key that does not exist is an error that names the nearest one; a contradiction is refused before anything is loaded.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from papo_hub.elsewhere import ELSEWHERE
from papo_hub.objectives import OBJECTIVES, Term, Weights, with_reduction


class ConfigError(ValueError):
    """A recipe that cannot be run: the message says which key, what is wrong with it, and what to write instead."""


def key(default: Any = MISSING, help: str = "", default_factory: Any = MISSING) -> Any:
    """A recipe key with its help text."""
    if default_factory is not MISSING:
        return field(default_factory=default_factory, metadata={"help": help})
    return field(default=default, metadata={"help": help})


DATASETS_BUILT_IN = ("digits",)

AT_LEAST_ONE = (
    "prompts_per_step",
    "prompts_per_update",
    "max_prompt_length",
    "max_sampling_tries",
    "shuffle_buffer_size",
    "max_tokens_per_micro_batch",
    "rollout_batch_size",
    "save_total_limit",
    "logging_steps",
    "sample_steps",
    "eval_samples",
    "max_skipped_updates",
    "lora_alpha",
)


@dataclass
class TrainConfig:
    """Every key of a training recipe. Where the concept is TRL's (GRPOConfig, TrainingArguments), so is the name."""

    # model and data
    model_name_or_path: str = key(help="a model folder or Hub id; any AutoModelForImageTextToText checkpoint")
    dataset_name: str = key(help="a Hub dataset id, a folder, a parquet or JSON-lines file, or `digits`")
    output_dir: str = key(help="the run folder")
    model_revision: str | None = key(None, "branch, tag or commit of the model")
    dtype: Literal["float32", "bfloat16"] = key("float32", "the precision the weights are kept and trained in")
    mixed_precision: Literal["no", "bf16"] = key("no", "bf16: forward passes in bfloat16 over float32 weights")
    attn_implementation: str | None = key(None, "passed to from_pretrained; null leaves the choice to transformers")
    activation_checkpointing: bool = key(False, "recompute activations in the backward pass: less memory, more time")
    freeze_vision_tower: bool = key(False, "do not train what turns pixels into features")
    freeze_projector: bool = key(False, "do not train what turns features into the text's embeddings (the merger)")
    freeze_language_model: bool = key(False, "do not train the language model, its embeddings and output layer")
    lora_rank: int = key(
        0, "r: train LoRA adapters of this rank, in the language model, and nothing else; 0: no adapters"
    )
    lora_alpha: int = key(32, "the adapters count alpha / r")
    lora_target_modules: str = key(
        "all-linear",
        "layers of the language model with an adapter, as q_proj,v_proj; all-linear: all but the output layer",
    )
    dataset_revision: str | None = key(None, "branch, tag or commit of the dataset")
    dataset_split: str = key("train", "split of the dataset")
    problem_column: str = key("problem", "column with the question, one <image> placeholder an image")
    answer_column: str = key("answer", "column with the answer that is graded against")
    images_column: str = key("images", "column with the image or the list of images")
    prompt_suffix: str | None = key(None, "appended to each problem; null: the request for <think> and \\boxed{}")
    min_pixels: int | None = key(None, "images are enlarged to at least this many pixels; null: the processor's own")
    max_pixels: int | None = key(None, "images are shrunk to at most this many pixels; null: the processor's own")
    max_skipped_share: float = key(0.1, "the run stops when a larger share of the rows cannot be used")
    max_prompt_length: int = key(4096, "tokens, image tokens included; a longer prompt is skipped")
    dataloader_num_workers: int = key(0, "processes a rank that read prompts ahead; 0: none, the GPU waits for them")
    streaming: bool = key(False, "read the dataset while training instead of downloading it first; needs max_steps")
    shuffle_buffer_size: int = key(1000, "rows among which a streamed dataset is shuffled")

    # objective
    objective: Literal[tuple(OBJECTIVES)] = key("papo_g", "the algorithm")
    gamma: float = key(0.0, "γ: weight of the perception KL")
    gamma_end: float | None = key(None, "γ at the end of its annealing; null: γ is fixed")
    gamma_annealing_ratio: float = key(0.5, "share of the run over which γ goes linearly to gamma_end")
    gamma_control: Literal["fixed", "adaptive"] = key(
        "fixed", "adaptive: γ is halved while the guard sees a sign or the alignment is negative, and comes back slowly"
    )
    alignment_steps: int = key(0, "steps between measurements of whether γ's term and the reward agree; 0: never")
    eta_clean: float = key(0.0, "η1: weight of the entropy of the clean view")
    eta_masked: float = key(0.0, "η2: weight of the entropy of the masked view")
    beta: float = key(0.0, "β: weight of the KL to the reference model; 0: there is none")
    epsilon: float = key(0.2, "lower clip range")
    epsilon_high: float = key(0.3, "upper clip range")
    delta: float | None = key(3.0, "dual clip for negative advantages; null: none")
    reduction: Literal["token", "sequence"] | None = key(None, "mean over tokens or completions; null: the objective's")
    estimator: Literal["sampled", "sampled_k2", "exact"] = key(
        "sampled", "perception KL from the sampled tokens: by k3, as in the paper's code, or k2; or over the vocabulary"
    )
    divergence: Literal["kl", "js"] = key("kl", "of the two views; js (Jensen-Shannon, at most ln 2): estimator exact")
    perception_weighting: Literal["none", "advantage", "shuffled"] = key(
        "none",
        "advantage: a completion's perception KL counts by its advantage | shuffled, a control: by another prompt's",
    )
    perception_top_p: float = key(1.0, "share of a completion's tokens whose perception KL counts: the largest")
    perception_clip: float | None = key(None, "nats that a token's perception KL counts at most; null: no limit")
    token_weighting: Literal["none", "vppo", "pgpo"] = key(
        "none", "weight of each token in the policy loss, by how much it depends on the image"
    )
    robustness: float = key(0.0, "λ: weight of the term that reads the image with noise (dvrp, grpo_v)")
    noise_level: float = key(0.1, "dvrp, grpo_v: share of the noisy image's variance that is noise, as in diffusion")
    masked_logprobs: Literal["frozen", "live"] = key(
        "frozen", "masked view: once a rollout, or with gradient an update"
    )
    mask_strategy: Literal["random", "semantic"] = key(
        "random", "which patches of the image are hidden: any, or those that mask_encoder attends to most"
    )
    mask_encoder: str | None = key(
        None, "mask_strategy semantic: a vision encoder with attention, as facebook/dinov2-base"
    )
    mask_ratio: float = key(0.6, "probability with which a patch turns black")
    mask_patch_size: int = key(14, "side of a masked patch, in pixels of the original image")

    # rollout and reward
    prompts_per_step: int = key(384, "prompts of one rollout batch, over all processes")
    prompts_per_update: int = key(128, "prompts of one optimizer step, over all processes")
    num_generations: int = key(5, "G: completions of a prompt")
    max_completion_length: int = key(2048, "tokens of a completion")
    min_completion_length: int = key(0, "tokens before a completion may end by itself")
    stop_on_boxed: bool = key(False, "end a completion once its \\boxed{...} is complete")
    temperature: float = key(1.0, "sampling temperature; log-probs are taken at the same temperature")
    top_p: float = key(1.0, "nucleus of the sampling; 1 samples from the whole distribution")
    format_weight: float = key(0.1, "weight of the format reward; accuracy has the rest")
    max_sampling_tries: int = key(20, "rollout batches tried by dynamic sampling before the run stops")
    rollout_batch_size: int = key(64, "completions decoded together in a process")
    rollout_engine: Literal["transformers", "vllm"] = key(
        "transformers", "what samples completions: the model itself, or vLLM with its weights (docs/vllm.md)"
    )
    vllm_mode: Literal["colocate", "server"] = key(
        "colocate", "vllm: in the training processes, each on its device, or in a server that is there already"
    )
    vllm_server_base_url: str | None = key(None, "vllm_mode server: where it is, as http://localhost:8000")
    vllm_server_weights_folder: str | None = key(
        None, "vllm_mode server: a folder that it sees under the same name, for the weights; null: they go by NCCL"
    )
    vllm_gpu_memory_utilization: float = key(0.3, "vllm: share of the device's memory that it takes while it samples")
    vllm_importance_sampling_correction: bool = key(
        True, "vllm: tokens count by how likely the policy finds them, ÷ vLLM, at most 2"
    )
    max_tokens_per_micro_batch: int = key(
        16384, "tokens of prompts and completions per pass and process; less: less memory, the same result"
    )
    micro_batch_size: int | None = key(None, "at most so many completions per pass and process; null: tokens decide")

    # optimization
    max_steps: int | None = key(None, "rollout batches to train on; null: num_train_epochs decides")
    num_train_epochs: float = key(2.0, "passes over the data, where max_steps is null")
    optim: Literal["adamw_torch", "adamw_torch_fused"] = key(
        "adamw_torch", "fused: all of AdamW's arithmetic in one kernel, which is faster on a GPU"
    )
    learning_rate: float = key(1e-6, "AdamW's learning rate")
    lr_scheduler_type: Literal["constant", "constant_with_warmup", "linear", "cosine", "polynomial"] = key(
        "constant", "the learning rate over the run; constant_with_warmup for warmup_steps"
    )
    warmup_steps: int = key(0, "optimizer steps of learning-rate warm-up")
    weight_decay: float = key(0.01, "AdamW's weight decay")
    max_grad_norm: float = key(1.0, "gradient clipping")
    max_skipped_updates: int = key(10, "the run stops after this many non-finite gradients in a row")
    seed: int = key(42, "of data order, masks and sampling")

    # the run
    save_steps: int = key(50, "steps between checkpoints; 0: only the last one")
    save_total_limit: int = key(2, "checkpoints kept")
    logging_steps: int = key(1, "steps between trackers' points; metrics.jsonl has every step")
    sample_steps: int = key(25, "steps between entries of samples.md")
    log_completions: bool = key(True, "write sample completions to samples.md")
    report_to: str | None = key(
        "", "trackers: trackio, tensorboard, wandb (with commas); none; empty: trackio if there"
    )
    max_time: str | None = key(None, "such as 3h30m: then the run saves and exits, to be resumed; null: no limit")
    guard: Literal["warn", "lower", "stop", "off"] = key(
        "warn", "on early signs of collapse: say so | halve gamma and go back | save and stop | do not look"
    )
    resume_from_checkpoint: str | None = key(None, "`latest`, a checkpoint folder, or hub://OWNER/NAME@REVISION")
    push_to_hub: bool = key(False, "push the finished run to hub_model_id; naming one is enough")
    hub_model_id: str | None = key(None, "OWNER/NAME: the run goes to this Hub repository; null: it stays here")
    hub_strategy: Literal["end", "every_save", "checkpoint"] = key(
        "end", "push at the end; also the model at every save; also what --resume_from_checkpoint hub://… needs"
    )
    hub_revision: str | None = key(None, "the branch to push to, one per variant (gamma-0.02); null: main")
    hub_private_repo: bool = key(False, "create the repository private")
    eval_dataset_name: str | None = key(None, "measured before and after training; null: not measured")
    eval_split: str = key("test", "its split")
    eval_problems: int | None = key(None, "its first n problems; null: all")
    eval_samples: int = key(8, "k of avg@k")

    def __post_init__(self) -> None:
        check(self)

    @property
    def dynamic_sampling(self) -> bool:
        """The DAPO family keeps only groups in which some but not all completions are right."""
        return self.objective in ("dapo", "papo_d", "dvrp")

    @property
    def frozen_parts(self) -> list[str]:
        """The parts of the model (papo_hub.parts) that are not trained."""
        return [part for part in ("vision_tower", "projector", "language_model") if getattr(self, f"freeze_{part}")]

    @property
    def updates_per_step(self) -> int:
        return self.prompts_per_step // self.prompts_per_update

    @property
    def algorithm(self) -> tuple[Term, ...]:
        """The terms of the objective, with the reduction that the recipe asks for."""
        algorithm = OBJECTIVES[self.objective]
        return algorithm if self.reduction is None else with_reduction(algorithm, self.reduction)

    @property
    def policy_weights(self) -> Weights:
        """The weights that have nothing to do with perception; the perception plugin adds the others."""
        return Weights(
            beta=self.beta,
            epsilon=self.epsilon,
            epsilon_high=self.epsilon_high,
            delta=self.delta,
            importance_correction=self.vllm_importance_sampling_correction,
        )

    def to_yaml(self) -> str:
        return yaml.safe_dump(asdict(self), sort_keys=False, allow_unicode=True)


def check(config: TrainConfig) -> None:
    """Refuse contradictions. Raises ConfigError. No comparison holds for NaN, so what is checked is what must hold."""

    def refuse(condition: bool, message: str) -> None:
        if condition:
            raise ConfigError(message)

    check_ranges(
        config,
        non_negative=("beta", "epsilon_high", "learning_rate", "weight_decay"),
        shares=("format_weight", "max_skipped_share"),
    )
    check_perception(config)
    check_rollout(config)
    for name in AT_LEAST_ONE:
        refuse(getattr(config, name) < 1, f"{name}: {getattr(config, name)} must be at least 1.")
    refuse(config.save_steps < 0, f"save_steps: {config.save_steps} must be at least 0 (0: only the last checkpoint).")
    refuse(
        config.dataloader_num_workers < 0,
        f"dataloader_num_workers: {config.dataloader_num_workers} must be at least 0 (0: no worker processes).",
    )
    refuse(config.warmup_steps < 0, f"warmup_steps: {config.warmup_steps} must be at least 0.")
    refuse(
        config.warmup_steps > 0 and config.lr_scheduler_type == "constant",
        "lr_scheduler_type: constant has no warm-up, but warmup_steps is set; write constant_with_warmup.",
    )
    refuse(
        (config.min_pixels is None) != (config.max_pixels is None),
        "min_pixels and max_pixels go together: set both, or neither.",
    )
    refuse(
        config.micro_batch_size is not None and config.micro_batch_size < 1,
        f"micro_batch_size: {config.micro_batch_size} must be at least 1, or null.",
    )
    refuse(
        config.eval_problems is not None and config.eval_problems < 1,
        f"eval_problems: {config.eval_problems} must be at least 1, or null for all.",
    )
    refuse(
        config.prompts_per_step % config.prompts_per_update != 0,
        f"prompts_per_step: {config.prompts_per_step} is not a multiple of prompts_per_update: "
        f"{config.prompts_per_update}; each rollout batch is split evenly into updates.",
    )
    refuse(not 0 <= config.epsilon < 1, f"epsilon: {config.epsilon} must lie in [0, 1).")
    refuse(
        config.delta is not None and not config.delta > 1, f"delta: {config.delta} must be above 1, or null for none."
    )
    refuse(not config.max_grad_norm > 0, f"max_grad_norm: {config.max_grad_norm} must be above 0.")
    refuse(config.max_steps is not None and config.max_steps < 1, f"max_steps: {config.max_steps} must be at least 1.")
    refuse(
        config.max_steps is None and not 0 < config.num_train_epochs < float("inf"),
        f"num_train_epochs: {config.num_train_epochs} must be above 0 and finite where max_steps is null.",
    )
    refuse(
        config.max_time is not None and not is_time(config.max_time),
        f"max_time: {config.max_time!r} is no time such as 3h30m, 90m or 1d12h.",
    )
    refuse(config.lora_rank < 0, f"lora_rank: {config.lora_rank} must be at least 0 (0: no adapters).")
    refuse(
        config.lora_rank > 0 and bool(config.frozen_parts),
        f"lora_rank: {config.lora_rank} trains adapters of the language model and nothing else, so there is nothing to "
        "freeze; remove freeze_*, or write lora_rank: 0.",
    )
    refuse(
        config.lora_rank > 0 and config.vllm_mode == "server" and config.vllm_server_weights_folder is None,
        "lora_rank: a server gets merged weights through a folder: set vllm_server_weights_folder, or write lora_rank: 0.",
    )
    refuse(
        len(config.frozen_parts) == 3,
        "freeze_vision_tower, freeze_projector and freeze_language_model together leave nothing to train; set one to false.",
    )
    refuse(config.alignment_steps < 0, f"alignment_steps: {config.alignment_steps} must be at least 0 (0: never).")
    for name, wanted in (
        ("alignment_steps", config.alignment_steps > 0),
        ("gamma_control", config.gamma_control != "fixed"),
    ):
        refuse(
            wanted and config.gamma == 0, f"{name}: {getattr(config, name)}, but gamma is 0, so there is nothing to it."
        )
    refuse(
        config.gamma_control == "adaptive" and config.guard == "off" and config.alignment_steps == 0,
        "gamma_control: adaptive needs something to go by; write guard: warn, or alignment_steps: 10.",
    )
    refuse(
        config.guard == "lower" and config.gamma == 0,
        "guard: lower halves gamma, but gamma is 0; write guard: warn or guard: stop.",
    )
    refuse(
        config.push_to_hub and config.hub_model_id is None,
        "push_to_hub: name the repository, hub_model_id: OWNER/NAME (which by itself is enough).",
    )
    refuse(
        config.hub_model_id is not None and not is_repository_id(config.hub_model_id),
        f"hub_model_id: {config.hub_model_id!r} must be OWNER/NAME in letters, digits, '-', '_' and '.'.",
    )
    for name in dict.fromkeys(term.weight for terms in OBJECTIVES.values() for term in terms if term.weight):
        value = getattr(config, name)
        refuse(value > 0 and name not in _weights(config.objective), _no_such_term(config.objective, name, value))
    useless = [term for term in config.algorithm if term.live and getattr(config, term.weight) > 0]
    refuse(
        bool(useless) and config.masked_logprobs == "frozen",
        f"masked_logprobs: frozen leaves {config.objective} without a gradient of its own; write masked_logprobs: live.",
    )


def _weights(objective: str) -> set[str]:
    """The keys that weigh its terms."""
    return {term.weight for term in OBJECTIVES[objective] if term.weight}


def _no_such_term(objective: str, name: str, value: float) -> str:
    """What to write instead: the nearest objective that has this one's terms and a term with that weight, if there is one."""
    ours = set(OBJECTIVES[objective])
    wider = [other for other, terms in OBJECTIVES.items() if ours <= set(terms) and name in _weights(other)]
    wider.sort(key=lambda other: len(OBJECTIVES[other]))
    instead = f"objective: {wider[0]}, or {name}: 0" if wider else f"{name}: 0"
    return f"{name}: {value}, but {objective} has no term of that weight; write {instead}."


def check_ranges(config: Any, non_negative: tuple[str, ...] = (), shares: tuple[str, ...] = ()) -> None:
    """Refuse numbers out of range, NaN included. Raises ConfigError."""
    for name in non_negative:
        value = getattr(config, name)
        if not 0 <= value < float("inf"):
            raise ConfigError(f"{name}: {value} must be a finite number of at least 0.")
    for name in shares:
        if not 0 <= getattr(config, name) <= 1:
            raise ConfigError(f"{name}: {getattr(config, name)} must lie between 0 and 1.")


def check_perception(config: Any) -> None:
    """Refuse perception settings that cannot work, of a recipe or of a plugin. Raises ConfigError."""
    check_ranges(
        config,
        ("gamma", "eta_clean", "eta_masked", "robustness"),
        ("mask_ratio", "gamma_annealing_ratio", "perception_top_p", "noise_level"),
    )
    if config.mask_patch_size < 1:
        raise ConfigError(f"mask_patch_size: {config.mask_patch_size} must be at least 1.")
    if config.gamma_end is not None:
        check_ranges(config, ("gamma_end",))
        if config.gamma == 0:
            raise ConfigError("gamma_end is set but gamma is 0: the annealing starts at gamma.")
    if config.mask_ratio == 0 and config.gamma > 0:
        raise ConfigError("mask_ratio: 0 masks nothing, so the perception KL would be 0; the paper uses 0.6.")
    if config.divergence == "js" and config.estimator != "exact":
        raise ConfigError("divergence: js is a sum over the vocabulary; write estimator: exact.")
    if config.perception_top_p == 0:
        raise ConfigError("perception_top_p: 0 leaves no token; write gamma: 0 for no perception KL, 1 for all tokens.")
    if config.perception_clip is not None and not config.perception_clip > 0:
        raise ConfigError(f"perception_clip: {config.perception_clip} must be above 0, or null for no limit.")
    if (config.mask_strategy == "semantic") != (config.mask_encoder is not None):
        raise ConfigError(
            "mask_encoder goes with mask_strategy: semantic, and that with it: name a vision encoder whose attention ranks "
            "the patches, such as facebook/dinov2-base, or write mask_strategy: random."
        )
    if config.robustness > 0 and config.noise_level == 0 and config.objective == "dvrp":
        raise ConfigError("noise_level: 0 adds no noise, so the robustness KL would be 0.")
    if config.robustness > 0 and config.estimator == "exact":
        raise ConfigError("robustness: the KL to the noisy image is estimated from samples; write estimator: sampled.")


def check_rollout(config: Any) -> None:
    """Refuse sampling settings that cannot work, of a recipe or of a plugin. Raises ConfigError."""
    if config.num_generations < 2:
        raise ConfigError(
            f"num_generations: {config.num_generations} leaves nothing to compare; advantages are relative to a group "
            "of at least 2 completions (the paper uses 5)."
        )
    if not 0 < config.temperature < float("inf"):
        raise ConfigError(f"temperature: {config.temperature} must be above 0: training samples completions.")
    if not 0 < config.top_p <= 1:
        raise ConfigError(f"top_p: {config.top_p} must lie in (0, 1].")
    if config.max_completion_length < 1:
        raise ConfigError(f"max_completion_length: {config.max_completion_length} must be at least 1.")
    if config.vllm_mode == "server" and config.rollout_engine != "vllm":
        raise ConfigError("vllm_mode: server, but rollout_engine is transformers; write rollout_engine: vllm.")
    if (config.vllm_mode == "server") != (config.vllm_server_base_url is not None):
        raise ConfigError(
            "vllm_server_base_url goes with vllm_mode: server, and that with it: write both, such as vllm_mode: server and "
            "vllm_server_base_url: http://localhost:8000, or neither."
        )
    if config.vllm_server_weights_folder is not None and config.vllm_mode != "server":
        raise ConfigError(
            "vllm_server_weights_folder: colocated, the weights stay within the process; remove it, or write vllm_mode: server."
        )
    if not 0 < config.vllm_gpu_memory_utilization <= 1:
        raise ConfigError(
            f"vllm_gpu_memory_utilization: {config.vllm_gpu_memory_utilization} must lie in (0, 1]; training needs the rest."
        )
    if not 0 <= config.min_completion_length <= config.max_completion_length:
        raise ConfigError(
            f"min_completion_length: {config.min_completion_length} must lie between 0 and max_completion_length: "
            f"{config.max_completion_length}."
        )


def is_time(text: str) -> bool:
    """Whether it reads as a time such as 3h30m: days, hours, minutes, seconds, in this order."""
    return bool(re.fullmatch(r"(?=\d)(\d+d)?(\d+h)?(\d+m)?(\d+s)?", text)) and seconds(text) > 0


def seconds(text: str) -> int:
    """ "3h30m" → 12600."""
    units = {"d": 86400, "h": 3600, "m": 60, "s": 1}
    return sum(int(count) * units[unit] for count, unit in re.findall(r"(\d+)([dhms])", text))


def is_repository_id(value: Any) -> bool:
    """Whether it reads as a Hub repository OWNER/NAME, by the Hub's own rules for names."""
    pattern = r"(?!.*(--|\.\.))[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*(?<![-.])(?<!\.git)"
    return isinstance(value, str) and len(value) <= 96 and re.fullmatch(pattern, value, re.ASCII) is not None


def check_processes(config: TrainConfig, num_processes: int, sharded: bool = False) -> None:
    """Refuse batches that do not divide among the processes, and adapters where they share one model. Raises ConfigError."""
    if sharded and config.rollout_engine == "vllm":
        raise ConfigError(
            "rollout_engine: vllm takes the weights of a model that is whole on each GPU; with fsdp2.yaml write "
            "rollout_engine: transformers, or start with accelerate_configs/ddp.yaml."
        )
    if sharded and config.lora_rank > 0:
        raise ConfigError(
            f"lora_rank: {config.lora_rank} is not trained on a model that is divided among GPUs; with adapters a GPU holds "
            "a model of its own, so start with accelerate_configs/ddp.yaml, or write lora_rank: 0."
        )
    prompts = config.prompts_per_update
    if prompts % num_processes:
        raise ConfigError(
            f"prompts_per_update: {prompts} does not divide among {num_processes} processes "
            f"({prompts} = {prompts // num_processes} × {num_processes} + {prompts % num_processes}); "
            "start a number of processes that divides it, or change it."
        )


def notices(config: TrainConfig) -> list[str]:
    """What a user should know once, at the start, about how the chosen terms act."""
    found = []
    if config.eta_masked > 0 and config.masked_logprobs == "frozen":
        found.append(
            "eta_masked (η2) has no gradient while masked_logprobs is frozen: it is logged but trains nothing, as in "
            "the official code. Write masked_logprobs: live to give it one."
        )
    if config.masked_logprobs == "live" and config.eta_masked > config.gamma:
        found.append(
            f"masked_logprobs is live with eta_masked (η2) = {config.eta_masked} above gamma (γ) = {config.gamma}: the "
            "net weight η2 - γ on the masked branch is positive, so the masked policy is pulled towards the clean one."
        )
    if config.eta_clean > 0 and config.updates_per_step == 1:
        found.append(
            "eta_clean (η1) acts on sampled tokens: its expected gradient is zero on-policy, and prompts_per_update "
            "equals prompts_per_step, so every update is on-policy."
        )
    if config.rollout_engine == "vllm" and config.vllm_mode == "colocate":
        found.append(
            f"vLLM takes {config.vllm_gpu_memory_utilization:.0%} of each device's memory while it samples "
            "(vllm_gpu_memory_utilization), beside weights, gradients and optimizer; what is computed here does not count it."
        )
    return found


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The keys of a YAML recipe. Raises ConfigError for a file that is not a flat mapping."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"There is no recipe at {path}. Recipes lie in recipes/*/*.yaml.")
    try:
        text = path.read_text(encoding="utf-8")
        content, tree = yaml.safe_load(text), yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold `key: value` lines, got {type(content).__name__}.")
    names = [key_node.value for key_node, _ in tree.value]
    if twice := {name for name in names if names.count(name) > 1}:  # YAML would silently take the last
        raise ConfigError(f"{path} has {', '.join(sorted(twice))} twice.")
    return content


def build(values: dict[str, Any], cls: type = TrainConfig) -> Any:
    """A config of `cls` from raw values (of YAML or the command line), each coerced to its field's type.

    Raises:
        ConfigError: unknown key (names the nearest), missing key, value of the wrong type, contradiction.
    """
    known = {f.name: f for f in fields(cls)}
    hints = typing.get_type_hints(cls)
    for name in values:
        if name not in known:
            raise ConfigError(_unknown(str(name), known))
    missing = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING and n not in values]
    if missing:
        raise ConfigError(
            f"The recipe lacks {', '.join(missing)}. Add the key, or pass --{missing[0]} on the command line."
        )
    return cls(**{name: coerce(name, value, hints[name]) for name, value in values.items()})


def load_config(recipe: str | Path, overrides: dict[str, str] | None = None, cls: type = TrainConfig) -> Any:
    """Recipe ← command line, checked."""
    return build(read_recipe(recipe) | (overrides or {}), cls)


def parse_overrides(arguments: list[str]) -> dict[str, str]:
    """`--key value`, `--key=value`, and a bare `--flag` for true. Raises ConfigError."""
    overrides: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--") or argument == "--":
            raise ConfigError(f"Expected --key value, got {argument!r}.")
        name, equals, value = argument[2:].partition("=")
        if not equals:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
        overrides[name.replace("-", "_")] = value
    return overrides


def help_text(cls: type = TrainConfig) -> str:
    """One line a key: name, type, default, meaning."""
    lines = []
    for f in fields(cls):
        default = "required" if f.default is MISSING else f"default {f.default!r}"
        lines.append(f"  --{f.name:<26} {f.metadata.get('help', '')} ({default})")
    return "\n".join(lines)


def _unknown(name: str, known: dict[str, Any]) -> str:
    if name in ELSEWHERE:
        return f"{name} is not a key here; write {ELSEWHERE[name]}."
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"{name} is not a key of a recipe." + (f" Did you mean {near[0]}?" if near else "")


def coerce(name: str, value: Any, hint: Any) -> Any:
    """`value` as `hint` says. YAML reads 1e-6 as a string, and the command line gives strings only."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None or (isinstance(value, str) and value.lower() in ("null", "none")):
            return None
        return coerce(name, value, next(a for a in arguments if a is not type(None)))
    if origin is Literal:
        if value in arguments:
            return value
        near = difflib.get_close_matches(str(value), [str(a) for a in arguments], n=1, cutoff=0.4)
        hint_text = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{name}: {value!r} is none of {', '.join(map(str, arguments))}.{hint_text}")
    if hint is bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in ("true", "yes", "on", "1", "false", "no", "off", "0"):
            return value.lower() in ("true", "yes", "on", "1")
        raise ConfigError(f"{name}: {value!r} is neither true nor false.")
    if hint in (int, float):
        return _number(name, value, hint)
    if value is None or isinstance(value, (dict, list)):
        raise ConfigError(f"{name}: expected text, got {value!r}.")
    return str(value)


def _number(name: str, value: Any, kind: type) -> int | float:
    refused = ConfigError(f"{name}: {value!r} is not {'a whole number' if kind is int else 'a number'}.")
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise refused
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise refused from None
    if kind is float:
        return number
    if not number.is_integer():
        raise refused
    return int(number)
