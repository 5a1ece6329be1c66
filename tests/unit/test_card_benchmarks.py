"""What papo-hub evaluate measured, on the card of a run and in the Hub's forms."""

import json

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub._eval_results import parse_eval_result_entries
from safetensors.torch import save_file
from torch import zeros

from papo_hub.card import (
    check_card,
    fingerprint,
    write_benchmark_results,
    write_card,
    write_entry,
    write_eval_results,
)
from papo_hub.card.benchmarks import benchmark_results, benchmark_table

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def measured(title="Geometry3K", **model):
    """results.json of two benchmarks on the Hub and one that is a local folder."""

    def row(benchmark, title, accuracy, view="clean", subset="all"):
        spread = {"low": accuracy - 0.05, "high": accuracy + 0.05}
        about = {"benchmark": benchmark, "title": title, "group": "general", "view": view, "subset": subset}
        return about | {"k": 8, "problems": 1200, "answers": 9600, "accuracy": accuracy} | spread

    hub = {"dataset": "PAPOGalaxy/PAPO_eval", "commit": COMMIT, "limit": None}
    return {
        "settings": {
            "model": {"name": "run/model", **model},
            "benchmarks": [
                {"name": "geometry3k", "title": title, "split": "hiyouga_geometry3k", **hub},
                {"name": "counting", "title": "CLEVR counting", "split": "counts", **hub, "limit": 1200},
                {"name": "mine", "title": "mine", "dataset": "my/folder", "split": "test", "limit": None},
            ],
            "protocol": {"temperature": 1.0, "top_p": 1.0, "grader": "math"},
            "started": "2026-01-02T03:04:05Z",
        },
        "rows": [
            row("geometry3k", title, 0.30954),
            row("geometry3k", title, 0.9, subset="dependence: low"),
            row("geometry3k", title, 0.1, view="blank"),
            row("counting", "CLEVR counting", 0.5),
            row("mine", "mine", 0.75),
        ],
        "averages": {"overall": row("", "", 0.51985) | {"benchmarks": ["geometry3k", "counting", "mine"]}},
    }


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    (folder / "model").mkdir(parents=True)
    (folder / "config.yaml").write_text("objective: papo_g\nmodel_name_or_path: owner/base\ndataset_name: owner/data\n")
    (folder / "model" / "config.json").write_text("{}")
    save_file({"weight": zeros(2)}, folder / "model" / "model.safetensors")
    return folder


def evaluated(run, **changes):
    folder = run / "evaluation" / "final"
    folder.mkdir(parents=True, exist_ok=True)
    results = measured(weights=fingerprint(run / "model"), **changes)
    (folder / "results.json").write_text(json.dumps(results))
    return results


def test_the_card_and_its_model_index_have_the_benchmarks(run):
    evaluated(run)
    card = write_card(run)
    text = card.read_text()
    assert "| benchmark | problems | avg@8 accuracy, % | 95 % interval |" in text
    assert "| Geometry3K | 1,200 | 31.0 | 26.0 to 36.0 |" in text
    assert "| **Overall** | 3 benchmarks | 52.0 | 47.0 to 57.0 |" in text
    assert "temperature 1, top-p 1, graded by math" in text
    assert check_card(card) == []
    entries = {entry.dataset_name: entry for entry in ModelCard.load(card).data.eval_results}
    assert {name: entry.metric_value for name, entry in entries.items()} == {
        "Geometry3K": 30.95,
        "CLEVR counting": 50.0,
        "mine": 75.0,
    }
    geometry = entries["Geometry3K"]
    assert (geometry.dataset_type, geometry.dataset_split) == ("PAPOGalaxy/PAPO_eval", "hiyouga_geometry3k")
    assert (geometry.dataset_revision, geometry.metric_name) == (COMMIT, "avg@8 accuracy (%)")
    assert (entries["mine"].dataset_type, entries["mine"].dataset_revision) == ("local", None), (
        "no commit: not the Hub's"
    )


def test_the_hub_gets_what_was_measured_whole_on_its_own_datasets(run, tmp_path):
    evaluated(run)
    place = tmp_path / ".eval_results"
    place.mkdir()
    (place / "by_hand.yaml").write_text("- value: 1\n")
    (place / "mathvista.yaml").write_text("- notes: avg@8, measured by papo_hub\n")  # of an earlier call
    (file,) = write_eval_results(run, tmp_path)
    assert file == place / "geometry3k.yaml"  # counting: its first rows alone; mine: not on the Hub
    assert sorted(file.name for file in place.iterdir()) == ["by_hand.yaml", "geometry3k.yaml"]
    (entry,) = parse_eval_result_entries(yaml.safe_load(file.read_text()))
    assert (entry.dataset_id, entry.task_id) == ("PAPOGalaxy/PAPO_eval", "hiyouga_geometry3k")
    assert (entry.value, entry.dataset_revision, entry.date) == (30.95, COMMIT, "2026-01-02T03:04:05Z")
    assert entry.notes == (
        "avg@8 accuracy in percent, temperature 1, top-p 1, graded by math, 1200 problems, measured by papo_hub"
    )


def test_results_of_other_weights_are_not_shown(run):
    evaluated(run)
    assert benchmark_results(run)
    save_file({"weight": zeros(3)}, run / "model" / "model.safetensors")
    assert benchmark_results(run) == {} and benchmark_table({}) == []
    assert "Geometry3K" not in write_card(run).read_text()
    assert write_eval_results(run, run / "model") == []


def test_the_fingerprint_is_of_what_makes_the_model(run):
    before = fingerprint(run / "model")
    (run / "model" / "provenance.json").write_text("{}")  # beside the weights of a version that is pushed
    (run / "model" / "README.md").write_text("")
    assert fingerprint(run / "model") == before
    (run / "model" / "generation_config.json").write_text("{}")
    assert fingerprint(run / "model") != before
    assert fingerprint(run / "nothing") is None


def test_the_entry_alone_is_a_front_matter(tmp_path):
    content = write_entry(measured(), tmp_path).read_text()
    loaded = ModelCard(f"---\n{content}\n---\n# x")
    assert loaded.data.model_name == "run/model" and len(loaded.data.eval_results) == 3


@pytest.mark.parametrize("content", ["{", "[]", '{"settings": {}}', '{"settings": {"model": {"weights": "x"}}}'])
def test_a_damaged_file_is_named(run, content):
    evaluated(run)
    (run / "evaluation" / "final" / "results.json").write_text(content)
    with pytest.raises(ValueError, match=r"results\.json"):
        write_card(run)


def test_a_hostile_title_stays_text(run):
    evaluated(run, title="a | b <script>\n# c")
    card = write_card(run)
    assert "<script>" not in card.read_text() and check_card(card) == []


def test_what_holds_no_longer_does_not_stay(tmp_path):
    """An evaluation folder whose command was given again, now with a limit."""
    assert len(write_benchmark_results(measured(), tmp_path)) == 1
    limited = measured()
    limited["settings"]["benchmarks"][0]["limit"] = 50
    assert write_benchmark_results(limited, tmp_path) == []
    assert list((tmp_path / ".eval_results").iterdir()) == []
