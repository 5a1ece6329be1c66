"""The training prompts: every row of a dataset, epoch by epoch, in an order that a resumed run continues."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch
from transformers import ProcessorMixin

from papo_hub.batch import Prompt
from papo_hub.data import (
    PROMPT_SUFFIX,
    DataError,
    Mask,
    Rows,
    TooManyUnusableRows,
    UnusableRow,
    check_length,
    check_row,
    encode,
    prompt_length,
    special_tokens,
)
from papo_hub.randomness import derived_generator
from papo_hub.workers import WorkerPool


class PromptStream:
    """Prompts in an order that (seed, epoch) alone decides; where it stands is a handful of numbers.

    Every epoch is a new permutation of the rows, without end; unusable ones are skipped. In several processes every rank
    walks the same global order and encodes its own share of it. Ranks never communicate: each one checks every row
    (decoding its images, counting its tokens), so that all agree on which are usable, provided that all read the same
    data.

    With `num_workers` processes of its own each rank reads ahead while its caller is busy, by as many prompts as `take`
    was first asked for; the prompts are the same, bit for bit. That costs the memory of one more batch of prompts: pixel
    values take 24 MB a view for an image of a million pixels (3.7 GB for 384 prompts in two views with 200,000 pixels
    each), besides the images themselves. Without workers `take` does the work itself.

    `skipped` maps the id of each unusable row met so far to the reason.
    """

    def __init__(
        self,
        rows: Rows,
        processor: ProcessorMixin,
        seed: int,
        *,
        prompt_suffix: str = PROMPT_SUFFIX,
        max_prompt_length: int | None = None,
        mask: Mask | None = None,
        max_skipped_share: float = 0.1,
        num_workers: int = 0,
    ):
        if len(rows) == 0:
            raise DataError("the dataset has no rows")
        self.rows = rows
        self.processor = processor
        self.seed = seed
        self.max_skipped_share = max_skipped_share
        self.num_workers = num_workers
        self.cursor = 0  # rows passed, all epochs together
        self.skipped: dict[str, str] = {}
        self._reader = Reader(
            rows, processor, seed, prompt_suffix, max_prompt_length, mask, forbidden=special_tokens(processor)
        )
        self._reading: Iterator[Read] | None = None
        self._share = (0, 1)  # that it reads for

    def take(self, n: int, rank: int = 0, world_size: int = 1) -> list[Prompt]:
        """This rank's share of the next `n` usable rows of the global order: every `world_size`-th, from `rank` on.

        Call it on every rank with the same `n`. A call may run from one epoch into the next.

        Raises TooManyUnusableRows, WorkerDied, and ValueError where `n` cannot be shared equally; after any exception the
        position is where it was.
        """
        if n % world_size:
            raise ValueError(f"{n} prompts cannot be shared equally by {world_size} processes")
        if self._reading is None or self._share != (rank, world_size):
            self.close()
            self._share = rank, world_size
            places = _places(self.seed, len(self.rows), self.cursor)
            if self.num_workers:
                self._reading = _read_ahead(self._reader, places, rank, world_size, self.num_workers, depth=n)
            else:
                self._reading = _read(self._reader, places, rank, world_size)
        prompts, usable, cursor = [], 0, self.cursor
        try:
            while usable < n:
                read = next(self._reading)
                cursor += 1
                if read.reason is not None:
                    self.skipped[read.id] = read.reason
                else:
                    usable += 1
                if read.prompt is not None:
                    prompts.append(read.prompt)
                self._check_share(seen=min(cursor, len(self.rows)))
        except BaseException:
            self.close()
            raise
        self.cursor = cursor
        return prompts

    def close(self) -> None:
        """End the workers; what they read ahead is dropped, and a later `take` starts others."""
        if self._reading is not None:
            self._reading.close()
            self._reading = None

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, as JSON: what was taken, not what was read ahead; the same on every rank."""
        return {"seed": self.seed, "rows": len(self.rows), "cursor": self.cursor, "skipped": dict(self.skipped)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken. Raises DataError where the seed or the number of rows is another."""
        for name, value in (("seed", self.seed), ("rows", len(self.rows))):
            if state[name] != value:
                raise DataError(
                    f"the run to resume had {name} = {state[name]}, this one has {value}: the order of prompts "
                    "would be another. Resume with the same data and seed, or start a new run."
                )
        self.close()
        self.cursor = state["cursor"]
        self.skipped = dict(state["skipped"])

    def _check_share(self, seen: int) -> None:
        skipped, rows = len(self.skipped), len(self.rows)
        if seen < min(20, rows) or (skipped <= self.max_skipped_share * seen and skipped < rows):
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


@dataclass(frozen=True)
class Read:
    """What became of a row: unusable for a `reason`, or usable, with its prompt where that was asked for."""

    id: str
    reason: str | None = None
    prompt: Prompt | None = None


@dataclass(frozen=True)
class Reader:
    """Reads one row, the same in every process: all that it depends on is here and in the arguments."""

    rows: Rows
    processor: ProcessorMixin
    seed: int
    prompt_suffix: str
    max_prompt_length: int | None
    mask: Mask | None
    forbidden: frozenset[str]

    def __call__(self, epoch: int, index: int, encoded: bool) -> Read:
        """Check a row and, if it is usable and to be `encoded`, make its prompt."""
        row = self.rows[index]
        name = str(row["id"])
        try:
            sample = check_row(row, self.rows.root, self.forbidden)
            length = prompt_length(sample, self.processor, self.prompt_suffix)
            check_length(length, self.max_prompt_length)
        except UnusableRow as error:
            return Read(name, error.reason)
        if not encoded:
            return Read(name)
        generator = derived_generator(self.seed, "mask", epoch, index)
        prompt = encode(sample, self.processor, self.prompt_suffix, mask=self.mask, generator=generator)
        if prompt.length != length:  # ranks would disagree on which prompts are too long
            raise RuntimeError(
                f"row {name}: {length} tokens foreseen, {type(self.processor).__name__} made {prompt.length}: "
                "`prompt_length` does not know how it counts image tokens"
            )
        return Read(name, prompt=prompt)


def _places(seed: int, rows: int, cursor: int) -> Iterator[tuple[int, int]]:
    """(epoch, index) of every row from the `cursor`-th on, all epochs together."""
    epoch, first = divmod(cursor, rows)
    while True:
        order = torch.randperm(rows, generator=derived_generator(seed, "order", epoch)).tolist()
        for index in order[first:]:
            yield epoch, index
        epoch, first = epoch + 1, 0


def _read(reader: Reader, places: Iterator[tuple[int, int]], rank: int, world_size: int) -> Iterator[Read]:
    """The rows in order, with the prompts of this rank's share of the usable ones."""
    usable = 0
    for epoch, index in places:
        read = reader(epoch, index, usable % world_size == rank)
        usable += read.reason is None
        yield read


def _read_ahead(
    reader: Reader, places: Iterator[tuple[int, int]], rank: int, world_size: int, num_workers: int, depth: int
) -> Iterator[Read]:
    """The same in worker processes, the next `depth` rows ahead of the caller.

    Whose a row is depends on the rows before it. So rows are first checked, twice as far ahead, and encoded when they
    turn out to be this rank's; that they are then checked again costs little beside encoding. A rank that is alone
    encodes at once.
    """
    alone = world_size == 1
    pool = WorkerPool(reader, num_workers)
    checking: deque[tuple[tuple[int, int], Future]] = deque()
    reading: deque[Future] = deque()
    usable = 0
    try:
        while True:
            while len(checking) + len(reading) <= (depth if alone else 2 * depth):
                place = next(places)
                checking.append((place, pool.submit(*place, alone)))
            while not reading or (checking and len(reading) <= depth and checking[0][1].done()):
                place, future = checking.popleft()
                # An exception, too, is raised when its row's turn comes, as it would be without workers.
                if future.exception() is None and future.result().reason is None:
                    if not alone and usable % world_size == rank:
                        future = pool.submit(*place, True)
                    usable += 1
                reading.append(future)
            yield reading.popleft().result()
    finally:
        pool.close()
