"""What an answer owes to the image: two routes that agree, maps that point where the picture is, a page safe to open."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import backbones as tiny
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks import look as benchmark
from papo_hub import cli
from papo_hub.both_views import both_views
from papo_hub.config import ConfigError
from papo_hub.digits import DigitRows
from papo_hub.evaluation import look as module
from papo_hub.evaluation.look import Look, cell_boxes, look, open_model, token_texts, without
from papo_hub.evaluation.look_page import LEAST_FULL, STRONGEST, full_colour, write_look
from papo_hub.logprobs import append_completions, prompt_inputs
from papo_hub.masking import RandomPatchMask
from papo_hub.randomness import derived_generator
from papo_hub.shared_prefix import misfit

ROOT = Path(__file__).parents[2]
VALUE = 1e-10  # nats, in float64 with the float32 casts inside the models; seen: 1e-13
ANSWER = "7 of 9"


class Seeing(SimpleNamespace):
    """A tiny random model in float64, its processor, and what stands for an image in the processor's text."""


def seeing(name: str) -> Seeing:
    maker = getattr(tiny, name)
    _, processor, placeholder = maker()
    processor.chat_template = (
        "{% for part in messages[0].content %}{% if part.type == 'image' %}"
        + placeholder
        + "{% else %}{{ part.text }}{% endif %}{% endfor %}"
    )
    return Seeing(name=name, model=tiny.build(maker).model, processor=processor, placeholder=placeholder)


@pytest.fixture(scope="module", params=tiny.backbones())
def any_model(request):
    return seeing(request.param)


@pytest.fixture(scope="module")
def qwen():
    return seeing("qwen2_5_vl")


@pytest.fixture(scope="module")
def warm(warm_model_folder):
    model, processor, suffix, _ = open_model(str(warm_model_folder))
    assert suffix == ""
    return model, processor


def picture(width=96, height=64):
    return tiny.picture(width, height, derived_generator("a picture to look at"))


def seen(model: Seeing, image=None, answer=ANSWER, **options) -> Look:
    options = {"cells": 3, "mask": RandomPatchMask(8, 0.5), **options}
    return look(model.model, model.processor, image or picture(), "how many", answer, **options)


# --- the numbers ------------------------------------------------------------------------------------------------------


def test_equals_all_logits_of_one_view_at_a_time(any_model):
    """Every cell and the masked view, by the model's own forward on a padded row of prompt and answer."""
    found = seen(any_model)
    tokenizer = any_model.processor.tokenizer
    ids = torch.tensor([tokenizer(ANSWER, add_special_tokens=False).input_ids])

    def distributions(image):
        row = any_model.processor(text=[f"{any_model.placeholder}how many"], images=[[image]], return_tensors="pt")
        inputs = append_completions(*prompt_inputs(any_model.model, [dict(row)]), ids, torch.ones_like(ids))
        with torch.no_grad():
            logits = any_model.model(**inputs, use_cache=False).logits
        return logits[0, -ids.shape[1] - 1 : -1].log_softmax(-1)

    clean = distributions(picture())

    def moved(image):
        other = distributions(image)
        return (clean.exp() * (clean - other)).sum(-1)

    torch.testing.assert_close(found.divergence, moved(found.masked_image), rtol=0, atol=VALUE)
    for row in range(2):
        for column in range(3):
            pixels = np.array(picture())
            pixels[32 * row : 32 * row + 32, 32 * column : 32 * column + 32] = 0
            expected = moved(Image.fromarray(pixels))
            assert expected.max() > 1e-6  # something to compare
            torch.testing.assert_close(found.cells[:, row, column], expected, rtol=0, atol=VALUE)
    assert found.cells.shape == (len(ANSWER), 2, 3) and 0 <= found.rounding.min() <= found.rounding.max() < VALUE


def test_each_route_was_taken(qwen):
    assert misfit(qwen.model) is None and misfit(seeing("gemma3").model) is not None


def test_the_masked_view_is_that_of_both_views_and_of_the_mask(qwen):
    found = seen(qwen, seed=3)
    mask = RandomPatchMask(8, 0.5)
    assert found.masked_image == mask(picture(), derived_generator("look", 3))
    assert found.masked_image != seen(qwen, seed=4).masked_image
    clean, masked = (
        dict(qwen.processor(text=[f"{qwen.placeholder}how many"], images=[image], return_tensors="pt"))
        for image in (picture(), found.masked_image)
    )
    ids = torch.tensor([qwen.processor.tokenizer(ANSWER).input_ids])
    with torch.no_grad():
        expected = both_views(qwen.model, [clean], [masked], ids, torch.ones_like(ids)).divergence[0]
    torch.testing.assert_close(found.divergence, expected, rtol=0, atol=VALUE)


def test_a_map_points_where_the_picture_is(qwen):
    """All black but for one cell: hiding it changes what is seen, hiding another cannot."""
    image = Image.new("RGB", (96, 64))
    image.paste(picture(32, 32), (64, 0))
    cells = seen(qwen, image, prompt_suffix="in all").cells
    assert cells[:, 0, 2].max() > 1e-6
    cells[:, 0, 2] = 0
    assert cells.max() < VALUE


def test_how_many_views_pass_at_a_time_changes_nothing(qwen, monkeypatch):
    sizes, original = [], module.constant_states

    def counted(model, views, *rest):
        sizes.append(len(views))
        return original(model, views, *rest)

    monkeypatch.setattr(module, "constant_states", counted)
    one = seen(qwen, max_tokens=1)
    assert sizes == [1] + [1] * 8  # the clean view; then it once more, the masked one and six cells
    prompt = qwen.processor(text=[f"{qwen.placeholder}how many"], images=[picture()], return_tensors="pt")
    length = prompt["input_ids"].shape[1] + len(ANSWER)
    sizes.clear()
    three = seen(qwen, max_tokens=4 * length - 1)
    assert sizes == [1, 3, 3, 2]
    for name in ("divergence", "cells"):
        torch.testing.assert_close(getattr(one, name), getattr(three, name), rtol=0, atol=VALUE)


def test_the_models_own_answer_given_back_measures_the_same(warm):
    row = DigitRows("test", seed=1)[0]
    question = row["problem"].removeprefix("<image>")
    own = look(*warm, row["images"][0], question, max_new_tokens=32)
    assert own.sampled and own.finished and own.tokens[-1] == "<|im_end|>"
    answer = "".join(own.tokens[:-1])
    same = look(*warm, row["images"][0], question, answer)
    assert not same.sampled and same.tokens == own.tokens[:-1]
    torch.testing.assert_close(same.cells, own.cells[:-1], rtol=1e-3, atol=1e-4)
    assert own.divergence.max() > 0.1 and own.rounding.max() < 1e-4
    assert min(own.cells.min(), own.rounding.min()) >= 0  # in float32, rounding would take some below
    cut = look(*warm, row["images"][0], question, max_new_tokens=3)
    assert cut.tokens == own.tokens[:3] and not cut.finished


def test_the_question_is_followed_by_the_suffix(warm):
    image = picture(56, 28)
    one, other = (look(*warm, image, "sum: ? ?", "9", prompt_suffix=suffix) for suffix in ("", "evens"))
    assert other.prompt_suffix == "evens" and not torch.equal(one.cells, other.cells)


# --- cells and tokens -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "cells", "grid", "boxes"),
    [
        ((84, 28), 6, (2, 6), {0: (0, 0, 14, 14), 5: (70, 0, 84, 14), 11: (70, 14, 84, 28)}),
        ((28, 84), 6, (6, 2), {1: (14, 0, 28, 14), 10: (0, 70, 14, 84)}),
        ((84, 28), 8, (3, 8), {23: (73, 18, 84, 28)}),  # 8 / 3 rows, rounded
        ((10, 10), 3, (3, 3), {0: (0, 0, 3, 3), 4: (3, 3, 6, 6), 8: (6, 6, 10, 10)}),  # 10 / 3, cut to pixels
        ((3, 1), 8, (1, 3), {2: (2, 0, 3, 1)}),  # no cell without a pixel
        ((400, 3), 8, (1, 8), {7: (350, 0, 400, 3)}),
    ],
)
def test_cells_by_hand(size, cells, grid, boxes):
    found_grid, found = cell_boxes(size, cells)
    assert found_grid == grid and len(found) == grid[0] * grid[1]
    assert {index: found[index] for index in boxes} == boxes


@settings(deadline=None)  # a busy machine is no failure
@given(some.integers(1, 300), some.integers(1, 300), some.integers(1, 40))
def test_cells_tile_the_image(width, height, cells):
    _, boxes = cell_boxes((width, height), cells)
    covered = np.zeros((height, width), dtype=int)
    for left, top, right, bottom in boxes:
        assert left < right and top < bottom
        covered[top:bottom, left:right] += 1
    assert (covered == 1).all()


def test_a_hidden_cell_is_black_and_the_image_stays():
    image = picture(8, 6)
    before = np.array(image)
    hidden = np.array(without(image, (2, 1, 5, 4)))
    inside = np.zeros((6, 8), dtype=bool)
    inside[1:4, 2:5] = True
    assert (hidden[inside] == 0).all() and (hidden[~inside] == before[~inside]).all()
    assert (np.array(image) == before).all()


def test_tokens_are_the_text_and_half_a_character_is_none():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    ids = tokenizer("a é\n✓").input_ids
    assert token_texts(tokenizer, ids) == ["a", " ", "", "é", "\n", "", "", "✓"]
    assert token_texts(tokenizer, ids[:-1])[-1] == "\N{REPLACEMENT CHARACTER}"  # cut within a character


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"question": " \n"}, "question: is empty"),
        ({"question": "<image> and <image>?"}, "placeholders do not match images: 2 <image> for 1"),
        (
            {"question": "what<|image_pad|>"},
            r"cannot be put to the model: control token in the problem: <\|image_pad\|>",
        ),
        ({"answer": ""}, "answer: is empty"),
        ({"answer": "a <|image_pad|> b"}, r"answer: holds <\|image_pad\|>"),
        ({"cells": 0}, "cells: 0 must be at least 1"),
        ({"max_new_tokens": 0}, "max_new_tokens: 0 must be"),
        ({"max_tokens": -1}, "max_tokens: -1 must be"),
        ({"image": Image.new("RGB", (900, 2))}, "one side is more than 200 times the other"),
    ],
)
def test_bad_input_is_named(qwen, changed, said):
    asked = {"image": picture(), "question": "how many", "answer": "7"} | changed
    with pytest.raises(ConfigError, match=said):
        look(qwen.model, qwen.processor, **asked)


def test_a_model_whose_logits_are_more_than_a_product_is_refused(qwen, monkeypatch):
    monkeypatch.setattr(qwen.model.config.get_text_config(), "final_logit_softcapping", 30.0, raising=False)
    with pytest.raises(ConfigError, match="MODEL: .* the model changes its logits by final_logit_softcapping"):
        seen(qwen)


def test_a_run_is_asked_as_it_was_trained(tiny_model_folder, tmp_path):
    shutil.copytree(tiny_model_folder, tmp_path / "run" / "model")
    for recipe, suffix in (
        ("prompt_suffix: ''", ""),
        ("prompt_suffix: Think.", "Think."),
        ("prompt_suffix: null", module.PROMPT_SUFFIX),
        ("min_pixels: 784\nmax_pixels: 1568", module.PROMPT_SUFFIX),
    ):
        (tmp_path / "run" / "config.yaml").write_text(recipe, encoding="utf-8")
        model, processor, found, label = open_model(str(tmp_path / "run"))
        assert found == suffix and label.endswith("/run")
        assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    assert processor.image_processor.size["longest_edge"] == 1568
    assert open_model(str(tiny_model_folder))[2] == ""


# --- the page ---------------------------------------------------------------------------------------------------------

HOSTILE = "\"'><script>alert(1)</script><img src=https://example.org/x onerror=alert(1)>{{ 7 * 7 }}\u202e\0"


def example(**changed) -> Look:
    """Two tokens and 1 x 2 cells, by hand."""
    given = {
        "question": "which is larger?",
        "prompt_suffix": "",
        "tokens": ["9\n", ""],
        "sampled": True,
        "finished": True,
        "image": picture(20, 10),
        "masked_image": Image.new("RGB", (20, 10)),
        "boxes": [(0, 0, 10, 10), (10, 0, 20, 10)],
        "divergence": torch.tensor([2.0, 0.5]),
        "cells": torch.tensor([[[4.0, 1.0]], [[0.02, 0.04]]]),
        "rounding": torch.tensor([1e-9, 2e-9]),
    }
    return Look(**given | changed)


class Page(HTMLParser):
    """Elements, attributes and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.script, self.inside = [], [], "", "", ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.inside = tag
        self.attributes += [(tag, name, value) for name, value in attributes]

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside == "script":
            self.script += data
        else:
            self.text += data

    def values(self, tag, name):
        return [value for found, key, value in self.attributes if (found, key) == (tag, name)]


def page_of(tmp_path, found: Look, model="OWNER/NAME", image_name="a.png") -> tuple[str, Page]:
    path = tmp_path / "folder" / "look.html"
    write_look(found, path, model, image_name)
    assert [file.name for file in path.parent.iterdir()] == ["look.html"]  # nothing half-written beside it
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def test_the_page_by_hand(tmp_path):
    text, page = page_of(tmp_path, example())
    assert page.values("span", "title") == ["token 1: 2.000 nats", "token 2: 0.500 nats"]
    assert page.values("span", "style") == [
        f"background: rgb(217 72 15 / {STRONGEST:.3f})",
        f"background: rgb(217 72 15 / {STRONGEST / 4:.3f})",
    ]
    assert page.values("span", "data-cells") == ["4.0000 1.0000", "0.0200 0.0400"]
    assert page.values("svg", "data-cells") == ["4.0200 1.0400"]
    assert page.values("rect", "x") == ["0", "10"] and page.values("rect", "width") == ["10", "10"]
    assert page.values("rect", "fill-opacity") == [f"{STRONGEST:.3f}", f"{STRONGEST * 1.04 / 4.02:.3f}"]
    for said in ("2 tokens, 2.500 nats together", "4.020 nats: the whole answer", "9↵\n·", "gives 3e-09 nats"):
        assert said in " ".join(page.text.split(" ")), said
    assert "Sampled greedily:" in page.text
    given = page_of(tmp_path, example(sampled=False))[1].text
    cut = page_of(tmp_path, example(finished=False, prompt_suffix="Think first."))[1].text
    assert (
        "A given answer:" in given and "Sampled greedily, cut by the limit of length:" in cut and "Think first." in cut
    )
    assert "hidden" in {name for tag, name, _ in page.attributes if tag == "p"}  # the hint is for those with scripts


def test_an_answer_that_owes_nothing_looks_like_it():
    assert full_colour([1e-6, 2e-6]) == LEAST_FULL == 0.1 and full_colour([0.3, 0.7]) == 0.7


def test_images_are_in_the_page_as_png(tmp_path):
    _, page = page_of(tmp_path, example())
    sources = page.values("img", "src") + page.values("image", "href")
    assert len(sources) == 3 and all(source.startswith("data:image/png;base64,") for source in sources)
    assert sources[0] == sources[2] != sources[1]


def test_hostile_texts_add_no_element(tmp_path):
    hostile = example(question=HOSTILE, prompt_suffix=HOSTILE, tokens=[HOSTILE, HOSTILE])
    text, page = page_of(tmp_path, hostile, model=HOSTILE, image_name=HOSTILE)
    harmless = page_of(tmp_path, example(prompt_suffix="x"))[1]
    assert page.tags == harmless.tags and page.script == harmless.script
    assert [(tag, name) for tag, name, _ in page.attributes] == [(tag, name) for tag, name, _ in harmless.attributes]
    assert page.text.count("<script>alert(1)</script>") == 6 and "{{ 7 * 7 }}" in page.text
    assert "\u202e" not in text and "\0" not in text and "⟨U+202E⟩" in page.text


def test_the_policy_allows_the_one_script_and_no_address(tmp_path):
    text, page = page_of(tmp_path, example())
    assert page.tags.count("script") == 1
    policy = next(value for value in page.values("meta", "content") if "default-src" in value)
    hashed = base64.b64encode(hashlib.sha256(page.script.encode()).digest()).decode()
    assert dict(part.split(maxsplit=1) for part in policy.split(";")) == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": "'unsafe-inline'",
        "script-src": f"'sha256-{hashed}'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert text.index("Content-Security-Policy") < text.index("<style>") < text.index("<script>")
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    assert not re.search(r"https?:|//\w|url\(|@import|innerHTML|eval|fetch", re.sub(r"base64,[^\"]+", "", text))


# A document of just what the script touches.
BROWSER = """
const page = JSON.parse(process.argv[1]);
function element(dataset) {
  return {
    dataset, attributes: {}, listeners: {}, textContent: "", hidden: true, classes: new Set(),
    setAttribute(name, value) { this.attributes[name] = value; },
    addEventListener(name, heard) { this.listeners[name] = heard; },
    classList: null,
  };
}
const tokens = page.tokens.map(element), rects = page.map.cells.split(" ").map(() => element({}));
for (const rect of rects) rect.firstElementChild = element({});
for (const token of tokens)
  token.classList = { toggle(name, on) { on ? token.classes.add(name) : token.classes.delete(name); } };
const byId = { map: element(page.map), what: element({}), full: element({}), hint: element({}) };
byId.map.querySelectorAll = () => rects;
globalThis.document = { getElementById: (id) => byId[id], querySelectorAll: () => tokens };
const states = [];
function note() {
  states.push({
    what: byId.what.textContent, full: byId.full.textContent,
    opacity: rects.map((rect) => rect.attributes["fill-opacity"]),
    titles: rects.map((rect) => rect.firstElementChild.textContent),
    shown: tokens.map((token) => token.classes.has("shown")),
    pressed: tokens.map((token) => token.attributes["aria-pressed"]),
  });
}
new Function(page.script)();
for (const [name, i, key] of page.events) {
  tokens[i].listeners[name]({ key, preventDefault() {} });
  note();
}
console.log(JSON.stringify({ states, hint: byId.hint.hidden }));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="runs the page's script in node")
def test_the_script_shows_and_keeps_the_map_of_a_token(tmp_path):
    _, page = page_of(tmp_path, example())
    names = zip(page.values("span", "data-name"), page.values("span", "data-cells"), strict=True)
    given = {
        "script": page.script,
        "tokens": [{"name": name, "cells": cells} for name, cells in names],
        "map": {
            "name": page.values("svg", "data-name")[0],
            "cells": page.values("svg", "data-cells")[0],
            "leastFull": page.values("svg", "data-least-full")[0],
            "strongest": page.values("svg", "data-strongest")[0],
        },
        "events": [
            ["mouseenter", 0], ["mouseleave", 0], ["mouseenter", 1], ["click", 1], ["mouseleave", 1],
            ["mouseenter", 0], ["mouseleave", 0], ["keydown", 1, "Enter"], ["keydown", 1, "x"],
        ],
    }  # fmt: skip
    done = subprocess.run(["node", "-e", BROWSER, json.dumps(given)], capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    states = told["states"]
    assert told["hint"] is False
    whole, one, two = "the whole answer", "token 1", "token 2"
    assert [state["what"] for state in states] == [one, whole, two, two, two, one, two, whole, whole]
    assert [state["full"] for state in states][:3] == ["4.000", "4.020", "0.100"]  # the least that full colour means
    assert states[0]["opacity"] == pytest.approx([0.8, 0.2]) and states[0]["titles"] == ["4.000 nats", "1.000 nats"]
    assert states[1]["opacity"] == pytest.approx([0.8, 0.8 * 1.04 / 4.02])
    assert states[2]["opacity"] == pytest.approx([0.16, 0.32]) and states[2]["shown"] == [False, True]
    assert [state["pressed"] for state in states][4::3] == [[False, True], [False, False]]


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    DigitRows("test", seed=1)[0]["images"][0].save(tmp_path / "digits.png")
    return str(tmp_path / "digits.png")


def test_the_command_writes_the_page_and_says_the_answer(tiny_model_folder, file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "token_texts", lambda tokenizer, ids: [f"{i}\x1b[2J" for i in ids])
    page = tmp_path / "new" / "page.html"
    arguments = ["look", str(tiny_model_folder), file, "sum: ? ? ?", "--answer", "9 9", "--cells", "3"]
    assert cli.main([*arguments, "--mask-ratio", "1", "--max_tokens", "90", "--output", str(page)]) == 0
    printed = capsys.readouterr()
    assert "\\x1b[2J" in printed.out and "\x1b" not in printed.out and str(page) in printed.out
    assert "5/5" in printed.err  # the clean view again, the masked one, three cells
    found = Page(page.read_text(encoding="utf-8"))
    masked = base64.b64decode(found.values("img", "src")[1].partition(",")[2])
    assert len(found.values("rect", "x")) == 3
    (tmp_path / "masked.png").write_bytes(masked)
    assert not np.array(Image.open(tmp_path / "masked.png")).any()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"image": "README.md"}, "IMAGE: not a readable PNG"),
        ({"image": "nowhere.png"}, "IMAGE: nowhere.png is not a file"),
        ({"model": "nowhere/at/all"}, "There is no model or run at 'nowhere/at/all'"),
        ({"question": " "}, "question: is empty"),
        ({"--answer": " "}, "answer: is empty"),
        ({"--cells": "0"}, "cells: 0"),
        ({"--max_new_tokens": "0"}, "max_new_tokens: 0"),
        ({"--max_tokens": "0"}, "max_tokens: 0"),
        ({"--mask_ratio": "2"}, "mask: ratio is a probability"),
        ({"--mask_patch_size": "0"}, "mask: patch_size"),
        ({"--output": "."}, "--output . is a folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(changed, said, tiny_model_folder, file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("README.md").write_text("no image", encoding="utf-8")
    asked = {"model": str(tiny_model_folder), "image": file, "question": "sum: ? ? ?"} | changed
    loaded, original = [], module.open_model
    monkeypatch.setattr(module, "open_model", lambda name: loaded.append(name) or original(name))
    options = [part for name, value in changed.items() if name.startswith("--") for part in (name, value)]
    assert cli.main(["look", asked["model"], asked["image"], asked["question"], *options]) == 2
    error = capsys.readouterr().err
    assert f"error: {said}" in error and "Traceback" not in error
    assert not Path("look.html").exists()
    assert loaded == ([asked["model"]] if "model" in changed else [])  # what needs no model is said before it is loaded


def test_a_text_model_is_refused(file, tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}), encoding="utf-8")
    assert cli.main(["look", str(tmp_path), file, "what?"]) == 2
    assert "MODEL: " in (said := capsys.readouterr().err) and "llama model, which reads no images" in said


def test_memory_that_ends_names_the_option(tiny_model_folder, file, monkeypatch, capsys):
    def out_of_memory(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(module, "look", out_of_memory)
    assert cli.main(["look", str(tiny_model_folder), file, "what?"]) == 2
    assert "error: max_tokens: 16384 at a time are more than memory holds; lower it." in capsys.readouterr().err


# --- the benchmark ----------------------------------------------------------------------------------------------------


def read(*maps: list[list[float]], **changed) -> Look:
    """An answer that begins with three digits, with the maps (1 x 9 cells) of these by hand."""
    empty = [[0.0] * 9]
    given = {"question": "sum: ? 4 ?", "tokens": ["<think>", " 3", " 4", " 5", "</think>"], "rounding": torch.ones(5)}
    return example(**given | {"cells": torch.tensor([empty, *maps, empty])} | changed)


def test_the_benchmark_adds_up_thirds_by_hand():
    first = [[1.0, 2.0, 3.0, 0.5, 0.0, 0.5, 0.0, 0.0, 1.0]]
    told, last = [[0.0] * 8 + [0.25]], [[0.0, 4.0, 0.0, 0.0, 0.0, 0.0, 2.0, 0.0, 2.0]]
    found = benchmark.examine(read(first, told, last))
    assert found == {
        "question": "sum: ? 4 ?",
        "thirds": [[6.0, 1.0, 1.0], [0.0, 0.0, 0.25], [4.0, 0.0, 4.0]],
        "heaviest_cell": 6.0,  # 2 + 0 + 4
        "rounding": 5.0,
    }
    wordy = benchmark.examine(read(first, told, last, tokens=["<think>", " 3", " and", " 5", "</think>"]))
    short = benchmark.examine(example())
    assert wordy["thirds"] is short["thirds"] is None and short["heaviest_cell"] == 4.02
    other = {"question": "sum: 1 ? 2", "thirds": [[0, 2, 0], [0, 0, 0], [0, 0, 0]], "heaviest_cell": 2, "rounding": 7}
    assert list(benchmark.figures([found, wordy, other]).values()) == [
        "2 of 3",
        "3",
        "50.0 %",  # 75 %, 50 %, and nothing of nothing
        "1 of 3",  # the last digit's third is as heavy as another
        "8.0",  # 8, 8, 0
        "3",
        "0.250",  # 0.25, 2, 0
        "1 of 3",
        "6.0",
        "5e+00, at most 7e+00",
    ]
    nothing = benchmark.figures([wordy])
    assert nothing["nats of their maps"] == "–" and nothing["answers that begin with the digits"] == "0 of 1"


def test_the_benchmark_looks_and_draws(warm_model_folder, tmp_path, capsys, monkeypatch):
    """From the command line to the files, on one question; the picture is what the documents show: 9 inches wide."""
    options = ["--model", str(warm_model_folder), "--questions", "1", "--output", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["look", *options, "--picture", str(tmp_path / "look.png")])
    benchmark.main()
    results = json.loads((tmp_path / "look.json").read_text(encoding="utf-8"))
    (model,) = results["models"]
    assert model["name"] == str(warm_model_folder)
    assert [answer["question"] for answer in model["answers"]] == ["evens: 4 2 0"]
    table = benchmark.figures_table(results)
    assert table in (tmp_path / "look.md").read_text(encoding="utf-8") and table in capsys.readouterr().out
    assert Image.open(tmp_path / "look.png").width == 9 * 144


def test_the_example_of_the_picture_reads_as_its_note_says():
    assert DigitRows("test")[benchmark.EXAMPLE]["problem"] == "<image>sum: ? 4 ?"


@pytest.mark.parametrize("options", [["--questions", "0"], ["--questions", "401"], ["--model", "nowhere/at/all"]])
def test_the_benchmark_refuses_what_it_cannot_look_at(options, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["look", *options, "--output", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        benchmark.main()
    assert ended.value.code == 2 and options[1] in capsys.readouterr().err and not list(tmp_path.iterdir())


# --- the document -----------------------------------------------------------------------------------------------------


def test_every_option_is_documented_with_its_default():
    parser = cli.argparse.ArgumentParser()
    cli._add_look(parser.add_subparsers())
    look_parser = parser._subparsers._group_actions[0].choices["look"]
    options = {a.option_strings[0]: a.default for a in look_parser._actions if a.option_strings and a.dest != "help"}
    table = re.findall(r"^\| `(--\w+)` \| (.+?) \|", (ROOT / "docs/look.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert dict(table) == {name: "the model's own" if value is None else f"{value}" for name, value in options.items()}
