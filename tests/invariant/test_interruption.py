"""A run that is asked to stop, at any moment of any step, loses nothing: resumed, it is the run that was left alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from papo_hub import experience, trainer
from papo_hub.checkpoint import CheckpointError, checkpoints, is_unfinished, load_state
from papo_hub.config import ConfigError, seconds
from papo_hub.evaluation import runner
from papo_hub.interruption import EXIT_CODE, Interrupted, Interruption
from papo_hub.objectives import terms
from papo_hub.rollout import transformers as sampling
from papo_hub.rows import DataError
from papo_hub.tracking import read_metrics
from papo_hub.trainer import train
from papo_hub.unfinished import StepUnderWay

pytestmark = pytest.mark.usefixtures("without_report")
STEPS = 4
RECIPES = {
    "papo_g": {"objective": "papo_g", "beta": 0.01},
    "papo_d": {"objective": "papo_d", "masked_logprobs": "live", "dataloader_num_workers": 1},
}
MOMENTS = {
    "a token is drawn": (sampling, "draw"),
    "a micro-batch is scored": (experience, "shared_prefix_logprobs"),
    "a micro-batch is trained on": (terms, "clipped_surrogate"),
    "an update is about to be made": (trainer.PapoAccelerator, "clip_grad_norm_"),
    "a step is logged": (trainer.RunLog, "step"),
}


@pytest.fixture(scope="session")
def settings(warm_model_folder):
    """Two updates a step, each of several micro-batches."""
    common = {"model_name_or_path": str(warm_model_folder), "num_generations": 4, "max_completion_length": 12}
    common |= {"prompts_per_update": 2, "micro_batch_size": 3, "max_steps": STEPS, "max_sampling_tries": 500}
    return common | {"lr_scheduler_type": "linear", "warmup_steps": 3, "sample_steps": 2, "log_completions": True}


@pytest.fixture
def recipe(fast_config, settings, tmp_path):
    """recipe(name of the run, recipe, …) → its config."""
    return lambda name, kind="papo_g", **others: fast_config(
        **settings | RECIPES[kind] | {"output_dir": str(tmp_path / name)} | others
    )


def rows(run):
    found = read_metrics(run / "metrics.jsonl")
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in found]


def assert_same(run, whole):
    assert rows(run) == rows(whole)
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (run, whole))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (run / "samples.md").read_text() == (whole / "samples.md").read_text()
    assert not [path.name for path in (run / "checkpoints").iterdir() if not path.name.startswith("step-")]


def signal_at(patch, place, n, number=signal.SIGTERM):
    """This process gets a signal before the n-th call of a function."""
    original, calls = getattr(*place), [0]

    def watched(*arguments, **options):
        calls[0] += 1
        if calls[0] == n:
            os.kill(os.getpid(), number)
        return original(*arguments, **options)

    patch.setattr(*place, watched)


def resumed_until_done(make, monkeypatch, place, n):
    """Train; at every n-th call of the function the run is stopped, and resumed. (run folder, the checkpoints used)."""
    used = []
    for _ in range(40):
        with monkeypatch.context() as patch:
            signal_at(patch, place, n)
            try:
                return train(make(resume_from_checkpoint="latest" if used else None)), used
            except Interrupted as stop:
                assert "Go on with --resume_from_checkpoint latest" in str(stop)
        found = checkpoints(Path(make().output_dir, "checkpoints"))
        used.append((found[-1].name, load_state(found[-1])["step"], is_unfinished(found[-1])))
    raise AssertionError(f"it never came to its end: {used}")


@pytest.mark.parametrize(
    "kind, moment, n, middle",
    [
        ("papo_g", "a token is drawn", 19, False),
        ("papo_g", "a micro-batch is scored", 20, False),
        ("papo_g", "a micro-batch is trained on", 5, True),
        ("papo_g", "an update is about to be made", 1, True),
        ("papo_g", "a step is logged", 1, False),
        ("papo_d", "a token is drawn", 180, False),
        ("papo_d", "a micro-batch is trained on", 5, True),
    ],
)
def test_stopped_again_and_again_it_is_the_run_that_was_left_alone(recipe, monkeypatch, kind, moment, n, middle):
    whole = train(recipe("whole", kind))
    run, used = resumed_until_done(lambda **others: recipe("run", kind, **others), monkeypatch, MOMENTS[moment], n)
    assert len(used) >= 2, used
    assert any(unfinished for *_, unfinished in used) == middle, used
    assert_same(run, whole)


def test_it_stops_within_a_micro_batch(recipe, monkeypatch):
    """Not at the end of the update: after the signal nothing more goes through the model."""
    passes = []
    original = trainer.views
    monkeypatch.setattr(trainer, "views", lambda *given: passes.append(given) or original(*given))
    signal_at(monkeypatch, (terms, "perception_kl"), 1)  # in the first micro-batch of three
    with pytest.raises(Interrupted, match="stopped by SIGTERM in step 1 of 4; saved .*step-000001-unfinished"):
        train(recipe("run"))
    assert len(passes) == 1


def test_what_is_unfinished_carries_the_rollout(recipe, monkeypatch):
    """A resumed step samples and scores nothing anew."""
    with monkeypatch.context() as patch:
        signal_at(patch, MOMENTS["an update is about to be made"], 1)
        with pytest.raises(Interrupted):
            train(recipe("run"))
    drawn = []
    original = experience._sample
    monkeypatch.setattr(experience, "_sample", lambda *given: drawn.append(given[4]) or original(*given))
    train(recipe("run", resume_from_checkpoint="latest"))
    assert drawn == [1, 2, 3]  # not step 0


def test_a_resume_that_forgets_the_sums_would_show(recipe, monkeypatch):
    whole = train(recipe("whole"))
    with monkeypatch.context() as patch:
        signal_at(patch, MOMENTS["an update is about to be made"], 1)
        with pytest.raises(Interrupted):
            train(recipe("run"))
    load = StepUnderWay.load

    def forgetful(*arguments):
        step = load(*arguments)
        step.sums = {}
        return step

    monkeypatch.setattr(StepUnderWay, "load", forgetful)
    run = train(recipe("run", resume_from_checkpoint="latest"))
    assert rows(run)[0] != rows(whole)[0] and rows(run)[1:] == rows(whole)[1:]


def test_other_data_behind_an_unfinished_step_is_refused(recipe, monkeypatch):
    with monkeypatch.context() as patch:
        signal_at(patch, MOMENTS["an update is about to be made"], 1)
        with pytest.raises(Interrupted):
            train(recipe("run"))
    with pytest.raises(DataError, match="the run to resume had seed = 42, this one has 7"):
        train(recipe("run", resume_from_checkpoint="latest", seed=7))


def test_another_number_of_processes_does_not_take_over_half_a_step(tmp_path):
    for rank in range(2):
        (tmp_path / f"unfinished-{rank:05d}.json").write_text("{}")
    with pytest.raises(CheckpointError, match="left by 2 processes in the middle of a step.* 3 cannot take them over"):
        StepUnderWay.load(tmp_path, None, 0, 3, torch.device("cpu"))


def test_the_clock_stops_it_like_a_signal(recipe, monkeypatch):
    whole = train(recipe("whole"))
    with monkeypatch.context() as patch:
        now = [0.0]
        patch.setattr("papo_hub.interruption.time.monotonic", lambda: now[0])
        original = trainer.RunLog.step
        patch.setattr(trainer.RunLog, "step", lambda *given: now.__setitem__(0, now[0] + 61) or original(*given))
        with pytest.raises(Interrupted, match="stopped by max_time 2m in step 3 of 4; saved"):
            train(recipe("run", max_time="2m"))
    assert [row["step"] for row in read_metrics(Path(recipe("run").output_dir, "metrics.jsonl"))] == [1, 2]
    assert_same(train(recipe("run", resume_from_checkpoint="latest", max_time="9h")), whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_waits_only_where_there_is_something_to_save(number):
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=f"stopped by {number.name}"), Interruption() as interruption:
        os.kill(os.getpid(), number)
        time.sleep(1)
    with Interruption() as interruption:
        interruption.deferred = True
        assert not interruption.requested
        os.kill(os.getpid(), number)
        assert interruption.requested and interruption.reason == number.name
    assert signal.getsignal(number) == before  # whoever embeds training keeps its own


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_measurement_under_way_keeps_its_answers(recipe, monkeypatch, when):
    """Killed in the evaluation before the first or after the last step: nothing that was answered is answered again."""
    measured = {"eval_dataset_name": "digits", "eval_problems": 6, "eval_samples": 2, "max_steps": 1}
    measured["rollout_batch_size"] = 4  # a part of them at a time
    whole = train(recipe("whole", **measured))

    class Killed(BaseException):
        pass

    answered = []
    original = runner.Transcript.append

    def append(transcript, answers):
        answers = list(answers)
        original(transcript, answers)
        answered.extend((transcript.file.parent.name, answer.id, answer.view, answer.sample) for answer in answers)
        if dying and answers and transcript.file.parent.name == when:
            raise Killed

    monkeypatch.setattr(runner.Transcript, "append", append)
    dying = True
    with pytest.raises(Killed):
        train(recipe("run", **measured))
    dying = False
    again = {"resume_from_checkpoint": "latest"} if when == "after" else {}
    run = train(recipe("run", **measured | again))
    assert len(answered) == len(set(answered)) == 2 * 6 * 2 * 2
    assert (run / "evaluation.json").read_text() == (whole / "evaluation.json").read_text()


TWICE = """
import os, signal
from papo_hub.interruption import Interruption
with Interruption() as interruption:
    interruption.deferred = True
    os.kill(os.getpid(), signal.SIGTERM)
    print("goes on", flush=True)
    os.kill(os.getpid(), signal.SIGUSR1)
    print("never said", flush=True)
"""


def test_a_second_signal_ends_it_at_once():
    """Here nobody tells it twice: pytest is no launcher."""
    done = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (128 + signal.SIGUSR1, "goes on\n"), done.stderr


def test_it_has_an_exit_code_of_its_own(recipe, monkeypatch, tmp_path, capsys):
    from papo_hub.cli import train_command

    (tmp_path / "recipe.yaml").write_text(recipe("run").to_yaml())
    signal_at(monkeypatch, MOMENTS["a step is logged"], 2)
    assert train_command(["--config", str(tmp_path / "recipe.yaml")]) == EXIT_CODE == 75
    assert "stopped by SIGTERM in step 3 of 4; saved" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text, expected", [("3h30m", 12600), ("90m", 5400), ("45s", 45), ("1d12h", 129600), ("1d1h1m1s", 90061)]
)
def test_times(fast_config, text, expected):
    assert seconds(text) == expected
    assert fast_config(max_time=text).max_time == text


@pytest.mark.parametrize("text", ["0s", "3", "3.5h", "h", "30m3h", "3 h", "-3h", "soon", "1:30"])
def test_no_times(fast_config, text):
    with pytest.raises(ConfigError, match="max_time: .* is no time such as 3h30m"):
        fast_config(max_time=text)
