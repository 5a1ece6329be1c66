"""Do the robust phenomena hold? (for the tests: two seeds, 25 steps)

Hypothesis: at γ = 0.3 and a learning rate of 5e-4 that stays, the published form (sampled, frozen) loses its reward within 25
steps; weighted by the advantage (and three times as strong) it keeps what GRPO has. Margins fixed from the runs of "stability".
"""

from pathlib import Path
from statistics import fmean

from lab import arms, figures
from lab.question import Found, Question
from lab.sweep import Arm, Run
from papo_hub import drawing


def short(arm: Arm) -> Arm:
    return arm.but("quick", arm.label, max_steps=25, eval_dataset_name=None)


GRPO, FROZEN, ADVANTAGE = map(short, (arms.HOT_GRPO, arms.HOT_PAPO["frozen", "none"], arms.HOT_ADVANTAGE))
LAST = 5  # steps whose mean reward counts
LOST, KEPT = 0.5, 0.8  # of GRPO's


def rewards(found: Found, arm: Arm) -> list[float]:
    """Mean reward of the last steps, a run."""
    return [fmean(run[-LAST:]) for run in found.curves(arm, "reward/mean")]


def check(found: Found) -> list[str]:
    """What does not hold, seed by seed."""
    failures = []
    for seed, values in enumerate(zip(*(rewards(found, arm) for arm in (GRPO, FROZEN, ADVANTAGE)), strict=True), 1):
        grpo, frozen, advantage = values
        if frozen > LOST * grpo:
            failures.append(f"seed {seed}: frozen, γ 0.3, has a reward of {frozen:.2f}, GRPO {grpo:.2f}: no collapse.")
        if advantage < KEPT * grpo:
            failures.append(f"seed {seed}: A · JS has a reward of {advantage:.2f}, GRPO {grpo:.2f}: it fell.")
    return failures


def draw(found: Found, path: Path) -> None:
    figure = drawing.new_figure(2.9)
    axes = drawing.add_axes(figure, 0.65, 0.5, 6.4, 1.8)
    drawing.panel(axes, "Reward, γ 0.3", "mean of 320 completions", "step")
    arms_shown = (GRPO, FROZEN, ADVANTAGE)
    ends = [
        (figures.band(axes, found.curves(arm, "reward/mean"), color), arm.label, color)
        for color, arm in zip(figures.COLORS, arms_shown, strict=False)
    ]
    axes.set_ylim(0, 1)
    drawing.end_labels(axes, ends)
    drawing.save(figure, path)


QUESTION = Question(
    __name__,
    (),
    {},
    draw,
    answer="",
    seeds=0,
    extra=[Run("shown", arm, seed) for seed in (1, 2) for arm in (GRPO, FROZEN, ADVANTAGE)],
    curves=("reward/mean",),
)
