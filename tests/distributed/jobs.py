"""What one process and two processes each run, to be compared. As a script: all jobs, in every process of a torchrun.

jobs.py MODEL FOLDER [sharded]      sharded: with the weights divided among the processes by FSDP2
"""

import faulthandler
import json
import os
import sys
from pathlib import Path
from unittest.mock import patch

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from safetensors.torch import save_file

from papo_hub import trainer
from papo_hub.batch import Completion
from papo_hub.config import build
from papo_hub.parts import trainable
from papo_hub.plugins import PapoAccelerator, RolloutPlugin
from papo_hub.randomness import derived_generator
from papo_hub.sharding import is_sharded, whole_tensor

PROCESSES = 2
SETTINGS = {
    "dataset_name": "digits",
    "prompt_suffix": "",
    "objective": "papo_g",
    "gamma": 0.3,
    "beta": 0.01,
    "prompts_per_step": 4,
    "prompts_per_update": 4,
    "num_generations": 3,
    "max_completion_length": 8,
    "micro_batch_size": 2,
    "learning_rate": 1e-3,
    "log_completions": False,
    "report_to": None,
}
GRADIENTS = {"frozen": {}, "live": {"masked_logprobs": "live"}, "token": {"reduction": "token"}}
GRADIENTS |= {"part": {"freeze_vision_tower": True}}
NOT_SHARDED = {"lora": {"lora_rank": 2}}
SHARDED = {
    "exact": {"estimator": "exact"},
    "exact_live": {"estimator": "exact", "masked_logprobs": "live"},
    "unequal": {"micro_batch_size": None, "max_tokens_per_micro_batch": 30, "alignment_steps": 1},
}


class EngineByPrompt:
    """Completions, of unequal lengths, that depend on the prompt alone and not on the process that samples them."""

    def __init__(self, tokenizer, right):
        self.tokenizer, self.right = tokenizer, right

    def generate(self, prompts, num_generations, sampling, generator, view="clean", given_up=None):
        completions = []
        for prompt in prompts:
            for i in range(num_generations):
                draw = derived_generator(prompt.sample.id, i)
                length = int(torch.randint(1, 9, (1,), generator=draw))
                ids = torch.randint(8, 120, (length,), generator=draw).tolist()
                answer = prompt.sample.answer if self.right(prompt, i) else "99"
                completions.append(Completion(ids, f"\\boxed{{{answer}}}", True))
        return completions

    def prepare(self):
        pass

    def rest(self):
        pass

    def close(self):
        pass


def run(model, folder, right=None, dtype=torch.float32, **overrides):
    """One `train()`; gives the gradients of its first update, before clipping, and the model."""
    gradients, models = [], []
    load, clip = trainer.load_model, PapoAccelerator.clip_grad_norm_

    def keep_model(*arguments):
        models.append(load(*arguments).to(dtype))
        return models[-1]

    def keep_gradients(accelerator, parameters, max_norm):
        parameters = list(parameters)
        trained = (parameter for parameter in parameters if parameter.requires_grad)
        gradients.append([whole_tensor(parameter.grad).clone() for parameter in trained])
        return clip(accelerator, parameters, max_norm)

    def engine(plugin, model, processor, dtype=None):
        return EngineByPrompt(processor.tokenizer, right) if right else original(plugin, model, processor, dtype)

    original = RolloutPlugin.engine
    with (
        patch.object(trainer, "load_model", keep_model),
        patch.object(trainer, "finish_run", lambda *arguments: None),
        patch.object(PapoAccelerator, "clip_grad_norm_", keep_gradients),
        patch.object(PapoAccelerator, "end_training", lambda accelerator: None),  # it ends the processes' connection
        patch.object(RolloutPlugin, "engine", engine),
    ):
        places = {"model_name_or_path": str(model), "output_dir": str(folder)}
        trainer.train(build(SETTINGS | places | overrides))
    return dict(zip(trainable(models[0]), gradients[0], strict=True)), models[0]


def first_update(model, folder, name):
    """The gradients of a given batch, in float64."""
    overrides = (GRADIENTS | NOT_SHARDED | SHARDED)[name]
    return run(model, folder / name, lambda prompt, i: i == 0, torch.float64, max_steps=1, **overrides)[0]


def shard() -> None:
    """FSDP2 on the CPU, as `accelerate launch` with accelerate_configs/fsdp2.yaml sets it up on GPUs: on a CPU accelerate
    leaves it out."""
    initialise = AcceleratorState.__init__

    def sharded(state, *args, **kwargs):
        initialise(state, *args, **kwargs)
        state.distributed_type = DistributedType.FSDP
        state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
        )

    AcceleratorState.__init__ = sharded


def run_sharded(model, folder, rank):
    """The same first updates, with unequal numbers of passes among them; then runs that save, stop and go on."""
    passes, in_step = [], trainer.in_step

    def counted(accelerator, policy, own):
        assert is_sharded(policy)
        passes.append((own, in_step(accelerator, policy, own)))
        return passes[-1][1]

    with patch.object(trainer, "in_step", counted):
        for name in (*GRADIENTS, *SHARDED):
            save_file(first_update(model, folder, name), folder / f"{name}-{rank}.safetensors")
    (folder / f"passes-{rank}.json").write_text(json.dumps(passes))

    evaluation = {"eval_dataset_name": "digits", "eval_problems": 3, "eval_samples": 2}
    whole = {"max_steps": 3, "save_steps": 1, "optim": "adamw_torch_fused"} | evaluation
    run(model, folder / "whole", **whole)
    again = {"resume_from_checkpoint": str(folder / "whole" / "checkpoints" / "step-000002")}
    run(model, folder / "resumed", **whole | again)


def main(model, folder):
    rank = int(os.environ["RANK"])
    if sys.argv[3:] == ["sharded"]:
        shard()
        return run_sharded(model, folder, rank)
    for name in (*GRADIENTS, *NOT_SHARDED):
        save_file(first_update(model, folder, name), folder / f"{name}-{rank}.safetensors")

    evaluation = {"eval_dataset_name": "digits", "eval_problems": 3, "eval_samples": 2}
    _, trained = run(model, folder / "whole", max_steps=2, save_steps=1, **evaluation)
    save_file({name: value.clone() for name, value in trained.named_parameters()}, folder / f"whole-{rank}.safetensors")

    # Here one process always has its mixed groups at once and waits for the other.
    def right(prompt, i):
        return i == 0 and (rank == 0 or int(prompt.sample.id.rsplit("-")[-1]) % 3 == 0)

    run(model, folder / "dynamic", right, objective="papo_d", beta=0.0, max_steps=2)


if __name__ == "__main__":
    faulthandler.dump_traceback_later(150, exit=True)  # whatever hangs, it ends
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
