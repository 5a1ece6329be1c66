"""A Hugging Face Hub on loopback for the unmodified clients: accounts, tokens, repositories, and who may do what.

    with HubServer() as hub:
        api = HfApi(endpoint=hub.url, token=hub.write_token)

It keeps everything in memory, speaks plain HTTP, and is strict: what it does not know is a 404 and stands in
`hub.unknown`; a malformed request is a 400. Its routes are in api.py (the Hub), lfs.py and xet.py (large files).
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from hub import api, lfs, xet
from hub.storage import Repository
from hub.transport import Refusal, Request, Routes, Transport


@dataclass(frozen=True)
class Token:
    account: str
    role: str  # read | write | fineGrained
    scope: frozenset[str] = frozenset()  # the repositories that a fine-grained token may write (and, private, read)


class HubServer(Transport):
    """Two accounts stand ready: alice, with `write_token` and `read_token`, and eve, with `stranger_token`, who may write
    under her own name only. The tokens are random."""

    def __init__(self) -> None:
        super().__init__(
            hub_routes=Routes(api.routes, lfs.hub_routes, xet.hub_routes),
            storage_routes=Routes(lfs.storage_routes, xet.storage_routes),
        )
        self.accounts: dict[str, list[str]] = {}  # {name: its organisations}
        self.tokens: dict[str, Token] = {}
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.uploads: dict[str, lfs.Upload] = {}  # multipart uploads under way
        self.xet = xet.ContentStore()
        self.page_size = 1000  # entries of a listing
        self.part_size: int | None = None  # bytes; larger LFS files are uploaded in parts of this size
        self.before_commit: Callable[[], None] | None = None  # run once, without the lock, before the next commit
        self._secret = secrets.token_bytes(16)
        self.add_account("alice")
        self.add_account("eve")
        self.write_token = self.add_token("alice", "write")
        self.read_token = self.add_token("alice", "read")
        self.stranger_token = self.add_token("eve", "write")

    def __enter__(self) -> HubServer:
        self.start()
        return self

    def __exit__(self, *exception) -> None:
        self.stop()

    # ---- the public face

    def add_account(self, name: str, organisations: tuple[str, ...] = ()) -> None:
        self.accounts[name] = list(organisations)

    def add_token(self, account: str, role: str, scope: tuple[str, ...] = ()) -> str:
        """`role` is read, write or fineGrained; `scope` names the repositories ("owner/name") of a fine-grained token."""
        token = "hf_" + secrets.token_hex(17)
        self.tokens[token] = Token(account, role, frozenset(scope))
        return token

    def repo(self, repo_id: str, repo_type: str = "model") -> Repository:
        """The repository itself; KeyError if there is none."""
        return self.repositories[repo_type, repo_id]

    def count(self, method: str, path: str) -> int:
        """How many requests since `requests.clear()` had this method and contain `path` in theirs."""
        return sum(seen.method == method and path in seen.path for seen in self.requests)

    # ---- who may do what

    def is_token(self, bearer: str | None) -> bool:
        return bearer in self.tokens

    def sign(self, path: str) -> str:
        """A storage URL that needs no token, as object stores hand them out."""
        return f"{self.storage_url}{path}?signature={self._signature(path)}"

    def check_signature(self, request: Request) -> None:
        if not hmac.compare_digest(request.first("signature", ""), self._signature(request.path)):
            raise Refusal(403, "The request signature does not match")

    def _signature(self, path: str) -> str:
        return hmac.new(self._secret, path.encode(), hashlib.sha256).hexdigest()

    def user(self, request: Request) -> Token | None:
        """Who asks: None for nobody. 401 for a token that was never given out."""
        if "Authorization" not in request.headers:
            return None
        if request.bearer not in self.tokens:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.tokens[request.bearer]

    def writer(self, request: Request, namespace: str, repo_id: str | None, message: str) -> Token:
        """Who asks, if they may write under `namespace` (to `repo_id`, if it exists). 401 or 403 otherwise."""
        user = self.user(request)
        if user is None:
            raise Refusal(401, "Invalid username or password.", "RepoNotFound")
        if user.role == "read":
            raise Refusal(403, "Forbidden: you must use a write token to upload to a repository.")
        if not self._belongs(user, namespace):
            raise Refusal(403, message)
        if user.role == "fineGrained" and repo_id not in user.scope:
            raise Refusal(403, "Forbidden: your token does not have the rights to write to this repository.")
        return user

    def _belongs(self, user: Token | None, namespace: str) -> bool:
        return user is not None and namespace in [user.account, *self.accounts[user.account]]

    def open(
        self, request: Request, repo_type: str, repo_id: str, write: bool = False, files: bool = False
    ) -> Repository:
        """The repository, if whoever asks may see it; `write`: and change it; `files`: and read its files, which a gated
        one does not let everybody do."""
        user, repo = self.user(request), self.repositories.get((repo_type, repo_id))
        owns = repo is not None and self._belongs(user, repo.namespace)
        if owns and user.role == "fineGrained":
            owns = repo_id in user.scope
        if repo is None or (repo.private and not owns):
            if user is None:
                raise Refusal(401, "Invalid username or password.", "RepoNotFound")
            raise Refusal(404, "Repository not found", "RepoNotFound")
        if files and repo.gated and not owns and (user is None or user.account not in repo.granted):
            message = f"Access to {repo_type} {repo_id} is restricted. You must have access to it and be authenticated."
            raise Refusal(401 if user is None else 403, message, "GatedRepo")
        if write:
            message = f"You don't have the rights to write to {repo_type} {repo_id}."
            self.writer(request, repo.namespace, repo_id, message)
        return repo
