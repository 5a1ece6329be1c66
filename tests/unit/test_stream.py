"""The order of prompts: the same on every rank, in a resumed run, and however many workers read ahead."""

import hashlib
import io
import json
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import datasets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from papo_hub.config import ConfigError
from papo_hub.data import TooManyUnusableRows, check_row, prompt_length
from papo_hub.masking import RandomPatchMask
from papo_hub.randomness import derived_generator
from papo_hub.rows import DataError, Rows, StreamedRows, load_rows, stream_rows
from papo_hub.stream import PromptStream, ShuffledBlocks
from papo_hub.workers import WorkerDied

VISUAL_QA = Path(
    os.environ.get("PAPO_VISUAL_QA", Path(__file__).resolve().parents[3] / "shared" / "data" / "visual_qa")
)
MASK = RandomPatchMask(patch_size=14, ratio=0.6)


def picture(width=28, height=28):
    return Image.new("RGB", (width, height), "white")


def row(answer="3", images=None):
    return {"problem": "<image>How many?", "answer": answer, "images": [picture()] if images is None else images}


def numbered(count, bad=()):
    """Rows whose id is their index; those in `bad` have no answer."""
    return Rows([row(answer=None if i in bad else str(i)) for i in range(count)])


def ids(prompts):
    return [int(prompt.sample.id) for prompt in prompts]


def make_stream(processor, rows=None, seed=0, **options):
    return PromptStream(numbered(10) if rows is None else rows, processor, seed, prompt_suffix="", **options)


def test_every_epoch_is_a_new_permutation(tiny_processor):
    stream = make_stream(tiny_processor)
    epochs = [ids(stream.take(10)) for _ in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert ids(make_stream(tiny_processor).take(10)) == epochs[0]
    assert ids(make_stream(tiny_processor, seed=1).take(10)) != epochs[0]


def test_masks_belong_to_seed_epoch_and_row(tiny_processor):
    one_row = Rows([row(images=[picture(140, 140)])])

    def masks(**options):
        stream = make_stream(tiny_processor, one_row, mask=MASK, **options)
        return [prompt.masked_images[0].tobytes() for prompt in stream.take(2)]

    assert masks() == masks()
    assert len({*masks(), *masks(seed=1)}) == 4
    expected = MASK(picture(140, 140), derived_generator(0, "mask", 1, 0))
    assert masks()[1] == expected.tobytes()


@pytest.mark.parametrize("first", [0, 3, 7, 12])
def test_a_resumed_stream_continues_exactly(tiny_processor, first):
    rows = numbered(10, bad={4})
    options = {"mask": MASK, "max_skipped_share": 0.5}
    through, before, resumed = (make_stream(tiny_processor, rows, seed=5, **options) for _ in range(3))
    through.take(first)
    before.take(first)
    state = json.loads(json.dumps(before.state_dict()))
    resumed.load_state_dict(state)
    expected, got = through.take(11), resumed.take(11)
    assert ids(expected) == ids(got)
    assert all(a.masked_images[0].tobytes() == b.masked_images[0].tobytes() for a, b in zip(expected, got, strict=True))
    assert through.state_dict() == resumed.state_dict()
    assert resumed.skipped == {"4": "empty answer"}


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_one_global_order(tiny_processor, world_size):
    rows = numbered(10, bad={2, 5})
    whole = make_stream(tiny_processor, rows, max_skipped_share=0.5)
    ranks = [make_stream(tiny_processor, rows, max_skipped_share=0.5) for _ in range(world_size)]
    for _ in range(3):
        expected = ids(whole.take(6))
        shares = [ids(stream.take(6, rank, world_size)) for rank, stream in enumerate(ranks)]
        assert {len(share) for share in shares} == {6 // world_size}
        for rank, share in enumerate(shares):
            assert share == expected[rank::world_size]
        assert all(stream.state_dict() == whole.state_dict() for stream in ranks)
    with pytest.raises(ValueError, match="7 prompts cannot be shared equally by 2"):
        whole.take(7, 0, 2)


def test_all_ranks_skip_a_prompt_that_is_too_long(tiny_processor):
    rows = numbered(10)
    rows.table[3]["problem"] = "<image>" + "x" * 100
    limit = prompt_length(check_row(rows[0]), tiny_processor, "") + 5
    ranks = [make_stream(tiny_processor, rows, max_prompt_length=limit) for _ in range(2)]
    shares = [ids(stream.take(8, rank, 2)) for rank, stream in enumerate(ranks)]
    assert len({*shares[0], *shares[1]} - {3}) == 8
    for stream in ranks:
        stream.take(2)  # past the end of the epoch: every row was met
        assert list(stream.skipped) == ["3"] and stream.skipped["3"].startswith("prompt too long")


def test_too_many_unusable_rows_stop_the_run(tiny_processor):
    rows = numbered(100, bad=set(range(15)))
    rows.table[20]["images"] = []
    with pytest.raises(TooManyUnusableRows) as caught:
        make_stream(tiny_processor, rows).take(80)
    message = str(caught.value)
    assert "× empty answer (row " in message and "max_skipped_share is 0.1" in message and "answer_column" in message
    stream = make_stream(tiny_processor, rows, max_skipped_share=0.16)
    with pytest.raises(TooManyUnusableRows):  # a stretch of the order holds more than the 16 % of the whole
        for _ in range(20):
            stream.take(20)
    stream = make_stream(tiny_processor, rows, max_skipped_share=0.3)
    stream.take(100)
    assert Counter(stream.skipped.values()) == {"empty answer": 15, "no image": 1}


def test_the_share_is_judged_after_twenty_rows_or_an_epoch(tiny_processor):
    order = ids(make_stream(tiny_processor, numbered(40)).take(20))
    early = numbered(40, bad=set(order[:2]))  # 2 of 20: just the share
    assert ids(make_stream(tiny_processor, early).take(18)) == order[2:]
    late = numbered(40, bad=set(order[:3]))
    assert len(make_stream(tiny_processor, late).take(16)) == 16  # row 19
    with pytest.raises(TooManyUnusableRows, match="3 of the first 20 rows"):
        make_stream(tiny_processor, late).take(17)
    first = ids(make_stream(tiny_processor, numbered(5)).take(1))
    with pytest.raises(TooManyUnusableRows, match="1 of the first 5 rows"):
        make_stream(tiny_processor, numbered(5, bad=first)).take(4)  # with the epoch's last row, not after it


def test_later_epochs_do_not_dilute_the_share(tiny_processor):
    rows = numbered(10, bad={1, 2})
    patient = make_stream(tiny_processor, rows, max_skipped_share=0.2)
    patient.take(24)  # three epochs
    strict = make_stream(tiny_processor, rows, max_skipped_share=0.19)
    strict.load_state_dict(patient.state_dict())
    with pytest.raises(TooManyUnusableRows, match="2 of the first 10 rows"):
        strict.take(1)


def test_nothing_usable_stops_even_where_everything_may_be_skipped(tiny_processor):
    with pytest.raises(TooManyUnusableRows, match="3 of the first 3 rows"):
        make_stream(tiny_processor, numbered(3, bad={0, 1, 2}), max_skipped_share=1.0).take(1)


def test_another_dataset_or_seed_is_no_resume(tiny_processor):
    state = make_stream(tiny_processor).state_dict()
    with pytest.raises(ValueError, match="rows = 10, this one has 9"):
        make_stream(tiny_processor, numbered(9)).load_state_dict(state)
    with pytest.raises(ValueError, match="seed = 0, this one has 1"):
        make_stream(tiny_processor, seed=1).load_state_dict(state)
    with pytest.raises(ValueError, match="no rows"):
        make_stream(tiny_processor, Rows([]))


def test_a_wrong_forecast_of_the_length_is_loud(tiny_processor, monkeypatch):
    monkeypatch.setattr("papo_hub.data._foreseen_length", lambda *args: 1)
    with pytest.raises(RuntimeError, match="where 1 were foreseen"):
        make_stream(tiny_processor).take(1)


def test_nothing_draws_from_the_global_state(tiny_processor):
    before = torch.get_rng_state(), random.getstate()
    make_stream(tiny_processor, mask=MASK).take(4)
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]


# --- workers ----------------------------------------------------------------------------------------------------------


class Table:
    """Rows made on the spot, pictures of many sizes; a file in `seen` for each that is read, an error for one index."""

    def __init__(self, count, bad=(), seen=None, broken=None):
        self.count, self.bad, self.seen, self.broken = count, bad, seen, broken

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index == self.broken:
            raise OSError(5, "the disk is broken", f"shard-{index}")
        if self.seen is not None:
            (self.seen / str(index)).touch()
        images = [picture(28 + 9 * (index % 7), 28 + 5 * (index % 11))] * (1 + index % 2)
        answer = None if index in self.bad else str(index)
        return row(answer, images) | {"problem": "How many?" + " more" * (index % 5)}


def fingerprint(prompts):
    """Of everything in the prompts."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(
            repr((prompt.sample.id, prompt.sample.problem, prompt.sample.answer, prompt.sample.tags)).encode()
        )
        for image in (*prompt.sample.images, *prompt.masked_images):
            digest.update(repr((image.mode, image.size)).encode() + image.tobytes())
        for view in (prompt.clean, prompt.masked):
            for name, value in view.items():
                digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode() + value.numpy().tobytes())
    return digest.hexdigest()


@pytest.fixture
def worker_stream(tiny_processor):
    """make_stream whose workers end with the test."""
    made = []

    def make(*args, **options):
        made.append(make_stream(tiny_processor, *args, mask=MASK, **options))
        return made[-1]

    yield make
    for stream in made:
        stream.close()
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(("num_workers", "world_size"), [(1, 1), (3, 1), (2, 2), (1, 3)])
def test_workers_change_nothing(worker_stream, num_workers, world_size):
    rows = Rows(Table(23, bad={2, 5, 6, 19}))  # two epochs: in most batches a row falls out of its turn
    for rank in range(world_size):
        plain, ahead = (worker_stream(rows, max_skipped_share=0.5, num_workers=n) for n in (0, num_workers))
        before = torch.get_rng_state(), random.getstate()
        for n in (6, 12, 6, 18):
            share = n, rank, world_size
            assert fingerprint(ahead.take(*share)) == fingerprint(plain.take(*share))
            assert ahead.state_dict() == plain.state_dict()
        assert ahead.skipped == dict.fromkeys(["2", "5", "6", "19"], "empty answer")
        assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]


def test_a_resume_knows_nothing_of_what_was_read_ahead(worker_stream):
    rows = Rows(Table(30, bad={7}))
    through = worker_stream(rows)
    through.take(13)
    expected = fingerprint(through.take(17))
    before, resumed = worker_stream(rows, num_workers=2), worker_stream(rows, num_workers=1)
    before.take(13)
    state = json.loads(json.dumps(before.state_dict()))
    resumed.take(3)  # what it read ahead for is over
    resumed.load_state_dict(state)
    assert fingerprint(resumed.take(17)) == fingerprint(before.take(17)) == expected
    assert resumed.state_dict() == before.state_dict() == through.state_dict()


def test_another_share_starts_where_the_last_one_ended(worker_stream):
    order = ids(worker_stream(Rows(Table(40))).take(15))
    for num_workers in (0, 2):
        stream = worker_stream(Rows(Table(40)), num_workers=num_workers)
        assert ids(stream.take(6, 1, 2)) == order[1:6:2]
        assert ids(stream.take(3)) == order[6:9]
        assert ids(stream.take(6, 2, 3)) == order[11:15:3]


@pytest.mark.parametrize(("world_size", "checked"), [(1, 4 + 4), (2, 4 + 8)])
def test_workers_read_as_far_ahead_as_one_batch(worker_stream, tmp_path, world_size, checked):
    stream = worker_stream(Rows(Table(100, seen=tmp_path)), num_workers=2)
    stream.take(4, 0, world_size)
    stop = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < checked and time.monotonic() < stop:
        time.sleep(0.01)
    time.sleep(0.2)
    assert len(list(tmp_path.iterdir())) == checked


@pytest.mark.parametrize("world_size", [1, 2])
def test_errors_come_when_and_as_they_would_without_workers(worker_stream, world_size):
    order = ids(worker_stream(Rows(Table(40))).take(40))
    broken = Rows(Table(40, broken=order[9]))
    dirty = Rows(Table(40, bad=order[15:30]))
    small = {"rows": Rows(Table(40)), "max_prompt_length": 3}
    for options, good in (({"rows": broken}, 8), ({"rows": dirty}, 12), (small, 0)):
        raised = []
        for num_workers in (0, 2):
            stream = worker_stream(**options, num_workers=num_workers)
            assert len(stream.take(good, 0, world_size)) == good // world_size
            state = stream.state_dict()
            for _ in range(2):  # again after the error: it is the same
                with pytest.raises((OSError, TooManyUnusableRows)) as caught:
                    stream.take(12, 0, world_size)
            assert stream.state_dict()["cursor"] == state["cursor"]
            raised.append((caught.type, str(caught.value)))
        assert raised[0] == raised[1]


def test_a_killed_worker_is_an_error_and_no_end(worker_stream):
    stream = worker_stream(Rows(Table(200)), num_workers=2)
    first = fingerprint(stream.take(4))
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    with pytest.raises(WorkerDied, match="was ended by SIGKILL.*fewer dataloader_num_workers"):
        for _ in range(40):
            stream.take(4)
    assert multiprocessing.active_children() == []
    stream.load_state_dict({**stream.state_dict(), "cursor": 0, "seen": 0, "skipped": {}})
    assert fingerprint(stream.take(4)) == first


def test_workers_end_with_the_stream(tiny_processor):
    stream = make_stream(tiny_processor, num_workers=2)
    stream.take(4)
    assert len(multiprocessing.active_children()) == 2
    del stream
    assert multiprocessing.active_children() == []


def test_a_recipe_sets_the_number_of_workers(tiny_processor, fast_config):
    from papo_hub.plugins import PerceptionPlugin  # workers import this file, and need not wait for these
    from papo_hub.preparation import prompt_stream

    config = fast_config(dataloader_num_workers=3)
    stream = prompt_stream(numbered(10), tiny_processor, config, PerceptionPlugin.from_config(config))
    assert stream.num_workers == 3
    with pytest.raises(ConfigError, match="dataloader_num_workers: -1 must be at least 0"):
        fast_config(dataloader_num_workers=-1)


# --- streamed rows ----------------------------------------------------------------------------------------------------


class Numbers(StreamedRows):
    """Rows made on the spot, in shards of the given sizes; `read` lists what was asked for."""

    num_shards = property(lambda self: len(self.table))

    def __init__(self, sizes):
        super().__init__(sizes)
        object.__setattr__(self, "read", [])

    def shard(self, index, start=0):
        for number in range(start, self.table[index]):
            self.read.append((index, number))
            yield (index, number), {"id": f"{index}-{number}"}


def walk(sizes, cursor=ShuffledBlocks.start, buffer_size=4, epochs=2, seed=0):
    """The places of the given number of epochs from the cursor on."""
    order, places = ShuffledBlocks(Numbers(sizes), seed, buffer_size), []
    for place in order.places(cursor):
        places.append(place)
        if place.last and place.epoch == epochs - 1:
            return places


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any),
    buffer_size=st.integers(1, 12),
    seed=st.integers(0, 3),
)
def test_an_order_of_blocks_has_every_row_once_an_epoch_and_goes_on_from_any_place(sizes, buffer_size, seed):
    places = walk(sizes, buffer_size=buffer_size, seed=seed)
    rows = {(i, j) for i, size in enumerate(sizes) for j in range(size)}
    for epoch in range(2):
        assert Counter(place.key for place in places if place.epoch == epoch) == Counter(rows)
        assert sum(place.last for place in places if place.epoch == epoch) == 1
    for i in (0, len(places) // 3, len(places) // 2, len(rows) - 1, len(rows), len(places) - 2):
        if 0 <= i < len(places) - 1:  # after the last place comes a third epoch
            cursor = json.loads(json.dumps(places[i].after))
            assert walk(sizes, cursor, buffer_size, seed=seed) == places[i + 1 :]


def test_blocks_differ_from_epoch_to_epoch_and_hold_neighbours():
    sizes, places = [20] * 4, walk([20] * 4, buffer_size=10, epochs=3)
    orders = [[place.key for place in places[80 * epoch : 80 * (epoch + 1)]] for epoch in range(3)]
    assert len({tuple(order) for order in orders}) == 3
    assert len({tuple(dict.fromkeys(shard for shard, _ in order)) for order in orders}) == 3, "shards change places"
    # A row is passed at most a block before or after its turn in the files.
    for order in orders:
        shards = list(dict.fromkeys(shard for shard, _ in order))
        turn = [shards.index(shard) * sizes[0] + number for shard, number in order]
        assert 5 < max(abs(i - t) for i, t in enumerate(turn)) < 10
        assert sum(a + 1 == b for a, b in zip(turn, turn[1:], strict=False)) < 20
    small = [place.key for place in walk([20], buffer_size=1000)]
    assert small[:20] != small[20:], "nor do blocks keep their order where the buffer holds everything"
    starts = [{tuple(place.after[1:3]) for place in places if place.epoch == epoch} for epoch in range(3)]
    assert len({frozenset(found) for found in starts}) == 3, "else the same rows would always share a block"


def test_reading_ahead_of_a_stream_is_bounded_and_resuming_skips_what_lies_before():
    numbers = Numbers([30, 30, 30])
    places = ShuffledBlocks(numbers, 0, 5).places(ShuffledBlocks.start)
    for passed in range(1, 61):
        place = next(places)
        assert len(numbers.read) <= passed + 2 * 5
    again = Numbers([30, 30, 30])
    assert place.after[1] == 1 and place.after[2] > 10
    next(ShuffledBlocks(again, 0, 5).places(place.after))
    assert len(again.read) <= 2 * 5, "nothing of the first shard, nothing of the second before its block"


def test_a_stream_without_rows_is_an_error(tiny_processor):
    with pytest.raises(DataError, match="no rows"):
        next(ShuffledBlocks(Numbers([0, 0]), 0, 4).places(ShuffledBlocks.start))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """shards(sizes, bad=()) → a folder with a parquet file a shard, answers counted through, images of some sizes."""

    def make(sizes, bad=()):
        folder, count = tmp_path_factory.mktemp("shards"), 0
        features = datasets.Features(
            {
                "problem": datasets.Value("string"),
                "answer": datasets.Value("string"),
                "images": datasets.List(datasets.Image()),
                "id": datasets.Value("string"),
            }
        )
        for shard, size in enumerate(sizes):
            numbers = range(count, count + size)
            count += size
            columns = {
                "problem": ["<image>How many?" + " more" * (i % 3) for i in numbers],
                "answer": ["" if i in bad else str(i) for i in numbers],
                "images": [[{"bytes": png(28 + 9 * (i % 5), 28 + 5 * (i % 4)), "path": None}] for i in numbers],
                "id": [str(i) for i in numbers],
            }
            table = datasets.Dataset.from_dict(columns, features=features)
            table.to_parquet(folder / f"train-{shard:05d}-of-{len(sizes):05d}.parquet")
        return folder

    return make


def png(width, height):
    buffer = io.BytesIO()
    picture(width, height).save(buffer, "PNG")
    return buffer.getvalue()


STREAMED = {"shuffle_buffer_size": 6, "max_skipped_share": 0.5}


def test_streamed_prompts_are_those_of_rows_at_hand(worker_stream, shards):
    folder = shards([17], bad={4})
    at_hand = worker_stream(load_rows(folder), **STREAMED).take(16)
    streamed = worker_stream(stream_rows(folder), **STREAMED).take(16)
    assert ids(streamed) != ids(at_hand)
    for prompt in streamed:  # a dataset of one file has even the same masks
        (other,) = [one for one in at_hand if one.sample.id == prompt.sample.id]
        assert fingerprint([prompt]) == fingerprint([other])
    assert stream_rows(folder).root == folder


@pytest.mark.parametrize("first", [0, 2, 6, 12, 14, 20])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_resumed_stream_of_streamed_rows_continues_exactly(worker_stream, shards, first, num_workers):
    rows = stream_rows(shards([7, 0, 5], bad={3, 9}))  # 10 usable rows an epoch
    through, before, resumed = (worker_stream(rows, num_workers=num_workers, **STREAMED) for _ in range(3))
    through.take(first)
    before.take(first)
    state = json.loads(json.dumps(before.state_dict()))
    before.close()
    resumed.load_state_dict(state)
    for n in (4, 9):
        assert fingerprint(resumed.take(n)) == fingerprint(through.take(n))
        assert resumed.state_dict() == through.state_dict()
    if first + 13 > 20:
        assert resumed.skipped == {"3 (0-3)": "empty answer", "9 (2-2)": "empty answer"} and resumed.seen == 12


@pytest.mark.parametrize(("num_workers", "world_size"), [(0, 2), (2, 1), (2, 2)])
def test_ranks_and_workers_share_one_order_of_streamed_rows(worker_stream, shards, num_workers, world_size):
    rows = stream_rows(shards([8, 9], bad={2, 5, 11}))
    whole = worker_stream(rows, **STREAMED)
    ranks = [worker_stream(rows, num_workers=num_workers, **STREAMED) for _ in range(world_size)]
    for n in (4, 8, 12):
        expected = whole.take(n)
        for rank, stream in enumerate(ranks):
            assert fingerprint(stream.take(n, rank, world_size)) == fingerprint(expected[rank::world_size])
            assert stream.state_dict() == whole.state_dict()


def test_too_many_unusable_streamed_rows_stop_the_run(worker_stream, shards):
    some = stream_rows(shards([30, 30], bad=range(0, 60, 5)))
    with pytest.raises(TooManyUnusableRows, match="of the first 20 rows cannot be used"):
        worker_stream(some, shuffle_buffer_size=6, max_skipped_share=0.01).take(40)
    patient = worker_stream(some, shuffle_buffer_size=6, max_skipped_share=0.35)
    patient.take(96)  # two epochs: later ones do not count anew
    assert patient.seen == 60 and len(patient.skipped) == 12
    few = stream_rows(shards([5, 2], bad={1}))
    with pytest.raises(TooManyUnusableRows, match="1 of the first 7 rows"):  # where the first epoch ends
        worker_stream(few, shuffle_buffer_size=4).take(7)
    none = stream_rows(shards([3, 2], bad=range(5)))
    with pytest.raises(TooManyUnusableRows, match="5 of the first 5 rows"):
        worker_stream(none, max_skipped_share=1.0).take(1)


def test_another_order_of_streamed_rows_is_no_resume(tiny_processor, shards):
    folder = shards([4, 4])
    state = make_stream(tiny_processor, stream_rows(folder), shuffle_buffer_size=4).state_dict()
    for other, what in (
        (make_stream(tiny_processor, stream_rows(folder), shuffle_buffer_size=5), "shuffle_buffer_size = 4"),
        (make_stream(tiny_processor, stream_rows(shards([8])), shuffle_buffer_size=4), "shards = 2, this one has 1"),
        (make_stream(tiny_processor, stream_rows(folder), seed=1, shuffle_buffer_size=4), "seed = 0"),
        (make_stream(tiny_processor), "rows = None, this one has 10"),
    ):
        with pytest.raises(DataError, match=what):
            other.load_state_dict(state)


def test_a_stream_that_breaks_is_an_error_and_leaves_the_position(tiny_processor):
    class Broken(Numbers):
        def shard(self, index, start=0):
            for key, _ in super().shard(index, start):
                if key[1] == 9:
                    raise ConnectionError("the line is dead")
                yield key, {**row(str(key[1])), "id": key[1]}

    stream = make_stream(tiny_processor, Broken([20]), shuffle_buffer_size=2)
    stream.take(4)
    state = stream.state_dict()
    for _ in range(2):
        with pytest.raises(ConnectionError, match="the line is dead"):
            stream.take(8)
        assert stream.state_dict() == state


def test_a_recipe_streams(tiny_processor, fast_config, shards):
    from papo_hub.plugins import PerceptionPlugin
    from papo_hub.preparation import prompt_stream, steps_of, training_rows

    config = fast_config(dataset_name=str(shards([4, 4])), streaming=True, shuffle_buffer_size=3)
    stream = prompt_stream(training_rows(config), tiny_processor, config, PerceptionPlugin.from_config(config))
    assert isinstance(stream.order, ShuffledBlocks) and stream.order.buffer_size == 3
    assert sorted(ids(stream.take(8))) == list(range(8))
    with pytest.raises(ConfigError, match="streaming: the digits task"):
        training_rows(fast_config(streaming=True))
    assert steps_of(config, None) == config.max_steps
    with pytest.raises(ConfigError, match="max_steps: a streamed dataset does not say how many rows"):
        steps_of(fast_config(max_steps=None), None)


# --- real rows --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not VISUAL_QA.exists(), reason="no visual_qa data (PAPO_VISUAL_QA)")
def test_every_real_row_is_usable(tiny_processor):
    rows = load_rows(VISUAL_QA)
    assert len(rows) == 236
    stream = PromptStream(rows, tiny_processor, 0, max_prompt_length=4096, mask=MASK)
    seen = []
    while len(seen) < 236:
        seen += [prompt.sample for prompt in stream.take(59)]
    assert stream.skipped == {}
    assert sorted(int(sample.id) for sample in seen) == list(range(236))
    assert Counter(sample.tags["source"] for sample in seen)["mathvision"] == 60
    sides = [side for sample in seen for side in sample.images[0].size]
    assert (min(sides), max(sides)) == (31, 1265)
