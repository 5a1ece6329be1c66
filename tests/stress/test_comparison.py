"""The driver sees what differs between two runs, and what a kill left behind."""

import json
import re
import shutil
import time

import pytest
from stress.reading import differences, evidence


@pytest.fixture
def reference(tmp_path):
    run = tmp_path / "reference"
    (run / "model").mkdir(parents=True)
    (run / "model" / "model.safetensors").write_bytes(b"weights")
    (run / "metrics.jsonl").write_text("".join(json.dumps({"step": i, "time/update": i}) + "\n" for i in (1, 2)))
    (run / "samples.md").write_text("## Step 1\n")
    (run / "checkpoints" / "step-000002").mkdir(parents=True)
    return run


CHANGES = {
    "the same": (lambda run: None, ""),
    "other times": (lambda run: replace(run / "metrics.jsonl", '"time/update": 2', '"time/update": 9'), ""),
    "a byte": (
        lambda run: replace(run / "model" / "model.safetensors", "weights", "weightz"),
        "model.safetensors differs",
    ),
    "no model": (lambda run: shutil.rmtree(run / "model"), "model.safetensors differs"),
    "a value": (lambda run: replace(run / "metrics.jsonl", '"step": 2', '"step": 3'), "2 rows of 2, first at 1"),
    "a step twice": (lambda run: append(run / "metrics.jsonl", '{"step": 2}\n'), "3 rows of 2"),
    "a sample": (lambda run: append(run / "samples.md", "## Step 2\n"), "samples.md differs"),
    "an alarm": (lambda run: (run / "guard.jsonl").touch(), "guard.jsonl differs"),
    "a checkpoint": (lambda run: (run / "checkpoints" / "step-000001").mkdir(), "checkpoints/ has"),
    "half of one": (lambda run: (run / "checkpoints" / "partial-step-000003").mkdir(), "left behind"),
    "half a model": (lambda run: (run / "partial-model").mkdir(), r"left behind: \['partial-model'\]"),
}


def replace(file, old, new):
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


def append(file, text):
    file.write_text(file.read_text() + text)


@pytest.mark.parametrize("change", CHANGES)
def test_a_difference_is_seen(reference, tmp_path, change):
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    make, expected = CHANGES[change]
    make(run)
    found = "; ".join(differences(run, reference))
    assert re.search(expected, found) if expected else not found, found


def test_a_folder_tells_of_a_save_and_a_rotation_that_began_since(tmp_path):
    (tmp_path / "partial-step-000002").mkdir()
    (tmp_path / "step-000001").mkdir()
    assert evidence(tmp_path, 0) == "save" and evidence(tmp_path, time.time() + 60) is None
    (tmp_path / "step-000001").rename(tmp_path / "removed-step-000001")
    assert evidence(tmp_path, 0) == "rotation"
    assert evidence(tmp_path / "absent", 0) is None
