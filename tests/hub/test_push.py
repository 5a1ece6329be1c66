"""A folder becomes a version: whole, once, checked, whatever happens on the way."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hub.server import HubServer
from huggingface_hub import ModelCard, set_client_factory
from huggingface_hub.utils import get_session

from papo_hub.hub import Client, HubError, publish
from papo_hub.hub.folder import listing

NAME = "alice/model"


@pytest.fixture
def folder(tmp_path):
    """A small version: weights in large file storage, the rest not."""
    return make(tmp_path / "first", b"one")


def make(path, weights, **more):
    files = {
        "model.safetensors": weights * 1000,
        "config.json": b'{"model_type": "qwen2_5_vl"}',
        "README.md": b"---\nlicense: apache-2.0\n---\n# A model\n",
        "figures/reward.png": b"\x89PNG\r\n\x1a\n" + weights,
    }
    for name, content in (files | more).items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def content(folder):
    return {item.path: item.file.read_bytes() for item in listing(folder)}


def held(hub, revision="main", name=NAME):
    """What a revision holds, without what the Hub itself puts there."""
    return {path: data for path, data in hub.repo(name).files(revision).items() if path != ".gitattributes"}


def sent(hub):
    """(commits, uploads) since the requests were cleared."""
    methods = [(request.method, request.path) for request in hub.requests]
    return (
        sum(method == "POST" and "/commit/" in path for method, path in methods),
        sum(method == "PUT" for method, _ in methods),
    )


@pytest.fixture
def client(hub):
    return Client(hub.write_token, hub.url, wait=0.01, timeout=5)


def test_a_version_is_one_commit_then_a_tag(hub, client, folder):
    lines = []
    version = publish(folder, NAME, branch="gamma-0.02", tag="v1.0", message="PAPO-G", client=client, say=lines.append)
    repo = hub.repo(NAME)
    assert held(hub, "v1.0") == held(hub, "gamma-0.02") == content(folder)
    assert repo.tags == {"v1.0": version.commit} and repo.branches["gamma-0.02"] == version.commit
    assert [commit.title for commit in repo.log("gamma-0.02")][0] == "PAPO-G"
    assert len(repo.log("gamma-0.02")) == len(repo.log("main")) + 1
    assert set(version.sent) == set(content(folder)) and version.removed == ()
    assert version.url == f"{hub.url}/{NAME}/tree/v1.0"
    assert any("checked" in line for line in lines) and lines[-1] == "tagged v1.0"


def test_repeating_sends_nothing(hub, client, folder):
    first = publish(folder, NAME, tag="v1.0", client=client)
    hub.requests.clear()
    assert publish(folder, NAME, tag="v1.0", client=client).commit == first.commit
    assert publish(folder, NAME, client=client).commit == first.commit
    assert sent(hub) == (0, 0)
    assert publish(folder, NAME, tag="v1.0.1", client=client).commit == first.commit  # another name for the same
    assert hub.repo(NAME).tags == {"v1.0": first.commit, "v1.0.1": first.commit}


def test_an_older_version_pushed_again_is_recognised_by_its_tag(hub, client, folder, tmp_path):
    first = publish(folder, NAME, tag="v1.0", client=client)
    second = publish(make(tmp_path / "second", b"two"), NAME, tag="v2.0", client=client)
    assert publish(folder, NAME, tag="v1.0", client=client).commit == first.commit
    assert hub.repo(NAME).head("main") == second.commit


def test_only_what_changed_is_sent(hub, client, folder):
    publish(folder, NAME, client=client)
    (folder / "model.safetensors").write_bytes(b"three" * 1000)
    hub.requests.clear()
    assert publish(folder, NAME, client=client).sent == ("model.safetensors",)
    assert sent(hub) == (1, 1)
    assert held(hub) == content(folder)


def test_leftovers_go_in_the_same_commit(hub, client, folder, api):
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"shard")
    publish(folder, NAME, client=client)
    api.upload_file(path_or_fileobj=b"ours", path_in_repo="LICENSE", repo_id=NAME)
    (folder / "model-00001-of-00002.safetensors").unlink()
    (folder / "figures/reward.png").unlink()
    version = publish(folder, NAME, client=client)
    assert set(version.removed) == {"model-00001-of-00002.safetensors", "figures/reward.png"} and version.sent == ()
    assert held(hub) == content(folder) | {"LICENSE": b"ours"}


def test_a_tag_is_never_moved(hub, client, folder, tmp_path):
    publish(folder, NAME, tag="v1.0", client=client)
    before = dict(hub.repo(NAME).branches), dict(hub.repo(NAME).tags)
    other = make(tmp_path / "second", b"two")
    with pytest.raises(HubError, match=r"has a tag v1\.0 already.*--tag v1\.1.*hf repos tag delete alice/model v1\.0"):
        publish(other, NAME, tag="v1.0", client=client)
    assert (dict(hub.repo(NAME).branches), dict(hub.repo(NAME).tags)) == before


@pytest.mark.parametrize(
    "names", [{"tag": "v 1"}, {"branch": "../x"}, {"tag": "main"}, {"tag": "-v1"}, {"branch": "a//b"}]
)
def test_names_that_git_would_refuse(hub, client, folder, names):
    with pytest.raises(HubError, match="cannot name a branch or a tag|could not be told apart"):
        publish(folder, NAME, client=client, **names)
    assert hub.requests == []


def test_a_tag_made_by_somebody_else_meanwhile(hub, client, folder, api):
    api.create_repo(NAME)
    hub.before_commit = lambda: api.create_tag(NAME, tag="v1.0")
    with pytest.raises(HubError, match="somebody made a tag v1.0 of other files"):
        publish(folder, NAME, tag="v1.0", client=client)
    assert held(hub) == content(folder) and hub.repo(NAME).tags["v1.0"] != hub.repo(NAME).head("main")


def test_private(hub, client, folder):
    publish(folder, "alice/secret", private=True, client=client)
    assert hub.repo("alice/secret").private
    publish(folder, NAME, client=client)
    hub.requests.clear()
    with pytest.raises(HubError, match="exists and is public, so nothing was sent"):
        publish(make(folder, b"four"), NAME, private=True, client=client)
    assert sent(hub) == (0, 0)


def test_a_file_that_changes_under_way_is_noticed(hub, client, folder):
    hub.before_commit = lambda: None

    def say(line):
        if "to send" in line:
            (folder / "model.safetensors").write_bytes(b"other" * 1000)

    with pytest.raises(HubError, match=r"is not what lies in .*: model.safetensors differ; it was not tagged"):
        publish(folder, NAME, tag="v1.0", client=client, say=say)
    assert hub.repo(NAME).tags == {}
    publish(folder, NAME, tag="v1.0", client=client)
    assert held(hub, "v1.0") == content(folder)


# ------------------------------------------------------------------------------------------------------------- accounts


@pytest.mark.parametrize(
    "token, words",
    [
        (None, "There is no token to push with.*hf auth login"),
        ("hf_" + "x" * 34, "hf auth login"),
        ("read", "role `write`"),
    ],
    ids=["none", "unknown", "read-only"],
)
def test_who_may_not_push_is_told_what_to_do(hub, folder, monkeypatch, token, words):
    monkeypatch.setattr("papo_hub.hub.client.get_token", lambda: None)
    token = hub.read_token if token == "read" else token
    with pytest.raises(HubError, match=words) as caught:
        publish(folder, NAME, client=Client(token, hub.url, wait=0.01))
    assert token is None or token not in str(caught.value)
    assert not hub.repositories


def test_somebody_elses_repository(hub, client, folder):
    publish(folder, NAME, client=client)
    with pytest.raises(HubError, match="role `write`"):
        publish(make(folder, b"five"), NAME, client=Client(hub.stranger_token, hub.url, wait=0.01))


def test_no_room_left(hub, client, folder):
    hub.faults.add("quota", path="lfs/objects/batch", times=1)
    with pytest.raises(HubError, match="storage is used up"):
        publish(folder, NAME, tag="v1.0", client=client)
    assert held(hub) == {} and hub.repo(NAME).tags == {}
    publish(folder, NAME, tag="v1.0", client=client)
    assert held(hub, "v1.0") == content(folder)


def test_too_many_requests(hub, client, folder):
    hub.faults.add("429", path="/commit/", times=2, retry_after=1)
    publish(folder, NAME, client=client)
    assert held(hub) == content(folder)


def test_a_server_that_is_silent_does_not_hold_the_push_for_ever(hub, folder):
    hub.faults.add("hang", path="/commit/", times=1, seconds=20)
    publish(folder, NAME, client=Client(hub.write_token, hub.url, wait=0.01, timeout=2))
    assert held(hub) == content(folder) and hub.count("POST", "/commit/") >= 2


# ------------------------------------------------------------------------------------------------------------ meetings


def test_somebody_pushes_meanwhile(hub, client, folder, api):
    publish(folder, NAME, client=client)
    make(folder, b"six")
    hub.before_commit = lambda: api.upload_file(path_or_fileobj=b"hi", path_in_repo="notes.md", repo_id=NAME)
    lines = []
    publish(folder, NAME, client=client, say=lines.append)
    assert held(hub) == content(folder) | {"notes.md": b"hi"}
    assert any("moved meanwhile" in line for line in lines)


def test_the_answer_is_lost_and_somebody_pushes_on_top(hub, client, folder, api, monkeypatch):
    """The commit is found where it is, below the head, and not made again."""
    publish(folder, NAME, client=client)
    make(folder, b"eight")
    hub.faults.add("drop_after", path="/commit/")

    naps = []

    def meanwhile(seconds):
        naps.append(seconds)
        api.upload_file(path_or_fileobj=b"hi", path_in_repo="notes.md", repo_id=NAME)

    monkeypatch.setattr("papo_hub.hub.client.time.sleep", meanwhile)
    version = publish(folder, NAME, tag="v1.0", message="the new one", client=client)
    log = hub.repo(NAME).log("main")
    assert len(naps) == 1
    assert [commit.title for commit in log].count("the new one") == 1
    assert log[1].oid == version.commit == hub.repo(NAME).tags["v1.0"] and held(hub, "v1.0") == content(folder)


def test_an_equal_version_of_long_ago_is_not_mistaken_for_this_one(hub, client, folder, tmp_path):
    publish(folder, NAME, client=client)
    publish(make(tmp_path / "second", b"two"), NAME, client=client)
    hub.faults.add("500", path="/commit/")
    publish(folder, NAME, client=client)
    assert held(hub) == content(folder) and len(hub.repo(NAME).log("main")) == 4


def test_two_at_once_both_arrive(hub, folder, tmp_path):
    """On one branch, each whole, in some order."""
    folders = [folder, *(make(tmp_path / f"other{i}", str(i).encode()) for i in range(3))]
    publish(folder, NAME, client=Client(hub.write_token, hub.url, wait=0.01))
    make(folder, b"seven")
    failures = []

    def push(place, tag):
        try:
            publish(place, NAME, tag=tag, client=Client(hub.write_token, hub.url, wait=0.01))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=push, args=(place, f"v{i}")) for i, place in enumerate(folders)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    repo = hub.repo(NAME)
    for i, place in enumerate(folders):
        assert held(hub, f"v{i}") == content(place)
    commits = [commit.oid for commit in repo.log("main")]
    assert sorted(repo.tags.values()) == sorted(commits[: len(folders)])  # all on the branch, none twice


# -------------------------------------------------------------------------------------------------------------- faults


def state(hub, old, new):
    """Where the repository stands: every ref must be one of two whole versions."""
    if ("model", NAME) not in hub.repositories:
        return "old"
    repo = hub.repo(NAME)
    assert held(hub) in (old, new), "a half version is on the branch"
    assert set(repo.tags) <= {"v2.0"} and all(held(hub, tag) == new for tag in repo.tags), "a half version is tagged"
    ours = [commit for commit in repo.log("main") if commit.title == "the new one"]
    assert len(ours) <= 1, "the commit is there twice"
    return "new" if held(hub) == new else "old"


KINDS = ("500", "503", "drop_before", "drop_after", "truncate")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("existing", [False, True], ids=["new repository", "second version"])
def test_one_fault_at_each_request_in_turn(online, tmp_path, kind, existing):
    """The push gets past any single fault by itself."""
    new = make(tmp_path / "new", b"new")
    old = content(make(tmp_path / "old", b"old")) if existing else {}

    def push(number: int) -> bool:
        """With a fault at the request of that number; whether there was one."""
        with HubServer() as hub:
            client = Client(hub.write_token, hub.url, wait=0.01, timeout=5)
            if existing:
                publish(tmp_path / "old", NAME, client=client)
            hub.requests.clear()
            fault = hub.faults.add(kind, nth=number)
            version = publish(new, NAME, tag="v2.0", message="the new one", client=client)
            assert state(hub, old, content(new)) == "new"
            assert hub.repo(NAME).tags == {"v2.0": version.commit}
            return bool(fault.fired)

    numbers = range(1, 25)
    with ThreadPoolExecutor(12) as threads:  # they wait more than they work
        fired = list(threads.map(push, numbers))
    tried = sum(fired)
    assert fired == [number <= tried for number in numbers] and 10 <= tried < len(numbers)


@pytest.fixture
def stop_at():
    """stop_at(n): Ctrl-C at the n-th request from now on, before it leaves; stop_at(None): no more."""
    left = {"requests": None}

    def count(request):
        if left["requests"] is not None:
            left["requests"] -= 1
            if left["requests"] < 0:
                raise KeyboardInterrupt

    def factory():
        library = type(plain_session)
        return library(follow_redirects=True, event_hooks={"request": [count]})

    plain_session = get_session()
    set_client_factory(factory)
    yield lambda number: left.update(requests=None if number is None else number - 1)
    set_client_factory(lambda: type(plain_session)(follow_redirects=True))


def test_stopped_at_each_request_in_turn(online, tmp_path, stop_at):
    """The repository is whole at every point, and a rerun finishes the work."""
    old, new = make(tmp_path / "old", b"old"), make(tmp_path / "new", b"new")
    states = []
    while "finished" not in states:
        with HubServer() as hub:
            client = Client(hub.write_token, hub.url, wait=0.01, timeout=5)
            publish(old, NAME, client=client)
            stop_at(len(states) + 1)
            try:
                publish(new, NAME, tag="v2.0", message="the new one", client=client)
                states.append("finished")
            except KeyboardInterrupt:
                states.append(state(hub, content(old), content(new)))
            stop_at(None)
            hub.requests.clear()
            publish(new, NAME, tag="v2.0", message="the new one", client=client)
            assert state(hub, content(old), content(new)) == "new" and set(hub.repo(NAME).tags) == {"v2.0"}
            assert sent(hub)[0] == (states[-1] == "old")  # a commit that is there is not made again
    assert len(states) >= 10 and {"old", "new"} <= set(states)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["500", "drop_before", "drop_after", "truncate"])
def test_cut_off_at_each_request_in_turn(online, tmp_path, kind):
    """From one request on nothing works any more: the same holds."""
    old, new = make(tmp_path / "old", b"old"), make(tmp_path / "new", b"new")

    def push(number: int) -> str:
        with HubServer() as hub:
            client = Client(hub.write_token, hub.url, wait=0.01, timeout=5)
            publish(old, NAME, client=client)
            hub.requests.clear()
            hub.faults.add(kind, nth=number, times=10**6)
            try:
                impatient = Client(hub.write_token, hub.url, tries=1, timeout=5)
                publish(new, NAME, tag="v2.0", message="the new one", client=impatient)
                reached = "finished"
            except HubError:
                reached = state(hub, content(old), content(new))
            hub.faults.clear()
            publish(new, NAME, tag="v2.0", message="the new one", client=client)
            assert state(hub, content(old), content(new)) == "new" and set(hub.repo(NAME).tags) == {"v2.0"}
            return reached

    with ThreadPoolExecutor(12) as threads:
        states = list(threads.map(push, range(1, 25)))
    # Some before the commit, then some between it and the tag, then all is done before the fault.
    assert sorted(states, key=["old", "new", "finished"].index) == states and len(set(states)) == 3


def test_the_card_is_read_by_the_library(hub, client, folder):
    publish(folder, NAME, client=client)
    assert ModelCard((held(hub)["README.md"]).decode()).data.license == "apache-2.0"
