"""results.json: the tables that follow from a transcript. Accuracies and rates are shares, 0 to 1.

Every problem counts once: its answers make one mean, and intervals are over problems (docs/evaluation.md).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np

from papo_hub.evaluation.answers import Answer
from papo_hub.evaluation.benchmarks import GROUPS
from papo_hub.evaluation.runner import Skipped
from papo_hub.evaluation.subsets import READING, subsets
from papo_hub.evaluation.views import CLEAN
from papo_hub.metrics.avg_at_k.avg_at_k import average_at_k, majority_at_k, pass_at_k
from papo_hub.metrics.perception_error.perception_error import classify, perception_errors
from papo_hub.metrics.vision_dependency.vision_dependency import vision_dependency
from papo_hub.statistics import bootstrap_macro, bootstrap_mean, standard_error

Problems = dict[str, list[Answer]]  # id → its answers, in the order of their samples


def tabulate(answers: list[Answer], settings: dict[str, Any], skipped: Iterable[Skipped] = ()) -> dict[str, Any]:
    """The tables of an evaluation.

    Args:
        answers: of all benchmarks and views.
        settings: with "benchmarks", a list of objects with "name", "title" and "group"; the order is theirs.
        skipped: the rows that could not be used.

    Returns:
        "settings", "rows", "averages", "vision_dependency", "perception_errors", "skipped"; see docs/evaluation.md.
    """
    found: dict[str, dict[str, Problems]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for answer in sorted(answers, key=lambda answer: answer.sample):
        found[answer.benchmark][answer.view][answer.id].append(answer)
    entries = [entry for entry in settings["benchmarks"] if CLEAN in found[entry["name"]]]
    rows, dependency, errors = [], {}, {}
    for entry in entries:
        name, views = entry["name"], found[entry["name"]]
        about = {"benchmark": name, "title": entry["title"], "group": entry["group"]}
        for view in sorted(views, key=list(settings["protocol"]["views"]).index):
            rows += [about | {"view": view, "subset": subset} | _row(part) for subset, part in _parts(views[view])]
        dependency[name] = _dependency(views)
        if kinds := _kinds(views[CLEAN]):
            errors[name] = perception_errors(kinds)
    means = {entry["name"]: _means(found[entry["name"]][CLEAN]) for entry in entries}
    averages = {group: _average(group, means, names) for group, names in _averaged(entries).items()}
    return {
        "settings": settings,
        "rows": rows,
        "averages": averages,
        "vision_dependency": dependency,
        "perception_errors": errors,
        "skipped": [asdict(row) for row in skipped],
    }


def _row(problems: Problems) -> dict[str, Any]:
    """The quantities of one view of one benchmark, or of a subset of its problems."""
    verdicts = [[answer.verdict for answer in answers] for answers in problems.values()]
    extracted = [[answer.extracted for answer in answers] for answers in problems.values()]
    everything = [answer for answers in problems.values() for answer in answers]
    k = min(map(len, verdicts))
    means = average_at_k(verdicts)
    low, high = bootstrap_mean(means)
    tokens = [answer.tokens for answer in everything]
    measured = [answer for answer in everything if answer.perception_kl is not None]
    read = sum(answer.tokens for answer in measured)
    return {
        "k": k,
        "problems": len(problems),
        "answers": len(everything),
        "accuracy": float(means.mean()),
        "low": low,
        "high": high,
        "standard_error": standard_error(means),
        "pass_at_k": float(pass_at_k(verdicts, k).mean()),
        "majority_at_k": float(majority_at_k(extracted, verdicts, k).mean()),
        "format_rate": float(np.mean([answer.format for answer in everything])),
        "finished_rate": float(np.mean([answer.finished for answer in everything])),
        "tokens": float(np.mean(tokens)),
        "perception_kl": sum(answer.perception_kl for answer in measured) / read if read else None,
    }


def _parts(problems: Problems) -> Iterable[tuple[str, Problems]]:
    """All problems, and those of each value of each tag that groups them."""
    yield "all", problems
    for name, ids in subsets({id: answers[0].tags for id, answers in problems.items()}).items():
        yield name, {id: problems[id] for id in ids}


def _dependency(views: dict[str, Problems]) -> dict[str, Any]:
    """The curve over the views, the gap to the view that shows least, and the KL of the answers to the clean image."""
    means = {view: dict(zip(problems, _means(problems), strict=True)) for view, problems in views.items()}
    found = vision_dependency(means)
    against = found["curve"][-1]["view"]  # blank where there is one, else the largest ratio
    gap = {"against": against} | found["gap"][against] if against != CLEAN else None
    return {
        "curve": found["curve"],
        "gap": gap,
        "gaps": found["gap"],
        "perception_kl": _row(views[CLEAN])["perception_kl"],
    }


def _kinds(problems: Problems) -> list[str]:
    return [
        classify(answer.response, answer.tags[READING], answer.verdict)
        for answers in problems.values()
        for answer in answers
        if READING in answer.tags
    ]


def _means(problems: Problems) -> np.ndarray:
    return average_at_k([[answer.verdict for answer in answers] for answers in problems.values()])


def _averaged(entries: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The benchmarks of each average; one that a single benchmark would make is none."""
    groups = {
        "general": [entry["name"] for entry in entries if entry["group"] == "general"],
        "vision": [entry["name"] for entry in entries if entry["group"] == "vision"],
        "overall": [entry["name"] for entry in entries],
    }
    return {group: names for group, names in groups.items() if len(names) > 1}


def _average(group: str, means: dict[str, np.ndarray], names: list[str]) -> dict[str, Any]:
    """The mean of the benchmarks' accuracies, as the paper takes it."""
    low, high = bootstrap_macro([means[name] for name in names])
    errors = [standard_error(means[name]) for name in names]
    known = all(error is not None for error in errors)
    return {
        "accuracy": float(np.mean([means[name].mean() for name in names])),
        "low": low,
        "high": high,
        "standard_error": float(np.sqrt(np.square(errors).sum()) / len(names)) if known else None,
        "benchmarks": names,
        "complete": sorted(names) == sorted(GROUPS["all" if group == "overall" else group]),
    }
