"""The Hub's client with bounded patience, and with errors that say what to do next.

`HfApi` retries some of its requests by itself and not others (creating a repository, a commit, a branch or a tag), and
waits for an answer for ever. Every call of papo_hub goes through `Client.call`, which repeats what may pass and turns
the rest into one `HubError`.
"""

from __future__ import annotations

import errno
import json
import logging
import random
import sys
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session

from papo_hub.redaction import printable, redact

T = TypeVar("T")
PASSING = (408, 425, 429, 500, 502, 503, 504)
LONGEST_WAIT = 120.0  # seconds: a server that asks for more gets its way, and the user is told


class HubError(RuntimeError):
    """Something between here and the Hub that a user can mend: the message says what happened and what to do.

    It repeats no secret and nothing that would steer a terminal: names and answers are those of strangers.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class Client:
    """`HfApi` for one account.

    Args:
        token: of the account; by default what `hf auth login` or HF_TOKEN left.
        endpoint: of the Hub; by default HF_ENDPOINT or the public one.
        tries: of one request, the first included.
        wait: seconds before the second try; doubled each time.
        timeout: seconds without a byte after which a request counts as lost.
    """

    def __init__(
        self,
        token: str | None = None,
        endpoint: str | None = None,
        tries: int = 6,
        wait: float = 1.0,
        timeout: float = 120.0,
    ) -> None:
        self.token = token or get_token()
        self.api = HfApi(endpoint=endpoint, token=self.token or False)
        self.tries, self.wait, self.timeout = tries, wait, timeout
        _quiet(self.token)

    def call(self, what: str, request: Callable[[], T], done: Callable[[], T | None] | None = None) -> T:
        """The answer of `request`, tried up to `tries` times.

        Args:
            what: is attempted, to go into an error: "create the repository alice/model".
            done: asked before a repetition whether the lost request has done its work after all; its answer, unless
                None, is the call's.

        Raises:
            HubError: it cannot pass, or did not pass in time.
        """
        for attempt in range(1, self.tries + 1):
            get_session().timeout = self.timeout  # the library sets none, and makes a new session after some errors
            try:
                if attempt > 1 and done is not None and (answer := done()) is not None:
                    return answer
                return request()
            except Exception as error:
                pause = self._pause(error, attempt)
                if pause is None:
                    raise self.explain(what, error) from None
                last = error
            if attempt < self.tries:
                time.sleep(pause)
        raise HubError(
            f"Could not {what}: no good answer from {self.api.endpoint} in {self.tries} tries; the last: "
            f"{self._told(last)}. Nothing is lost: the same command goes on from here."
        )

    def rest(self) -> None:
        """A short break of uneven length, after which two that met do not meet again."""
        time.sleep(self.wait * random.SystemRandom().uniform(0, 1))

    def _pause(self, error: BaseException, attempt: int) -> float | None:
        """Seconds to wait before the next try; None where another try cannot help."""
        pause = self.wait * 2 ** (attempt - 1) * random.SystemRandom().uniform(0.75, 1.25)
        for cause in _causes(error):
            if isinstance(cause, OfflineModeIsEnabled) or _disk_full(cause):
                return None
            if (status := status_of(cause)) is not None:
                if status not in PASSING:
                    return None
                asked = cause.response.headers.get("Retry-After", "")
                pause = max(pause, float(asked)) if asked.isdigit() else pause
                return pause if pause <= LONGEST_WAIT else None
        passing = any(isinstance(cause, (_transport_error(), json.JSONDecodeError)) for cause in _causes(error))
        # hf_xet, written in Rust, raises plain RuntimeErrors and ConnectionErrors for all that happens on the way.
        return pause if passing or type(error) in (RuntimeError, ConnectionError, TimeoutError) else None

    def explain(self, what: str, error: BaseException) -> HubError:
        """The error in words, with the next step and without a secret."""
        return HubError(f"Could not {what}: {self._told(error)}. {self._advice(error)}".rstrip())

    def _told(self, error: BaseException) -> str:
        """The innermost cause that says something, on one line."""
        causes = [cause for cause in _causes(error) if str(cause).strip()] or [error]
        cause = next((cause for cause in causes if status_of(cause) is not None), causes[0])
        text = str(getattr(cause, "server_message", None) or cause) or type(cause).__name__
        if (status := status_of(cause)) is not None and str(status) not in text:
            text = f"{status}: {text}"
        return redact(" ".join(text.split())[:500], self.token).rstrip(".")

    def _advice(self, error: BaseException) -> str:
        told, found = self._told(error).lower(), list(_causes(error))
        status = next((status for cause in found if (status := status_of(cause)) is not None), None)

        def any_is(*kinds: type) -> bool:
            return any(isinstance(cause, kinds) for cause in found)

        if any(map(_disk_full, found)):
            return (
                "The disk is full: free some space (`hf cache prune` clears old downloads) and run the command again."
            )
        if any_is(OfflineModeIsEnabled):
            return "Unset HF_HUB_OFFLINE and run the command again."
        if status in (402, 413) or any(word in told for word in ("quota", "storage limit", "payment", "too large")):
            return (
                "The account's storage is used up: free some of it or ask for more "
                f"({self.api.endpoint}/settings/billing), then run the command again; what was sent is not sent twice."
            )
        if status == 429:
            return "The Hub asks to wait; run the command again later, it goes on from here."
        if any_is(LocalTokenNotFoundError) or status == 401 or (self.token is None and status == 404):
            return "Log in with `hf auth login` or set HF_TOKEN; `papo-hub doctor` shows which token is in use."
        if any_is(GatedRepoError):
            return "The repository is gated: ask for access on its page, with the account that the token belongs to."
        if status == 403:
            return (
                "The token may not do that: make one with the role `write` "
                f"({self.api.endpoint}/settings/tokens), or use a repository under your own name."
            )
        if any_is(RevisionNotFoundError):
            return "`papo-hub versions OWNER/NAME` lists what there is."
        if any_is(RepositoryNotFoundError) or status == 404:
            return "Check the name, and that the token's account may see it."
        return ""


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an error, or None where there was no answer."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _disk_full(error: BaseException) -> bool:
    return getattr(error, "errno", None) == errno.ENOSPC or "no space left on device" in str(error).lower()


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came from, outermost first."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        seen.append(cause)
        yield cause
        cause = cause.__cause__ or cause.__context__


def _transport_error() -> type[Exception]:
    """The base of all that goes wrong on the wire, in the HTTP library that this huggingface_hub uses."""
    return sys.modules[type(get_session()).__module__.partition(".")[0]].TransportError


class _Redacting(logging.Filter):
    """Library logs name the links that they request; those of the storage are signed."""

    def __init__(self, token: str | None) -> None:
        super().__init__()
        self.token = token

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(record.getMessage(), self.token), ()
        return True


def _quiet(token: str | None) -> None:
    """No secret in what the library logs, whatever its handlers are."""
    for handler in logging.getLogger("huggingface_hub").handlers:
        handler.filters = [old for old in handler.filters if not isinstance(old, _Redacting)]
        handler.addFilter(_Redacting(token))
