"""One folder → one version on the Hub: a single commit, checked by hash, then a tag on that commit.

At whatever point it is cut short, the branch holds the old version or the complete new one, no tag points to anything
else, and running it again finishes the work: what is there already is recognised by its hashes and not sent twice.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

from papo_hub.hub.client import Client, HubError, status_of
from papo_hub.hub.folder import Item, difference, listing

MOVED = (409, 412)  # somebody else changed the branch meanwhile, or is doing so
MEETINGS = 20  # how often that may happen before it counts as a failure


@dataclass(frozen=True)
class Version:
    """A state of a repository: where it is, and what it took to bring it there."""

    repo_id: str
    repo_type: str
    branch: str
    tag: str | None
    commit: str
    sent: tuple[str, ...]
    removed: tuple[str, ...]
    url: str


@dataclass(frozen=True)
class Repository:
    """A repository as a client sees it; each method has the client's patience, and raises HubError."""

    client: Client
    repo_id: str
    repo_type: str = "model"

    def call(self, what: str, method: str, done: Callable[[], Any] | None = None, **arguments: Any) -> Any:
        """One method of HfApi on this repository; `what` and `done` as in `Client.call`, `what` up to its name."""

        def request() -> Any:
            answer = getattr(self.client.api, method)(repo_id=self.repo_id, repo_type=self.repo_type, **arguments)
            return list(answer) if isinstance(answer, Iterator) else answer  # read pages within the try

        return self.client.call(f"{what} {self.repo_id}", request, done)

    def refs(self) -> tuple[dict[str, str], dict[str, str]]:
        """(branch → commit, tag → commit)."""
        refs = self.call("list the versions of", "list_repo_refs")
        branches, tags = ({ref.name: ref.target_commit for ref in found} for found in (refs.branches, refs.tags))
        return branches, tags

    def held(self, revision: str) -> dict[str, RepoFile]:
        """path → file, of everything in a revision."""
        entries = self.call("list the files of", "list_repo_tree", revision=revision, recursive=True)
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

    def holds(self, items: list[Item], revision: str) -> bool:
        """Whether a revision is this very version."""
        return difference(items, self.held(revision), self.repo_type) == ([], [])

    def ensure(self, private: bool) -> None:
        """Create the repository if there is none. Raises HubError where it is public and should be private."""

        def create() -> Any:
            try:
                return self.client.api.repo_info(self.repo_id, repo_type=self.repo_type)
            except RepositoryNotFoundError as error:
                if status_of(error) == 401 or type(error) is not RepositoryNotFoundError:  # a bad token; a gated one
                    raise
            self.client.api.create_repo(self.repo_id, repo_type=self.repo_type, private=private, exist_ok=True)
            return self.client.api.repo_info(self.repo_id, repo_type=self.repo_type)

        info = self.client.call(f"find or create the repository {self.repo_id}", create)
        if private and info.private is False:
            raise HubError(
                f"{self.repo_id} exists and is public, so nothing was sent. Make it private in its settings, "
                "choose another name, or leave out --private."
            )


def publish(
    folder: Path,
    repo_id: str,
    *,
    repo_type: str = "model",
    branch: str = "main",
    tag: str | None = None,
    message: str = "A new version",
    private: bool = False,
    client: Client | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Version:
    """Make `folder`, as it lies there, the newest version of a branch, and tag it.

    Args:
        repo_id: OWNER/NAME; created where it does not exist, `private` or not.
        branch: created from main where it does not exist.
        tag: never moved: one that exists with the same files is left as it is, with others it is refused.
        message: the commit's.
        say: gets a line for each stage.

    Raises:
        HubError: what prevented it, and the next step. The branch then is what it was, or already the new version.
    """
    client = client or Client()
    if client.token is None:
        raise HubError("There is no token to push with. Log in with `hf auth login`, or set HF_TOKEN.")
    for name in filter(None, (branch, tag)):
        if not re.fullmatch(r"(?!.*(\.\.|//|@\{))[\w][\w./+-]*(?<![./])", name, re.ASCII):
            raise HubError(f"{name!r} cannot name a branch or a tag; write letters, digits, '.', '-', '_', as in v1.0.")
    if tag == branch:
        raise HubError(f"A tag and a branch of the same name, {tag}, could not be told apart; choose another --tag.")
    if (size := sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())) > 1e9:
        say(f"hashing {size / 1e9:,.1f} GB")
    items = listing(folder, client.token)
    repository = Repository(client, repo_id, repo_type)
    repository.ensure(private)
    branches, tags = repository.refs()
    if tag in tags and not repository.holds(items, tags[tag]):
        raise HubError(
            f"{repo_id} has a tag {tag} already, on other files (commit {tags[tag][:10]}), and a tag that people may have "
            f"cited is not moved. Push under another one, for example --tag {_next(tag, tags)}; leave out --tag to push "
            f"to the branch alone; or delete the old one on purpose: hf repos tag delete {repo_id} {tag}"
            f"{'' if repo_type == 'model' else f' --type {repo_type}'}."
        )
    if tag in tags and branch in branches:  # the branch may have gone on since
        say(f"{repo_id} holds this version already, as {tag}")
        return _version(repository, branch, tag, tags[tag], [], [])
    if branch not in branches and branch != "main":
        repository.call(f"create the branch {branch} of", "create_branch", branch=branch, exist_ok=True)
        branches, _ = repository.refs()

    commit, sent, removed = _commit(repository, items, branch, branches.get(branch), message, say)
    wrong, stale = difference(items, repository.held(commit), repo_type)
    if wrong or stale:
        names = ", ".join([*(item.path for item in wrong), *stale])
        raise HubError(
            f"What {repo_id} holds at {commit} is not what lies in {folder}: {names} differ"
            f"{'; it was not tagged' if tag else ''}. Run the same command again."
        )
    say(f"checked: the Hub holds the same {len(items)} files, by hash")
    if tag is not None:
        _tag(repository, tag, commit, items)
        say(f"tagged {tag}")
    return _version(repository, branch, tag, commit, sent, removed)


def _commit(
    repository: Repository, items: list[Item], branch: str, head: str | None, message: str, say: Callable[[str], None]
) -> tuple[str, list[str], list[str]]:
    """(commit, paths sent, paths removed): the version on top of `branch`, whatever others push there meanwhile."""
    client, changed, stale = repository.client, [], []
    for _ in range(MEETINGS):
        held = {} if head is None else repository.held(head)
        changed, stale = difference(items, held, repository.repo_type)
        if not changed and not stale and head is not None:
            say(f"{branch} holds this version already")
            return head, [], []
        size = sum(item.size for item in changed) / 1e6
        say(f"{len(items)} files, {len(changed)} to send ({size:,.1f} MB), {len(stale)} to remove")

        def commit(head: str | None = head, changed: list[Item] = changed, stale: list[str] = stale) -> str | None:
            """The commit's name; None if the branch is no longer where it was."""
            operations = [CommitOperationAdd(item.path, str(item.file)) for item in changed]
            operations += [CommitOperationDelete(path, is_folder=False) for path in stale]
            try:
                return client.api.create_commit(
                    repository.repo_id,
                    operations,
                    commit_message=message,
                    repo_type=repository.repo_type,
                    revision=branch,
                    parent_commit=head,
                ).oid
            except HfHubHTTPError as error:
                if status_of(error) in MOVED:
                    return None
                raise

        def landed(head: str | None = head) -> str | None:
            """The commit whose answer was lost, if it is there."""
            return _landed(repository, items, branch, head)

        done = client.call(f"push to {repository.repo_id}", commit, landed)
        done = done or landed()  # a repeated request may meet its own first commit
        if done is not None:
            return done, [item.path for item in changed], stale
        client.rest()
        head = repository.refs()[0].get(branch)
        say(f"{branch} moved meanwhile; starting again from {(head or 'nothing')[:10]}")
    raise HubError(
        f"Others pushed to {branch} of {repository.repo_id} {MEETINGS} times while this was under way. "
        "Push to a branch of your own (--revision), or run the same command again."
    )


def _landed(repository: Repository, items: list[Item], branch: str, head: str | None) -> str | None:
    """The first commit after `head` on `branch` that holds this very version, if there is one."""
    commits = [
        commit.commit_id for commit in repository.call("list the commits of", "list_repo_commits", revision=branch)
    ]
    later = commits[: commits.index(head)] if head in commits else commits
    return next((commit for commit in reversed(later[-MEETINGS:]) if repository.holds(items, commit)), None)


def _tag(repository: Repository, tag: str, commit: str, items: list[Item]) -> None:
    """Put the tag on the commit; a tag that is there already must be on the same files."""

    def request() -> None:
        try:
            repository.client.api.create_tag(
                repository.repo_id, repo_type=repository.repo_type, tag=tag, revision=commit
            )
        except HfHubHTTPError as error:
            if status_of(error) != 409:
                raise

    repository.client.call(f"tag {repository.repo_id}", request)
    found = repository.refs()[1].get(tag)
    if found != commit and (found is None or not repository.holds(items, found)):
        raise HubError(
            f"The version is on {repository.repo_id} as commit {commit}, but somebody made a tag {tag} of other files "
            f"meanwhile. Run the command again with another --tag: nothing is sent twice."
        )


def _version(
    repository: Repository, branch: str, tag: str | None, commit: str, sent: list[str], removed: list[str]
) -> Version:
    kind = "" if repository.repo_type == "model" else f"{repository.repo_type}s/"
    url = f"{repository.client.api.endpoint}/{kind}{repository.repo_id}/tree/{tag or commit}"
    return Version(repository.repo_id, repository.repo_type, branch, tag, commit, tuple(sent), tuple(removed), url)


def _next(tag: str, tags: dict[str, str]) -> str:
    """The first free name after `tag`: v1.0 → v1.1, release → release-2."""
    stem, number = re.fullmatch(r"(.*?)(\d*)", tag).groups()
    stem, count = (stem, int(number)) if number else (f"{stem}-", 1)
    return next(name for name in (f"{stem}{count + step}" for step in itertools.count(1)) if name not in tags)
