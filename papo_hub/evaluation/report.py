"""report.md: what an evaluation found, for a reader who has nothing but the report; and its summary in the terminal.

Read is results.json alone: `{"settings", "rows", "averages", "vision_dependency", "perception_errors", "skipped"}`, of
which only rows are needed. Shares go from 0 to 1 there and are shown in percent. What comes from a model, a dataset or
a file name is escaped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from papo_hub.card.escape import plain, text
from papo_hub.evaluation.benchmarks import BENCHMARKS, PAPER_RESULTS
from papo_hub.evaluation.figures import Bar, plot_bars, plot_errors, plot_vision_dependency
from papo_hub.redaction import names_a_secret

GROUPS = {"general": "General", "vision": "Vision", "overall": "Overall"}
PICTURES = ("benchmarks.png", "vision_dependency.png", "errors.png")
PAPER = "[PAPO paper](https://arxiv.org/abs/2507.06448)"
INDENT = "↳ "  # a subset, below its benchmark
SHOWN_SKIPS = 20
DEFINITIONS = (
    "**avg@k**: the share of right answers among the k answers of each problem, averaged over problems.",
    "**95 % interval**: the problems are drawn again with replacement many times, all k answers of a problem together, "
    "and the middle 95 % of the averages are given (bootstrap over problems). It says how far another draw of problems "
    "would move the number, not whether the benchmark is a good one.",
    "**pass@k**: the share of problems with at least one right answer among k (unbiased estimate).",
    "**maj@k**: the share of problems whose most frequent answer is right; ties count in part.",
    "**format**: the share of answers of the form that was asked for. **cut**: the share that the length limit ended.",
    "**tokens**: the mean length of an answer.",
)


def write_report(folder: Path) -> Path:
    """Write `report.md` and the pictures in `figures/` of an evaluation folder, from its `results.json`.

    Returns the path of the report. Pictures of an earlier report that no longer apply are removed.

    Raises:
        FileNotFoundError: the folder has no results.json.
        ValueError: it is not JSON, or holds no rows.
    """
    folder = Path(folder)
    results = _read(folder / "results.json")
    for name in PICTURES:
        (folder / "figures" / name).unlink(missing_ok=True)
    sections = (_headline(results), _results(results, folder), _dependency(results, folder), _errors(results, folder))
    lines = [line for section in (*sections, _reproduce(results)) for line in section]
    path = folder / "report.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def summary(results: dict[str, Any]) -> str:
    """The results as plain text for a terminal, at most 100 columns wide: clean views, averages, what the image adds."""
    rows = _clean(results)
    table = [["", "problems", f"avg@{_k(rows)} %", "95 % interval", "pass@k", "maj@k", "format", "cut", "tokens"]]
    for row in rows:
        name = _name(row, plain)
        accuracy = [_percent(row.get("accuracy")), _interval(row)]
        rates = [_percent(value) for value in _rates(row)]
        table.append([_shortened(name, 26), _count(row.get("problems")), *accuracy, *rates, _count(row.get("tokens"))])
    for group, average in _averages(results):
        name = f"{GROUPS[group]} (mean of {_coverage(group, average)})"
        table.append([name, "", _percent(average.get("accuracy")), _interval(average), "", "", "", "", ""])
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    lines = [
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        ).rstrip()
        for line in table
    ]
    titles = _titles(results)
    for name, found in _measured(results).items():
        gap = found.get("gap")
        if gap and gap.get("difference") is not None:
            against = plain(_view(gap.get("against")))
            lines.append(
                f"{_shortened(plain(titles[name]), 26)}: clean - {against} = {_points(gap['difference'])} points "
                f"(95 % interval {_interval(gap)})"
            )
    if skipped := results.get("skipped"):
        lines.append(f"{_plural(len(skipped), 'row')} could not be used: see report.md")
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------------------ sections


def _headline(results: dict[str, Any]) -> list[str]:
    settings, rows = results["settings"], _clean(results)
    whole = [row for row in rows if row.get("subset", "all") == "all"]
    about = settings.get("model") or {}
    model = text(about.get("name") or "a model")
    version = next((f" ({kind} {text(about[kind])})" for kind in ("commit", "weights") if about.get(kind)), "")
    when = f", on {text(str(settings['started'])[:10])}" if settings.get("started") else ""
    problems = sum(row.get("problems") or 0 for row in whole)
    temperature, grader = _setting(settings, "temperature"), _setting(settings, "grader")
    drawn = f" at temperature {text(temperature)}" if temperature is not None else ""
    graded = f", graded by rules (grader: {text(grader)})" if grader else ""
    lines = [
        f"# Evaluation of {model}",
        "",
        f"The model {model}{version} answered {problems:,} problems of {_plural(len(whole), 'benchmark')}, "
        f"{_k(rows)} times each{drawn}{graded}{when}.",
        "",
    ]
    averages = _averages(results)
    for group, average in averages:
        note = "" if average.get("complete") else f", incomplete: {_coverage(group, average)} benchmarks"
        lines.append(f"* **{GROUPS[group]}: {_accuracy(average)}**{note}")
    if not averages:
        lines += [f"* **Accuracy on {text(row['title'])}: {_accuracy(row)}**" for row in whole]
    if (gain := _relative_gain(whole, baseline := f"GRPO-{_size(settings)}")) is not None:
        lines.append(
            f"* Mean relative gain over the {baseline} of the {PAPER}: {100 * gain:+.1f} % "
            "(mean over the nine benchmarks of (ours - theirs) / theirs)"
        )
    if any(not average.get("complete") for _, average in averages):
        lines += ["", "An incomplete average is the mean of what was measured; it compares with no published average."]
    return lines


def _results(results: dict[str, Any], folder: Path) -> list[str]:
    rows = _clean(results)
    k = _k(rows)
    header = ["benchmark", "problems", f"avg@{k}, %", "95 % interval", f"pass@{k}, %", f"maj@{k}, %", "format, %"]
    cells = []
    for row in rows:
        rates = [_percent(value) for value in _rates(row)]
        accuracy = [_percent(row.get("accuracy")), _interval(row)]
        cells.append([_name(row, text), _count(row.get("problems")), *accuracy, *rates, _count(row.get("tokens"))])
    for group, average in _averages(results):
        accuracy = [f"**{_percent(average.get('accuracy'))}**", _interval(average)]
        cells.append([f"**{GROUPS[group]}** (mean of {_coverage(group, average)})", "", *accuracy, "", "", "", "", ""])
    lines = ["", "## Results", "", *_table([*header, "cut, %", "tokens"], cells)]
    lines += ["", *(f"* {definition}" for definition in DEFINITIONS)]
    if caption := _draw_benchmarks(results, folder / "figures" / "benchmarks.png"):
        lines += ["", "![Accuracy by benchmark, as in the table](figures/benchmarks.png)", "", caption]
    return lines


def _draw_benchmarks(results: dict[str, Any], path: Path) -> str | None:
    """Draw the accuracies and return what to say of the picture; None where there is nothing to compare."""
    rows, size = [row for row in _clean(results) if row.get("accuracy") is not None], _size(results["settings"])
    published = {name: PAPER_RESULTS[name] for name in (f"PAPO-G-{size}", f"GRPO-{size}")}
    whole = {row["benchmark"]: row for row in rows if row.get("subset", "all") == "all"}
    known = [name for name in whole if all(name in column for column in published.values())]
    if known:
        ours = [(whole[name]["title"], name, whole[name]) for name in known]
        ours += [(GROUPS[group], group, average) for group, average in _averages(results) if average.get("complete")]
        groups = [
            (title, [_bar("this model", row), *(Bar(label, column[name] / 100) for label, column in published.items())])
            for title, name, row in ours
        ]
        plot_bars(path, "Accuracy, % of answers right", groups)
        sure = "" if _size_in(results["settings"]) else " (the name of this model says neither 3B nor 7B)"
        return (
            f"Lines are 95 % intervals. Beside this model: two {size} models{sure} as published in the {PAPER}, "
            "8 answers a problem at temperature 1; other prompts, graders or samplings give other numbers."
        )
    if len(rows) < 2:
        return None
    plot_bars(path, "Accuracy, % of answers right", [(_name(row, plain), [_bar("", row)]) for row in rows])
    return "Lines are 95 % intervals."


def _dependency(results: dict[str, Any], folder: Path) -> list[str]:
    measured, titles = _measured(results), _titles(results)
    if not measured:
        return []
    views = {point["view"]: point["mask_ratio"] for found in measured.values() for point in found["curve"]}
    views = sorted(views, key=lambda view: (views[view] is None, views[view]))
    cells, readings = [], []
    for name, found in measured.items():
        points = {point["view"]: point for point in found["curve"]}
        shares = [_percent(points[view]["accuracy"] if view in points else None) for view in views]
        gap = found.get("gap") or {}
        kl = found.get("perception_kl")
        divergence = "–" if kl is None else f"{kl:.3f}"
        cells.append([text(titles[name]), *shares, _points(gap.get("difference")), _interval(gap), divergence])
        if gap.get("difference") is not None:
            readings.append(f"* {text(titles[name])}: {_meaning(gap)}")
    header = [
        "benchmark",
        *(text(_view(view)) for view in views),
        "gap",
        "95 % interval of the gap",
        "KL a token, nats",
    ]
    plot_vision_dependency(
        folder / "figures" / "vision_dependency.png", {titles[name]: found["curve"] for name, found in measured.items()}
    )
    lines = [
        "",
        "## How much it looks",
        "",
        "The same problems with less and less of the image: a share of its patches is blackened; blank is an image of one "
        "colour. Accuracy in percent; a model that answers from the text alone keeps its accuracy.",
        "",
        *_table(header, cells),
        "",
        "![Accuracy over the share of the image that is masked](figures/vision_dependency.png)",
        "",
        *readings,
    ]
    if any(found.get("perception_kl") is not None for found in measured.values()):
        lines.append(
            "* **KL a token**: how much the probabilities of a given answer's tokens change when the clean image becomes "
            f"the image {text(_view(results['settings'].get('kl_view') or 'masked'))} (divergence between both views, k3 "
            "estimate, a mean over tokens). 0: the image changes nothing."
        )
    return lines


def _meaning(gap: dict[str, Any]) -> str:
    difference, low, high = (gap.get(key) for key in ("difference", "low", "high"))
    lost = f"against the image {text(_view(gap.get('against')))}, the clean image is worth {_points(difference)} points"
    if low is None or high is None:
        return f"{lost}."
    bounds = f"{lost} (95 % interval {_points(low)} to {_points(high)})"
    if low > 0:
        return f"{bounds}: that part of the accuracy rests on the image."
    if high < 0:
        return f"{bounds}: it answers better without the image, so look at its answers before trusting the accuracy."
    return f"{bounds}: the interval holds 0, so these problems do not show that the answers rest on the image."


def _errors(results: dict[str, Any], folder: Path) -> list[str]:
    errors, titles = results["perception_errors"], _titles(results)
    if not errors:
        return []
    kinds = ("right", "lucky", "perception_error", "reasoning_error", "unread")
    cells = []
    for name, shares in errors.items():
        perception, both = (shares.get(kind) or 0 for kind in ("perception_error", "reasoning_error"))
        both += perception
        of_perception = _percent(perception / both if both else None)
        cells.append([text(titles[name]), *(_percent(shares.get(kind)) for kind in kinds), of_perception])
    plot_errors(folder / "figures" / "errors.png", {titles[name]: shares for name, shares in errors.items()})
    return [
        "",
        "## What goes wrong",
        "",
        "What an answer says it saw, between its think tags, is compared with what the image shows, as the dataset states "
        "it. Right: both reading "
        "and result are right. Lucky: wrong reading, right result. Perception error: wrong reading, wrong result. "
        "Reasoning error: right reading, wrong result. Unread: the answer does not say what it saw. Shares of the "
        "answers to the clean image, in percent; of perception: the share of perception errors among both kinds.",
        "",
        *_table(["benchmark", *(kind.replace("_", " ") for kind in kinds), "of perception"], cells),
        "",
        "![Shares of right and wrong readings and results](figures/errors.png)",
    ]


def _reproduce(results: dict[str, Any]) -> list[str]:
    settings, skipped = results["settings"], results["skipped"]
    lines = ["", "## How to reproduce it", ""]
    if settings.get("command"):  # one line, indented: a code block that its content cannot end
        lines += [f"    {plain(settings['command'])}", ""]
    if datasets := [entry for entry in _entries(settings) if entry.get("dataset")]:
        header = ["benchmark", "dataset", "split", "version", "first rows", "most tokens", "licence of the original"]
        cells = []
        for entry in datasets:
            version = entry.get("commit") or entry.get("content") or entry.get("revision")
            values = (entry["dataset"], entry.get("split"), version, entry.get("limit") or "all")
            values += (entry.get("max_completion_length"), _licence(entry))
            cells.append([text(entry.get("title") or entry.get("name")), *(text(v) if v else "–" for v in values)])
        lines += [*_table(header, cells, numbers=False), ""]
    shown = ("command", "benchmarks") if datasets else ("command",)
    if flat := [[text(key), text(value)] for key, value in _flat(settings) if key not in shown]:
        lines += _table(["setting", "value"], flat, numbers=False)
    lines += [
        "",
        "Beside this report: answers.jsonl (every answer with its verdict, an object a line), results.json (the numbers "
        "above), settings.json (all settings), figures/, model-index.yaml (what a model card's front matter takes).",
    ]
    if skipped:
        lines += ["", f"{_plural(len(skipped), 'row')} could not be used and stayed out of every number:", ""]
        cells = [[text(row.get(key, "–")) for key in ("benchmark", "id", "reason")] for row in skipped[:SHOWN_SKIPS]]
        lines += _table(["benchmark", "row", "reason"], cells, numbers=False)
        if len(skipped) > SHOWN_SKIPS:
            lines += ["", f"… and {len(skipped) - SHOWN_SKIPS} more: see results.json."]
    else:
        lines += ["", "Every row could be used."]
    return lines


# -------------------------------------------------------------------------------------------------------------- pieces


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: papo-hub evaluate writes it when all answers are there")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): evaluate again into the same folder to rewrite it") from None
    if not isinstance(results, dict) or not results.get("rows"):
        raise ValueError(f"{path} holds no rows: nothing was answered, so there is nothing to report")
    optional = {"settings": {}, "averages": {}, "vision_dependency": {}, "perception_errors": {}, "skipped": []}
    return results | {key: results.get(key) or empty for key, empty in optional.items()}


def _clean(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows on the clean image, a benchmark's subsets behind its whole; benchmarks in the order of the results."""
    titles = _titles(results)
    rows = [row | {"title": titles[row["benchmark"]]} for row in results["rows"] if row.get("view", "clean") == "clean"]
    order = list(dict.fromkeys(row["benchmark"] for row in rows))
    return sorted(rows, key=lambda row: (order.index(row["benchmark"]), row.get("subset", "all") != "all"))


def _titles(results: dict[str, Any]) -> dict[str, str]:
    """Benchmark → its title, made distinct where two share one, for everything that the results name."""
    titles = {row["benchmark"]: row.get("title") or row["benchmark"] for row in results["rows"]}
    for part in ("vision_dependency", "perception_errors"):
        titles = {name: name for name in results.get(part) or {}} | titles
    counts = list(titles.values())
    return {name: title if counts.count(title) == 1 else f"{title} ({name})" for name, title in titles.items()}


def _measured(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Benchmark → its vision dependency, where more than one view was answered."""
    found = {}
    for name, entry in (results.get("vision_dependency") or {}).items():
        curve = [point for point in entry.get("curve") or [] if point.get("accuracy") is not None]
        if len(curve) > 1:
            found[name] = entry | {"curve": curve}
    return found


def _averages(results: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(group, average), General before Vision before Overall, where more than one benchmark was measured."""
    if len({row["benchmark"] for row in results["rows"]}) < 2:
        return []
    averages = results.get("averages") or {}
    return [(g, averages[g]) for g in GROUPS if averages.get(g) and averages[g].get("accuracy") is not None]


def _coverage(group: str, average: dict[str, Any]) -> str:
    """How many of the group's benchmarks an average is of: "5", or "2 of 5" where some are missing."""
    groups = ("general", "vision") if group == "overall" else (group,)
    measured = len(average.get("benchmarks") or [])
    total = sum(benchmark.group in groups for benchmark in BENCHMARKS.values())
    return str(measured) if average.get("complete") else f"{measured} of {total}"


def _size_in(settings: dict[str, Any]) -> str | None:
    """ "3B" or "7B" where the model's or its base's name says so."""
    about = settings.get("model") or {}
    found = re.search(r"(?<![\d.])([37])B(?![a-z])", f"{about.get('name')} {about.get('base')}", re.IGNORECASE)
    return f"{found[1]}B" if found else None


def _size(settings: dict[str, Any]) -> str:
    """The size of the published models to compare with: that of the model, else the smaller one."""
    return _size_in(settings) or "3B"


def _relative_gain(rows: list[dict[str, Any]], baseline: str) -> float | None:
    """Mean over benchmarks of (ours - theirs) / theirs; None unless all that the paper reports were measured."""
    theirs = {name: value / 100 for name, value in PAPER_RESULTS[baseline].items() if name not in GROUPS}
    ours = {row["benchmark"]: row.get("accuracy") for row in rows}
    if any(ours.get(name) is None for name in theirs):
        return None
    return sum((ours[name] - value) / value for name, value in theirs.items()) / len(theirs)


def _entries(settings: dict[str, Any]) -> list[dict[str, Any]]:
    benchmarks = settings.get("benchmarks")
    return [entry for entry in benchmarks if isinstance(entry, dict)] if isinstance(benchmarks, list) else []


def _licence(entry: dict[str, Any]) -> str | None:
    known = BENCHMARKS.get(entry.get("name"))
    return known.licence if known else None


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Settings with dotted names; nothing that is named like a credential, nothing unset."""
    for key, value in settings.items():
        if names_a_secret(key) or value is None or (isinstance(value, list) and not any(value)):
            continue
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, list) else value


def _setting(settings: dict[str, Any], name: str) -> Any:
    """A setting wherever it stands; None where nothing says it."""
    return next((value for key, value in _flat(settings) if key.rpartition(".")[2] == name), None)


def _name(row: dict[str, Any], escape: Any) -> str:
    subset = row.get("subset", "all")
    return escape(row["title"]) if subset == "all" else INDENT + escape(subset)


def _bar(name: str, row: dict[str, Any]) -> Bar:
    return Bar(name, row["accuracy"], row.get("low"), row.get("high"))


def _k(rows: Sequence[dict[str, Any]]) -> str:
    """k where all rows share it."""
    found = {row.get("k") for row in rows}
    return str(found.pop()) if len(found) == 1 and None not in found else "k"


def _rates(row: dict[str, Any]) -> list[float | None]:
    """pass@k, maj@k, format and cut, shares from 0 to 1."""
    finished = row.get("finished_rate")
    cut = None if finished is None else 1 - finished
    return [row.get("pass_at_k"), row.get("majority_at_k"), row.get("format_rate"), cut]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _points(share: float | None) -> str:
    """A difference of shares in percentage points; no negative zero."""
    return "–" if share is None else f"{round(100 * share, 1) + 0:.1f}"


def _interval(row: dict[str, Any]) -> str:
    low, high = row.get("low"), row.get("high")
    return "–" if low is None or high is None else f"{_points(low)} to {_points(high)}"


def _accuracy(row: dict[str, Any]) -> str:
    interval = _interval(row)
    return f"{_percent(row.get('accuracy'))} %" + (f" (95 % interval {interval})" if interval != "–" else "")


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("s" if count != 1 else "")


def _view(view: Any) -> str:
    """A view in words: "60 % masked" for mask-0.6."""
    masked = re.fullmatch(r"mask-(\d+(?:\.\d+)?)", str(view))
    return f"{100 * float(masked[1]):g} % masked" if masked else str(view)


def _shortened(name: str, columns: int) -> str:
    return name if len(name) <= columns else f"{name[: columns - 1]}…"


def _table(header: list[str], cells: list[list[str]], numbers: bool = True) -> list[str]:
    """A Markdown table of cells that are escaped already; all but the first column to the right where they are numbers."""
    rule = "|" + " --- |" + (" ---: |" if numbers else " --- |") * (len(header) - 1)
    first, *others = (f"| {' | '.join(line)} |" for line in [header, *cells])
    return [first, rule, *others]
