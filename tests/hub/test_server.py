"""The unmodified clients against the test Hub, and the test Hub against hand-made requests."""

import base64
import hashlib
import json
import subprocess
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import lz4.frame
import pytest
from hub import xet
from hub.server import HubServer
from hub.storage import Blob, Commit, git_oid
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session
from safetensors.torch import load_file

NAME = "alice/model"
WEIGHTS = bytes(range(256)) * 40  # binary: large file storage, whatever its name
COMMIT = f"/api/models/{NAME}/commit/main"


@pytest.fixture
def repo(hub, api):
    """An empty model repository of alice's."""
    api.create_repo(NAME)
    hub.requests.clear()
    return hub.repo(NAME)


def files(repo, revision="main"):
    """What a revision holds besides what the Hub put there."""
    return {path: data for path, data in repo.files(revision).items() if path != ".gitattributes"}


def commit(api, files, parent=None, message="A commit", **options):
    operations = [CommitOperationAdd(path, data) for path, data in files.items()]
    return api.create_commit(NAME, operations, commit_message=message, parent_commit=parent, **options)


def raw(url, method="GET", body=None, token=None, **headers):
    """(status, headers, body) of a request by no client in particular."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    headers |= {"Authorization": f"Bearer {token}"} if token else {}
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers, method=method), timeout=10) as response:
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


# ---- what clients do


def test_a_repository_from_its_creation_to_its_download(hub, api):
    url = api.create_repo(NAME, private=True)
    assert url.repo_id == NAME
    assert api.create_repo(NAME, exist_ok=True) == url
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo(NAME)
    held = {"model.safetensors": WEIGHTS, "sub/config.json": b"{}", "README.md": b"---\nlicense: mit\n---\n"}
    made = commit(api, held, hub.repo(NAME).head(), "All")
    api.create_tag(NAME, tag="v1", revision=made.oid)
    api.upload_file(path_or_fileobj=b"{1}", path_in_repo="sub/config.json", repo_id=NAME)

    repo = hub.repo(NAME)
    assert repo.tags == {"v1": made.oid}
    assert repo.head() == api.model_info(NAME).sha != made.oid
    assert [each.title for each in repo.log()] == [
        "Upload sub/config.json with huggingface_hub",
        "All",
        "initial commit",
    ]
    assert files(repo, "v1") == held
    folder = Path(api.snapshot_download(NAME, revision="v1"))
    assert {path: (folder / path).read_bytes() for path in held} == held
    assert (
        hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        == repo.commit_at("v1").tree["model.safetensors"].etag
    )
    assert Path(api.hf_hub_download(NAME, "sub/config.json")).read_bytes() == b"{1}"
    assert not api.verify_repo_checksums(NAME, revision="v1").mismatches
    assert hub.unknown == []
    assert {seen.port for seen in hub.requests if not seen.authorised} == {"storage"}
    assert {seen.port for seen in hub.requests} == {"hub", "storage"}
    api.delete_repo(NAME)
    assert not api.repo_exists(NAME)


def test_what_is_there_is_not_sent_again(hub, api, repo, tmp_path):
    (tmp_path / "up").mkdir()
    (tmp_path / "up/a.bin").write_bytes(WEIGHTS)
    (tmp_path / "up/b.txt").write_text("b")
    first = api.upload_folder(folder_path=tmp_path / "up", repo_id=NAME)
    assert (hub.count("PUT", "/lfs/"), hub.count("POST", COMMIT)) == (1, 1)
    again = api.upload_folder(folder_path=tmp_path / "up", repo_id=NAME)  # preupload names what stands there
    assert (again.oid, hub.count("POST", COMMIT)) == (first.oid, 1)
    commit(api, {"other name.bin": WEIGHTS})  # another place, the same object
    assert (hub.count("PUT", "/lfs/"), hub.count("POST", COMMIT)) == (1, 2)
    assert files(repo) == {"a.bin": WEIGHTS, "b.txt": b"b", "other name.bin": WEIGHTS}


def test_which_files_are_large(hub, repo):
    samples = {
        "by-name.safetensors": b"text",
        "by-sample": WEIGHTS[:512],
        "by-zero": b"te\0xt",
        "by-size.txt": b"text",
        "regular.txt": "naïve".encode()[:3],  # cut within a character
    }
    sizes = {"by-size.txt": 10_000_001}
    body = [
        {"path": path, "size": sizes.get(path, 512), "sample": base64.b64encode(data).decode()}
        for path, data in samples.items()
    ]
    answer = raw(f"{hub.url}/api/models/{NAME}/preupload/main", "POST", {"files": body}, hub.write_token)[2]
    modes = {file["path"]: file["uploadMode"] for file in json.loads(answer)["files"]}
    assert modes == {path: "regular" if path == "regular.txt" else "lfs" for path in samples}


def test_parts_of_a_large_file(hub, api, repo):
    hub.part_size = 4000
    commit(api, {"a.bin": WEIGHTS, "small.bin": b"\0"})
    assert files(repo) == {"a.bin": WEIGHTS, "small.bin": b"\0"}
    assert (len(WEIGHTS), hub.count("PUT", "/parts/"), hub.count("PUT", "/lfs/")) == (10240, 3, 1)
    assert hub.count("POST", "/api/complete_multipart") == 1


def test_branches_tags_and_history(hub, api, repo):
    first = commit(api, {"a": b"1"}).oid
    api.create_branch(NAME, branch="gamma-0.02", revision=first)
    api.create_branch(NAME, branch="gamma-0.02", exist_ok=True)
    commit(api, {"a": b"2"}, revision="gamma-0.02", message="Title", commit_description="Body")
    api.create_tag(NAME, tag="v1", revision="gamma-0.02")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_tag(NAME, tag="v1", revision=first)
    with pytest.raises(RevisionNotFoundError):
        api.create_tag(NAME, tag="v2", revision="0" * 40)
    refs = api.list_repo_refs(NAME)
    assert {ref.name: ref.target_commit for ref in refs.branches} == repo.branches
    assert {ref.name: ref.target_commit for ref in refs.tags} == {"v1": repo.head("gamma-0.02")}
    log = api.list_repo_commits(NAME, revision="v1")
    assert [(each.title, each.message) for each in log] == [("Title", "Body"), ("A commit", ""), ("initial commit", "")]
    assert [each.oid for each in repo.log("gamma-0.02")] == [each.commit_id for each in log]
    assert (files(repo)["a"], files(repo, "gamma-0.02")["a"]) == (b"1", b"2")

    api.super_squash_history(NAME, branch="gamma-0.02", commit_message="One")
    assert [each.title for each in api.list_repo_commits(NAME, revision="gamma-0.02")] == ["One"]
    assert files(repo, "gamma-0.02") == {"a": b"2"}
    api.delete_tag(NAME, tag="v1")
    api.delete_branch(NAME, branch="gamma-0.02")
    assert (repo.tags, repo.branches) == ({}, {"main": first})
    with pytest.raises(RevisionNotFoundError):
        api.delete_branch(NAME, branch="gamma-0.02")


def test_listings_come_in_pages(hub, api, repo):
    names = [f"deep/er/{letter}.txt" for letter in "abcde"] + ["deep/x.bin", "top"]
    commit(api, {name: WEIGHTS if name.endswith("bin") else b"text" for name in names}, message="Files")
    commit(api, {"top": b"newer"}, message="Top")
    hub.page_size = 2
    hub.requests.clear()
    assert sorted(api.list_repo_files(NAME)) == sorted([".gitattributes", *names])
    assert hub.count("GET", "/tree/") == 5  # 8 files and 2 folders, two a page
    assert [entry.path for entry in api.list_repo_tree(NAME, "deep")] == ["deep/er", "deep/x.bin"]
    found = {
        entry.path: entry for entry in api.get_paths_info(NAME, ["deep/x.bin", "deep/er", "none", "top"], expand=True)
    }
    assert set(found) == {"deep/x.bin", "deep/er", "top"}
    assert (found["top"].last_commit.title, found["deep/er"].last_commit.title) == ("Top", "Files")
    assert found["top"].blob_id == git_oid("blob", b"newer")
    assert (found["deep/x.bin"].lfs.sha256, found["deep/x.bin"].size) == (hashlib.sha256(WEIGHTS).hexdigest(), 10240)
    assert len(api.list_repo_commits(NAME)) == 3
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(NAME, "nowhere"))
    sizes = {
        each.rfilename: (each.size, each.lfs is not None) for each in api.model_info(NAME, files_metadata=True).siblings
    }
    assert (sizes["deep/x.bin"], sizes["top"]) == ((10240, True), (5, False))
    for name in ("alice/b", "alice/c"):
        api.create_repo(name, private=True)
    assert {each.id for each in api.list_models(author="alice")} == {NAME, "alice/b", "alice/c"}
    eve = HfApi(hub.url, hub.stranger_token)
    assert [each.id for each in eve.list_models(author="alice")] == [NAME]


def test_deletions_are_all_or_nothing(api, repo):
    commit(api, {"a": b"1", "sub/b": b"2", "sub/c": b"3"})
    head = repo.head()
    with pytest.raises(EntryNotFoundError, match="A file with this name doesn't exist"):
        api.create_commit(NAME, [CommitOperationDelete("a"), CommitOperationDelete("sub")], commit_message="Both")
    assert repo.head() == head
    api.create_commit(NAME, [CommitOperationDelete("a"), CommitOperationDelete("sub/")], commit_message="Both")
    assert files(repo) == {}


def test_a_pull_request_leaves_the_branch_alone(api, repo):
    head = repo.head()
    assert commit(api, {"a": b"1"}, create_pr=True).pr_revision == "refs/pr/1"
    assert (repo.head(), files(repo, "refs/pr/1")) == (head, {"a": b"1"})
    assert [each.ref for each in api.list_repo_refs(NAME, include_pull_requests=True).pull_requests] == ["refs/pr/1"]


# ---- who may do what


def test_errors_are_those_of_the_hub(hub, api, repo):
    commit(api, {"a": b"1"})
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("alice/none")
    with pytest.raises(RevisionNotFoundError):
        api.hf_hub_download(NAME, "a", revision="none")
    with pytest.raises(EntryNotFoundError) as caught:
        api.hf_hub_download(NAME, "none")
    assert caught.value.response.headers["X-Repo-Commit"] == repo.head()
    with pytest.raises(BadRequestError, match="Invalid reference name"):
        api.create_tag(NAME, tag="a..b")
    with pytest.raises(RevisionNotFoundError):
        commit(api, {"a": b"2"}, revision="none")


def test_tokens_and_what_they_may_do(hub, api, repo):
    reader, eve, nobody = (HfApi(hub.url, token) for token in (hub.read_token, hub.stranger_token, False))
    stranger = HfApi(hub.url, "hf_" + "x" * 34)
    bot = HfApi(hub.url, hub.add_token("alice", "fineGrained", scope=("alice/other",)))
    assert [each.whoami()["name"] for each in (api, reader, eve)] == ["alice", "alice", "eve"]
    assert [each.whoami()["auth"]["accessToken"]["role"] for each in (api, reader, bot)] == [
        "write",
        "read",
        "fineGrained",
    ]
    for client, status in ((stranger, 401), (nobody, 401), (reader, 403), (eve, 403), (bot, 403)):
        with pytest.raises(HfHubHTTPError) as caught:
            commit(client, {"a": b"1"})
        assert caught.value.response.status_code == status
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        stranger.whoami()
    with pytest.raises(HfHubHTTPError, match="rights to create a model under the namespace"):
        eve.create_repo("alice/mine")
    bot.create_repo("alice/other")
    hub.add_account("eve", organisations=("lab",))
    assert eve.create_repo("lab/model").repo_id == "lab/model"
    assert files(repo) == {}


def test_private_and_gated(hub, api, repo):
    commit(api, {"a": b"1", "b.bin": WEIGHTS})
    eve, nobody = HfApi(hub.url, hub.stranger_token), HfApi(hub.url, False)
    api.update_repo_settings(NAME, gated="auto")
    for client in (eve, nobody):
        assert client.model_info(NAME).gated == "auto"
        for path in ("a", "b.bin"):
            with pytest.raises(GatedRepoError):
                client.hf_hub_download(NAME, path)
    repo.granted.add("eve")
    assert Path(eve.hf_hub_download(NAME, "b.bin")).read_bytes() == WEIGHTS
    api.auth_check(NAME, write=True)
    api.update_repo_settings(NAME, gated=False, private=True)
    for client in (eve, nobody):
        with pytest.raises(RepositoryNotFoundError):
            client.model_info(NAME)
    assert api.model_info(NAME).private


def test_the_storage_never_sees_a_token(hub, api, repo):
    commit(api, {"b.bin": WEIGHTS})
    hub.requests.clear()
    status, headers, body = raw(f"{hub.url}/{NAME}/resolve/main/b.bin", token=hub.write_token)
    assert (status, hub.leaks.pop().port) == (
        400,
        "storage",
    )  # a client that forwards it, as this one does, is found out
    assert [seen.authorised for seen in hub.requests] == [True, True]
    sha256 = hashlib.sha256(WEIGHTS).hexdigest()
    assert raw(f"{hub.storage_url}/lfs/model/{NAME}/{sha256}?signature=00")[0] == 403


# ---- several writers


def test_a_commit_on_a_parent_that_is_no_longer_the_head(hub, api, repo):
    parent = repo.head()
    hub.before_commit = lambda: commit(api, {"theirs": b"1"}, message="Theirs")
    with pytest.raises(HfHubHTTPError, match="412") as caught:
        commit(api, {"ours": b"1"}, parent)
    assert "A commit has happened since" in str(caught.value)
    assert files(repo) == {"theirs": b"1"}
    commit(api, {"ours": b"1"}, repo.head())  # the hook ran once
    assert [each.title for each in repo.log()] == ["A commit", "Theirs", "initial commit"]


class Slow(dict):
    """References that take a moment to change: time for a race."""

    def __setitem__(self, name, commit):
        time.sleep(0.1)
        super().__setitem__(name, commit)


def at_once(*calls):
    """What each call returns, or the status of its error."""
    together, outcomes = threading.Barrier(len(calls)), []

    def run(call):
        together.wait()
        try:
            outcomes.append(call())
        except HfHubHTTPError as error:
            outcomes.append(error.response.status_code)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def test_of_two_writers_one_wins(hub, api, repo):
    parent, repo.heads = repo.head(), Slow(repo.heads)
    outcomes = at_once(*(lambda name=name: commit(api, {name: b"1"}, parent).oid for name in "ab"))
    assert sorted(outcomes, key=str) == sorted([repo.head(), 412], key=str)
    assert len(repo.log()) == 2
    outcomes = at_once(*(lambda: api.create_branch(NAME, branch="b") for _ in range(2)))
    assert sorted(outcomes, key=str) == [409, None]


# ---- what goes wrong on demand


@pytest.mark.parametrize(("kind", "status"), [("500", 500), ("503", 503), ("429", 429), ("412", 412), ("403", 403)])
def test_a_fault_in_place_of_an_answer(hub, api, repo, kind, status):
    fault = hub.faults.add(kind, method="POST", path="/commit/", retry_after=7)
    with pytest.raises(HfHubHTTPError) as caught:
        commit(api, {"a": b"1"})
    assert (caught.value.response.status_code, fault.fired) == (status, 1)
    assert caught.value.response.headers.get("Retry-After") == ("7" if kind == "429" else None)
    assert len(repo.log()) == 1
    commit(api, {"a": b"1"})
    assert len(repo.log()) == 2


@pytest.mark.parametrize(("kind", "commits"), [("drop_before", 1), ("drop_after", 2)])
def test_a_connection_that_closes_without_an_answer(hub, api, repo, kind, commits):
    hub.faults.add(kind, path="/commit/")
    with pytest.raises(Exception, match="disconnected without sending a response"):
        commit(api, {"a": b"1"})
    assert len(repo.log()) == commits
    assert hub.requests[-1].status == (0 if kind == "drop_before" else 200)


def test_an_answer_that_stops_half_way(hub, api, repo):
    commit(api, {"a": b"0123456789"})
    hub.faults.add("truncate", path="/resolve/")
    with get_session().stream("GET", f"{hub.url}/{NAME}/resolve/main/a") as response:
        assert response.headers["Content-Length"] == "10"
        received = []
        with pytest.raises(Exception, match="peer closed connection"):
            received.extend(response.iter_bytes())
    assert b"".join(received) == b"01234"
    hub.faults.add("truncate", method="GET", path="/resolve/")
    assert Path(api.hf_hub_download(NAME, "a")).read_bytes() == b"0123456789"  # the client asks for the rest


def test_an_answer_that_is_late(hub, api):
    hub.faults.add("hang", seconds=0.3)
    start = time.monotonic()
    api.whoami()
    assert time.monotonic() - start >= 0.3


def test_a_server_stops_at_once_whatever_hangs(online):
    def ask():
        with pytest.raises(Exception, match="disconnected without sending a response"):
            HfApi(hub.url, hub.write_token).whoami()
        gone.append(time.monotonic())

    gone = []
    with HubServer() as hub:
        hub.faults.add("hang", seconds=60)
        client = threading.Thread(target=ask)
        client.start()
        while not hub.requests:
            time.sleep(0.01)
        start = time.monotonic()
    client.join(10)
    assert gone and gone[0] - start < 5


def test_no_room_left(hub, api, repo):
    hub.faults.add("quota", path="/objects/batch")
    with pytest.raises(ValueError, match="storage limit reached"):
        commit(api, {"a.bin": WEIGHTS})
    hub.faults.add("quota", path="/commit/")
    with pytest.raises(HfHubHTTPError, match="storage limit reached"):
        commit(api, {"a.bin": WEIGHTS})
    assert len(repo.log()) == 1


def test_a_fault_at_a_given_request(hub, api, repo):
    commit(api, {"a.bin": WEIGHTS})
    kinds = [(seen.method, seen.port) for seen in hub.requests]
    hub.requests.clear()
    number = kinds.index(("PUT", "storage")) + 1
    fault = hub.faults.add("503", nth=number)
    commit(api, {"a.bin": WEIGHTS + b"more"})  # the client tries once more, a second later
    assert [seen.status for seen in hub.requests if seen.method == "PUT"] == [503, 200]
    assert (hub.requests[number - 1].status, fault.fired) == (503, 1)
    with pytest.raises(ValueError, match="unknown fault 'teapot'"):
        hub.faults.add("teapot")


# ---- what the Hub refuses


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "must be the header"),
        (["header"], "The commit is empty"),
        (["header", "header"], "must be the header"),
        (["header", {"key": "file", "value": {"path": "a", "content": "?", "encoding": "base64"}}], "Not base64"),
        (["header", {"key": "file", "value": {"path": "a", "content": "", "encoding": "utf-8"}}], "encoding"),
        (["header", {"key": "file", "value": {"path": "../a", "content": "", "encoding": "base64"}}], "Invalid path"),
        (["header", {"key": "file", "value": {"path": "/a", "content": "", "encoding": "base64"}}], "Invalid path"),
        (["header", {"key": "lfsFile", "value": {"path": "a", "algo": "sha256", "oid": "0" * 64}}], "does not exist"),
        (["header", {"key": "rename", "value": {"path": "a"}}], "Unknown operation"),
        (["header", {"key": "file"}], 'Invalid "value"'),
        (["header", "a b"], "must be the header"),
        ([{"key": "header", "value": {"summary": " ", "description": ""}}, "a"], "The summary is empty"),
        (["header", "a", "a/b"], "both a file and a folder"),
    ],
)
def test_malformed_commits(hub, repo, lines, message):
    def line(value):
        if value == "header":
            return {"key": "header", "value": {"summary": "x", "description": ""}}
        if isinstance(value, str) and " " not in value:
            return {"key": "file", "value": {"path": value, "content": "", "encoding": "base64"}}
        return value if isinstance(value, dict) else {"key": "header", "value": {}}

    body = b"".join(json.dumps(line(value)).encode() + b"\n" for value in lines)
    status, _, answer = raw(hub.url + COMMIT, "POST", body, hub.write_token)
    assert status == 400
    assert message in json.loads(answer)["error"]
    assert len(repo.log()) == 1


def test_content_that_is_not_what_was_announced(hub, repo):
    good, bad = b"good", b"evil"
    oid = hashlib.sha256(good).hexdigest()
    body = {"operation": "upload", "hash_algo": "sha256", "objects": [{"oid": oid, "size": 4}]}

    def batch():
        answer = raw(f"{hub.url}/{NAME}.git/info/lfs/objects/batch", "POST", body, hub.write_token)[2]
        return json.loads(answer)["objects"][0].get("actions")

    actions = batch()
    assert raw(actions["upload"]["href"], "PUT", bad)[0] == 422
    assert raw(actions["upload"]["href"], "PUT", good + bad)[0] == 400
    assert raw(actions["verify"]["href"], "POST", {"oid": oid, "size": 4}, hub.write_token)[0] == 404
    assert raw(actions["upload"]["href"], "PUT", good)[0] == 200
    assert raw(actions["verify"]["href"], "POST", {"oid": oid, "size": 4}, hub.write_token)[0] == 200
    assert batch() is None


def test_unknown_and_malformed_requests(hub, repo):
    assert raw(f"{hub.url}/api/teapots")[0] == raw(f"{hub.storage_url}/teapots", "PUT", b"")[0] == 404
    assert [(seen.method, seen.path, seen.port) for seen in hub.unknown] == [
        ("GET", "/api/teapots", "hub"),
        ("PUT", "/teapots", "storage"),
    ]
    for body in (b"{", b"[]", {"files": "all"}, {"files": [{"path": "a"}]}, {"files": [{}] * 257}):
        assert raw(f"{hub.url}/api/models/{NAME}/preupload/main", "POST", body, hub.write_token)[0] == 400
    url = f"{hub.url}/{NAME}/resolve/main/.gitattributes"
    whole = raw(url)[2]
    assert raw(url, Range="bytes=2-4")[::2] == (206, whole[2:5])
    assert raw(url, Range="bytes=-3")[::2] == (206, whole[-3:])
    assert raw(url, Range=f"bytes={len(whole)}-")[0] == 416
    assert raw(url, Range="lines=1-2")[0] == 400


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("---\nlicense: [\n---\n", "Invalid YAML"),
        ("---\n- a\n---\n", "must be a mapping"),
        ("---\nlicense: 3\n---\n", '"license" must be a string'),
        ("---\nmodel-index: x\n---\n", '"model-index" must be an array'),
        ("---\nmodel-index:\n- results: []\n---\n", '"model-index[0].name" is required'),
        (
            "---\nmodel-index:\n- name: m\n  results:\n  - task: {type: t}\n    metrics: [{type: acc}]\n---\n",
            '"model-index[0].results[0].metrics[0].value" is required',
        ),
    ],
)
def test_a_card_with_malformed_metadata(api, repo, card, message):
    with pytest.raises(ValueError) as caught:
        commit(api, {"README.md": card.encode()})
    assert message in str(caught.value)
    assert files(repo) == {}


def test_a_card_with_metadata_and_one_without(api, repo):
    card = "---\nlicense: mit\nmodel-index:\n- name: m\n  results:\n  - task: {type: t}\n    metrics: [{type: acc, value: 1}]\n"
    commit(api, {"README.md": f"{card}---\n# Card\n".encode()})
    assert api.model_info(NAME).card_data["license"] == "mit"
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        commit(api, {"README.md": b"# Card"})


# ---- formats


def test_names_of_objects_are_gits(tmp_path):
    contents = {"a.b": b"1", "a/x": b"2", "a/deep/y": b"", "ab": b"hello\n", "z/only": b"3"}
    for path, data in contents.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)
    subprocess.run(["git", "init", "-q", "."], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    oid = subprocess.run(["git", "write-tree"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()
    commit = Commit((), {path: Blob(data) for path, data in contents.items()}, "t", "", "alice")
    assert commit.folders[""] == oid
    assert commit.tree["ab"].oid == "ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object, for "hello\n"


def packed(data, scheme=0, size=None):
    """A chunk of a xorb."""
    size = len(data) if size is None else size
    return b"\0" + len(data).to_bytes(3, "little") + bytes([scheme]) + size.to_bytes(3, "little") + data


def test_xorbs():
    grouped = b"ae" + b"bf" + b"cg" + b"d"  # bytes 0 and 4, 1 and 5, 2 and 6, 3 of "abcdefg"
    data = packed(b"plain") + packed(lz4.frame.compress(b"xyz"), 1, 3) + packed(lz4.frame.compress(grouped), 2, 7)
    xorb = xet.unpack(data + b"XETBLOB and a table of contents")
    assert xorb.chunks == [b"plain", b"xyz", b"abcdefg"]
    assert (xorb.offsets[:2], xorb.offsets[-1]) == ([0, 13], len(data))
    assert xet.name_of(bytes(range(32))).startswith("0706050403020100" + "0f0e")
    for bad in (b"\1" + data, data[:-1], packed(b"plain", 3), packed(b"plain", 0, 4), packed(b"plain", 1)):
        with pytest.raises(ValueError):
            xet.unpack(bad)


def test_a_range_of_a_file_in_several_xorbs(hub, repo):
    for name, chunks in (("a" * 64, [b"01", b"234", b"5"]), ("b" * 64, [b"6789"])):
        hub.xet.xorbs[name] = xet.unpack(b"".join(map(packed, chunks)))
    hub.xet.files["f" * 64] = [xet.Term("a" * 64, 1, 3, 4), xet.Term("b" * 64, 0, 1, 4), xet.Term("a" * 64, 0, 1, 2)]
    token = raw(f"{hub.url}/api/models/{NAME}/xet-read-token/main", token=hub.read_token)[1]["X-Xet-Access-Token"]
    address = f"{hub.storage_url}/v1/reconstructions/{'f' * 64}"

    def fetched(**headers):
        status, _, body = raw(address, token=token, **headers)
        assert status == 200
        plan, data = json.loads(body), b""
        for term in plan["terms"]:
            place = next(each for each in plan["fetch_info"][term["hash"]] if each["range"] == term["range"])
            first, last = place["url_range"]["start"], place["url_range"]["end"]
            pieces = xet.unpack(raw(place["url"], Range=f"bytes={first}-{last}")[2]).chunks
            assert sum(map(len, pieces)) == term["unpacked_length"]
            data += b"".join(pieces)
        return len(plan["terms"]), data[plan["offset_into_first_range"] :]

    assert fetched() == (3, b"2345678901")
    assert fetched(Range="bytes=3-5") == (2, b"56789")  # of whole terms: 2345 from its fourth byte on, and 6789
    assert fetched(Range="bytes=5-9") == (2, b"78901")
    assert raw(address, token=token, Range="bytes=10-12")[0] == 416
    assert raw(address)[0] == 401
    for path in ("/v1/shards", f"/v1/xorbs/default/{'c' * 64}"):
        assert raw(hub.storage_url + path, "POST", packed(b"x"), token)[0] == 403  # the token only reads


def test_a_shard_that_does_not_fit_its_content(hub, repo):
    write = f"{hub.url}/api/models/{NAME}/xet-write-token/main"
    token = raw(write, token=hub.write_token)[1]["X-Xet-Access-Token"]
    assert raw(write, token=hub.read_token)[0] == 403

    def shard(sha256, size=5, end=1):
        number = hashlib.sha256(sha256).digest()
        stored = b"".join(number[place : place + 8][::-1] for place in (0, 8, 16, 24))
        records = [(b"f" * 32, xet.WITH_SHA256, 1, 0, 0), (b"a" * 32, 0, size, 0, end), (stored, 0, 0, 0, 0)]
        records.append((b"\xff" * 32, 0, 0, 0, 0))
        return (
            xet.SHARD_TAG + (2).to_bytes(8, "little") + bytes(8) + b"".join(xet.RECORD.pack(*each) for each in records)
        )

    def post(path, body):
        return raw(hub.storage_url + path, "POST", body, token)[0]

    assert post("/v1/shards", shard(b"plain")) == 400  # no such xorb yet
    assert post(f"/v1/xorbs/default/{b'a'.hex() * 32}", packed(b"plain")) == 200
    for bad in (shard(b"other"), shard(b"plain", size=4), shard(b"plain", end=2), shard(b"plain")[:-48], b"no shard"):
        assert post("/v1/shards", bad) == 400
    assert repo.objects == {}
    assert post("/v1/shards", shard(b"plain")) == 200
    assert [blob.data for blob in repo.objects.values()] == [b"plain"]


# ---- other processes


def test_xet_in_another_process(hub, api, elsewhere):
    script = """
import random, struct, sys
from pathlib import Path
from huggingface_hub import CommitOperationAdd, HfApi

api, folder = HfApi(), Path("up")
(folder / "sub").mkdir(parents=True)
files = {
    "noise.bin": random.Random(0).randbytes(300_000),  # stored as it is
    "model.safetensors": struct.pack("<100000f", *(i / 1000 for i in range(100_000))),  # bytes grouped, then compressed
    "sub/text.bin": b"all the same " * 20_000,  # compressed
    "config.json": b"{}",
}
for name, data in files.items():
    (folder / name).write_bytes(data)
api.create_repo("alice/model")
api.upload_folder(folder_path=folder, repo_id="alice/model")
api.create_commit("alice/model", [CommitOperationAdd("copy.bin", files["noise.bin"])], commit_message="Bytes")
got = Path(api.snapshot_download("alice/model"))
assert all((got / name).read_bytes() == data for name, data in files.items())
print(got)
"""
    got = Path(elsewhere(script, token=hub.write_token, xet=True).strip())
    repo = hub.repo(NAME)
    assert hub.count("POST", "/v1/xorbs/") >= 1
    assert hub.count("PUT", "") == 0
    assert hub.count("GET", "/v1/reconstructions/") >= 3
    assert {scheme for x in hub.xet.xorbs.values() for scheme in [x.data[at + 4] for at in x.offsets[:-1]]} == {0, 1, 2}
    assert files(repo).keys() == {"noise.bin", "model.safetensors", "sub/text.bin", "config.json", "copy.bin"}
    assert all((got / path).read_bytes() == data for path, data in repo.files().items())
    hub.requests.clear()
    plain = Path(api.hf_hub_download(NAME, "model.safetensors"))  # without xet
    assert plain.read_bytes() == files(repo)["model.safetensors"]
    assert (hub.count("GET", "/lfs/"), hub.count("GET", "/xorbs/")) == (1, 0)
    assert hub.unknown == []


@pytest.mark.parametrize("over_xet", [False, True], ids=["lfs", "xet"])
def test_a_dataset_there_and_back(hub, elsewhere, over_xet):
    script = """
import sys
from datasets import Dataset, load_dataset
from PIL import Image

rows = Dataset.from_dict({"problem": ["a", "b"], "images": [[Image.new("RGB", (4, 4), (i, 0, 0))] for i in range(2)]})
rows.push_to_hub("alice/rows", private=True)
rows.push_to_hub("alice/rows", split="test")
for stream in (False, True):
    back = load_dataset("alice/rows", split="test", streaming=stream)
    assert [row["problem"] for row in back] == ["a", "b"]
    assert [row["images"][0].getpixel((0, 0)) for row in back] == [(0, 0, 0), (1, 0, 0)]
"""
    elsewhere(script, token=hub.write_token, xet=over_xet)
    repo = hub.repo("alice/rows", "dataset")
    assert {path.split("-")[0] for path in files(repo)} == {"README.md", "data/train", "data/test"}
    assert (hub.count("PUT", "/lfs/") == 0) == over_xet
    assert hub.unknown == []


def test_a_model_by_revision(hub, api, elsewhere, tiny_model_folder):
    api.create_repo(NAME)
    api.upload_folder(folder_path=tiny_model_folder, repo_id=NAME)
    api.create_tag(NAME, tag="v1")
    api.create_commit(NAME, [CommitOperationDelete("model.safetensors")], commit_message="Gone")
    script = """
import hashlib
from transformers import AutoModelForImageTextToText

model, info = AutoModelForImageTextToText.from_pretrained("alice/model", revision="v1", output_loading_info=True)
assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
print(sum(p.double().abs().sum().item() for p in model.parameters()))
"""
    here = load_file(tiny_model_folder / "model.safetensors")
    far = float(elsewhere(script, token=hub.read_token).split()[-1])
    assert far == pytest.approx(sum(tensor.double().abs().sum().item() for tensor in here.values()), rel=1e-12)
    assert hub.unknown == []


def test_a_card_from_another_process(hub, api, repo, elsewhere):
    script = 'from huggingface_hub import ModelCard; ModelCard("---\\nlicense: mit\\n---\\n# Card").push_to_hub("alice/model")'
    elsewhere(script, token=hub.write_token)
    assert files(repo).keys() == {"README.md"}
    assert ModelCard(files(repo)["README.md"].decode()).data.license == "mit"
    refused = elsewhere(script, token=hub.read_token, check=False)
    assert refused.returncode != 0
    assert "you must use a write token" in refused.stderr


def test_nothing_but_loopback(hub, elsewhere):
    with pytest.raises(Exception, match="refused"):
        HfApi(endpoint="http://huggingface.invalid").whoami(token="hf_x")
    script = 'from huggingface_hub import HfApi; HfApi(endpoint="http://huggingface.invalid").whoami(token="hf_x")'
    assert "refused" in elsewhere(script, check=False).stderr
