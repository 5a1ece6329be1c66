"""A Hub of its own for each test, and clients that can reach nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
from hub.server import HubServer
from huggingface_hub import HfApi, constants

import papo_hub.hub.uploads
from papo_hub.hub import Client

ROOT = Path(__file__).parents[2]
NOWHERE = "http://127.0.0.1:9"  # a proxy that nobody runs: what is not on loopback is refused at once
FENCE = {"http_proxy": NOWHERE, "https_proxy": NOWHERE, "all_proxy": NOWHERE, "no_proxy": "127.0.0.1,localhost"}
FENCE |= {name.upper(): value for name, value in FENCE.items()}


@pytest.fixture
def online(monkeypatch, tmp_path):
    """huggingface_hub, in this process, out of the offline mode of the other tests: with an empty cache and no token of
    its own, without xet, and behind a proxy that leads nowhere. It reads its environment once, at import, and
    everything else uses it offline: hence the constants, which are that environment as read."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in FENCE.items():
        monkeypatch.setenv(name, value)
    home = tmp_path / "hf_home"
    for name, value in {
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_ASSETS_CACHE": str(home / "assets"),
        "HF_XET_CACHE": str(home / "xet"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
    }.items():
        monkeypatch.setattr(constants, name, value)
    huggingface_hub.close_session()  # the next client reads the proxy
    yield
    huggingface_hub.close_session()


@pytest.fixture
def hub(online):
    """A running Hub with accounts alice (`write_token`, `read_token`) and eve (`stranger_token`). A test that provokes
    errors of the server's own must clear `hub.errors`."""
    with HubServer() as server:
        yield server
    assert not server.errors, "\n".join(server.errors)
    assert server.leaks == []


@pytest.fixture
def api(hub) -> HfApi:
    """The unmodified client, as alice."""
    return HfApi(endpoint=hub.url, token=hub.write_token)


@pytest.fixture
def here(hub, monkeypatch):
    """The environment of somebody who is logged in to the Hub."""
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", hub.write_token)
    monkeypatch.setattr(papo_hub.hub.uploads, "Client", lambda: Client(wait=0.01, timeout=5))
    return hub


@pytest.fixture
def elsewhere(hub, tmp_path):
    """Another computer: elsewhere(script | [arguments of python], token=None, home=None, xet=False, check=True,
    **environment) runs python with HF_ENDPOINT set to the Hub and a fresh HF_HOME (or `home`), and returns what it
    printed; `check=False` returns the CompletedProcess whatever its status."""
    homes = iter(range(1000))

    def run(script, token=None, home=None, xet=False, check=True, timeout=120, **environment):
        home = Path(home or tmp_path / f"elsewhere{next(homes)}")
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HF_", "HUGGING", "TRANSFORMERS_")) and not name.lower().endswith("_proxy")
        }
        chosen = {"HF_TOKEN": token} if token else {}
        chosen |= {} if xet else {"HF_HUB_DISABLE_XET": "1"}
        process = subprocess.run(
            [sys.executable, *(["-c", script] if isinstance(script, str) else script)],
            env=inherited
            | FENCE
            | {
                "HF_ENDPOINT": hub.url,
                "HF_HOME": str(home),
                "HF_HUB_DISABLE_TELEMETRY": "1",
                "HF_HUB_DISABLE_PROGRESS_BARS": "1",
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]),
            }
            | chosen
            | {name: str(value) for name, value in environment.items()},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if not check:
            return process
        if process.returncode:
            pytest.fail(f"exit status {process.returncode}\n{process.stdout[-3000:]}\n{process.stderr[-6000:]}")
        return process.stdout

    return run
