"""docs/scaling.md: what it computes is what the code computes, and the files that it names are there."""

import re
from pathlib import Path

import pytest
from transformers import AutoConfig

from papo_hub.config import load_config
from papo_hub.dry_run import KNOWN, step_flop
from papo_hub.memory import GIB, GPUS, memory_plan

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs/scaling.md").read_text(encoding="utf-8")
ROW = r"^\| `(\S+\.yaml)` \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$"


def plan_of(recipe: str):
    config = load_config(ROOT / "recipes" / recipe)
    return config, memory_plan(config, AutoConfig.for_model(**KNOWN[config.model_name_or_path]))


@pytest.mark.parametrize("row", re.findall(ROW, TEXT, flags=re.MULTILINE), ids=lambda row: row[0])
def test_the_memory_table_is_computed(row):
    recipe, *sizes = row
    _, plan = plan_of(recipe)
    assert sizes == [f"{plan.sharded(gpus) / GIB:.1f}" for gpus in GPUS]


def test_the_memory_table_has_all_models():
    assert {row[0].split("/")[0] for row in re.findall(ROW, TEXT, flags=re.MULTILINE)} == {
        "qwen3_vl_2b",
        "qwen2_5_vl_3b",
        "qwen2_5_vl_7b",
    }


def test_the_work_is_computed_and_the_formula_is_the_codes():
    small, large = (plan_of(f"qwen2_5_vl_{size}/papo_g.yaml") for size in ("3b", "7b"))
    flop = [step_flop(*found) / 1e15 for found in (small, large)]
    assert f"takes {flop[0]:.0f} PFLOP a step on the 3B model and {flop[1]:.0f} on the 7B one" in TEXT
    tokens = 384 * (4096 + 5 * 2048)
    assert step_flop(*small) == pytest.approx(2 * small[1].parameters * tokens * (1 + 1 + 1 + 1 + 4))
    full, short = (5 * (p + t) / (p + 5 * t) for p, t in ((4096, 2048), (1000, 400)))
    assert f"{full:.1f} times as many; 5 · (1,000 + 400) at the shorter lengths, {short:.1f} times" in " ".join(
        TEXT.split()
    )


def test_the_files_it_names_exist():
    named = re.findall(r"`((?:accelerate_configs|tests|papo_hub)/[\w/.]+)", TEXT)
    named += [f"recipes/{name}" for name in re.findall(r"`(qwen\w+/\w+\.yaml)`", TEXT)]
    assert len(named) > 15
    for name in named:
        assert (ROOT / name).exists(), name
