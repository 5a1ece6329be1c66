"""What a run does on an alarm: says so, goes back with half of gamma, or stops; and a killed one does the same again."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from papo_hub.checkpoint import checkpoints, last_good
from papo_hub.config import ConfigError
from papo_hub.guard import Alarm, Guard, Sign
from papo_hub.tracking import read_metrics
from papo_hub.trainer import CollapseAhead, train

pytestmark = pytest.mark.usefixtures("without_report")
SIGN = Sign("perception_kl", "perception KL 0.5 -> 3.1 within 2 steps")
REMEDY = "Lower gamma."


@pytest.fixture
def recipe(fast_config, warm_model_folder, tmp_path):
    def make(name, **overrides):
        settings = {
            "model_name_or_path": str(warm_model_folder),
            "max_steps": 6,
            "save_steps": 1,
            "save_total_limit": 2,
        }
        settings |= {"output_dir": str(tmp_path / name), "lr_scheduler_type": "linear", "gamma": 0.08}
        return fast_config(**settings | overrides)

    return make


@pytest.fixture
def alarming(monkeypatch):
    """alarming(gamma, step, since): the guard sees signs from `since` on, and alarms at `step`, while γ is that or more."""

    def make(least, step, since):
        class Watching(Guard):
            healthy_until = 0

            def observe(self, row):
                bad = row["objective/gamma"] >= least
                if not bad or row["step"] < since:
                    self.healthy_until = row["step"]
                if bad and row["step"] == step:
                    return Alarm(step, since, (SIGN,), REMEDY)
                return None

            def state_dict(self):
                return {"healthy_until": self.healthy_until}

            def load_state_dict(self, state):
                self.healthy_until = state["healthy_until"]

        monkeypatch.setattr("papo_hub.trainer.Guard", Watching)

    return make


def gammas(run):
    return [(row["step"], row["objective/gamma"]) for row in read_metrics(run / "metrics.jsonl")]


def alarms(run):
    return [json.loads(line) for line in (run / "guard.jsonl").read_text().splitlines()]


def assert_same(run, whole):
    ours, theirs = (
        [{k: v for k, v in row.items() if not k.startswith("time/")} for row in read_metrics(folder / "metrics.jsonl")]
        for folder in (run, whole)
    )
    assert ours == theirs
    a, b = (load_file(folder / "model" / "model.safetensors") for folder in (run, whole))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_warn_says_what_it_saw_and_goes_on(recipe, alarming, capfd):
    alarming(0, 4, 3)
    run, quiet = train(recipe("run")), train(recipe("quiet", guard="off"))
    assert_same(run, quiet)
    out = capfd.readouterr().out
    assert f"guard, step 4: {SIGN.text}. {REMEDY} Training goes on." in out
    assert alarms(run) == [
        {"step": 4, "since": 3, "signs": [{"name": SIGN.name, "text": SIGN.text}], "remedy": REMEDY}
        | {"consequence": "Training goes on."}
    ]
    assert not (quiet / "guard.jsonl").exists()


def test_the_newest_healthy_checkpoint_is_kept_while_signs_stand(recipe, alarming):
    alarming(0, 4, 3)
    run = train(recipe("run"))
    assert [path.name for path in checkpoints(run / "checkpoints")] == ["step-000002", "step-000005", "step-000006"]


def test_stop_saves_and_says_from_where_to_go_on(recipe, alarming):
    alarming(0.05, 4, 3)
    with pytest.raises(CollapseAhead, match=r"stopped the run at step 4, whose last good step is 2: perception KL .*"):
        train(recipe("run", guard="stop", save_steps=2))
    run = Path(recipe("run").output_dir)
    assert [path.name for path in checkpoints(run / "checkpoints")] == ["step-000002", "step-000004"]
    good = last_good(run / "checkpoints", 2)
    again = train(recipe("run", guard="stop", gamma=0.02, resume_from_checkpoint=str(good)))
    assert [gamma for _, gamma in gammas(again)] == [0.08] * 2 + [0.02] * 4


def test_lower_goes_back_with_half_of_gamma(recipe, alarming, capfd):
    """From step 2 on, it is the run that was resumed there by hand with half of gamma."""
    alarming(0.05, 4, 3)
    run = train(recipe("run", guard="lower"))
    assert gammas(run) == [(1, 0.08), (2, 0.08), (3, 0.04), (4, 0.04), (5, 0.04), (6, 0.04)]
    assert "Back to step 2, with gamma × 0.5." in capfd.readouterr().out
    assert [alarm["consequence"] for alarm in alarms(run)] == ["Back to step 2, with gamma × 0.5."]

    first = train(recipe("hand", guard="off", save_total_limit=9))
    hand = train(
        recipe("hand", guard="off", gamma=0.04, resume_from_checkpoint=str(first / "checkpoints" / "step-000002"))
    )
    assert_same(run, hand)


def test_lower_goes_back_to_the_beginning_where_nothing_good_was_saved(recipe, alarming):
    alarming(0.05, 2, 1)
    run = train(recipe("run", guard="lower"))
    assert gammas(run) == [(step, 0.04) for step in range(1, 7)]
    assert_same(run, train(recipe("hand", guard="off", gamma=0.04)))


def test_after_three_times_it_is_not_gamma_and_the_run_stops(recipe, alarming):
    alarming(0, 4, 3)
    with pytest.raises(CollapseAhead, match="stopped the run at step 4"):
        train(recipe("run", guard="lower"))
    run = Path(recipe("run").output_dir)
    said = [alarm["consequence"] for alarm in alarms(run)]
    assert said == [f"Back to step 2, with gamma × {factor}." for factor in (0.5, 0.25, 0.125)] + ["Training stops."]


@pytest.mark.parametrize("saves", [1, 3])
def test_killed_after_it_went_back_it_does_the_same_again(recipe, alarming, monkeypatch, saves):
    alarming(0.05, 4, 3)
    whole = train(recipe("whole", guard="lower"))

    class Killed(BaseException):
        pass

    from papo_hub import trainer

    original, left = trainer.save, [saves + 3]  # of steps 1 to 3, then behind the alarm

    def dying(*arguments, **options):
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "save", dying)
        with pytest.raises(Killed):
            train(recipe("run", guard="lower"))
    run = train(recipe("run", guard="lower", resume_from_checkpoint="latest"))
    assert_same(run, whole)
    assert alarms(run) == alarms(whole)


def test_a_baseline_has_no_gamma_to_lower(fast_config):
    with pytest.raises(ConfigError, match="guard: lower halves gamma, but gamma is 0; write guard: warn"):
        fast_config(objective="grpo", gamma=0.0, guard="lower")
