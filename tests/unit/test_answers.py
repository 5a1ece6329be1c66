"""answers.jsonl: read whole, torn, doubled and wrong, appended to and merged."""

import json
from dataclasses import asdict, replace

import pytest

from papo_hub.evaluation.answers import FILE, Answer, AnswersError, Transcript, digest, merge, parse, read_answers

ANSWER = Answer(
    benchmark="digits",
    id="a",
    view="clean",
    sample=0,
    seed=7,
    prompt="00ff",
    answer="12",
    response="\\boxed{12}\n\ud800 \u2028 x",
    extracted="12",
    verdict=1.0,
    format=0.0,
    tokens=5,
    finished=True,
    perception_kl=0.5,
    tags={"kind": "sum"},
)


def answers(n):
    return [replace(ANSWER, id=f"p{i // 2}", sample=i % 2, seed=i) for i in range(n)]


def test_what_is_appended_is_read_back_with_newlines_and_surrogates(tmp_path):
    transcript = Transcript(tmp_path)
    transcript.append(answers(2))
    transcript.append(answers(4)[2:])
    assert read_answers(tmp_path) == answers(4) == read_answers(tmp_path / FILE)
    assert len((tmp_path / FILE).read_bytes().splitlines()) == 4


@pytest.mark.parametrize("cut", [1, 40, 200])
def test_a_torn_last_line_is_no_answer_and_the_next_one_begins_a_line(tmp_path, cut):
    Transcript(tmp_path).append(answers(3))
    file = tmp_path / FILE
    file.write_bytes(file.read_bytes()[:-cut])
    assert read_answers(tmp_path) == answers(2)
    Transcript(tmp_path).append(answers(3)[2:])
    assert read_answers(tmp_path) == answers(3)


def broken(**changes):
    return json.dumps({k: v for k, v in (asdict(ANSWER) | changes).items() if v != "absent"})


@pytest.mark.parametrize(
    "line, complaint",
    [
        ("{", "line 2 is no answer"),
        ("[1]", "expected an object, got list"),
        ("[" * 100_000, "line 2 is no answer"),
        (broken(verdict="absent", seed="absent"), "lacks seed, verdict"),
        (broken(extra=1), "has extra"),
        (broken(verdict=0.5), "verdict must be 0 or 1, got 0.5"),
        (broken(verdict=True), "verdict must be 0 or 1"),
        (broken(sample=-1), "sample must be a whole number"),
        (broken(perception_kl=float("nan")), "perception_kl must be a number or null"),
        (broken(tags={"a": 1}), "tags must be an object of texts"),
        (broken(response=None), "response must be text"),
    ],
)
def test_a_line_that_is_no_answer_is_named(tmp_path, line, complaint):
    (tmp_path / FILE).write_text(f"{ANSWER.to_json()}\n{line}\n{replace(ANSWER, id='b').to_json()}\n")
    with pytest.raises(AnswersError, match="line 2") as caught:
        read_answers(tmp_path)
    assert complaint in str(caught.value) and "Delete" in str(caught.value)


def test_bytes_that_are_no_text_are_named(tmp_path):
    (tmp_path / FILE).write_bytes(b"\xff\xfe\n")
    with pytest.raises(AnswersError, match="line 1"):
        read_answers(tmp_path)


def test_the_same_answer_twice_counts_once_a_different_one_is_refused(tmp_path):
    (tmp_path / FILE).write_text(f"{ANSWER.to_json()}\n{ANSWER.to_json()}\n")
    assert read_answers(tmp_path) == [ANSWER]
    (tmp_path / FILE).write_text(f"{ANSWER.to_json()}\n\n{replace(ANSWER, verdict=0.0).to_json()}\n")
    with pytest.raises(AnswersError, match="line 3: a second, different answer to digits 'a'"):
        read_answers(tmp_path)


def test_optional_fields_may_be_missing():
    assert parse(broken(perception_kl="absent", tags="absent")) == replace(ANSWER, perception_kl=None, tags={})


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="papo-hub evaluate writes it"):
        read_answers(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_answers(tmp_path / "there.jsonl")


def test_merging_makes_one_sorted_file_of_what_the_processes_wrote(tmp_path):
    everything = answers(6)
    Transcript(tmp_path).append(everything[4:])
    Transcript(tmp_path, rank=1).append(everything[:2])
    Transcript(tmp_path, rank=2).append(everything[2:4])
    assert merge(tmp_path, lambda answer: answer.seed) == everything == read_answers(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [FILE]
    # Killed between the new file and the end of the old ones:
    Transcript(tmp_path, rank=1).append(everything[:2])
    assert merge(tmp_path, lambda answer: answer.seed) == everything
    assert len((tmp_path / FILE).read_text().splitlines()) == 6
    assert merge(tmp_path / "nothing") == []


def test_a_digest_depends_on_where_its_parts_end():
    assert digest("ab", "c") != digest("a", "bc") and digest("ab") == digest(b"ab") and len(digest("\ud800")) == 16
