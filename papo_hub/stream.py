"""The training prompts: every row of a dataset, epoch by epoch, in an order that a resumed run continues.

Where the rows lie at hand an epoch is a permutation of all of them (`Permutation`); streamed ones are shuffled within
blocks, as large as the memory allows (`ShuffledBlocks`). Everything else is the same for both.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import ProcessorMixin

from papo_hub.batch import Prompt
from papo_hub.data import (
    PROMPT_SUFFIX,
    PromptLimit,
    TooManyUnusableRows,
    UnusableRow,
    check_length,
    check_row,
    encode,
    prompt_length,
    special_tokens,
)
from papo_hub.masking import ViewMaker
from papo_hub.randomness import derived_generator
from papo_hub.rows import DataError, Rows, StreamedRows
from papo_hub.workers import WorkerPool

JUDGED = 20  # rows after which the share of unusable ones is judged; earlier, where an epoch ends


class PromptStream:
    """Prompts in an order that (seed, epoch) alone decides; where it stands is a handful of numbers.

    Every epoch has all rows in a new order, without end; unusable ones are skipped. In several processes every rank walks
    the same global order and encodes its own share of it. Ranks never communicate: each one checks every row (decoding
    its images, counting its tokens), so that all agree on which are usable, provided that all read the same data.

    Streamed rows are shuffled among `shuffle_buffer_size` at a time; twice as many wait in memory, undecoded, in every
    process. To resume, the files before the position are passed over unread, and its own file is read up to there.

    With `num_workers` processes of its own each rank reads ahead while its caller is busy, by as many prompts as `take`
    was first asked for; the prompts are the same, bit for bit. That costs the memory of one more batch of prompts: pixel
    values take 24 MB a view for an image of a million pixels (3.7 GB for 384 prompts in two views with 200,000 pixels
    each), besides the images themselves. Without workers `take` does the work itself.

    `skipped` maps each unusable row met so far to the reason: by its id, which in streamed rows, where nobody knows
    whether another has the same, is followed by its number.
    """

    def __init__(
        self,
        rows: Rows | StreamedRows,
        processor: ProcessorMixin,
        seed: int,
        *,
        prompt_suffix: str = PROMPT_SUFFIX,
        max_prompt_length: int | None = None,
        mask: ViewMaker | None = None,
        noise: ViewMaker | None = None,
        max_skipped_share: float = 0.1,
        num_workers: int = 0,
        shuffle_buffer_size: int = 1000,
    ):
        streamed = isinstance(rows, StreamedRows)
        self.order = ShuffledBlocks(rows, seed, shuffle_buffer_size) if streamed else Permutation(rows, seed)
        self.processor = processor
        self.max_skipped_share = max_skipped_share
        self.num_workers = num_workers
        self.cursor = self.order.start  # the place after those that were taken; JSON, of `order`'s own making
        self.seen = 0  # different rows met so far: those of the first epoch
        self.skipped: dict[str, str] = {}
        self._reader = Reader(
            None if streamed else rows,
            rows.root,
            processor,
            seed,
            prompt_suffix,
            max_prompt_length,
            mask,
            noise,
            forbidden=special_tokens(processor),
            limit=PromptLimit.of(processor, max_prompt_length),
        )
        self._reading: Iterator[Read] | None = None
        self._share = (0, 1)  # that it reads for

    def take(self, n: int, rank: int = 0, world_size: int = 1) -> list[Prompt]:
        """This rank's share of the next `n` usable rows of the global order: every `world_size`-th, from `rank` on.

        Call it on every rank with the same `n`. A call may run from one epoch into the next.

        Raises TooManyUnusableRows, WorkerDied, ValueError where `n` cannot be shared equally, and what reading a stream
        raises; after any exception the position is where it was.
        """
        if n % world_size:
            raise ValueError(f"{n} prompts cannot be shared equally by {world_size} processes")
        if self._reading is None or self._share != (rank, world_size):
            self.close()
            self._share = rank, world_size
            places = self.order.places(self.cursor)
            if self.num_workers:
                self._reading = _read_ahead(self._reader, places, rank, world_size, self.num_workers, depth=n)
            else:
                self._reading = _read(self._reader, places, rank, world_size)
        prompts, usable, cursor, seen = [], 0, self.cursor, self.seen
        try:
            while usable < n:
                place, read = next(self._reading)
                cursor = place.after
                seen += place.epoch == 0
                if read.reason is not None:
                    self.skipped[read.id] = read.reason
                else:
                    usable += 1
                if read.prompt is not None:
                    prompts.append(read.prompt)
                self._check_share(seen, whole=place.last or place.epoch > 0)
        except BaseException:
            self.close()
            raise
        self.cursor, self.seen = cursor, seen
        return prompts

    def close(self) -> None:
        """End the workers; what they read ahead is dropped, and a later `take` starts others."""
        if self._reading is not None:
            self._reading.close()
            self._reading = None

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, as JSON: what was taken, not what was read ahead; the same on every rank."""
        position = {"cursor": self.cursor, "seen": self.seen, "skipped": dict(self.skipped)}
        return {**self.order.identity(), **position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken. Raises DataError where the order of prompts would be another."""
        for name, value in self.order.identity().items():
            if state.get(name) != value:
                raise DataError(
                    f"the run to resume had {name} = {state.get(name)}, this one has {value}: the order of prompts "
                    "would be another. Resume with the same data and seed, or start a new run."
                )
        self.close()
        self.cursor, self.seen = state["cursor"], state["seen"]
        self.skipped = dict(state["skipped"])

    def _check_share(self, seen: int, whole: bool) -> None:
        """`whole`: all rows of the dataset were seen."""
        skipped = len(self.skipped)
        if seen < JUDGED and not whole:
            return
        if skipped <= self.max_skipped_share * seen and not (whole and skipped == seen):
            return
        kinds = Counter(reason.partition(":")[0] for reason in self.skipped.values())
        lines = []
        for kind, count in kinds.most_common(5):
            name, reason = next(item for item in self.skipped.items() if item[1].partition(":")[0] == kind)
            lines.append(f"  {count} × {kind} (row {name}: {reason})")
        raise TooManyUnusableRows(
            f"{skipped} of the first {seen} rows cannot be used (max_skipped_share is {self.max_skipped_share}):\n"
            + "\n".join(lines)
            + "\nRepair or filter these rows; or name other columns (problem_column, answer_column, images_column), "
            "raise max_prompt_length, or raise max_skipped_share to train on the rest."
        )


# --- orders -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """One place in the order of all epochs."""

    epoch: int
    key: tuple[int, ...]  # of its row, the same in every epoch: what the row's mask depends on
    after: Any  # the cursor of the next place
    last: bool  # of its epoch
    row: Mapping[str, Any] | None = field(default=None, repr=False)  # where it is not to be looked up


@dataclass(frozen=True)
class Permutation:
    """Rows that can be looked up: every epoch a permutation of all of them. The cursor counts the places passed."""

    rows: Rows
    seed: int
    start = 0

    def __post_init__(self) -> None:
        if len(self.rows) == 0:
            raise DataError("the dataset has no rows")

    def identity(self) -> dict[str, int]:
        """What the order depends on."""
        return {"seed": self.seed, "rows": len(self.rows)}

    def places(self, cursor: int) -> Iterator[Place]:
        """All places from the cursor on, without end."""
        count = len(self.rows)
        while True:
            epoch, first = divmod(cursor, count)
            order = torch.randperm(count, generator=derived_generator(self.seed, "order", epoch)).tolist()
            for passed in range(first, count):
                cursor += 1
                yield Place(epoch, (order[passed],), cursor, last=passed == count - 1)


@dataclass(frozen=True)
class ShuffledBlocks:
    """Streamed rows: every epoch takes the shards in a new order and shuffles within blocks of `buffer_size` rows.

    The first block of an epoch has a random length, so that in no two epochs the same rows share their blocks. Where a
    block begins says all about it; the cursor is [epoch, place of its shard in the order, number of its first row, rows
    of it passed], and to resume reads one block anew. The next block is read while this one is passed, row by row.
    """

    rows: StreamedRows
    seed: int
    buffer_size: int
    start = (0, 0, 0, 0)

    def identity(self) -> dict[str, int]:
        """What the order depends on."""
        return {"seed": self.seed, "shards": self.rows.num_shards, "shuffle_buffer_size": self.buffer_size}

    def places(self, cursor: tuple[int, ...] | list[int]) -> Iterator[Place]:
        """All places from the cursor on, without end. Raises DataError where an epoch has none."""
        epoch, shard, number, passed = cursor
        while True:
            coming = self._epoch(epoch, shard, number)
            first, size = (shard, number) == (0, 0), self.buffer_size
            if first:
                size = 1 + int(torch.randint(size, (), generator=derived_generator(self.seed, "first block", epoch)))
            block = list(islice(coming, size))
            if first and not block:
                raise DataError("the dataset has no rows")
            while block:
                if not first:  # whose beginning is that of the epoch, even where the first shard is empty
                    shard, number = block[0][0], block[0][1][-1]
                generator = derived_generator(self.seed, "order", epoch, shard, number)
                order = torch.randperm(len(block), generator=generator).tolist()
                upcoming: list = []
                for done, index in enumerate(order, 1):
                    upcoming += islice(coming, 1)
                    if done > passed:
                        _, key, row = block[index]
                        last = done == len(order) and not upcoming
                        yield Place(epoch, key, [epoch, shard, number, done], last, row)
                upcoming += islice(coming, self.buffer_size - len(upcoming))
                block, passed, first = upcoming, 0, False
            epoch, shard, number, passed = epoch + 1, 0, 0, 0

    def _epoch(self, epoch: int, shard: int, number: int) -> Iterator[tuple[int, tuple[int, ...], dict]]:
        """(place of its shard in the order, key, row) of every row from row `number` of the given shard on."""
        generator = derived_generator(self.seed, "shards", epoch)
        order = torch.randperm(self.rows.num_shards, generator=generator).tolist()
        for place in range(shard, len(order)):
            for key, row in self.rows.shard(order[place], number if place == shard else 0):
                yield place, key, row


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Read:
    """What became of a row: unusable for a `reason`, or usable, with its prompt where that was asked for."""

    id: str
    reason: str | None = None
    prompt: Prompt | None = None


@dataclass(frozen=True)
class Reader:
    """Reads one row, the same in every process: all that it depends on is here and in the arguments."""

    rows: Rows | None  # None: places bring their rows along
    root: Path | None
    processor: ProcessorMixin
    seed: int
    prompt_suffix: str
    max_prompt_length: int | None
    mask: ViewMaker | None
    noise: ViewMaker | None
    forbidden: frozenset[str]
    limit: PromptLimit | None

    def __call__(self, place: Place, encoded: bool) -> Read:
        """Check a row and, if it is usable and to be `encoded`, make its prompt."""
        row = self.rows[place.key[0]] if place.row is None else place.row
        name = self._name(place, row)
        try:
            sample = check_row(row, self.root, self.forbidden, self.limit)
            if not encoded:
                check_length(prompt_length(sample, self.processor, self.prompt_suffix), self.max_prompt_length)
                return Read(name)
            prompt = encode(
                sample,
                self.processor,
                self.prompt_suffix,
                self.max_prompt_length,
                mask=self.mask,
                noise=self.noise,
                generator=derived_generator(self.seed, "mask", place.epoch, *place.key),
            )
        except UnusableRow as error:
            return Read(name, error.reason)
        return Read(name, prompt=prompt)

    @staticmethod
    def _name(place: Place, row: Mapping[str, Any]) -> str:
        """The same in every epoch, and no other row's: rows that shared one would count as one."""
        name, number = str(row["id"]), "-".join(map(str, place.key))
        return name if place.row is None or name == number else f"{name} ({number})"


def _read(reader: Reader, places: Iterator[Place], rank: int, world_size: int) -> Iterator[tuple[Place, Read]]:
    """The rows in order, with the prompts of this rank's share of the usable ones."""
    usable = 0
    for place in places:
        read = reader(place, usable % world_size == rank)
        usable += read.reason is None
        yield place, read


def _read_ahead(
    reader: Reader, places: Iterator[Place], rank: int, world_size: int, num_workers: int, depth: int
) -> Iterator[tuple[Place, Read]]:
    """The same in worker processes, the next `depth` rows ahead of the caller.

    Whose a row is depends on the rows before it. So rows are first checked, twice as far ahead, and encoded when they
    turn out to be this rank's; that they are then checked again costs little beside encoding. A rank that is alone
    encodes at once.
    """
    alone = world_size == 1
    pool = WorkerPool(reader, num_workers)
    checking: deque[tuple[Place, Future]] = deque()
    reading: deque[tuple[Place, Future]] = deque()
    usable = 0
    try:
        while True:
            while len(checking) + len(reading) <= (depth if alone else 2 * depth):
                place = next(places)
                checking.append((place, pool.submit(place, alone)))
            while not reading or (checking and len(reading) <= depth and checking[0][1].done()):
                place, future = checking.popleft()
                # An exception, too, is raised when its row's turn comes, as it would be without workers.
                if future.exception() is None and future.result().reason is None:
                    if not alone and usable % world_size == rank:
                        future = pool.submit(place, True)
                    usable += 1
                reading.append((place, future))
            place, future = reading.popleft()
            yield place, future.result()
    finally:
        pool.close()
