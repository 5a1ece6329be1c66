"""What of a folder is sent, under which hashes, and what is refused."""

import hashlib
import subprocess
from types import SimpleNamespace

import pytest

from papo_hub.hub.client import HubError
from papo_hub.hub.folder import difference, hashes, listing

TOKEN = "hf_" + "a1B2c3D4" * 4


@pytest.fixture
def folder(tmp_path):
    for name, content in {
        "model.safetensors": b"\0" * 10,
        "config.json": b"{}",
        "figures/reward.png": b"png",
        ".eval_results/papo_hub.yaml": b"[]",
        ".git/config": b"secret",
        ".DS_Store": b"x",
        "__pycache__/a.pyc": b"x",
    }.items():
        file = tmp_path / "model" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return tmp_path / "model"


def held(item, large=False, **changes):
    """The item as the Hub lists it."""
    entry = {"path": item.path, "size": item.size, "blob_id": item.blob, "lfs": None}
    if large:
        entry |= {"blob_id": "pointer", "lfs": SimpleNamespace(sha256=item.sha256, size=item.size)}
    return SimpleNamespace(**entry | changes)


def test_hidden_files_and_caches_stay(folder):
    paths = [item.path for item in listing(folder)]
    assert paths == [".eval_results/papo_hub.yaml", "config.json", "figures/reward.png", "model.safetensors"]


def test_hashes_are_the_ones_of_sha256sum_and_git(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(bytes(range(256)) * 9000)  # more than one chunk
    sha256, blob = hashes(file)
    assert sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    git = subprocess.run(["git", "hash-object", str(file)], capture_output=True, text=True, check=True)
    assert blob == git.stdout.strip()


def test_only_what_differs_is_sent(folder):
    items = {item.path: item for item in listing(folder)}
    weights, config = items["model.safetensors"], items["config.json"]
    there = {path: held(item, large=path.endswith("safetensors")) for path, item in items.items()}
    assert difference(list(items.values()), there, "model") == ([], [])
    there["model.safetensors"].lfs.sha256 = "0" * 64
    assert difference(list(items.values()), there, "model") == ([weights], [])
    there["model.safetensors"] = held(weights)  # once committed as a regular file
    there["config.json"] = held(config, blob_id="0" * 40)
    assert difference(list(items.values()), there, "model") == ([config], [])


def test_leftovers_of_a_version_go_and_additions_of_people_stay(folder):
    items = listing(folder)
    there = {item.path: held(item) for item in items}
    extra = ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "figures/old.png", "modeling_x.py"]
    kept = [".gitattributes", "LICENSE", "assets/logo.png", "demo.ipynb", "quantised/model.gguf"]
    there |= {path: SimpleNamespace(path=path) for path in extra + kept}
    assert difference(items, there, "model") == ([], sorted(extra))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "optimizer.pt", "scaler.PKL"])
def test_pickled_files_are_refused(folder, name):
    (folder / name).write_bytes(b"x")
    with pytest.raises(HubError, match=f"{name} is of a format that runs code"):
        listing(folder)


def test_a_link_out_of_the_folder_is_refused(folder, tmp_path):
    (tmp_path / "outside.json").write_text("{}")
    (folder / "inside.json").symlink_to(folder / "config.json")
    assert "inside.json" in [item.path for item in listing(folder)]
    (folder / "link.json").symlink_to(tmp_path / "outside.json")
    with pytest.raises(HubError, match=r"link.json is a link that leads out"):
        listing(folder)


def test_a_token_is_found_before_it_leaves(folder):
    (folder / "config.yaml").write_text(f"a: 1\nb: {TOKEN}\n")
    with pytest.raises(HubError, match=r"config.yaml, line 2 holds what reads like an access token") as caught:
        listing(folder)
    assert TOKEN not in str(caught.value)
    (folder / "config.yaml").write_text("b: hf_datasets and swordfish\n")
    listing(folder)
    with pytest.raises(HubError, match="line 1 holds what reads like an access token"):
        listing(folder, "swordfish")


def test_nothing_to_push(tmp_path):
    with pytest.raises(HubError, match="no folder"):
        listing(tmp_path / "none")
    with pytest.raises(HubError, match="nothing to push"):
        listing(tmp_path)
