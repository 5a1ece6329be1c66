"""Model cards: what they claim follows from the run's files, and nothing in those files can break out of its place."""

import importlib.util
import json
import re
import shutil

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from papo_hub import card, resources
from papo_hub.card import render_spec, write_card
from papo_hub.resources import resource

RECIPE = {
    "objective": "papo_g",
    "gamma": 0.01,
    "gamma_end": 0.0,
    "gamma_annealing_ratio": 0.5,
    "eta_clean": 0.03,
    "eta_masked": 0.05,
    "beta": 0.02,
    "epsilon": 0.2,
    "epsilon_high": 0.28,
    "delta": 3.0,
    "mask_ratio": 0.6,
    "mask_patch_size": 14,
    "masked_logprobs": "frozen",
    "num_generations": 8,
    "learning_rate": 1e-6,
    "max_steps": 100,
    "temperature": 1.0,
    "top_p": 0.99,
    "model_name_or_path": "Qwen/Qwen3-VL-2B-Thinking",
    "dataset_name": "PAPOGalaxy/PAPO_ViRL39K_train",
    "eval_dataset_name": "PAPOGalaxy/PAPO_MMK12_test",
    "eval_split": "test",
    "seed": None,
}
PROVENANCE = {
    "versions": {"torch": "2.13.0"},
    "commit": "0123abc",
    "command": "train.py --config /home/someone/secret_project/papo.yaml",
    "hardware": "2 × CPU",
    "started": "2026-01-01T00:00:00Z",
}
EVALUATION = [
    {"when": when, "view": view, "group": "high", "accuracy": a, "perception_kl": kl, "problems": 40, "samples": 8}
    for when, view, a, kl in (
        ("before", "clean", 0.25, 0.1),
        ("after", "clean", 0.875, 0.6),
        ("before", "masked", 0.2, None),
        ("after", "masked", 0.25, 0.6),
    )
]
HOSTILE = (
    "x](https://evil.example) <script>alert(1)</script> | `y` \n\n---\nlicense: evil\n# *big* __bold__ ~~gone~~ "
    "<!-- {{ 7 * 7 }} ![i](j.png) www.evil.example $$a$$ &lt;b&gt; \\[q \u202e \x07"
)


def make_run(folder, recipe=RECIPE, full=True, **changes):
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({**recipe, **changes}))
    if full:
        (folder / "provenance.json").write_text(json.dumps(PROVENANCE))
        (folder / "evaluation.json").write_text(json.dumps(EVALUATION))
        (folder / "metrics.jsonl").write_text('{"step": 1}\n{"step": 90}\n')
        (folder / "samples.md").write_text("# samples\n")
        (folder / "figures").mkdir(exist_ok=True)
        for name in ("overview", "example", "before_after", "reward", "perception"):
            (folder / f"figures/{name}.png").write_bytes(b"png")
    return folder


def parsed(path):
    """The card as the Hub's own class and as a Markdown parser (GitHub's tables, strikethrough, bare links) read it."""
    loaded = ModelCard.load(path)
    assert yaml.safe_load(path.read_text().split("---\n")[1]) == loaded.data.to_dict()
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(loaded.text)
    inline = [child for token in tokens for child in token.children or []]
    return loaded, tokens, inline


def links(inline):
    targets = [t.attrs["href"] for t in inline if t.type == "link_open"]
    return targets + [t.attrs["src"] for t in inline if t.type == "image"]


def cells(tokens):
    rows, row = [], []
    for before, token in zip(tokens[:-1], tokens[1:], strict=True):
        if before.type in ("td_open", "th_open"):
            row.append("".join(child.content for child in token.children))
        if token.type == "tr_close":
            rows, row = [*rows, row], []
    return rows


def test_front_matter_of_a_full_run(tmp_path):
    loaded, _, _ = parsed(write_card(make_run(tmp_path / "run")))
    data = loaded.data
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "transformers", "image-text-to-text")
    assert (data.base_model, data.datasets) == ("Qwen/Qwen3-VL-2B-Thinking", ["PAPOGalaxy/PAPO_ViRL39K_train"])
    assert {"papo", "grpo", "vision-language"} <= set(data.tags) and "dapo" not in data.tags
    # only what was measured after training, in percent, on the dataset it was measured on
    assert [(r.metric_name, r.metric_value, r.dataset_type, r.dataset_split) for r in data.eval_results] == [
        (f"accuracy (%), {view} image, high vision dependence", value, "PAPOGalaxy/PAPO_MMK12_test", "test")
        for view, value in (("clean", 87.5), ("masked", 25.0))
    ]


def test_every_relative_link_exists_and_every_picture_is_linked(tmp_path):
    run = make_run(tmp_path / "run")
    _, _, inline = parsed(write_card(run))
    relative = [target for target in links(inline) if "://" not in target]
    assert all((run / target).is_file() for target in relative)
    assert {path.relative_to(run).as_posix() for path in run.glob("figures/*.png")} <= set(relative)
    (run / "figures/reward.png").unlink()
    (run / "samples.md").unlink()
    _, _, inline = parsed(write_card(run))
    assert {"figures/reward.png", "samples.md"}.isdisjoint(links(inline))


def test_tables_hold_the_numbers(tmp_path):
    _, tokens, _ = parsed(write_card(make_run(tmp_path / "run")))
    rows = cells(tokens)
    assert ["clean", "high", "40", "25.0", "87.5", "+62.5", "0.100 → 0.600"] in rows
    assert ["masked", "high", "40", "20.0", "25.0", "+5.0", "– → 0.600"] in rows
    assert ["learning_rate", "1e-06"] in rows and ["commit", "0123abc"] in rows and ["versions", "torch 2.13.0"] in rows
    assert not any(row[0] == "seed" for row in rows), "unset keys are left out"


def test_equation_has_this_runs_numbers(tmp_path):
    def equation(**changes):
        return write_card(make_run(tmp_path / "run", **changes)).read_text().split("$$")[1].strip()

    clip = r"\min[ r A, \mathrm{clip}(r, 0.8, 1.28) A ]"
    reference = r" - 0.02 \mathrm{KL}[\pi \Vert \pi_{\mathrm{ref}}]"
    perception = r" + 0.01 \mathrm{KL}[\pi \Vert \pi_{\mathrm{mask}}]"
    entropies = r" - 0.03 \mathrm{H}[\pi] - 0.05 \mathrm{H}[\pi_{\mathrm{mask}}]"
    assert equation() == clip + reference + perception + entropies
    assert equation(objective="grpo") == clip + reference
    assert equation(objective="papo_d", eta_clean=0, eta_masked=None) == clip + perception
    assert equation(objective="dapo", epsilon_high=None) == clip.replace("1.28", "1.2")


def test_notes_follow_the_recipe(tmp_path):
    text = write_card(make_run(tmp_path / "run")).read_text()
    assert "linearly from 0.01 to 0 over the first 50% of the steps" in text
    assert "entropy term changes nothing" in text and "bounded below by 3 *A*" in text
    assert "a completion's tokens, then over completions" in text and "for 90 steps" in text
    text = write_card(
        make_run(tmp_path / "run", gamma_end=None, masked_logprobs="live", delta=None, reduction="token")
    ).read_text()
    assert "linearly" not in text and "changes nothing" not in text and "bounded below" not in text
    assert "all tokens of an update" in text


def test_what_it_loads(tmp_path):
    run = make_run(tmp_path / "run")
    assert 'AutoModelForImageTextToText.from_pretrained("run/model", dtype="auto")' in write_card(run).read_text()
    pushed = write_card(run, model_id="me/my.model").read_text()
    assert 'from_pretrained("me/my.model"' in pushed and "# me/my.model\n" in pushed
    assert "import papo_hub" not in pushed
    (run / "model").mkdir()
    (run / "model/config.json").write_text('{"model_type": "papo"}')
    code = re.search(r"```python\n(.*?)```", write_card(run).read_text(), re.DOTALL)[1]
    assert code.startswith("import papo_hub")
    compile(code, "card", "exec")
    with pytest.raises(ValueError, match="owner/name"):
        write_card(run, model_id='x", evil="')


def test_missing_parts_are_left_out(tmp_path):
    loaded, tokens, inline = parsed(write_card(make_run(tmp_path / "run", recipe={}, full=False)))
    assert loaded.data.eval_results is None and loaded.data.base_model is None and loaded.data.datasets is None
    assert links(inline) == ["https://arxiv.org/abs/2507.06448", "config.yaml"]
    headings = [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]
    assert headings == ["run", "Load it", "Data", "Limits", "Citation"]
    assert "None" not in loaded.content


def test_bad_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.yaml is missing"):
        write_card(tmp_path)
    (tmp_path / "config.yaml").write_text("- a list")
    with pytest.raises(ValueError, match=r"config\.yaml must hold a mapping"):
        write_card(tmp_path)
    with pytest.raises(ValueError, match="gamma must be a number, got 'much'"):
        write_card(make_run(tmp_path / "run", gamma="much"))


def test_local_paths_are_neither_claimed_nor_shown(tmp_path):
    model = tmp_path / "someone" / "tiny"
    model.mkdir(parents=True)
    loaded, _, _ = parsed(
        write_card(
            make_run(tmp_path / "run", model_name_or_path=str(model), dataset_name="digits", output_dir=str(tmp_path))
        )
    )
    assert loaded.data.base_model is None and loaded.data.datasets is None
    assert "someone" not in loaded.content and str(tmp_path.parent) not in loaded.content
    assert "…/tiny" in loaded.content


def test_an_existing_folder_is_no_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert card._repositories("data/shapes") == ["data/shapes"]
    (tmp_path / "data/shapes").mkdir(parents=True)
    assert card._repositories("data/shapes") == []


def test_credentials_stay_out(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_environmentenvironment")
    run = make_run(tmp_path / "run", hub_token="plain-secret", wandb_api_key="other-secret", note="hf_abcdefghijklmnop")
    (run / "provenance.json").write_text(json.dumps({"command": "train --token hf_qrstuvwxyzabcdef"}))
    text = write_card(run).read_text()
    for secret in ("plain-secret", "other-secret", "hf_abc", "hf_qrs", "hf_env", "abcdefghijklmnop", "qrstuvwxyz"):
        assert secret not in text


@pytest.mark.parametrize(
    "key", ["dataset_name", "model_name_or_path", "eval_dataset_name", "mask_ratio", "prompt_suffix", HOSTILE]
)
def test_hostile_text_stays_text(tmp_path, key):
    clean, tokens, inline = parsed(write_card(make_run(tmp_path / "clean", **{key: "harmless"})))
    hostile, hostile_tokens, hostile_inline = parsed(write_card(make_run(tmp_path / "hostile", **{key: HOSTILE})))
    # the structure of the document is that of the harmless one: no tag, link, cell, heading or emphasis more or less
    assert [t.type for t in hostile_tokens] == [t.type for t in tokens]
    markup = [[t.type for t in i if not t.type.startswith("text")] for i in (inline, hostile_inline)]
    assert markup[0] == markup[1]
    assert links(hostile_inline) == links(inline)
    assert not any(t.type in ("html_inline", "html_block") for t in [*hostile_tokens, *hostile_inline])
    assert all(char.isprintable() or char == "\n" for char in hostile.content) and "&#8238;" not in hostile.content
    assert "<script>" not in hostile.content and "://evil" not in hostile.content and "www.evil" not in hostile.content
    assert hostile.data.license == "apache-2.0" and "49" not in hostile.text
    assert hostile.data.to_dict().keys() == clean.data.to_dict().keys() | (
        {"base_model"} & hostile.data.to_dict().keys()
    )


def test_hostile_text_is_shown_in_full(tmp_path):
    _, tokens, _ = parsed(
        write_card(make_run(tmp_path / "run", prompt_suffix="a <b> | *c* [d](e) `f` $g$ &lt; _h_ i_j www.k ~l~"))
    )
    assert ["prompt_suffix", "a <b> | *c* [d](e) `f` $g$ &lt; _h_ i_j www.k ~l~"] in cells(tokens)


def test_hostile_run_names_and_evaluations(tmp_path):
    run = make_run(tmp_path / 'x" + evil() + "<b>')
    (run / "evaluation.json").write_text(
        json.dumps([{**EVALUATION[1], "view": HOSTILE, "group": "<i>", "problems": "<u>"}])
    )
    loaded, tokens, inline = parsed(write_card(run))
    code = next(token.content for token in tokens if token.type == "fence")
    calls = re.findall(r"(\w+)\(", "".join(re.sub(r'"(\\.|[^"\\])*"', "", code)))
    assert calls == ["from_pretrained", "from_pretrained"]
    assert not any(t.type == "html_inline" for t in inline)
    assert len(loaded.data.eval_results) == 1


def test_licence_follows_the_base(tmp_path):
    loaded, _, _ = parsed(write_card(make_run(tmp_path / "run", model_name_or_path="Qwen/Qwen2.5-VL-3B-Instruct")))
    assert (loaded.data.license, loaded.data.license_name) == ("other", "qwen-research")


# -- specs


@pytest.mark.parametrize("spec", sorted(resource("model_cards").glob("*.yaml")), ids=lambda path: path.stem)
def test_specs_render(tmp_path, spec):
    path = tmp_path / "README.md"
    path.write_text(str(render_spec(spec)))
    loaded, tokens, inline = parsed(path)
    content = yaml.safe_load(spec.read_text())
    assert loaded.data.base_model == content["base_model"] and loaded.data.datasets == content["datasets"]
    assert "not measured by papo_hub" in loaded.text and loaded.data.eval_results is None
    assert links(inline) == ["https://arxiv.org/abs/2507.06448"]
    for task, (before, after) in content["results"]["scores"].items():
        assert [task, f"{before:.2f}", f"{after:.2f}", f"{after - before:+.2f}"] in cells(tokens)


@pytest.mark.parametrize("spec", sorted(resource("model_cards").glob("*.yaml")), ids=lambda path: path.stem)
def test_means_in_specs_are_means(spec):
    """The paper's three averages, recomputed from its nine tasks, to its two decimals."""
    scores = yaml.safe_load(spec.read_text())["results"]["scores"]
    tasks = [values for name, values in scores.items() if "(mean" not in name]
    means = [values for name, values in scores.items() if "(mean" in name]
    for column in (0, 1):
        values = [row[column] for row in tasks]
        expected = [sum(values[:5]) / 5, sum(values[5:]) / 4, sum(values) / 9]
        assert [row[column] for row in means] == pytest.approx(expected, abs=0.0051)


def test_incomplete_spec_is_refused(tmp_path):
    (tmp_path / "s.yaml").write_text("model_id: a/b\nrecipe: {}\n")
    with pytest.raises(ValueError, match="lacks base_model, datasets, results"):
        render_spec(tmp_path / "s.yaml")


# -- where the templates are


@pytest.mark.parametrize("place", ["papo_hub/model_cards", "model_cards"])
def test_templates_are_found_installed_and_in_a_checkout(tmp_path, place):
    (tmp_path / "papo_hub").mkdir()
    shutil.copy(resources.__file__, tmp_path / "papo_hub")
    spec = importlib.util.spec_from_file_location("elsewhere", tmp_path / "papo_hub/resources.py")
    elsewhere = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(elsewhere)
    with pytest.raises(FileNotFoundError, match="package data is incomplete"):
        elsewhere.resource("model_cards")
    shutil.copytree(resource("model_cards"), tmp_path / place)
    assert elsewhere.resource("model_cards") == (tmp_path / place).resolve()
