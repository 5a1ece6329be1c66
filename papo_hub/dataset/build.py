"""Rows of any source → a folder that can be pushed as a dataset repository, complete or not at all."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from tqdm.auto import tqdm

from papo_hub.card import check_card, plain
from papo_hub.card.check import LICENSES
from papo_hub.config import ConfigError, is_repository_id
from papo_hub.data import UnusableRow
from papo_hub.dataset.card import render_card
from papo_hub.dataset.content import check_publishable
from papo_hub.dataset.parquet import ParquetFiles
from papo_hub.dataset.tally import Tally
from papo_hub.digits import DigitRows
from papo_hub.hub.cache import read_commit
from papo_hub.rows import COLUMNS, DataError, Rows, load_rows
from papo_hub.version import __version__

SHOWN = 5  # unusable rows that an error names
DIGITS = {"license": "cc-by-4.0", "language": "en", "pretty_name": "Three handwritten digits"}  # UCI's licence


@dataclass(frozen=True)
class DatasetReport:
    """What `build_dataset` wrote: the folder, and what its statistics.json holds."""

    folder: Path
    statistics: dict[str, Any]

    def __str__(self) -> str:
        splits = self.statistics["splits"]
        lines = [
            f"{name}: {split['rows']} rows, {split['images']} images, {split['bytes'] / 1e6:.1f} MB, "
            f"{split['skipped']} rows left out, content {split['content_hash'][:16]}"
            for name, split in splits.items()
        ]
        return "\n".join([str(self.folder), *lines])


def build_dataset(
    source: str | Path,
    folder: str | Path,
    *,
    splits: Sequence[str] = ("train",),
    columns: Mapping[str, str] | None = None,
    revision: str | None = None,
    limit: int | None = None,
    tags: Sequence[str] = (),
    repo_id: str | None = None,
    tag: str | None = None,
    license: str | None = None,
    language: str | None = None,
    pretty_name: str | None = None,
    drop_unusable: bool = False,
    progress: bool = True,
) -> DatasetReport:
    """Write `folder`: data/SPLIT-*.parquet, statistics.json and README.md, ready to be pushed as a dataset repository.

    The columns are `problem` and `answer` (text), `images` (a list of images: the source's own bytes, or PNG where it has
    none), `id` (text: the source's where it has unique ones, else the row's number) and the text columns named by `tags`.
    A problem has one `<image>` an image. Equal input gives equal bytes. Nothing lies at `folder` before everything is
    done; what an earlier call wrote there is replaced then.

    Args:
        source: "digits", or what `papo_hub.rows.load_rows` reads; `columns` and `revision` are as there.
        limit: only the first so many rows of each split.
        repo_id: OWNER/NAME that the card's examples load.
        tag: the version that they load.
        license: as the Hub spells it, see `papo_hub.card.check.LICENSES`; None: "unknown".
        language: of the problems and answers, an ISO 639-1 code such as "en"; None: not stated.
        drop_unusable: leave unusable rows out, and list them in `folder`/skipped_rows.jsonl.

    Raises:
        FileNotFoundError: no such source.
        DataError: a source that cannot be read; unusable rows, or none that is usable; a folder that holds other things.
        ConfigError: a repository id, a tag, a licence or the name of a split that the Hub would not accept; a limit below 1.
    """
    source, folder = str(source), Path(folder).expanduser()
    defaults = DIGITS if source == "digits" else {}
    about = {
        "license": license or defaults.get("license", "unknown"),
        "language": language or defaults.get("language"),
        "pretty_name": plain(pretty_name or defaults.get("pretty_name") or (repo_id or folder.name).split("/")[-1]),
    }
    _check_request(about["license"], repo_id, tag, splits, limit)
    _check_folder(folder, source)
    rows = {split: source_rows(source, split, columns, revision, limit) for split in splits}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as aside:
        new = Path(aside, "new")
        (new / "data").mkdir(parents=True)
        features = datasets.Features(
            {
                "problem": datasets.Value("string"),
                "answer": datasets.Value("string"),
                "images": datasets.List(datasets.Image()),
                "id": datasets.Value("string"),
                **{name: datasets.Value("string") for name in tags},
            }
        )
        skipped = _Skipped(new / "skipped_rows.jsonl" if drop_unusable else None)
        statistics = {
            "papo_hub": __version__,
            "source": _source(source, revision),
            "splits": {},
        }
        contents: set[bytes] = set()
        for split, table in rows.items():
            found, held = _write_split(new, split, table, features, skipped, contents, progress)
            statistics["splits"][split] = found
            contents |= held
        skipped.check(sum(map(len, rows.values())))
        lines = json.dumps(statistics, indent=1, ensure_ascii=False)
        (new / "statistics.json").write_text(f"{lines}\n", encoding="utf-8")
        card = render_card(statistics, features, about, repo_id or folder.name, tag)
        (new / "README.md").write_text(f"{card}\n", encoding="utf-8")
        if problems := check_card(new / "README.md", "dataset"):
            raise DataError(f"the card of {folder.name} would not be accepted: {'; '.join(problems)}")
        if folder.exists():
            folder.rename(Path(aside, "old"))
        new.rename(folder)
    return DatasetReport(folder, statistics)


def source_rows(
    source: str,
    split: str,
    columns: Mapping[str, str] | None = None,
    revision: str | None = None,
    limit: int | None = None,
) -> Rows:
    """The first `limit` rows of a split of the digits task or of what `load_rows` reads. Raises as `load_rows`."""
    if source == "digits":
        return Rows(DigitRows(split, **({} if limit is None else {"size": limit})))
    rows = load_rows(source, split, columns, revision)
    return rows if limit is None else Rows(rows.table.select(range(min(limit, len(rows)))), rows.root)


def _write_split(
    folder: Path,
    split: str,
    rows: Rows,
    features: datasets.Features,
    skipped: _Skipped,
    earlier: set[bytes],
    progress: bool,
) -> tuple[dict[str, Any], set[bytes]]:
    """The parquet files of a split. Returns its statistics, and what its rows hold. Raises DataError."""
    columns = rows.table.column_names
    if missing := [name for name in features if name not in (*COLUMNS, "id", *columns)]:
        raise DataError(f"the split {split!r} has no text column {', '.join(missing)}; it has {', '.join(columns)}")
    tally, files = Tally(), ParquetFiles(folder / "data", split, features)
    for index in tqdm(range(len(rows)), desc=f"checking {split}", unit="row", disable=not progress):
        row = rows[index]
        try:
            sample, encoded = check_publishable(row, rows.root)
        except UnusableRow as error:
            reason = plain(error.reason)
            skipped.add(split, str(row["id"]), reason)
            tally.skipped[reason.partition(":")[0]] += 1
            continue
        tally.add(sample, encoded, earlier)
        if not skipped.fatal:  # else there is nothing left to do but count
            files.add(sample, encoded)
    if tally.rows == 0:
        raise DataError("\n".join([f"no row of the split {split!r} is usable:", *skipped.first]))
    files.close()
    ids = "given" if "id" in columns else "row numbers"
    written = {"ids": ids, "files": len(files.paths), "arrow_bytes": files.arrow_bytes, "file_bytes": files.size}
    return tally.result() | written, tally.contents


class _Skipped:
    """The unusable rows: counted, the first few kept for an error, all listed in `file` where they are to be left out."""

    def __init__(self, file: Path | None) -> None:
        self.file, self.count = file, 0
        self.first: list[str] = []

    @property
    def fatal(self) -> bool:
        return self.count > 0 and self.file is None

    def add(self, split: str, id: str, reason: str) -> None:
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(f"  {split}, row {plain(id)}: {reason}")
        if self.file is not None:
            line = json.dumps({"split": split, "id": id, "reason": reason}, ensure_ascii=False)
            with self.file.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")

    def check(self, rows: int) -> None:
        """Raises DataError where rows are unusable and not to be left out."""
        if self.fatal:
            more = [f"  and {self.count - len(self.first)} more"] if self.count > len(self.first) else []
            raise DataError(
                "\n".join(
                    [f"{self.count} of {rows} rows cannot be published; nothing was written:", *self.first, *more]
                )
                + "\nRepair them, or leave them out with --drop_unusable: skipped_rows.jsonl then says which and why."
            )


def _check_request(
    license: str, repo_id: str | None, tag: str | None, splits: Sequence[str], limit: int | None
) -> None:
    if repo_id is not None and not is_repository_id(repo_id):
        raise ConfigError(f"repo_id: {repo_id!r} must be OWNER/NAME in letters, digits, '-', '_' and '.'")
    if tag is not None and not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", tag, re.ASCII):
        raise ConfigError(f"tag: {tag!r} must be a version such as v1.0")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit: {limit} must be at least 1 row")
    if license not in LICENSES - {"other"}:
        raise ConfigError(
            f"license: {license!r} is none that the Hub knows, such as apache-2.0, mit or cc-by-4.0. For any other write "
            "unknown, and then license: other with license_name and license_link into the card's front matter."
        )
    if wrong := [split for split in splits if not re.fullmatch(r"\w+", split, re.ASCII)]:
        raise ConfigError(f"splits: {wrong[0]!r} must be the name of a split: letters, digits and '_' alone")
    if not splits or len(set(splits)) < len(splits):
        raise ConfigError(f"splits: name each split once, got {', '.join(splits) or 'none'}")


def _check_folder(folder: Path, source: str) -> None:
    """Nothing but an earlier dataset of ours is replaced. Raises DataError."""
    place, origin = folder.resolve(), Path(source).expanduser()
    if origin.exists() and (place == origin.resolve() or place.is_relative_to(origin.resolve())):
        raise DataError(f"{folder} lies within the source {source}, and would be read with it: choose another folder")
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        ours = "papo_hub" in json.loads((folder / "statistics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        ours = False
    if not ours:
        raise DataError(f"{folder} exists and is no dataset that was built here: remove it, or choose another folder")


def _source(name: str, revision: str | None) -> dict[str, Any]:
    """Where the rows came from, without any folder of this machine. The commit is known of what came from the Hub."""
    if name == "digits":
        return {"name": "digits", "kind": "task"}
    if Path(name).expanduser().exists():
        return {"name": plain(Path(name).expanduser().resolve().name), "kind": "files"}
    commit = read_commit(name, revision, "dataset")
    return {"name": plain(name), "kind": "hub", "revision": revision, "commit": commit}
