"""papo-hub evaluate with model and data on the Hub, and its results on the way back there."""

import json
import shutil

import datasets
import pytest
import yaml
from hub.test_benchmarks_on_hub import png
from huggingface_hub import ModelCard

COMMAND = ["-c", "import sys; from papo_hub.cli import main; sys.exit(main(sys.argv[1:]))"]
QUESTIONS, MODEL = "alice/colours", "alice/model"
SHORT = ["--benchmarks", f"{QUESTIONS}@v1", "--views", "clean", "blank", "--max_completion_length", "4"]


@pytest.fixture
def questions(api, tmp_path):
    """Four questions at the tag v1; main has gone on. Returns the commit of v1."""
    folder = tmp_path / "questions"
    folder.mkdir()
    rows = [
        {"problem": f"<image> {i}?", "answer": f"{i}", "images": [{"bytes": png("red"), "path": None}]}
        for i in range(4)
    ]
    datasets.Dataset.from_list(rows).to_parquet(folder / "test.parquet")
    api.create_repo(QUESTIONS, repo_type="dataset")
    commit = api.upload_folder(repo_id=QUESTIONS, repo_type="dataset", folder_path=folder).oid
    api.create_tag(QUESTIONS, tag="v1", repo_type="dataset")
    datasets.Dataset.from_list(rows[:1]).to_parquet(folder / "test.parquet")
    api.upload_folder(repo_id=QUESTIONS, repo_type="dataset", folder_path=folder)
    return commit


def test_a_model_by_its_id_and_tag(questions, api, finished_run, elsewhere, tmp_path):
    api.create_repo(MODEL)
    first = api.upload_folder(repo_id=MODEL, folder_path=finished_run / "model").oid
    api.create_tag(MODEL, tag="v1.0")
    config = json.loads((finished_run / "model" / "generation_config.json").read_text()) | {"max_length": 99}
    api.upload_file(path_or_fileobj=json.dumps(config).encode(), path_in_repo="generation_config.json", repo_id=MODEL)
    folder, home = tmp_path / "results", tmp_path / "home"
    command = [*COMMAND, "evaluate", MODEL, *SHORT, "--output_dir", str(folder)]

    printed = elsewhere([*command, "--revision", "v1.0", "--k", "2"], home=home)
    assert "colours" in printed and f"{folder / 'report.md'}" in printed
    settings = json.loads((folder / "settings.json").read_text())
    assert settings["model"] | {"base": None} == {
        "name": f"{MODEL}@v1.0", "revision": "v1.0", "commit": first, "weights": None, "base": None,
    }  # fmt: skip
    (benchmark,) = settings["benchmarks"]
    assert (benchmark["dataset"], benchmark["revision"], benchmark["commit"]) == (QUESTIONS, "v1", questions)
    results = json.loads((folder / "results.json").read_text())
    assert {(row["view"], row["problems"], row["k"]) for row in results["rows"]} == {("clean", 4, 2), ("blank", 4, 1)}
    (entry,) = yaml.safe_load((folder / ".eval_results" / "colours.yaml").read_text())
    assert entry["dataset"]["id"] == QUESTIONS and entry["dataset"]["revision"] == questions
    assert entry["value"] == round(100 * results["rows"][0]["accuracy"], 2)
    assert QUESTIONS in (folder / "model-index.yaml").read_text()

    # More answers keep those that are there; another model does not get into the same transcript.
    answers = (folder / "answers.jsonl").read_text().splitlines()
    elsewhere([*command, "--revision", "v1.0", "--k", "4"], home=home)
    more = (folder / "answers.jsonl").read_text().splitlines()
    assert set(answers) < set(more) and len(more) == 4 * (4 + 1)
    process = elsewhere([*command, "--k", "4"], home=home, check=False)
    assert process.returncode == 2 and "another model commit" in process.stderr
    assert (folder / "answers.jsonl").read_text().splitlines() == more


def test_a_run_goes_to_the_hub_with_its_results(questions, here, finished_run, elsewhere, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "papo_g")
    elsewhere([*COMMAND, "evaluate", str(run), *SHORT, "--k", "2"])
    elsewhere([*COMMAND, "push", str(run), MODEL], token=here.write_token)
    files = here.repo(MODEL).files("main")
    (entry,) = yaml.safe_load(files[".eval_results/colours.yaml"])
    assert entry["dataset"]["id"] == QUESTIONS
    card = files["README.md"].decode()
    assert "| colours | 4 |" in card
    results = {result.dataset_name: result for result in ModelCard(card).data.eval_results}
    assert results["colours"].dataset_type == QUESTIONS and results["colours"].dataset_revision == questions
    assert not [name for name in files if "answers" in name], "transcripts stay here"
