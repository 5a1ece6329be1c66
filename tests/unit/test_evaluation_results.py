"""The tables of an evaluation by hand: two benchmarks of three problems with two answers each, in three views."""

import math

import pytest

from papo_hub.evaluation.answers import Answer
from papo_hub.evaluation.results import tabulate
from papo_hub.evaluation.runner import Skipped

VIEWS = ["clean", "mask-0.6", "blank"]
SETTINGS = {
    "benchmarks": [
        {"name": "geometry3k", "title": "Geometry3K", "group": "general"},
        {"name": "mathvista", "title": "MathVista", "group": "general"},
    ],
    "protocol": {"k": 2, "view_k": 2, "views": VIEWS},
}
# Right answers (of 2) to the problems a, b, c in each view.
RIGHT = {
    "geometry3k": {"clean": (2, 1, 0), "mask-0.6": (1, 0, 0), "blank": (0, 0, 1)},
    "mathvista": {"clean": (2, 2, 1), "mask-0.6": (2, 0, 1), "blank": (2, 2, 0)},
}
KIND = {"a": "sum", "b": "sum", "c": "evens"}
SAID = {"a": "1 2", "b": "9 9", "c": "1 2"}  # what an answer claims to have read; b is misread
READING = {"a": "1 2", "b": "3 4", "c": "1 2"}


def answers():
    for benchmark, views in RIGHT.items():
        for view, counts in views.items():
            for place, (id, right) in enumerate(zip("abc", counts, strict=True)):
                for sample in (1, 0):  # the order of the lines does not matter
                    verdict = float(sample < right)
                    tags = {"kind": KIND[id], "name": f"only {id}"}
                    yield Answer(
                        benchmark, id, view, sample, seed=0, prompt="", answer="7",
                        response=f"<think> {SAID[id]}</think> \\boxed{{{7 if verdict else sample}}}",
                        extracted="7" if verdict else f"{sample}", verdict=verdict, format=1.0 if id != "c" else 0.0,
                        tokens=10 * (place + 1) + sample, finished=id != "a" or sample == 0,
                        perception_kl=(place + 1.0) if view == "clean" and benchmark == "geometry3k" else None,
                        tags=tags | ({"reading": READING[id]} if benchmark == "geometry3k" else {}),
                    )  # fmt: skip


@pytest.fixture(scope="module")
def results():
    return tabulate(list(answers()), SETTINGS, [Skipped("mathvista", "d", "no image")])


def find(results, **wanted):
    (row,) = [row for row in results["rows"] if wanted.items() <= row.items()]
    return row


def test_a_row_by_hand(results):
    row = find(results, benchmark="geometry3k", view="clean", subset="all")
    assert (row["title"], row["group"]) == ("Geometry3K", "general")
    assert (row["k"], row["problems"], row["answers"]) == (2, 3, 6)
    assert row["accuracy"] == 0.5  # means 1, 1/2, 0
    assert row["standard_error"] == pytest.approx(0.5 / math.sqrt(3), rel=1e-12)  # their deviation is 1/2
    assert (row["low"], row["high"]) == (0.0, 1.0)  # a resample is three times the same with probability 1/27 > 2.5 %
    assert row["pass_at_k"] == pytest.approx(2 / 3)  # a and b have a right one
    assert row["majority_at_k"] == 0.5  # a: 7; b: 7 or 1, a tie, half; c: 0 or 1, both wrong
    assert row["format_rate"] == pytest.approx(2 / 3)
    assert row["finished_rate"] == pytest.approx(5 / 6)
    assert row["tokens"] == pytest.approx((10 + 11 + 20 + 21 + 30 + 31) / 6)
    assert row["perception_kl"] == pytest.approx((1 + 1 + 2 + 2 + 3 + 3) / 123, rel=1e-12)  # a token, not an answer
    assert find(results, benchmark="mathvista", view="clean", subset="all")["perception_kl"] is None


def test_rows_come_by_benchmark_view_and_subset(results):
    subsets = ["all", "kind: evens", "kind: sum"]  # neither readings nor a tag that is another for each problem
    expected = [(name, view, subset) for name in RIGHT for view in VIEWS for subset in subsets]
    assert [(row["benchmark"], row["view"], row["subset"]) for row in results["rows"]] == expected
    sums = find(results, benchmark="geometry3k", view="clean", subset="kind: sum")
    assert (sums["problems"], sums["answers"], sums["accuracy"], sums["pass_at_k"]) == (2, 4, 0.75, 1.0)
    evens = find(results, benchmark="geometry3k", view="blank", subset="kind: evens")
    assert (evens["problems"], evens["accuracy"], evens["standard_error"]) == (1, 0.5, None)


def test_averages_are_of_benchmarks(results):
    general = results["averages"]["general"]
    assert general["benchmarks"] == ["geometry3k", "mathvista"] and general["complete"] is False
    assert general["accuracy"] == pytest.approx((1 / 2 + 5 / 6) / 2, rel=1e-12)
    errors = (0.5 / math.sqrt(3), math.sqrt(((1 / 6) ** 2 * 2 + (1 / 3) ** 2) / 2) / math.sqrt(3))
    assert general["standard_error"] == pytest.approx(math.hypot(*errors) / 2, rel=1e-12)
    assert general["low"] < general["accuracy"] < general["high"]
    assert results["averages"].keys() == {"general", "overall"}  # vision has none
    assert results["averages"]["overall"] == general


def test_an_average_is_complete_with_the_benchmarks_of_the_paper_alone(results):
    five = ["geometry3k", "mathvista", "we_math", "mmk12", "mathverse"]
    lines = [answer for answer in answers() if answer.benchmark == "geometry3k" and answer.view == "clean"]
    lines = [Answer(**(vars(answer) | {"benchmark": name})) for name in five for answer in lines]
    entries = [{"name": name, "title": name, "group": "general"} for name in five]
    found = tabulate(lines, {"benchmarks": entries, "protocol": SETTINGS["protocol"]})["averages"]
    assert found["general"]["complete"] and found["general"]["accuracy"] == 0.5
    assert not found["overall"]["complete"]  # which lacks the four of vision
    few = tabulate(
        [a for a in lines if a.benchmark != "mmk12"], {"benchmarks": entries, "protocol": SETTINGS["protocol"]}
    )
    assert not few["averages"]["general"]["complete"]
    one = tabulate(lines, {"benchmarks": entries[:1], "protocol": SETTINGS["protocol"]})
    assert one["averages"] == {}  # the mean of one benchmark is its row


def test_the_gap_is_to_the_view_that_shows_least(results):
    found = results["vision_dependency"]["geometry3k"]
    curve = [(point["view"], point["mask_ratio"], point["accuracy"]) for point in found["curve"]]
    assert curve == [
        ("clean", 0.0, 0.5),
        ("mask-0.6", 0.6, pytest.approx(1 / 6)),
        ("blank", None, pytest.approx(1 / 6)),
    ]
    assert found["gap"]["against"] == "blank"
    assert found["gap"]["difference"] == pytest.approx((1 + 0.5 - 0.5) / 3)  # problem by problem
    assert (found["gap"]["low"], found["gap"]["high"]) == (-0.5, 1.0)
    assert found["perception_kl"] == pytest.approx(12 / 123)
    assert results["vision_dependency"]["mathvista"]["gap"]["difference"] == pytest.approx(5 / 6 - 4 / 6)
    masked = [answer for answer in answers() if answer.view != "blank"]
    gap = tabulate(masked, SETTINGS)["vision_dependency"]["geometry3k"]["gap"]
    assert (gap["against"], gap["difference"]) == ("mask-0.6", pytest.approx(1 / 3))
    clean = tabulate([answer for answer in answers() if answer.view == "clean"], SETTINGS)
    assert clean["vision_dependency"]["geometry3k"]["gap"] is None


def test_errors_are_of_the_answers_to_the_clean_image_whose_reading_is_known(results):
    shares = results["perception_errors"]["geometry3k"]
    # a: read and right, twice; b: misread, one right, one wrong; c: read, wrong twice
    expected = {"right": 2 / 6, "lucky": 1 / 6, "perception_error": 1 / 6, "reasoning_error": 2 / 6, "unread": 0.0}
    assert {name: shares[name] for name in expected} == pytest.approx(expected)
    assert shares["perception_share"] == pytest.approx(1 / 3)
    assert results["perception_errors"].keys() == {"geometry3k"}


def test_what_was_skipped_and_asked_stands_in_the_results(results):
    assert results["skipped"] == [{"benchmark": "mathvista", "id": "d", "reason": "no image"}]
    assert results["settings"] is SETTINGS


def test_problems_with_unequal_numbers_of_answers_share_the_smaller_k():
    """As of a row that was added while k grew."""
    lines = [a for a in answers() if (a.benchmark, a.view) == ("geometry3k", "clean") and (a.id, a.sample) != ("a", 1)]
    row = tabulate(lines, SETTINGS)["rows"][0]
    assert (row["k"], row["problems"], row["answers"]) == (1, 3, 5)
    assert row["accuracy"] == 0.5  # problems weigh equally, not answers
    assert row["pass_at_k"] == 0.5  # of one answer: the accuracy
    assert row["majority_at_k"] == pytest.approx(2 / 3)  # of sample 0, wherever its line stands: right, right, wrong
