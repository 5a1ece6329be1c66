"""Two processes are one: the same gradients, one record, equal weights."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jobs
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from papo_hub.tracking import read_metrics

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = 1e-7  # of the largest entry of all gradients; seen: 2e-9


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_model_folder) -> Path:
    """What two processes wrote, over gloo on the loopback."""
    return run_in_two(tmp_path_factory.mktemp("two"), tiny_model_folder)


def run_in_two(folder: Path, model: Path, *options: str) -> Path:
    """jobs.py in two processes; what they wrote."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(jobs.PROCESSES)]
    command += ["--master-addr", "127.0.0.1", "--master-port", str(port)]
    command += [jobs.__file__, str(model), str(folder), *options]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    environment |= {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-8000:]
    return folder


def of_ranks(folder, name):
    return [load_file(folder / f"{name}-{rank}.safetensors") for rank in range(jobs.PROCESSES)]


@pytest.mark.parametrize("name", [*jobs.GRADIENTS, *jobs.NOT_SHARDED])
def test_the_gradient_is_that_of_one_process(folder, tmp_path, tiny_model_folder, name):
    expected = jobs.first_update(tiny_model_folder, tmp_path, name)
    scale = max(float(value.abs().max()) for value in expected.values())
    assert scale > 1e-3
    for found in of_ranks(folder, name):
        assert found.keys() == expected.keys()
        assert max(float((found[n] - expected[n]).abs().max()) for n in expected) < TOLERANCE * scale


def test_the_metrics_are_those_of_one_process(folder, tmp_path, tiny_model_folder):
    jobs.first_update(tiny_model_folder, tmp_path, "frozen")
    ((ours,), (theirs,)) = (read_metrics(f / "frozen" / "metrics.jsonl") for f in (folder, tmp_path))
    for name, value in theirs.items():
        if not name.startswith("time/"):
            assert ours[name] == (None if value is None else pytest.approx(value, rel=1e-5, abs=1e-7)), name


def test_training_ends_with_equal_weights_and_one_record(folder, tiny_model_folder):
    a, b = of_ranks(folder, "whole")
    assert all(torch.equal(a[name], b[name]) for name in a)
    saved, start = (
        dict(AutoModelForImageTextToText.from_pretrained(path).named_parameters())
        for path in (folder / "whole" / "model", tiny_model_folder)
    )
    assert all(torch.equal(saved[name], a[name]) for name in a)
    assert any(not torch.equal(start[name], a[name]) for name in a)
    assert [row["step"] for row in read_metrics(folder / "whole" / "metrics.jsonl")] == [1, 2]
    checkpoints = sorted(path.name for path in (folder / "whole" / "checkpoints").iterdir())
    assert checkpoints == ["step-000001", "step-000002"]
    assert json.loads((folder / "whole" / "provenance.json").read_text())["hardware"].startswith("2 × ")


def test_evaluation_counts_every_problem_once(folder):
    rows = json.loads((folder / "whole" / "evaluation.json").read_text())
    assert [row["problems"] for row in rows if row["group"] == "all"] == [3] * 4  # before and after, clean and masked


def test_dynamic_sampling_waits_for_the_slower_process(folder):
    rows = read_metrics(folder / "dynamic" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["reward/accuracy"] == pytest.approx(1 / 3) for row in rows)
    assert max(row["rollout/tries"] for row in rows) > 1
