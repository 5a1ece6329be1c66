"""The paired comparison of two evaluations: its numbers by hand, what it refuses, and a page that is safe to open."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from papo_hub.batch import Sample
from papo_hub.config import ConfigError
from papo_hub.digits import DigitRows
from papo_hub.evaluation.answers import Answer
from papo_hub.evaluation.compare import MEAN, compare
from papo_hub.evaluation.page import (
    LARGEST_SIDE,
    LONGEST_RESPONSE,
    benchmark_problems,
    data_uri,
    forest,
    points,
    visible,
    write_page,
)
from papo_hub.statistics import paired_difference, paired_macro

DIGITS = {"name": "digits", "dataset": "digits", "split": "test", "revision": None, "commit": None}
PROTOCOL = {"k": 2, "temperature": 1.0, "top_p": 1.0, "grader": "math", "seed": 42}


def answers(id, verdicts, benchmark="digits", view="clean", reference="7", response=None, tags=None, extracted=None):
    """One problem's answers, one for each verdict."""
    return [
        Answer(
            benchmark=benchmark,
            id=id,
            view=view,
            sample=sample,
            seed=sample,
            prompt="ab",
            answer=reference,
            response=response or f"<think> 7</think> \\boxed{{{7 if verdict else 1}}}",
            extracted=extracted or ("7" if verdict else "1"),
            verdict=float(verdict),
            format=1.0,
            tokens=12,
            finished=True,
            tags=tags or {},
        )
        for sample, verdict in enumerate(verdicts)
    ]


def folder(path, *groups, model="OWNER/NAME", benchmarks=(DIGITS,), **protocol):
    """An evaluation folder with these answers."""
    path.mkdir()
    lines = [answer.to_json() + "\n" for group in groups for answer in group]
    (path / "answers.jsonl").write_text("".join(lines), encoding="utf-8")
    settings = {"model": {"name": model}, "benchmarks": list(benchmarks), "protocol": PROTOCOL | protocol}
    (path / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    return path


def compared(tmp_path, a, b, **settings):
    return compare(folder(tmp_path / "a", *a), folder(tmp_path / "b", *b, **settings))


def row(comparison, name="", benchmark="digits"):
    return next(row for row in comparison.rows if (row.benchmark, row.name) == (benchmark, name))


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_differences_are_taken_problem_by_problem(tmp_path):
    """A answers twice and B four times. A: 1/2, 0, 1/2, 1, 0, mean 2/5. B: 1, 1/2, 0, 1, 1/4, mean 2.75/5."""
    a = {"p1": [1, 0], "p2": [0, 0], "p3": [1, 0], "p4": [1, 1], "p5": [0, 0]}
    b = {"p1": [1, 1, 1, 1], "p2": [1, 0, 1, 0], "p3": [0] * 4, "p4": [1] * 4, "p5": [0, 1, 0, 0]}
    comparison = compared(tmp_path, [answers(*item) for item in a.items()], [answers(*item) for item in b.items()], k=4)
    [found] = comparison.rows
    assert (found.a, found.b, found.difference) == pytest.approx((0.4, 0.55, 0.15), abs=1e-12)
    assert (found.problems, found.wins, found.ties, found.losses) == (5, 3, 1, 1)
    # Of the 16 signs of (2, 2, -2, 1) quarters, whose sum is 3, ten give a sum of at least 3 in size.
    assert found.p == pytest.approx(10 / 16, abs=1e-12)
    direct = paired_difference(np.array([1, 0.5, 0, 1, 0.25]), np.array([0.5, 0, 0.5, 1, 0]))
    assert (found.difference, found.low, found.high, found.p) == pytest.approx(tuple(direct), abs=1e-12)
    assert not found.shown and comparison.headline.startswith("No difference can be shown on digits: B is +15.0 points")
    assert "not the same settings: k 2 (A), 4 (B)" in comparison.notes


def test_each_benchmark_has_the_same_weight_in_the_mean(tmp_path):
    """x: one problem, 0 → 1. y: three problems, 1 → 1, 1 → 0, 0 → 0. Mean difference (1 - 1/3) / 2 = 1/3, not 0."""
    a = [answers("1", [0], "x"), *(answers(str(i), [v], "y") for i, v in enumerate([1, 1, 0]))]
    b = [answers("1", [1], "x"), *(answers(str(i), [v], "y") for i, v in enumerate([1, 0, 0]))]
    comparison = compared(tmp_path, a, b)
    mean = comparison.rows[0]
    assert [row.benchmark for row in comparison.rows] == [MEAN, "x", "y"]
    assert (mean.a, mean.b, mean.difference) == pytest.approx((1 / 3, 2 / 3, 1 / 3), abs=1e-12)
    assert (mean.problems, mean.wins, mean.ties, mean.losses) == (4, 1, 2, 1)
    groups = [(np.array([1.0]), np.array([0.0])), (np.array([1.0, 0, 0]), np.array([1.0, 1, 0]))]
    assert (mean.difference, mean.low, mean.high, mean.p) == pytest.approx(tuple(paired_macro(groups)), abs=1e-12)
    assert "on average over 2 benchmarks" in comparison.headline and "4 problems" in comparison.headline


def test_the_gap_says_which_model_looks_more(tmp_path):
    """Clean: A 1/2, 1/2; B 1, 1. Masked (p1 alone has it in both): A 1/2, B 0. So gap A 0, B 1."""
    a = [answers("p1", [1, 0]), answers("p2", [1, 0]), answers("p1", [1, 0], view="mask-0.6")]
    b = [answers("p1", [1, 1]), answers("p2", [1, 1]), answers("p1", [0], view="mask-0.6")]
    b += [answers("p2", [0], view="mask-0.6"), answers("p1", [0], view="blank")]
    comparison = compared(tmp_path, a, b)
    masked, gap = row(comparison, "image mask-0.6"), row(comparison, "gap clean - mask-0.6")
    assert (masked.a, masked.b, masked.difference, masked.problems) == (0.5, 0, -0.5, 1)
    assert (gap.a, gap.b, gap.difference, gap.problems) == (0, 1, 1, 1)
    assert not any("blank" in row.name for row in comparison.rows)  # only B has it
    assert comparison.rows[0].name == "" and len(comparison.rows) == 3


def test_views_are_averaged_over_the_benchmarks_that_have_them(tmp_path):
    def side(verdict):
        groups = [answers("1", [1], name) for name in "xy"] + [answers("1", [verdict], "x", "mask-0.6")]
        return groups + [answers(id, [verdict], "y", "mask-0.6") for id in "1"] + [answers("1", [0], "x", "blank")]

    comparison = compared(tmp_path, side(1), side(0))
    assert row(comparison, "gap clean - mask-0.6", MEAN).difference == 1
    assert [row.benchmark for row in comparison.rows] == [MEAN] * 3 + ["x"] * 5 + ["y"] * 3  # each below its own
    assert row(comparison, "gap clean - blank", "x").difference == 0
    assert not any(row.benchmark == MEAN and row.view == "blank" for row in comparison.rows)


def test_subsets_by_tag(tmp_path):
    """`kind` has two values; `source` has nine and `licence` one, so that they group nothing; `reading` is no subset."""
    tags = [
        {"kind": "sum" if i < 3 else "largest", "source": f"{i}", "licence": "mit", "reading": f"{i % 2}"}
        for i in range(9)
    ]
    a = [answers(f"{i}", [0], tags=tags[i]) for i in range(9)]
    b = [answers(f"{i}", [i < 2], tags=tags[i]) for i in range(9)]
    comparison = compared(tmp_path, a, b)
    subsets = [row for row in comparison.rows if row.subset != "all"]
    assert [row.subset for row in subsets] == ["kind: largest", "kind: sum"]
    assert subsets[0].difference == 0 and subsets[1].difference == pytest.approx(2 / 3)
    assert [row.problems for row in subsets] == [6, 3]


def test_errors_of_perception_and_of_reasoning(tmp_path):
    """A misreads three times (one right by luck), B reads rightly and adds wrongly once."""
    tags = {"reading": "3 4"}

    def said(reading, verdict):
        return answers("1", [verdict], response=f"<think> {reading} </think> \\boxed{{7}}", tags=tags)[0]

    def side(*pairs):
        return [
            Answer(**{**said(*pair).__dict__, "sample": sample}) for sample, pair in enumerate(pairs)
        ]  # one problem, an answer a pair

    comparison = compared(tmp_path, [side(("3 5", 0), ("3 5", 1), ("3 5", 0))], [side(("3  4", 0), ("3 4", 1))])
    perception, reasoning = row(comparison, "perception errors"), row(comparison, "reasoning errors")
    assert (perception.a, perception.b, perception.difference) == pytest.approx((2 / 3, 0, -2 / 3))
    assert (reasoning.a, reasoning.b, reasoning.difference) == (0, 0.5, 0.5)


# --- the sentence -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("better", "word"), [(True, "better"), (False, "worse")])
def test_a_clear_difference_is_said_in_one_sentence(tmp_path, better, word):
    """20 problems, of which 10 change, all one way."""
    before = [answers(f"{i:02}", [0]) for i in range(20)]
    after = [answers(f"{i:02}", [i < 10]) for i in range(20)]
    comparison = compared(tmp_path, *((before, after) if better else (after, before)))
    match = re.fullmatch(
        rf"B is 50\.0 points {word} than A on digits \(95 % interval (\d+\.\d) to (\d+\.\d); 20 problems\)\.",
        comparison.headline,
    )
    assert match and float(match[1]) < 50 < float(match[2])


@pytest.mark.parametrize("problems", [1, 4])
def test_few_problems_show_nothing_even_where_all_change(tmp_path, problems):
    """The bootstrap of equal differences is a point, 100 to 100; the permutation test knows better: p = 2 / 2^N."""
    a, b = ([answers(f"{i}", [verdict]) for i in range(problems)] for verdict in (0, 1))
    comparison = compared(tmp_path, a, b)
    assert comparison.rows[0].low == comparison.rows[0].high == 1
    assert comparison.headline.startswith("No difference can be shown")


def test_the_same_evaluation_twice_differs_in_nothing(tmp_path):
    groups = [answers(f"{i}", [i % 2, 1]) for i in range(6)]
    comparison = compared(tmp_path, groups, groups)
    assert comparison.rows[0].difference == 0 and comparison.flips == () and comparison.notes == ()
    assert "B is 0.0 points from A (95 % interval 0.0 to 0.0; 6 problems)" in comparison.headline
    path = tmp_path / "page.html"
    write_page(comparison, path, lambda benchmark, ids: {})
    assert "There are none" in path.read_text(encoding="utf-8")


def test_the_table_fits_a_terminal_and_cannot_write_to_it(tmp_path):
    evil = "\x1b[31mred\u202e"
    tags = [{"kind": evil if i else "y" * 60} for i in range(3)]
    a, b = ([answers(f"{i}", [v], evil, tags=tags[i]) for i in range(3)] for v in (0, 1))
    text = compared(tmp_path, a, b, model=f"{evil}\nB is better", grader=evil).text
    assert all(char.isprintable() or char == "\n" for char in text)
    assert max(map(len, text.splitlines()[1:])) <= 100
    assert re.search(r"^  kind: y{23}…  ", text, re.MULTILINE)
    # The columns of the first row: problems, A, B, difference, interval, p, wins/ties/losses.
    line = next(line for line in text.splitlines() if line.endswith("3/0/0"))
    assert line.split()[-8:-2] == ["3", "0.0", "100.0", "+100.0", "[+100.0,", "+100.0]"]


# --- what can be compared ---------------------------------------------------------------------------------------------


def test_problems_of_one_side_or_with_another_answer_are_left_out_and_said(tmp_path):
    a = [answers("1", [1]), answers("2", [1]), answers("3", [1], reference="8"), answers("1", [1], "other")]
    b = [answers("1", [0]), answers("3", [1], reference="9"), answers("4", [0])]
    comparison = compared(tmp_path, a, b)
    assert comparison.rows[0].problems == 1 and comparison.rows[0].difference == -1
    assert comparison.notes == (
        "1 problem left out: the reference answers differ (digits 3)",
        "left out, answered in A only: digits (1 problem), other (1 problem)",
        "left out, answered in B only: digits (1 problem)",
    )


def test_nothing_in_common_is_refused_with_what_each_has(tmp_path):
    with pytest.raises(ConfigError, match=r"A \(.*a\) has digits \(2 problems\); B \(.*b\) has geometry3k \(1 problem"):
        compared(tmp_path, [answers("1", [1]), answers("2", [1])], [answers("1", [1], "geometry3k")])


def test_other_reference_answers_alone_are_nothing_in_common(tmp_path):
    with pytest.raises(ConfigError, match="1 more with different reference answers"):
        compared(tmp_path, [answers("1", [1])], [answers("1", [1], reference="8")])


def test_what_is_no_evaluation_folder_is_refused(tmp_path):
    good, empty = folder(tmp_path / "a", answers("1", [1])), tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FileNotFoundError, match="B: no settings.json in .*empty: papo-hub evaluate writes"):
        compare(good, empty)
    (empty / "settings.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match="settings.json is not JSON"):
        compare(good, empty)
    (empty / "settings.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ConfigError, match="must hold an object, not list"):
        compare(good, empty)


def test_settings_that_matter_are_compared(tmp_path):
    other = DIGITS | {"commit": "0123", "prompt_suffix": "Box it.", "title": "not compared"}
    unused = {"name": "mathvista", "dataset": "elsewhere"}
    comparison = compared(
        tmp_path,
        [answers("1", [1])],
        [answers("1", [1])],
        benchmarks=[other, unused],
        temperature=0.5,
        grader="mathruler",
        seed=7,
    )
    [note] = comparison.notes
    assert note == (
        "not the same settings: temperature 1.0 (A), 0.5 (B); grader math (A), mathruler (B); "
        "digits commit not set (A), 0123 (B); digits prompt_suffix not set (A), Box it. (B)"
    )


# --- flips ------------------------------------------------------------------------------------------------------------


def changes(tmp_path, better, worse):
    """The directions of the flips where so many problems get better by 1 and so many get worse by 1/2."""
    a = [answers(f"up{i:02}", [0, 0]) for i in range(better)] + [answers(f"down{i:02}", [1, 1]) for i in range(worse)]
    b = [answers(f"up{i:02}", [1, 1]) for i in range(better)] + [answers(f"down{i:02}", [1, 0]) for i in range(worse)]
    same = answers("same", [1, 0])
    return [flip.id for flip in compared(tmp_path, [*a, same], [*b, same]).flips]


def ids(kind, count):
    return [f"{kind}{i:02}" for i in range(count)]


@pytest.mark.parametrize(
    ("better", "worse", "shown"),
    [
        (12, 12, (5, 5)),  # both directions, although the ten largest all go up
        (12, 2, (8, 2)),  # filled up from the other side
        (2, 12, (2, 8)),
        (3, 4, (3, 4)),  # as many as there are
        (12, 0, (10, 0)),
        (0, 1, (0, 1)),
    ],
)
def test_flips_are_the_largest_changes_of_both_directions(tmp_path, better, worse, shown):
    assert changes(tmp_path, better, worse) == ids("up", shown[0]) + ids("down", shown[1])


def test_flips_of_equal_size_come_by_name(tmp_path):
    """2/3 - 1/3 and 1 - 2/3 are equal, though not as floats."""
    assert 2 / 3 - 1 / 3 < 1 - 2 / 3
    a = [answers("a", [1, 0, 0]), answers("b", [1, 1, 0]), answers("c", [0, 0, 0])]
    b = [answers("a", [1, 1, 0]), answers("b", [1, 1, 1]), answers("c", [1, 1, 0])]
    assert [flip.id for flip in compared(tmp_path, a, b).flips] == ["c", "a", "b"]


# --- the page ---------------------------------------------------------------------------------------------------------

HOSTILE = (
    "<script>alert(1)</script></details></pre><img src=https://example.org/x onerror='alert(1)'> "
    '" onload="alert(1) \x00 \ud800 \u202e {{ 7 * 7 }} {% raw %} &lt;b&gt; ]]> --> \x1b[31m'
)
VOID = {"meta", "img", "line", "circle"}


class Page(HTMLParser):
    """The tags of a page; complains where they are not balanced."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *attribute) for attribute in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        assert tag in VOID, f"<{tag}/>"
        self.handle_starttag(tag, attributes)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> does not close what is open"

    def handle_data(self, data):
        self.text += data


def picture(size=(84, 28), colour=(200, 30, 30)):
    return Image.new("RGB", size, colour)


def page_of(tmp_path, comparison, problems):
    path = tmp_path / "pages" / "page.html"
    write_page(comparison, path, problems)
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def samples(problem="<image>sum: ? ? ?", images=None):
    images = (picture(),) if images is None else images
    return lambda benchmark, ids: {id: Sample(id, problem, "7", tuple(images)) for id in ids}


def test_the_page_shows_the_result_and_the_flips(tmp_path):
    a = [answers(f"{i:02}", [0, 0]) for i in range(10)]
    b = [answers(f"{i:02}", [1, 0]) for i in range(10)]
    comparison = compared(tmp_path, a, b, grader="mathruler")
    text, page = page_of(tmp_path, comparison, samples())
    assert page.text.index(comparison.headline) < page.text.index("The numbers")
    assert "Note: not the same settings: grader math (A), mathruler (B)" in page.text
    assert page.tags.count("article") == page.tags.count("img") == 10 and page.tags.count("svg") == 1
    assert page.text.count("sum: ? ? ?") == 10 and "<image>" not in page.text
    assert page.text.count("0 of 2 right") == page.text.count("1 of 2 right") == 10
    assert page.text.count("A: a wrong answer (12 tokens)") == page.text.count("B: a right answer (12 tokens)") == 10
    assert "A: a right answer" not in page.text
    first = text[text.index("<article>") : text.index("</article>")]
    cells = re.findall(r"<td[^>]*>(.*?)</td>", first)
    assert cells == ["✗ 1", "2", "1", "✓ 7", "0", "1"]  # three times 1, once 7


def test_nothing_from_data_or_models_becomes_markup(tmp_path):
    tags = [{"kind": f"{i} {HOSTILE}"} for i in range(2)]
    hostile = dict.fromkeys(("benchmark", "reference", "response", "extracted"), HOSTILE)
    a = [answers(HOSTILE + str(i), [1, 0], tags=tags[i], **hostile) for i in range(2)]
    b = [answers(HOSTILE + str(i), [0, 0], tags=tags[i], **hostile) for i in range(2)]
    benchmarks = [DIGITS | {"name": HOSTILE, "prompt_suffix": HOSTILE}]
    comparison = compared(tmp_path, a, b, model=HOSTILE, benchmarks=benchmarks, grader=HOSTILE)
    text, page = page_of(tmp_path, comparison, samples(problem=HOSTILE))
    harmless = page_of(
        tmp_path,
        compare(
            folder(tmp_path / "c", *(answers(f"{i}", [1, 0], tags={"kind": f"{i}"}, extracted="7") for i in range(2))),
            folder(
                tmp_path / "d",
                *(answers(f"{i}", [0, 0], tags={"kind": f"{i}"}, extracted="7") for i in range(2)),
                grader="x",
            ),
        ),
        samples(),
    )[1]
    assert page.tags == harmless.tags  # not one element more
    assert {name for _, name, _ in page.attributes} == {name for _, name, _ in harmless.attributes}
    assert not set(page.tags) & {"script", "link", "iframe", "object", "embed", "base", "form", "a"}
    assert not any(name.startswith("on") or name in ("href", "style", "srcset") for _, name, _ in page.attributes)
    assert all(value.startswith("data:image/") for _, name, value in page.attributes if name == "src")
    assert all(char in "\n" or (char.isprintable() and char != "\u202e") for char in text)
    assert "⟨U+0000⟩" in page.text and "⟨U+D800⟩" in page.text and "⟨U+202E⟩" in page.text
    assert "<script>alert(1)</script></details>" in page.text and "{{ 7 * 7 }}" in page.text  # shown as it is


def test_the_page_allows_no_script_and_no_address(tmp_path):
    comparison = compared(tmp_path, [answers("1", [0])], [answers("1", [1])])
    text, page = page_of(tmp_path, comparison, samples())
    policy = next(value for tag, name, value in page.attributes if tag == "meta" and "default-src" in (value or ""))
    directives = dict(part.split(maxsplit=1) for part in policy.split(";"))
    assert directives == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": "'unsafe-inline'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert text.index("Content-Security-Policy") < text.index("<style>")
    assert not re.search(r"https?:|//\w|url\(|@import", text.replace(";base64,", ""))


def test_data_out_of_reach_costs_the_images_and_not_the_page(tmp_path):
    def unreachable(benchmark, ids):
        raise FileNotFoundError("cannot find the dataset <b>")

    comparison = compared(tmp_path, [answers("1", [0])], [answers("1", [1])])
    _, page = page_of(tmp_path, comparison, unreachable)
    assert "digits: the problems and their images cannot be shown: cannot find the dataset <b>" in page.text
    assert "Its text and images are not at hand." in page.text and "img" not in page.tags
    assert "Reference answer: 7" in page.text
    _, page = page_of(tmp_path, comparison, lambda benchmark, ids: {})  # reached, but without this problem
    assert "Its text and images are not at hand." in page.text


def test_long_responses_are_cut_and_marked(tmp_path):
    long = "x" * LONGEST_RESPONSE
    a = [answers("1", [0], response=long), answers("2", [0], response=long + "yz")]
    b = [answers("1", [1]), answers("2", [1])]
    _, page = page_of(tmp_path, compared(tmp_path, a, b), samples())
    assert page.text.count("[cut here: 4,002 characters in all]") == 1 and page.text.count("[cut here") == 1
    assert page.text.count("x" * LONGEST_RESPONSE) == 2 and "xy" not in page.text
    (tmp_path / "long").mkdir()  # what counts is what is shown: a NUL takes eight characters
    a, b = ([answers("1", [v], response="\x00" * LONGEST_RESPONSE)] for v in (0, 1))
    _, page = page_of(tmp_path, compared(tmp_path / "long", a, b), samples())
    assert page.text.count("⟨U+0000⟩") == 2 * LONGEST_RESPONSE / 8


def test_the_page_stays_small_whatever_it_shows(tmp_path):
    """Ten problems of six noise images (the worst to compress) and responses that escaping makes longer."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 900, 3), dtype=np.uint8))
    long = '"\x00<' * 10_000
    a, b = ([answers(f"{i}", [v, 1 - v], response=long) for i in range(10)] for v in (0, 1))
    b = [answers(f"{i}", [1, 1], response=long) for i in range(10)]
    comparison = compared(tmp_path, a, b)
    text, page = page_of(tmp_path, comparison, samples(images=[noise] * 6))
    assert page.tags.count("img") == 40 and page.text.count("2 more images are not shown") == 10
    assert len(text.encode()) < 3_000_000


def test_images_are_shrunk_not_enlarged():
    def opened(uri):
        kind, data = re.fullmatch(r"data:image/(png|jpeg);base64,([A-Za-z0-9+/=]+)", uri).groups()
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        assert image.format.lower() == kind
        return image

    assert opened(data_uri(picture((1000, 500)), 100_000)).size == (LARGEST_SIDE, LARGEST_SIDE // 2)
    small = opened(data_uri(picture((84, 28)), 100_000))
    assert small.size == (84, 28) and small.format == "PNG" and small.getpixel((3, 3)) == (200, 30, 30)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8))
    tight = data_uri(noise, 20_000)
    assert opened(tight).format == "JPEG" and len(tight) <= 20_000 * 4 / 3 + 30


def test_problems_come_from_the_rows_of_the_benchmark():
    rows = DigitRows("test", size=400)
    found = benchmark_problems({"benchmarks": [DIGITS]})(
        "digits", ["digits-test-399", "digits-test-3", "digits-test-x"]
    )
    assert set(found) == {"digits-test-399", "digits-test-3"}
    assert found["digits-test-3"].problem == rows[3]["problem"]
    assert np.array_equal(found["digits-test-399"].images[0], rows[399]["images"][0])
    with pytest.raises(ConfigError, match="does not say where they come from"):
        benchmark_problems({"benchmarks": [DIGITS]})("mathvista", ["1"])


def test_a_users_own_rows_are_found_by_their_columns(tmp_path):
    picture().save(tmp_path / "1.png")
    row = {"id": "first", "question": "How many?", "answer": "7", "picture": "1.png"}
    broken = row | {"id": "second", "picture": "2.png"}
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(r) + "\n" for r in (row, broken)), encoding="utf-8")
    columns = {"problem": "question", "images": "picture"}
    entry = {"name": "own", "dataset": str(tmp_path / "own.jsonl"), "split": "test", "columns": columns}
    found = benchmark_problems({"benchmarks": [entry]})("own", ["first", "second"])
    assert set(found) == {"first"} and found["first"].images[0].size == (84, 28)
    assert found["first"].problem == "<image>How many?"


def test_the_plot_keeps_every_interval_inside_and_zero_in_the_middle(tmp_path):
    a = [answers(f"{i}", [i % 3 == 0]) for i in range(30)]
    b = [answers(f"{i}", [i % 2 == 0]) for i in range(30)]
    plot = forest(compared(tmp_path, a, b).rows)
    [bar] = plot.bars
    assert 0 < bar.left < bar.middle < bar.right < plot.width and plot.zero == plot.width / 2
    labels = [label for _, label in plot.ticks]
    assert labels[len(labels) // 2] == "0" and labels[0] == labels[-1].replace("+", "-")
    # The scale: the middle of the bar is where the ticks say its difference is.
    x, label = plot.ticks[-1]
    assert (bar.middle - plot.zero) / (x - plot.zero) == pytest.approx(100 * bar.row.difference / int(label), abs=0.01)


def test_small_things():
    assert [points(share) for share in (0.032, -0.032, 0, -0.0001)] == ["+3.2", "-3.2", "0.0", "0.0"]
    assert visible("a\r\nb\tc\u00a0√ 好 \u200d") == "a\nb\tc\u00a0√ 好 \u200d"
    assert visible("\x00\ud800\u202e\u2066\ufeff\u2028") == "⟨U+0000⟩⟨U+D800⟩⟨U+202E⟩⟨U+2066⟩⟨U+FEFF⟩⟨U+2028⟩"
