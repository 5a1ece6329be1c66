"""What the test Hub keeps: blobs, commits, references and repositories, in git's shape and in memory.

A commit holds its whole tree, {path: Blob}; object names are git's own (the sha1 of "blob", "tree" and "commit" objects),
so that a client that computes them itself finds the same. Large files are git LFS pointers whose content is named by
its sha256. Nothing here knows of HTTP.
"""

from __future__ import annotations

import codecs
import hashlib
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatch
from functools import cached_property
from pathlib import PurePosixPath

GIT_ATTRIBUTES = re.sub(
    r"(\w+)\s*",
    r"*.\1 filter=lfs diff=lfs merge=lfs -text\n",
    "7z arrow bin bz2 ckpt gz h5 jpeg jpg model msgpack npy npz onnx parquet pdf pkl png pt pth safetensors tar tgz webp zip",
)
REGULAR_LIMIT = 10_000_000  # bytes; a larger file is never kept in git itself
REFERENCE = re.compile(r"(?!.*(\.\.|//|@\{|\.lock$|/$|\.$))[\w.][\w./+-]*")  # the names git takes, roughly


class Missing(LookupError):
    """A revision or a path that does not exist. `kind` is "revision", "entry" or "deleted entry"."""

    def __init__(self, kind: str, name: str):
        super().__init__(name)
        self.kind, self.name = kind, name


class Invalid(ValueError):
    """A request that makes no sense whatever the state of the repository."""


class Conflict(Exception):
    """What is to be created exists already."""


class Moved(Exception):
    """The branch is no longer at the commit that the writer started from."""


def git_oid(kind: str, content: bytes) -> str:
    """git's name of an object: sha1 of its header and content, in hex."""
    return hashlib.sha1(f"{kind} {len(content)}\0".encode() + content).hexdigest()


@dataclass(frozen=True)
class Blob:
    """One version of one file."""

    data: bytes
    lfs: bool = False
    xet: str | None = None  # name of the content in the xet store, where it was uploaded there

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        """What git itself holds of a large file."""
        lines = "version https://git-lfs.github.com/spec/v1", f"oid sha256:{self.sha256}", f"size {len(self.data)}"
        return "".join(f"{line}\n" for line in lines).encode()

    @cached_property
    def oid(self) -> str:
        return git_oid("blob", self.pointer if self.lfs else self.data)

    @property
    def etag(self) -> str:
        """The name of the content: sha256 of a large file, git's sha1 of a regular one."""
        return self.sha256 if self.lfs else self.oid


@dataclass(frozen=True)
class Commit:
    parents: tuple[Commit, ...]
    tree: Mapping[str, Blob]
    title: str
    message: str
    author: str
    nanoseconds: int = field(default_factory=time.time_ns)

    @cached_property
    def folders(self) -> dict[str, str]:
        """{folder: oid of its git tree}; the root is ""."""
        children: dict[str, dict[str, tuple[str, str]]] = {"": {}}
        for path, blob in self.tree.items():
            children.setdefault(_parent(path), {})[_name(path)] = ("100644", blob.oid)
            for folder in _ancestors(path):
                children.setdefault(folder, {})
        oids: dict[str, str] = {}
        for folder in sorted(children, key=lambda name: (name != "", name.count("/")), reverse=True):  # leaves first
            # git sorts a folder as if its name ended in a slash
            entries = sorted(children[folder].items(), key=lambda e: e[0] + "/" * (e[1][0] == "40000"))
            content = b"".join(f"{mode} {name}\0".encode() + bytes.fromhex(oid) for name, (mode, oid) in entries)
            oids[folder] = git_oid("tree", content)
            if folder:
                children[_parent(folder)][_name(folder)] = ("40000", oids[folder])
        return oids

    @cached_property
    def oid(self) -> str:
        stamp = f"{self.author} <{self.author}@localhost> {self.nanoseconds} +0000"
        lines = [f"tree {self.folders['']}", *(f"parent {parent.oid}" for parent in self.parents)]
        lines += [f"author {stamp}", f"committer {stamp}", "", self.title, "", self.message]
        return git_oid("commit", "\n".join(lines).encode())

    @property
    def date(self) -> str:
        """ISO 8601, as the Hub writes it."""
        moment = datetime.fromtimestamp(self.nanoseconds / 1e9, UTC)
        return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"

    def log(self) -> Iterator[Commit]:
        """This commit and its first parents, newest first."""
        commit: Commit | None = self
        while commit is not None:
            yield commit
            commit = commit.parents[0] if commit.parents else None

    def last_change(self, path: str) -> Commit:
        """The newest commit in which the file or folder `path` became what it is here."""
        now = self._entry(path)
        for commit in self.log():
            if not commit.parents or commit.parents[0]._entry(path) != now:
                return commit
        raise AssertionError("a log ends in a commit without parents")

    def _entry(self, path: str) -> str | None:
        return self.tree[path].oid if path in self.tree else self.folders.get(path)


@dataclass(frozen=True)
class Operation:
    """One line of a commit: `action` is "add", "delete file" or "delete folder"."""

    action: str
    path: str
    blob: Blob | None = None


@dataclass
class Repository:
    """Its public methods take a branch, tag, commit sha or full reference as `revision` and raise Missing for others."""

    id: str
    type: str  # model | dataset | space
    author: str
    private: bool = False
    gated: str | bool = False  # "auto", "manual" or False
    granted: set[str] = field(default_factory=set)  # accounts let into a gated repository
    heads: dict[str, Commit] = field(default_factory=dict)
    tagged: dict[str, Commit] = field(default_factory=dict)
    pulls: dict[str, Commit] = field(default_factory=dict)
    objects: dict[str, Blob] = field(default_factory=dict)  # {sha256: uploaded large file}

    def __post_init__(self) -> None:
        first = {".gitattributes": Blob(GIT_ATTRIBUTES.encode())}
        self.heads["main"] = Commit((), first, "initial commit", "", self.author)

    # ---- what tests look at

    @property
    def branches(self) -> dict[str, str]:
        return {name: commit.oid for name, commit in self.heads.items()}

    @property
    def tags(self) -> dict[str, str]:
        return {name: commit.oid for name, commit in self.tagged.items()}

    def head(self, branch: str = "main") -> str:
        """The sha of the newest commit."""
        return self.heads[branch].oid

    def log(self, branch: str = "main") -> list[Commit]:
        """Newest first."""
        return list(self.heads[branch].log())

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """{path: content}, large files included."""
        return {path: blob.data for path, blob in self.commit_at(revision).tree.items()}

    # ---- reading

    @property
    def namespace(self) -> str:
        return self.id.split("/")[0]

    def commit_at(self, revision: str) -> Commit:
        named = self.heads | self.tagged | self.pulls | {f"refs/heads/{name}": c for name, c in self.heads.items()}
        if revision in named:
            return named[revision]
        if re.fullmatch("[0-9a-f]{40}", revision):
            tips = [*self.heads.values(), *self.tagged.values(), *self.pulls.values()]
            for commit in (commit for tip in tips for commit in tip.log()):
                if commit.oid == revision:
                    return commit
        raise Missing("revision", revision)

    def is_large(self, path: str, size: int, sample: bytes) -> bool:
        """Whether a file belongs to LFS: by .gitattributes, by its size in bytes, or because it is binary."""
        rules = self.heads["main"].tree.get(".gitattributes", Blob(b"")).data.decode().splitlines()
        patterns = [rule.split()[0] for rule in rules if "filter=lfs" in rule.split()]
        named = any(fnmatch(path, pattern) or fnmatch(_name(path), pattern) for pattern in patterns)
        return named or size > REGULAR_LIMIT or _is_binary(sample)

    # ---- writing; each call is all or nothing, and the caller holds the Hub's lock

    def commit(
        self,
        branch: str,
        operations: Iterable[Operation],
        title: str,
        message: str,
        author: str,
        parent: str | None = None,
        pull_request: bool = False,
    ) -> tuple[Commit, str]:
        """Returns the new commit and the reference that now points at it; `parent` must be the head if it is given."""
        if branch not in self.heads and branch not in self.pulls:
            raise Missing("revision", branch)
        references = self.heads if branch in self.heads else self.pulls
        head = references[branch]
        if parent is not None and parent != head.oid:
            raise Moved(f"{branch} is at {head.oid}")
        commit = Commit((head,), _apply(head.tree, operations), title, message, author)
        if pull_request:
            references, branch = self.pulls, f"refs/pr/{len(self.pulls) + 1}"
        references[branch] = commit
        return commit, branch

    def add_branch(self, name: str, start: str | None) -> None:
        _add(self.heads, name, self.commit_at(start or "main"))

    def add_tag(self, name: str, revision: str) -> None:
        _add(self.tagged, name, self.commit_at(revision))

    def squash(self, branch: str, message: str, author: str) -> None:
        """Replaces a branch's history by one commit of the same files."""
        if branch not in self.heads:
            raise Missing("revision", branch)
        self.heads[branch] = Commit((), self.heads[branch].tree, message, "", author)


def _add(references: dict[str, Commit], name: str, commit: Commit) -> None:
    if not REFERENCE.fullmatch(name) or name.startswith("refs/"):
        raise Invalid(f"Invalid reference name: {name!r}")
    if name in references:
        raise Conflict(f"Reference already exists: {name}")
    references[name] = commit


def _apply(tree: Mapping[str, Blob], operations: Iterable[Operation]) -> dict[str, Blob]:
    after = dict(tree)
    for operation in operations:
        path = operation.path.removesuffix("/") if operation.action == "delete folder" else operation.path
        if path != str(PurePosixPath(path)) or path.startswith("/") or {"..", ".", ".git"} & set(path.split("/")):
            raise Invalid(f"Invalid path: {operation.path!r}")
        inside = [other for other in after if other.startswith(f"{path}/")]
        if operation.action == "add":
            if inside or any(folder in after for folder in _ancestors(path)):
                raise Invalid(f"{path!r} would be both a file and a folder")
            after[path] = operation.blob
        elif operation.action == "delete file":
            if path not in after:
                raise Missing("deleted entry", path)
            del after[path]
        else:
            if not inside:
                raise Missing("deleted entry", path)
            for other in inside:
                del after[other]
    return after


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _ancestors(path: str) -> list[str]:
    return [str(folder) for folder in PurePosixPath(path).parents if str(folder) != "."]


def _is_binary(sample: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)  # the sample may end within a character
    except UnicodeDecodeError:
        return True
    return b"\0" in sample
