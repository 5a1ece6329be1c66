"""Models whose weights are divided among processes (FSDP2): what a loop must do differently, in one place.

Each layer gathers its weights from all processes when it runs. So all processes make the same number of passes (`in_step`)
or gather everything once and exchange nothing until the end (`whole`), and what is saved is gathered first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from papo_hub.shared_prefix import run_inside

T = TypeVar("T")


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)


@contextlib.contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """All weights on every process from here to the end, in the precision of the forward pass: passes in here exchange
    nothing, and processes may make different numbers of them. Without gradient. Runs on every rank; nothing happens to a
    model that is not sharded."""
    if not is_sharded(model):
        yield
        return
    # The first module that runs is taken for the root of all others: let it be the root.
    with torch.no_grad():
        run_inside(model, lambda vlm, inputs: torch.zeros(()), {})
    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    layers = {f"FSDP{name}" for name in model._no_split_modules or ()}
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.reshard()
            unit.set_reshard_after_forward(type(unit).__name__ in layers, recurse=False)


def in_step(accelerator: Accelerator, model: nn.Module, passes: int) -> int:
    """How many passes every process makes: as many as the one with most. Runs on every rank."""
    if not is_sharded(model):
        return passes
    most = accelerator.gather(torch.tensor([passes], device=accelerator.device))
    return int(most.max())


def whole_tensor(value: T) -> T:
    """A tensor that is divided among processes as one; anything else as it is. Runs on every rank."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def whole_weights(model: nn.Module, keep: bool) -> dict[str, Tensor] | None:
    """The state dict of a sharded model on the CPU, one tensor after the other; {} on a process that does not `keep` it;
    None where the model's own will do. Runs on every rank."""
    if not is_sharded(model):
        return None
    found: dict[int, Tensor] = {}  # weights with two names stay one
    weights = {}
    for name, value in model.state_dict().items():
        place = (value.to_local() if isinstance(value, DTensor) else value).data_ptr()
        if place not in found:
            tensor = whole_tensor(value)
            found[place] = tensor.cpu() if keep else tensor.new_empty(0)
        weights[name] = found[place]
    return weights if keep else {}


def divided_like(value: Tensor, parameter: Tensor) -> Tensor:
    """This process's share of a tensor that belongs to a parameter; all of it where the parameter is not divided."""
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
