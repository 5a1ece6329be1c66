"""The digits task: rows are true, reproducible, of the shares they claim, and the test scans are unseen."""

from collections import Counter

import numpy as np
import pytest

from papo_hub.data import check_row
from papo_hub.digits import PLACES, SPLITS, TILE, DigitRows
from papo_hub.rewards import accuracy_reward, format_reward


def parts(row):
    """The kind, the hints and the digits that a row speaks of."""
    kind, _, hints = row["problem"].removeprefix("<image>").partition(": ")
    digits = [int(d) for d in row["solution"].split("</think>")[0].removeprefix("<think>").split()]
    return kind, hints.split(" "), digits


@pytest.mark.parametrize("split", list(SPLITS))
def test_rows_are_true(split):
    solve = {"sum": sum, "largest": max, "evens": lambda digits: len([d for d in digits if d in (0, 2, 4, 6, 8)])}
    expected_hints = {"high": {0}, "partial": {1, 2}, "low": {3}}
    for row in map(DigitRows(split, 200).__getitem__, range(200)):
        kind, hints, digits = parts(row)
        assert kind == row["kind"] and len(hints) == len(digits) == PLACES
        assert row["answer"] == str(solve[kind](digits))
        given = [(hint, digit) for hint, digit in zip(hints, digits, strict=True) if hint != "?"]
        assert all(hint == str(digit) for hint, digit in given)
        assert len(given) in expected_hints[row["dependence"]]
        assert accuracy_reward(row["solution"], row["answer"]) == format_reward(row["solution"]) == 1.0
        (image,) = row["images"]
        assert image.size == (PLACES * TILE, TILE) and image.mode == "RGB"
        assert check_row(row).tags == {name: row[name] for name in ("kind", "dependence", "reading")}


def test_shares():
    """1,000 draws: a share's standard error is below 0.016."""
    rows = DigitRows(size=1000)
    counts = Counter(rows[i]["dependence"] for i in range(1000))
    assert {name: round(count / 1000, 3) for name, count in counts.items()} == pytest.approx(
        {"high": 0.5, "partial": 0.25, "low": 0.25}, abs=0.06
    )


def test_a_row_depends_on_seed_split_and_index_alone():
    def same(a, b):
        return a["problem"] == b["problem"] and np.array_equal(np.asarray(a["images"][0]), np.asarray(b["images"][0]))

    rows = DigitRows(seed=3)
    for index in (5, 0, 5):
        assert same(rows[index], DigitRows(seed=3, size=6)[index])
    assert not same(rows[5], DigitRows(seed=4)[5])
    assert not same(rows[5], rows[6])
    questions = [[DigitRows(split, seed=3)[i]["kind"] for i in range(20)] for split in SPLITS]
    assert questions[0] != questions[1]


def test_splits_share_no_scan_and_scans_limits_them():
    train, test = DigitRows("train"), DigitRows("test")
    seen = {scan.tobytes() for scan in train.images}
    assert len(train.images) == 1200 and len(test.images) == 497
    assert not any(scan.tobytes() in seen for scan in test.images)
    few = DigitRows("train", scans=10)
    assert np.array_equal(few.images, train.images[:10]) and len(few.labels) == 10
    labels = set(few.labels[:3].tolist())
    for i in range(20):
        assert set(parts(DigitRows("train", scans=3)[i])[2]) <= labels


def test_hinted_tiles_are_blackened_only_where_the_text_has_the_digit():
    hidden = 0
    for rows in (DigitRows(hide_hinted=1.0, size=40), DigitRows(size=40)):
        for i in range(40):
            _, hints, _ = parts(rows[i])
            pixels = np.asarray(rows[i]["images"][0])
            for place, hint in enumerate(hints):
                black = not pixels[:, place * TILE : (place + 1) * TILE].any()
                assert black == (hint != "?" and rows.hide_hinted == 1.0)
                hidden += black
    assert hidden > 10


def test_hints_that_are_wrong():
    """A share of them alone or all of a row together; image and answer stay. 1,800 places: standard error below 0.013."""
    text_alone = {"high": 0.0, "partial": 0.0, "low": 1.0}
    plain = DigitRows(size=600, shares=text_alone)
    for options, alone, expected in (({"wrong_hints": 0.3}, True, 0.3), ({"wrong_captions": 0.4}, False, 0.36)):
        wrong = []
        for told, true in zip(DigitRows(size=600, shares=text_alone, **options), plain, strict=True):
            assert (
                told["dependence"] == "low" and told["reading"] == true["reading"] and told["answer"] == true["answer"]
            )
            assert np.array_equal(np.asarray(told["images"][0]), np.asarray(true["images"][0]))
            _, hints, digits = parts(told)
            wrong.append([hint != str(digit) for hint, digit in zip(hints, digits, strict=True)])
        assert np.mean(wrong) == pytest.approx(expected, abs=0.05)  # one drawn digit in ten is the true one by chance
        untouched = 0.7**3 if alone else 0.6 + 0.4 / 1000
        assert np.mean([not any(row) for row in wrong]) == pytest.approx(untouched, abs=0.07)


def test_out_of_range():
    rows = DigitRows(size=3)
    assert len(rows) == 3 and len(list(rows)) == 3
    for index in (-1, 3):
        with pytest.raises(IndexError):
            rows[index]
    with pytest.raises(ValueError, match="splits train, test, not 'dev'"):
        DigitRows("dev")
