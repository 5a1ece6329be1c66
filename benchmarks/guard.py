"""Does the guard see a collapse coming, and is it silent where none comes? Tiny runs of both kinds, replayed through it.

    python -m benchmarks.guard [--seeds 10] [--jobs 1] [--runs runs/guard] [--output FOLDER] [--picture docs/guard.png]
    python -m benchmarks.guard --replay FOLDER

Makes the runs of KINDS with the seeds 11, 12, … (finished ones are kept; they need the warm-up of recipes/tiny), or with
--replay takes those of a folder as they are, from seed 11 on. Writes guard.json with what the guard said in every run, and
the table into guard.md beside it. The thresholds were set on the seeds 1 to 4. What counts was fixed before the other runs
were looked at:

* A run collapses at the first step at which the mean reward of five steps lies a third below the highest such mean so far.
* A collapse is caught if the first alarm comes at least `MARGIN` = 2 steps before; the lead is the steps between the two.
* Any alarm in a run that does not collapse is a false one, whatever the run was meant to be.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks.report import table
from papo_hub import drawing
from papo_hub.guard import Guard
from papo_hub.tracking import read_metrics

ROOT = Path(__file__).parents[1]
FIRST_SEED = 11
SMOOTHED, FALL, MARGIN = 5, 1 / 3, 2
STRONG = "--gamma 0.3 --lr_scheduler_type constant"
KINDS = {  # a name → its recipe and options
    "collapse_frozen": f"papo_g {STRONG} --masked_logprobs frozen --max_steps 30",
    "collapse_live": f"papo_g {STRONG} --masked_logprobs live --max_steps 40",
    "healthy_papo_g": "papo_g --max_steps 60",
    "healthy_papo_d": "papo_d --max_steps 50",
    "healthy_live": "papo_g --max_steps 60 --masked_logprobs live",
    "healthy_grpo": "grpo --max_steps 60",
    "healthy_dapo": "dapo --max_steps 50",
}
MEANING = {
    "collapse_frozen": "PAPO-G, γ 0.3, masked log-probs frozen",
    "collapse_live": "PAPO-G, γ 0.3, masked log-probs live",
    "healthy_papo_g": "PAPO-G, γ 0.02",
    "healthy_papo_d": "PAPO-D, γ 0.01",
    "healthy_live": "PAPO-G, γ 0.02, masked log-probs live",
    "healthy_grpo": "GRPO",
    "healthy_dapo": "DAPO",
}


# --- runs -------------------------------------------------------------------------------------------------------------


def train(folder: Path, kind: str, seed: int) -> None:
    """Make one run, unless it is there. Raises RuntimeError where it fails."""
    run = folder / f"{kind}-{seed}"
    if (run / "README.md").exists():
        return
    recipe, *options = KINDS[kind].split()
    options += f"--seed {seed} --output_dir {run} --guard off --report_to none --eval_dataset_name null".split()
    options += ["--save_steps", "0", "--sample_steps", "1000"]
    command = [sys.executable, "recipes/train.py", "--config", f"recipes/tiny/{recipe}.yaml", *options]
    environment = os.environ | {
        "ACCELERATE_USE_CPU": "true",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{run.name} failed:\n{done.stderr[-2000:]}")
    print(f"made {run.name}", flush=True)


# --- verdicts ---------------------------------------------------------------------------------------------------------


def rewards_left(rows: Sequence[dict[str, Any]]) -> dict[int, float]:
    """Step → the mean reward of the last five steps, as a share of the highest such mean so far."""
    best, left = 0.0, {}
    for end in range(SMOOTHED, len(rows) + 1):
        level = fmean(row["reward/mean"] for row in rows[end - SMOOTHED : end])
        best = max(best, level)
        left[rows[end - 1]["step"]] = level / best if best else 1.0
    return left


def collapse_step(rows: Sequence[dict[str, Any]]) -> int | None:
    """The step at which the smoothed reward first lies a third below its best; None where it never does."""
    return next((step for step, share in rewards_left(rows).items() if share < 1 - FALL), None)


def replay(run: Path) -> dict[str, Any]:
    """What the guard says of a finished run: its first alarm, and where the run collapsed."""
    kind, _, seed = run.name.rpartition("-")
    rows, guard = read_metrics(run / "metrics.jsonl"), Guard()
    alarms = [alarm for alarm in map(guard.observe, rows) if alarm is not None]
    first, left = alarms[0] if alarms else None, rewards_left(rows)
    return {
        "kind": kind,
        "seed": int(seed),
        "steps": len(rows),
        "collapse": collapse_step(rows),
        "alarm": first and first.step,
        "since": first and first.since,
        "signs": [sign.name for sign in first.signs] if first else [],
        "alarms": len(alarms),
        "left_at_alarm": first and round(left[first.step], 3),
        "left_at_end": round(left[rows[-1]["step"]], 3),
    }


def rates(verdicts: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The rows of the table, one a kind of run."""
    rows = []
    for kind in KINDS:
        runs = [verdict for verdict in verdicts if verdict["kind"] == kind]
        if not runs:
            continue
        collapsed = [run for run in runs if run["collapse"] is not None]
        heard = [run for run in collapsed if run["alarm"] is not None]
        leads = [run["collapse"] - run["alarm"] for run in heard]
        caught = [lead for lead in leads if lead >= MARGIN]
        false = sum(run["alarm"] is not None for run in runs if run["collapse"] is None)
        rows.append(
            [
                MEANING[kind],
                str(len(runs)),
                str(len(collapsed)),
                f"{len(caught)} of {len(collapsed)}" if collapsed else "–",
                f"{median(leads):g} ({min(leads)} to {max(leads)})" if leads else "–",
                " → ".join(
                    f"{100 * median(run[f'left_at_{when}'] for run in heard):.0f} %" for when in ("alarm", "end")
                )
                if heard
                else "–",
                f"{false} of {len(runs) - len(collapsed)}" if len(runs) > len(collapsed) else "–",
            ]
        )
    return rows


def rates_table(verdicts: Sequence[dict[str, Any]]) -> str:
    """The table as Markdown."""
    return table(
        ["runs", "number", "collapsed", "caught", "lead, steps", "reward left", "false alarms"], rates(verdicts)
    )


def write_results(verdicts: list[dict[str, Any]], folder: Path) -> str:
    """guard.json, and guard.md, which says what is in it; returns the table."""
    results = {"date": datetime.date.today().isoformat(), "kinds": KINDS, "runs": verdicts}
    lines = ",\n  ".join(json.dumps(verdict) for verdict in verdicts)
    head = json.dumps(results | {"runs": []}, indent=1).replace('"runs": []', f'"runs": [\n  {lines}\n ]')
    (folder / "guard.json").write_text(head + "\n", encoding="utf-8")
    text = (
        f"# The guard: collapses seen coming\n\nMeasured on {results['date']}, tiny recipes, 320 completions a step. A "
        f"collapse: the mean reward of {SMOOTHED} steps falls a third below its best. Caught: an alarm {MARGIN} steps before "
        "or more. Lead: median (range) of the steps between the first alarm and the collapse. Reward left: its mean of 5 "
        "steps as a share of the best, at the first alarm and at the end of the run, which went on; medians. Every run is in "
        f"guard.json. Made by `python -m benchmarks.guard`.\n\n{rates_table(verdicts)}\n"
    )
    (folder / "guard.md").write_text(text, encoding="utf-8")
    return rates_table(verdicts)


# --- the picture ------------------------------------------------------------------------------------------------------


def draw(runs: Sequence[tuple[str, Path]], path: Path) -> None:
    """A panel a run: reward, format and the perception KL in clamps, with the first alarm and the collapse."""
    figure = drawing.new_figure(2.95)
    width = drawing.WIDTH / len(runs)
    for place, (title, run) in enumerate(runs):
        rows, verdict, guard = read_metrics(run / "metrics.jsonl"), replay(run), Guard()
        steps = [row["step"] for row in rows]
        axes = drawing.add_axes(figure, place * width + 0.55, 0.5, width - 1.75, 1.9)
        drawing.panel(axes, title, "0 to 1", "step")
        axes.set(ylim=(0, 1.04), xlim=(1, len(rows)))
        curves = (
            ("reward", drawing.CLEAN, [row["reward/mean"] for row in rows]),
            ("format", drawing.QUIET, [row["reward/format"] for row in rows]),
            ("KL ÷ clamp", drawing.MASKED, [row["objective/perception_kl"] / guard.clamp for row in rows]),
        )
        for _, color, values in curves:
            axes.plot(steps, values, color=color, linewidth=1.6)
        drawing.end_labels(axes, [(values[-1], label, color) for label, color, values in curves])
        style = {"fontsize": 8.5, "family": drawing.SANS, "weight": "bold", "va": "center"}
        for step, text, color, height in (
            (verdict["alarm"], "alarm ", drawing.ACCENT, 0.72),
            (verdict["collapse"], " reward a third lower", drawing.INK, 0.06),
        ):
            if step is not None:
                axes.axvline(step, color=color, linewidth=1.4, linestyle="--")
                axes.text(step, height, text, color=color, ha="right" if text.endswith(" ") else "left", **style)
        if verdict["alarm"] is None:
            axes.text(len(rows) / 2, 0.3, "no alarm", color=drawing.MUTED, ha="center", **style)
    drawing.save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="runs of each kind")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, a core each")
    parser.add_argument("--runs", type=Path, default=Path("runs/guard"), help="where the runs are kept")
    parser.add_argument("--replay", type=Path, help="make no runs, take those of this folder")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--picture", type=Path, help="draw a collapse and a healthy run here")
    options = parser.parse_args()

    folder = (options.replay or options.runs).resolve()
    if options.replay is None:
        if not (ROOT / "runs/tiny/warmup/model.safetensors").exists():
            parser.error("runs/tiny/warmup is missing: recipes/tiny/warmup.yaml says how to make it.")
        wanted = [(kind, seed) for seed in range(FIRST_SEED, FIRST_SEED + options.seeds) for kind in KINDS]
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(lambda run: train(folder, *run), wanted))
    runs = {kind: [] for kind in KINDS}
    for run in sorted(file.parent for file in folder.glob("*/metrics.jsonl")):
        kind, _, seed = run.name.rpartition("-")
        if kind in runs and int(seed) >= FIRST_SEED:
            runs[kind].append(run)
    verdicts = [replay(run) for kind in KINDS for run in runs[kind]]
    print(write_results(verdicts, options.output))
    if options.picture:
        chosen = (("Collapses: γ 0.3, live", "collapse_live"), ("Healthy: γ 0.02", "healthy_papo_g"))
        draw([(title, runs[kind][0]) for title, kind in chosen], options.picture)


if __name__ == "__main__":
    main()
