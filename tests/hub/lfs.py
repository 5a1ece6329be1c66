"""Large files by git LFS: the batch endpoint on the Hub's port, the transfer itself on the storage port.

Nothing is taken on trust: what arrives must have the size and the sha256 that it was announced with.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hub.storage import Blob, Repository
from hub.transport import Refusal, Request, Response, Routes, answer, check, content

if TYPE_CHECKING:
    from hub.server import HubServer

hub_routes = Routes()
storage_routes = Routes()

TYPES = {"": "model", "datasets/": "dataset", "spaces/": "space"}


@dataclass
class Upload:
    """A file that comes in parts."""

    repo: Repository
    sha256: str
    size: int
    part_size: int
    parts: dict[int, bytes] = field(default_factory=dict)


@hub_routes("POST", "/{prefix}{id}.git/info/lfs/objects/batch")
def batch(hub: HubServer, request: Request, prefix: str, id: str) -> Response:
    """Where each object goes; one that is there already gets no actions."""
    repo = hub.open(request, TYPES[prefix], id, write=True)
    body = request.json(operation=str, objects=list, hash_algo=str)
    if (body["operation"], body["hash_algo"]) != ("upload", "sha256"):
        raise Refusal(400, "Only uploads named by sha256 are served")
    objects = []
    for entry in body["objects"]:
        check(entry, oid=str, size=int)
        oid, size = entry["oid"], entry["size"]
        if not re.fullmatch("[0-9a-f]{64}", oid) or size < 0:
            raise Refusal(400, f"Invalid object: {entry}")
        if oid in repo.objects:
            objects.append({"oid": oid, "size": size})
            continue
        verify = {"href": f"{hub.url}/{prefix}{id}.git/info/lfs/objects/verify"}
        if hub.part_size and size > hub.part_size and "multipart" in body.get("transfers", []):
            upload = _parts(hub, Upload(repo, oid, size, hub.part_size))
        else:
            upload = {"href": hub.sign(f"/lfs/{repo.type}/{repo.id}/{oid}/{size}")}
        objects.append({"oid": oid, "size": size, "actions": {"upload": upload, "verify": verify}})
    return answer({"transfer": "multipart" if hub.part_size else "basic", "objects": objects})


def _parts(hub: HubServer, upload: Upload) -> dict:
    name = secrets.token_hex(8)
    hub.uploads[name] = upload
    count = -(-upload.size // upload.part_size)
    urls = {f"{number:05d}": hub.sign(f"/parts/{name}/{number}") for number in range(1, count + 1)}
    return {
        "href": f"{hub.url}/api/complete_multipart?upload={name}",
        "header": {"chunk_size": str(upload.part_size)} | urls,
    }


@hub_routes("POST", "/{prefix}{id}.git/info/lfs/objects/verify")
def verify(hub: HubServer, request: Request, prefix: str, id: str) -> Response:
    repo = hub.open(request, TYPES[prefix], id, write=True)
    body = request.json(oid=str, size=int)
    blob = repo.objects.get(body["oid"])
    if blob is None or len(blob.data) != body["size"]:
        raise Refusal(404, f"No object {body['oid']} of {body['size']} bytes has arrived")
    return answer({})


@hub_routes("POST", "/api/complete_multipart")
def complete(hub: HubServer, request: Request) -> Response:
    """Puts the parts together; the address is the secret, as no token comes with it."""
    upload = hub.uploads.get(request.first("upload", ""))
    if upload is None:
        raise Refusal(404, "No such upload")
    body = request.json(oid=str, parts=list)
    announced = {part.get("partNumber"): part.get("etag") for part in body["parts"]}
    arrived = {number: _etag(data) for number, data in sorted(upload.parts.items())}
    if body["oid"] != upload.sha256 or announced != arrived:
        raise Refusal(400, "The parts are not those that were uploaded")
    _store(upload.repo, upload.sha256, upload.size, b"".join(data for _, data in sorted(upload.parts.items())))
    return answer({})


@storage_routes("PUT", "/parts/{name}/{number}")
def part(hub: HubServer, request: Request, name: str, number: str) -> Response:
    hub.check_signature(request)
    upload, number = hub.uploads[name], int(number)
    if len(request.body) != min(upload.part_size, upload.size - (number - 1) * upload.part_size):
        raise Refusal(400, f"Part {number} has {len(request.body)} bytes")
    upload.parts[number] = request.body
    return Response(headers={"ETag": _etag(request.body)})


@storage_routes("PUT", "/lfs/{type}/{id}/{oid}/{size}")
def put(hub: HubServer, request: Request, type: str, id: str, oid: str, size: str) -> Response:
    hub.check_signature(request)
    _store(hub.repositories[type, id], oid, int(size), request.body)
    return Response(headers={"ETag": _etag(request.body)})


@storage_routes("GET", "/lfs/{type}/{id}/{oid}")
def get(hub: HubServer, request: Request, type: str, id: str, oid: str) -> Response:
    hub.check_signature(request)
    return content(request, hub.repositories[type, id].objects[oid].data, {"ETag": f'"{oid}"'})


def download_url(hub: HubServer, repo: Repository, oid: str) -> str:
    return hub.sign(f"/lfs/{repo.type}/{repo.id}/{oid}")


def _store(repo: Repository, oid: str, size: int, data: bytes) -> None:
    if len(data) != size:
        raise Refusal(400, f"{len(data)} bytes arrived where {size} were announced")
    if hashlib.sha256(data).hexdigest() != oid:
        raise Refusal(422, f"The content that arrived is not {oid}")
    repo.objects.setdefault(oid, Blob(data, lfs=True))


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'
