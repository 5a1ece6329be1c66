"""HTTP/1.1 on loopback: two ports, a record of every request, and faults on demand.

The Hub and its storage are two origins, as they are on the internet: a client that sends the Hub's token to the storage is
found out. A route is a function of (hub, request, **parts of the path) that returns a Response or raises a Refusal.
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

MESSAGES = {
    "403": "Forbidden: you must use a write token to upload to a repository.",
    "412": "A commit has happened since. Please refresh and try again.",
    "429": "Too Many Requests",
    "500": "Internal Error - We're working hard to fix this as soon as possible!",
    "503": "Service Unavailable",
}
QUOTA = "Private repository storage limit reached, please upgrade your plan to increase your private storage limit."
KINDS = {*MESSAGES, "drop_before", "drop_after", "truncate", "hang", "quota"}


class Seen(NamedTuple):
    """One request as tests see it; `status` is 0 while it runs and where a fault cut it off before anything was done."""

    method: str
    path: str  # percent-encoded, without the query
    status: int
    port: str  # hub | storage
    authorised: bool  # it carried one of the Hub's own tokens


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: Message
    body: bytes
    port: str

    @property
    def bearer(self) -> str | None:
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        return token.strip() if scheme.lower() == "bearer" else None

    def first(self, name: str, default: str | None = None) -> str | None:
        return self.query.get(name, [default])[0]

    def json(self, **shape: type | tuple[type, ...]) -> dict[str, Any]:
        """The body, which must be an object with members of these types; refused with status 400 otherwise."""
        try:
            value = json.loads(self.body)
        except ValueError as error:
            raise Refusal(400, f"The body is not JSON: {error}") from None
        check(value, **shape)
        return value


def check(value: Any, /, **shape: type | tuple[type, ...]) -> None:
    """Refuses, with status 400, what is not an object with members of these types."""
    if not isinstance(value, dict):
        raise Refusal(400, f"Not an object: {value!r}")
    for name, kind in shape.items():
        if not isinstance(value.get(name), kind):
            raise Refusal(400, f'Invalid "{name}": {value.get(name)!r}')


@dataclass
class Response:
    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class Refusal(Exception):
    """An error answer: `code` goes into X-Error-Code, which tells the client which exception to raise."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str):
        super().__init__(message)
        self.response = answer({"error": message}, status)
        self.response.headers |= {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.response.headers |= {name.replace("_", "-"): value for name, value in headers.items()}


def answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer."""
    return Response(json.dumps(value).encode(), status, {"Content-Type": "application/json"} | (headers or {}))


def asked_range(request: Request, size: int) -> range | None:
    """The bytes, of `size`, that the header Range asks for; None without one. Refused where it is malformed or empty."""
    if not (wanted := request.headers.get("Range")):
        return None
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted)
    if match is None or match.groups() == ("", ""):
        raise Refusal(400, f"Malformed range: {wanted}")
    first, last = match.groups()
    start = int(first) if first else max(size - int(last), 0)
    stop = min(int(last) + 1, size) if first and last else size
    if start >= stop:
        raise Refusal(416, "Range Not Satisfiable", Content_Range=f"bytes */{size}")
    return range(start, stop)


def content(request: Request, data: bytes, headers: dict[str, str]) -> Response:
    """A file, or the one range of it that was asked for."""
    headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"} | headers
    if (asked := asked_range(request, len(data))) is None:
        return Response(data, 200, headers)
    place = f"bytes {asked.start}-{asked.stop - 1}/{len(data)}"
    return Response(data[asked.start : asked.stop], 206, headers | {"Content-Range": place})


class Routes:
    """The routes of one port, tried in the order in which they were added."""

    parts = {
        "type": "model|dataset|space",
        "prefix": "(?:datasets/|spaces/)?",  # of a model there is none
        "id": "[^/]+/[^/]+",
        "path": ".+",
    }

    def __init__(self, *others: Routes) -> None:
        self._routes: list[tuple[str, re.Pattern, Callable, bool]] = [
            route for each in others for route in each._routes
        ]

    def __call__(self, method: str, path: str, locked: bool = True) -> Callable:
        """Decorator. `{name}` stands for one segment of the path, or for what `parts` says; unless `locked` is False the
        function runs under the Hub's lock."""
        pattern = re.sub(r"\\\{(\w+)\\\}", lambda m: f"(?P<{m[1]}>{self.parts.get(m[1], '[^/]+')})", re.escape(path))

        def add(function: Callable) -> Callable:
            self._routes.append((method, re.compile(pattern), function, locked))
            return function

        return add

    def find(self, request: Request) -> tuple[Callable, dict[str, str], bool] | None:
        method = "GET" if request.method == "HEAD" else request.method
        for verb, pattern, function, locked in self._routes:
            if verb == method and (match := pattern.fullmatch(request.path)):
                return function, {name: unquote(value) for name, value in match.groupdict().items()}, locked
        return None


@dataclass
class Fault:
    kind: str
    nth: int | None
    method: str | None
    path: str | None
    times: int
    seconds: float
    retry_after: int
    fired: int = 0


class Faults:
    """What goes wrong, and when."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []

    def add(
        self,
        kind: str,
        nth: int | None = None,
        method: str | None = None,
        path: str | None = None,
        times: int = 1,
        seconds: float = 1.0,
        retry_after: int = 0,
    ) -> Fault:
        """A fault for the next `times` requests that match `method` and `path` (a regular expression, searched in the path
        without its query); with `nth`, for the requests number nth to nth + times - 1 since the last `requests.clear()`,
        both ports counted together from 1.

        500, 503, 429 (Retry-After: `retry_after` seconds), 412, 403: answered in place of doing anything.
        drop_before, drop_after: the connection closes without an answer, before or after the request is carried out.
        truncate: carried out, but the answer's body stops half way to its Content-Length.
        hang: carried out after `seconds`.
        quota: no room left; in an LFS batch an error of each object, elsewhere a 403.
        Returns the fault; its `fired` counts. ValueError for an unknown kind.
        """
        if kind not in KINDS:
            raise ValueError(f"unknown fault {kind!r}: one of {', '.join(sorted(KINDS))}")
        self._faults.append(Fault(kind, nth, method, path, times, seconds, retry_after))
        return self._faults[-1]

    def clear(self) -> None:
        self._faults.clear()

    def take(self, number: int, request: Request) -> Fault | None:
        for fault in self._faults:
            due = fault.nth is None or fault.nth <= number < fault.nth + fault.times
            if (
                due
                and fault.fired < fault.times
                and fault.method in (None, request.method)
                and (fault.path is None or re.search(fault.path, request.path))
            ):
                fault.fired += 1
                return fault
        return None


class Transport:
    """Listens from start() to stop(). Everything that tests read is here: `requests`, `faults`, `unknown` (requests without
    a route), `errors` (tracebacks of the server's own mistakes) and `leaks` (requests that brought a Hub token to the
    storage)."""

    def __init__(self, hub_routes: Routes, storage_routes: Routes) -> None:
        self.lock = threading.RLock()
        self.requests: list[Seen] = []
        self.unknown: list[Seen] = []
        self.errors: list[str] = []
        self.leaks: list[Seen] = []
        self.faults = Faults()
        self._connections: set[socket.socket] = set()
        self._routes = {"hub": hub_routes, "storage": storage_routes}
        self._listeners = {port: _Listener(self, port) for port in self._routes}
        # another host and not only another port: clients before huggingface_hub 2 tell origins apart by their hosts
        self.url = f"http://127.0.0.1:{self._listeners['hub'].server_port}"
        self.storage_url = f"http://localhost:{self._listeners['storage'].server_port}"

    def start(self) -> None:
        for listener in self._listeners.values():
            threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """Closes every connection; what hangs gets no answer any more."""
        for listener in self._listeners.values():
            listener.shutdown()
            listener.server_close()
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def is_token(self, bearer: str | None) -> bool:
        raise NotImplementedError

    def serve(self, request: Request) -> tuple[Response | None, Fault | None]:
        """The answer (None: close the connection) and the fault that befell the request."""
        with self.lock:
            seen = Seen(request.method, request.path, 0, request.port, self.is_token(request.bearer))
            self.requests.append(seen)
            fault = self.faults.take(len(self.requests), request)
        try:
            response = self._injured(request, seen, fault)
        except Refusal as refusal:
            response = refusal.response
        except Exception:
            self.errors.append(f"{request.method} {request.path}\n{traceback.format_exc()}")
            response = Refusal(500, MESSAGES["500"]).response
        done = seen._replace(status=response.status if response else 0)
        with self.lock:
            for place, other in enumerate(self.requests):
                if other is seen:
                    self.requests[place] = done
        return (None if fault and fault.kind == "drop_after" else response), fault

    def _injured(self, request: Request, seen: Seen, fault: Fault | None) -> Response | None:
        kind = fault.kind if fault else None
        if kind == "drop_before":
            return None
        if kind == "hang":
            time.sleep(fault.seconds)
        if kind in MESSAGES:
            headers = {"Retry_After": str(fault.retry_after)} if kind == "429" else {}
            raise Refusal(int(kind), MESSAGES[kind], **headers)
        if kind == "quota":
            if not request.path.endswith("/info/lfs/objects/batch"):
                raise Refusal(403, QUOTA)
            error = {"error": {"code": 403, "message": QUOTA}}
            return answer({"objects": [entry | error for entry in request.json(objects=list)["objects"]]})
        return self._carried_out(request, seen)

    def _carried_out(self, request: Request, seen: Seen) -> Response:
        if request.port == "storage" and seen.authorised:
            self.leaks.append(seen._replace(status=400))
            raise Refusal(400, "A token of the Hub has no place here")
        if (found := self._routes[request.port].find(request)) is None:
            self.unknown.append(seen._replace(status=404))
            raise Refusal(404, "Sorry, we can't find the page you are looking for.")
        function, parts, locked = found
        with self.lock if locked else nullcontext():
            return function(self, request, **parts)


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, transport: Transport, port: str):
        self.transport, self.port = transport, port
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Listener

    def setup(self) -> None:
        super().setup()
        self.server.transport._connections.add(self.connection)

    def finish(self) -> None:
        self.server.transport._connections.discard(self.connection)
        super().finish()

    def handle(self) -> None:
        with suppress(OSError):  # the other side may close at any moment
            super().handle()

    def log_message(self, *arguments) -> None:
        pass

    def _respond(self) -> None:
        target = urlsplit(self.path)
        try:
            body = self._body()
        except ValueError:
            self.close_connection = True
            return self._send(Refusal(400, "Malformed body").response)
        query = parse_qs(target.query, keep_blank_values=True)
        request = Request(self.command, target.path, query, self.headers, body, self.server.port)
        response, fault = self.server.transport.serve(request)
        if response is None:
            self.close_connection = True
        else:
            self._send(response, truncated=fault is not None and fault.kind == "truncate")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = _respond

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():  # trailers
                pass
            return b"".join(chunks)
        size = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(size)
        if len(body) < size:
            raise ConnectionResetError
        return body

    def _send(self, response: Response, truncated: bool = False) -> None:
        self.send_response(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        length, body = len(response.body), b"" if self.command == "HEAD" else response.body
        if truncated:
            length, body, self.close_connection = max(length, 1), body[: len(body) // 2], True
        if self.close_connection:
            self.send_header("Connection", "close")
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)
