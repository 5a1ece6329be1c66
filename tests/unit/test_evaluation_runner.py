"""Answers to problems: the same whatever kills the evaluation and wherever, asked for once, and a bad row costs one row."""

import io
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from papo_hub.batch import Completion
from papo_hub.data import UnusableRow
from papo_hub.digits import DigitRows
from papo_hub.evaluation import runner
from papo_hub.evaluation.answers import FILE, Transcript, read_answers
from papo_hub.evaluation.protocol import Protocol
from papo_hub.evaluation.runner import Skipped, Task, answer
from papo_hub.randomness import derived_generator
from papo_hub.rows import DataError, Rows

VIEWS = ("clean", "mask-0.6", "blank")
# 3 + 2 clean units (8 answers // k 4 = 2 problems), then of each task 2 + 2 and 1 + 1 of the other views (4 problems)
PROTOCOL = Protocol(k=4, view_k=2, views=VIEWS, batch_size=8)
TASKS = [
    Task("digits", Rows(DigitRows("test", size=5)), prompt_suffix=""),
    Task("others", Rows(DigitRows("test", size=3, seed=1)), prompt_suffix=""),
]
UNITS = 3 + 2 + 2 * 2 + 2 * 1
ANSWERS = (5 + 3) * (4 + 2 + 2)


class ScriptedEngine:
    """A response is a function of its seed, and right about half the time."""

    def __init__(self):
        self.asked = []  # (id, number of answers) of each prompt

    def generate(self, prompts, num_generations, sampling, generator, view="clean"):
        assert len(generator) == len(prompts) * num_generations
        self.asked += [(prompt.sample.id, num_generations) for prompt in prompts]
        return [
            Completion([1] * (1 + seed % 7), f"\\boxed{{{prompts[i // num_generations].sample.answer}}}{seed}", True)
            if seed % 2
            else Completion([2] * (1 + seed % 5), f"\\boxed{{{seed}}}", False)
            for i, seed in enumerate(generator)
        ]


def dependence(policy, prompts, completions, group_size, temperature, max_tokens):
    """The divergence of an answer, without a model: half a nat a token."""
    assert all(prompt.masked is not None for prompt in prompts)
    values = torch.zeros(len(completions), 8)
    for row, completion in enumerate(completions):
        values[row, : len(completion.token_ids)] = 0.5
    return values, values > 0


@pytest.fixture(scope="module", autouse=True)
def measured():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "visual_dependence", dependence)
        yield


@pytest.fixture
def ask(tiny_processor):
    def ask(folder, tasks=TASKS, protocol=PROTOCOL, engine=None):
        engine = engine or ScriptedEngine()
        policy = torch.nn.Linear(1, 1).train()
        result = answer(engine, policy, tiny_processor, tasks, protocol, Accelerator(), folder)
        assert policy.training  # as it was
        return result, engine.asked

    return ask


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_processor):
    """The bytes of an uninterrupted evaluation."""
    folder = tmp_path_factory.mktemp("whole")
    answer(ScriptedEngine(), torch.nn.Linear(1, 1), tiny_processor, TASKS, PROTOCOL, Accelerator(), folder)
    return (folder / FILE).read_bytes()


def test_every_problem_is_answered_in_every_view_in_order(ask, tmp_path):
    (answers, skipped), asked = ask(tmp_path)
    assert len(answers) == ANSWERS and skipped == []
    assert [a.key for a in answers] == [
        (task.name, task.rows[i]["id"], view, sample)
        for task in TASKS
        for i in range(len(task))
        for view in VIEWS
        for sample in range(PROTOCOL.samples(view))
    ]
    assert answers == read_answers(tmp_path)
    assert [count for _, count in asked] == [4] * 8 + [2] * 16  # the clean views of all benchmarks come first
    for a in answers:
        right = a.seed % 2 == 1
        assert (a.verdict, a.finished, a.tokens) == (right, right, 1 + a.seed % (7 if right else 5))
        assert a.perception_kl == (a.tokens / 2 if a.view == "clean" else None)
        assert a.extracted == (a.answer if right else f"{a.seed}") and a.tags.keys() >= {"kind", "dependence"}
        assert a.seed == derived_generator(42, a.benchmark, a.id, a.view, a.sample).initial_seed()
    assert len({a.seed for a in answers}) == ANSWERS
    assert len({a.prompt for a in answers}) == 8 * len(VIEWS)  # what was shown: another hash for each problem and view


# --- killed ---------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Nothing that code may catch."""


def after(calls, function, half=False):
    """The function, killed in its call number `calls`, counted from 0; `half`: once it has done its work."""
    count = iter(range(10**6))

    def killed(*arguments, **options):
        if next(count) < calls:
            return function(*arguments, **options)
        if half:
            function(*arguments, **options)
        raise Killed

    return killed


@pytest.mark.parametrize("place", ["engine", "grader", "before writing", "after writing"])
@pytest.mark.parametrize("calls", [0, 1, 3, 4, 5, 7, UNITS - 1])
def test_killed_anywhere_it_ends_as_if_it_had_not_been(ask, tmp_path, whole, place, calls):
    engine = ScriptedEngine()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        if place == "engine":
            engine.generate = after(calls, engine.generate)
        elif place == "grader":
            patch.setattr(runner, "accuracy_rewards", after(calls, runner.accuracy_rewards))
        else:
            patch.setattr(Transcript, "append", after(calls, Transcript.append, half=place == "after writing"))
        ask(tmp_path, engine=engine)
    written = len(read_answers(tmp_path)) if (tmp_path / FILE).exists() else 0
    (answers, _), asked = ask(tmp_path)
    assert (tmp_path / FILE).read_bytes() == whole and len(answers) == ANSWERS
    assert sum(count for _, count in asked) == ANSWERS - written  # what was on disk is not asked for again
    assert [file.name for file in tmp_path.iterdir()] == [FILE]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "encode", None)  # nor is it read again
        assert ask(tmp_path)[1] == []
    assert (tmp_path / FILE).read_bytes() == whole


@pytest.mark.parametrize("point", range(12))
def test_torn_at_any_byte_in_either_process_it_ends_as_if_it_had_not_been(ask, tmp_path, whole, point):
    draw = derived_generator("torn", point)
    cut, other = (int(torch.randint(len(whole), (1,), generator=draw)) for _ in range(2))
    (tmp_path / FILE).write_bytes(whole[:cut])
    if point % 2:  # a second process had its own file, torn as well, which may hold the same answers
        lines = whole.splitlines(keepends=True)
        (tmp_path / "answers-1.jsonl").write_bytes(b"".join(reversed(lines))[:other])
    if point % 4 == 3:
        (tmp_path / FILE).unlink()  # the first one had not written yet
    ask(tmp_path)
    assert (tmp_path / FILE).read_bytes() == whole
    assert [file.name for file in tmp_path.iterdir()] == [FILE]


# --- more of it -----------------------------------------------------------------------------------------------------


def test_more_samples_leave_what_is_there_and_ask_for_whole_problems(ask, tmp_path):
    (first, _), _ = ask(tmp_path / "grown", TASKS[:1], replace(PROTOCOL, k=4))
    (grown, _), asked = ask(tmp_path / "grown", TASKS[:1], replace(PROTOCOL, k=8))
    # A problem is decoded with all its samples or not at all, so the 4 that exist are drawn again, and dropped.
    assert [count for _, count in asked] == [8] * 5
    assert all(a in grown for a in first) and len(grown) == len(first) + 4 * 5
    (fresh, _), _ = ask(tmp_path / "fresh", TASKS[:1], replace(PROTOCOL, k=8))
    assert grown == fresh and (tmp_path / "grown" / FILE).read_bytes() == (tmp_path / "fresh" / FILE).read_bytes()
    (fewer, _), asked = ask(tmp_path / "grown", TASKS[:1], replace(PROTOCOL, k=2))
    assert asked == [] and fewer == [a for a in fresh if a.view != "clean" or a.sample < 2]
    assert len(read_answers(tmp_path / "grown")) == len(fresh)  # fewer are used, none is lost


def test_what_is_there_stands_even_where_it_would_now_come_out_otherwise(ask, tmp_path, monkeypatch):
    """As the last digits of a sum do with what else is decoded beside it."""
    (first, _), _ = ask(tmp_path, TASKS[:1])
    monkeypatch.setattr(runner, "visual_dependence", lambda *given: tuple(x * 1.000001 for x in dependence(*given)))
    (grown, _), _ = ask(tmp_path, TASKS[:1], replace(PROTOCOL, k=8))
    assert all(answer in grown for answer in first) and len(grown) == len(first) + 4 * 5


def test_another_view_or_benchmark_asks_for_that_alone(ask, tmp_path):
    ask(tmp_path / "grown", TASKS[:1], replace(PROTOCOL, views=("clean", "mask-0.6")))
    _, asked = ask(tmp_path / "grown", TASKS[:1])
    assert asked == [(f"digits-test-{i}", 2) for i in range(5)]  # the blank views
    _, asked = ask(tmp_path / "grown")
    assert [count for _, count in asked] == [4] * 3 + [2] * 6
    ask(tmp_path / "fresh")
    assert (tmp_path / "grown" / FILE).read_bytes() == (tmp_path / "fresh" / FILE).read_bytes()
    (alone, _), asked = ask(tmp_path / "grown", TASKS[1:])
    assert asked == [] and {a.benchmark for a in alone} == {"others"}
    assert len(read_answers(tmp_path / "grown")) == ANSWERS


def test_an_answer_does_not_depend_on_how_many_problems_there_are(ask, tmp_path):
    (few, _), _ = ask(tmp_path / "few", [replace(TASKS[0], limit=2)])
    (all_, _), _ = ask(tmp_path / "all", [TASKS[0]])
    assert few == all_[: len(few)] and len(few) == 2 * 8
    (grown, _), asked = ask(tmp_path / "few", [TASKS[0]])
    assert grown == all_
    assert {id for id, _ in asked if id in ("digits-test-0", "digits-test-1")} == {"digits-test-0", "digits-test-1"}
    # Units are of fixed problems: in the other views the four that are decoded together hold two answered ones.
    assert asked.count(("digits-test-0", 4)) == 0 and asked.count(("digits-test-0", 2)) == 2


# --- bad rows -------------------------------------------------------------------------------------------------------


def picture():
    stream = io.BytesIO()
    Image.new("RGB", (28, 28), (200, 10, 10)).save(stream, "PNG")
    return stream.getvalue()


def problem(**changed):
    return {"problem": "<image>sum: 1 2 3", "answer": "6", "images": [{"bytes": picture(), "path": None}]} | changed


BAD = {
    "truncated": (problem(images=[{"bytes": picture()[:60], "path": None}]), "unusable image"),
    "no answer": (problem(answer=" "), "empty answer"),
    "a list": (problem(answer=["6"]), "answer is not text: list"),
    "no image": (problem(images=[]), "no image"),
    "missing": (problem(images=[{"bytes": None, "path": "there.png"}]), "image file is missing"),
    "placeholders": (problem(problem="<image><image>sum"), "placeholders do not match images: 2 <image> for 1"),
    "too long": (problem(problem="<image>" + "1 " * 200), "prompt too long"),
    "a token": (problem(problem="<image>1<|im_end|>"), "control token"),
    "a line": (problem(images=[{"bytes": None, "path": "line.png"}]), "side"),
}


@pytest.fixture
def mixed(tmp_path):
    """Good rows between bad ones."""
    Image.new("RGB", (600, 2)).save(tmp_path / "line.png")
    rows = [row | {"id": id} for id, (row, _) in BAD.items()]
    for place in (0, 4, 11):
        rows.insert(place, problem(id=f"good {place}"))
    return Task("mixed", Rows(rows, tmp_path), prompt_suffix="")


def test_a_bad_row_costs_one_row_and_is_named_once_in_its_place(ask, tmp_path, mixed):
    protocol = replace(PROTOCOL, max_prompt_length=64, views=("clean", "mask-0.3", "mask-0.6", "mask-0.9", "blank"))
    (answers, skipped), asked = ask(tmp_path / "out", [mixed, TASKS[1]], protocol)
    assert list(dict.fromkeys(a.id for a in answers if a.benchmark == "mixed")) == ["good 0", "good 4", "good 11"]
    assert len(answers) == (3 + 3) * (4 + 4 * 2)
    assert [(row.benchmark, row.id) for row in skipped] == [("mixed", id) for id in BAD]
    for row in skipped:
        assert BAD[row.id][1] in row.reason
    (again, skipped_again), asked = ask(tmp_path / "out", [mixed, TASKS[1]], protocol)
    assert (again, skipped_again, asked) == (answers, skipped, [])  # though their rows will never be answered


def test_rows_that_are_all_bad_end_with_the_first_reason(ask, tmp_path, mixed):
    bad = replace(mixed, name="bad", rows=Rows(mixed.rows.table[1:4], mixed.rows.root))
    with pytest.raises(DataError, match="no row of bad can be used for evaluation; the first reason: unusable image"):
        ask(tmp_path / "out", [TASKS[1], bad])
    (kept, _), asked = ask(tmp_path / "out", TASKS[1:])
    assert len(kept) == 3 * 8 and asked == []  # what the others got is there
    behind = replace(mixed, rows=Rows(mixed.rows.table[1:], mixed.rows.root))
    ask(tmp_path / "out", [behind])
    with pytest.raises(DataError, match="no row of mixed can be used"):  # good rows there are, but behind the limit
        ask(tmp_path / "out", [replace(behind, limit=2)])


def test_rows_that_only_another_view_can_show_are_no_evaluation(ask, tmp_path, monkeypatch):
    usual = runner.seen

    def seen(images, view, id, patch_size):
        if view == "clean":
            raise UnusableRow("not that one")
        return usual(images, view, id, patch_size)

    monkeypatch.setattr(runner, "seen", seen)
    for _ in range(2):  # the second time there are answers to the blank views
        with pytest.raises(DataError, match="no row of digits can be used for evaluation; the first reason: not that"):
            ask(tmp_path, TASKS[:1])


def test_a_row_that_one_view_alone_can_show_is_answered_there_and_skipped_once(ask, tmp_path, monkeypatch):
    usual = runner.seen

    def seen(images, view, id, patch_size):
        if id == "digits-test-1" and view != "blank":
            raise UnusableRow(f"{view} cannot be made")
        return usual(images, view, id, patch_size)

    monkeypatch.setattr(runner, "seen", seen)
    (answers, skipped), _ = ask(tmp_path, TASKS[:1])
    assert {a.view for a in answers if a.id == "digits-test-1"} == {"blank"}
    assert len(answers) == 4 * 8 + 2
    # Two reasons, in two views: the first in the order of the alphabet, whichever process found it first.
    assert skipped == [Skipped("digits", "digits-test-1", "clean cannot be made")]
