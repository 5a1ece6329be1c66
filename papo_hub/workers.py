"""A function that runs in other processes, ahead of need, and whose results and errors are those of a call.

Each process has a connection of its own, served by a thread here that takes every result at once. Results therefore wait
in this process's ordinary memory: none is lost with a process that is killed, no limit on shared memory or open files
counts, and the end of a connection, which the kernel never fails to report, is how either side learns of the other's end.
"""

from __future__ import annotations

import io
import logging
import multiprocessing
import pickle
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize
from queue import Empty, SimpleQueue
from typing import Any

import torch

logger = logging.getLogger(__name__)

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # what asks a run to stop


class WorkerDied(RuntimeError):
    """A worker process ended before its time."""


class WorkerPool:
    """`count` processes that call `function`, each with its own copy of it, in the order of submission.

    `function` is pickled once a process. The processes are forked from a server that has imported the function's module
    and nothing else ran in (`forkserver`): unlike forks of this process they inherit no threads, locks or CUDA context,
    and unlike spawned ones they share the memory of the libraries. They compute with one torch thread.

    (torch's DataLoader, which was tried, waits for ever where a worker is killed while it writes to the shared queue.)

    They end with `close`, with the last reference to the pool, and with this process, however it ends; not by a signal that
    asks this process to stop, which terminals, launchers and schedulers send to all of its group: until it has, it needs them.
    """

    def __init__(self, function: Callable[..., Any], count: int) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__, function.__module__])
        self._jobs: SimpleQueue[tuple[Future, tuple] | None] = SimpleQueue()
        processes: list = []
        self._end = Finalize(
            self, _end, (self._jobs, processes), exitpriority=0
        )  # before multiprocessing waits for them
        _start_server()
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, function), daemon=True)
            process.start()
            theirs.close()  # or it would stay open when the process ends
            # A daemon, like the process: a program that fails does not wait for what it read ahead.
            threading.Thread(target=_serve, args=(self._jobs, ours, process, function), daemon=True).start()
            processes.append(process)

    def submit(self, *arguments: Any) -> Future:
        """The future result of `function(*arguments)`, or its exception; WorkerDied where the process was lost."""
        future: Future = Future()
        self._jobs.put((future, arguments))
        return future

    def close(self) -> None:
        """End the processes; calls without a result are cancelled or fail."""
        self._end()


def _start_server() -> None:
    """Start the server of forks where there is none: it and its forks inherit that stops are held back."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        resource_tracker.ensure_running()  # which lets some of them through again
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(jobs: SimpleQueue, connection: Connection, process: Any, function: Callable[..., Any]) -> None:
    """Thread of the parent: jobs → one process → futures."""
    with connection:
        while (job := jobs.get()) is not None:
            future, arguments = job
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(_call(connection, process, function, arguments))
            except BaseException as error:
                future.set_exception(error)


def _call(connection: Connection, process: Any, function: Callable[..., Any], arguments: tuple) -> Any:
    try:
        connection.send(arguments)
        done, result = connection.recv()
    except (EOFError, OSError):
        raise WorkerDied(_obituary(process)) from None
    if not done:
        result = function(*arguments)  # fails here as there, with the error that no pickling has touched
        logger.warning("a worker failed at %s where the process itself did not", arguments)
    return result


def _obituary(process: Any) -> str:
    process.join(5)  # its connection is closed: it has ended, or is about to
    code = process.exitcode
    if code is not None and code < 0:
        cause = f"was ended by {signal.Signals(-code).name}; the kernel does so where memory runs out"
    else:
        cause = f"ended with exit code {code}; its own message is above"
    return (
        f"worker process {process.pid} {cause}. Resume from the last checkpoint with fewer dataloader_num_workers; "
        "with 0 the training process does their work."
    )


def _end(jobs: SimpleQueue, processes: list) -> None:
    with suppress(Empty):
        while True:
            jobs.get_nowait()[0].cancel()
    for process in processes:
        process.kill()
        jobs.put(None)
    for process in processes:
        process.join()


def _work(connection: Connection, function: Callable[..., Any]) -> None:
    """Main function of a worker process."""
    torch.set_num_threads(1)
    try:
        while True:
            arguments = connection.recv()
            try:
                answer = _dumps((True, function(*arguments)))
            except Exception:
                answer = _dumps((False, None))
            connection.send_bytes(answer)
    except (EOFError, OSError):  # the parent has ended
        return


class _Pickler(pickle.Pickler):
    """Tensors as their bytes, where torch would write an archive or open shared memory."""

    def reducer_override(self, value: Any) -> Any:
        return (torch.from_numpy, (value.numpy(),)) if isinstance(value, torch.Tensor) else NotImplemented


def _dumps(value: Any) -> memoryview:
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=5).dump(value)
    return buffer.getbuffer()
