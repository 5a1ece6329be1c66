"""A dataset in the form in which the paper's rows are published, read from a Hub end to end."""

import json
import zipfile
from hashlib import sha256
from io import BytesIO

import datasets
import pytest
from PIL import Image

NAME, SPLIT, OTHER = "alice/PAPO_eval", "AI4Math_MathVista", "hiyouga_geometry3k"
CARD = f"""---
configs:
- config_name: default
  data_files:
  - split: {SPLIT}
    path: data/{SPLIT}-*
  - split: {OTHER}
    path: data/{OTHER}-*
---
"""
READ = """
import json, sys
from dataclasses import replace
from papo_hub.data import UnusableRow, check_row
from papo_hub.evaluation.benchmarks import BENCHMARKS, load
from papo_hub.hub import HubError
entry = replace(BENCHMARKS[sys.argv[1]], dataset="alice/PAPO_eval", **json.loads(sys.argv[2]))
try:
    rows = load(entry)
except HubError as error:
    sys.exit(str(error))
for index in range(len(rows)):
    row = rows[index]
    try:
        sample = check_row(row, rows.root)
        print(json.dumps([sample.id, sample.problem, sample.answer, [im.getpixel((0, 0)) for im in sample.images], sample.tags]))
    except UnusableRow as error:
        print(json.dumps([row["id"], error.reason]))
"""


def png(colour: str) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (40, 30), colour).save(buffer, "PNG")
    return buffer.getvalue()


def row(number: int, problem: str, *images: str) -> dict:
    said = {"user": f"{problem} Answer in \\boxed{{}}.", "assistant": f"{number}"}
    messages = [{"role": role, "content": content} for role, content in said.items()]
    return {
        "id": f"q{number}",
        "messages": messages,
        "images": [f"./data/images/{name}" for name in images],
        "kind": "k",
    }


@pytest.fixture
def published(api, tmp_path):
    """Two splits and their archives, in one commit."""
    folder = tmp_path / "repository"
    (folder / "data").mkdir(parents=True)
    folder.joinpath("README.md").write_text(CARD)
    tables = {
        SPLIT: [
            row(0, "<image>Red?", "set/red.png"),
            row(1, "<image>Broken?", "set/broken.png"),
            row(2, "<image>Missing?", "set/missing.png"),
            row(3, "<image>Out?", "../out.png"),
            row(4, "<image><image>How many?", "set/red.png"),
            row(5, "<image>Red, <image>blue?", "set/red.png", "set/blue.png"),
        ],
        OTHER: [row(0, "<image>Blue?", "set/blue.png")],
    }
    members = {"set/red.png": png("red"), "set/blue.png": png("blue"), "../out.png": png("red")}
    members["set/broken.png"] = png("red")[:60]
    for split, rows in tables.items():
        datasets.Dataset.from_list(rows).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
        with zipfile.ZipFile(folder / f"{split}_images.zip", "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
    api.create_repo(NAME, repo_type="dataset")
    api.upload_folder(repo_id=NAME, repo_type="dataset", folder_path=folder)
    return f"{SPLIT}_images.zip"


def test_official_rows_are_read_and_what_is_wrong_costs_its_row(published, hub, elsewhere, tmp_path):
    head, home = hub.repo(NAME, "dataset").head(), tmp_path / "home"
    hub.requests.clear()
    arguments = ["-c", READ, "mathvista", "{}"]
    printed = [json.loads(line) for line in elsewhere(arguments, home=home).splitlines()]
    red, blue, end = [255, 0, 0], [0, 0, 255], "Answer in \\boxed{}."
    assert printed[0] == ["q0", f"<image>Red? {end}", "0", [red], {"kind": "k"}]
    assert printed[5] == ["q5", f"<image>Red, <image>blue? {end}", "5", [red, blue], {"kind": "k"}]
    assert [line[0] for line in printed] == [f"q{number}" for number in range(6)]
    reasons = [line[1] for line in printed[1:5]]
    assert reasons[0].startswith("unusable image: the image is truncated or damaged")
    assert reasons[1] == f"image is not in {published}: './data/images/set/missing.png'"
    assert reasons[2] == f"image path leaves {published}: './data/images/../out.png'"
    assert reasons[3] == "placeholders do not match images: 2 <image> for 1"
    assert not list(tmp_path.rglob("out.png")) and not list(home.rglob("red.png"))

    # The archive of this split alone, once, at the commit of the rows.
    content = hub.repo(NAME, "dataset").files()[published]
    assert hub.count("HEAD", f"/resolve/{head}/{published}") == hub.count("HEAD", ".zip") == 1
    assert hub.count("GET", f"/lfs/dataset/{NAME}/{sha256(content).hexdigest()}") == 1
    hub.requests.clear()
    again = elsewhere(arguments, home=home, HF_HUB_OFFLINE="1")
    assert [json.loads(line) for line in again.splitlines()] == printed and hub.requests == []


def test_an_archive_that_is_not_there_is_one_message(published, elsewhere):
    process = elsewhere(["-c", READ, "geometry3k", '{"archive": "absent.zip"}'], check=False)
    assert process.returncode == 1 and "Traceback" not in process.stderr
    assert f"Could not download absent.zip of {NAME}: 404" in process.stderr
