"""The metrics: by hand, as `evaluate.load` gives them far from here without a network, and as they are documented."""

import doctest
import importlib
import json
import os
import re
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path

import evaluate
import numpy as np
import pytest

from papo_hub import metrics
from papo_hub.metrics.avg_at_k.avg_at_k import AvgAtK, accuracy, average_at_k, majority_at_k, pass_at_k
from papo_hub.metrics.format_rate.format_rate import FormatRate, format_rates
from papo_hub.metrics.perception_error.perception_error import (
    KINDS,
    PerceptionError,
    classify,
    perception_errors,
    stated_reading,
)
from papo_hub.metrics.vision_dependency.vision_dependency import (
    VisionDependency,
    mask_ratio,
    perception_kl_per_token,
    vision_dependency,
)
from papo_hub.statistics import bootstrap_mean, bootstrap_ratio

ROOT = Path(__file__).parents[2]

RESPONSES = [
    [r"<think>3 4 1</think> \boxed{8}", r"<think>3 9 1</think> \boxed{13}", r"\boxed{8}"],
    [r"<think>2 2 2</think> \boxed{6}", r"<think>2 2 2</think> \boxed{7}", "6"],
    [r"<think>5 0 0</think> \boxed{5.0}", r"<think>6 0 0</think> \boxed{6}", r"<think>5 0 1</think> \boxed{5}"],
]
ANSWERS = ["8", "6", "5"]
READINGS = ["3 4 1", "2 2 2", "5 0 0"]
VERDICTS = [[1, 0, 1], [1, 0, 0], [1, 0, 1]]


# --- avg@k ------------------------------------------------------------------------------------------------------------


def test_average_by_hand():
    assert average_at_k(VERDICTS) == pytest.approx([2 / 3, 1 / 3, 2 / 3])
    assert average_at_k([[1], [1, 0, 0, 0]]) == pytest.approx([1, 1 / 4])  # each problem over what it has


def test_pass_at_k_is_the_share_of_all_choices_with_a_right_one():
    verdicts = [[0, 1, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]]
    for k in range(1, 6):
        expected = [np.mean([max(chosen) for chosen in combinations(problem, k)]) for problem in verdicts]
        assert pass_at_k(verdicts, k) == pytest.approx(expected)
    assert pass_at_k([[0.5, 0.9]], 2) == [0]  # only 1 is right


@pytest.mark.parametrize(
    ("answers", "verdicts", "expected"),
    [
        (["8", "8", "7"], [1, 1, 0], 1),
        (["8", "7", "7"], [1, 0, 0], 0),
        (["8", "7"], [1, 0], 1 / 2),  # a tie is shared
        (["8", "7", "6", "8", "7"], [1, 0, 0, 1, 0], 1 / 2),
        (["8", "7", "6"], [1, 0, 0], 1 / 3),
        ([None, None, None, "8"], [0, 0, 0, 1], 1),  # no box is no vote
        ([None, None], [1, 0], 0),
        ([r"\frac12", r"$\dfrac{1}{2}$", "7", r"\text{ 7 }", r"\frac {1}{2}"], [1, 1, 0, 0, 1], 1),  # one spelling
        (["1" * 5000, "1" * 5000, "2"], [0, 0, 1], 0),
    ],
)
def test_majority_by_hand(answers, verdicts, expected):
    assert majority_at_k([answers], [verdicts]) == pytest.approx([expected])


def test_the_vote_is_of_the_first_k_and_the_average_of_all():
    results = accuracy([[1, 0, 0]], [["8", "7", "7"]], k=1)
    assert results["majority_at_k"] == 1 and (results["avg_at_k"], results["pass_at_k"]) == pytest.approx(
        (1 / 3, 1 / 3)
    )
    assert accuracy([[1, 0, 0], [1, 1]])["k"] == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: average_at_k([]), "no problems"),
        (lambda: average_at_k([[1], []]), "problem 1 has 0 responses"),
        (lambda: average_at_k([[1], [2]]), "problem 1 has the verdict 2"),
        (lambda: pass_at_k([[1, 0], [1]], 2), "problem 1 has 1 responses, fewer than k = 2"),
        (lambda: pass_at_k([[1]], 0), "k: 0"),
        (lambda: pass_at_k([[1]], 1.0), "k: 1.0"),
        (lambda: majority_at_k([["8"]], [[1, 0]]), "as many answers"),
    ],
)
def test_what_accuracy_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- format -----------------------------------------------------------------------------------------------------------


def test_format_rates_by_hand():
    formats, boxes = format_rates(RESPONSES)
    assert formats == pytest.approx([2 / 3, 2 / 3, 1])
    assert boxes == pytest.approx([1, 2 / 3, 1])


# --- perception errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "verdict", "kind"),
    [
        ("<think>3 4 1</think>", 1, "right"),
        ("<think>\n 3  4\t1 </think>", 0, "reasoning_error"),
        ("<think>3 9 1</think>", 0, "perception_error"),
        ("<think>3 41</think>", 1, "lucky"),
        ("3 4 1", 1, "unread"),
        ("<think>3 4 1", 0, "unread"),
        ("<think> </think>", 1, "unread"),
        ("</think>3 4 1<think>", 1, "unread"),
        ("</think><think>3 4 1</think>", 1, "right"),
        ("<think>3 4 1</think><think>9</think>", 1, "right"),
    ],
)
def test_kinds_by_hand(response, verdict, kind):
    assert classify(response, "3 4 1 ", verdict) == kind


def test_a_pattern_says_where_the_reading_is():
    assert stated_reading("I see: 3  4 1. So 8", r"see: ([\d ]+)") == "3 4 1"
    assert stated_reading("nothing", r"see: ([\d ]+)") is None
    assert stated_reading("see", r"see(: \d)?") is None  # the group took no part
    assert classify("I see 3 4 1", "3 4 1", 0, re.compile(r"see (.*)")) == "reasoning_error"


def test_shares_by_hand():
    kinds = ["right"] * 4 + ["perception_error"] * 3 + ["reasoning_error"] + ["lucky"] + ["unread"]
    shares = perception_errors(kinds)
    assert [shares[kind] for kind in KINDS] == pytest.approx([0.4, 0.3, 0.1, 0.1, 0.1])
    assert shares["perception_share"] == 3 / 4
    assert perception_errors(["right"])["perception_share"] is None


def test_hostile_text_does_not_stall():
    start = time.perf_counter()
    long = "<think>" * 300_000
    assert stated_reading(long) is None
    assert stated_reading(long + "</think>") is not None
    assert stated_reading("a" * 60_000, r"(a+)b") is None  # quadratic: half a minute, were all of it searched
    assert stated_reading("a" * 60_000 + "see: 1", r"see: (\d)") is None
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: classify("", " ", 1), "reading: empty"),
        (lambda: stated_reading("", "("), "no regular expression"),
        (lambda: stated_reading("", "a"), "no group"),
        (lambda: perception_errors([]), "kinds: empty"),
    ],
)
def test_what_the_sorting_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- vision dependency ------------------------------------------------------------------------------------------------

SEEN = {
    "blank": {"a": 0.0, "b": 0.5},
    "mask-0.6": {"b": 0.5, "a": 0.25, "d": 1.0},
    "clean": {"a": 1.0, "b": 0.5, "c": 0.0},
    "mask-0.3": {"a": 1.0, "b": 0.25, "c": 0.0},
}


def test_views_by_hand():
    found = vision_dependency(SEEN)
    curve = {point["view"]: point for point in found["curve"]}
    assert list(curve) == ["clean", "mask-0.3", "mask-0.6", "blank"]
    assert [point["mask_ratio"] for point in found["curve"]] == [0, 0.3, 0.6, None]
    assert [point["accuracy"] for point in found["curve"]] == pytest.approx([1 / 2, 5 / 12, 7 / 12, 1 / 4])
    assert [point["problems"] for point in found["curve"]] == [3, 3, 3, 2]
    assert curve["blank"]["standard_error"] == pytest.approx(0.25)
    assert (curve["clean"]["low"], curve["clean"]["high"]) == bootstrap_mean([1, 0.5, 0])
    # Over a and b, which both views have: (0.75 + 0) / 2, of the clean view's 0.75 there
    assert found["gap"]["mask-0.6"] == {
        "difference": 0.375,
        "low": bootstrap_mean([0.75, 0]).low,
        "high": bootstrap_mean([0.75, 0]).high,
        "problems": 2,
    }
    assert found["relative_gap"] == pytest.approx({"mask-0.3": 1 / 6, "mask-0.6": 1 / 2, "blank": 2 / 3})


def test_a_model_that_is_never_right_has_no_relative_gap():
    found = vision_dependency({"clean": {"a": 0.0}, "blank": {"a": 1.0}})
    assert found["relative_gap"] == {"blank": None} and found["gap"]["blank"]["difference"] == -1


def test_divergence_is_per_token_not_per_problem():
    assert perception_kl_per_token([3.0, 1.0], [10, 90]) == (pytest.approx(0.04), bootstrap_ratio([3, 1], [10, 90]))


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ({}, "clean one is missing"),
        ({"blank": {"a": 1.0}}, "blank; the clean one is missing"),
        ({"clean": {}}, "clean has no problems"),
        ({"clean": {"a": 1.0}, "blank": {"b": 1.0}}, "no problem in common"),
        ({"clean": {"a": 1.0}, "mask-06": {"a": 1.0}}, "'mask-06' is no masked view"),
        ({"clean": {"a": 1.0}, "mask-0": {"a": 1.0}}, "'mask-0' is no masked view"),
    ],
)
def test_what_vision_dependency_refuses(views, message):
    with pytest.raises(ValueError, match=message):
        vision_dependency(views)


def test_other_views_have_no_ratio():
    assert [mask_ratio(view) for view in ("clean", "mask-1", "mask-0.25", "blank", "noise")] == [0, 1, 0.25, None, None]


# --- as evaluate runs them --------------------------------------------------------------------------------------------


@pytest.fixture
def loaded(tmp_path):
    """loaded(Class, configuration) → the metric, its files in tmp_path."""
    return lambda metric, name=None: metric(config_name=name, cache_dir=str(tmp_path))


ROWS = {
    "predictions": [["1"], ["0"], ["1"], ["0"]],
    "references": ["1"] * 4,
    "views": ["clean", "clean", "blank", "blank"],
    "ids": ["a", "b", "a", "b"],
}
CASES = [
    (AvgAtK, None, {"predictions": RESPONSES, "references": ANSWERS}),
    (AvgAtK, "verdicts", {"predictions": VERDICTS}),
    (FormatRate, None, {"predictions": RESPONSES}),
    (PerceptionError, None, {"predictions": RESPONSES, "references": ANSWERS, "readings": READINGS}),
    (VisionDependency, None, ROWS),
    (VisionDependency, "verdicts", ROWS | {"predictions": [[1], [0], [1], [0]], "references": None}),
]
NAMED = [f"{metric.__name__}-{name or 'default'}" for metric, name, _ in CASES]


@pytest.mark.parametrize(("metric", "name", "inputs"), CASES, ids=NAMED)
def test_batches_and_single_problems_add_up(loaded, metric, name, inputs):
    inputs = {column: values for column, values in inputs.items() if values is not None}
    whole = loaded(metric, name).compute(**inputs)
    halves, single = loaded(metric, name), loaded(metric, name)
    for part in (slice(0, 2), slice(2, None)):
        halves.add_batch(**{column: values[part] for column, values in inputs.items()})
    names = {"predictions": "prediction", "references": "reference"}
    for i in range(len(inputs["predictions"])):
        single.add(**{names.get(column, column): values[i] for column, values in inputs.items()})
    assert halves.compute() == single.compute() == whole


def test_responses_and_their_verdicts_give_the_same(loaded):
    graded = loaded(AvgAtK).compute(predictions=RESPONSES, references=ANSWERS, k=2)
    assert graded.pop("majority_at_k") == pytest.approx((1 / 2 + 1 / 2 + 1 / 2) / 3)
    assert loaded(AvgAtK, "verdicts").compute(predictions=VERDICTS, k=2) == graded
    assert graded == {
        "avg_at_k": pytest.approx(5 / 9),
        "standard_error": pytest.approx(1 / 9),  # deviations 1/9, -2/9, 1/9: variance 1/27, over 3 problems
        "pass_at_k": pytest.approx((1 + 2 / 3 + 1) / 3),
        "k": 2,
        "problems": 3,
    }


def test_errors_are_sorted_and_shares_sum_to_one(loaded):
    metric = loaded(PerceptionError)
    results = metric.compute(predictions=RESPONSES, references=ANSWERS, readings=READINGS)
    kinds = {"right": 3, "perception_error": 2, "reasoning_error": 1, "lucky": 1, "unread": 2}
    assert results == pytest.approx({kind: n / 9 for kind, n in kinds.items()} | {"perception_share": 2 / 3})
    options = {"pattern": r"(\d \d \d)", "grader": "math"}
    assert (
        metric.compute(predictions=["3 4 1"], references=["8"], readings=["3 4 1"], **options)["reasoning_error"] == 1
    )


def test_a_response_may_stand_alone(loaded):
    metric, verdicts = loaded(AvgAtK), loaded(AvgAtK, "verdicts")
    first = [responses[0] for responses in RESPONSES]
    alone = metric.compute(predictions=first, references=ANSWERS)
    assert alone == metric.compute(predictions=[[response] for response in first], references=ANSWERS)
    assert alone["avg_at_k"] == 1 and alone["k"] == 1
    assert metric.compute(predictions=[first[0], [first[1]]], references=ANSWERS[:2])["avg_at_k"] == 1  # mixed
    assert verdicts.compute(predictions=np.array([1, 0]))["avg_at_k"] == 0.5


def test_metrics_combine(loaded):
    inputs = {"predictions": RESPONSES, "references": ANSWERS, "readings": READINGS}
    names = (AvgAtK, FormatRate, PerceptionError)
    together = evaluate.combine([loaded(metric) for metric in names]).compute(**inputs, k=2, pattern=r">(.*)</think>")
    apart = [
        loaded(AvgAtK).compute(predictions=RESPONSES, references=ANSWERS, k=2),
        loaded(FormatRate).compute(predictions=RESPONSES),
        loaded(PerceptionError).compute(**inputs, pattern=r">(.*)</think>"),
    ]
    assert together == apart[0] | apart[1] | apart[2]
    assert len(together) == sum(map(len, apart))  # no name is used twice


def test_divergence_is_read_row_by_row(loaded):
    metric = loaded(VisionDependency)
    results = metric.compute(**ROWS, perception_kl=[3.0, None, 1.0, 0.0], tokens=[10, None, 90, 0])
    assert results["perception_kl"] == pytest.approx(0.04)
    assert (results["perception_kl_low"], results["perception_kl_high"]) == bootstrap_ratio([3, 1], [10, 90])
    for options in ({"perception_kl": [1.0] * 4}, {"perception_kl": [1.0], "tokens": [1]}):
        with pytest.raises(ValueError, match="each of the 4 rows"):
            metric.compute(**ROWS, **options)
    with pytest.raises(ValueError, match="None everywhere"):
        metric.compute(**ROWS, perception_kl=[None] * 4, tokens=[1] * 4)


@pytest.mark.parametrize(
    ("metric", "name", "inputs", "message"),
    [
        (AvgAtK, None, {"predictions": [], "references": []}, "no problems; pass a list"),
        (AvgAtK, None, {"predictions": "8", "references": "8"}, "no problems; pass a list"),
        (AvgAtK, None, {"predictions": ["8"]}, "references missing"),
        (AvgAtK, None, {"predictions": ["8", "8"], "references": ["8"]}, "2 predictions but 1 references"),
        (AvgAtK, None, {"predictions": [[]], "references": ["8"]}, "problem 0 has no response"),
        (AvgAtK, None, {"predictions": [["8", None]], "references": ["8"]}, "expected text, got NoneType"),
        (AvgAtK, None, {"predictions": ["8", "8"], "references": ["8", 8]}, "references, problem 1: expected text"),
        (AvgAtK, None, {"predictions": ["8"], "references": ["8"], "K": 1}, "unknown option K; known: k, grader"),
        (AvgAtK, None, {"predictions": ["8"], "references": ["8"], "grader": "eye"}, "grader 'eye'"),
        (AvgAtK, None, {"predictions": ["8"], "references": ["8"], "k": 2}, "problem 0 has 1 responses"),
        (AvgAtK, "verdicts", {"predictions": [[1], [2]]}, "verdict 2 of problem 1"),
        (AvgAtK, "verdicts", {"predictions": [["1"]]}, "verdict '1' of problem 0"),
        (FormatRate, None, {"predictions": ["8"], "n": 1}, "unknown option n; known: none"),
        (VisionDependency, "verdicts", {"predictions": [[1]], "views": ["clean"]}, "ids"),
        (VisionDependency, None, ROWS | {"ids": ["a"] * 4}, "problem a occurs twice in the view clean"),
        (VisionDependency, None, ROWS | {"views": ["blank"] * 4, "ids": list("abcd")}, "the clean one is missing"),
    ],
)
def test_bad_input_is_named_and_leaves_nothing_behind(loaded, metric, name, inputs, message):
    instance = loaded(metric, name)
    with pytest.raises(ValueError, match=message):
        instance.compute(**inputs)
    good = next(inputs for other, config, inputs in CASES if other is metric and config == name)
    good = {column: values for column, values in good.items() if values is not None}
    assert instance.compute(**good) == loaded(metric, name).compute(**good)


def test_an_unknown_metric_or_configuration_is_named(loaded):
    with pytest.raises(ValueError, match="'accuracy' is no metric: write one of avg_at_k"):
        metrics.path("accuracy")
    with pytest.raises(
        ValueError, match="'verdict' is no configuration of this metric: write one of default, verdicts"
    ):
        loaded(AvgAtK, "verdict")
    with pytest.raises(ValueError, match="write one of default"):
        loaded(FormatRate, "verdicts")


# --- far from here ----------------------------------------------------------------------------------------------------

ELSEWHERE = r"""
import json, os, socket, sys

def refuse(*arguments):
    raise AssertionError("the network was asked for")

socket.socket.connect = socket.getaddrinfo = refuse
folders, shared = json.loads(sys.argv[1])
import evaluate
import papo_hub.metrics, papo_hub.metrics.avg_at_k.avg_at_k
early = "math_verify" in sys.modules
results = {name: evaluate.load(folder).compute(predictions=["8", r"\boxed{8}"], references=["8", "8"],
    **({"views": ["clean"] * 2, "ids": ["a", "b"]} if name == "vision_dependency" else {}),
    **({"readings": ["8", "8"]} if name == "perception_error" else {}),
) for name, folder in folders.items()}

child = os.fork()
part = 0 if child else 1
metric = evaluate.load(folders["avg_at_k"], "verdicts", num_process=2, process_id=part, experiment_id="e", cache_dir=shared)
metric.add_batch(predictions=[[[1, 0, 1], [1, 0, 0]], [[1, 0, 1]]][part])
found = metric.compute(k=2)
if not child:
    os._exit(0 if found is None else 1)
assert os.waitpid(child, 0)[1] == 0
results["two processes"] = found
json.dump({"results": results, "early": early}, open(sys.argv[2], "w"))
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> dict:
    """What a program far from the repository measures, with empty caches and no network."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "program.py").write_text(ELSEWHERE)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    arguments = [[{name: metrics.path(name) for name in metrics.NAMES}, str(folder / "shared")]]
    command = [sys.executable, "program.py", *map(json.dumps, arguments), "results.json"]
    subprocess.run(command, cwd=folder, env=environment, check=True, timeout=300)
    return json.loads((folder / "results.json").read_text())


def test_every_metric_loads_from_its_folder(elsewhere):
    results = elsewhere["results"]
    assert results["avg_at_k"]["avg_at_k"] == 0.5
    assert results["format_rate"]["boxed_rate"] == 0.5
    assert results["perception_error"]["unread"] == 1
    assert results["vision_dependency"]["curve"][0]["accuracy"] == 0.5
    assert not elsewhere["early"]


def test_two_processes_give_what_one_gives(elsewhere, loaded):
    assert elsewhere["results"]["two processes"] == loaded(AvgAtK, "verdicts").compute(predictions=VERDICTS, k=2)


# --- what is documented -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def modules_in(tmp_path_factory):
    """evaluate copies what it loads; not into the user's cache."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "evaluate_modules").mkdir()
    (folder / "evaluate_modules/__init__.py").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evaluate.loading.init_dynamic_modules", lambda: str(folder / "evaluate_modules"))
        patch.setattr("evaluate.config.HF_METRICS_CACHE", str(folder / "cache"))
        patch.syspath_prepend(str(folder))
        yield


@pytest.mark.parametrize("name", metrics.NAMES)
def test_the_worked_examples_are_right(name, modules_in):
    module = importlib.import_module(f"papo_hub.metrics.{name}.{name}")
    example = doctest.DocTestParser().get_doctest(module.INPUTS, {}, name, None, 0)
    assert len(example.examples) >= 4
    assert doctest.DocTestRunner().run(example).failed == 0


def test_the_python_of_the_document_runs(modules_in):
    text = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 3
    names: dict = {}
    for block in blocks:
        exec(compile(block, "docs/evaluation.md", "exec"), names)


def test_the_document_names_every_result(loaded):
    text = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")
    rows = ROWS | {"perception_kl": [1.0] * 4, "tokens": [1] * 4}
    for metric, inputs in [(case[0], case[2]) for case in CASES if case[1] is None and case[2] is not ROWS] + [
        (VisionDependency, rows)
    ]:
        results = loaded(metric).compute(**inputs)
        assert [name for name in results if f"`{name}`" not in text] == [], metric
