"""A run that is asked to stop: by a signal (a machine that is taken away, Ctrl-C) or because its time is over.

    with Interruption(max_time) as interruption:
        interruption.deferred = True   # from here on, a signal waits for whoever asks
        ...
        if interruption.agreed(accelerator):  # at the same places in every process
            save and raise Interrupted

Until then, and where it is not deferred, a signal raises `Interrupted` at once: there is nothing to save. A second signal
ends the process where it stands, which costs no checkpoint: they are written aside. Under a launcher, what follows
within `ECHO` seconds is the first one again: the terminal tells both, and the launcher, or its end, tells it once more.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from papo_hub.config import seconds
from papo_hub.workers import STOPS

ECHO = 2.0  # seconds
EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: not done, start it again
LAUNCHERS = (b"accelerate", b"torchrun", b"torch.distributed")


class Interrupted(Exception):
    """The run was asked to stop and did. Its process ends with `EXIT_CODE`."""


class Interruption:
    """Notices that a run is to stop.

    Args:
        max_time: such as "3h30m", from the creation of this object on; None: no limit.

    Attributes:
        reason: why the run is to stop, e.g. "SIGTERM"; None while it is not.
        deferred: whether a signal only sets `reason`.
    """

    def __init__(self, max_time: str | None = None) -> None:
        self.max_time = max_time
        self.deadline = None if max_time is None else time.monotonic() + seconds(max_time)
        self.reason: str | None = None
        self.deferred = False
        self._first_signal: float | None = None  # when this process got one itself
        self._launched = _launched()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():  # others get no signals
            # What is ignored stays so: a script's `&` does that to Ctrl-C.
            heard = [number for number in STOPS if signal.getsignal(number) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._signalled) for number in heard}
            if self._launched:
                _end_with_parent()
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _signalled(self, number: int, frame: object) -> None:
        if self._first_signal is not None:
            if not self._launched or time.monotonic() - self._first_signal > ECHO:
                os._exit(128 + number)
            return
        self._first_signal = time.monotonic()
        if self.reason is None:  # it may be stopping already: by the clock, or since another process was told before
            self.reason = signal.Signals(number).name
        if not self.deferred:
            raise Interrupted(f"stopped by {self.reason}.")

    @property
    def requested(self) -> bool:
        """Whether this process knows that the run is to stop."""
        if self.reason is None and self.deadline is not None and time.monotonic() > self.deadline:
            self.reason = f"max_time {self.max_time}"
        return self.reason is not None

    def agreed(self, accelerator: Accelerator) -> bool:
        """Whether any process knows that the run is to stop; the same in all. Runs on every rank."""
        if accelerator.num_processes == 1:
            return self.requested
        flag = torch.tensor(float(self.requested), device=accelerator.device)
        if accelerator.reduce(flag, "sum") > 0 and self.reason is None:
            self.reason = "another process"
        return self.reason is not None


def _launched() -> bool:
    """Whether the parent of this process is a launcher of training programs."""
    try:
        return any(name in Path(f"/proc/{os.getppid()}/cmdline").read_bytes() for name in LAUNCHERS)
    except OSError:  # no such thing beyond Linux
        return False


def _end_with_parent() -> None:
    """Be told (SIGTERM) when the parent dies: `accelerate launch` passes no signal on, and would leave a program behind
    that holds the devices. Linux only."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
