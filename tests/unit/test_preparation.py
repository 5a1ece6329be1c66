"""What a run starts from: the record of how it was made."""

import json

from papo_hub.config import load_config
from papo_hub.preparation import steps_of, write_provenance


def test_a_resumed_run_keeps_its_name_in_the_trackers(fast_config, tmp_path, monkeypatch):
    config, run = fast_config(), tmp_path / "tiny" / "run"
    times = iter(("2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z", "2026-01-01T00:00:02Z", "2026-01-01T00:00:03Z"))
    monkeypatch.setattr("papo_hub.preparation.provenance", lambda *arguments: {"started": next(times)})
    name = write_provenance(run, config, 1, resumed=False)
    assert name == "tiny-run-2026-01-01T00:00:00Z"
    assert write_provenance(run, config, 1, resumed=True) == write_provenance(run, config, 1, resumed=True) == name
    record = json.loads((run / "provenance.json").read_text(encoding="utf-8"))
    assert record["started"] == "2026-01-01T00:00:00Z"
    assert record["resumed"] == ["2026-01-01T00:00:01Z", "2026-01-01T00:00:02Z"]
    assert load_config(run / "config.yaml") == config
    assert write_provenance(run, config, 1, resumed=False) != name, "another run in the same folder is another curve"


def test_steps_follow_from_epochs_where_max_steps_is_null(fast_config):
    assert steps_of(fast_config(max_steps=7), rows=100) == 7
    # 2 epochs of 100 rows, 8 prompts a step: 25 steps; and never none.
    assert steps_of(fast_config(max_steps=None, num_train_epochs=2, prompts_per_step=8), rows=100) == 25
    assert steps_of(fast_config(max_steps=None, num_train_epochs=0.01, prompts_per_step=8), rows=100) == 1
