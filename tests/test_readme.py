"""The README's claims about the tree: commands exist, links and paths lead somewhere, the code in it runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from papo_hub.config import load_config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_relative_link_leads_somewhere(document):
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http://", "https://", "#", "mailto:")):
            assert (document.parent / target.partition("#")[0]).exists(), target


def test_every_path_of_the_map_exists():
    section = README.split("## The map")[1]
    rooms = [row.split("|")[1] for row in section.splitlines() if row.startswith("| `")]
    assert len(rooms) >= 8
    for cell in rooms:
        folder = Path()
        for path in re.findall(r"`([^`]+)`", cell):  # a bare name stands for one in the folder named before it
            folder = Path(path).parent if "/" in path else folder
            assert (ROOT / folder / Path(path).name).exists(), path


def test_the_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^make ([\w-]+)", README, flags=re.MULTILINE)
    assert targets[:2] == ["quickstart", "test"]
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "make test" in ci, "CI runs the command that the README gives"


def test_the_first_screen_has_a_sentence_a_picture_and_two_commands():
    first_screen = README.split("## ")[0]
    picture = re.search(r"!\[[^\]]{20,}\]\(([^)]+)\)", first_screen)
    assert picture and (ROOT / picture[1]).stat().st_size > 10_000
    assert re.search(r"make quickstart.*\nmake test", first_screen)
    assert "→" in first_screen, "what the quick start prints"


def test_the_launch_command_names_existing_files():
    for block in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL):
        for command in block.replace("\\\n", " ").splitlines():
            words = shlex.split(command, comments=True)
            if words[:2] == ["accelerate", "launch"]:
                options = dict(zip(words, words[1:], strict=False))
                assert (ROOT / options["--config_file"]).is_file()
                assert load_config(ROOT / options["--config"])
                assert (ROOT / "recipes" / "train.py").is_file() and "recipes/train.py" in words


def test_the_python_of_the_readme_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    scope: dict = {}
    exec(compile(code, "README.md", "exec"), scope)
    assert scope["objective"].weights.gamma == 0.02
