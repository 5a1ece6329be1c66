"""Is a card fit to be pushed? Its front matter, its links and what it must not hold, checked without a network."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.repocard_data import model_index_to_eval_results
from markdown_it import MarkdownIt

from papo_hub.card.escape import FOLDER, plain
from papo_hub.redaction import TOKEN

# Of huggingface.co/docs/hub/repositories-licenses.
_LICENSES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl
lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0
openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma unknown other
"""
LICENSES = frozenset(_LICENSES.split())
NO_BASE = "no `base_model` is stated"  # what a model card says in its body where its base has no id on the Hub
REQUIRED = {
    "model": ("license", "library_name", "pipeline_tag", "tags"),
    "dataset": ("license", "task_categories", "pretty_name"),
}


def check_card(path: Path, repo_type: Literal["model", "dataset"] = "model") -> list[str]:
    """What is wrong with the card at `path`, in plain words; an empty list where nothing is.

    Its front matter must parse, have the fields of its kind (a model: also `base_model`, or the words of `NO_BASE` in
    the body; a dataset: also `configs` or `dataset_info`), a licence that the Hub knows (`other` with its name and link),
    well-formed repository ids and a model-index that huggingface_hub reads. Every link and picture, in Markdown or HTML,
    must be a file beside the card or a well-formed https URL. Nothing may read like an access token or a folder of a
    machine; no message repeats one. Links are followed into `path`'s folder, nowhere else.
    """
    path = Path(path)
    if not path.is_file():
        return [f"there is no card at {plain(path)}"]
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ["the card is not UTF-8 text"]
    block = REGEX_YAML_BLOCK.search(content)
    body = content[block.end() :] if block else content
    problems = [*_held(content), *(f"{problem} (in the body)" for problem in _links(body, path.parent))]
    if block is None:
        return ["the card has no front matter: YAML between two lines of ---", *problems]
    try:
        data = yaml.safe_load(block[2])
    except (yaml.YAMLError, ValueError) as error:
        reason = getattr(error, "problem", None) or "a value that is none"
        return [f"the front matter is not YAML: {plain(reason)}", *problems]
    if not isinstance(data, dict):
        return ["the front matter must hold `key: value` lines", *problems]
    return [*_front_matter(data, body, path.parent, repo_type), *problems]


def _front_matter(data: dict[str, Any], body: str, folder: Path, repo_type: str) -> Iterator[str]:
    for name in REQUIRED[repo_type]:
        if not data.get(name):
            yield f"the front matter lacks {name}"
    if repo_type == "dataset" and not (data.get("configs") or data.get("dataset_info")):
        yield "the front matter lacks configs (which files make a split) or dataset_info (the features)"
    if repo_type == "model" and not data.get("base_model") and NO_BASE not in body:
        yield f"the front matter lacks base_model; where it has no id on the Hub, the body must say so: {NO_BASE}"
    for name in ("library_name", "pipeline_tag", "pretty_name"):
        if not isinstance(data.get(name, ""), str):
            yield f"{name} must be text"
    for name in ("tags", "task_categories", "metrics"):
        if not all(isinstance(item, str) for item in _items(data.get(name))):
            yield f"{name} must be a list of words"
    for name in ("base_model", "datasets"):
        for item in _items(data.get(name)):
            if not _names_a_repository(item):
                yield f"{name} must be OWNER/NAME on the Hub, got {plain(item)}"
    yield from _license(data, folder)
    if "model-index" in data:
        yield from _model_index(data["model-index"])


def _license(data: dict[str, Any], folder: Path) -> Iterator[str]:
    for license in _items(data.get("license")):
        if license not in LICENSES:
            yield f"license: {plain(license)} is none that the Hub knows; write other, with license_name and license_link"
    if "other" in _items(data.get("license")):
        if not isinstance(data.get("license_name"), str) or not data["license_name"]:
            yield "license: other needs license_name"
        if not isinstance(data.get("license_link"), str):
            yield "license: other needs license_link, an https URL or a file beside the card"
        elif problem := _target(data["license_link"], folder):
            yield f"license_link: {problem}"


def _model_index(index: Any) -> Iterator[str]:
    try:
        name, results = model_index_to_eval_results(index)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        yield f"model-index cannot be read: {type(error).__name__} {plain(error)}"
        return
    if not isinstance(name, str) or not name:
        yield "model-index lacks the model's name"
    if not results:
        yield "model-index holds no result; leave it out"
    for result in results:
        value = result.metric_value
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            yield f"model-index: {plain(result.metric_name or result.metric_type)} has no finite number as its value"


def _names_a_repository(value: Any) -> bool:
    """OWNER/NAME; the Hub's oldest repositories have no owner."""
    pattern = r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9_][\w.-]*"
    return isinstance(value, str) and len(value) <= 96 and re.fullmatch(pattern, value, re.ASCII) is not None


def _items(value: Any) -> list[Any]:
    """A list as it is, nothing as an empty one, anything else as its only item."""
    return value if isinstance(value, list) else [] if value is None else [value]


def _held(content: str) -> Iterator[str]:
    """Tokens and folders, also those written with character references."""
    for number, line in enumerate(content.splitlines(), 1):
        line = html.unescape(line)
        if TOKEN.search(line):
            yield f"line {number} holds what reads like an access token: remove it, and revoke it if it is one"
        if FOLDER.search(line):
            yield f"line {number} names a folder of a machine by its absolute path"


# ---------------------------------------------------------------------------------------------------------------- links


def _links(body: str, folder: Path) -> Iterator[str]:
    for target in dict.fromkeys(_targets(body)):
        if problem := _target(target, folder):
            yield problem


def _targets(body: str) -> Iterator[str]:
    """Where the links, pictures and bare addresses of Markdown lead, those of HTML in it included."""
    parser = MarkdownIt("gfm-like", {"linkify": False})
    parser.disable("text_join")  # what is written with character references is no address
    parser.validateLink = lambda url: True  # otherwise `[x](javascript:…)` would pass as plain text
    tokens = parser.parse(body)
    for token in [*tokens, *(child for block in tokens for child in block.children or [])]:
        if token.type == "link_open":
            yield str(token.attrs["href"])
        elif token.type == "image":
            yield str(token.attrs["src"])
        elif token.type in ("html_block", "html_inline"):
            yield from _html_targets(token.content)
        elif token.type == "text":
            for address in re.findall(r"(?:https?://|\bwww\.)[^\s<>]+", token.content, re.IGNORECASE):
                yield address.rstrip(".,;:!?'\")*_")


def _html_targets(source: str) -> list[str]:
    found: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.extend(value or "" for name, value in attrs if name in ("href", "src"))

    reader = Reader()
    reader.feed(source)
    reader.close()
    return found


def _target(target: str, folder: Path) -> str | None:
    """Why a link cannot stay; None where it can."""
    shown = plain(target) or "an empty link"
    try:
        parts = urlsplit(target)
        host, _ = parts.hostname, parts.port  # either raises where it is none
    except ValueError:
        return f"{shown} is not a well-formed URL"
    if parts.scheme == "https":
        named = re.fullmatch(r"([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)+[a-z][a-z0-9-]*[a-z0-9]", host or "")
        fine = named and parts.username is None and not re.search(r"[\s\\]", target)
        return None if fine else f"{shown} is not a well-formed URL"
    if parts.scheme or parts.netloc or target.lower().startswith("www."):
        return f"{shown} is neither an https URL nor a relative path"
    name = unquote(parts.path)
    if not name:
        return None if parts.fragment else "a link leads nowhere"
    if name.startswith("/") or "\\" in name or not name.isprintable():
        return f"{shown} is no relative path"
    file = (folder / name).resolve()
    if not file.is_relative_to(folder.resolve()):
        return f"{shown} leaves the folder of the card"
    return None if file.exists() else f"{shown} is not beside the card"
