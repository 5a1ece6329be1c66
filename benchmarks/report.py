"""results.json → the tables (README.md beside it) and two plots.

python -m benchmarks.report [FOLDER]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from benchmarks.law import QWEN_3B, QWEN_7B, Architecture, pass_tokens, ratio, vision_share
from benchmarks.work import Shape

# row of the tables → part in results.json, our column there and TRL's
ROWS = {
    "rollout": ("rollout", "ours", "peer"),
    "score": ("score", "ours", "peer"),
    "update": ("update", "ours", "peer"),
    "step live": ("step", "ours", "peer"),
    "step frozen": ("step", "ours frozen", "peer"),
    "step as it comes": ("step", "ours frozen", "peer checkpointing"),
}
MEANING = {
    "rollout": "rollout: G completions of T tokens",
    "score": "score: forward pass of one view, no gradient",
    "update": "update: forward and backward pass of one view",
    "step live": "whole step, masked view live (as TRL)",
    "step frozen": "whole step, masked view frozen (as the paper's code)",
    "step as it comes": "the same, TRL as it comes (activation checkpointing)",
}
OURS, PEER = "tab:blue", "tab:orange"


@dataclass(frozen=True)
class Comparison:
    """One row of ROWS at one shape and number of threads."""

    row: str
    shape: Shape
    threads: int
    ours: list[float]  # seconds
    peer: list[float]

    @property
    def ratio(self) -> float:
        return median(self.peer) / median(self.ours)

    @property
    def spread(self) -> tuple[float, float]:
        """The smallest and the largest ratio of two samples taken one after the other."""
        ratios = [peer / ours for ours, peer in zip(self.ours, self.peer, strict=True)]
        return min(*ratios, self.ratio), max(*ratios, self.ratio)

    def law(self, architecture: Architecture) -> float:
        return ratio(architecture, self.row, self.shape.prompt, self.shape.image_tokens, self.shape.lengths)


def comparisons(results: dict[str, Any]) -> list[Comparison]:
    """All that results.json has, in the order of ROWS."""
    return [
        Comparison(row, Shape(**t["shape"]), t["threads"], t["seconds"][ours], t["seconds"][peer])
        for row, (part, ours, peer) in ROWS.items()
        for t in results["timings"]
        if t["part"] == part
    ]


def measured_architecture(results: dict[str, Any]) -> Architecture:
    text, vision = results["model"]["text"], results["model"]["vision"]
    return Architecture(
        "the measured model",
        text["hidden_size"],
        text["num_hidden_layers"],
        text["num_attention_heads"],
        text["num_key_value_heads"],
        text["intermediate_size"],
        text["vocab_size"],
        vision["hidden_size"],
        vision["depth"],
        len(vision["fullatt_block_indexes"]),
        vision["intermediate_size"],
    )


def straight_line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Least squares y ≈ a + b·x: (a, b, the share of the variance that it explains).

    Raises ValueError for fewer than two different x.
    """
    if len(set(x)) < 2:
        raise ValueError(f"a line needs two different x, not {sorted(set(x))}")
    x, y = np.asarray(x, float), np.asarray(y, float)
    b, a = np.polyfit(x, y, 1)
    residual, total = ((y - a - b * x) ** 2).sum(), ((y - y.mean()) ** 2).sum()
    return float(a), float(b), float(1 - residual / total) if total else 1.0


def marginal_costs(compared: list[Comparison], side: str) -> dict[tuple[int, int], float]:
    """Seconds of one more completion in an update on one thread, by (P, T): the slope of the time over G."""
    groups: dict[tuple[int, int], list[Comparison]] = {}
    for c in compared:
        if c.row == "update" and c.threads == 1 and not c.shape.ragged:
            groups.setdefault((c.shape.prompt, c.shape.completion), []).append(c)
    return {
        key: straight_line([c.shape.generations for c in group], [median(getattr(c, side)) for c in group])[1]
        for key, group in sorted(groups.items())
        if len(group) >= 3
    }


# --- tables -----------------------------------------------------------------------------------------------------------


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows])


def summary(results: dict[str, Any], compared: list[Comparison]) -> str:
    """Parts against shapes, the ratios on one thread alone."""
    shapes = sorted({c.shape for c in compared if c.row == "step live"}, key=lambda s: (-s.prompt, s.completion))
    found = {(c.row, c.shape): c for c in compared if c.threads == 1}
    rows = [[MEANING[row], *(f"{found[row, shape].ratio:.1f}×" for shape in shapes)] for row in ROWS]
    memory = {Shape(**m["shape"]): m for m in results["memory"]}
    shares = [f"1/{memory[shape]['peer'] / memory[shape]['ours']:.1f}" for shape in shapes]
    rows.append(["peak memory of an update", *shares])
    return table(["TRL 1.5.0 ÷ papo_hub, one thread", *map(str, shapes)], rows)


def details(results: dict[str, Any], compared: list[Comparison], threads: int) -> str:
    """Seconds and ratio at the shapes of the summary and the ragged ones, beside what the law says."""
    shapes = {c.shape for c in compared if c.row == "step live"}
    architectures = [measured_architecture(results), QWEN_3B, QWEN_7B]
    rows = []
    for c in compared:
        if c.threads == threads and (c.shape in shapes or c.shape.ragged):
            low, high = c.spread
            rows.append(
                [c.row, str(c.shape), _seconds(c.ours), _seconds(c.peer), f"**{c.ratio:.1f}×** ({low:.1f}–{high:.1f})"]
                + [f"{c.law(a):.1f}×" for a in architectures]
            )
    header = ["part", "shape", "papo_hub, s", "TRL 1.5.0, s", "ratio", *(f"law, {a.name}" for a in architectures)]
    return table(header, rows)


def _seconds(samples: list[float]) -> str:
    return f"{median(samples):.2f} ({min(samples):.2f}–{max(samples):.2f})"


def memory_table(results: dict[str, Any]) -> str:
    rows = [[str(Shape(**m["shape"])), f"{m['ours']:.0f}", f"{m['peer']:.0f}"] for m in results["memory"]]
    return table(["peak memory of an update, MiB above the loaded models", "papo_hub", "TRL 1.5.0"], rows)


def one_more_completion(compared: list[Comparison]) -> str:
    """The cost of one more completion, its fit, and whether it grows with the prompt."""
    ours, peer = marginal_costs(compared, "ours"), marginal_costs(compared, "peer")
    rows = [
        [
            f"P {p}, T {t}",
            f"{1e3 * ours[p, t]:.0f}",
            f"{1e3 * peer[p, t]:.0f}",
            f"{pass_tokens(0, [t], True)}",
            f"{p + t}",
        ]
        for p, t in ours
    ]
    header = ["one more completion", "papo_hub, ms", "TRL 1.5.0, ms", "its tokens, shared", "its tokens, rows"]
    a, b, share = straight_line([t for _, t in ours], list(ours.values()))
    c, d, peer_share = straight_line([p + t for p, t in peer], list(peer.values()))
    (short, long), completions = (f(p for p, _ in ours) for f in (min, max)), sorted({t for _, t in ours})
    growth = [median(m[long, t] / m[short, t] for t in completions) for m in (ours, peer)]
    return (
        table(header, rows)
        + f"\n\npapo_hub: {1e3 * a:.1f} ms + {1e3 * b:.2f} ms · T ({share:.0%} of the variance over both P). "
        + f"TRL: {1e3 * c:.1f} ms + {1e3 * d:.2f} ms · (P + T) ({peer_share:.0%}). "
        + f"From P {short} to P {long} it grows {growth[0]:.2f}-fold in papo_hub, {growth[1]:.2f}-fold in TRL."
    )


# --- plots ------------------------------------------------------------------------------------------------------------


def plot_ratios(results: dict[str, Any], compared: list[Comparison], path: Path) -> None:
    """A panel a shape: the measured ratios of all parts, beside those of the law."""
    shapes = sorted({c.shape for c in compared if c.row == "step live"}, key=lambda s: (-s.prompt, s.completion))
    figure, axes = plt.subplots(1, len(shapes), figsize=(3.4 * len(shapes), 4.4), sharey=True, layout="constrained")
    laws = [(measured_architecture(results), "k", "_"), (QWEN_3B, "tab:green", "o"), (QWEN_7B, "tab:red", "s")]
    for axis, shape in zip(axes, shapes, strict=True):
        here = {(c.row, c.threads): c for c in compared if c.shape == shape}
        for threads, color, side in ((1, OURS, -1), (2, "lightsteelblue", 1)):
            rows = [row for row in ROWS if (row, threads) in here]
            # Alone in the middle, or side by side.
            places = [list(ROWS).index(row) + 0.2 * side * ((row, 3 - threads) in here) for row in rows]
            ratios = np.array([here[row, threads].ratio for row in rows])
            errors = np.abs(np.array([here[row, threads].spread for row in rows]).reshape(-1, 2).T - ratios)
            label = f"measured, {threads} thread{'s' * (threads > 1)}"
            axis.bar(places, ratios, 0.38, yerr=errors, color=color, label=label, ecolor="gray")
            for place, value in zip(places, ratios, strict=True):
                axis.text(place, 0.12, f"{value:.1f}", ha="center", fontsize=7, color="w" if threads == 1 else "k")
        for architecture, color, marker in laws:
            values = [Comparison(row, shape, 1, [], []).law(architecture) for row in ROWS]
            axis.scatter(range(len(ROWS)), values, 60 if marker == "_" else 22, color, marker=marker, zorder=3)
            axis.scatter([], [], 40, color, marker=marker, label=f"FLOP law, {architecture.name}")
        axis.axhline(1, color="gray", linewidth=0.8)
        axis.set_title(str(shape), fontsize=10)
        axis.set_xticks(range(len(ROWS)), [row.replace(" ", "\n") for row in ROWS], fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("TRL 1.5.0 ÷ papo_hub, time")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def plot_scaling(compared: list[Comparison], path: Path) -> None:
    """The update over G, P and T with the token counts beside it, and the cost of one more completion."""
    updates = [c for c in compared if c.row == "update" and c.threads == 1 and not c.shape.ragged]
    sizes = {
        name: sorted({getattr(c.shape, name) for c in updates}) for name in ("prompt", "generations", "completion")
    }
    long, group, short = sizes["prompt"][-1], sizes["generations"][-1], sizes["completion"][0]
    curves: list[tuple[str, str, str, Callable[[Shape], bool]]] = [
        ("generations", "G, completions", f"P {long}, T {short}", lambda s: (s.prompt, s.completion) == (long, short)),
        (
            "prompt",
            "P, prompt tokens",
            f"G {group}, T {short}",
            lambda s: (s.generations, s.completion) == (group, short),
        ),
        (
            "completion",
            "T, tokens of a completion",
            f"P {sizes['prompt'][0]}, G {group}",
            lambda s: (s.prompt, s.generations) == (sizes["prompt"][0], group),
        ),
    ]
    figure, axes = plt.subplots(1, 4, figsize=(14, 4), layout="constrained")
    for axis, (name, label, fixed, chosen) in zip(axes, curves, strict=False):
        here = sorted((c for c in updates if chosen(c.shape)), key=lambda c: getattr(c.shape, name))
        x = [getattr(c.shape, name) for c in here]
        for side, color, shared, who in (("peer", PEER, False, "TRL 1.5.0"), ("ours", OURS, True, "papo_hub")):
            samples = [getattr(c, side) for c in here]
            middle = np.array([median(s) for s in samples])
            spread = np.abs(np.array([[min(s), max(s)] for s in samples]).T - middle)
            axis.errorbar(x, middle, spread, color=color, marker="o", linestyle="none", capsize=3, label=who)
            tokens = np.array([pass_tokens(c.shape.prompt, c.shape.lengths, shared) for c in here])
            scale = (middle @ tokens) / (tokens @ tokens)
            law = "∝ P + G·T tokens" if shared else "∝ G·(P + T) tokens"
            axis.plot(x, scale * tokens, color=color, linestyle="--", linewidth=1, label=law)
        axis.set(xlabel=label, title=f"update at {fixed}", ylim=(0, None), xticks=x)
    axes[0].set_ylabel("seconds, one thread")
    axes[0].legend(fontsize=8, frameon=False)

    marks = dict(zip(sizes["prompt"], "o^sD", strict=False))
    for side, color, who in (("peer", PEER, "TRL 1.5.0"), ("ours", OURS, "papo_hub")):
        costs = marginal_costs(compared, side)
        for p in sorted({p for p, _ in costs}):
            points = sorted((t, 1e3 * seconds) for (q, t), seconds in costs.items() if q == p)
            axes[3].plot(*zip(*points, strict=True), marks[p], color=color, linestyle=":", label=f"{who}, P {p}")
    a, b, _ = straight_line([t for _, t in costs], list(costs.values()))  # papo_hub's
    reach = np.array([0, max(t for _, t in costs)])
    axes[3].plot(reach, 1e3 * (a + b * reach), color="k", linewidth=1, label="a + b·T fitted to papo_hub")
    axes[3].set(title="one more completion", xlabel="T, tokens of a completion", ylim=(0, 1.6 * axes[3].get_ylim()[1]))
    axes[3].set_ylabel("milliseconds of an update")
    axes[3].legend(fontsize=8, frameon=False, loc="upper left")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.title.set_fontsize(10)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def write_report(folder: Path) -> str:
    """README.md, ratios.png and scaling.png from the folder's results.json; returns the README's text."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    compared = comparisons(results)
    plot_ratios(results, compared, folder / "ratios.png")
    plot_scaling(compared, folder / "scaling.png")
    machine, sides = results["machine"], results["versions"]
    versions = "; ".join(f"{name}: {', '.join(f'{k} {v}' for k, v in v.items())}" for name, v in sides.items())
    image_tokens = sorted({c.shape.image_tokens for c in compared if c.row == "step live"})
    architectures = [measured_architecture(results), QWEN_3B, QWEN_7B]
    shares = "; ".join(
        f"{a.name} {vision_share(a, image_tokens[0]):.1f} to {vision_share(a, image_tokens[-1]):.1f}"
        for a in architectures
    )
    worst = {"logprobs": 0.0, "gradient_norm": 0.0}
    for timing in results["timings"]:
        worst |= {name: max(worst[name], value) for name, value in timing["agreement"].items()}
    repeats = max(len(c.ours) for c in compared)
    parts = [
        "# papo_hub against TRL 1.5.0's PAPO",
        f"Measured on {results['date']}, {machine['cores']} cores of {machine['cpu']}, {machine['memory_gib']} GiB, "
        f"{machine['system']}. {versions}. Medians of {repeats} (curves: {min(repeats, 3)}), in brackets the smallest and "
        "the largest. Made by `make bench`.",
        summary(results, compared),
        "![ratios](ratios.png)",
        "The law: FLOPs of the rows over FLOPs of the shared prompt, for the measured model and for the real ones at that "
        "shape. A ratio measured on the small model is not that of a real one: quote the law's beside it. The law of a "
        "rollout counts FLOPs alone, where decoding is bound by memory. In FLOPs of a text token's matrices an image "
        f"token costs ({image_tokens[0]} to {image_tokens[-1]} image tokens): {shares}.",
    ]
    for threads in sorted({c.threads for c in compared}):
        parts += [f"## {threads} thread{'s' * (threads > 1)}", details(results, compared, threads)]
    parts += [
        "## Memory",
        memory_table(results),
        "## Scaling",
        "![scaling](scaling.png)",
        one_more_completion(compared),
        "## The same work",
        "Before anything is timed, both sides' results are compared: tokens of prompts and of greedy rollouts are equal, "
        f"log-probs differ by at most {worst['logprobs']:.1g} nats, gradient norms by {worst['gradient_norm']:.1g} of "
        "their size.",
        "\n".join(f"* {condition}" for condition in results["conditions"]),
        f"The model: Qwen2.5-VL, {json.dumps(results['model'])}.",
    ]
    text = "\n\n".join(parts) + "\n"
    (folder / "README.md").write_text(text, encoding="utf-8")
    return text


if __name__ == "__main__":
    print(write_report(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "results"))
