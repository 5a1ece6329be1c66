"""Large files by xet: chunks packed into xorbs, files described by shards (https://huggingface.co/docs/xet).

A xorb is a row of chunks, each behind 8 bytes: version, size as stored (3 bytes), compression, size unpacked (3 bytes). A
shard lists, for each file, which chunks of which xorbs it consists of, in records of 48 bytes. All integers are
little-endian. A file is put together as soon as its shard arrives, so that its sha256 is checked here and a client
without xet can download it. Names of chunks and xorbs (a keyed BLAKE3) are taken as the client gives them.
"""

from __future__ import annotations

import secrets
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import lz4.frame
from hub.storage import Blob, Repository
from hub.transport import Refusal, Request, Response, Routes, answer, asked_range, content

if TYPE_CHECKING:
    from hub.server import HubServer

hub_routes = Routes()
storage_routes = Routes()

SHARD_TAG = b"HFRepoMetaData\0" + bytes(
    [85, 105, 103, 69, 106, 123, 129, 87, 131, 165, 189, 217, 92, 205, 209, 74, 169]
)
RECORD = struct.Struct("<32s4I")  # of a shard: a name and what it needs
VERIFIED, WITH_SHA256 = 1 << 31, 1 << 30  # flags of a file in a shard
LIFETIME = 3600  # seconds that a token lives


class Term(NamedTuple):
    """Chunks start to end (exclusive) of a xorb, which unpack to `size` bytes."""

    xorb: str
    start: int
    end: int
    size: int


class Access(NamedTuple):
    """What a token of the store is good for."""

    repo: Repository
    write: bool


@dataclass
class Xorb:
    data: bytes
    offsets: list[int]  # of the chunks in `data`, and where the last one ends
    chunks: list[bytes]  # unpacked


class ContentStore:
    def __init__(self) -> None:
        self.tokens: dict[str, Access] = {}
        self.xorbs: dict[str, Xorb] = {}
        self.files: dict[str, list[Term]] = {}

    def access(self, request: Request, write: bool) -> Access:
        access = self.tokens.get(request.bearer or "")
        if access is None:
            raise Refusal(401, "Invalid xet token")
        if write and not access.write:
            raise Refusal(403, "This xet token only reads")
        return access

    def assembled(self, terms: list[Term]) -> bytes:
        pieces = []
        for term in terms:
            xorb = self.xorbs.get(term.xorb)
            if xorb is None or not 0 <= term.start < term.end <= len(xorb.chunks):
                raise Refusal(400, f"No chunks {term.start} to {term.end} of xorb {term.xorb}")
            pieces.append(b"".join(xorb.chunks[term.start : term.end]))
            if len(pieces[-1]) != term.size:
                raise Refusal(400, f"Those chunks have {len(pieces[-1])} bytes, not {term.size}")
        return b"".join(pieces)


# ---- the formats


def name_of(hash: bytes) -> str:
    """How 32 bytes are written: as four 64-bit integers in hex."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", hash))


def unpack(data: bytes) -> Xorb:
    """Reads a xorb; an optional table of contents behind the chunks is skipped. ValueError for anything else."""
    offsets, chunks, place = [0], [], 0
    while place < len(data) and data[place : place + 7] != b"XETBLOB":
        if place + 8 > len(data) or data[place] != 0:
            raise ValueError(f"no chunk at byte {place}")
        packed, size = (int.from_bytes(data[at : at + 3], "little") for at in (place + 1, place + 5))
        chunk = _inflate(data[place + 4], data[place + 8 : place + 8 + packed])
        place += 8 + packed
        if place > len(data) or len(chunk) != size:
            raise ValueError(f"chunk {len(chunks)} has {len(chunk)} bytes, not {size}")
        offsets.append(place)
        chunks.append(chunk)
    return Xorb(data, offsets, chunks)


def _inflate(scheme: int, data: bytes) -> bytes:
    if scheme == 0:
        return data
    if scheme not in (1, 2):
        raise ValueError(f"unknown compression {scheme}")
    try:
        plain = lz4.frame.decompress(data)
    except RuntimeError as error:
        raise ValueError(str(error)) from None
    if scheme == 1:
        return plain
    whole, start = bytearray(len(plain)), 0  # byte i of each group of four came to lie in part i
    for part in range(4):
        end = start + len(range(part, len(plain), 4))
        whole[part::4] = plain[start:end]
        start = end
    return bytes(whole)


def files_of(shard: bytes) -> Iterator[tuple[str, str | None, list[Term]]]:
    """The name, the sha256 if it is told, and the terms of each file of a shard. ValueError for anything else."""
    if shard[:32] != SHARD_TAG or struct.unpack_from("<Q", shard, 32)[0] != 2:
        raise ValueError("no shard of version 2")
    body = shard[RECORD.size :]
    records = RECORD.iter_unpack(body[: len(body) // RECORD.size * RECORD.size])

    def take(count: int) -> list[tuple]:
        if len(taken := list(islice(records, count))) < count:
            raise ValueError("the list of files has no end")
        return taken

    while (head := take(1)[0])[0] != b"\xff" * 32:
        name, flags, count, *_ = head
        terms = [Term(name_of(xorb), start, end, size) for xorb, _, size, start, end in take(count)]
        if flags & VERIFIED:
            take(count)
        sha256 = name_of(take(1)[0][0]) if flags & WITH_SHA256 else None
        yield name_of(name), sha256, terms


# ---- the Hub's part: tokens


@hub_routes("GET", "/api/{type}s/{id}/xet-{scope}-token/{rev}")
def token(hub: HubServer, request: Request, type: str, id: str, scope: str, rev: str) -> Response:
    write = scope == "write"
    access = Access(hub.open(request, type, id, write=write, files=True), write)
    name, expiration = f"xet_{secrets.token_hex(16)}", int(time.time()) + LIFETIME
    hub.xet.tokens[name] = access
    return answer(
        {"accessToken": name, "exp": expiration, "casUrl": hub.storage_url},
        headers={
            "X-Xet-Cas-Url": hub.storage_url,
            "X-Xet-Access-Token": name,
            "X-Xet-Token-Expiration": str(expiration),
        },
    )


# ---- the store's part


@storage_routes("POST", "/v1/xorbs/default/{hash}")
def put_xorb(hub: HubServer, request: Request, hash: str) -> Response:
    hub.xet.access(request, write=True)
    try:
        xorb = unpack(request.body)
    except ValueError as error:
        raise Refusal(400, f"Malformed xorb: {error}") from None
    inserted = hash not in hub.xet.xorbs
    hub.xet.xorbs.setdefault(hash, xorb)
    return answer({"was_inserted": inserted})


@storage_routes("POST", "/v1/shards")
def put_shard(hub: HubServer, request: Request) -> Response:
    """Every file of a shard is checked before any is kept."""
    access = hub.xet.access(request, write=True)
    try:
        files = list(files_of(request.body))
    except ValueError as error:
        raise Refusal(400, f"Malformed shard: {error}") from None
    arrived = [(name, sha256, terms, hub.xet.assembled(terms)) for name, sha256, terms in files]
    blobs = [Blob(data, lfs=True, xet=name) for name, _, _, data in arrived]
    for blob, (name, sha256, _, _) in zip(blobs, arrived, strict=True):
        if sha256 not in (None, blob.sha256):
            raise Refusal(400, f"File {name} is {blob.sha256}, not {sha256}")
    for blob, (name, _, terms, _) in zip(blobs, arrived, strict=True):
        hub.xet.files[name] = terms
        access.repo.objects[blob.sha256] = blob
    return answer({"result": 1})


@storage_routes("GET", "/v1/reconstructions/{hash}")
def reconstruction(hub: HubServer, request: Request, hash: str) -> Response:
    """Where the chunks of a file lie, or of the range of bytes that is asked for."""
    hub.xet.access(request, write=False)
    if (terms := hub.xet.files.get(hash)) is None:
        raise Refusal(404, "No such file")
    size = sum(term.size for term in terms)
    asked = asked_range(request, size) or range(size)
    chosen, fetch, place, skipped = [], {}, 0, 0
    for term in terms:
        if place < asked.stop and place + term.size > asked.start:
            skipped = skipped if chosen else asked.start - place
            chosen.append(term)
        place += term.size
    for term in dict.fromkeys(chosen):
        offsets = hub.xet.xorbs[term.xorb].offsets
        fetch.setdefault(term.xorb, []).append(
            {
                "range": {"start": term.start, "end": term.end},
                "url": hub.sign(f"/xorbs/{term.xorb}"),
                "url_range": {"start": offsets[term.start], "end": offsets[term.end] - 1},
            }
        )
    listed = [
        {"hash": term.xorb, "unpacked_length": term.size, "range": {"start": term.start, "end": term.end}}
        for term in chosen
    ]
    return answer({"offset_into_first_range": skipped, "terms": listed, "fetch_info": fetch})


@storage_routes("GET", "/xorbs/{hash}")
def get_xorb(hub: HubServer, request: Request, hash: str) -> Response:
    hub.check_signature(request)
    return content(request, hub.xet.xorbs[hash].data, {"ETag": f'"{hash}"'})


@storage_routes("POST", "/v1/telemetry")
def telemetry(hub: HubServer, request: Request) -> Response:
    return answer({})


@storage_routes("GET", "/v1/chunks/{path}")
@storage_routes("POST", "/v1/xorb-grants/{path}")
@storage_routes("GET", "/v2/{path}")
@storage_routes("POST", "/v2/{path}")
def absent(hub: HubServer, request: Request, **parts: str) -> Response:
    """What a client asks for and does without: the chunks that others uploaded, the second version of this protocol."""
    raise Refusal(404, "Not found")
