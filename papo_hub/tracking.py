"""What a run leaves for people to look at while it goes: metrics.jsonl, samples.md, the progress bar, the trackers."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import math
import platform
import re
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from papo_hub.batch import Batch
from papo_hub.config import ConfigError, TrainConfig
from papo_hub.files import replace_file
from papo_hub.guard import Alarm
from papo_hub.redaction import printable

PACKAGES = (
    "papo_hub",
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "huggingface_hub",
    "safetensors",
    "math-verify",
)
TRACKERS = ("trackio", "tensorboard", "wandb")


def trackers(report_to: str | None) -> list[str]:
    """The trackers to start. Empty text: trackio where it is installed. Raises ConfigError for an unknown or absent one."""
    if report_to is None:
        return []
    if report_to == "":
        return ["trackio"] if importlib.util.find_spec("trackio") else []
    names = list(TRACKERS) if report_to == "all" else [name.strip() for name in report_to.split(",")]
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(f"report_to: {name!r} is none of {', '.join(TRACKERS)}, all, none.")
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"report_to: {name} is not installed; pip install 'papo_hub[trackers]', or report_to: none."
            )
    return names


def tracker_options(run_name: str | None) -> dict[str, dict[str, Any]]:
    """What makes each tracker go on with a resumed run's curves, under the name that provenance.json keeps."""
    if run_name is None:  # not the main process
        return {}
    known = {"name": run_name, "resume": "allow"}
    return {"trackio": known, "wandb": known | {"id": re.sub(r"[^\w.-]", "-", run_name)[-128:]}}


def package_versions() -> dict[str, str | None]:
    """The version of each package that a run rests on; None where it is not installed."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def provenance(config: TrainConfig, num_processes: int) -> dict[str, Any]:
    """What made this run: versions, commit, command, hardware."""
    versions = {name: version or "not installed" for name, version in package_versions().items()}
    found = circumstances(num_processes)
    return {
        "versions": {"python": platform.python_version()} | versions,
        "commit": _commit(),
        **found,
        "hardware": f"{found['hardware']}, {torch.get_num_threads()} threads a process",
    }


def circumstances(num_processes: int) -> dict[str, str]:
    """The command, the hardware, and when it was started (UTC). Whoever writes it down redacts it."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})"
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "hardware": f"{num_processes} × {device}",
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _commit() -> str | None:
    """The commit of this source tree, or None where the package was installed from a wheel."""
    folder = Path(__file__).parent
    if not (folder.parent / ".git").exists():
        return None
    git = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(git, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


class RunLog:
    """Writes a run's records. Only the main process writes; on the others every method does nothing.

    Args:
        run: the run folder.
        done: steps already finished, when resuming: later records are dropped, since those steps are run again.
    """

    def __init__(self, run: Path, config: TrainConfig, accelerator: Accelerator, max_steps: int, done: int = 0) -> None:
        self.run, self.config, self.accelerator = run, config, accelerator
        self.main = accelerator.is_main_process
        self.metrics_file, self.samples_file = run / "metrics.jsonl", run / "samples.md"
        if self.main:
            keep_until(self.metrics_file, self.samples_file, done)
        self.bar = tqdm(total=max_steps, initial=done, desc=config.objective, disable=not self.main, dynamic_ncols=True)

    def step(self, metrics: dict[str, float]) -> None:
        """One line of metrics.jsonl, one move of the bar, one point in the trackers. `metrics`: see `row`."""
        if not self.main:
            return
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics, allow_nan=False) + "\n")
        shown = {"reward": metrics["reward/mean"], "perception_kl": metrics.get("objective/perception_kl")}
        self.bar.set_postfix({name: f"{value:.3f}" for name, value in shown.items() if value is not None})
        self.bar.update()
        if metrics["step"] % self.config.logging_steps == 0:
            self.accelerator.log(
                {k: v for k, v in metrics.items() if k != "step" and v is not None}, step=metrics["step"]
            )

    def alarm(self, alarm: Alarm, consequence: str) -> None:
        """The guard's signs and what follows from them: said, and a line of guard.jsonl."""
        if not self.main:
            return
        seen = "; ".join(sign.text for sign in alarm.signs)
        self.say(f"guard, step {alarm.step}: {seen}. {alarm.remedy} {consequence}")
        line = json.dumps(asdict(alarm) | {"consequence": consequence}) + "\n"
        file = self.run / "guard.jsonl"
        said = file.read_text(encoding="utf-8") if file.exists() else ""
        if line not in said:  # a run that was killed and resumed meets the same signs again
            replace_file(file, said + line)

    def go_back(self, step: int) -> None:
        """Drop the records of the steps after `step`, which are run again."""
        if self.main:
            keep_until(self.metrics_file, self.samples_file, step)
            self.bar.reset()
            self.bar.update(step)

    def samples(self, step: int, batch: Batch, count: int = 2) -> None:
        """A few problems with two of their completions each, into samples.md."""
        if not self.main or not self.config.log_completions:
            return
        size = len(batch) // len(batch.prompts)
        parts = [f"## Step {step}\n"]
        for i, prompt in enumerate(batch.prompts[:count]):
            parts.append(_quoted("Problem", prompt.sample.problem) + _quoted("Answer", prompt.sample.answer))
            for row in range(i * size, i * size + min(2, size)):
                reward, advantage = batch.rewards["mean"][row], batch.advantages[row]
                parts.append(_quoted(f"Reward {reward:.2f}, advantage {advantage:+.2f}", batch.completions[row].text))
        with self.samples_file.open("a", encoding="utf-8") as file:
            file.write("\n".join(parts) + "\n")

    def skipped_rows(self, skipped: dict[str, str]) -> None:
        """skipped_rows.jsonl: the rows that cannot be used, with their reasons."""
        if self.main and skipped:
            lines = [json.dumps({"id": row, "reason": reason}) for row, reason in skipped.items()]
            replace_file(self.run / "skipped_rows.jsonl", "\n".join(lines) + "\n")

    def say(self, text: str) -> None:
        """A line above the progress bar."""
        if self.main:
            self.bar.write(printable(text))

    def close(self) -> None:
        self.bar.close()


def row(metrics: dict[str, float | None]) -> dict[str, float | None]:
    """A row of metrics.jsonl, which has "step" (1-based); JSON has no NaN: what is not finite becomes None."""
    return {name: None if value is None or not math.isfinite(value) else value for name, value in metrics.items()}


def keep_until(metrics_file: Path, samples_file: Path, step: int) -> None:
    """Drop the records of steps after `step`."""
    if metrics_file.exists():
        kept = [row for row in read_metrics(metrics_file) if row["step"] <= step]
        replace_file(metrics_file, "".join(json.dumps(row) + "\n" for row in kept))
    if samples_file.exists():
        sections = re.split(r"^(?=## Step \d+$)", samples_file.read_text(encoding="utf-8"), flags=re.MULTILINE)
        kept = [s for s in sections if (m := re.match(r"## Step (\d+)", s)) and int(m[1]) <= step]
        replace_file(samples_file, "".join(kept))


def read_metrics(metrics_file: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; a last line that a kill cut short is left out."""
    rows = []
    for line in metrics_file.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _quoted(label: str, text: str) -> str:
    """A labelled block of literal text that no content can break out of, nor pass for the start of a section."""
    text = re.sub(r"^(?=## Step \d)", " ", printable(text), flags=re.MULTILINE)
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall(r"`+", text)), 3)
    return f"**{label}**\n\n{fence}text\n{text}\n{fence}\n"
