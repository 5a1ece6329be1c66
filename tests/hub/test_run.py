"""From a run to the Hub and back: what is pushed, listed, pushed while training goes on, and resumed."""

import errno
import json
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml
from hub.server import HubServer
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

import papo_hub.hub.uploads
from papo_hub.card import check_card
from papo_hub.checkpoint import CheckpointError
from papo_hub.cli import main
from papo_hub.config import build
from papo_hub.hub import Client, HubError, Uploads, fetch_checkpoint, push_run, versions
from papo_hub.hub.doctor import examine, report
from papo_hub.hub.run import prepared
from papo_hub.hub.versions import table
from papo_hub.redaction import public_path
from papo_hub.tracking import read_metrics
from papo_hub.trainer import train

NAME = "alice/digits-papo"


@pytest.fixture
def run(finished_run, tmp_path):
    return shutil.copytree(finished_run, tmp_path / "papo_g")


def variant(run, folder, **recipe):
    """The same run under another recipe, with other weights."""
    shutil.copytree(run, folder)
    content = yaml.safe_load((folder / "config.yaml").read_text()) | recipe
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    (folder / "model" / "generation_config.json").write_text(json.dumps(recipe))
    return folder


# ---------------------------------------------------------------------------------------------------------------- push


def test_what_a_version_holds(here, run, capsys):
    assert main(["push", str(run), NAME, "--revision", "gamma-0.02", "--tag", "v1.0"]) == 0
    assert f'from_pretrained("{NAME}", revision="v1.0", dtype="auto")' in capsys.readouterr().out
    files = here.repo(NAME).files("v1.0")
    expected = {"model.safetensors", "config.json", "README.md", "config.yaml", "metrics.jsonl", "evaluation.json"}
    expected |= {"provenance.json", "tokenizer.json", "processor_config.json", "chat_template.jinja"}
    expected |= {f"figures/{name}.png" for name in ("overview", "reward", "perception", "before_after", "example")}
    assert expected <= set(files) and "samples.md" not in files
    for path, content in files.items():
        assert (
            path == ".gitattributes" or (run / "model" / path).read_bytes() == content
        )  # the folder, as it lies there
    card = files["README.md"].decode()
    assert f'AutoModelForImageTextToText.from_pretrained("{NAME}", revision="v1.0", dtype="auto")' in card
    assert ModelCard(card).data.pipeline_tag == "image-text-to-text"
    assert [commit.title for commit in here.repo(NAME).log("gamma-0.02")][0] == "PAPO-G, gamma 0.02, 2 steps"
    for path, content in files.items():
        if not path.endswith((".png", ".safetensors")):
            assert str(run.parent).encode() not in content and b"hf_" not in content, path


def test_dry_run_lists_what_would_go_and_sends_nothing(here, run, capsys):
    assert main(["push", str(run), NAME, "--tag", "v1.0", "--dry_run"]) == 0
    listed = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()[:-2]]
    assert here.requests == []
    assert main(["push", str(run), NAME, "--tag", "v1.0"]) == 0
    held = here.repo(NAME).files("v1.0")
    import hashlib

    assert {path: (size, sha256) for size, sha256, path in listed} == {
        path: (f"{len(content):,}", hashlib.sha256(content).hexdigest())
        for path, content in held.items()
        if path != ".gitattributes"
    }


def test_pushing_a_run_again_sends_nothing(here, run):
    first = push_run(run, NAME, tag="v1.0")
    assert push_run(run, NAME, tag="v1.0") == first.__class__(**{**vars(first), "sent": (), "removed": ()})
    assert len(here.repo(NAME).log()) == 2


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["no/where", NAME], "no finished run: it has no config.yaml"),
        (["{run}", "no-owner"], "must be OWNER/NAME"),
        (["{run}/checkpoints", NAME], "no finished run"),
    ],
)
def test_bad_input_is_one_message(here, run, capsys, arguments, words):
    assert main(["push", *(argument.format(run=run) for argument in arguments)]) == 2
    errors = capsys.readouterr().err
    assert words in errors and "Traceback" not in errors and here.requests == []


def test_a_run_that_did_not_finish(here, run, capsys):
    shutil.rmtree(run / "model")
    assert main(["push", str(run), NAME]) == 2
    assert "it has no model/. Finish it (--resume_from_checkpoint latest)" in capsys.readouterr().err


@pytest.mark.parametrize("name, content", [("config.yaml", "- 1"), ("evaluation.json", "{"), ("provenance.json", "{")])
def test_a_run_with_a_damaged_file(here, run, capsys, name, content):
    (run / name).write_text(content)
    assert main(["push", str(run), NAME]) == 2
    errors = capsys.readouterr().err
    assert "cannot be pushed" in errors and "Traceback" not in errors and here.requests == []


def test_no_folder_of_this_machine_is_told(run, tmp_path):
    assert public_path("/home/alice/models/tiny") == "…/tiny"
    assert public_path("~/models/tiny") == "…/tiny"
    assert public_path("Qwen/Qwen2.5-VL-3B-Instruct") == "Qwen/Qwen2.5-VL-3B-Instruct"
    assert public_path("runs/tiny/warmup") == "runs/tiny/warmup"


LOAD = """
import json, sys
import torch
from transformers import AutoModelForImageTextToText
from safetensors.torch import load_file
model, info = AutoModelForImageTextToText.from_pretrained({name!r}, revision={revision!r}, output_loading_info=True{more})
assert not any(info.values()), info
ids = torch.tensor([[6, 7, 8, 9]])
out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
print(json.dumps([type(model).__name__, out.tolist(), "papo_hub" in sys.modules]))
"""


def without_papo_hub(tmp_path):
    """A PYTHONPATH on which papo_hub cannot be imported."""
    (tmp_path / "blocked" / "papo_hub").mkdir(parents=True)
    (tmp_path / "blocked" / "papo_hub" / "__init__.py").write_text("raise ModuleNotFoundError('papo_hub')")
    return str(tmp_path / "blocked")


def test_both_formats_load_pinned_on_a_computer_without_papo_hub(here, run, elsewhere, tmp_path):
    push_run(run, NAME, tag="v1.0")
    push_run(run, f"{NAME}-wrapped", tag="v1.0", format="papo")
    other = variant(run, tmp_path / "newer")
    weights = load_file(other / "model" / "model.safetensors")
    torch.manual_seed(0)
    save_file(
        {k: torch.randn_like(v) for k, v in weights.items()}, other / "model" / "model.safetensors", {"format": "pt"}
    )
    push_run(other, NAME, tag="v2.0")  # main moves on; the pinned version does not
    model = AutoModelForImageTextToText.from_pretrained(run / "model")
    ids = torch.tensor([[6, 7, 8, 9]])
    ours = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False
    ).tolist()
    path = without_papo_hub(tmp_path)
    plain = json.loads(elsewhere(LOAD.format(name=NAME, revision="v1.0", more=""), PYTHONPATH=path).splitlines()[-1])
    assert plain == ["Qwen2_5_VLForConditionalGeneration", ours, False]
    script = LOAD.format(name=f"{NAME}-wrapped", revision="v1.0", more=", trust_remote_code=True")
    wrapped = json.loads(elsewhere(script, PYTHONPATH=path).splitlines()[-1])
    assert wrapped == ["PapoForConditionalGeneration", ours, False]
    refused = elsewhere(script.replace(", trust_remote_code=True", ""), PYTHONPATH=path, check=False)
    assert refused.returncode != 0 and "trust_remote_code" in refused.stderr


# ------------------------------------------------------------------------------------------------------------ versions


def test_versions_of_two_variants(here, run, tmp_path, capsys):
    push_run(run, NAME, revision="gamma-0.02", tag="v1.0")
    time.sleep(0.01)
    push_run(variant(run, tmp_path / "b", gamma=0.05, dataset_revision="v3"), NAME, revision="gamma-0.05", tag="v1.1")
    rows = {row.version: row for row in versions(NAME)}
    assert set(rows) == {"v1.0", "v1.1", "gamma-0.02", "gamma-0.05", "main"}
    assert (rows["v1.0"].gamma, rows["v1.1"].gamma) == (0.02, 0.05)
    assert rows["v1.0"].variant == "PAPO-G" and rows["v1.0"].commit == here.repo(NAME).tags["v1.0"]
    assert rows["v1.0"].dataset == "digits" and rows["v1.1"].dataset == "digits@v3" and rows["v1.0"].base == "…/model"
    measured = {(r["when"], r["view"], r["group"]): r for r in json.loads((run / "evaluation.json").read_text())}
    assert rows["v1.0"].overall == pytest.approx(100 * measured["after", "clean", "all"]["accuracy"], abs=0.01)
    assert rows["main"].variant is rows["main"].gamma is rows["main"].overall is None
    capsys.readouterr()
    assert main(["versions", NAME]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert "avg@2 overall" in shown[0] and rows["v1.0"].k == 2
    assert [line.split()[0] for line in shown] == ["version", "v1.1", "v1.0", "gamma-0.05", "gamma-0.02", "main"]
    assert shown == table(versions(NAME)).splitlines()


def test_versions_of_a_repository_that_is_not_there(here, capsys):
    assert main(["versions", "alice/none"]) == 2
    assert "Check the name" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------ while training


def config_of(finished_run, tmp_path, name, **more):
    recipe = yaml.safe_load((finished_run / "config.yaml").read_text())
    measured = {"eval_dataset_name": None, "save_steps": 1, "output_dir": str(tmp_path / name)}
    return build(recipe | measured | more)


@pytest.mark.parametrize("strategy", ["end", "every_save", "checkpoint"])
def test_training_pushes_what_the_strategy_says(here, finished_run, tmp_path, strategy):
    config = config_of(
        finished_run, tmp_path, "run", hub_model_id=NAME, hub_strategy=strategy, hub_revision="gamma-0.02"
    )
    run = train(config)
    repo = here.repo(NAME)
    files = repo.files("gamma-0.02")
    assert files["model.safetensors"] == (run / "model" / "model.safetensors").read_bytes()
    assert ("last-checkpoint/trainer_state.json" in files) == (strategy == "checkpoint")
    assert 'revision="gamma-0.02"' in files["README.md"].decode()
    assert not (run / "uploads").exists()
    if strategy == "end":
        assert len(repo.log("gamma-0.02")) == 2


def test_a_checkpoint_is_a_version_of_its_own(here, finished_run, tmp_path):
    config = config_of(finished_run, tmp_path, "x", hub_model_id=NAME, hub_strategy="every_save")
    lines = []
    uploads = Uploads(finished_run, config, lines.append)
    newest = finished_run / "checkpoints" / "step-000002"
    uploads.saved(newest)
    wait_for(lambda: lines)
    assert lines == [f"pushed step-000002 to {NAME}, main"]
    files = here.repo(NAME).files()
    assert files["model.safetensors"] == (newest / "model.safetensors").read_bytes()
    assert json.loads(files["config.json"])["papo"]["gamma"] == 0.02
    assert not any(path.startswith("last-checkpoint/") or "optimizer" in path for path in files)
    uploads._stop()


def test_a_newer_checkpoint_passes_an_older_one_that_waits(here, finished_run, tmp_path):
    lines, gate = [], threading.Event()
    config = config_of(finished_run, tmp_path, "x", hub_model_id=NAME, hub_strategy="every_save")
    uploads = Uploads(finished_run, config, lines.append)
    here.before_commit = gate.wait
    folders = []
    for step in (1, 2, 3):
        folders.append(tmp_path / f"step-{step:06d}")
        shutil.copytree(finished_run / "checkpoints" / "step-000002", folders[-1])
        started = time.monotonic()
        uploads.saved(folders[-1])
        assert time.monotonic() - started < 10  # though the Hub does not answer before the gate opens
        shutil.rmtree(folders[-1])  # the rotation
        if step == 1:
            wait_for(lambda: here.count("POST", "preupload"))
    gate.set()
    wait_for(lambda: len(lines) == 2)
    assert [line.split()[1] for line in lines] == ["step-000001", "step-000003"]
    uploads._stop()


def test_training_goes_on_without_the_hub(here, finished_run, tmp_path, capsys):
    here.faults.add("500", times=10**6)
    client = Client(wait=0.0, tries=2, timeout=2)
    papo_hub.hub.uploads.Client = lambda: client  # restored with the fixture
    run = train(config_of(finished_run, tmp_path, "run", hub_model_id=NAME, hub_strategy="every_save"))
    assert (run / "model" / "model.safetensors").is_file()
    printed = "".join(capsys.readouterr())
    assert "the run is complete but was not pushed" in printed and f"papo-hub push {run} {NAME}" in printed
    here.faults.clear()
    assert main(["push", str(run), NAME]) == 0


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


# -------------------------------------------------------------------------------------------------------------- resume


@pytest.fixture
def pushed(here, finished_run, tmp_path):
    """A run of two steps whose last checkpoint is on the Hub."""
    return train(config_of(finished_run, tmp_path, "first", hub_model_id=NAME, hub_strategy="checkpoint"))


def test_a_resumed_run_is_the_uninterrupted_one(pushed, finished_run, tmp_path):
    whole = train(config_of(finished_run, tmp_path, "whole", max_steps=4))
    shutil.rmtree(pushed)
    config = config_of(finished_run, tmp_path, "second", max_steps=4, resume_from_checkpoint=f"hub://{NAME}@main")
    second = train(config)
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (second, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    rows = [
        [{key: value for key, value in row.items() if not key.startswith("time/")} for row in read_metrics(file)]
        for file in (second / "metrics.jsonl", whole / "metrics.jsonl")
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 4  # the first two came from the Hub
    assert json.loads((second / "provenance.json").read_text())["resumed"]
    assert {folder.name for folder in (second / "checkpoints").iterdir()} == {"step-000003", "step-000004"}


def test_what_is_there_is_not_fetched_again(pushed, here, tmp_path):
    first = fetch_checkpoint(f"hub://{NAME}@main", tmp_path / "a")
    here.requests.clear()
    (first / "model.safetensors").write_bytes(b"cut off")
    assert fetch_checkpoint(f"hub://{NAME}", tmp_path / "a") == first
    files = {request.path.split("/")[-1] for request in here.requests if "/resolve/" in request.path}
    assert files <= {"model.safetensors"}
    assert (first / "model.safetensors").read_bytes() == here.repo(NAME).files()["last-checkpoint/model.safetensors"]


def test_bytes_that_changed_on_the_way_are_refused(pushed, here, tmp_path):
    path = "last-checkpoint/optimizer.safetensors"
    blob = here.repo(NAME).commit_at("main").tree[path]
    good = blob.data
    object.__setattr__(blob, "data", bytes([good[0] ^ 1]) + good[1:])
    with pytest.raises(CheckpointError, match=f"{path} did not arrive as"):
        fetch_checkpoint(f"hub://{NAME}", tmp_path / "a")
    assert not (tmp_path / "a" / "checkpoints").rglob("optimizer.safetensors*") or not list(
        (tmp_path / "a").rglob("optimizer.safetensors*")
    )
    object.__setattr__(blob, "data", good)
    assert (fetch_checkpoint(f"hub://{NAME}", tmp_path / "a") / "optimizer.safetensors").read_bytes() == good


@pytest.mark.parametrize(
    "address, words", [("hub://nobody", "is not hub://OWNER/NAME@REVISION"), (f"hub://{NAME}@", "is not hub://")]
)
def test_an_address_that_is_none(here, tmp_path, address, words):
    with pytest.raises(CheckpointError, match=words):
        fetch_checkpoint(address, tmp_path)


def test_a_version_without_a_checkpoint(here, run, tmp_path):
    push_run(run, NAME)
    with pytest.raises(CheckpointError, match="holds no checkpoint to go on from"):
        fetch_checkpoint(f"hub://{NAME}", tmp_path)
    with pytest.raises(HubError):
        fetch_checkpoint("hub://alice/none", tmp_path)


def test_only_a_checkpoint_s_own_files_come(pushed, here, api, tmp_path):
    for name in ("modeling_evil.py", "deeper/config.json", "notes.md"):
        api.upload_file(path_or_fileobj=b"{}", path_in_repo=f"last-checkpoint/{name}", repo_id=NAME)
    checkpoint = fetch_checkpoint(f"hub://{NAME}", tmp_path / "a")
    names = {str(file.relative_to(checkpoint)) for file in checkpoint.rglob("*")}
    assert {"trainer_state.json", "optimizer.safetensors", "model.safetensors", "config.json"} <= names
    assert not names & {"modeling_evil.py", "deeper", "notes.md"}


def test_a_gated_repository_says_so(pushed, here, tmp_path, monkeypatch):
    here.repo(NAME).gated = "manual"
    stranger = Client(here.stranger_token, here.url, wait=0.01)
    with pytest.raises(HubError, match="gated: ask for access"):
        fetch_checkpoint(f"hub://{NAME}", tmp_path / "a", stranger)


def test_a_pickled_checkpoint_is_refused(here, api, tmp_path):
    api.create_repo(NAME)
    for name in ("trainer_state.json", "optimizer.pt"):
        api.upload_file(path_or_fileobj=b"{}", path_in_repo=f"last-checkpoint/{name}", repo_id=NAME)
    with pytest.raises(CheckpointError, match="holds last-checkpoint/optimizer.pt, which is not loaded"):
        fetch_checkpoint(f"hub://{NAME}", tmp_path)


# -------------------------------------------------------------------------------------------------------------- doctor


def findings(client):
    return {finding.name: finding for finding in examine(client)}


def test_doctor_tells_who_is_logged_in(here):
    assert findings(Client())["token"].text.startswith("alice, role write, from HF_TOKEN")
    assert findings(Client(here.read_token))["token"].state == "absent"
    assert findings(Client("hf_" + "x" * 34, wait=0))["token"].state == "wrong"
    assert main(["doctor"]) == 0


def test_doctor_without_a_server_or_a_token(here, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert findings(Client())["token"].state == "absent"
    with HubServer() as gone:
        url = gone.url
    found = findings(Client("hf_" + "x" * 34, url, tries=2, wait=0))
    assert found["endpoint"].state == "wrong" and "token" not in found
    text, well = report(iter(found.values()))
    assert not well and "✗ endpoint" in text and "hf_xxx" not in text


def test_every_absence_says_what_it_means(here, monkeypatch):
    monkeypatch.setattr("papo_hub.hub.doctor.importlib.util.find_spec", lambda name: None)
    for name in ("torchvision", "vllm", "flash-attn", "peft"):
        finding = findings(Client())[name]
        assert finding.state == "absent" and finding.text.startswith("not installed: ")


def test_the_pushed_card_holds_its_checks(run):
    assert check_card(prepared(run, NAME, "main", "v1.0") / "README.md") == []


@pytest.mark.parametrize("kind", [None, "500", "drop_after"])
def test_with_whatever_the_client_chooses(here, run, elsewhere, kind):
    """With hf_xet there, large files go another way; the version is the same."""
    fault = None
    if kind:
        fault = here.faults.add(kind, path="/v1/|xet-write-token|/commit/", times=2)
    program = "import sys; from papo_hub.cli import main; sys.exit(main())"
    arguments = ["-c", program, "push", str(run), NAME, "--tag", "v1.0"]
    elsewhere(arguments, token=here.write_token, xet=True)
    assert fault is None or fault.fired == 2
    assert here.count("POST", "/v1/xorbs/") and not here.count("PUT", "")
    for path, content in here.repo(NAME).files("v1.0").items():
        assert path == ".gitattributes" or (run / "model" / path).read_bytes() == content
    assert len(here.repo(NAME).log()) == 2


def test_one_run_pushed_twice_at_once_gives_each_version_its_own_card(here, run):
    failures = []

    def push(tag):
        try:
            push_run(run, NAME, tag=tag, client=Client(wait=0.01), say=lambda line: None)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=push, args=(tag,)) for tag in ("v1", "v2", "v3")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    for tag in ("v1", "v2", "v3"):
        assert f'revision="{tag}"' in here.repo(NAME).files(tag)["README.md"].decode()


def test_a_full_disk_is_one_message(here, run, monkeypatch, capsys):
    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr("papo_hub.hub.run.shutil.copyfile", full)
    assert main(["push", str(run), NAME]) == 2
    assert "No space left on device" in (errors := capsys.readouterr().err) and "Free some space" in errors
    assert here.requests == []


def test_doctor_tells_what_a_fine_grained_token_may_write(here, api):
    api.create_repo(NAME)
    some = Client(here.add_token("alice", "fineGrained", scope=(NAME,)))
    assert findings(some)["token"].text.endswith(f"role fineGrained, from HF_TOKEN; it may write to {NAME}")
    none = Client(here.add_token("alice", "fineGrained"))
    assert findings(none)["token"].text.endswith("it may write to nothing")


def test_a_fine_grained_token_pushes_where_it_may(here, api, run):
    api.create_repo(NAME)
    client = Client(here.add_token("alice", "fineGrained", scope=(NAME,)), wait=0.01)
    push_run(run, NAME, tag="v1.0", client=client)
    with pytest.raises(HubError, match="role `write`"):
        push_run(run, "alice/other", client=client)


def test_card_of_a_run_and_of_a_released_model(run, capsys):
    assert main(["card", str(run), NAME, "--revision", "v2.0"]) == 0
    assert capsys.readouterr().out.strip() == str(run / "README.md")
    assert f'from_pretrained("{NAME}", revision="v2.0", dtype="auto")' in (run / "README.md").read_text()
    spec = Path(__file__).parents[2] / "model_cards" / "PAPO-D-Qwen2.5-VL-3B.yaml"
    assert main(["card", str(spec)]) == 0
    assert "55.24" in capsys.readouterr().out
    (run / "config.yaml").write_text("- not a mapping")
    assert main(["card", str(run)]) == 2
    assert "must hold" in (errors := capsys.readouterr().err) and "Traceback" not in errors


def test_a_finished_run_survives_a_disk_that_is_full_for_its_checkpoint(here, run, monkeypatch):
    """Bringing the last checkpoint beside the weights fails; the run does not."""

    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("papo_hub.hub.uploads._link", full)
    lines = []
    config = config_of(run, run.parent, run.name, hub_model_id=NAME, hub_strategy="checkpoint")
    Uploads(run, config, lines.append).finish()
    assert len(lines) == 1 and "was not pushed" in lines[0] and f"papo-hub push {run} {NAME}" in lines[0]


# ------------------------------------------------------------------------------------------------------------- adapters


@pytest.fixture
def lora_run(fast_config):
    """A run of two steps that trained an adapter."""
    return train(fast_config(max_steps=2, lora_rank=2))


def test_an_adapter_is_pushed_with_its_card(here, lora_run, capsys):
    assert main(["push", str(lora_run), NAME, "--format", "adapter", "--tag", "v1.0"]) == 0
    assert f'PeftModel.from_pretrained(base, "{NAME}", revision="v1.0")' in capsys.readouterr().out
    files = here.repo(NAME).files("v1.0")
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md", "config.yaml", "tokenizer.json"} <= set(
        files
    )
    assert not {"model.safetensors", "config.json"} & set(files)
    card = files["README.md"].decode()
    data = ModelCard(card).data
    assert data.library_name == "peft" and "lora" in data.tags
    assert f'model = PeftModel.from_pretrained(base, "{NAME}", revision="v1.0")' in card
    for path, content in files.items():
        assert str(lora_run.parent).encode() not in content and b"/tmp" not in content, path


def test_the_card_of_an_adapter_names_the_base_it_goes_over(here, lora_run, tmp_path):
    run = variant(lora_run, tmp_path / "copy", model_name_or_path="Qwen/Qwen2.5-VL-3B-Instruct")
    card = (prepared(run, NAME, "main", None, "adapter") / "README.md").read_text(encoding="utf-8")
    assert 'base = AutoModelForImageTextToText.from_pretrained("Qwen/Qwen2.5-VL-3B-Instruct", dtype="auto")' in card
    assert ModelCard(card).data.base_model_relation == "adapter"
    plain = (prepared(run, NAME, "main", None) / "README.md").read_text(encoding="utf-8")
    assert "PeftModel" not in plain and ModelCard(plain).data.base_model_relation == "finetune"


def test_a_run_without_an_adapter_pushes_none(here, run, capsys):
    assert main(["push", str(run), NAME, "--format", "adapter"]) == 2
    assert "has no adapter/: it was trained without LoRA" in capsys.readouterr().err and here.requests == []


def test_adapters_go_to_the_hub_while_they_are_trained_and_come_back(here, fast_config, tmp_path):
    settings = {"save_steps": 2, "lora_rank": 2}
    pushing = {"max_steps": 4, "hub_model_id": NAME, "hub_strategy": "checkpoint"}
    whole = train(fast_config(**settings, **pushing, output_dir=tmp_path / "whole"))
    here_now = here.repo(NAME).files("main")
    assert "model.safetensors" in here_now and "adapter_model.safetensors" not in here_now  # the end: merged
    assert "last-checkpoint/adapter_model.safetensors" in here_now
    pushed = [commit.title for commit in here.repo(NAME).log("main")]
    assert len(pushed) >= 2
    for path, content in here_now.items():
        assert str(tmp_path).encode() not in content, path

    longer = settings | {"max_steps": 6}
    resumed = train(fast_config(**longer, output_dir=tmp_path / "b", resume_from_checkpoint=f"hub://{NAME}@main"))
    left_alone = train(fast_config(**longer, output_dir=whole, resume_from_checkpoint="latest"))
    ours, theirs = (load_file(run / "adapter/adapter_model.safetensors") for run in (resumed, left_alone))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
