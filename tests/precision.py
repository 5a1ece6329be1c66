"""Float64 all the way: Hugging Face models compute norms and rotary angles in float32 whatever their weights are."""

from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode


class _Lifted(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.float:
            return args[0].double()
        args = tuple(torch.float64 if value is torch.float32 else value for value in args)
        kwargs = {name: torch.float64 if value is torch.float32 else value for name, value in (kwargs or {}).items()}
        return func(*args, **kwargs)


@contextmanager
def float64_throughout():
    """Casts to float32 go to float64 instead, in the forward pass; give it a model whose buffers are float64, too."""
    with _Lifted():
        yield


def double(model):
    """The model with parameters and buffers in float64; `Module.double` leaves rotary frequencies to be cast."""
    model = model.double()
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.dtype == torch.float32:
                setattr(module, name, buffer.double())
    return model
