"""PAPO-G in one screen: every step of the method, visible, on questions about handwritten digits.

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/minimal_loop.py runs/tiny/warmup

The argument is any model folder (recipes/warmup.py makes this one). papo_hub/trainer.py is the same loop with data files,
several updates a rollout, dynamic sampling, checkpoints and records.
"""

import sys

import torch
from transformers import AutoModelForImageTextToText

from papo_hub.batch import pad_completions
from papo_hub.digits import DigitRows
from papo_hub.modeling import load_processor
from papo_hub.objectives import PAPO_G, Logprobs, Weights, group_advantages
from papo_hub.plugins import (
    PapoAccelerator,
    PerceptionPlugin,
    RewardPlugin,
    RolloutPlugin,
    global_counts,
    syncing,
)
from papo_hub.randomness import derived_generator
from papo_hub.rows import Rows
from papo_hub.shared_prefix import shared_prefix_logprobs
from papo_hub.stream import PromptStream


def main(model_folder: str, steps: int = 50, prompts_per_step: int = 32, micro_batch_size: int = 80) -> list[float]:
    """Train, print the mean reward of each step, return them."""
    accelerator = PapoAccelerator(
        perception_plugin=PerceptionPlugin(gamma=0.02, mask_ratio=0.6, masked_logprobs="frozen"),
        rollout_plugin=RolloutPlugin(num_generations=5, max_completion_length=16, rollout_batch_size=512),
        reward_plugin=RewardPlugin(format_weight=0.1),
    )
    perception, rollout, reward = accelerator.perception_plugin, accelerator.rollout_plugin, accelerator.reward_plugin
    rank, world, size = accelerator.process_index, accelerator.num_processes, rollout.num_generations

    processor = load_processor(model_folder, padding_side="left")
    model = AutoModelForImageTextToText.from_pretrained(model_folder)
    policy, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=2e-4))
    engine = rollout.engine(accelerator.unwrap_model(policy), processor)
    objective = perception.objective(PAPO_G, Weights(epsilon=0.2, epsilon_high=0.3))
    # Questions in a seeded order, each with its image and the same image with random patches turned black.
    stream = PromptStream(Rows(DigitRows("train")), processor, seed=0, prompt_suffix="", mask=perception.mask)

    history = []
    for step in range(steps):
        # 1. Sample a group of answers to each question, and reward them.
        prompts = stream.take(prompts_per_step, rank, world)
        generator = derived_generator(0, "rollout", step, rank, device=accelerator.device)
        engine.prepare()
        completions = engine.generate(prompts, size, rollout.sampling, generator)
        engine.rest()
        answers = [prompt.sample.answer for prompt in prompts for _ in range(size)]
        rewards = reward([completion.text for completion in completions], answers)
        advantages = group_advantages(rewards["mean"], size).to(accelerator.device)

        # 2. How likely is each answer to a policy that sees the masked image? Frozen: no gradient.
        ids, mask = pad_completions(completions, processor.tokenizer.pad_token_id)
        clean = [prompt.clean for prompt in prompts for _ in range(size)]
        masked = [prompt.masked for prompt in prompts for _ in range(size)]
        with torch.no_grad():
            masked_logprobs = shared_prefix_logprobs(policy, masked, ids, mask)

        # 3. One update, in micro-batches whose losses sum to the loss of the whole batch.
        counts = global_counts(accelerator, mask)
        divergence = 0.0
        for start in range(0, len(completions), micro_batch_size):
            rows = slice(start, start + micro_batch_size)
            logprobs = shared_prefix_logprobs(policy, clean[rows], ids[rows], mask[rows])
            real = mask[rows].to(accelerator.device)
            views = Logprobs(logprobs, logprobs.detach(), advantages[rows], real, masked=masked_logprobs[rows])
            loss, sums = objective(views, counts)
            with syncing(accelerator, policy, last=start + micro_batch_size >= len(completions)):
                accelerator.backward(loss * world)
            divergence += sums["perception_kl"]
        accelerator.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

        history.append(rewards["mean"].mean().item())
        accelerator.print(
            f"step {step + 1:3d}   reward {history[-1]:.3f}   "
            f"perception KL {divergence / mask.sum():.3f} nats per token"
        )
    return history


if __name__ == "__main__":
    main(*sys.argv[1:2] or ["runs/tiny/warmup"])
