"""The unmodified clients against the test Hub."""

import pytest
from huggingface_hub import CommitOperationAdd
from huggingface_hub.errors import HfHubHTTPError

WEIGHTS = bytes(range(256)) * 40


def test_a_repository_from_its_creation_to_its_download(hub, api, tmp_path):
    url = api.create_repo("alice/model", private=True)
    assert (url.repo_id, api.create_repo("alice/model", exist_ok=True)) == ("alice/model", url)
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("alice/model")
    operations = [
        CommitOperationAdd("model.safetensors", WEIGHTS),
        CommitOperationAdd("sub/config.json", b"{}"),
        CommitOperationAdd("README.md", b"---\nlicense: mit\n---\n# Card\n"),
    ]
    made = api.create_commit(
        "alice/model", operations, commit_message="All", parent_commit=hub.repo("alice/model").head()
    )
    repo = hub.repo("alice/model")
    assert made.oid == repo.head() == api.model_info("alice/model").sha
    assert repo.files()["model.safetensors"] == WEIGHTS
    assert [commit.title for commit in repo.log()] == ["All", "initial commit"]
    api.create_tag("alice/model", tag="v1", revision=made.oid)
    api.upload_file(path_or_fileobj=b"{1}", path_in_repo="sub/config.json", repo_id="alice/model")
    assert repo.files("v1")["sub/config.json"] == b"{}"
    folder = api.snapshot_download("alice/model", revision="v1")
    from pathlib import Path

    assert Path(folder, "sub/config.json").read_bytes() == b"{}"
    assert Path(folder, "model.safetensors").read_bytes() == WEIGHTS
    print(hub.requests)
    print(hub.unknown)
    assert not hub.unknown
