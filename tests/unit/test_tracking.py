"""The records of a run: metrics, samples, provenance, and what a resumed run keeps of them."""

import json

import pytest
import torch
from accelerate import Accelerator

from papo_hub import tracking
from papo_hub.batch import Batch, Completion, pad_completions
from papo_hub.config import ConfigError
from papo_hub.tracking import RunLog, keep_until, provenance, read_metrics, tracker_options, trackers


@pytest.fixture
def run_log(tmp_path, fast_config):
    logs = []

    def make(done=0, **overrides):
        logs.append(RunLog(tmp_path, fast_config(**overrides), Accelerator(cpu=True), max_steps=5, done=done))
        return logs[-1]

    yield make
    for log in logs:
        log.close()


def record(step):
    return {"step": step, "reward/mean": step / 10, "optim/grad_norm": None}


def batch(prompts, texts, rewards):
    completions = [Completion([8], text, True) for text in texts]
    ids, mask = pad_completions(completions, 0)
    index = torch.arange(len(prompts)).repeat_interleave(len(texts) // len(prompts))
    return Batch(prompts, index, completions, ids, mask, torch.tensor(rewards) - 0.5, {"mean": torch.tensor(rewards)})


def test_a_resumed_run_is_the_same_to_each_tracker():
    options = tracker_options("tiny-papo_g-2026-11-23T10:00:00Z")
    assert options["trackio"] == {"name": "tiny-papo_g-2026-11-23T10:00:00Z", "resume": "allow"}
    assert options["wandb"]["id"] == "tiny-papo_g-2026-11-23T10-00-00Z" and options["wandb"]["resume"] == "allow"
    assert tracker_options(None) == {}


def test_trackers(monkeypatch):
    installed = {"tensorboard", "trackio"}
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: name if name in installed else None)
    assert trackers(None) == []
    assert trackers("") == ["trackio"]
    assert trackers("tensorboard, trackio") == ["tensorboard", "trackio"]
    with pytest.raises(ConfigError, match="report_to: wandb is not installed; pip install"):
        trackers("all")
    with pytest.raises(ConfigError, match="'tensorbored' is none of trackio, tensorboard, wandb"):
        trackers("tensorbored")
    installed.clear()
    assert trackers("") == []


def test_steps_are_appended_as_lines(tmp_path, run_log):
    log = run_log()
    for step in (1, 2):
        log.step(record(step))
    assert read_metrics(tmp_path / "metrics.jsonl") == [record(1), record(2)]
    assert log.bar.n == 2


def test_trackers_get_every_nth_step_and_no_empty_value(run_log, monkeypatch):
    log, points = run_log(logging_steps=2), []
    monkeypatch.setattr(log.accelerator, "log", lambda values, step: points.append((step, values)))
    for step in range(1, 6):
        log.step(record(step))
    assert points == [(2, {"reward/mean": 0.2}), (4, {"reward/mean": 0.4})]


def test_only_the_main_process_writes(tmp_path, run_log, tiny_prompts, monkeypatch):
    log = run_log()
    log.main = False
    log.step(record(1))
    log.samples(1, batch(tiny_prompts[:1], ["x", "y"], [0.0, 1.0]))
    log.skipped_rows({"3": "empty answer"})
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_run_drops_the_steps_it_repeats(tmp_path, run_log, tiny_prompts):
    log = run_log(log_completions=True)
    for step in range(1, 6):
        log.step(record(step))
        log.samples(step, batch(tiny_prompts[:1], [f"answer {step}", "other"], [1.0, 0.0]))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "rew')  # cut short by a kill
    log = run_log(done=3, log_completions=True)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    samples = (tmp_path / "samples.md").read_text()
    assert "answer 3" in samples and "answer 4" not in samples and "answer 5" not in samples
    assert log.bar.n == 3
    log.step(record(4))  # on a line of its own
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]


def test_a_completion_that_looks_like_a_heading_survives_a_resume(tmp_path, run_log, tiny_prompts):
    answers = ["before\n## Step 9\nafter", "other"]
    run_log(log_completions=True).samples(1, batch(tiny_prompts[:1], answers, [1.0, 0.0]))
    written = (tmp_path / "samples.md").read_text()
    keep_until(tmp_path / "metrics.jsonl", tmp_path / "samples.md", 1)
    assert (tmp_path / "samples.md").read_text() == written


def test_keep_until_without_files_makes_none(tmp_path):
    keep_until(tmp_path / "metrics.jsonl", tmp_path / "samples.md", 3)
    assert list(tmp_path.iterdir()) == []


def test_samples_show_two_completions_of_two_prompts(tmp_path, run_log, tiny_prompts):
    texts = ["p0 c0", "p0 c1", "p0 c2", "p1 c0", "p1 c1", "p1 c2", "p2 c0", "p2 c1", "p2 c2"]
    run_log(log_completions=True).samples(7, batch(tiny_prompts, texts, [1.0, 0.0, 0.25] * 3))
    written = (tmp_path / "samples.md").read_text()
    assert [text for text in texts if text in written] == ["p0 c0", "p0 c1", "p1 c0", "p1 c1"]
    assert "## Step 7" in written and "Reward 1.00, advantage +0.50" in written and "advantage -0.50" in written
    run_log(log_completions=False).samples(8, batch(tiny_prompts, texts, [0.0] * 9))
    assert "## Step 8" not in (tmp_path / "samples.md").read_text()


@pytest.mark.parametrize("text", ["plain", "```\n# not a heading", "````` and ``", ""])
def test_no_completion_breaks_out_of_its_block(tmp_path, run_log, tiny_prompts, text):
    markdown_it = pytest.importorskip("markdown_it")
    run_log(log_completions=True).samples(1, batch(tiny_prompts[:1], [text, "other"], [1.0, 0.0]))
    tokens = markdown_it.MarkdownIt().parse((tmp_path / "samples.md").read_text())
    sample = tiny_prompts[0].sample
    fences = [token.content.rstrip("\n") for token in tokens if token.type == "fence"]
    assert fences == [sample.problem, sample.answer, text, "other"]
    assert sum(token.type == "heading_open" for token in tokens) == 1


def test_skipped_rows_are_listed_with_their_reasons(tmp_path, run_log):
    log = run_log()
    log.skipped_rows({})
    assert not (tmp_path / "skipped_rows.jsonl").exists()
    log.skipped_rows({"3": "empty answer", "x": 'image: "broken"'})
    lines = (tmp_path / "skipped_rows.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"id": "3", "reason": "empty answer"},
        {"id": "x", "reason": 'image: "broken"'},
    ]


def test_provenance_names_versions_command_and_hardware(fast_config, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/deep/train.py", "--config", "r.yaml"])
    found = provenance(fast_config(), num_processes=3)
    assert found["versions"]["torch"] == torch.__version__
    assert found["command"] == "train.py --config r.yaml"  # no path of the machine
    assert found["hardware"].startswith("3 × ")
    json.dumps(found)
