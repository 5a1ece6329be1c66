"""The DAPO family trains on groups that are neither all right nor all wrong, or says why it cannot."""

import pytest

from papo_hub import trainer
from papo_hub.batch import Completion
from papo_hub.experience import SamplingExhausted
from papo_hub.plugins import RolloutPlugin
from papo_hub.tracking import read_metrics

pytestmark = pytest.mark.usefixtures("without_report")
RIGHT, WRONG, MIXED = (True, True, True), (False, False, False), (True, False, True)


class ScriptedEngine:
    """Answers the prompts it meets by a script of right and wrong, over and over."""

    def __init__(self, tokenizer, script):
        self.tokenizer, self.script, self.met = tokenizer, script, []

    def generate(self, prompts, num_generations, sampling, generator, view="clean", given_up=None):
        completions = []
        for prompt in prompts:
            script = self.script[len(self.met) % len(self.script)]
            self.met.append(prompt.sample.id)
            assert len(script) == num_generations
            for right in script:
                text = f"\\boxed{{{prompt.sample.answer if right else 99}}}"
                ids = self.tokenizer(text).input_ids + [self.tokenizer.eos_token_id]
                completions.append(Completion(ids, text, True))
        return completions

    def prepare(self):
        pass

    def rest(self):
        pass

    def close(self):
        pass


@pytest.fixture
def scripted(fast_config, monkeypatch, tmp_path):
    """scripted(script, ...) → the engine and the batches of a run, in tmp_path / "run0" and so on."""
    engines, collect = [], trainer.collect

    def run(script, **overrides):
        batches = []

        def engine(plugin, model, processor, dtype=None):
            engines.append(ScriptedEngine(processor.tokenizer, script))
            return engines[-1]

        monkeypatch.setattr(RolloutPlugin, "engine", engine)
        monkeypatch.setattr(trainer, "collect", lambda *a: batches.append(collect(*a)) or batches[-1])
        settings = {"objective": "papo_d", "num_generations": 3, "max_steps": 2, "max_completion_length": 16}
        settings["output_dir"] = tmp_path / f"run{len(engines)}"
        trainer.train(fast_config(**settings | overrides))
        return engines[-1], [step.batch for step in batches]

    return run


def test_only_mixed_groups_are_kept_in_their_order(scripted, tmp_path):
    engine, batches = scripted([RIGHT, MIXED, WRONG])
    for step, batch in enumerate(batches):
        assert batch.rewards["accuracy"].tolist() == [1.0, 0.0, 1.0] * 4
        kept = [prompt.sample.id for prompt in batch.prompts]
        # Every third group is mixed: 12 prompts in three draws of 4 make 4.
        assert kept == engine.met[12 * step : 12 * (step + 1)][1::3]
        assert (batch.advantages.reshape(4, 3).sum(-1).abs() < 1e-5).all() and batch.advantages.abs().min() > 0.5
    rows = read_metrics(tmp_path / "run0" / "metrics.jsonl")
    assert [(row["rollout/tries"], row["rollout/kept"]) for row in rows] == [(3, pytest.approx(1 / 3))] * 2


def test_a_surplus_of_mixed_groups_is_dropped(scripted):
    engine, batches = scripted([MIXED, MIXED, RIGHT], max_steps=1)
    assert len(engine.met) == 8  # two draws, of which 3 + 3 are mixed
    assert [prompt.sample.id for prompt in batches[0].prompts] == [engine.met[i] for i in (0, 1, 3, 4)]


def test_the_grpo_family_keeps_all(scripted):
    engine, batches = scripted([RIGHT, MIXED, WRONG], objective="papo_g", max_steps=1)
    assert [prompt.sample.id for prompt in batches[0].prompts] == engine.met
    assert batches[0].advantages.tolist()[:3] == [0, 0, 0]


@pytest.mark.parametrize("script", [[RIGHT], [WRONG], [RIGHT, WRONG]])
def test_without_mixed_groups_it_stops_after_its_tries(scripted, script):
    with pytest.raises(SamplingExhausted, match="0 of 4 groups after max_sampling_tries = 3 batches of 4 prompts"):
        scripted(script, max_sampling_tries=3)


def test_the_last_try_counts(scripted):
    engine, _ = scripted([RIGHT, MIXED, WRONG], max_sampling_tries=3, max_steps=1)
    assert len(engine.met) == 12
    with pytest.raises(SamplingExhausted, match="3 of 4 groups after max_sampling_tries = 2"):
        scripted([RIGHT, MIXED, WRONG], max_sampling_tries=2)


def test_a_model_that_knows_nothing_is_told_what_to_change(fast_config):
    with pytest.raises(SamplingExhausted) as error:
        trainer.train(fast_config(objective="dapo", gamma=0.0, max_sampling_tries=2))
    for remedy in ("num_generations", "temperature", "max_sampling_tries", "grpo", "neither too easy nor too hard"):
        assert remedy in str(error.value)
