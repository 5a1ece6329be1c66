"""The full-size architecture on one GPU, with random weights: what a pass and a token cost, against what they must.

    python -m benchmarks.gpu [--size 3b] [--shapes 1024,8,256 1024,8,2048 …] [--output benchmarks/results/gpu.json]

Four parts, each with its floor measured in the same run:

* **rate**: what the chip does in one large matrix product in bfloat16, TFLOP/s, and how fast it copies, GB/s;
* **passes**: score (forward) and update (forward and backward) of one view of G completions of T tokens to a prompt of P, three
  quarters of it an image: the shared prompt; rows without padding through the same attention; and padded rows as Hugging
  Face computes them. Seconds, tokens a second, share of the measured rate (by the FLOPs of `benchmarks.law`), peak memory;
* **rollout**: tokens a second of the built-in engine, and the share of what the memory's speed allows: each token reads the
  weights once for all completions, and the keys and values of its prompt once and of each completion;
* **error**: log-probs of the shared route and of padded rows in bfloat16, each against padded rows in float32.

Runs are interleaved and medians are taken. `--size tiny --device cpu` tries the script where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import PreTrainedModel

from benchmarks.gpu.model import SIZES, NoText, build, prompt
from benchmarks.law import Architecture, pass_flops
from papo_hub.batch import Prompt
from papo_hub.logprobs import padded_logprobs
from papo_hub.rollout import Sampling, TransformersEngine
from papo_hub.shared_prefix import shared_prefix_logprobs

SHAPES = ["1024,8,256", "1024,8,2048", "1100,5,512", "1100,5,1024", "1100,5,2048", "1100,8,1024"]


def seconds(device: torch.device, calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Each call's median, the calls in turns, after one that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            _wait(device)
            start = time.perf_counter()
            call()
            _wait(device)
            if repeat:
                times[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in times.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_rate(device: torch.device, dtype: torch.dtype, repeats: int, side: int) -> dict[str, float]:
    """FLOP/s of a product of two square matrices, and bytes/s of a copy (read and written)."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    found = seconds(device, {"product": lambda: a @ b, "copy": a.clone}, 5 * repeats)
    return {"flops": 2 * side**3 / found["product"], "bandwidth": 2 * a.nbytes / found["copy"]}


def measure_passes(
    model: PreTrainedModel, architecture: Architecture, shape: tuple[int, int, int], rate: float, repeats: int
) -> list[dict[str, Any]]:
    """A row a route and part."""
    length, group, tokens = shape
    image, device = length * 3 // 4, model.device
    shared = prompt(model, length, image).clean
    apart = [dict(shared) for _ in range(group)]  # objects of their own: nothing is shared
    ids = torch.randint(10, 200, (group, tokens), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids, dtype=torch.bool)
    routes = {
        "shared": partial(shared_prefix_logprobs, model, shared, ids, mask),
        "rows without padding": partial(shared_prefix_logprobs, model, apart, ids, mask),
        "padded rows": partial(padded_logprobs, model, shared, ids, mask),
    }
    rows = []
    for part, times_forward in (("score", 1), ("update", 3)):
        calls = {name: partial(_passed, route, part == "update", model) for name, route in routes.items()}
        peaks = {name: _peak(device, call) for name, call in calls.items()}
        for name, value in seconds(device, calls, repeats).items():
            flops = times_forward * pass_flops(architecture, length, image, [tokens] * group, shared=name == "shared")
            rows.append(
                {
                    "shape": f"P {length}, G {group}, T {tokens}",
                    "part": part,
                    "route": name,
                    "seconds": value,
                    "completion_tokens_per_second": group * tokens / value,
                    "share_of_rate": flops / value / rate,
                    "peak_bytes": peaks[name],
                    "flops": flops,
                }
            )
    return rows


def _passed(route: Callable[[], torch.Tensor], backward: bool, model: PreTrainedModel) -> None:
    with torch.set_grad_enabled(backward):
        logprobs = route()
        if backward:
            logprobs.mean().backward()
            model.zero_grad(set_to_none=True)


def _peak(device: torch.device, call: Callable[[], None]) -> int | None:
    """Bytes above what was there; None where the device does not count them."""
    if device.type != "cuda":
        call()
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    return torch.cuda.max_memory_allocated(device) - before


def rollout_bytes(model: PreTrainedModel, length: int, group: int, tokens: int, prompts: int) -> float:
    """What `tokens` decoding steps of prompts × group completions must read: the weights of the language model a step; the
    keys and values of each prompt once a step, and of each completion what it has so far."""
    text = model.config.get_text_config()
    layers = sum(p.nbytes for p in model.model.language_model.layers.parameters())
    head = model.get_output_embeddings().weight.nbytes
    kept = 2 * text.num_hidden_layers * text.num_key_value_heads * (text.hidden_size // text.num_attention_heads)
    kept *= model.dtype.itemsize
    own = group * tokens * (tokens + 1) / 2
    return tokens * (layers + head) + prompts * kept * (tokens * length + own)


def measure_rollout(
    model: PreTrainedModel, shape: tuple[int, int, int], prompts: int, bandwidth: float, repeats: int
) -> dict[str, Any]:
    length, group, tokens = shape
    many: list[Prompt] = [prompt(model, length, length * 3 // 4, seed) for seed in range(prompts)]
    engine = TransformersEngine(model, NoText(), batch_size=prompts * group)
    generator = torch.Generator(model.device).manual_seed(0)
    sampling = Sampling(max_completion_length=tokens, min_completion_length=tokens)
    value = seconds(
        model.device, {"rollout": lambda: engine.generate(many, group, sampling, generator)}, max(repeats // 2, 1)
    )["rollout"]
    floor = rollout_bytes(model, length, group, tokens, prompts) / bandwidth
    return {
        "shape": f"{prompts} × P {length}, G {group}, T {tokens}",
        "seconds": value,
        "tokens_per_second": prompts * group * tokens / value,
        "share_of_bandwidth_floor": floor / value,
    }


@torch.no_grad()
def measure_error(size: str, device: torch.device, attention: str, shape: tuple[int, int, int]) -> dict[str, float]:
    """The largest and the mean distance of log-probs, in nats, from padded rows in float32."""
    length, group, tokens = shape
    _, exact = build(size, device, torch.float32, "sdpa")
    _, model = build(size, device, torch.bfloat16, attention)
    model.load_state_dict(exact.state_dict())
    inputs = prompt(model, length, length * 3 // 4).clean
    ids = torch.randint(10, 200, (group, tokens), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids, dtype=torch.bool)
    expected = padded_logprobs(exact, inputs, ids, mask)
    found = {
        "shared": shared_prefix_logprobs(model, inputs, ids, mask),
        "padded": padded_logprobs(model, inputs, ids, mask),
    }
    distances = {name: (values - expected).abs() for name, values in found.items()}
    return {
        f"{name}_{kind}": float(values.max() if kind == "max" else values.mean())
        for name, values in distances.items()
        for kind in ("max", "mean")
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="3b")
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="P,G,T")
    parser.add_argument("--prompts", type=int, default=8, help="sampled together in the rollout part")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--attention", default="sdpa", help="sdpa, flash_attention_2, …")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/gpu.json"))
    chosen = parser.parse_args(arguments)
    device = torch.device(chosen.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here. To try the script: --size tiny --device cpu --shapes 64,2,8")
    shapes = [tuple(map(int, shape.split(","))) for shape in chosen.shapes]

    found: dict[str, Any] = {
        "conditions": {
            "command": " ".join(["python -m benchmarks.gpu", *(sys.argv[1:] if arguments is None else arguments)]),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU",
            "torch": torch.__version__,
            "attention": chosen.attention,
        }
    }
    side = 8192 if chosen.size != "tiny" else 256
    found["rate"] = measure_rate(device, torch.bfloat16, chosen.repeats, side)
    print(f"rate: {found['rate']['flops'] / 1e12:.1f} TFLOP/s, {found['rate']['bandwidth'] / 1e9:.0f} GB/s", flush=True)
    found["error"] = measure_error(chosen.size, device, chosen.attention, shapes[0])
    print(f"error: {found['error']}", flush=True)
    architecture, model = build(chosen.size, device, torch.bfloat16, chosen.attention)
    model.gradient_checkpointing_enable()
    found["passes"], found["rollout"] = [], []
    for shape in shapes:
        for row in measure_passes(model, architecture, shape, found["rate"]["flops"], chosen.repeats):
            found["passes"].append(row)
            print(
                f"{row['shape']} {row['part']:<7}{row['route']:<22}{row['seconds']:9.3f} s "
                f"{100 * row['share_of_rate']:6.1f} % of the rate",
                flush=True,
            )
        row = measure_rollout(model, shape, chosen.prompts, found["rate"]["bandwidth"], chosen.repeats)
        found["rollout"].append(row)
        print(f"{row['shape']} rollout {row['tokens_per_second']:.0f} tokens/s", flush=True)
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    chosen.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"Written to {chosen.output}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
