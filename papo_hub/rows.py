"""The rows of a dataset, wherever it lies: a file, a folder, the Hub; loaded, or streamed.

What a row holds is not looked at here, images stay undecoded (`papo_hub.data` does both), but the dataset itself is not
trusted either: it reads its own files alone, and nothing in it is unpickled or run.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import pyarrow
from huggingface_hub.constants import HF_HUB_CACHE

COLUMNS = ("problem", "answer", "images")
BUILDERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json"}
READERS = ("parquet", "json", "csv", "arrow", "imagefolder")
LONGEST_ID = 200  # characters; a longer text names nothing
NOT_UNICODE = "\udcff"  # what a cell reads as whose bytes are no text; no text either


class DataError(ValueError):
    """A dataset that cannot be used: the message says what is wrong and what to do."""


@dataclass(frozen=True)
class Rows:
    """Rows by index, each a dict with the keys `problem`, `answer`, `images` and `id`.

    `table` is a `datasets.Dataset`, a list of dicts, or anything else with a length and an index. `root` is the folder
    that image paths in the rows are relative to and may not leave; without one, no path is followed. In a list, ids
    count where every row has one of its own (see `names`); else, and in other tables where a row has none, a row is
    known by its index.
    """

    table: Sequence[Mapping[str, Any]]
    root: Path | None = None

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            row = dict(self.table[index])
        except UnicodeDecodeError:
            row = self._cells(index)
        if row.get("id") is None or not self._named:
            row["id"] = index
        return row

    @cached_property
    def _named(self) -> bool:
        return not isinstance(self.table, (list, tuple)) or names([row.get("id") for row in self.table])

    def _cells(self, index: int) -> dict[str, Any]:
        """A row of which a cell is not Unicode, although the table says that it is text."""
        row = {}
        for name in self.table.column_names:
            try:
                row[name] = self.table.with_format(columns=[name])[index][name]
            except UnicodeDecodeError:
                row[name] = NOT_UNICODE
        return row


def is_name(value: Any) -> bool:
    """Whether an id can name its row in files and messages: a number, or a printable text, neither of them long."""
    if isinstance(value, str):
        return 0 < len(value) <= LONGEST_ID and value.isprintable()
    return type(value) in (int, float) and abs(value) < 1e100


def names(ids: Sequence[Any]) -> bool:
    """Whether these ids name their rows: each is one, and no two read the same."""
    return all(map(is_name, ids)) and len(set(map(str, ids))) == len(ids)


@dataclass(frozen=True)
class StreamedRows:
    """Rows that are read in passing: as those of `Rows`, but nobody knows how many there are.

    They come in shards, the files of the dataset; `files` are they, where they lie here. `root` is as in `Rows`. An id
    that `is_name` is taken as it stands, since whether it is unique shows at the end only; a row without one is known by
    its number, behind that of its shard if there are more.
    """

    table: datasets.IterableDataset
    root: Path | None = None
    files: tuple[Path, ...] = ()

    @property
    def num_shards(self) -> int:
        return self.table.num_shards

    def shard(self, index: int, start: int = 0) -> Iterator[tuple[tuple[int, ...], dict[str, Any]]]:
        """The rows of one shard from the `start`-th on, each with its key: (number,), or (shard, number).

        Raises DataError where it ends before its end: a file is torn, or the connection was lost.
        """
        number = start
        try:
            for number, row in enumerate(self.table.shard(self.num_shards, index).skip(start), start):
                key = (number,) if self.num_shards == 1 else (index, number)
                yield key, {**row, "id": row["id"] if is_name(row.get("id")) else "-".join(map(str, key))}
        except _UNREADABLE as error:
            file = self.files[index] if len(self.files) == self.num_shards else f"shard {index} of the dataset"
            raise DataError(
                f"cannot read {file} after row {number}: {error}. If the file is damaged, repair it or take it out; if "
                "the connection was lost, resume the run."
            ) from error


def load_rows(
    name_or_path: str | os.PathLike,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    revision: str | None = None,
) -> Rows:
    """The rows of a parquet, JSON-lines or JSON file, of a folder of them, or of a Hub dataset.

    A folder may also be one that `save_to_disk` wrote, a clone of a Hub dataset, or an image folder with metadata.
    `columns` maps `problem`, `answer` and `images` to what the dataset calls them. Images stay undecoded, so that a
    broken one costs its row and not the run. The column `id` is kept where it is unique; `tags` and text columns are
    kept for grouping results.

    Raises FileNotFoundError where there is no such file or dataset, DataError where it cannot be read, is empty, lacks
    the split or a column.
    """
    table, source, root, _ = _open(name_or_path, split, revision)
    if len(table) == 0:
        raise DataError(f"the dataset {source!r} (split {split!r}) has no rows")
    return Rows(_select(table, columns, source), root)


def stream_rows(
    name_or_path: str | os.PathLike,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    revision: str | None = None,
) -> StreamedRows:
    """What `load_rows` would load, read while it is used: of a dataset on the Hub, nothing is downloaded beforehand.

    Images that a streamed Hub dataset keeps as files beside its table are out of reach: it must hold their bytes.
    Raises as `load_rows`; slices such as "train[:100]" are no split here.
    """
    table, source, root, files = _open(name_or_path, split, revision, streaming=True)
    if table.column_names is None:
        with _readable(source, split):  # a damaged file says so when its first row is asked for
            next(iter(table), None)
        raise DataError(f"the dataset {source!r} does not say what its columns are: read it without streaming")
    table = _select(table, columns, source)
    with _readable(source, split):
        first = next(iter(table.take(1)), None)
    if first is None:
        raise DataError(f"the dataset {source!r} (split {split!r}) has no rows")
    return StreamedRows(table, root, tuple(files))


def _open(
    name_or_path: str | os.PathLike, split: str, revision: str | None, streaming: bool = False
) -> tuple[datasets.Dataset | datasets.IterableDataset, str, Path | None, list[Path]]:
    """(table, its name, the folder of its image paths, its files where they were chosen here). Raises as `load_rows`."""
    files: list[Path] = []
    path = Path(name_or_path).expanduser()
    if path.exists():
        if revision is not None:
            raise DataError(f"revision {revision!r} names a version of a Hub dataset, but {path} is local: remove it")
        source, root = f"{path}", path if path.is_dir() else path.parent
    elif path.suffix in BUILDERS or path.is_absolute() or f"{name_or_path}".startswith((".", "~")):
        raise FileNotFoundError(f"no such data file or folder: {path} (relative paths start at {Path.cwd()})")
    else:
        source = f"{name_or_path}"
        root = None if streaming else Path(HF_HUB_CACHE, f"datasets--{name_or_path}".replace("/", "--"))

    options = {"split": split, **({"streaming": True} if streaming else {})}
    with _readable(source, split):
        if not path.exists():
            table = datasets.load_dataset(source, revision=revision, **options)
        elif (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
            for state in path.glob("**/state.json"):
                for named in json.loads(state.read_text(encoding="utf-8"))["_data_files"]:
                    if Path(named["filename"]).name != named["filename"]:
                        raise DataError(f"{state} takes rows from {named['filename']}, which is not beside it")
            table = datasets.load_from_disk(source)
            if isinstance(table, datasets.DatasetDict):
                if split not in table:
                    raise DataError(f"no split {split!r}; it has {', '.join(table)}")
                table = table[split]
            table = table.to_iterable_dataset() if streaming else table
        elif files := _data_files(path, split):
            if empty := [file for file in files if file.stat().st_size == 0]:  # which `datasets` passes over in silence
                raise DataError(f"the file {empty[0].name} is empty")
            if not _has_configs(path):
                root = Path(os.path.commonpath([file.parent for file in files]))
            patterns = [_escape_glob(str(file.absolute())) for file in files]
            # The name without a slice such as "train[:100]".
            data_files = {re.match(r"\w*", split)[0]: patterns}
            try:
                table = datasets.load_dataset(BUILDERS[files[0].suffix], data_files=data_files, **options)
            except _UNREADABLE as error:
                raise DataError(f"{_damaged(files)}{error.__cause__ or error}") from error
        else:
            _builder(path)
            table = datasets.load_dataset(source, **options)
    return table, source, root, files


# What `datasets` and Arrow raise on files that are damaged or out of reach; most of Arrow's are ValueErrors or OSErrors.
_UNREADABLE = (datasets.exceptions.DatasetsError, pyarrow.ArrowException, ValueError, TypeError, OSError)


def _damaged(files: list[Path]) -> str:
    """The name of the first file that cannot be read alone; nothing where each can, and they do not fit together."""
    for file in files if len(files) > 1 else ():
        try:
            alone = datasets.load_dataset(
                BUILDERS[file.suffix], data_files=[_escape_glob(str(file.absolute()))], split="train", streaming=True
            )
            for _ in alone.with_format("arrow").iter(1000):
                pass
        except _UNREADABLE:
            return f"{file.name}: "
    return ""


@contextmanager
def _readable(source: str, split: str) -> Iterator[None]:
    """What `datasets` raises, as an error that says what to do."""
    try:
        yield
    except (FileNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(
            f"cannot find the dataset {source!r} (split {split!r}): {error}. It is neither a local path nor reachable "
            "on the Hub: check the name, the network and HF_HUB_OFFLINE, and log in if it is private."
        ) from error
    except _UNREADABLE as error:
        detail = error if isinstance(error, DataError) else error.__cause__ or error
        raise DataError(f"cannot read the dataset {source!r} (split {split!r}): {detail}") from error


def _data_files(path: Path, split: str) -> list[Path]:
    """The tables to read: the file itself, or those of a folder that name the split; none: leave it to `datasets`.

    Left to itself `datasets` takes a folder by its commonest extension: pictures next to a table would hide the table.
    """
    if path.is_file():
        if path.suffix not in BUILDERS:
            raise DataError(f"{path.suffix or 'no suffix'} is not one of {', '.join(BUILDERS)}")
        return [path]
    if _has_configs(path):  # left to itself `datasets` would cache its files by the card, and miss what they hold now
        builder = _builder(path)
        named = (builder.config.data_files or {}).get(re.match(r"\w*", split)[0], [])
        return [Path(file) for file in named] if all(Path(file).suffix in BUILDERS for file in named) else []
    visible = [file for file in path.rglob("*") if not any(part[0] == "." for part in file.relative_to(path).parts)]
    if any(file.stem == "metadata" for file in visible):  # an image folder
        return []
    name = re.match(r"\w*", split)[0]
    for suffix in BUILDERS:
        if files := sorted(file for file in visible if file.suffix == suffix and file.is_file()):
            if named := [file for file in files if _names_split(file.relative_to(path), re.escape(name))]:
                return named
            if any(_names_split(file.relative_to(path), "train|test|validation|valid|val|dev|eval") for file in files):
                raise DataError(f"no file there names it, only {', '.join(file.name for file in files[:10])}")
            return files
    return []


def _builder(folder: Path) -> datasets.DatasetBuilder:
    """What would read a folder. Raises DataError where its card names files that are not in it, or where they may hold
    more than values (an archive of WebDataset's may hold pickled tensors)."""
    builder = datasets.load_dataset_builder(str(folder))
    kind = type(builder).__module__.rpartition(".")[2]
    if kind not in READERS:
        raise DataError(f"it would be read as {kind}, which is none of {', '.join(READERS)}: convert it to parquet")
    for file in (f"{file}" for group in (builder.config.data_files or {}).values() for file in group):
        if not Path(os.path.normpath(file)).is_relative_to(folder.resolve()):
            raise DataError(f"its card takes rows from {file}, which is none of its own files")
    return builder


def _has_configs(path: Path) -> bool:
    """Whether the folder has a card that says which files make a split."""
    card = path / "README.md"
    return card.is_file() and bool(
        re.match(r"---\n(?:(?!---).*\n)*?configs:", card.read_text("utf-8", errors="replace"))
    )


def _names_split(path: Path, names: str) -> bool:
    return re.search(rf"(?<![a-zA-Z0-9])(?:{names})(?![a-zA-Z0-9])", str(path)) is not None


def _escape_glob(path: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", path)


def _select(
    table: datasets.Dataset | datasets.IterableDataset, columns: Mapping[str, str] | None, source: str
) -> datasets.Dataset | datasets.IterableDataset:
    """The three columns under our names, the id where it is unique, the text columns; images undecoded."""
    columns = {name: (columns or {}).get(name, name) for name in COLUMNS}
    for name, column in columns.items():
        if column not in table.column_names:
            raise DataError(
                f"the dataset {source!r} has no column {column!r}; it has {', '.join(table.column_names)}. "
                f"Name the right one with `{name}_column`."
            )
    kept = [
        column
        for column, feature in table.features.items()
        if column not in (*COLUMNS, "id")
        and (getattr(feature, "dtype", None) in ("string", "large_string") or column == "tags")
    ]
    if "id" in table.column_names and "id" not in columns.values():
        try:
            named = not isinstance(table, datasets.Dataset) or names(list(table["id"]))
        except UnicodeDecodeError:
            named = False
        kept += ["id"] if named else []
    kept = [column for column in kept if column not in columns.values()]
    undecoded, images = datasets.Image(decode=False), table.features[columns["images"]]
    if isinstance(images, datasets.Image):  # before anything else: renaming streamed columns decodes them
        table = table.cast_column(columns["images"], undecoded)
    elif isinstance(getattr(images, "feature", None), datasets.Image):
        table = table.cast_column(columns["images"], type(images)(undecoded))
    table = table.select_columns([*columns.values(), *kept])
    return table.rename_columns({column: name for name, column in columns.items() if column != name})
