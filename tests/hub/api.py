"""The Hub's own port: accounts, repositories, references, listings, commits and downloads."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, urlencode

import yaml
from hub import lfs
from hub.storage import REGULAR_LIMIT, Blob, Commit, Conflict, Invalid, Missing, Moved, Operation, Repository
from hub.transport import Refusal, Request, Response, Routes, answer, check, content

if TYPE_CHECKING:
    from hub.server import HubServer

PREFIXES = {kind: prefix for prefix, kind in lfs.TYPES.items()}


class _Api(Routes):
    """Routes that answer the store's exceptions as the Hub does."""

    def __call__(self, method: str, path: str, locked: bool = True) -> Callable:
        add = super().__call__(method, path, locked)

        def translated(function: Callable) -> Callable:
            @wraps(function)
            def run(*arguments: Any, **parts: str) -> Response:
                try:
                    return function(*arguments, **parts)
                except Missing as missing:
                    if missing.kind == "revision":
                        raise Refusal(404, f"Invalid rev id: {missing.name}", "RevisionNotFound") from None
                    deleted = f"A file with this name doesn't exist: {missing.name}"
                    message = deleted if missing.kind == "deleted entry" else f"{missing.name} does not exist"
                    raise Refusal(404, message, "EntryNotFound") from None
                except Invalid as error:
                    raise Refusal(400, str(error)) from None
                except Conflict as error:
                    raise Refusal(409, str(error)) from None
                except Moved:
                    raise Refusal(412, "A commit has happened since. Please refresh and try again.") from None

            return add(run)

        return translated


routes = _Api()


# ---- accounts


@routes("GET", "/api/agent-harnesses")
def agents(hub: HubServer, request: Request) -> Response:
    """Which programs the client should recognise itself to run in: none."""
    return answer({"standardEnvVars": [], "harnesses": {}})


@routes("GET", "/api/whoami-v2")
def whoami(hub: HubServer, request: Request) -> Response:
    if (user := hub.user(request)) is None:
        raise Refusal(401, "Invalid username or password.")
    access = {"displayName": "test", "role": user.role}
    if user.role == "fineGrained":
        scopes = [
            {"entity": {"type": repo.type, "name": repo.id}, "permissions": ["repo.content.read", "repo.write"]}
            for repo in hub.repositories.values()
            if repo.id in user.scope
        ]
        access["fineGrained"] = {"canReadGatedRepos": False, "global": [], "scoped": scopes}
    organisations = [
        {"type": "org", "name": name, "fullname": name, "roleInOrg": "write"} for name in hub.accounts[user.account]
    ]
    return answer(
        {
            "type": "user",
            "id": f"id-{user.account}",
            "name": user.account,
            "fullname": user.account,
            "isPro": False,
            "orgs": organisations,
            "auth": {"type": "access_token", "accessToken": access},
        }
    )


@routes("GET", "/api/{type}s/{id}/auth-check")
def auth_check(hub: HubServer, request: Request, type: str, id: str) -> Response:
    hub.open(request, type, id, files=True)
    return answer({})


@routes("GET", "/api/{type}s/{id}/auth-check/write")
def auth_check_write(hub: HubServer, request: Request, type: str, id: str) -> Response:
    hub.open(request, type, id, write=True)
    return answer({})


# ---- repositories


def _named(hub: HubServer, request: Request) -> tuple[dict[str, Any], str, str]:
    """The body of a call about a repository by name, its type, and its namespace."""
    body = request.json(name=str, organization=(str, type(None)))
    kind, user = body.get("type", "model"), hub.user(request)
    if kind not in PREFIXES or not re.fullmatch(r"(?!.*(--|\.\.))[\w](?:[\w.-]{0,94}[\w])?", body["name"]):
        raise Refusal(400, f"Invalid repository: {kind} {body['name']!r}")
    return body, kind, body["organization"] or (user.account if user else "")


def _visible(body: dict[str, Any]) -> bool | None:
    """Whether the body asks for a private repository; None where it says nothing."""
    if "visibility" in body:
        if body["visibility"] not in ("public", "private"):
            raise Refusal(400, f"Invalid visibility: {body['visibility']!r}")
        return body["visibility"] == "private"
    return body.get("private")


@routes("POST", "/api/repos/create")
def create(hub: HubServer, request: Request) -> Response:
    body, kind, namespace = _named(hub, request)
    if kind == "space" and body.get("sdk") not in ("gradio", "streamlit", "docker", "static"):
        raise Refusal(400, f"Invalid sdk: {body.get('sdk')!r}")
    repo_id = f"{namespace}/{body['name']}"
    message = f'You don\'t have the rights to create a {kind} under the namespace "{namespace}"'
    user = hub.writer(request, namespace, repo_id, message)
    url = f"{hub.url}/{PREFIXES[kind]}{repo_id}"
    if (kind, repo_id) in hub.repositories:
        return answer({"error": f"You already created this {kind} repo", "url": url}, 409)
    repo = Repository(repo_id, kind, user.account, private=bool(_visible(body)))
    hub.repositories[kind, repo_id] = repo
    return answer({"url": url, "name": repo_id, "id": f"id-{repo_id}"})


@routes("DELETE", "/api/repos/delete")
def delete(hub: HubServer, request: Request) -> Response:
    body, kind, namespace = _named(hub, request)
    repo = hub.open(request, kind, f"{namespace}/{body['name']}", write=True)
    del hub.repositories[kind, repo.id]
    return answer({})


@routes("PUT", "/api/{type}s/{id}/settings")
def settings(hub: HubServer, request: Request, type: str, id: str) -> Response:
    repo, body = hub.open(request, type, id, write=True), request.json()
    if body.get("gated", False) not in ("auto", "manual", False):
        raise Refusal(400, f"Invalid gated: {body['gated']!r}")
    repo.gated = body.get("gated", repo.gated)
    repo.private = repo.private if _visible(body) is None else _visible(body)
    return answer({"private": repo.private, "gated": repo.gated})


@routes("GET", "/api/{type}s")
def repositories(hub: HubServer, request: Request, type: str) -> Response:
    """Those that whoever asks may see, newest change first."""
    author, words = request.first("author"), request.first("search", "")
    seen = []
    for (kind, repo_id), repo in hub.repositories.items():
        if kind == type and author in (None, repo.namespace) and words.lower() in repo_id.lower():
            try:
                seen.append(_info(hub.open(request, kind, repo_id), repo.heads["main"], request))
            except Refusal as refusal:
                if refusal.response.headers.get("X-Error-Code") != "RepoNotFound":
                    raise
    seen.sort(key=lambda info: info["lastModified"], reverse=True)
    return _page(hub, request, seen)


@routes("GET", "/api/{type}s/{id}")
def info(hub: HubServer, request: Request, type: str, id: str) -> Response:
    repo = hub.open(request, type, id)
    return answer(_chosen(request, _info(repo, repo.heads["main"], request)))


@routes("GET", "/api/{type}s/{id}/revision/{rev}")
def revision_info(hub: HubServer, request: Request, type: str, id: str, rev: str) -> Response:
    repo = hub.open(request, type, id)
    return answer(_chosen(request, _info(repo, repo.commit_at(rev), request)))


def _info(repo: Repository, commit: Commit, request: Request) -> dict[str, Any]:
    siblings = []
    for path, blob in sorted(commit.tree.items()):
        sibling: dict[str, Any] = {"rfilename": path}
        if request.first("blobs"):
            sibling |= {"size": len(blob.data), "blobId": blob.oid}
            if blob.lfs:
                sibling["lfs"] = {"sha256": blob.sha256, "size": len(blob.data), "pointerSize": len(blob.pointer)}
        siblings.append(sibling)
    card = commit.tree.get("README.md")
    metadata, _ = _front_matter(card.data.decode(errors="replace")) if card else (None, None)
    tags = metadata.get("tags") if metadata else None
    return {
        "_id": f"id-{repo.id}",
        "id": repo.id,
        "author": repo.namespace,
        "sha": commit.oid,
        "lastModified": commit.date,
        "createdAt": list(repo.heads["main"].log())[-1].date,
        "private": repo.private,
        "gated": repo.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": tags if isinstance(tags, list) else [],
        "cardData": metadata or {},
        "siblings": siblings,
    }


def _chosen(request: Request, info: dict[str, Any]) -> dict[str, Any]:
    """What `expand` names, or everything."""
    wanted = request.query.get("expand", []) + request.query.get("expand[]", [])
    return {name: info[name] for name in ("_id", "id", *wanted) if name in info} if wanted else info


# ---- references


@routes("GET", "/api/{type}s/{id}/refs")
def refs(hub: HubServer, request: Request, type: str, id: str) -> Response:
    repo = hub.open(request, type, id)

    def listed(oids: dict[str, str], under: str) -> list[dict[str, str]]:
        return [{"name": name, "ref": under + name, "targetCommit": oid} for name, oid in oids.items()]

    found = {"branches": listed(repo.branches, "refs/heads/"), "tags": listed(repo.tags, "refs/tags/"), "converts": []}
    if request.first("include_prs"):
        found["pullRequests"] = listed({name: commit.oid for name, commit in repo.pulls.items()}, "")
    return answer(found)


@routes("GET", "/api/{type}s/{id}/commits/{rev}")
def commits(hub: HubServer, request: Request, type: str, id: str, rev: str) -> Response:
    repo = hub.open(request, type, id)
    log = [
        {
            "id": commit.oid,
            "title": commit.title,
            "message": commit.message,
            "date": commit.date,
            "authors": [{"user": commit.author}],
        }
        for commit in repo.commit_at(rev).log()
    ]
    return _page(hub, request, log)


@routes("POST", "/api/{type}s/{id}/branch/{rev}")
def add_branch(hub: HubServer, request: Request, type: str, id: str, rev: str) -> Response:
    hub.open(request, type, id, write=True).add_branch(rev, request.json().get("startingPoint"))
    return answer({})


@routes("DELETE", "/api/{type}s/{id}/branch/{rev}")
def delete_branch(hub: HubServer, request: Request, type: str, id: str, rev: str) -> Response:
    repo = hub.open(request, type, id, write=True)
    if rev == "main":
        raise Refusal(403, "Cannot delete the default branch")
    if repo.heads.pop(rev, None) is None:
        raise Missing("revision", rev)
    return answer({})


@routes("POST", "/api/{type}s/{id}/tag/{rev}")
def add_tag(hub: HubServer, request: Request, type: str, id: str, rev: str) -> Response:
    hub.open(request, type, id, write=True).add_tag(request.json(tag=str)["tag"], rev)
    return answer({})


@routes("DELETE", "/api/{type}s/{id}/tag/{rev}")
def delete_tag(hub: HubServer, request: Request, type: str, id: str, rev: str) -> Response:
    if hub.open(request, type, id, write=True).tagged.pop(rev, None) is None:
        raise Missing("revision", rev)
    return answer({})


@routes("POST", "/api/{type}s/{id}/super-squash/{rev}")
def squash(hub: HubServer, request: Request, type: str, id: str, rev: str) -> Response:
    repo = hub.open(request, type, id, write=True)
    repo.squash(rev, request.json(message=str)["message"], hub.user(request).account)
    return answer({})


# ---- listings


def _page(hub: HubServer, request: Request, entries: list) -> Response:
    """One page of a listing, with the address of the next in Link."""
    size = min(int(request.first("limit", str(hub.page_size))), hub.page_size)
    start = int(request.first("cursor", "0"))
    headers = {}
    if start + size < len(entries):
        query = request.query | {"cursor": [str(start + size)]}
        headers["Link"] = f'<{hub.url}{request.path}?{urlencode(query, doseq=True)}>; rel="next"'
    return answer(entries[start : start + size], headers=headers)


def _entry(commit: Commit, path: str, expand: bool) -> dict[str, Any]:
    """A file or folder of a listing; `path` must exist."""
    if path in commit.tree:
        blob = commit.tree[path]
        entry = {"type": "file", "oid": blob.oid, "size": len(blob.data), "path": path}
        if blob.lfs:
            entry["lfs"] = {"oid": blob.sha256, "size": len(blob.data), "pointerSize": len(blob.pointer)}
        if blob.xet:
            entry["xetHash"] = blob.xet
    else:
        entry = {"type": "directory", "oid": commit.folders[path], "size": 0, "path": path}
    if expand:
        last = commit.last_change(path)
        entry["lastCommit"] = {"id": last.oid, "title": last.title, "date": last.date}
    return entry


def _flag(value: str | None) -> bool:
    return value is not None and value.lower() in ("1", "true")


@routes("GET", "/api/{type}s/{id}/tree/{rev}")
@routes("GET", "/api/{type}s/{id}/tree/{rev}/{path}")
def tree(hub: HubServer, request: Request, type: str, id: str, rev: str, path: str = "") -> Response:
    commit = hub.open(request, type, id).commit_at(rev)
    path = path.removesuffix("/")
    if path not in commit.folders:
        raise Missing("entry", path)
    inside = [name for name in (*commit.tree, *commit.folders) if name and name.startswith(f"{path}/" if path else "")]
    if not _flag(request.first("recursive")):
        depth = path.count("/") + 1 if path else 0
        inside = [name for name in inside if name.count("/") == depth]
    expand = _flag(request.first("expand"))
    return _page(hub, request, [_entry(commit, name, expand) for name in sorted(inside)])


@routes("POST", "/api/{type}s/{id}/paths-info/{rev}")
def paths_info(hub: HubServer, request: Request, type: str, id: str, rev: str) -> Response:
    commit = hub.open(request, type, id).commit_at(rev)
    form = parse_qs(request.body.decode(), keep_blank_values=True)
    if "paths" not in form:
        raise Refusal(400, 'Invalid "paths"')
    paths = [path for path in form["paths"] if path in commit.tree or (path and path in commit.folders)]
    return answer([_entry(commit, path, _flag(form.get("expand", [None])[0])) for path in paths])


# ---- downloads


@routes("GET", "/{prefix}{id}/resolve/{rev}/{path}")
def resolve(hub: HubServer, request: Request, prefix: str, id: str, rev: str, path: str) -> Response:
    """A regular file comes from here; a large one from the storage, where the answer redirects to."""
    repo = hub.open(request, lfs.TYPES[prefix], id, files=True)
    commit = repo.commit_at(rev)
    if (blob := commit.tree.get(path)) is None:
        raise Refusal(404, "Entry not found", "EntryNotFound", X_Repo_Commit=commit.oid)
    headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{blob.etag}"'}
    if not blob.lfs:
        return content(request, blob.data, headers)
    headers |= {"X-Linked-ETag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.data))}
    if blob.xet:
        auth = f"{hub.url}/api/{repo.type}s/{repo.id}/xet-read-token/{quote(rev, safe='')}"
        headers |= {"X-Xet-Hash": blob.xet, "Link": f'<{auth}>; rel="xet-auth"'}
    return Response(b"", 302, headers | {"Location": lfs.download_url(hub, repo, blob.sha256)})


# ---- uploads


@routes("POST", "/api/{type}s/{id}/preupload/{rev}")
def preupload(hub: HubServer, request: Request, type: str, id: str, rev: str) -> Response:
    """How each file is to be sent, and what stands in its place now."""
    repo, files = hub.open(request, type, id, write=True), request.json(files=list)["files"]
    commit = repo.commit_at(rev)
    if len(files) > 256:
        raise Refusal(400, f"{len(files)} files in one call; 256 at most")
    answers = []
    for file in files:
        check(file, path=str, sample=str, size=int)
        large = repo.is_large(file["path"], file["size"], _decoded(file["sample"]))
        entry = {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        if file["path"] in commit.tree:
            entry["oid"] = commit.tree[file["path"]].etag
        answers.append(entry)
    return answer({"files": answers})


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise Refusal(400, f"Not base64: {error}") from None


def _operation(repo: Repository, key: str, value: dict[str, Any]) -> Operation:
    check(value, path=str)
    path = value["path"]
    if key == "file":
        check(value, content=str)
        if value.get("encoding") != "base64":
            raise Refusal(400, f'Invalid "encoding": {value.get("encoding")!r}')
        blob = Blob(_decoded(value["content"]))
        if len(blob.data) > REGULAR_LIMIT:
            raise Refusal(400, f"{path} has {len(blob.data)} bytes: send it by git LFS")
        return Operation("add", path, blob)
    if key == "lfsFile":
        check(value, oid=str)
        blob = repo.objects.get(value["oid"])
        if value.get("algo") != "sha256" or blob is None:
            raise Refusal(400, f"LFS pointer pointed to a file that does not exist. Offending file: {path}")
        if value.get("size", len(blob.data)) != len(blob.data):
            raise Refusal(400, f"{path} has {len(blob.data)} bytes, not {value['size']}")
        return Operation("add", path, blob)
    if key == "deletedFile":
        return Operation("delete file", path)
    if key == "deletedFolder":
        return Operation("delete folder", path)
    raise Refusal(400, f"Unknown operation: {key!r}")


@routes("POST", "/api/{type}s/{id}/commit/{rev}", locked=False)
def commit(hub: HubServer, request: Request, type: str, id: str, rev: str) -> Response:
    with hub.lock:
        hook, hub.before_commit = hub.before_commit, None
    if hook is not None:
        hook()
    with hub.lock:
        return _commit(hub, request, hub.open(request, type, id, write=True), rev)


def _commit(hub: HubServer, request: Request, repo: Repository, branch: str) -> Response:
    try:
        lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
    except ValueError as error:
        raise Refusal(400, f"The body is not NDJSON: {error}") from None
    for line in lines:
        check(line, key=str, value=dict)
    if [line["key"] for line in lines].count("header") != 1 or lines[0]["key"] != "header":
        raise Refusal(400, "The first line, and no other, must be the header")
    if len(lines) == 1:
        raise Refusal(400, "The commit is empty")
    header = lines[0]["value"]
    check(header, summary=str, description=(str, type(None)))
    if not header["summary"].strip():
        raise Refusal(400, "The summary is empty")
    operations = [_operation(repo, line["key"], line["value"]) for line in lines[1:]]
    made, reference = repo.commit(
        branch,
        operations,
        header["summary"],
        header["description"] or "",
        author=hub.user(request).account,
        parent=header.get("parentCommit"),
        pull_request=_flag(request.first("create_pr")),
    )
    home = f"{hub.url}/{PREFIXES[repo.type]}{repo.id}"
    result = {"success": True, "commitOid": made.oid, "commitUrl": f"{home}/commit/{made.oid}", "hookOutput": ""}
    if reference != branch:
        result["pullRequestUrl"] = f"{home}/discussions/{reference.rpartition('/')[2]}"
    return answer(result)


@routes("POST", "/api/validate-yaml")
def validate_yaml(hub: HubServer, request: Request) -> Response:
    """The metadata at the head of a card."""
    metadata, error = _front_matter(request.json(content=str, repoType=(str, type(None)))["content"])
    errors = [error] if error else list(_complaints(metadata or {}))
    warnings = [] if metadata or errors else ["empty or missing yaml metadata in repo card"]
    found = {"errors": [{"message": line} for line in errors], "warnings": [{"message": line} for line in warnings]}
    return answer(found, 400 if errors else 200)


def _front_matter(text: str) -> tuple[dict[str, Any] | None, str | None]:
    """The metadata between the card's first two lines of dashes, or what is wrong with it."""
    match = re.match(r"\ufeff?---[ \t]*\r?\n(.*?)(?:\r?\n)?^---[ \t]*\r?$", text, re.DOTALL | re.MULTILINE)
    if match is None:
        return None, None
    try:
        metadata = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        return None, f"Invalid YAML: {error}"
    if metadata is not None and not isinstance(metadata, dict):
        return None, "The YAML metadata must be a mapping"
    return json.loads(json.dumps(metadata, default=str)), None  # a date becomes the text that it was


def _complaints(metadata: dict[str, Any]):
    """What the Hub would refuse in well-formed metadata: names and model-index."""
    for name in ("license", "language", "tags", "datasets", "base_model", "metrics"):
        values = metadata.get(name, [])
        if any(not isinstance(value, str) for value in (values if isinstance(values, list) else [values])):
            yield f'"{name}" must be a string or an array of strings'
    models = metadata.get("model-index", [])
    if not isinstance(models, list):
        yield '"model-index" must be an array'
        return
    for m, model in enumerate(models):
        yield from _lacks(model, f"model-index[{m}]", name=str, results=list)
        for r, result in enumerate(model.get("results") or [] if isinstance(model, dict) else []):
            place = f"model-index[{m}].results[{r}]"
            yield from _lacks(result, place, task=dict, metrics=list)
            if not isinstance(result, dict):
                continue
            yield from _lacks(result.get("task"), f"{place}.task", type=str)
            if "dataset" in result:
                yield from _lacks(result["dataset"], f"{place}.dataset", type=str, name=str)
            for k, metric in enumerate(result.get("metrics") or []):
                yield from _lacks(metric, f"{place}.metrics[{k}]", type=str, value=object)


def _lacks(value: Any, place: str, /, **shape: type):
    for name, kind in shape.items():
        if not isinstance(value, dict) or not isinstance(value.get(name), kind) or value.get(name) is None:
            yield f'"{place}.{name}" is required'
