"""The robust phenomena of the laboratory, trained anew: the published form dies of a strong γ, the weighted one does not."""

import json
import subprocess
import sys

import pytest

from lab import quick, sweep
from lab.outcome import Outcome
from lab.question import Found


def test_the_robust_phenomena_hold(tmp_path):
    """In a process of its own, as `make lab-quick`: it forks."""
    command = [sys.executable, "-m", "lab", "--quick", "--runs", str(tmp_path / "runs")]
    done = subprocess.run(command, cwd=sweep.ROOT, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-2000:]}"
    assert "All hold" in done.stdout and (tmp_path / "runs" / "quick.png").stat().st_size > 10_000
    rows = [json.loads(line) for line in (tmp_path / "runs" / "quick.jsonl").read_text().splitlines()]
    assert len(rows) == 6 and all(len(row["curves"]["reward/mean"]) == 25 for row in rows)


@pytest.mark.parametrize(
    "frozen, advantage, said",
    [(0.0, 0.5, []), (0.26, 0.5, ["no collapse"]), (0.0, 0.39, ["it fell"]), (0.5, 0.1, ["no collapse", "it fell"])],
)
def test_the_margins(frozen, advantage, said):
    """GRPO ends at 0.5: what died has at most 0.25, what lives at least 0.4."""
    rewards = ((quick.GRPO, 0.5), (quick.FROZEN, frozen), (quick.ADVANTAGE, advantage))
    outcomes = [
        Outcome("shown", arm.name, 1, {}, 1.0, {}, {}, {"reward/mean": [0.9] * 20 + [reward] * 5})
        for arm, reward in rewards
    ]
    failures = quick.check(Found(outcomes))
    assert len(failures) == len(said) and all(word in failure for word, failure in zip(said, failures, strict=True))
