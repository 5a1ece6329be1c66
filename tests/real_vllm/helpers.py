"""What the tests of both modes do: sample, compare with the policy, update it, run a recipe."""

import json
import subprocess
import sys
from pathlib import Path

import torch

from papo_hub.logprobs import padded_logprobs
from papo_hub.rollout import Sampling

ROOT = Path(__file__).parents[2]
GREEDY = Sampling(temperature=0, max_completion_length=12)
EXACT = 1e-4  # nats; seen: 2e-6. Old weights, another temperature or another image are off by 1e-2 and more


def sample(engine, prompts, sampling, count=2, seed=0, **options):
    return engine.generate(prompts, count, sampling, torch.Generator().manual_seed(seed), **options)


def gap(completions, model, prompts, temperature=1.0, view="clean"):
    """The largest difference of a token's log-prob in vLLM and in the model."""
    size, found = len(completions) // len(prompts), 0.0
    for i, completion in enumerate(completions):
        ids = torch.tensor([completion.token_ids])
        with torch.no_grad():
            ours = padded_logprobs(model, getattr(prompts[i // size], view), ids, torch.ones_like(ids), temperature)
        found = max(found, (ours[0] - torch.tensor(completion.logprobs)).abs().max().item())
    return found


def shaken(model, part):
    """An update of the weights whose names hold `part`."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if part in name:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def favoured(model, tokens):
    """Their logits are all alike, and either the largest or the smallest, depending on where in a text they come."""
    with torch.no_grad():
        embeddings = model.get_input_embeddings().weight
        first = 3 * embeddings[tokens[0]].clone()
        for token in tokens:
            embeddings[token] = first


def only_allowed_tokens(engine, prompts):
    """No token of an image, and no end before the least length, which without a least length there is."""
    free = sample(engine, prompts, Sampling(max_completion_length=8), count=16)
    held = sample(engine, prompts, Sampling(max_completion_length=8, min_completion_length=3), count=16)
    assert not {token for c in (*free, *held) for token in c.token_ids} & set(engine.suppressed)
    assert min(len(c.token_ids) for c in free) < 4 <= min(len(c.token_ids) for c in held)
    assert all(c.token_ids[-1] in engine.stop_ids for c in held if c.finished)


def launch(folder, model, *overrides, processes=1):
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    settings = {
        "model_name_or_path": model,
        "output_dir": folder / "run",
        "rollout_engine": "vllm",
        "vllm_gpu_memory_utilization": 0.1,
        "max_steps": 2,
        "prompts_per_step": 4,
        "prompts_per_update": 4,
        "rollout_batch_size": 32,
        "learning_rate": 1e-2,
        "eval_dataset_name": "null",
        "save_steps": 0,
        "report_to": "none",
    }
    command += [str(ROOT / "recipes/train.py"), "--config", str(ROOT / "recipes/tiny/papo_g.yaml")]
    command += [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    done = subprocess.run([*command, *overrides], capture_output=True, text=True, cwd=folder, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr, done.stderr[-3000:]  # nor while it ends
    lines = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
