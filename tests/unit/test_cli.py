"""The commands: bad input ends in one line and exit code 2; the minimal loop and the scripts run."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest
import torch

from papo_hub.cli import before_after_table, main, train_command
from papo_hub.dry_run import step_flop
from papo_hub.memory import MemoryPlan

ROOT = Path(__file__).parent.parent.parent
TINY = str(ROOT / "recipes" / "tiny" / "papo_g.yaml")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Name a recipe"),
        (["--config", "nowhere.yaml"], "no recipe at nowhere.yaml"),
        (["--config", TINY, "--gama", "1"], "Did you mean gamma?"),
        (["--config", TINY, "--num_generations", "1"], "num_generations"),
        (["--config", TINY, "--model_name_or_path", "does/not_exist_here"], "model_name_or_path"),
        (["--config", TINY, "gamma"], "Expected --key value"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, said, capsys):
    assert train_command(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and "Traceback" not in error


def test_a_text_only_model_is_refused_before_its_weights_load(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}), encoding="utf-8")
    assert train_command(["--config", TINY, "--model_name_or_path", str(tmp_path)]) == 2
    assert "llama model, which reads no images" in capsys.readouterr().err


def test_a_run_is_not_written_over_another(tiny_model_folder, tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text("", encoding="utf-8")
    arguments = ["--config", TINY, "--model_name_or_path", str(tiny_model_folder), "--output_dir", str(tmp_path)]
    assert train_command(arguments) == 2
    assert "already holds a run" in capsys.readouterr().err


def test_a_dry_run_of_the_digits_reads_rows_and_no_weights(tiny_model_folder, monkeypatch, capsys):
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", None)  # any use of it would fail
    arguments = ["--config", TINY, "--model_name_or_path", str(tiny_model_folder), "--dry_run"]
    assert train_command(arguments) == 0
    printed = capsys.readouterr().out
    assert "4096 rows; columns: id, problem, answer, images" in printed
    assert "84×28; 18 tokens" in printed
    assert "Nothing was trained" in printed


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "quickstart" in printed and "train" in printed


def test_the_table_reads_before_to_after(tmp_path):
    rows = [
        {"when": when, "view": view, "group": "all", "accuracy": a, "perception_kl": 0.5, "problems": 4, "samples": 2}
        for when, a in (("before", 0.25), ("after", 0.75))
        for view in ("clean", "masked")
    ]
    (tmp_path / "evaluation.json").write_text(json.dumps(rows), encoding="utf-8")
    table = before_after_table(tmp_path)
    assert "25.0% → 75.0%" in table and "0.500 → 0.500" in table and "avg@2 over 4 questions" in table


def test_the_minimal_loop_trains(tiny_model_folder, capsys):
    spec = importlib.util.spec_from_file_location("minimal_loop", ROOT / "recipes" / "minimal_loop.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    state = torch.random.get_rng_state()
    history = module.main(str(tiny_model_folder), steps=2, prompts_per_step=4, micro_batch_size=8)
    assert len(history) == 2
    assert "step   2   reward" in capsys.readouterr().out
    assert torch.equal(state, torch.random.get_rng_state()), "nothing draws from the global generator"


def test_the_work_of_a_step_by_hand(fast_config):
    """10 parameters of which 5 are trained; 4 prompts of 256 tokens with 2 completions of 8: 4 · (256 + 16) tokens."""
    nothing = dict.fromkeys(("rollout", "scoring", "gathered_update", "gathered_rollout"), 0)
    plan = MemoryPlan(parameters=10, trained=10, source="", resident={}, update={}, **nothing)
    forward = 2 * 10 * 4 * (256 + 2 * 8)
    # Sampling, the masked view, then an update: forward, and twice that backward.
    assert step_flop(fast_config(), plan) == forward * (1 + 1 + 3)
    half = dataclasses.replace(plan, trained=5)
    assert step_flop(fast_config(), half) == forward * (1 + 1 + 2.5)
    assert step_flop(fast_config(beta=0.1, gamma=0), plan) == forward * (1 + 1 + 3)
    # Both views live, recomputed: four each. Two updates a step take old log-probs, which float32 has from sampling.
    live = {"masked_logprobs": "live", "activation_checkpointing": True, "prompts_per_update": 2}
    assert step_flop(fast_config(**live), plan) == forward * (1 + 2 * 4)
    assert step_flop(fast_config(**live, dtype="bfloat16"), plan) == forward * (1 + 1 + 2 * 4)
