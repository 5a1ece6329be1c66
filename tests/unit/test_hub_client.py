"""Patience: what is tried again, how often, and what the error says when it does not help."""

import errno
import json
import logging
from types import SimpleNamespace

import pytest
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import get_session

from papo_hub.hub.client import Client, HubError, _transport_error

TOKEN = "hf_" + "a1B2c3D4" * 4


@pytest.fixture
def naps(monkeypatch):
    """The seconds slept, instead of sleeping them."""
    slept = []
    monkeypatch.setattr("papo_hub.hub.client.time.sleep", slept.append)
    return slept


@pytest.fixture
def client():
    return Client(TOKEN, "http://localhost:1", tries=4, wait=1.0)


def answer(status, message="no", kind=HfHubHTTPError, **headers):
    response = SimpleNamespace(status_code=status, headers=headers, request=None)
    return kind(message, response=response, server_message=message)


def failing(*errors, then="done"):
    """A request that raises `errors` in turn, then answers; it counts its calls."""
    left = list(errors)

    def request():
        request.calls += 1
        if left:
            raise left.pop(0)
        return then

    request.calls = 0
    return request


def chained(outer, inner):
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize(
    "error",
    [
        answer(500),
        answer(503),
        answer(429),
        answer(408),
        _transport_error()("connection reset"),
        chained(RuntimeError("Error while uploading 'x'"), _transport_error()("broken pipe")),
        RuntimeError("xet: network"),
        json.JSONDecodeError("Expecting value", "", 0),  # a body that ends early
    ],
    ids=str,
)
def test_what_may_pass_is_tried_again(client, naps, error):
    request = failing(error, error)
    assert client.call("push", request) == "done"
    assert request.calls == 3 and len(naps) == 2
    assert 0.75 <= naps[0] <= 1.25 and 1.5 <= naps[1] <= 2.5


@pytest.mark.parametrize(
    "error, step",
    [
        (answer(401), "hf auth login"),
        (answer(403, "needs write access"), "role `write`"),
        (answer(403, "Private storage limit reached"), "storage is used up"),
        (answer(403, "Ask for access", kind=GatedRepoError), "ask for access"),
        (answer(404), "Check the name"),
        (answer(400, "bad front matter"), "bad front matter"),
        (LocalTokenNotFoundError("Token is required"), "hf auth login"),
        (OfflineModeIsEnabled("offline mode is enabled"), "Unset HF_HUB_OFFLINE"),
        (OSError(errno.ENOSPC, "No space left on device"), "free some space"),
        (chained(RuntimeError("Error while uploading 'x'"), answer(403, "quota exceeded")), "storage is used up"),
        (chained(RuntimeError("Error while uploading 'x'"), OSError(errno.ENOSPC, "No space")), "free some space"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_pass_is_told_at_once_with_the_next_step(client, naps, error, step):
    request = failing(error)
    with pytest.raises(HubError) as caught:
        client.call("push to alice/model", request)
    assert request.calls == 1 and not naps
    assert str(caught.value).startswith("Could not push to alice/model: ") and step in str(caught.value)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__  # the chain might quote a header


def test_patience_ends(client, naps):
    request = failing(*[answer(503, "Service Unavailable")] * 9)
    with pytest.raises(HubError, match=r"in 4 tries; the last: 503: Service Unavailable.*goes on from here"):
        client.call("push", request)
    assert request.calls == 4 and len(naps) == 3


def test_the_server_says_how_long_to_wait(client, naps):
    assert client.call("push", failing(answer(429, **{"Retry-After": "7"}))) == "done"
    assert naps == [7.0]
    with pytest.raises(HubError, match="run the command again later"):
        client.call("push", failing(answer(429, **{"Retry-After": "3600"})))


def test_a_request_that_did_its_work_is_not_repeated(client, naps):
    request = failing(_transport_error()("the answer was lost"))
    assert client.call("commit", request, done=lambda: "the first one") == "the first one"
    assert request.calls == 1
    request = failing(_transport_error()("never arrived"))
    assert client.call("commit", request, done=lambda: None) == "done" and request.calls == 2


def test_a_failing_check_is_part_of_the_try(client, naps):
    checks = failing(answer(503), then="the first one")
    request = failing(_transport_error()("the answer was lost"))
    assert client.call("commit", request, done=checks) == "the first one"
    assert request.calls == 1 and checks.calls == 2


def test_no_token_in_an_error_or_a_log(client, naps):
    with pytest.raises(HubError) as caught:
        client.call("push", failing(answer(400, f"the header Bearer {TOKEN} is odd")))
    assert TOKEN not in str(caught.value)
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    library = logging.getLogger("huggingface_hub")
    library.addHandler(handler)
    try:
        Client(TOKEN, "http://localhost:1")
        logging.getLogger("huggingface_hub.utils._http").warning("while requesting PUT %s", f"https://s/?token={TOKEN}")
    finally:
        library.removeHandler(handler)
    assert lines == ["while requesting PUT https://s/?…"]


def test_an_error_repeats_no_password_and_steers_no_terminal():
    client = Client(TOKEN, "http://me:swordfish@localhost:1", tries=1)
    with pytest.raises(HubError) as caught:
        client.call("read a\x1b[2Jb.json of", failing(answer(402, "payment")))
    assert "swordfish" not in str(caught.value) and "http://…@localhost:1/settings/billing" in str(caught.value)
    assert str(caught.value).startswith("Could not read a\\x1b[2Jb.json of: ")


def test_no_request_waits_for_ever(client):
    client.call("ask", lambda: None)
    assert get_session().timeout.read == client.timeout == 120
