"""A dataset on the Hub is the dataset that was built: by content, downloaded and streamed."""

import json
from pathlib import Path

import pytest

from papo_hub.cli import push_dataset_command

NAME = "alice/digits"

LOAD = """
import json
import datasets
from papo_hub.dataset import content_hash
whole = datasets.load_dataset({name!r}, revision="v1.0", split="test")
streamed = datasets.load_dataset({name!r}, revision="v1.0", split="test", streaming=True)
print(json.dumps([type(whole.features["images"].feature).__name__, content_hash(whole), content_hash(list(streamed))]))
"""


@pytest.fixture
def pushed(here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert push_dataset_command(["digits", NAME, "--split", "train", "test", "--limit", "20", "--tag", "v1.0"]) == 0
    return json.loads(Path("datasets", NAME, "statistics.json").read_text())


def test_it_loads_back_equal(pushed, elsewhere):
    printed = json.loads(elsewhere(LOAD.format(name=NAME)).splitlines()[-1])
    assert printed == ["Image", *[pushed["splits"]["test"]["content_hash"]] * 2]


def test_repeating_sends_nothing_and_a_tag_is_not_moved(pushed, here, capsys):
    arguments = ["digits", NAME, "--split", "train", "test", "--limit", "20", "--tag", "v1.0"]
    here.requests.clear()
    assert push_dataset_command(arguments) == 0
    assert here.count("POST", "/commit/") == 0 == here.count("PUT", "")
    assert push_dataset_command([*arguments[:-3], "19", *arguments[-2:]]) == 2
    assert "hf repos tag delete alice/digits v1.0 --type dataset" in capsys.readouterr().err


def test_bad_input_is_one_message(here, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"problem": "no image <image>", "answer": "1", "images": []}\n')
    for arguments, words in [
        (["digits", "no-owner"], "must be OWNER/NAME"),
        (["nothing.parquet", NAME], "nothing.parquet"),
        (["rows.jsonl", NAME], "row 0: no image"),
        (["digits", NAME, "--license", "mine"], "none that the Hub knows"),
    ]:
        assert push_dataset_command(arguments) == 2, arguments
        errors = capsys.readouterr().err
        assert words in errors and "Traceback" not in errors
    assert here.requests == [] and not list(Path("datasets").rglob("*.parquet"))


def test_a_run_remembers_which_commit_it_read(pushed, here, elsewhere):
    program = """
from papo_hub.rows import load_rows
from papo_hub.hub.cache import read_commit
assert read_commit({name!r}, None, "dataset") is None  # not read yet
load_rows({name!r})
print(read_commit({name!r}, None, "dataset"), read_commit("digits", None, "dataset"), read_commit({name!r}, "f" * 40, "dataset"))
"""
    printed = elsewhere(program.format(name=NAME)).split()[-3:]
    assert printed == [here.repo(NAME, "dataset").head(), "None", "f" * 40]


def test_a_dataset_made_from_one_on_the_hub_says_which(pushed, here, elsewhere, tmp_path):
    """Source: a repository at a tag; its commit is what the tag stood for, and the rows are the same."""
    program = "import sys; from papo_hub.cli import push_dataset_command; sys.exit(push_dataset_command(sys.argv[1:]))"
    arguments = [NAME, "alice/copy", "--split", "test", "--source_revision", "v1.0"]
    elsewhere(["-c", program, *arguments], token=here.write_token)
    statistics = json.loads(here.repo("alice/copy", "dataset").files()["statistics.json"])
    commit = here.repo(NAME, "dataset").tags["v1.0"]
    assert statistics["source"] == {"name": NAME, "kind": "hub", "revision": "v1.0", "commit": commit}
    assert statistics["splits"]["test"]["content_hash"] == pushed["splits"]["test"]["content_hash"]
