"""docs/lora.md: its table is what the dry run computes, its commands are accepted, its Python loads an adapter."""

import re
import shlex
from pathlib import Path

import pytest
from transformers import AutoConfig

from papo_hub.config import TrainConfig, load_config, parse_overrides
from papo_hub.dry_run import KNOWN, step_flop
from papo_hub.memory import GIB, memory_plan
from papo_hub.trainer import train

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/lora.md").read_text(encoding="utf-8")
FULL = "Qwen/Qwen2.5-VL-3B-Instruct"


def plan_of(command: str):
    recipe, *options = shlex.split(command)
    config = load_config(ROOT / "recipes/qwen2_5_vl_3b" / recipe, parse_overrides(options))
    return config, memory_plan(config, AutoConfig.for_model(**KNOWN[FULL]))


def test_the_memory_table_is_computed():
    rows = re.findall(
        r"^\| `(papo_g.*?)` \| ([\d.,]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", TEXT, flags=re.MULTILINE
    )
    assert len(rows) == 6
    for command, *cells in rows:
        _, plan = plan_of(command)
        always = sum(plan.resident.values())
        sizes = (always, always + sum(plan.update.values()), always + plan.rollout)
        assert cells == [f"{plan.trained / 1e6:,.1f}", *(f"{size / GIB:.1f}" for size in sizes)], command


def test_the_other_figures_are_computed_too():
    whole = plan_of("papo_g.yaml")[1]
    assert f"another {(whole.scoring - whole.rollout) / GIB:.1f} GiB more than the rollout" in TEXT
    flop = [step_flop(*plan_of(recipe)) / 1e15 for recipe in ("papo_g_lora.yaml", "papo_g.yaml")]
    assert f"({flop[0]:.0f} PFLOP a step against {flop[1]:.0f}, at full length)" in TEXT
    adapter, whole = (plan_of(recipe)[1] for recipe in ("papo_g_lora.yaml", "papo_g.yaml"))
    # A checkpoint: what is trained and its two moments, in float32.
    sizes = [3 * 4 * plan.trained / GIB for plan in (adapter, whole)]
    assert f"for the 3B model {sizes[0]:.1f} GiB, where all parameters take {sizes[1]:.0f}" in TEXT


def test_its_keys_and_commands_exist():
    commands = [
        line for block in re.findall(r"```bash\n(.*?)```", TEXT, flags=re.DOTALL) for line in block.splitlines()
    ]
    assert len(commands) == 5
    for command in commands:
        words = shlex.split(command, comments=True)
        if words[1] == "launch":
            assert (ROOT / words[words.index("--config_file") + 1]).is_file()
            assert load_config(ROOT / words[words.index("--config") + 1]).lora_rank == 32
        elif words[1] == "train":
            assert load_config(ROOT / words[2], parse_overrides(words[3:])).lora_rank == 8
        else:
            assert words[:2] == ["papo-hub", "push"] and words[2] == "runs/qwen2_5_vl_3b/papo_g_lora"
    keys = set(re.findall(r"`((?:lora|freeze)_\w+)", TEXT))
    assert len(keys) == 6 and keys <= TrainConfig.__dataclass_fields__.keys()


@pytest.mark.usefixtures("without_report")
def test_its_python_loads_the_adapter_over_its_base(fast_config, tiny_model_folder):
    run = train(fast_config(lora_rank=2, max_steps=1))
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    scope: dict = {}
    exec(code.replace(FULL, str(tiny_model_folder)).replace("OWNER/NAME", str(run / "adapter")), scope)
    assert sum(".lora_A." in name for name, _ in scope["model"].named_parameters()) == 14
