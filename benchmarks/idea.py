"""The shared prefix in one picture, drawn from the layout that the code itself makes.

python -m benchmarks.idea docs/shared_prefix.png
"""

from __future__ import annotations

import sys

import matplotlib
import numpy as np
import torch

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from papo_hub.prefix_attention import Packing

PROMPT, IMAGE, COMPLETIONS, PAD = "#9fb3c8", "#486581", ("#f0b429", "#e3744f", "#7cb342"), "#eef1f4"
INK, MUTED = "#1f2933", "#6b7785"
IMAGE_TOKENS, TEXT_TOKENS, LENGTHS = 14, 6, (9, 5, 7)


def visible() -> np.ndarray:
    """Which token (row) attends to which (column): read off the attention itself, by its gradient in float64."""
    packing = Packing([IMAGE_TOKENS + TEXT_TOKENS], [list(LENGTHS)])
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(packing.length, 1, 4, generator=generator, dtype=torch.float64, requires_grad=True)
        for _ in range(3)
    )
    output = packing.joined(query, key, value, 0.5)
    rows = [
        torch.autograd.grad(output[i].sum(), value, retain_graph=True)[0].abs().sum((1, 2)) for i in range(len(output))
    ]
    return (torch.stack(rows) > 0).numpy()


def strip(axes: Axes, x: float, y: float, tokens: list[tuple[int, str]], height: float = 0.8) -> float:
    """Token by token from x on; returns the end."""
    for count, color in tokens:
        for _ in range(count):
            axes.add_patch(Rectangle((x, y), 0.86, height, color=color, linewidth=0))
            x += 1
    return x


def draw(path: str) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6), width_ratios=(1.25, 1), layout="constrained")
    prompt = [(IMAGE_TOKENS, IMAGE), (TEXT_TOKENS, PROMPT)]
    longest = max(LENGTHS)
    rows = len(LENGTHS) * (IMAGE_TOKENS + TEXT_TOKENS + longest)
    shared = IMAGE_TOKENS + TEXT_TOKENS + sum(LENGTHS)

    left.text(0, 0.2, f"one padded row a completion: {rows} tokens", color=INK, fontsize=12, weight="bold", va="bottom")
    for i, (length, color) in enumerate(zip(LENGTHS, COMPLETIONS, strict=True)):
        strip(left, 0, -1 - i, [*prompt, (length, color), (longest - length, PAD)])
    left.text(0, -5.4, f"one packed row: {shared} tokens", color=INK, fontsize=12, weight="bold", va="bottom")
    strip(left, 0, -6.6, prompt + list(zip(LENGTHS, COMPLETIONS, strict=True)))
    x = 0
    for label, color in (
        ("image", IMAGE),
        ("text of the prompt", PROMPT),
        ("completions", COMPLETIONS[0]),
        ("padding", PAD),
    ):
        left.add_patch(Rectangle((x, -8.6), 0.86, 0.8, color=color, linewidth=0))
        left.text(x + 1.3, -8.2, label, color=MUTED, fontsize=10, va="center")
        x += 3.5 + 0.78 * len(label)
    left.set(xlim=(-0.5, shared + 0.5), ylim=(-9, 1.6))
    left.axis("off")

    colors = [PROMPT] * (IMAGE_TOKENS + TEXT_TOKENS)
    colors[:IMAGE_TOKENS] = [IMAGE] * IMAGE_TOKENS
    for length, color in zip(LENGTHS, COMPLETIONS, strict=True):
        colors += [color] * length
    for i, row in enumerate(visible()):
        for j in np.flatnonzero(row):
            right.add_patch(Rectangle((j, -i), 0.9, 0.9, color=colors[j], linewidth=0))
    right.set(xlim=(-0.5, shared + 0.5), ylim=(-shared, 1.5), aspect="equal")
    right.set_title("which token (down) attends to which (across)", fontsize=12, color=INK, weight="bold", loc="left")
    right.axis("off")
    figure.savefig(path, dpi=140, facecolor="white")


if __name__ == "__main__":
    draw(*sys.argv[1:])
