"""An evaluation as a folder: with a random tiny model, from a file of the user's own, refused, grown, graded anew."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from transformers import AutoModelForImageTextToText

from papo_hub.config import ConfigError
from papo_hub.data import check_row, encode
from papo_hub.digits import DigitRows
from papo_hub.evaluation.answers import FILE, Answer, Transcript, read_answers
from papo_hub.evaluation.protocol import Protocol
from papo_hub.evaluation.run import Request, evaluate, find_model, regrade
from papo_hub.evaluation.settings import joined
from papo_hub.evaluation.training import HeldOut
from papo_hub.evaluation.views import mask_ratio, mask_view, seen
from papo_hub.modeling import load_processor
from papo_hub.rollout import TransformersEngine

VIEWS = ("clean", "mask-0.6", "blank")
PROTOCOL = Protocol(k=2, view_k=1, views=VIEWS, max_completion_length=6)


def quiet(text):
    pass


def contents(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def own_file(tmp_path_factory):
    """Three usable rows and a bad one, with images beside the table and ids of their own."""
    folder = tmp_path_factory.mktemp("own")
    rows = []
    for number in range(4):
        colour = (60 * number, 200, 90)
        Image.new("RGB", (42, 28), colour).save(folder / f"{number}.png")
        answer = "" if number == 2 else f"{number}"
        rows.append(
            {"question": f"sum: {number} ?", "answer": answer, "images": [f"{number}.png"], "id": f"row {number}"}
        )
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "mine.jsonl"


@pytest.fixture(scope="module")
def request_of(tiny_model_folder, own_file):
    def request_of(folder, **changed):
        asked = Request(
            f"{tiny_model_folder}", ("digits", f"{own_file}"), PROTOCOL, output_dir=folder, limit=4,
            columns={"problem": "question"},
        )  # fmt: skip
        return replace(asked, **changed)

    return request_of


@pytest.fixture(scope="module")
def done(request_of, tmp_path_factory):
    """A finished evaluation of four digits problems and the file; not to be changed: copy it."""
    return evaluate(request_of(tmp_path_factory.mktemp("done") / "evaluation"), say=quiet)


@pytest.fixture
def copied(done, tmp_path):
    return Path(shutil.copytree(done, tmp_path / "evaluation"))


# --- the folder -----------------------------------------------------------------------------------------------------


def test_a_file_of_the_users_own_is_a_benchmark(done):
    answers, results = read_answers(done), json.loads((done / "results.json").read_text())
    assert len(answers) == (4 + 3) * (2 + 1 + 1)
    assert list(dict.fromkeys(a.id for a in answers if a.benchmark == "mine")) == ["row 0", "row 1", "row 3"]
    whole = [row for row in results["rows"] if row["subset"] == "all"]
    assert [(r["benchmark"], r["view"], r["group"], r["k"], r["problems"], r["answers"]) for r in whole] == [
        (name, view, group, 2 if view == "clean" else 1, problems, problems * (2 if view == "clean" else 1))
        for name, group, problems in (("digits", "tiny", 4), ("mine", "local", 3))
        for view in VIEWS
    ]
    assert results["skipped"] == [{"benchmark": "mine", "id": "row 2", "reason": "empty answer"}]
    assert results["averages"].keys() == {"overall"}
    report = (done / "report.md").read_text()
    assert "mine" in report and "row 2" in report
    assert list((done / "figures").glob("*.png"))
    settings = json.loads((done / "settings.json").read_text())
    assert settings == results["settings"]
    assert settings["protocol"]["views"] == list(VIEWS) and settings["kl_view"] == "mask-0.6"
    assert [b["columns"] for b in settings["benchmarks"]] == [{}, {"problem": "question"}]
    assert settings["benchmarks"][1]["content"] and settings["model"]["weights"]


def test_done_it_is_not_done_again_and_says_the_same(request_of, copied, monkeypatch):
    monkeypatch.setattr(TransformersEngine, "generate", None)  # any use of it would fail
    before = contents(copied)
    evaluate(request_of(copied), say=quiet)
    after = contents(copied)
    assert after[Path(FILE)] == before[Path(FILE)] and after.keys() == before.keys()
    old, new = (json.loads(files[Path("results.json")]) for files in (before, after))
    assert old["settings"].pop("started") and new["settings"].pop("started")
    assert old == new


def test_greedy_is_one_answer_that_no_seed_changes(request_of, tmp_path):
    greedy = Protocol(k=1, view_k=1, views=("clean",), temperature=0.0, max_completion_length=4)
    first, second = (
        read_answers(evaluate(request_of(tmp_path / f"{seed}", protocol=replace(greedy, seed=seed)), say=quiet))
        for seed in (1, 2)
    )
    assert len(first) == 7 and [a.response for a in first] == [a.response for a in second]
    assert {a.perception_kl for a in first} == {None}
    assert all(a.seed != b.seed for a, b in zip(first, second, strict=True))


def test_two_evaluations_of_one_seed_agree_and_of_another_differ(request_of, done, tmp_path):
    few = {"benchmarks": ("digits",), "columns": {}, "limit": 2}
    same = read_answers(evaluate(request_of(tmp_path / "same", **few), say=quiet))
    expected = [a for a in read_answers(done) if a.benchmark == "digits"][: len(same)]
    # Fewer are decoded together here, which moves the last digits of a sum and of nothing else.
    assert [replace(a, perception_kl=None) for a in same] == [replace(a, perception_kl=None) for a in expected]
    kl, expected_kl = ([a.perception_kl for a in found if a.view == "clean"] for found in (same, expected))
    assert kl == pytest.approx(expected_kl, rel=1e-4)
    other = read_answers(evaluate(request_of(tmp_path / "other", protocol=replace(PROTOCOL, seed=7), **few), say=quiet))
    assert all(a.response != b.response for a, b in zip(same, other, strict=True) if a.tokens > 3)
    assert [a.prompt for a in same] == [a.prompt for a in other]  # the masks are the same for every seed


# --- what may change, and what may not ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changed, named",
    [
        ({"dtype": "bfloat16"}, "another dtype: 'float32', not 'bfloat16'"),
        ({"min_pixels": 784, "max_pixels": 7840}, "another pixels: None, not [784, 7840]"),
        ({"prompt_suffix": "Go."}, "another digits: prompt_suffix: '', not 'Go.'"),
        ({"protocol": replace(PROTOCOL, seed=1)}, "another seed: 42, not 1"),
        ({"protocol": replace(PROTOCOL, temperature=0.5)}, "another temperature: 1.0, not 0.5"),
        ({"protocol": replace(PROTOCOL, top_p=0.9)}, "another top_p: 1.0, not 0.9"),
        ({"protocol": replace(PROTOCOL, mask_patch_size=7)}, "another mask_patch_size: 14, not 7"),
        ({"protocol": replace(PROTOCOL, max_completion_length=7)}, "another max_completion_length: 6, not 7"),
        ({"protocol": replace(PROTOCOL, grader="mathruler")}, "or re-grade it: --from_answers {} --grader mathruler"),
        (
            {"protocol": replace(PROTOCOL, views=("clean", "mask-0.9"))},
            "another kl_view (which follows from views): 'mask-0.6', not 'mask-0.9'",
        ),
    ],
)
def test_another_setting_is_refused_by_name_and_the_folder_stays(request_of, copied, changed, named):
    before = contents(copied)
    with pytest.raises(ConfigError) as caught:
        evaluate(request_of(copied, **changed), say=quiet)
    message = str(caught.value)
    assert named.format(copied) in message and "Choose another --output_dir" in message and f"{copied}" in message
    assert contents(copied) == before


def test_another_model_or_other_data_are_refused(request_of, copied, tiny_model_folder, own_file, tmp_path):
    shutil.copytree(tiny_model_folder, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(config | {"top_k": 3}))
    with pytest.raises(ConfigError, match="another model weights"):
        evaluate(request_of(copied, model=f"{tmp_path / 'model'}"), say=quiet)
    shutil.copytree(own_file.parent, tmp_path / "own")
    with (tmp_path / "own" / "mine.jsonl").open("a") as file:
        file.write("\n")
    moved = request_of(copied, benchmarks=(f"{tmp_path / 'own' / 'mine.jsonl'}",))
    with pytest.raises(ConfigError, match="another mine: dataset"):
        evaluate(moved, say=quiet)
    settings = json.loads((copied / "settings.json").read_text())
    changed = json.loads(json.dumps(settings))
    changed["benchmarks"][1]["content"] = "0" * 16
    with pytest.raises(ConfigError, match="another mine: content"):
        joined(copied, changed)


def test_fewer_views_and_benchmarks_leave_a_record_of_the_rest(request_of, copied):
    fewer = request_of(
        copied, benchmarks=("digits",), columns={}, limit=2, protocol=replace(PROTOCOL, views=("clean",))
    )
    evaluate(fewer, say=quiet)
    settings = json.loads((copied / "settings.json").read_text())
    assert [row["name"] for row in settings["benchmarks"]] == ["digits"]
    assert [row["name"] for row in settings["held"]] == ["mine"]
    assert settings["kl_view"] == "mask-0.6"  # of which the answers' perception KL still is
    assert len(read_answers(copied)) == (4 + 3) * 4
    # What the transcript holds beside what was asked is still protected:
    with pytest.raises(ConfigError, match="another mine: prompt_suffix"):
        evaluate(request_of(copied, prompt_suffix="Go.", benchmarks=request_of(copied).benchmarks[1:]), say=quiet)
    with pytest.raises(ConfigError, match="another kl_view"):
        evaluate(request_of(copied, protocol=replace(PROTOCOL, views=("clean", "mask-0.3"))), say=quiet)
    evaluate(request_of(copied), say=quiet)  # and can be had again
    assert "held" not in json.loads((copied / "settings.json").read_text())


def test_answers_of_a_killed_second_process_are_checked_too(request_of, copied):
    (copied / FILE).rename(copied / "answers-1.jsonl")
    with pytest.raises(ConfigError, match="another seed"):
        evaluate(request_of(copied, protocol=replace(PROTOCOL, seed=1)), say=quiet)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model": {}, "protocol": {}, "benchmarks": [1]}', "\xff"])
def test_settings_that_are_damaged_or_gone_are_named(request_of, copied, content):
    (copied / "settings.json").write_text(content, encoding="latin-1")
    before = contents(copied)
    with pytest.raises(ConfigError, match="settings.json is damaged.*--output_dir"):
        evaluate(request_of(copied), say=quiet)
    assert contents(copied) == before
    (copied / "settings.json").unlink()
    with pytest.raises(ConfigError, match="holds answers.jsonl without settings.json: choose another --output_dir"):
        evaluate(request_of(copied), say=quiet)


def test_settings_of_a_measured_run_are_refused_and_not_stumbled_over(request_of, finished_run, tmp_path):
    folder = shutil.copytree(finished_run / "evaluation" / "before", tmp_path / "before")
    with pytest.raises(ConfigError, match="holds an evaluation with another"):
        evaluate(request_of(folder, benchmarks=("digits",), columns={}), say=quiet)


# --- where the model lies -------------------------------------------------------------------------------------------


def test_a_model_is_found_by_folder_run_and_hub_id(tmp_path):
    (tmp_path / "a" / "plain").mkdir(parents=True)
    (tmp_path / "a" / "plain" / "config.json").write_text("{}")
    found = find_model(f"{tmp_path / 'a' / 'plain'}")
    assert (found.place, found.revision, found.label) == (f"{tmp_path / 'a' / 'plain'}", None, "a/plain")
    assert found.folder == Path("evaluations/a-plain")
    run = tmp_path / "a" / "run"
    (run / "model").mkdir(parents=True)
    (run / "config.yaml").write_text("prompt_suffix: Think.\n")
    with pytest.raises(ConfigError, match="has no model yet.*--resume_from_checkpoint latest.*/checkpoints/"):
        find_model(f"{run}")
    (run / "model" / "config.json").write_text("{}")
    found = find_model(f"{run}")
    assert (found.place, found.label, found.folder) == (f"{run / 'model'}", "a/run", run / "evaluation" / "final")
    assert found.recipe == {"prompt_suffix": "Think."}
    found = find_model("owner/name", "v1.0")
    assert (found.place, found.revision, found.label) == ("owner/name", "v1.0", "owner/name@v1.0")
    assert found.folder == Path("evaluations/owner--name--v1.0")


def test_what_is_no_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="--revision names a version of a Hub repository"):
        find_model(f"{tmp_path}", "main")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"neither a model \(config.json\) nor a run \(config.yaml\)"):
        find_model(f"{tmp_path / 'empty'}")
    for name in (f"{tmp_path}/nothing", "../up", "a/b/c", "owner/na me", ".hidden"):
        with pytest.raises(ConfigError, match="no model or run at"):
            find_model(name)
    (tmp_path / "config.json").unlink()
    for content in ("a: [1", "- 1"):
        (tmp_path / "config.yaml").write_text(content)
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model" / "config.json").write_text("{}")
        with pytest.raises(ConfigError, match="config.yaml is damaged"):
            find_model(f"{tmp_path}")


def test_a_run_is_evaluated_as_it_was_trained(finished_run, request_of, tmp_path):
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    recipe = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(recipe.replace("prompt_suffix: ''", "prompt_suffix: Look."))
    folder = evaluate(
        request_of(None, model=f"{run}", protocol=replace(PROTOCOL, k=1, views=("clean",)), limit=2), say=quiet
    )
    assert folder == run / "evaluation" / "final"
    settings = json.loads((folder / "settings.json").read_text())
    assert [row["prompt_suffix"] for row in settings["benchmarks"]] == ["", "Look."]  # the table's own stays
    assert settings["model"]["base"] in recipe
    assert (run / "evaluation" / "after" / FILE).exists()


# --- protocol and views ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"k": 0}, "k: 0 must be at least 1"),
        ({"view_k": 0}, "view_k: 0 must be at least 1"),
        ({"batch_size": -1}, "batch_size: -1"),
        ({"max_completion_length": 0}, "max_completion_length: 0"),
        ({"temperature": float("nan")}, "temperature: nan"),
        ({"temperature": -1.0}, "temperature: -1.0"),
        ({"top_p": 0.0}, "top_p: 0.0"),
        ({"temperature": 0.0}, "k: 8, but greedy answers .* write k: 1"),
        ({"temperature": 0.0, "k": 1}, "view_k: 2, but greedy answers .* write view_k: 1"),
        ({"grader": "exact"}, "grader: 'exact' is none of math, mathruler"),
        ({"views": ("blank",)}, "views: the clean one must be among them"),
        ({"views": ("clean", "clean")}, "names one twice"),
        ({"views": ("clean", "mask-0.6", "mask-0.60")}, "names one twice"),
        ({"views": ("clean", "mask-1.5")}, "'mask-1.5' is no view"),
        ({"views": ("clean", "mask-0")}, "'mask-0' is no view"),
        ({"views": ("clean", "noise")}, "'noise' is no view: write clean, blank, or mask-R"),
    ],
)
def test_a_protocol_that_cannot_be_is_refused(changed, said):
    with pytest.raises(ConfigError, match=said):
        Protocol(**changed)


def test_the_perception_kl_is_of_the_view_nearest_to_the_papers():
    def kl_view(*views):
        return Protocol(views=("clean", *views)).kl_view

    assert kl_view("mask-0.3", "mask-0.9", "mask-0.6", "blank") == "mask-0.6"
    assert kl_view("mask-0.3", "mask-0.8") == "mask-0.8" and kl_view("mask-1") == "mask-1" and kl_view("blank") is None
    assert Protocol(k=3, view_k=2).samples("clean") == 3 and Protocol(k=3, view_k=2).samples("blank") == 2


def test_names_of_views():
    assert [mask_view(ratio) for ratio in (0.6, 1.0, 0.25)] == ["mask-0.6", "mask-1", "mask-0.25"]
    assert [mask_ratio(view) for view in ("clean", "mask-0.6", "mask-1", "blank")] == [0, 0.6, 1, None]


def hidden(image, view, id="a"):
    """Which cells of a white image a view turns black."""
    (masked,) = seen((image,), view, id, 14)
    assert masked.size == image.size
    return np.asarray(masked)[7::14, 7::14].sum(-1) == 0


def test_masks_are_nested_and_follow_from_the_id_alone():
    image = Image.new("RGB", (14 * 40, 14 * 30), "white")
    shares, last = [], np.zeros((30, 40), bool)
    for view in ("mask-0.3", "mask-0.6", "mask-0.9", "mask-1"):
        now = hidden(image, view)
        assert (now | last == now).all()  # what was hidden stays hidden
        shares.append(now.mean())
        last = now
    assert shares == pytest.approx([0.3, 0.6, 0.9, 1.0], abs=0.06)  # four deviations of 1,200 cells
    assert (hidden(image, "mask-0.6") == hidden(image, "mask-0.6")).all()
    assert (hidden(image, "mask-0.6") != hidden(image, "mask-0.6", "b")).mean() > 0.3
    first, second = seen((image, image), "mask-0.6", "a", 14)
    assert first.tobytes() != second.tobytes()  # two images of a problem have masks of their own
    assert seen((image,), "clean", "a", 14) == (image,)


def test_blank_is_the_mean_colour_at_the_same_size():
    image = Image.new("RGB", (3, 2), (10, 20, 30))
    image.putpixel((0, 0), (10, 20, 90))
    image.putpixel((2, 1), (16, 20, 31))
    (blank,) = seen((image,), "blank", "a", 14)
    assert blank.size == (3, 2)
    assert blank.getcolors() == [(6, (11, 20, 40))]  # 66/6; 20; (4·30 + 90 + 31)/6 = 40.2


# --- the perception KL, two routes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_perception_kl_is_that_of_two_plain_forward_passes(
    tiny_model_folder, tmp_path, request_of, temperature, monkeypatch
):
    """Of each answer alone: both views made by hand, all logits of the model, k3 of their softmax."""
    model = AutoModelForImageTextToText.from_pretrained(tiny_model_folder).eval()
    processor, rows = load_processor(tiny_model_folder), DigitRows("test", size=3)
    usual, tokens = TransformersEngine.generate, {}

    def generate(self, prompts, count, *arguments):
        completions = usual(self, prompts, count, *arguments)
        if prompts[0].masked is not None:  # what the perception KL is measured on
            for i, completion in enumerate(completions):
                tokens[prompts[i // count].sample.id, i % count] = completion.token_ids
        return completions

    monkeypatch.setattr(TransformersEngine, "generate", generate)
    protocol = replace(PROTOCOL, views=("clean", "mask-0.6"), temperature=temperature)
    request = request_of(tmp_path, protocol=protocol, benchmarks=("digits",), columns={}, limit=3)
    answers = [a for a in read_answers(evaluate(request, say=quiet)) if a.view == "clean"]
    assert len(answers) == 6 == len(tokens)
    samples = {sample.id: sample for sample in (check_row(rows[i]) for i in range(3))}
    for a in answers:
        sample, ids = samples[a.id], torch.tensor(tokens[a.id, a.sample])
        logprobs = []
        for view in ("clean", "mask-0.6"):
            inputs = encode(replace(sample, images=seen(sample.images, view, a.id, 14)), processor, "").clean
            text = torch.cat([inputs["input_ids"], ids[None]], 1)
            kinds = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(ids)[None]], 1)
            inputs |= {"input_ids": text, "attention_mask": torch.ones_like(text), "mm_token_type_ids": kinds}
            with torch.no_grad():
                logits = model(**inputs).logits[0, -len(ids) - 1 : -1].double() / temperature
            logprobs.append(logits.log_softmax(-1)[range(len(ids)), ids])
        difference = logprobs[1] - logprobs[0]
        expected = float((difference.exp() - difference - 1).sum())
        assert a.tokens == len(ids) and expected > 1e-3
        assert a.perception_kl == pytest.approx(expected, rel=1e-4)


# --- graded anew ----------------------------------------------------------------------------------------------------


def graded(id, answer, boxed, verdict, sample=0, view="clean"):
    return Answer(
        "digits", id, view, sample, seed=1, prompt="00", answer=answer, response=f"\\boxed{{{boxed}}}", extracted=boxed,
        verdict=verdict, format=0.0, tokens=4, finished=True, perception_kl=0.25 if view == "clean" else None,
        tags={"kind": id},
    )  # fmt: skip


# docs/grading.md: a choice with its content is right to `math` alone, another unit to `mathruler` alone
HAND = [
    graded("choice", "A", "A. 12", 1.0),
    graded("unit", "3 hours", "3 minutes", 0.0),
    graded("plain", "12", "12", 1.0),
    graded("plain", "12", "13", 0.0, sample=1),
    graded("plain", "12", "12", 1.0, view="blank"),
]


def test_grading_anew_changes_verdicts_where_the_graders_differ(tmp_path):
    source = tmp_path / "some" / "answers.jsonl"
    Transcript(source.parent).append(HAND)
    before, said = contents(source.parent), []
    folder = regrade(source, "mathruler", say=said.append)
    assert folder == tmp_path / "some-mathruler" and contents(source.parent) == before
    assert read_answers(folder) == [replace(HAND[0], verdict=0.0), replace(HAND[1], verdict=1.0), *HAND[2:]]
    assert said[0] == "5 answers graded anew by mathruler: 2 verdicts changed."
    results = json.loads((folder / "results.json").read_text())
    assert (results["settings"]["protocol"]["grader"], results["settings"]["regraded_from"]) == (
        "mathruler",
        f"{source}",
    )
    clean = results["rows"][0]
    assert (clean["view"], clean["accuracy"], clean["k"], clean["perception_kl"]) == ("clean", 0.5, 1, 0.25 / 4)
    assert clean["group"] == "tiny" and (folder / "report.md").exists()
    again = contents(folder)
    assert regrade(source, "mathruler", say=quiet) == folder and contents(folder) == again
    with pytest.raises(ConfigError, match="choose another --output_dir"):
        regrade(folder, "math", folder, say=quiet)  # not over what it reads, whatever that is
    back = regrade(folder, "math", tmp_path / "back", say=quiet)
    assert read_answers(back) == HAND


def test_grading_an_evaluation_anew_gives_its_own_tables(request_of, copied, tmp_path, monkeypatch):
    before = contents(copied)
    folder = regrade(copied, "math", say=quiet)
    assert folder == tmp_path / "evaluation-math" and contents(copied) == before
    ours, theirs = (json.loads((place / "results.json").read_text()) for place in (folder, copied))
    assert ours["settings"].pop("regraded_from") == f"{copied}"
    assert ours == theirs and ours["skipped"]
    monkeypatch.chdir(copied)
    assert regrade(Path("."), "math", tmp_path / "dot", say=quiet) and regrade(Path(FILE), "math", say=quiet) == folder
    # Of a transcript that holds more than was asked for last, what was asked for counts.
    evaluate(request_of(copied, protocol=replace(PROTOCOL, k=1, views=("clean",))), say=quiet)
    assert len(read_answers(copied)) == 28
    folder = regrade(copied, "math", say=quiet)
    ours, theirs = (json.loads((place / "results.json").read_text())["rows"] for place in (folder, copied))
    assert ours == theirs and {row["k"] for row in ours} == {1}


def test_grading_anew_never_replaces_answers_of_a_model(copied, tmp_path):
    Transcript(tmp_path / "other").append(HAND)
    before = contents(copied)
    for place in (copied, tmp_path / "evaluation" / ".." / "evaluation"):
        with pytest.raises(ConfigError, match="would be lost: choose another --output_dir"):
            regrade(tmp_path / "other", "math", place, say=quiet)
        with pytest.raises(ConfigError, match="would be lost: choose another --output_dir"):
            regrade(copied, "math", place, say=quiet)
    assert contents(copied) == before


def test_nothing_to_grade_anew(tmp_path):
    with pytest.raises(FileNotFoundError, match="no answers.jsonl in"):
        regrade(tmp_path, "math", say=quiet)
    for line in ("", HAND[-1].to_json() + "\n"):
        (tmp_path / FILE).write_text(line)
        with pytest.raises(ConfigError, match="holds no answer to a clean image"):
            regrade(tmp_path, "math", say=quiet)
    with pytest.raises(ConfigError, match="grader: 'exact' is none of"):
        regrade(tmp_path, "exact", say=quiet)
    assert [file.name for file in tmp_path.parent.glob(f"{tmp_path.name}-*")] == []


# --- before and after training --------------------------------------------------------------------------------------


def test_a_run_is_measured_before_and_after(fast_config, tiny_model_folder, tmp_path):
    config = fast_config(eval_dataset_name="digits", eval_problems=4, eval_samples=2)
    run, held_out = tmp_path / "run", HeldOut.of(config)
    model = AutoModelForImageTextToText.from_pretrained(tiny_model_folder)
    processor = load_processor(tiny_model_folder)
    stale = run / "evaluation" / "before"
    Transcript(stale).append([replace(HAND[0], id="digits-test-0"), HAND[1]])
    (stale / "report.md").write_text("of an earlier start")

    def measure(when):
        engine = TransformersEngine(model, processor.tokenizer, config.rollout_batch_size)
        held_out.measure(run, when, engine, model, processor, Accelerator(), "base/model")
        return json.loads((run / "evaluation.json").read_text())

    rows = measure("before")
    answers = read_answers(stale)
    assert len(answers) == 4 * 2 * 2 and all(a.id.startswith("digits-test-") and a.response for a in answers)
    assert {a.view for a in answers} == {"clean", "mask-0.6"}
    assert "earlier start" not in (stale / "report.md").read_text()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    both = measure("after")
    assert both[: len(rows)] == rows and {row["when"] for row in both[len(rows) :]} == {"after"}
    assert len(both) == 2 * len(rows)
    measured = json.loads((stale / "results.json").read_text())["rows"]
    for row in rows:
        assert row.keys() >= {"when", "view", "group", "accuracy", "low", "high", "problems", "samples"}
        view = {"clean": "clean", "masked": "mask-0.6"}[row["view"]]
        subset = "all" if row["group"] == "all" else f"dependence: {row['group']}"
        (same,) = [found for found in measured if (found["view"], found["subset"]) == (view, subset)]
        assert all(row[name] == same[name] for name in ("accuracy", "low", "high", "perception_kl", "problems"))
    assert [(row["view"], row["problems"]) for row in rows if row["group"] == "all"] == [("clean", 4), ("masked", 4)]
    replaced = measure("before")  # as a run that starts anew
    assert [row["when"] for row in replaced].count("before") == len(rows)
    settings = json.loads((stale / "settings.json").read_text())
    assert settings["model"]["base"] == "base/model" and settings["model"]["name"].endswith("run, before training")


def test_the_answers_of_another_engine_are_not_taken_up(fast_config, tiny_model_folder, tmp_path):
    """As of a run that was measured, killed, and goes on in vLLM."""
    config = fast_config(eval_dataset_name="digits", eval_problems=2, eval_samples=1)
    model = AutoModelForImageTextToText.from_pretrained(tiny_model_folder)
    processor, held_out = load_processor(tiny_model_folder), HeldOut.of(config)
    asked = []

    class Other(TransformersEngine):
        def generate(self, *arguments, **options):
            asked.append(type(self).__name__)
            return super().generate(*arguments, **options)

    for kind, calls in ((TransformersEngine, False), (Other, True)):
        engine = kind(model, processor.tokenizer, config.rollout_batch_size)
        held_out.measure(tmp_path, "after", engine, model, processor, Accelerator(), "base/model")
        settings = json.loads((tmp_path / "evaluation" / "after" / "settings.json").read_text())
        assert settings["engine"] == kind.__name__
        assert bool(asked) == calls


def test_a_run_that_masks_nothing_is_measured_on_the_clean_view(fast_config):
    held_out = HeldOut.of(
        fast_config(eval_dataset_name="digits", eval_problems=2, mask_ratio=0.0, objective="grpo", gamma=0.0)
    )
    assert held_out.protocol.views == ("clean",) and held_out.protocol.kl_view is None
    assert held_out.examples(None) == []
    assert HeldOut.of(fast_config(eval_dataset_name=None)) is None


def test_text_that_no_file_can_hold_does_not_lose_an_evaluation(tmp_path):
    """Half of a surrogate pair: JSON may carry it, UTF-8 may not."""
    half = "\ud800"
    Transcript(tmp_path / "a").append(
        Answer(
            benchmark=f"b{half}", id=f"{i}{half}", view="clean", sample=0, seed=1, prompt="0", answer=f"1{half}",
            response=rf"\boxed{{1}}{half}", extracted="1", verdict=1.0, format=1.0, tokens=3, finished=True,
            tags={"kind": f"{half}{i % 2}", "reading": half},
        )
        for i in range(4)
    )  # fmt: skip
    folder = regrade(tmp_path / "a", "math", say=quiet)
    rows = json.loads((folder / "results.json").read_text(encoding="utf-8"))["rows"]
    assert [row["problems"] for row in rows] == [4, 2, 2] and (folder / "report.md").is_file()
