"""A run killed at any moment and resumed ends as the one that was left alone."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from papo_hub.checkpoint import checkpoints
from papo_hub.dataset import build_dataset
from papo_hub.tracking import read_metrics
from papo_hub.trainer import train

ROOT = Path(__file__).resolve().parents[2]
STEPS = 6

pytestmark = pytest.mark.usefixtures("without_report")


@pytest.fixture
def config(fast_config, tmp_path, warm_model_folder):
    """config(name, ...): everything that a resumed run must bring back takes part, a moving learning rate too."""

    def make(name, **overrides):
        settings = {"model_name_or_path": warm_model_folder, "num_generations": 4, "max_completion_length": 12}
        settings |= {"prompts_per_update": 2, "max_steps": STEPS, "save_steps": 2, "max_sampling_tries": 500}
        settings |= {"lr_scheduler_type": "linear", "warmup_steps": 3, "output_dir": tmp_path / name}
        return fast_config(**settings | overrides)

    return make


def assert_same_run(resumed: Path, whole: Path, told: str = "") -> None:
    ours, theirs = (
        [{k: v for k, v in row.items() if not k.startswith("time/")} for row in read_metrics(run / "metrics.jsonl")]
        for run in (resumed, whole)
    )
    assert [row["step"] for row in ours] == list(range(1, STEPS + 1)), told
    assert ours == theirs, told
    a, b = (load_file(run / "model" / "model.safetensors") for run in (resumed, whole))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a), told


def killed_at_a_random_moment(config, tmp_path) -> str:
    """Start the recipe in a process of its own and kill it without warning somewhere in its steps; says when."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(config.to_yaml())
    command = [sys.executable, str(ROOT / "recipes" / "train.py"), "--config", str(recipe)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    metrics = Path(config.output_dir) / "metrics.jsonl"
    draw = random.Random()
    rows, pause = draw.randrange(1, STEPS), draw.random() * 0.3
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if metrics.exists() and metrics.read_bytes().count(b"\n") >= rows:
                time.sleep(pause)
                break
            time.sleep(0.005)
    finally:
        process.kill()
        process.wait()
    told = f"killed {pause:.3f} s after step {rows}\n{(tmp_path / 'output').read_text()[-2000:]}"
    assert process.returncode == -signal.SIGKILL, f"it ended by itself: {process.returncode}; {told}"
    return told


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> str:
    """Digits as a dataset folder, fewer rows than a run of these reads."""
    return str(build_dataset("digits", tmp_path_factory.mktemp("shards") / "digits", limit=15, progress=False).folder)


def test_a_streamed_run_resumes_as_exactly(config, shards):
    """Across the end of an epoch, and with another number of reading processes."""
    streamed = {"dataset_name": shards, "streaming": True, "shuffle_buffer_size": 4, "save_steps": 1}
    whole = train(config("whole", save_total_limit=STEPS, **streamed))
    for checkpoint in checkpoints(whole / "checkpoints")[2:5:2]:
        name = f"from {checkpoint.name}"
        resumed = config(name, resume_from_checkpoint=checkpoint, dataloader_num_workers=1, **streamed)
        Path(resumed.output_dir).mkdir()
        Path(resumed.output_dir, "metrics.jsonl").write_text((whole / "metrics.jsonl").read_text())
        assert_same_run(train(resumed), whole, name)


@pytest.mark.parametrize("objective, other", [("papo_g", {"beta": 0.01}), ("papo_d", {"masked_logprobs": "live"})])
def test_killed_and_resumed_is_left_alone(config, tmp_path, objective, other):
    whole = train(config("whole", objective=objective, **other))
    told = killed_at_a_random_moment(config("killed", objective=objective, **other), tmp_path)
    resumed = train(config("killed", objective=objective, resume_from_checkpoint="latest", **other))
    assert_same_run(resumed, whole, told)
    assert {path.name for path in checkpoints(resumed / "checkpoints")} == {"step-000004", "step-000006"}
    assert not list((resumed / "checkpoints").glob("partial-*"))


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused"])
def test_every_checkpoint_leads_to_the_same_end(config, optim):
    """Not by chance: from each step, and from a folder by name."""
    whole = train(config("whole", save_steps=1, save_total_limit=STEPS, optim=optim))
    for checkpoint in checkpoints(whole / "checkpoints")[:-1]:
        name = f"from {checkpoint.name}"
        resumed = config(name, resume_from_checkpoint=checkpoint, save_steps=0, optim=optim)
        Path(resumed.output_dir).mkdir()
        rows = (whole / "metrics.jsonl").read_text()
        Path(resumed.output_dir, "metrics.jsonl").write_text(rows)
        assert_same_run(train(resumed), whole, name)


def test_a_resumed_run_that_forgets_its_moments_would_show(config, monkeypatch):
    whole = train(config("whole", save_steps=1, save_total_limit=STEPS))
    monkeypatch.setattr("papo_hub.run_state.load_optimizer", lambda *arguments: None)
    forgetful = train(config("forgetful", resume_from_checkpoint=whole / "checkpoints" / "step-000004"))
    ours, theirs = (read_metrics(run / "metrics.jsonl")[-1] for run in (forgetful, whole))
    assert ours["objective/perception_kl"] != theirs["objective/perception_kl"]


def test_another_seed_is_refused(config):
    whole = train(config("run", max_steps=1))
    with pytest.raises(ValueError, match="the run to resume had seed = 42, this one has 7"):
        train(config("run", seed=7, resume_from_checkpoint="latest"))
    assert len(read_metrics(whole / "metrics.jsonl")) == 1  # nothing was dropped


def test_a_run_folder_is_never_overwritten(config):
    whole = train(config("run", max_steps=1))
    before = (whole / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match="already holds a run. Continue it with --resume_from_checkpoint latest"):
        train(config("run"))
    assert (whole / "metrics.jsonl").read_bytes() == before
