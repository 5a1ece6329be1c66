"""The quick start keeps its promises. Minutes long: `make test-slow`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.slow
def test_the_quick_start_teaches_the_tiny_model_to_see(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", "import sys; from papo_hub.cli import main; sys.exit(main(['quickstart']))"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]

    run = tmp_path / "runs" / "tiny" / "papo_g"
    rows = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    found = {(row["when"], row["view"], row["group"]): row for row in rows}
    gain = found["after", "clean", "all"]["accuracy"] - found["before", "clean", "all"]["accuracy"]
    assert gain >= 0.12, f"held-out accuracy rose by {gain:.1%}"
    ratio = found["after", "clean", "high"]["perception_kl"] / found["after", "clean", "low"]["perception_kl"]
    assert ratio >= 10, f"perception KL: image-only questions have {ratio:.1f} times that of text-only ones"
    for line in ("all questions", "image only", "Next:"):
        assert line in done.stdout

    again = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0 and "all questions" in again.stdout, "a second start shows the result again"
