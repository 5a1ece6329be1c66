"""Figures: what they read, how tokens are laid out, and that a picture shows what it was given."""

import json
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from papo_hub import drawing, figures
from papo_hub.figures import Example, lay_out, metric_columns, running_median

ROW = {
    "reward/mean": 0.5,
    "reward/accuracy": 0.4,
    "reward/format": 0.9,
    "objective/perception_kl": 0.1,
    "objective/entropy": 1.0,
    "objective/masked_entropy": 1.2,
    "objective/clip_fraction_high": 0.01,
    "objective/clip_fraction_low": 0.0,
}
ROWS = [
    {"when": when, "view": view, "group": group, "accuracy": value, "problems": 8, "samples": 4}
    for view, group, before, after in (("clean", "high", 0.2, 0.9), ("masked", "low", 0.5, 0.6))
    for when, value in (("before", before), ("after", after))
]


@pytest.fixture(autouse=True)
def strict():
    """A glyph that is missing or a layout that fails only warns: make it an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def run_with(folder, rows):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def picture(size=(84, 28), color=(200, 30, 30)):
    return Image.new("RGB", size, color)


def pixels(path):
    with Image.open(path) as image:
        assert image.format == "PNG" and image.width == 1296
        return np.asarray(image.convert("RGB"))


def has_color(array, color, least=20):
    wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)] if isinstance(color, str) else color
    return (np.abs(array.astype(int) - wanted).max(-1) <= 2).sum() >= least


# -- reading


def test_metric_columns_has_nan_for_what_a_step_lacks(tmp_path):
    columns = metric_columns(run_with(tmp_path, [{"step": 1, "a": 1.5, "b": None}, {"step": 2, "b": math.nan, "c": 3}]))
    np.testing.assert_array_equal(columns["step"], [1, 2])
    np.testing.assert_array_equal(columns["a"], [1.5, math.nan])
    np.testing.assert_array_equal(columns["b"], [math.nan, math.nan])
    np.testing.assert_array_equal(columns["c"], [math.nan, 3])


def test_metric_columns_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="taken a step"):
        metric_columns(tmp_path)
    with pytest.raises(ValueError, match="no complete row"):
        metric_columns(run_with(tmp_path, []))
    with pytest.raises(ValueError, match="no step"):
        metric_columns(run_with(tmp_path, [{"a": 1}]))


def test_running_median_by_hand():
    values = np.array([5.0, 1.0, math.nan, 3.0, 100.0])
    # windows of 3: {5, 1}, {5, 1}, {1, 3}, {3, 100}, {3, 100}
    np.testing.assert_array_equal(running_median(values, 3), [3, 3, 2, 51.5, 51.5])
    np.testing.assert_array_equal(running_median(np.array([math.nan]), 1), [math.nan])


def test_example_round_trip(tmp_path):
    example = Example(picture(), picture(color=(0, 0, 0)), ["a", "$\n"], [0.25, math.nan], "title $x$")
    figures.write_example(tmp_path, example)
    json.loads((tmp_path / "example.json").read_text(), parse_constant=pytest.fail)  # NaN is no JSON
    read = figures.read_example(tmp_path)
    assert read.image.tobytes() == example.image.tobytes()
    assert read.masked_image.tobytes() == example.masked_image.tobytes()
    assert read.tokens == example.tokens and read.title == example.title
    np.testing.assert_array_equal(read.dependence, example.dependence)


def test_example_refuses_unequal_lengths_and_absence(tmp_path):
    example = Example(picture(), picture(), ["a"], [0.1, 0.2], "")
    with pytest.raises(ValueError, match="1 tokens but 2 dependences"):
        figures.write_example(tmp_path, example)
    with pytest.raises(ValueError, match="1 tokens but 2 dependences"):
        figures.plot_example(tmp_path / "x.png", *example)
    with pytest.raises(FileNotFoundError, match="write_example"):
        figures.read_example(tmp_path)


# -- layout


def test_layout_by_hand():
    # "ab cd" is 5 wide, " efg" does not fit in 7, and starts its line without its space
    assert lay_out(["ab", " c", "d", " efg", "\n", "h\ti", ""], 7) == [
        [(0, "ab", 0), (2, " c", 1), (4, "d", 2)],
        [(0, "efg", 3), (3, "↵", 4)],
        [(0, "h⇥i", 5), (3, "·", 6)],
    ]
    assert lay_out(["abcdef"], 4) == [[(0, "abcd", 0)], [(0, "ef", 0)]]
    assert lay_out(["数\x07"], 4) == [[(0, "□□", 0)]]
    assert lay_out([], 4) == []


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(st.sampled_from("ab $\\{\n\té数_"), max_size=9), max_size=12), st.integers(1, 12))
def test_layout_keeps_every_token_inside_the_columns(tokens, columns):
    lines = lay_out(tokens, columns)
    drawn = dict.fromkeys(range(len(tokens)), "")
    for line in lines:
        assert line
        end = 0
        for column, text, index in line:
            assert column == end, "pieces touch"
            end += len(text)
            drawn[index] += text
        assert end <= columns
    shown = str.maketrans({"\n": "↵", "\t": "⇥", "数": "□", " ": None})
    for index, token in enumerate(tokens):
        assert drawn[index].replace(" ", "") == (token.translate(shown) if token else "·")


@pytest.mark.parametrize("size", [8, 9, 10])
def test_characters_are_as_wide_as_their_columns(size):
    """Two routes: the font's rendered width, and the width the layout counts with (to half a character in a line)."""
    figure = drawing.new_figure(1)
    text = figure.text(0, 0, "m" * 80, family=figures.MONO, fontsize=size)
    width = text.get_window_extent(FigureCanvasAgg(figure).get_renderer()).width / figures.DPI
    assert width == pytest.approx(80 * figures._advance(size), abs=0.5 * figures._advance(size))


# -- pictures


def test_curves_of_a_full_run(tmp_path):
    drawn = figures.plot_curves(run_with(tmp_path, [{"step": i, **ROW} for i in range(1, 4)]))
    assert drawn == [tmp_path / "figures/reward.png", tmp_path / "figures/perception.png"]
    reward, perception = map(pixels, drawn)
    assert has_color(reward, figures.CLEAN) and has_color(reward, figures.QUIET) and has_color(reward, figures.INK)
    assert all(has_color(perception, color) for color in (figures.ACCENT, figures.CLEAN, figures.MASKED, figures.QUIET))


def test_curves_draw_a_single_step(tmp_path):
    one, none = tmp_path / "one", tmp_path / "none"
    one.mkdir(), none.mkdir()
    curve = {"step": 1, "objective/entropy": 1.0}
    (drawn,) = figures.plot_curves(run_with(one, [curve]))
    # the label alone has fewer pixels of the colour than with the point
    array = pixels(drawn)
    assert has_color(array[:, : array.shape[1] // 2 + 100], figures.CLEAN, least=40)
    assert figures.plot_curves(run_with(none, [{"step": 1, "objective/entropy": None, "reward/mean": math.nan}])) == []


def test_curves_without_perception_and_with_gaps(tmp_path):
    rows = [{"step": i, "objective/entropy": None if i % 2 else 1.0, "reward/mean": math.nan} for i in range(60)]
    (drawn,) = figures.plot_curves(run_with(tmp_path, rows))
    array = pixels(drawn)
    assert drawn.name == "perception.png"
    assert has_color(array, figures.CLEAN) and not has_color(array, figures.ACCENT)


def test_labels_of_close_curves_do_not_overlap(tmp_path):
    figure = drawing.new_figure(3)
    axes = drawing.add_axes(figure, 1, 0.5, 5, 2)
    drawing.end_labels(axes, [(1.0, "a", "k"), (0.999, "b", "k"), (0.0, "c", "k"), (0.001, "d", "k")])
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = sorted((text.get_window_extent(renderer) for text in axes.texts), key=lambda box: box.y0)
    assert len(boxes) == 4
    frame = axes.get_window_extent()
    middles = [(box.y0 + box.y1) / 2 for box in boxes]
    assert frame.y0 - 3 <= middles[0] and middles[-1] <= frame.y1 + 10, "labels stay beside their axes"
    assert all(above.y0 >= below.y1 for below, above in zip(boxes[:-1], boxes[1:], strict=True))


@pytest.mark.parametrize(
    ("dependence", "top"),
    [([], 1), ([math.nan, 0.01], 1), ([1.0], 1), ([1.5], 2), ([0.1, 3.0], 5), ([7.0], 10), ([12.0], 10)],
)
def test_colour_scale_by_hand(dependence, top):
    norm = figures._norm(dependence)
    # a square root: a quarter of the range is half of the colours; above the top it stays at the top
    assert [norm(value) for value in (0, top / 4, top, 2 * top)] == [0, 0.5, 1, 1]


def test_example_shows_both_images_and_the_dependences(tmp_path):
    image, masked = picture(), picture(color=(10, 10, 200))
    quiet = figures.plot_example(tmp_path / "quiet.png", image, masked, ["a", "b"], [0.0, math.nan], "t")
    loud = figures.plot_example(tmp_path / "loud.png", image, masked, ["a", "b"], [10.0, 12.0], "t")
    darkest = tuple(round(255 * part) for part in figures.HEAT(1.0)[:3])
    for path in (quiet, loud):
        assert has_color(pixels(path), (200, 30, 30), 1000) and has_color(pixels(path), (10, 10, 200), 1000)
    text = slice(700, None)  # right of the images and of the colour bar
    assert has_color(pixels(loud)[:, text], darkest) and not has_color(pixels(quiet)[:, text], darkest)


@pytest.mark.parametrize("size", [(28, 84), (84, 28), (1, 1), (4000, 3000)])
def test_example_takes_any_image_and_text(tmp_path, size):
    tokens = ["$x_1", "^", "\\frac{$", "\n\n", "\t", "", "数", "a" * 300, "</think>", "\r", " ok"]
    path = figures.plot_example(tmp_path / "x.png", picture(size), picture(size), tokens, [0.1] * 11, "$\\bad{$ 数 \n")
    assert pixels(path).shape[0] < 1500
    unchanged = picture(size)
    figures.plot_example(tmp_path / "y.png", unchanged, unchanged, ["a"], [0.1], "")
    assert unchanged.size == size


def test_long_completions_are_counted_not_drawn(tmp_path):
    few, many = (
        figures.plot_example(tmp_path / f"{n}.png", picture(), picture(), [" word"] * n, [0.0] * n, "t")
        for n in (1500, 4000)
    )
    assert pixels(few).shape[0] == pixels(many).shape[0]


def test_before_after_draws_each_pair_at_its_height(tmp_path):
    array = pixels(figures.plot_before_after(tmp_path / "x.png", ROWS))

    def height(color):
        """Pixels of the tallest column of that colour: the bar."""
        wanted = [round(255 * part) for part in drawing.tint(color, 0)]
        return (np.abs(array.astype(int) - wanted).max(-1) <= 2).sum(0).max()

    # clean after 0.9, masked after 0.6; a bar loses no more than its edges
    assert height(figures.CLEAN) / height(figures.MASKED) == pytest.approx(0.9 / 0.6, rel=0.03)


def test_before_after_falls_back_to_all_and_refuses_nothing(tmp_path):
    every = [{"when": "after", "view": "clean", "group": "all", "accuracy": 0.5}]
    assert has_color(pixels(figures.plot_before_after(tmp_path / "x.png", every)), figures.CLEAN, 1000)
    with pytest.raises(ValueError, match="nothing to draw"):
        figures.plot_before_after(tmp_path / "x.png", [])
    with pytest.raises(ValueError, match="nothing to draw"):
        figures.plot_before_after(tmp_path / "x.png", [{**every[0], "accuracy": None}])


def test_overview_with_and_without_evaluation(tmp_path):
    run_with(tmp_path, [{"step": i, **ROW} for i in range(1, 9)])
    figures.write_example(tmp_path, Example(picture(), picture(), [" w"] * 900, [0.5] * 900, "question"))
    without = pixels(figures.plot_overview(tmp_path / "figures/overview.png", tmp_path))
    assert has_color(without, figures.CLEAN) and not has_color(without, figures.MASKED)
    (tmp_path / "evaluation.json").write_text(json.dumps(ROWS))
    assert has_color(pixels(figures.plot_overview(tmp_path / "figures/overview.png", tmp_path)), figures.MASKED)


def test_pictures_are_reproducible_and_leave_pyplot_alone(tmp_path):
    first, second = (figures.plot_before_after(tmp_path / name, ROWS).read_bytes() for name in ("a.png", "b.png"))
    assert first == second
    assert not {"plt", "pyplot"} & (vars(figures).keys() | vars(drawing).keys())
