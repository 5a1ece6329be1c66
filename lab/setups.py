"""The digits task in different circumstances: what the model learned before, and what the text is worth.

A set-up is a warm-up and the questions of training and test. Its name, and what distinguishes it:

    shown       the task of recipes/tiny. In the warm-up, half of the tiles whose digit the text gives are black.
    plain       the same without black tiles: the warm model reads the image also where the text has the answer.
    misleading  the warm-up is mostly text with true hints; then 30 % of the hints are wrong.
    caption     the warm-up is half text with true hints; then all hints of 40 % of the rows are another image's.
    noisy       as shown, but the paper is twice as noisy after the warm-up.
    raw         as shown, but the warm-up is cut to 150 of 350 steps: the model hardly reads.

The rows of those that differ after the warm-up are written as Parquet files, which the recipes read as any data set.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets

from papo_hub.digits import SPLITS, DigitRows

ROWS = {"train": 4096, "test": 400}
DATA_SEED = 0  # of the questions; those of the warm-up are drawn with the seed of the run


@dataclass(frozen=True)
class Setup:
    """`warmup` and `rows` are arguments of DigitRows; where `rows` is empty, the task is the built-in one."""

    name: str
    warmup: dict[str, Any]
    rows: dict[str, Any] = field(default_factory=dict)
    warmup_steps: int = 350

    def write_warmup_rows(self, path: Path, seed: int, size: int = 2048) -> Path:
        """The rows that the warm-up imitates, in a Parquet file."""
        return write_rows(path, DigitRows("train", size, seed, scans=100, **self.warmup))

    def dataset(self, folder: Path) -> str:
        """What `dataset_name` and `eval_dataset_name` are; writes the data set where it is needed and missing."""
        if not self.rows:
            return "digits"
        here = folder / self.name / "data"
        if not here.exists():
            aside = here.with_name("partial-data")
            shutil.rmtree(aside, ignore_errors=True)
            for split in SPLITS:
                write_rows(aside / f"{split}.parquet", DigitRows(split, ROWS[split], DATA_SEED, **self.rows))
            aside.rename(here)
        return str(here)


TEXT_HEAVY = {"high": 0.15, "partial": 0.15, "low": 0.7}
HALF_TEXT = {"high": 0.4, "partial": 0.1, "low": 0.5}

SETUPS = {
    setup.name: setup
    for setup in (
        Setup("shown", {"hide_hinted": 0.5}),
        Setup("plain", {}),
        Setup("noisy", {"hide_hinted": 0.5}, {"noise": 120.0}),
        Setup("raw", {"hide_hinted": 0.5}, warmup_steps=150),
        Setup("misleading", {"shares": TEXT_HEAVY, "hide_hinted": 0.5}, {"wrong_hints": 0.3}),
        Setup("caption", {"shares": HALF_TEXT, "hide_hinted": 0.5}, {"shares": HALF_TEXT, "wrong_captions": 0.4}),
    )
}


def write_rows(path: Path, rows: DigitRows) -> Path:
    """Rows of the digits task as a Parquet file with its images inside."""
    datasets.disable_progress_bars()
    features = datasets.Features(
        {name: datasets.Value("string") for name in rows.column_names if name != "images"}
        | {"images": datasets.List(datasets.Image())}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_list(
        [{name: row[name] for name in features} for row in map(rows.__getitem__, range(len(rows)))], features
    )
    table.to_parquet(path)
    return path
