"""Every recipe is complete and loads; siblings differ in the declared keys and in nothing else."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import FullyShardedDataParallelPlugin
from transformers import AutoConfig

from papo_hub.cli import train_command
from papo_hub.config import TrainConfig, load_config, read_recipe
from papo_hub.dry_run import KNOWN
from papo_hub.memory import GIB, memory_plan
from papo_hub.objectives import OBJECTIVES
from papo_hub.tracking import read_metrics
from papo_hub.trainer import train
from papo_hub.warmup import WarmupConfig

ROOT = Path(__file__).parent.parent
RECIPES = ROOT / "recipes"
TRAINING = sorted(path for path in RECIPES.glob("*/*.yaml") if path.name != "warmup.yaml")
FULL_SIZE = [path for path in TRAINING if path.parent.name != "tiny"]
WHOLE = [path for path in FULL_SIZE if not path.stem.endswith("_lora")]  # all parameters are trained

# (a sibling, its twin): the keys in which they differ.
DIFFERENCES = {
    ("tiny/papo_g.yaml", "tiny/grpo.yaml"): {"objective", "output_dir", "gamma"},
    ("tiny/papo_d.yaml", "tiny/dapo.yaml"): {"objective", "output_dir", "gamma", "eta_clean", "eta_masked"},
    ("tiny/papo_g.yaml", "tiny/papo_d.yaml"): {
        "objective", "output_dir", "gamma", "eta_clean", "eta_masked", "beta", "epsilon_high",
    },
    ("tiny/grpo.yaml", "tiny/dapo.yaml"): {"objective", "output_dir", "beta", "epsilon_high"},
    ("tiny/papo_g_exact.yaml", "tiny/papo_g.yaml"): {"output_dir", "estimator"},
    ("tiny/papo_g_advantage.yaml", "tiny/papo_g_exact.yaml"): {"output_dir", "divergence", "perception_weighting"},
    ("tiny/papo_g_top_p.yaml", "tiny/papo_g.yaml"): {"output_dir", "perception_top_p", "perception_clip"},
    ("tiny/papo_g_semantic.yaml", "tiny/papo_g.yaml"): {"output_dir", "mask_strategy", "mask_encoder"},
    ("tiny/vppo.yaml", "tiny/dapo.yaml"): {"output_dir", "token_weighting", "mask_ratio"},
    ("tiny/pgpo.yaml", "tiny/dapo.yaml"): {"output_dir", "token_weighting"},
    ("tiny/dvrp.yaml", "tiny/papo_d.yaml"): {
        "objective", "output_dir", "eta_clean", "eta_masked", "robustness",
    },
    ("tiny/grpo_v.yaml", "tiny/grpo.yaml"): {"objective", "output_dir", "robustness", "noise_level", "masked_logprobs"},
    ("qwen2_5_vl_3b/papo_g_lora.yaml", "qwen2_5_vl_3b/papo_g.yaml"): {
        "output_dir", "dtype", "lora_rank", "learning_rate",
    },
    ("qwen2_5_vl_3b/papo_g_lora.yaml", "qwen2_5_vl_3b/grpo_lora.yaml"): {"objective", "output_dir", "gamma"},
    ("qwen2_5_vl_3b/papo_g.yaml", "qwen2_5_vl_3b/grpo.yaml"): {"objective", "output_dir", "gamma"},
    ("qwen2_5_vl_7b/papo_g.yaml", "qwen2_5_vl_7b/grpo.yaml"): {
        "objective", "output_dir", "gamma", "eta_clean", "eta_masked",
    },
    ("qwen3_vl_2b/papo_g.yaml", "qwen3_vl_2b/grpo.yaml"): {"objective", "output_dir", "gamma"},
    ("qwen2_5_vl_7b/papo_g.yaml", "qwen2_5_vl_3b/papo_g.yaml"): {
        "model_name_or_path", "output_dir", "eta_clean", "eta_masked",
    },
    ("qwen2_5_vl_7b/papo_d.yaml", "qwen2_5_vl_3b/papo_d.yaml"): {"model_name_or_path", "output_dir"},
    ("qwen3_vl_2b/papo_g.yaml", "qwen2_5_vl_3b/papo_g.yaml"): {"model_name_or_path", "output_dir", "gamma"},
    ("qwen3_vl_2b/papo_d.yaml", "qwen2_5_vl_3b/papo_d.yaml"): {"model_name_or_path", "output_dir"},
} | {
    (f"{model}/{first}.yaml", f"{model}/{second}.yaml"): keys
    for model in ("qwen2_5_vl_3b", "qwen2_5_vl_7b", "qwen3_vl_2b")
    for first, second, keys in (
        ("papo_d", "dapo", {"objective", "output_dir", "gamma", "eta_clean", "eta_masked"}),
        ("grpo", "dapo", {"objective", "output_dir", "beta", "epsilon_high"}),
        ("papo_g_no_ref", "papo_d", {"objective", "output_dir", "epsilon_high"}),
    )
}  # fmt: skip

# arXiv 2507.06448 v5, section 4 and appendix, and the official example script: PAPO-G on the 3B model (PAPO-H).
PAPER_3B = {
    "model_name_or_path": "Qwen/Qwen2.5-VL-3B-Instruct", "dataset_name": "PAPOGalaxy/PAPO_ViRL39K_train",
    "objective": "papo_g", "gamma": 0.02, "gamma_end": None, "eta_clean": 0.0, "eta_masked": 0.0, "beta": 0.01,
    "epsilon": 0.2, "epsilon_high": 0.3, "delta": 3.0, "mask_strategy": "random", "mask_ratio": 0.6,
    "mask_patch_size": 14, "masked_logprobs": "frozen", "estimator": "sampled", "prompts_per_step": 384,
    "prompts_per_update": 128, "num_generations": 5, "max_prompt_length": 4096, "max_completion_length": 2048,
    "temperature": 1.0, "top_p": 0.99, "min_pixels": 200_704, "max_pixels": 1_003_520, "format_weight": 0.1,
    "num_train_epochs": 2.0, "learning_rate": 1e-6, "lr_scheduler_type": "constant", "weight_decay": 0.01,
    "max_grad_norm": 1.0, "reduction": "token",
}  # fmt: skip


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_recipe_loads_and_its_header_gives_its_command(path):
    config = load_config(path)
    assert (
        config.objective == path.stem
        if path.stem in OBJECTIVES
        else path.stem.startswith(("papo", "grpo", "vppo", "pgpo"))
    )
    assert config.output_dir == f"runs/{path.parent.name}/{path.stem}"
    header = path.read_text(encoding="utf-8").split("\n\n")[0]
    assert f"recipes/train.py --config recipes/{path.parent.name}/{path.name}" in header.replace("\\\n#", "")


@pytest.mark.parametrize("pair", DIFFERENCES, ids=lambda pair: " ~ ".join(pair))
def test_siblings_differ_in_the_declared_keys_only(pair):
    first, second = (read_recipe(RECIPES / name) for name in pair)
    assert first.keys() >= second.keys(), "a sibling is complete: it has the other's keys, whatever their values"
    first, second = (asdict(load_config(RECIPES / name)) for name in pair)
    assert {key for key in first if first[key] != second[key]} == DIFFERENCES[pair]


def test_every_sibling_is_declared():
    declared = {name for pair in DIFFERENCES for name in pair}
    assert {f"{path.parent.name}/{path.name}" for path in TRAINING} == declared
    assert {Path(name).stem for name in declared if name.startswith("tiny/")} >= OBJECTIVES.keys()


def test_the_3b_recipe_holds_the_papers_values():
    config = load_config(RECIPES / "qwen2_5_vl_3b" / "papo_g.yaml")
    assert {key: getattr(config, key) for key in PAPER_3B} == PAPER_3B


# arXiv 2507.06448 v5, the table of hyper-parameters: gamma, eta, beta, epsilon_high.
@pytest.mark.parametrize(
    ("recipe", "values"),
    [
        ("qwen2_5_vl_3b/grpo", (0.0, 0.0, 0.01, 0.3)),
        ("qwen2_5_vl_3b/dapo", (0.0, 0.0, 0.0, 0.28)),
        ("qwen2_5_vl_3b/papo_d", (0.01, 0.03, 0.0, 0.28)),
        ("qwen2_5_vl_3b/papo_g_no_ref", (0.01, 0.03, 0.0, 0.3)),
        ("qwen2_5_vl_7b/papo_g", (0.02, 0.05, 0.01, 0.3)),
        ("qwen2_5_vl_7b/papo_d", (0.01, 0.03, 0.0, 0.28)),
        ("qwen2_5_vl_7b/papo_g_no_ref", (0.01, 0.03, 0.0, 0.3)),
        ("qwen3_vl_2b/papo_g", (0.01, 0.0, 0.01, 0.3)),
    ],
)
def test_the_papers_weights(recipe, values):
    config = load_config(RECIPES / f"{recipe}.yaml")
    assert config.eta_clean == config.eta_masked
    assert (config.gamma, config.eta_clean, config.beta, config.epsilon_high) == values


# Parameters of the released checkpoints: those of the 3B model are its safetensors' own count.
PARAMETERS = {
    "Qwen/Qwen2.5-VL-3B-Instruct": 3_754_622_976,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8_292_166_656,
    "Qwen/Qwen3-VL-2B-Thinking": 2_127_532_032,
}


@pytest.mark.parametrize("path", WHOLE, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_full_size_recipe_passes_a_dry_run_and_its_header_has_its_memory(path, capsys, monkeypatch):
    monkeypatch.setattr("papo_hub.dry_run._data", lambda config: "")  # asked of the Hub, which is not there
    assert train_command(["--config", str(path), "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert "384 prompts × 5 completions, 3 updates of 640 completions" in printed
    assert "640 on 1, 320 on 2, 160 on 4, 80 on 8" in printed
    config = load_config(path)
    assert f"{PARAMETERS[config.model_name_or_path] / 1e9:.2f} billion parameters" in printed
    plan = memory_plan(config, AutoConfig.for_model(**KNOWN[config.model_name_or_path]))
    assert plan.parameters == PARAMETERS[config.model_name_or_path]
    header = " ".join(path.read_text(encoding="utf-8").split("\n\n")[0].replace("#", " ").split())
    stated = re.search(r"Memory (\d+) GiB of a GPU alone, (\d+), (\d+), (\d+) GiB of each of 2, 4, 8", header)
    assert [int(size) for size in stated.groups()] == [round(plan.sharded(gpus) / GIB) for gpus in (1, 2, 4, 8)]


def test_a_recipe_whose_data_cannot_be_reached_says_what_it_must_hold(capsys):
    assert train_command(["--config", str(RECIPES / "qwen2_5_vl_3b" / "papo_g.yaml"), "--dry_run"]) == 0
    assert "must have the columns problem, answer, images" in capsys.readouterr().out


# The same file with a tiny backbone, few and short completions, and data that are here.
SMALL = {
    "dataset_name": "digits", "prompt_suffix": "", "min_pixels": "null", "max_pixels": "null", "prompts_per_step": "4",
    "prompts_per_update": "2", "max_completion_length": "12", "dataloader_num_workers": "0", "max_steps": "2",
    "report_to": "none", "max_sampling_tries": "100",
}  # fmt: skip


@pytest.mark.parametrize("path", FULL_SIZE, ids=lambda path: f"{path.parent.name}/{path.stem}")
@pytest.mark.usefixtures("without_report", "fresh_accelerate")
def test_a_full_size_recipe_runs_two_steps_with_a_tiny_backbone(path, warm_model_folder, tmp_path):
    places = {"model_name_or_path": str(warm_model_folder), "output_dir": str(tmp_path / "run")}
    config = load_config(path, SMALL | places)
    first, second = read_metrics(train(config) / "metrics.jsonl")
    assert (second["step"], second["optim/skipped_updates"]) == (2, 0)
    assert second["optim/grad_norm"] > 0
    assert (first["objective/perception_kl"] is None) == (config.gamma == 0)
    assert (first["objective/reference_kl"] is None) == (config.beta == 0)
    assert ("rollout/kept" in first) == config.dynamic_sampling


@pytest.mark.parametrize("name", ["papo_g_lora", "grpo_lora"])
def test_the_lora_recipes_promise_what_the_dry_run_prints(name, capsys):
    path = RECIPES / "qwen2_5_vl_3b" / f"{name}.yaml"
    assert train_command(["--config", str(path), "--dry_run"]) == 0
    printed = capsys.readouterr().out
    header = path.read_text(encoding="utf-8").split("\n\n")[0]
    promised = re.search(r"([\d.]+ GiB) at most, while sampling, and ([\d.]+ GiB) in an update", header).groups()
    table = dict(re.findall(r"^ +(rollout|update), at most.*?([\d.]+ GiB)$", printed, flags=re.MULTILINE))
    assert promised == (table["rollout"], table["update"]) and float(promised[0].split()[0]) < 20  # of 24
    work, minutes = re.search(r"work +(\S+) PFLOP a step.*: ([\d.]+) minutes at 50 TFLOP/s", printed).groups()
    assert f"{work} PFLOP a step" in header and f"{float(minutes):.0f} minutes at 50 TFLOP/s" in header
    share = (1000 + 5 * 400) / (4096 + 5 * 2048)
    assert f"so {float(minutes) * share * 202 / 60:.0f} hours" in header


def test_the_warmup_recipe_loads():
    config = load_config(RECIPES / "tiny" / "warmup.yaml", cls=WarmupConfig)
    assert load_config(RECIPES / "tiny" / "papo_g.yaml").model_name_or_path == config.output_dir


def test_recipes_and_code_do_not_drift_apart():
    known = {field.name for field in fields(TrainConfig)}
    for path in TRAINING:
        assert set(yaml.safe_load(path.read_text(encoding="utf-8"))) <= known


@pytest.mark.parametrize("script", ["train.py", "warmup.py"])
def test_a_script_explains_itself_and_refuses_a_misspelt_key(script):
    def run(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, str(RECIPES / script), *arguments], capture_output=True, text=True)

    helped = run("--help")
    assert helped.returncode == 0 and "--learning_rate" in helped.stdout
    recipe = RECIPES / "tiny" / ("papo_g.yaml" if script == "train.py" else "warmup.yaml")
    refused = run("--config", str(recipe), "--learnin_rate", "1e-3")
    assert refused.returncode == 2
    assert refused.stderr.strip() == "error: learnin_rate is not a key of a recipe. Did you mean learning_rate?"


def test_the_wheel_holds_every_recipe_config_and_template():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    packages = set(setup["options"]["packages"].split())
    data = {name: patterns.split(", ") for name, patterns in setup["options.package_data"].items()}
    for top in ("recipes", "accelerate_configs", "model_cards"):
        for path in (ROOT / top).rglob("*"):
            if path.is_file() and path.suffix in (".yaml", ".jinja", ".py"):
                package = ".".join(["papo_hub", *path.parent.relative_to(ROOT).parts])
                assert package in packages, package
                assert any(path.match(pattern) for pattern in data[package]), path
    for folder in {path.parent for path in (ROOT / "papo_hub").rglob("*.py")}:
        assert ".".join(folder.relative_to(ROOT).parts) in packages, folder


@pytest.mark.parametrize("path", sorted((ROOT / "accelerate_configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_its_configuration(path, monkeypatch):
    """As `accelerate launch` does: an unknown key is an error there, and what the plugin gets is what the file says."""
    loaded = load_config_from_file(str(path))
    assert loaded.mixed_precision == "no"  # the recipe's affair
    assert loaded.to_dict().get("fsdp_config", {}).keys() <= {"fsdp_" + name for name in FSDP}
    if path.stem == "fsdp2":
        for name, value in loaded.fsdp_config.items():
            monkeypatch.setenv(name.upper(), str(value).lower() if isinstance(value, bool) else str(value))
        plugin = FullyShardedDataParallelPlugin()
        assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
        assert (
            plugin.cpu_ram_efficient_loading is False
        )  # each process reads the weights, so that none are left at random


FSDP = ("version", "auto_wrap_policy", "reshard_after_forward", "state_dict_type", "cpu_ram_efficient_loading")
