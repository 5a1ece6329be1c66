"""Checkpoints to the Hub while training goes on: one at a time, the newest first, never blocking or failing the run."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from papo_hub.checkpoint import OPTIMIZER, STATE, checkpoints
from papo_hub.config import TrainConfig
from papo_hub.hub.client import Client, HubError
from papo_hub.hub.publish import Repository, publish
from papo_hub.hub.run import describe, prepare, push_run
from papo_hub.lora import is_adapter
from papo_hub.modeling.configuration_papo import PERCEPTION_FIELDS
from papo_hub.modeling.modeling_papo import PROVENANCE_KEY

LONGEST = 1800.0  # seconds that a finished run waits for an upload under way
LAST = "last-checkpoint"  # where a repository keeps what training needs to go on, as transformers' Trainer does


class Uploads:
    """What a recipe's hub keys ask for. Without hub_model_id every method does nothing.

    A checkpoint is taken as hard links, so that the rotation may delete it meanwhile; one that is still waiting when a
    newer one arrives is passed over. A push that fails is reported and forgotten: the next one brings everything.

    Args:
        run: the run folder. say: gets a line for what was pushed and what was not.
        client: by default made by the uploading thread from the account that is logged in.
    """

    def __init__(
        self, run: Path, config: TrainConfig, say: Callable[[str], None], client: Client | None = None
    ) -> None:
        self.run, self.config, self.say, self.client = run, config, say, client
        self.branch = config.hub_revision or "main"
        self.folder = run / "uploads"
        self._waiting: Path | None = None
        self._changed = threading.Condition()
        self._closed = config.hub_model_id is None
        self._thread: threading.Thread | None = None
        if not self._closed:
            # What a run that was killed had staged: its newest checkpoint is still there.
            shutil.rmtree(self.folder, ignore_errors=True)
            self._thread = threading.Thread(target=self._work, name="hub uploads", daemon=True)
            self._thread.start()

    def saved(self, checkpoint: Path) -> None:
        """Push this checkpoint when its turn comes. Returns at once."""
        if self._closed or self.config.hub_strategy == "end":
            return
        try:
            staged = self._stage(checkpoint)
        except OSError as error:
            self.say(f"note: {checkpoint.name} was not pushed: {error}")
            return
        with self._changed:
            passed_over, self._waiting = self._waiting, staged
            self._changed.notify()
        if passed_over is not None:
            shutil.rmtree(passed_over, ignore_errors=True)

    def finish(self) -> None:
        """Push the finished run. Waits for a push under way; one that waits is passed over."""
        if self._thread is None:
            return
        self._stop()
        config, branch = self.config, self.branch
        try:
            if config.hub_strategy == "checkpoint" and (newest := checkpoints(self.run / "checkpoints")):
                shutil.rmtree(self.run / "model" / LAST, ignore_errors=True)
                for file in newest[-1].iterdir():
                    _link(file, self.run / "model" / LAST / file.name)
            version = push_run(
                self.run, config.hub_model_id, revision=branch, private=config.hub_private_repo, client=self.client,
                say=lambda text: None,
            )  # fmt: skip
        except (HubError, OSError) as error:
            again = f"papo-hub push {self.run} {config.hub_model_id}" + (f" --revision {branch}" * (branch != "main"))
            self.say(f"note: the run is complete but was not pushed: {error} Push it with: {again}")
        else:
            self.say(f"pushed to {version.url}")

    def _stop(self) -> None:
        with self._changed:
            self._closed, passed_over, self._waiting = True, self._waiting, None
            self._changed.notify()
        if passed_over is not None:
            shutil.rmtree(passed_over, ignore_errors=True)
        self._thread.join(LONGEST)
        if not self._thread.is_alive():
            shutil.rmtree(self.folder, ignore_errors=True)

    def _work(self) -> None:
        try:
            self.client = self.client or Client()
            Repository(self.client, self.config.hub_model_id).ensure(self.config.hub_private_repo)
        except HubError as error:  # said at the start, when there is time to mend it
            self.say(f"note: hub_model_id: {error}")
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._waiting is not None)
                if self._closed:
                    return
                staged, self._waiting = self._waiting, None
            self._push(staged)

    def _push(self, staged: Path) -> None:
        config = self.config
        try:
            prepare(staged, staged, config.hub_model_id, config.hub_revision)
            publish(
                staged,
                config.hub_model_id,
                branch=self.branch,
                message=describe(staged),
                private=config.hub_private_repo,
                client=self.client,
            )
            self.say(f"pushed {staged.name} to {config.hub_model_id}, {self.branch}")
        except (HubError, OSError, ValueError) as error:
            self.say(f"note: {staged.name} was not pushed, training goes on: {error}")
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    def _stage(self, checkpoint: Path) -> Path:
        """The folder of this version so far: the checkpoint's weights, and the run's records as they are now."""
        staged = self.folder / checkpoint.name
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        training = (OPTIMIZER, STATE)
        for file in checkpoint.iterdir():
            if file.name not in training:
                _link(file, staged / file.name)
            if self.config.hub_strategy == "checkpoint":
                _link(file, staged / LAST / file.name)
        if not is_adapter(checkpoint):  # the weights say how they are trained, as those of a finished run do
            description = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
            description[PROVENANCE_KEY] = {name: getattr(self.config, name) for name in PERCEPTION_FIELDS}
            (staged / "config.json").unlink()
            text = json.dumps(description, indent=2, sort_keys=True)
            (staged / "config.json").write_text(f"{text}\n", encoding="utf-8")
        for name in ("config.yaml", "metrics.jsonl", "evaluation.json", "provenance.json"):
            if (self.run / name).is_file():
                shutil.copyfile(self.run / name, staged / name)
        return staged


def _link(source: Path, target: Path) -> None:
    """The same bytes under another name, without a copy where the file system can."""
    target.parent.mkdir(exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
