"""recipes/evaluate.py in two real processes, killed twice by the kernel: the bytes of one process that nothing stopped."""

import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image

from papo_hub.evaluation.answers import FILE, read_answers
from papo_hub.evaluation.protocol import Protocol
from papo_hub.evaluation.run import Request, evaluate

ROOT = Path(__file__).resolve().parents[2]
PROTOCOL = Protocol(k=2, view_k=2, views=("clean", "mask-0.6", "blank"), batch_size=4)
LIMIT = 24
OWN_TIME = ("started", "hardware", "command")


def start(arguments, log):
    """Two processes over gloo on the loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-addr", "127.0.0.1", "--master-port", str(port), str(ROOT / "recipes" / "evaluate.py")]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    environment |= {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    return subprocess.Popen([*command, *map(str, arguments)], env=os.environ | environment, stdout=log, stderr=log)


def kill(process):
    """SIGKILL to the launcher and all that it started. Returns how many that were."""
    launcher = psutil.Process(process.pid)
    tree = [launcher, *launcher.children(recursive=True)]
    for each in tree:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    psutil.wait_procs(tree, 30)
    process.wait(30)
    return len(tree)


def lines(folder):
    count = 0
    for file in folder.glob("answers*.jsonl"):
        with contextlib.suppress(FileNotFoundError):  # merged in the meantime
            count += file.read_bytes().count(b"\n")
    return count


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Rows of a user's own: two good ones between four bad ones, one for each process and view to meet."""
    folder = tmp_path_factory.mktemp("data")
    stream = io.BytesIO()
    Image.new("RGB", (56, 28), (10, 200, 90)).save(stream, "PNG")
    (folder / "good.png").write_bytes(stream.getvalue())
    (folder / "cut.png").write_bytes(stream.getvalue()[:70])
    rows = [
        ("1", "cut.png"),
        ("", "good.png"),
        ("2", "good.png"),
        ("3", "none.png"),
        ("4", "good.png"),
        (" ", "cut.png"),
    ]
    records = [{"problem": "evens: ? ?", "answer": answer, "images": [image]} for answer, image in rows]
    (folder / "mine.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "bad.jsonl").write_text(json.dumps(records[0]) + "\n")
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_model_folder, data):
    """One process, uninterrupted."""
    folder = tmp_path_factory.mktemp("one") / "evaluation"
    request = Request(
        f"{tiny_model_folder}", ("tiny", f"{data / 'mine.jsonl'}"), PROTOCOL, output_dir=folder, limit=LIMIT
    )
    return evaluate(request, say=lambda text: None)


def options(model, benchmarks, folder):
    views = ["--views", *PROTOCOL.views, "--k", PROTOCOL.k, "--view_k", PROTOCOL.view_k]
    limits = ["--batch_size", PROTOCOL.batch_size, "--limit", LIMIT]
    return [model, "--benchmarks", *benchmarks, *views, *limits, "--output_dir", folder]


def test_two_processes_killed_twice_write_the_bytes_of_one(tiny_model_folder, data, whole, tmp_path):
    folder = tmp_path / "evaluation"
    arguments = options(tiny_model_folder, ["tiny", data / "mine.jsonl"], folder)
    with (tmp_path / "log").open("w") as log:
        for enough in (6, 70):
            process = start(arguments, log)
            deadline = time.monotonic() + 90
            while lines(folder) < enough:
                assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()[-4000:]
                time.sleep(0.005)
            assert kill(process) >= 3  # the launcher, two processes, and what grades for them
        written = lines(folder)
        assert 70 <= written < lines(whole)
        before = {answer.key: answer for answer in read_answers(folder)}
        process = start(arguments, log)
        assert process.wait(120) == 0, (tmp_path / "log").read_text()[-8000:]
    assert (folder / FILE).read_bytes() == (whole / FILE).read_bytes()
    assert sorted(file.name for file in folder.glob("*answers*")) == [FILE]
    after = {answer.key: answer for answer in read_answers(folder)}
    assert len(before) >= 70 and all(after[key] == answer for key, answer in before.items())
    ours, theirs = (json.loads((place / "results.json").read_text()) for place in (folder, whole))
    for results in (ours, theirs):
        for name in OWN_TIME:
            assert results["settings"].pop(name)
    assert ours == theirs
    assert [row["id"] for row in ours["skipped"]] == ["0", "1", "3", "5"]
    assert len(read_answers(folder)) == (LIMIT + 2) * 2 * 3


def test_what_no_process_can_do_ends_in_words_and_not_in_a_traceback(tiny_model_folder, data, tmp_path):
    """One process alone knows that the rows are bad: the other must hear of it instead of waiting."""
    arguments = options(tiny_model_folder, [data / "bad.jsonl"], tmp_path / "evaluation")
    with (tmp_path / "log").open("w") as log:
        assert start(arguments, log).wait(120) != 0
    printed = (tmp_path / "log").read_text()
    messages = [line for line in printed.splitlines() if "error: no row of bad can be used" in line]
    assert messages and all("the first reason: unusable image" in line for line in messages)
    assert "Connection closed" not in printed and printed.count("Traceback") <= printed.count("ChildFailedError")
