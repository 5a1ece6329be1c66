"""A real vLLM server on loopback: chats with pictures there, weights through a folder, answers back."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from papo_hub.config import ConfigError
from papo_hub.rollout import Sampling, TransformersEngine, VllmServerEngine
from papo_hub.rollout.vllm_server import ServerError
from tests.real_vllm.helpers import EXACT, GREEDY, favoured, gap, launch, only_allowed_tokens, sample, shaken

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def server(wide_model_folder, processor, tmp_path_factory):
    """The address of one, started as docs/vllm.md says, on the model's folder and with the processor's pixel limits."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    size = {name: getattr(processor.image_processor.size, name) for name in ("shortest_edge", "longest_edge")}
    # What `vllm serve` runs; that command itself does not start in the CPU build, which has another name.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(wide_model_folder)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--generation-config", "vllm"]
    command += ["--worker-extension-cls", "papo_hub.rollout.vllm_worker.TrainingExtension"]
    command += ["--weight-transfer-config", '{"backend": "papo_hub_folder"}']
    command += ["--limit-mm-per-prompt", '{"video": 0}', "--mm-processor-kwargs", json.dumps({"size": size})]
    command += ["--max-model-len", "512", "--max-num-seqs", "16", "--dtype", "float32"]
    command += ["--enforce-eager", "--gpu-memory-utilization", "0.1"]
    settings = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | settings)
    try:
        for _ in range(240):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, log.read_text()[-3000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture
def engine(server, model, processor, tmp_path):
    engine = VllmServerEngine(model, processor, server, str(tmp_path / "weights"), batch_size=16)
    engine.prepare()
    yield engine
    engine.close()


@pytest.mark.parametrize("sampling", [(1.0, 1.0), (0.7, 1.0), (1.3, 0.5), (0, 1.0)], ids=str)
@pytest.mark.parametrize("view", ["clean", "masked"])
def test_log_probs_are_the_policys(engine, model, prompts, sampling, view):
    completions = sample(engine, prompts, Sampling(*sampling, max_completion_length=12), view=view)
    temperature = sampling[0] or 1.0
    assert gap(completions, model, prompts, temperature, view) < EXACT
    assert gap(completions, model, prompts, 2 * temperature, view) > 1e-2
    assert gap(completions, model, prompts, temperature, "masked" if view == "clean" else "clean") > 1e-3


@pytest.mark.parametrize("part", ["embed_tokens", "visual", "self_attn"])
def test_after_a_push_the_answers_follow_the_new_weights(
    engine, model, processor, prompts, part, tmp_path, monkeypatch
):
    monkeypatch.setattr("papo_hub.rollout.vllm_server.FILE_BYTES", 100_000)  # of a megabyte: several files
    before = sample(engine, prompts, GREEDY)
    shaken(model, part)
    assert sample(engine, prompts, GREEDY) == before
    engine.rest()
    with pytest.raises(RuntimeError, match="prepare"):
        sample(engine, prompts, GREEDY)
    engine.prepare()
    after = sample(engine, prompts, GREEDY)
    assert gap(after, model, prompts) < EXACT
    ours = sample(TransformersEngine(model, processor.tokenizer), prompts, GREEDY)
    assert [(c.token_ids, c.text, c.finished) for c in after] == [(c.token_ids, c.text, c.finished) for c in ours]
    assert list((tmp_path / "weights").iterdir()) == []


def test_a_completion_depends_on_its_seed_alone(engine, prompts):
    sampling = Sampling(max_completion_length=8)
    together = engine.generate(prompts, 2, sampling, [1, 2, 3, 4, 5, 2**62])
    alone = engine.generate(prompts[1:2], 2, sampling, [3, 4])
    assert [c.token_ids for c in alone] == [c.token_ids for c in together[2:4]]


def test_what_must_not_be_sampled_is_not(engine, model, prompts):
    favoured(model, (*engine.suppressed, *engine.stop_ids))
    engine.rest()
    engine.prepare()
    only_allowed_tokens(engine, prompts)


def test_who_gives_up_gets_nothing_and_can_ask_again(engine, model, prompts):
    assert sample(engine, prompts, Sampling(max_completion_length=200), count=16, given_up=lambda: True) == []
    assert gap(sample(engine, prompts, GREEDY), model, prompts) < EXACT


def test_what_a_server_refuses_is_said_in_its_words(engine, prompts):
    with pytest.raises(ServerError, match=r"/v1/chat/completions with 400: .*max"):
        sample(engine, prompts, Sampling(max_completion_length=100_000))


def test_no_server_is_an_error_of_the_recipe(model, processor, tmp_path):
    with pytest.raises(ConfigError, match=r"vllm_server_base_url: .*docs/vllm.md"):
        VllmServerEngine(model, processor, "http://127.0.0.1:9", str(tmp_path))
    with pytest.raises(ConfigError, match="vllm_server_weights_folder: "):
        VllmServerEngine(model, processor, "http://127.0.0.1:9")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_learns_from_what_a_server_samples(server, wide_model_folder, tmp_path, processes):
    measured = ("--eval_dataset_name", "digits", "--eval_problems", "4")
    where = ("--vllm_mode", "server", "--vllm_server_base_url", server)
    pixels = ("--min_pixels", "784", "--max_pixels", str(12 * 784))
    folder = ("--vllm_server_weights_folder", str(tmp_path / "weights"))
    rows = launch(tmp_path, wide_model_folder, *where, *folder, *pixels, *measured, processes=processes)
    assert len(rows) == 2 and all(0 < row["objective/sampling_gap"] < 1e-4 for row in rows)
