"""Checked rows → parquet files that `datasets` and the Hub's viewer read with an Image feature."""

from __future__ import annotations

from pathlib import Path

import datasets
from datasets.arrow_writer import ParquetWriter

from papo_hub.batch import Sample

SHARD_BYTES = 480 << 20  # of a parquet file: half of what the Hub's viewer takes
GROUP_ROWS, GROUP_BYTES = 100, 32 << 20  # of a row group: what is in memory at once, and what a viewer has to load


class ParquetFiles:
    """One split as files of about SHARD_BYTES at most, written as the rows come, named SPLIT-00000-of-00003.parquet.

    Memory holds one row group: GROUP_ROWS rows or GROUP_BYTES bytes of them. Features beyond the four columns are tags.
    """

    def __init__(self, folder: Path, split: str, features: datasets.Features) -> None:
        self.folder, self.split, self.features = folder, split, features
        self.paths: list[Path] = []
        self.arrow_bytes = 0  # what the rows take in memory
        self._writer: ParquetWriter | None = None
        self._shard = self._group = self._rows = 0

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.paths)

    def add(self, sample: Sample, encoded: list[bytes]) -> None:
        """One row more; `encoded`: the files of its images."""
        images = [{"bytes": content, "path": None} for content in encoded]
        row = {"problem": sample.problem, "answer": sample.answer, "images": images, "id": sample.id}
        size = len(sample.problem) + sum(map(len, encoded))
        if self._writer is not None and self._shard + size > SHARD_BYTES:
            self._finish()
        if self._writer is None:
            self.paths.append(self.folder / f"{self.split}-{len(self.paths):05d}.parquet")
            self._writer = ParquetWriter(features=self.features, path=str(self.paths[-1]))
        self._shard, self._group, self._rows = self._shard + size, self._group + size, self._rows + 1
        whole = self._rows >= GROUP_ROWS or self._group >= GROUP_BYTES
        tags = {name: sample.tags.get(name) for name in self.features if name not in row}
        self._writer.write(row | tags, writer_batch_size=1 if whole else GROUP_ROWS)
        if whole:
            self._group = self._rows = 0

    def close(self) -> None:
        """Finish the last file, and give all of them the names that say how many they are."""
        self._finish()
        for i, path in enumerate(self.paths):
            self.paths[i] = path.rename(self.folder / f"{self.split}-{i:05d}-of-{len(self.paths):05d}.parquet")

    def _finish(self) -> None:
        if self._writer is not None:
            self.arrow_bytes += self._writer.finalize()[1]
        self._writer = None
        self._shard = self._group = self._rows = 0
