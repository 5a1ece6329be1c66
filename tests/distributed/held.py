"""recipes/train.py, made to dwell at a place, so that a test can meet it there. Several runs one after another.

held.py FOLDER JOBS

JOBS is JSON: a list of {"arguments": of train.py, "place": see PLACES, "call": which call of it, "seconds": to dwell}. Each
process leaves FOLDER/<job>-<rank> when it gets there. Ends with the exit code of the last job.
"""

import contextlib
import errno
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from papo_hub import checkpoint, trainer
from papo_hub.cli import train_command
from papo_hub.plugins import PapoAccelerator
from papo_hub.rollout import transformers as engine

PLACES = {
    "rollout": (engine, "draw"),  # a token
    "update": (trainer, "views"),  # a micro-batch
    "save": (checkpoint, "save_file"),  # of the optimizer's moments
}


@contextlib.contextmanager
def at(place: str, call: int, act: Callable[[], None]) -> Iterator[None]:
    """Do something before the call-th call of a function."""
    original, calls = getattr(*PLACES[place]), 0

    def watched(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            act()
        return original(*arguments, **options)

    with patch.object(*PLACES[place], watched):
        yield


def dwell(marker: Path, seconds: float) -> None:
    marker.touch()
    time.sleep(seconds)


def full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def main(folder: Path, jobs: list[dict[str, Any]]) -> int:
    code = 0
    for i, job in enumerate(jobs):
        with contextlib.ExitStack() as stack:
            if "place" in job:
                marker = folder / f"{i}-{os.environ.get('RANK', '0')}"
                act = full if job["place"] == "save" else partial(dwell, marker, job["seconds"])
                stack.enter_context(at(job["place"], job["call"], act))
            if i + 1 < len(jobs):  # the end of a run ends the processes' connection
                stack.enter_context(patch.object(PapoAccelerator, "end_training", lambda accelerator: None))
            code = train_command(job["arguments"])
        print(f"job {i}: {code}", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), json.loads(sys.argv[2])))
