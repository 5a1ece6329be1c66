"""Rows as the paper's authors published them → problem, answer, images.

They publish their nine benchmarks as one Hub dataset, a split each. A row holds the turns of a conversation (`messages`:
the user's is the problem, the assistant's the answer) and the paths of its images, whose files lie in one ZIP archive a
split. Nothing is unpacked onto the disk: an image is read out of the archive when a row's images are looked at, and one
that cannot be read costs its row alone.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from papo_hub.data import UnusableRow
from papo_hub.rows import DataError

TURNS = {"problem": "messages", "answer": "messages"}  # both are in one column
UNPACKED = ("data/images/", "data/", "images/")  # where the authors unpack an archive, and what their paths start with
LARGEST_IMAGE = 64 * 2**20  # bytes, unpacked: an archive's member may unpack to a thousand times what was downloaded
_DAMAGE = (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, NotImplementedError, ValueError)


class OfficialTable(Sequence):
    """The first `size` rows of `table`, with turns read as `problem` and `answer`, and paths as images of the archive.

    Args:
        table: rows as `papo_hub.rows.load_rows` gives them; a row that has no turns passes unchanged.
        size: number of rows; None: all.

    `archive` is that of the images which rows name by path; while it is None, paths stay paths.
    """

    archive: Archive | None = None

    def __init__(self, table: Sequence[Mapping[str, Any]], size: int | None = None) -> None:
        self.table, self.size = table, min(len(table), size or len(table))

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.size:
            raise IndexError(index)
        row = dict(self.table[index])
        # With both in one column, `load_rows` keeps the last name that it was given.
        if isinstance(turns := row.get("answer"), (list, Mapping)) and not isinstance(row.get("problem"), str):
            row["problem"], row["answer"] = said(turns, "user"), said(turns, "assistant")
        if self.archive is not None:
            row["images"] = [self._image(image) for image in images_of(row)]
        return row

    def names_files(self) -> bool:
        """Whether a row names an image by its path alone."""
        return any(path_alone(image) is not None for row in self for image in images_of(row))

    def _image(self, image: Any) -> Any:
        path = path_alone(image)
        return image if path is None else ArchivedImage(self.archive, path)


def images_of(row: Mapping[str, Any]) -> list:
    """The images of a row, whether it holds none, one, or a list."""
    images = row.get("images")
    return list(images) if isinstance(images, (list, tuple)) else [] if images is None else [images]


def said(turns: list[Mapping[str, Any]] | Mapping[str, list], role: str) -> Any:
    """What the one turn of that role says; None where there is none, or more than one."""
    if isinstance(turns, Mapping):  # as `datasets` reads a sequence of structs that an old version wrote
        if not all(isinstance(values, list) for values in turns.values()):
            return None
        turns = [dict(zip(turns, values, strict=True)) for values in zip(*turns.values(), strict=False)]
    found = [turn.get("content") for turn in turns if isinstance(turn, Mapping) and turn.get("role") == role]
    return found[0] if len(found) == 1 else None


def path_alone(image: Any) -> str | None:
    """The path of an image that a row names instead of holding it."""
    if isinstance(image, Mapping) and image.get("bytes") is None:
        image = image.get("path")
    return image if isinstance(image, str) else None


class ArchivedImage(Mapping):
    """An image in the form {bytes, path}, read from the archive each time that its bytes are asked for."""

    def __init__(self, archive: Archive, path: str) -> None:
        self.archive, self.path = archive, path

    def __getitem__(self, name: str) -> bytes | str:
        if name == "bytes":
            return self.archive.read(self.path)
        if name == "path":
            return self.path
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(("bytes", "path"))

    def __len__(self) -> int:
        return 2


class Archive:
    """The files of a ZIP archive, by the paths under which rows know them. Raises DataError if it is none."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        try:
            self.file = zipfile.ZipFile(path)
        except _DAMAGE as error:
            raise DataError(f"{self.name} is no readable ZIP archive: {error}; download it again") from error
        self.members = {member.filename: member for member in self.file.infolist() if not member.is_dir()}

    def read(self, path: str) -> bytes:
        """The bytes of the member that a row calls `path`: its name, or its name below a folder of `UNPACKED`.

        Raises UnusableRow: the path climbs with `..`, there is no such member, it is above LARGEST_IMAGE, or damaged.
        """
        name = path.removeprefix("./")
        if ".." in name.split("/"):
            raise UnusableRow(f"image path leaves {self.name}: {path[:100]!r}")
        names = [name, *(name.removeprefix(folder) for folder in UNPACKED)]
        member = next((self.members[name] for name in names if name in self.members), None)
        if member is None:
            raise UnusableRow(f"image is not in {self.name}: {path[:100]!r}")
        if member.file_size > LARGEST_IMAGE:
            raise UnusableRow(f"image too large: {member.file_size} bytes in {self.name}, the limit is {LARGEST_IMAGE}")
        try:
            with self.file.open(member) as file:  # which never yields more than the size that was just checked
                return file.read()
        except _DAMAGE as error:
            raise UnusableRow(f"image is damaged in {self.name}: {type(error).__name__}: {error}") from error
