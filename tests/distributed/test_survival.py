"""Real processes that are stopped, killed, or left without disk: each ends soon, says one thing, and loses no step."""

import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file
from stress.launch import Program, accelerate, resumed, stopped, torchrun, tracebacks

from papo_hub import trainer
from papo_hub.checkpoint import CheckpointError, checkpoints, damage, is_unfinished, load_state
from papo_hub.config import ConfigError, build
from papo_hub.tracking import read_metrics
from papo_hub.trainer import train

HELD = Path(__file__).with_name("held.py")
SOON = 60  # seconds
STEPS = 3
# Two updates a step, each of several micro-batches in each of two processes.
SETTINGS = {
    "dataset_name": "digits",
    "prompt_suffix": "",
    "max_prompt_length": 256,
    "objective": "papo_g",
    "gamma": 0.02,
    "beta": 0.01,
    "prompts_per_step": 4,
    "prompts_per_update": 2,
    "num_generations": 4,
    "micro_batch_size": 2,
    "max_completion_length": 8,
    "max_steps": STEPS,
    "learning_rate": 1e-3,
    "save_steps": 1,
    "save_total_limit": STEPS + 1,
    "sample_steps": 1,
    "report_to": None,
}
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals of a dying parent, and /proc, are Linux's")


@pytest.fixture
def here(tmp_path, warm_model_folder):
    """here(output_dir, ...) → TrainConfig."""

    def make(output_dir, **overrides):
        places = {"model_name_or_path": str(warm_model_folder), "output_dir": str(output_dir)}
        return build(SETTINGS | places | overrides)

    return make


@pytest.fixture
def start(tmp_path, here):
    """start(launcher, job, ...) → Program of held.py; a job is (output_dir, overrides, place, call, seconds)."""
    programs = []

    def make(launcher, *jobs):
        made = []
        for i, (output_dir, overrides, *place) in enumerate(jobs):
            recipe = tmp_path / f"{len(programs)}-{i}.yaml"
            recipe.write_text(here(output_dir, **overrides).to_yaml())
            held = dict(zip(("place", "call", "seconds"), place, strict=False))
            made.append({"arguments": ["--config", str(recipe)]} | held)
        arguments = [tmp_path, json.dumps(made)]
        programs.append(Program(arguments, tmp_path / f"{len(programs)}.log", launcher, HELD))
        return programs[-1]

    yield make
    for program in programs:
        program.__exit__()


def rows(run):
    found = read_metrics(run / "metrics.jsonl")
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in found]


def assert_same(run, whole):
    assert rows(run) == rows(whole) and len(rows(run)) == STEPS
    assert (run / "model" / "model.safetensors").read_bytes() == (whole / "model" / "model.safetensors").read_bytes()
    assert (run / "samples.md").read_text() == (whole / "samples.md").read_text()


def messages(said):
    """The lines of ours that tell why it ended."""
    return re.findall(r"(?:error: |stopped by ).*", said)


def assert_readable(program, *texts):
    """One message of ours, which holds the texts, and no traceback of any process that trains."""
    said = program.said
    assert len(messages(said)) == 1 and all(re.search(text, messages(said)[0]) for text in texts), said[-4000:]
    assert not tracebacks(said), said[-6000:]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, warm_model_folder):
    """One process that nothing stopped."""
    folder = tmp_path_factory.mktemp("one") / "run"
    places = {"model_name_or_path": str(warm_model_folder), "output_dir": str(folder)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("papo_hub.trainer.finish_run", lambda *arguments: None)
        return train(build(SETTINGS | places))


def test_two_processes_stopped_in_the_middle_of_a_step(start, here, tmp_path, without_report, monkeypatch):
    """SIGTERM to the launcher; a run that is there is not written over; a disk that is full."""
    program = start(torchrun(2), (tmp_path / "run", {}, "update", 7, 1.0))
    assert program.until(lambda: all((tmp_path / f"0-{rank}").exists() for rank in (0, 1)), every=0.02)
    program.process.send_signal(signal.SIGTERM)
    assert program.wait(SOON) == 1  # what the launcher makes of it
    assert_readable(program, "stopped by SIGTERM in step 2 of 3; saved .*step-000002-unfinished")
    assert program.said.count("job 0: 75") == 2
    ((_, _, saved),) = stopped(program.said)
    shares = sorted(path.name for path in saved.glob("unfinished-*"))
    assert shares == [f"unfinished-0000{rank}.{kind}" for rank in (0, 1) for kind in ("json", "safetensors")]

    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(CheckpointError, match="left by 2 processes in the middle of a step.*; 1 cannot take them over"):
        train(here(tmp_path / "run", resume_from_checkpoint="latest"))

    (tmp_path / "0-0").unlink()
    program = start(
        torchrun(2),
        (tmp_path / "run", {"resume_from_checkpoint": "latest"}),
        (tmp_path / "whole", {}),
        (tmp_path / "disk", {}, "save", 2),
    )
    program.wait(2 * SOON)
    assert program.said.count("job 0: 0") == program.said.count("job 1: 0") == 2, program.said[-3000:]
    assert resumed(program.said) == (saved, 1)
    assert_same(tmp_path / "run", tmp_path / "whole")

    assert_readable(
        program, "error: no space left for the checkpoint .*step-000002 ", "the last good one is .*step-000001"
    )
    assert [path.name for path in (tmp_path / "disk" / "checkpoints").iterdir()] == ["step-000001"]
    assert sorted(re.findall(r"job 2: (\d)", program.said)) in (["1", "2"], ["2"])  # or the launcher ended the other

    # Between two steps, another number of processes takes over: the same prompts, as many completions a step.
    sizes = []
    original = trainer.reduced
    monkeypatch.setattr(trainer, "reduced", lambda *given: sizes.append(len(given[1])) or original(*given))
    checkpoint = tmp_path / "whole" / "checkpoints" / "step-000002"
    alone = train(here(tmp_path / "alone", resume_from_checkpoint=str(checkpoint)))
    assert sizes == [SETTINGS["prompts_per_step"] * SETTINGS["num_generations"]]
    streams = [load_state(run / "checkpoints" / "step-000003")["stream"] for run in (alone, tmp_path / "whole")]
    assert streams[0] == streams[1]
    with pytest.raises(
        ConfigError, match=r"prompts_per_update: 2 does not divide among 3 processes \(2 = 0 × 3 \+ 2\)"
    ):
        monkeypatch.setattr(trainer.PapoAccelerator, "num_processes", 3)
        train(here(tmp_path / "three"))


@pytest.mark.parametrize(
    "place, call", [("update", 7), pytest.param("rollout", 5, marks=pytest.mark.slow)], ids=["update", "rollout"]
)
def test_one_of_two_processes_is_killed(start, tmp_path, place, call):
    program = start(torchrun(2), (tmp_path / "run", {}, place, call, 3.0))
    assert program.until(lambda: all((tmp_path / f"0-{rank}").exists() for rank in (0, 1)), every=0.02)
    workers = program.workers()
    assert len(workers) == 2
    workers[1].kill()
    killed = time.monotonic()
    assert program.wait(SOON) == 1
    gone, alive = psutil.wait_procs(workers, SOON)
    assert not alive and time.monotonic() - killed < SOON
    assert_readable(program, "error: another process of this run has ended.*Go on with --resume_from_checkpoint latest")
    assert all(damage(path) is None for path in checkpoints(tmp_path / "run" / "checkpoints"))


def test_what_a_user_can_mend_is_said_once_by_two_processes(start, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").touch()
    program = start(torchrun(2), (tmp_path / "run", {}))
    assert program.wait(2 * SOON) == 1
    assert_readable(program, "error: output_dir: .*run already holds a run. Continue it with --resume_from_checkpoint")
    assert set(re.findall(r"job 0: (\d+)", program.said)) == {"2"}


def test_every_way_to_stop_one_process(start, here, whole, tmp_path, without_report):
    """SIGUSR1, Ctrl-C, the clock; at last a second signal while it is about to save."""
    jobs = [(tmp_path / name, {}, "update", 15, 0.6) for name in ("usr1", "int")]
    jobs.append((tmp_path / "clock", {"max_time": "3s"}, "update", 15, 3.0))
    program = start(None, *jobs, (tmp_path / "term", {}, "update", 15, 60.0))
    assert program.until((tmp_path / "0-0").exists, every=0.02)
    program.process.send_signal(signal.SIGUSR1)
    assert program.until((tmp_path / "1-0").exists, every=0.02)
    program.process.send_signal(signal.SIGINT)
    assert program.until((tmp_path / "3-0").exists, every=0.02)
    program.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert program.running
    program.process.send_signal(signal.SIGTERM)
    told = time.monotonic()
    assert program.wait(SOON) == 128 + signal.SIGTERM and time.monotonic() - told < 5
    assert re.findall(r"job \d: (\d+)", program.said) == ["75", "75", "75"], program.said[-3000:]
    assert [reason for reason, *_ in stopped(program.said)] == ["SIGUSR1", "SIGINT", "max_time 3s"]
    for name in ("usr1", "int", "clock", "term"):
        newest = checkpoints(tmp_path / name / "checkpoints")[-1]
        assert damage(newest) is None
        assert newest.name == ("step-000001" if name == "term" else "step-000002-unfinished")
        assert_same(train(here(tmp_path / name, resume_from_checkpoint="latest")), whole)


@pytest.mark.parametrize("how", ["SIGKILL", pytest.param("Ctrl-C", marks=pytest.mark.slow)])
def test_accelerate_launch_ends_and_its_program_saves(start, here, whole, tmp_path, without_report, how):
    """Killed, it tells nobody; at Ctrl-C, the terminal tells both and its own end tells the program once more."""
    program = start(accelerate(), (tmp_path / "run", {}, "update", 15, 2.0))
    assert program.until((tmp_path / "0-0").exists, every=0.02)
    (worker,) = program.workers()
    if how == "SIGKILL":
        program.process.kill()
    else:
        os.killpg(program.process.pid, signal.SIGINT)
    told = time.monotonic()
    program.wait(SOON)
    psutil.wait_procs([worker], SOON)
    assert not worker.is_running() and time.monotonic() - told < 20
    reason = "SIGTERM" if how == "SIGKILL" else "SIGINT"
    ((said, step, saved),) = stopped(program.said)
    assert (said, step, is_unfinished(saved)) == (reason, 2, True)
    assert "job 0: 75" in program.said
    assert_same(train(here(tmp_path / "run", resume_from_checkpoint="latest")), whole)


@pytest.mark.parametrize("left", ["step-000001", "removed-step-000001", "partial-step-000004"])
def test_a_kill_in_the_last_save_leaves_nothing_behind(whole, tmp_path, here, without_report, left):
    """No save follows that would sweep."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "checkpoints" / "step-000001").rename(run / "checkpoints" / left)
    train(here(run, resume_from_checkpoint="latest", save_total_limit=2))
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-000002", "step-000003"]


def test_a_comparison_that_could_not_fail_would_show(whole, tmp_path, here, without_report):
    """Another seed is another run."""
    other = train(here(tmp_path / "other", seed=7, max_steps=1))
    assert rows(other) != rows(whole)[:1]
    a, b = (load_file(run / "checkpoints" / "step-000001" / "model.safetensors") for run in (other, whole))
    assert any(not a[name].equal(b[name]) for name in a)
