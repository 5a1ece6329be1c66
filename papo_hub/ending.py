"""How a command ends: with one readable message and an exit code, whatever went wrong and in how many processes."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta

from papo_hub.files import is_full
from papo_hub.redaction import printable

FAULT = 2  # something that the user can mend; 1 is Python's own, for what is our fault


def ended(run: Callable[[], None]) -> int:
    """The exit code of a command. What a user can mend ends in one message; anything else keeps its traceback, which a
    bug report needs. Of several processes the first to fail speaks, since the others fail in consequence."""
    from papo_hub.checkpoint import CheckpointError
    from papo_hub.config import ConfigError
    from papo_hub.evaluation.answers import AnswersError
    from papo_hub.experience import SamplingExhausted
    from papo_hub.hub import HubError
    from papo_hub.interruption import EXIT_CODE, Interrupted
    from papo_hub.memory import MemoryExhausted
    from papo_hub.modeling import UntrustedModel
    from papo_hub.rollout import PromptMismatch, ServerError
    from papo_hub.rows import DataError
    from papo_hub.trainer import CollapseAhead, TrainingDiverged
    from papo_hub.workers import WorkerDied

    mendable = (
        AnswersError,
        CheckpointError,
        CollapseAhead,
        ConfigError,
        DataError,
        FileNotFoundError,
        HubError,
        MemoryExhausted,
        PromptMismatch,
        SamplingExhausted,
        ServerError,
        TrainingDiverged,
        UntrustedModel,
        WorkerDied,
    )
    try:
        run()
    except Interrupted as error:
        _say(str(error))
        return EXIT_CODE
    except mendable as error:
        _say(f"error: {error}")
        return FAULT
    except Exception as error:
        if is_full(error):
            _say(
                f"error: no space left: {error}. Make room and run it again; a training run with --resume_from_checkpoint latest."
            )
            return FAULT
        if out_of_memory(error):
            _say(
                f"error: {str(error).splitlines()[0]} That was not in a pass that can be made smaller by itself: lower "
                "rollout_batch_size (while sampling) or shard the model, and go on with --resume_from_checkpoint latest."
            )
            return FAULT
        if lost_another(error):
            _say(
                f"error: another process of this run has ended: {str(error).splitlines()[0]} If it left no message above, "
                "it was killed (out of memory, or its machine was taken away). Go on with --resume_from_checkpoint latest."
            )
        else:
            _say(traceback.format_exc().rstrip())
        return 1
    return 0


def lost_another(error: Exception) -> bool:
    """Whether an exchange between processes failed because one of them is gone."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def out_of_memory(error: Exception) -> bool:
    """Whether the memory of the device ended."""
    import torch

    return isinstance(error, torch.OutOfMemoryError)


def _say(text: str) -> None:
    if _is_first():
        print(printable(text), file=sys.stderr, flush=True)


def _is_first() -> bool:
    """Whether no other process of this launch has failed before. Asked once a process; the launcher's store counts."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return True
    from torch.distributed import TCPStore

    try:
        store = TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=timedelta(seconds=5),
            wait_for_workers=False,
        )
        return store.add(f"papo_hub/failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", 1) == 1
    except (KeyError, ValueError, RuntimeError):  # no store, or it went with its process: then nobody else may speak
        return True
