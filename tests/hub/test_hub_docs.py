"""docs/hub.md and the Hub's part of the README, command by command, in their order."""

import inspect
import io
import re
import shlex
import shutil
from contextlib import redirect_stdout
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from papo_hub.cli import main, push_dataset_command
from papo_hub.config import TrainConfig
from papo_hub.hub import Client, client
from papo_hub.tracking import read_metrics

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(document: str) -> list[tuple[str, str]]:
    """(language, text) of the code blocks, in order."""
    return BLOCK.findall((ROOT / document).read_text(encoding="utf-8"))


@pytest.fixture
def place(finished_run, tmp_path, monkeypatch):
    """A folder as the document's reader has it: two runs, a recipe, the repository's recipes."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished_run, "runs/tiny/papo_g")
    recipe = yaml.safe_load(Path("runs/tiny/papo_g/config.yaml").read_text())
    high = Path(shutil.copytree("runs/tiny/papo_g", "runs/tiny/papo_g_high"))
    (high / "config.yaml").write_text(yaml.safe_dump(recipe | {"gamma": 0.05}))
    for name in ("output_dir", "eval_dataset_name"):
        del recipe[name]
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe | {"output_dir": "runs/x", "save_steps": 1}))
    Path("recipes").symlink_to(ROOT / "recipes")
    return tmp_path


def test_the_document(here, elsewhere, place, capsys):
    printed = {}
    for language, text in blocks("docs/hub.md"):
        for command in text.replace("\\\n", "").splitlines() if language == "bash" else [text]:
            if language == "python":
                elsewhere(command)
                continue
            words = shlex.split(command)
            if "--streaming" in words:  # datasets reads its environment once, too
                program = "import sys; from papo_hub.cli import main; sys.exit(main())"
                elsewhere(["-c", program, *words[1:]], token=here.write_token, ACCELERATE_USE_CPU="true")
            elif words[0] == "papo-hub":
                assert main(words[1:]) == 0, command
            else:
                assert words[:2] == ["python", "recipes/push_dataset.py"], command
                assert push_dataset_command(words[2:]) == 0, command
            printed[command] = capsys.readouterr().out

    def said(part):
        return next(text for command, text in printed.items() if part in command)

    assert "alice, role write" in said("doctor")
    assert "model.safetensors" in said("--dry_run") and "nothing was sent" in said("--dry_run")
    lines = [line.split() for line in said("versions").splitlines()]
    assert {(line[0], line[4]) for line in lines if line[1] == "tag"} == {("v1.0", "0.02"), ("v1.1", "0.05")}
    digits = here.repo("alice/digits", "dataset")
    assert "v1.0" in digits.tags and any(path.endswith(".parquet") for path in digits.files("v1.0"))
    first, second = read_metrics(Path("runs/first/metrics.jsonl")), read_metrics(Path("runs/second/metrics.jsonl"))
    assert [row["step"] for row in second] == [1, 2, 3, 4] and second[:2] == first
    assert len(read_metrics(Path("runs/streamed/metrics.jsonl"))) == 2
    assert not here.unknown, here.unknown


def test_the_patience_that_is_stated_is_the_client_s():
    patience = inspect.signature(Client).parameters
    waits = [patience["wait"].default * 2**attempt for attempt in range(patience["tries"].default - 1)]
    assert f"tried six times, after {', '.join(f'{wait:g}' for wait in waits)} seconds" in blocks_of_text()
    assert len(waits) == 5 and client.LONGEST_WAIT == 120


def blocks_of_text() -> str:
    return " ".join((ROOT / "docs/hub.md").read_text(encoding="utf-8").split())


def test_every_command_of_the_document_is_there():
    """The list that the test above runs is not empty by accident."""
    commands = [text for language, text in blocks("docs/hub.md") if language == "bash"]
    for part in ("doctor", "--dry_run", "versions", "--format papo", "hub://", "push_dataset.py", "--streaming true"):
        assert sum(part in text for text in commands) == 1


def test_the_document_names_only_what_exists():
    document = (ROOT / "docs/hub.md").read_text(encoding="utf-8")
    paths = re.findall(r"`((?:tests|recipes|docs)/[\w/.]+)`", document)
    assert paths and all((ROOT / path).exists() for path in paths)
    keys = set(re.findall(r"`(hub_\w+)", document))
    assert len(keys) == 4 and keys <= {field.name for field in fields(TrainConfig)}
    push = " ".join(help_of("push").split())
    for option in set(re.findall(r"`(--[a-z_]+)`", document)) - {"--streaming"}:
        assert option in push, option


def help_of(command: str) -> str:
    """What `papo-hub COMMAND --help` prints."""
    output = io.StringIO()
    with redirect_stdout(output), pytest.raises(SystemExit):
        main([command, "--help"])
    return output.getvalue()
