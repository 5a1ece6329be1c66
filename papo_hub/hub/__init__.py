"""The Hub: versions of runs and datasets pushed, listed and brought back. Nothing else of papo_hub talks to it."""

from papo_hub.hub.client import Client, HubError
from papo_hub.hub.publish import Version, publish
from papo_hub.hub.resume import fetch_checkpoint
from papo_hub.hub.run import push_run
from papo_hub.hub.uploads import Uploads
from papo_hub.hub.versions import versions

__all__ = [
    "Client",
    "HubError",
    "Uploads",
    "Version",
    "fetch_checkpoint",
    "publish",
    "push_run",
    "versions",
]
