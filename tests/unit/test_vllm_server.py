"""What goes to a vLLM server and back, without one: a stand-in records the calls. A real one is in tests/real_vllm."""

import base64
import io
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from papo_hub.config import ConfigError
from papo_hub.modeling import load_vlm
from papo_hub.modeling.tiny import SPECIAL
from papo_hub.rollout import Sampling, VllmServerEngine, vllm_server
from papo_hub.rollout.vllm import PromptMismatch
from papo_hub.rollout.vllm_server import FolderSender, Server, ServerError, chat, parts

IMAGE, END = SPECIAL.index("<|image_pad|>"), SPECIAL.index("<|im_end|>")


class StandIn:
    """Answers every chat with what `answer` makes of it; keeps the weights that it is sent."""

    base_url = "http://stand-in"

    def __init__(self):
        self.calls, self.asked, self.weights, self.free = [], [], [], True
        self.answer = lambda body: None

    def call(self, path, body=None, method="POST"):
        if path == "v1/chat/completions":
            self.asked.append(body)
            return self.answer(body)
        self.calls.append(path if path != "collective_rpc" else (path, body["method"], *body["args"]))
        if path == "update_weights":
            self.weights.append(load_file(body["update_info"]["path"]))
        return {"v1/models": {"data": [{"id": "served"}]}, "reset_prefix_cache": {"success": self.free}}.get(path)


@pytest.fixture
def engine(tiny_model_folder, tiny_processor, tiny_prompts, tmp_path, monkeypatch):
    stand_in = StandIn()
    trained = {prompt.turn[-1]: prompt.clean["input_ids"][0].tolist() for prompt in tiny_prompts}

    def answer(body):
        token = {"logprob": -body["seed"] / 10}
        choice = {"token_ids": [9, END], "finish_reason": "stop", "logprobs": {"content": [token, token]}}
        return {"prompt_token_ids": trained[body["messages"][0]["content"][-1]["text"]], "choices": [choice]}

    stand_in.answer = answer
    monkeypatch.setattr(vllm_server, "Server", lambda base_url: stand_in)
    monkeypatch.setattr(vllm_server, "LOOK_AROUND", 0.01)
    engine = VllmServerEngine(
        load_vlm(tiny_model_folder), tiny_processor, "http://stand-in", str(tmp_path / "weights"), batch_size=2
    )
    yield engine
    engine.close()


def test_a_chat_has_the_pictures_where_they_belong(tiny_prompts):
    content = chat(tiny_prompts[1], "clean")
    assert [part["type"] for part in content] == ["text", "image_url", "text", "image_url", "text"]
    assert [part.get("text") for part in content[::2]] == ["first ", " then ", " which is largest?"]
    for view, images in (("clean", tiny_prompts[1].sample.images), ("masked", tiny_prompts[1].masked_images)):
        urls = [part["image_url"]["url"] for part in chat(tiny_prompts[1], view) if part["type"] == "image_url"]
        sent = [Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))) for url in urls]
        assert [image.tobytes() for image in sent] == [image.tobytes() for image in images]


def test_weights_come_in_parts():
    """Of 8, 8, 24, 4 and 4 bytes, at most 16 at once: the third is larger than that and goes alone."""
    weights = [(name, torch.zeros(count)) for name, count in (("a", 2), ("b", 2), ("c", 6), ("d", 1), ("e", 1))]
    assert [list(part) for part in parts(iter(weights), 16)] == [["a", "b"], ["c"], ["d", "e"]]


def test_prepare_sends_all_weights_once_and_leaves_no_file(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_server, "FILE_BYTES", 200_000)
    engine.prepare()
    server = engine.server
    assert len(server.weights) > 2
    files = ["update_weights"] * len(server.weights)
    update = ["start_weight_update", *files, "finish_weight_update", "reset_prefix_cache", "reset_encoder_cache"]
    assert server.calls == ["v1/models", *update]
    sent = {name: value for part in server.weights for name, value in part.items()}
    assert sum(map(len, server.weights)) == len(sent)
    assert all(torch.equal(sent.pop(name), value) for name, value in engine.model.named_parameters()) and not sent
    assert list((tmp_path / "weights").iterdir()) == []
    engine.prepare()
    assert len(server.calls) == 1 + len(update)
    engine.rest()
    engine.prepare()
    assert len(server.calls) == 1 + 2 * len(update)


def test_a_server_that_is_busy_for_others_is_an_error(engine):
    engine.server.free = False
    with pytest.raises(ServerError, match="busy"):
        engine.prepare()


def test_a_file_goes_though_the_server_fails(engine, tmp_path):
    def call(path, body=None, method="POST"):
        if path == "update_weights":
            raise ServerError("no")

    engine.server.call = call
    with pytest.raises(ServerError):
        FolderSender(engine.server, engine.model, tmp_path / "folder").send()
    assert list((tmp_path / "folder").iterdir()) == []


def test_completions_come_in_the_order_of_the_prompts(engine, tiny_prompts):
    engine.prepare()
    found = engine.generate(tiny_prompts, 2, Sampling(temperature=0.5, top_p=0.9), [1, 2, 3, 4, 5, 6])
    assert [c.logprobs for c in found] == [[-i / 10] * 2 for i in range(1, 7)]
    assert all(c.token_ids == [9, END] and c.finished for c in found)
    assert engine.server.calls[-1] == ("collective_rpc", "set_temperature", "0.5")
    for body in engine.server.asked:
        options = {name: body[name] for name in ("model", "temperature", "top_p", "top_k", "repetition_penalty")}
        assert options == {"model": "served", "temperature": 1.0, "top_p": 0.9, "top_k": 0, "repetition_penalty": 1.0}
        assert body["logprobs"] is True and body["return_token_ids"] is True and IMAGE in body["logit_bias"]


def test_another_reading_of_a_prompt_is_refused(engine, tiny_prompts):
    engine.prepare()
    right = engine.server.answer
    engine.server.answer = lambda body: right(body) | {"prompt_token_ids": [1, 2]}
    with pytest.raises(PromptMismatch, match="2 tokens for"):
        engine.generate(tiny_prompts[:1], 1, Sampling(), [1])


def test_nothing_is_sampled_before_the_weights_are_there(engine, tiny_prompts):
    with pytest.raises(RuntimeError, match="prepare"):
        engine.generate(tiny_prompts, 1, Sampling(), [1, 2, 3])


@pytest.mark.parametrize("fails", [False, True])
def test_requests_that_nobody_waits_for_are_ended(engine, tiny_prompts, fails):
    """Two go at once, and one of them never ends; it does when the server is told to abort it."""
    engine.prepare()
    ended, usual = threading.Event(), engine.server.call

    def call(path, body=None, method="POST"):
        if path == "abort_requests":
            ended.set()
        return usual(path, body, method)

    def answer(body):
        if fails and body["seed"] == 2:
            raise ServerError("too long")
        ended.wait(20)
        raise ServerError("aborted")

    engine.server.call, engine.server.answer = call, answer
    if fails:
        with pytest.raises(ServerError, match="too long"):
            engine.generate(tiny_prompts, 2, Sampling(), [2, 1, 3, 4, 5, 6])
    else:
        assert engine.generate(tiny_prompts, 2, Sampling(), [1, 2, 3, 4, 5, 6], given_up=lambda: True) == []
    assert ended.is_set() and len(engine.server.asked) <= 3


def test_where_the_weights_cannot_go_or_nobody_answers(tiny_model_folder, tiny_processor, tmp_path):
    model = load_vlm(tiny_model_folder)
    with pytest.raises(ConfigError, match="vllm_server_weights_folder: .* on the cpu"):
        VllmServerEngine(model, tiny_processor, "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match="vllm_server_base_url: .*127.0.0.1:9 does not answer .*docs/vllm.md"):
        VllmServerEngine(model, tiny_processor, "http://127.0.0.1:9", str(tmp_path))


def test_a_refusal_is_said_in_the_servers_words():
    class Refusing(BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_response(400)
            self.end_headers()
            self.wfile.write(b"max_tokens is too large")

        def log_message(self, *arguments):
            pass

    http = HTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        with pytest.raises(ServerError, match="/generate with 400: max_tokens is too large"):
            Server(f"http://127.0.0.1:{http.server_port}/").call("generate", {})
    finally:
        http.shutdown()
        http.server_close()


def test_a_refused_connection_is_tried_again(monkeypatch):
    """As of a server whose queue of connections is full for a moment."""
    monkeypatch.setattr(vllm_server, "PAUSE", 0)
    refusals = [urllib.error.URLError(ConnectionRefusedError(111, "Connection refused"))] * (vllm_server.ATTEMPTS - 1)
    answers = [*refusals, io.BytesIO(b'{"fine": true}')]

    def opened(request, timeout):
        if isinstance(answer := answers.pop(0), Exception):
            raise answer
        return answer

    monkeypatch.setattr(urllib.request, "urlopen", opened)
    assert Server("http://127.0.0.1:1").call("generate", {}) == {"fine": True}
    answers[:] = [*refusals, refusals[0], "never asked for"]
    with pytest.raises(ServerError, match="does not answer /generate: .*refused"):
        Server("http://127.0.0.1:1").call("generate", {})
    assert answers == ["never asked for"]
