"""Calls in other processes: results and errors as of a call, and no process that outlives its pool."""

import gc
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Connection

import pytest
import torch

from papo_hub import workers
from papo_hub.workers import WorkerDied, WorkerPool

PARENT = os.getpid()


class Awkward(Exception):
    """Comes out of no pickle."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


def call(what, *arguments):
    """What the workers do."""
    if what == "fail":
        raise Awkward(*arguments)
    if what == "pid":
        return os.getpid()
    if what == "disconnect":
        raise ConnectionResetError("the data's server, not a worker")
    if what == "die in mid-answer":
        connection = next(thing for thing in gc.get_objects() if isinstance(thing, Connection))
        os.write(connection.fileno(), (100).to_bytes(4, "big") + b"the first of 100 bytes")
        os._exit(4)
    if what == "exit":
        os._exit(*arguments)
    if what == "sleep":
        return time.sleep(*arguments)
    if what == "fail in a worker":
        if multiprocessing.parent_process() is not None:
            raise MemoryError
        return "done"
    return arguments


@pytest.fixture(scope="module")
def pool():
    pool = WorkerPool(call, 2)
    yield pool
    pool.close()


def test_tensors_travel_bit_for_bit(pool):
    floats = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    floats[0, 0], floats[0, 1] = float("nan"), -0.0
    tensors = [floats, floats.T, floats[:, ::2], torch.arange(4), torch.tensor([True, False]), torch.zeros(0, 3)]
    big = torch.arange(1 << 20)  # 8 MB, far more than a connection buffers
    *got, got_big = pool.submit("echo", *tensors, big).result()
    assert torch.equal(got_big, big)
    for sent, received in zip(tensors, got, strict=True):
        assert (received.dtype, received.shape) == (sent.dtype, sent.shape)
        assert received.contiguous().numpy().tobytes() == sent.contiguous().numpy().tobytes()
        received.fill_(1)  # it can be written to
        assert not received.is_shared()


def test_calls_overlap(pool):
    pids = {pool.submit("pid").result() for _ in range(20)}
    assert PARENT not in pids
    started = time.monotonic()
    for future in [pool.submit("sleep", 0.5) for _ in range(2)]:
        future.result()
    assert time.monotonic() - started < 0.95


def test_an_error_is_that_of_a_call(pool, caplog):
    with pytest.raises(Awkward, match="^this and that$") as caught:
        pool.submit("fail", "this", "that").result(timeout=30)
    assert caught.traceback[-1].name == "call"
    with pytest.raises(ConnectionResetError, match="not a worker"):
        pool.submit("disconnect").result(timeout=30)
    assert pool.submit("echo", 1).result(timeout=30) == (1,)  # the worker goes on
    assert not caplog.records
    assert pool.submit("fail in a worker").result(timeout=30) == "done"
    assert "a worker failed at ('fail in a worker',)" in caplog.text


def test_a_lost_worker_is_said_at_once():
    pool = WorkerPool(call, 1)
    for future in [pool.submit("exit", 3), pool.submit("echo")]:
        with pytest.raises(WorkerDied, match=r"worker process \d+ ended with exit code 3"):
            future.result(timeout=30)
    pool.close()
    pool = WorkerPool(call, 1)
    with pytest.raises(WorkerDied, match="exit code 4"):
        pool.submit("die in mid-answer").result(timeout=30)
    pool.close()
    pool = WorkerPool(call, 1)
    pid = pool.submit("pid").result(timeout=30)
    future = pool.submit("sleep", 60)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(WorkerDied, match=f"worker process {pid} was ended by SIGKILL"):
        future.result(timeout=30)
    pool.close()


def test_close_waits_for_nothing():
    others = multiprocessing.active_children()
    pool = WorkerPool(call, 1)
    pool.submit("pid").result()
    futures = [pool.submit("sleep", 60) for _ in range(3)]
    while not futures[0].running():
        time.sleep(0.01)
    started = time.monotonic()
    pool.close()
    pool.close()
    assert time.monotonic() - started < 10
    assert set(multiprocessing.active_children()) <= set(others)
    for future in futures:
        assert future.cancelled() or isinstance(future.exception(timeout=10), WorkerDied)


PROGRAM = """
import multiprocessing, operator, signal, sys, time
import torch
from workers import WorkerPool

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background inherits it ignored
    pool = WorkerPool(operator.call, 2)
    print(torch.get_num_threads(), pool.submit(torch.get_num_threads).result())
    futures = [pool.submit(time.sleep, 0.2 if sys.argv[1] == "killed" else 100) for _ in range(1000)]
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    if sys.argv[1] == "fails":
        raise ValueError("a program with an error")
    time.sleep(100)
"""


@pytest.mark.parametrize("end", ["fails", "interrupted", "killed"])
def test_workers_compute_with_one_thread_and_end_with_the_program(tmp_path, end):
    shutil.copy(workers.__file__, tmp_path)  # alone, it starts in a second
    script = tmp_path / "program.py"
    script.write_text(PROGRAM, encoding="utf-8")
    command = [sys.executable, str(script), end]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "2"}
    with subprocess.Popen(command, start_new_session=True, env=environment, **pipes) as program:
        try:
            assert program.stdout.readline().split() == ["2", "1"]  # threads of torch: there, and in a worker
            assert len(program.stdout.readline().split()) == 2
            if end == "interrupted":
                os.killpg(program.pid, signal.SIGINT)  # as a terminal does: to the workers, too
            elif end == "killed":
                program.kill()
            # Its pipes close when its last process has ended, the server of forks included.
            _, errors = program.communicate(timeout=30)
        finally:
            program.kill()
    expected = {"fails": "ValueError: a program with an error", "interrupted": "KeyboardInterrupt", "killed": ""}[end]
    assert errors.strip().split("\n")[-1] == expected
    assert errors.count("Traceback") == (end != "killed")


STOPPING = """
import operator, os, signal
from workers import WorkerPool

if __name__ == "__main__":
    told = []
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, lambda number, frame: told.append(number))
    first = WorkerPool(operator.call, 1)
    pid = first.submit(os.getpid).result()
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        os.killpg(0, number)
    second = WorkerPool(operator.call, 1)  # from the same server
    assert first.submit(os.getpid).result() == pid != second.submit(os.getpid).result()
    assert len(told) == 3, told
"""


def test_what_asks_the_whole_group_to_stop_ends_no_worker(tmp_path):
    """As torchrun, Slurm and terminals do; the program itself hears it, and needs its workers until it has saved."""
    shutil.copy(workers.__file__, tmp_path)
    (tmp_path / "program.py").write_text(STOPPING, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, str(tmp_path / "program.py")]
    done = subprocess.run(command, env=environment, start_new_session=True, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
