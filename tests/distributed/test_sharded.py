"""A model divided among two processes by FSDP2 is one model: the same gradients, and a run that is saved and goes on."""

import json
from pathlib import Path

import jobs
import pytest
import torch
from safetensors.torch import load_file
from test_two_processes import TOLERANCE, of_ranks, run_in_two
from transformers import AutoModelForImageTextToText

from papo_hub.tracking import read_metrics


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_model_folder) -> Path:
    return run_in_two(tmp_path_factory.mktemp("sharded"), tiny_model_folder, "sharded")


@pytest.mark.parametrize("name", [*jobs.GRADIENTS, *jobs.SHARDED])
def test_the_gradient_is_that_of_one_process(folder, tmp_path, tiny_model_folder, name):
    expected = jobs.first_update(tiny_model_folder, tmp_path, name)
    scale = max(float(value.abs().max()) for value in expected.values())
    assert scale > 1e-3
    for found in of_ranks(folder, name):
        assert found.keys() == expected.keys()
        assert max(float((found[n] - expected[n]).abs().max()) for n in expected) < TOLERANCE * scale


def test_the_alignment_is_that_of_one_process(folder, tmp_path, tiny_model_folder):
    jobs.first_update(tiny_model_folder, tmp_path, "unequal")
    ((ours,), (theirs,)) = (read_metrics(f / "unequal" / "metrics.jsonl") for f in (folder, tmp_path))
    assert -1 < theirs["objective/alignment"] < 1
    assert ours["objective/alignment"] == pytest.approx(theirs["objective/alignment"], abs=1e-9)


def test_processes_with_fewer_micro_batches_keep_in_step(folder):
    mine, theirs = (json.loads((folder / f"passes-{rank}.json").read_text()) for rank in range(jobs.PROCESSES))
    assert any(a[0] != b[0] for a, b in zip(mine, theirs, strict=True))
    assert all(a[1] == b[1] == max(a[0], b[0]) for a, b in zip(mine, theirs, strict=True))


def test_a_run_that_goes_on_ends_as_the_one_that_was_not_interrupted(folder):
    rows = [read_metrics(folder / name / "metrics.jsonl")[-1] for name in ("whole", "resumed")]
    timeless = [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]
    assert timeless[0] == timeless[1]
    whole, resumed = (load_file(folder / name / "model" / "model.safetensors") for name in ("whole", "resumed"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_what_is_exported_is_a_whole_model_in_the_plain_format(folder, tiny_model_folder):
    exported, start = folder / "whole" / "model", tiny_model_folder
    assert load_file(exported / "model.safetensors").keys() == load_file(start / "model.safetensors").keys()
    architectures = [json.loads((path / "config.json").read_text())["architectures"] for path in (exported, start)]
    assert architectures[0] == architectures[1]
    _, info = AutoModelForImageTextToText.from_pretrained(exported, output_loading_info=True)
    assert not any(info.values())
    rows = json.loads((folder / "whole" / "evaluation.json").read_text())
    assert [row["problems"] for row in rows if row["group"] == "all"] == [3] * 4  # before and after, clean and masked
