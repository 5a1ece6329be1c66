"""How commands end: one message, the exit code that fits, no secret in either."""

import errno

import pytest
import torch
import torch.distributed as dist

from papo_hub import ending
from papo_hub.checkpoint import CheckpointError
from papo_hub.config import ConfigError
from papo_hub.data import TooManyUnusableRows
from papo_hub.ending import ended
from papo_hub.interruption import Interrupted
from papo_hub.memory import MemoryExhausted
from papo_hub.trainer import CollapseAhead, TrainingDiverged

GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:31415"


def raising(error):
    def run():
        raise error

    return run


@pytest.mark.parametrize(
    "error, code",
    [
        (ConfigError("gama is no key"), 2),
        (CheckpointError("no space left for the checkpoint"), 2),
        (TooManyUnusableRows("9 of 10 rows"), 2),
        (MemoryExhausted("a single completion"), 2),
        (CollapseAhead("the guard stopped the run"), 2),
        (TrainingDiverged("5 updates in a row"), 2),
        (OSError(errno.ENOSPC, "No space left on device"), 2),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), 2),
        (Interrupted("stopped by SIGTERM"), 75),
        (RuntimeError(GLOO), 1),
        (dist.DistBackendError("NCCL communicator was aborted"), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_what_a_user_can_mend_ends_in_one_message(capsys, error, code):
    assert ended(raising(error)) == code
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(error).splitlines()[0] in said


def test_what_is_our_fault_keeps_its_traceback(capsys):
    for error in (ZeroDivisionError("division by zero"), RuntimeError("shapes differ")):
        assert ended(raising(error)) == 1
        said = capsys.readouterr().err
        assert said.startswith("Traceback") and said.endswith(f"{type(error).__name__}: {error}\n")


def test_only_the_first_of_several_processes_speaks(capsys, monkeypatch):
    """The others fail in consequence; their tracebacks would bury its message."""
    monkeypatch.setenv("WORLD_SIZE", "3")
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    assert ended(raising(ConfigError("first"))) == 2
    assert ended(raising(ConfigError("second"))) == 2
    assert ended(raising(RuntimeError(GLOO))) == 1
    assert ended(raising(ZeroDivisionError("third"))) == 1
    assert capsys.readouterr().err == "error: first\n"


def test_where_nobody_can_tell_who_was_first_everybody_speaks(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert ended(raising(ConfigError("said"))) == 2
    assert capsys.readouterr().err == "error: said\n"


def test_no_secret_is_said(capsys):
    token = "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz012345"
    assert ended(raising(ConfigError(f"no dataset at https://huggingface.co/x?token={token} for {token}"))) == 2
    assert token not in capsys.readouterr().err


def test_success_says_nothing(capsys):
    assert ended(lambda: None) == 0 and capsys.readouterr().err == ""
    assert ending.FAULT == 2
