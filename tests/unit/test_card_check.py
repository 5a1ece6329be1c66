"""check_card: a sound card passes, and every single fault is found, in plain words and without repeating a secret."""

import pytest
import yaml

from papo_hub.card import check_card
from papo_hub.card.check import NO_BASE

MODEL = {
    "license": "apache-2.0",
    "library_name": "transformers",
    "pipeline_tag": "image-text-to-text",
    "tags": ["papo"],
    "base_model": "Qwen/Qwen2.5-VL-7B-Instruct",
    "datasets": ["owner/data"],
    "model-index": [
        {
            "name": "me/model",
            "results": [
                {
                    "task": {"type": "image-text-to-text"},
                    "dataset": {"name": "data", "type": "owner/data"},
                    "metrics": [{"type": "accuracy", "value": 50.0, "name": "avg@8"}],
                }
            ],
        }
    ],
}
DATASET = {
    "license": ["cc-by-4.0"],
    "task_categories": ["visual-question-answering"],
    "pretty_name": "Shapes",
    "configs": [{"config_name": "default"}],
}
BODY = """
# A model

[here](figures/a.png), [there](https://arxiv.org/abs/2507.06448), [below](#limits), <https://huggingface.co/me/model>
![a picture](figures/with%20space.png) and <img src="figures/a.png" alt="html"> and https://example.org/a?b=c.
`[in code](nowhere.md)` and 1/2/3 and hf_transfer

    [in a block](nowhere.md)
"""


def write(folder, data=MODEL, body=BODY):
    (folder / "figures").mkdir(exist_ok=True)
    for name in ("a.png", "with space.png"):
        (folder / "figures" / name).write_bytes(b"png")
    front = f"---\n{yaml.safe_dump(data, sort_keys=False)}---\n" if isinstance(data, dict) else data
    (folder / "README.md").write_text(front + body, encoding="utf-8")
    return folder / "README.md"


def index(**metric):
    result = MODEL["model-index"][0]["results"][0]
    return [{"name": "m", "results": [{**result, "metrics": [{"type": "accuracy", "value": 1.0, **metric}]}]}]


def test_sound_cards_pass(tmp_path):
    assert check_card(write(tmp_path)) == []
    assert check_card(write(tmp_path, DATASET), "dataset") == []
    features = {key: value for key, value in DATASET.items() if key != "configs"} | {"dataset_info": {"features": []}}
    assert check_card(write(tmp_path, features), "dataset") == []
    without_base = {key: value for key, value in MODEL.items() if key != "base_model"}
    assert check_card(write(tmp_path, without_base, BODY + f"\nIt is trained from scratch: {NO_BASE}.\n")) == []
    other = {**MODEL, "license": "other", "license_name": "mine", "license_link": "figures/a.png"}
    assert check_card(write(tmp_path, other)) == []


@pytest.mark.parametrize("field", ["license", "library_name", "pipeline_tag", "tags", "base_model"])
def test_what_a_model_must_say(tmp_path, field):
    (problem,) = check_card(write(tmp_path, {key: value for key, value in MODEL.items() if key != field}))
    assert problem.startswith(f"the front matter lacks {field}")


@pytest.mark.parametrize("field", ["license", "task_categories", "pretty_name", "configs"])
def test_what_a_dataset_must_say(tmp_path, field):
    data = {key: value for key, value in DATASET.items() if key != field}
    (problem,) = check_card(write(tmp_path, data), "dataset")
    assert problem.startswith(f"the front matter lacks {field}")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"license": "apache2"}, "license: apache2 is none that the Hub knows"),
        ({"license": ["mit", "gpl4"]}, "license: gpl4 is none"),
        ({"license": "other", "license_link": "https://a.org/L"}, "license: other needs license_name"),
        ({"license": "other", "license_name": "x"}, "license: other needs license_link"),
        ({"license": "other", "license_name": "x", "license_link": "LICENSE"}, "license_link: LICENSE is not beside"),
        ({"base_model": "runs/tiny/warmup"}, "base_model must be OWNER/NAME on the Hub, got runs/tiny/warmup"),
        ({"datasets": ["owner/data", "/home/me/data"]}, "datasets must be OWNER/NAME on the Hub, got …/data"),
        ({"tags": ["papo", 3]}, "tags must be a list of words"),
        ({"pipeline_tag": ["a"]}, "pipeline_tag must be text"),
        ({"model-index": [{"name": "m"}]}, "model-index cannot be read"),
        ({"model-index": []}, "model-index cannot be read"),
        ({"model-index": "none"}, "model-index cannot be read"),
        ({"model-index": [{"name": "m", "results": []}]}, "model-index holds no result"),
        ({"model-index": [{**index()[0], "name": ""}]}, "model-index lacks the model's name"),
        ({"model-index": index(value="high")}, "model-index: accuracy has no finite number"),
        ({"model-index": index(value=float("nan"))}, "model-index: accuracy has no finite number"),
        ({"model-index": index(value=True)}, "model-index: accuracy has no finite number"),
    ],
)
def test_front_matter(tmp_path, changes, expected):
    problems = check_card(write(tmp_path, {**MODEL, **changes}))
    assert any(problem.startswith(expected) for problem in problems), problems
    # an absolute path is found twice: as no repository, and as a folder of a machine
    assert len(problems) == 1 + ("/home" in str(changes))


@pytest.mark.parametrize(
    ("front", "expected"),
    [
        ("", "the card has no front matter"),
        ("---\nlicense: [\n---\n", "the front matter is not YAML"),
        ("---\n- a\n---\n", "the front matter must hold"),
        ("---\ndate: 2026-99-99\n---\n", "the front matter is not YAML"),
    ],
)
def test_front_matter_that_is_none(tmp_path, front, expected):
    (problem,) = check_card(write(tmp_path, front))
    assert problem.startswith(expected)


def test_no_card_and_no_text(tmp_path):
    (problem,) = check_card(tmp_path / "README.md")
    assert problem.startswith("there is no card at")
    (tmp_path / "README.md").write_bytes(b"---\nlicense: mit\n---\n\xff")
    assert check_card(tmp_path / "README.md") == ["the card is not UTF-8 text"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("[x](nowhere.md)", "nowhere.md is not beside the card"),
        ("![x](figures/b.png)", "figures/b.png is not beside the card"),
        ("[x](../secret.txt)", "../secret.txt leaves the folder of the card"),
        ("[x](figures/%2e%2e/%2e%2e/secret.txt)", "leaves the folder of the card"),
        ("[x](out/secret.txt)", "out/secret.txt leaves the folder of the card"),  # through a symbolic link
        ("[x](/etc)", "/etc is no relative path"),
        ("[x](figures\\a.png)", "is no relative path"),
        ("[x](figures/a.png%00)", "is no relative path"),
        ("[x]()", "a link leads nowhere"),
        ("[x](http://example.org)", "http://example.org is neither an https URL nor a relative path"),
        ("[x](//example.org/a)", "is neither an https URL nor a relative path"),
        ("[x](javascript:alert(1))", "is neither an https URL nor a relative path"),
        ("[x](mailto:a@b.org)", "is neither an https URL nor a relative path"),
        ("[x](https://)", "https:// is not a well-formed URL"),
        ("[x](https://localhost/a)", "is not a well-formed URL"),
        ("[x](https://10.0.0.1/a)", "is not a well-formed URL"),
        ("[x](https://me:pw@example.org/)", "is not a well-formed URL"),
        ("[x](https://example.org:port/)", "is not a well-formed URL"),
        ("[x](https://[::1/)", "is not a well-formed URL"),
        ("see http://example.org.", "http://example.org is neither an https URL"),
        ("see www.example.org", "www.example.org is neither an https URL"),
        ("[x][r]\n\n[r]: nowhere.md", "nowhere.md is not beside the card"),
        ('<a href="nowhere.md">x</a>', "nowhere.md is not beside the card"),
        ('<div>\n<img src="http://example.org/a.png">\n</div>', "is neither an https URL"),
        ("| a |\n| --- |\n| [x](nowhere.md) |", "nowhere.md is not beside the card"),
    ],
)
def test_links(tmp_path, body, expected):
    (tmp_path / "secret.txt").write_text("secret")
    folder = tmp_path / "card"
    folder.mkdir()
    (folder / "out").symlink_to(tmp_path)
    problems = check_card(write(folder, body=f"\n{body}\n"))
    (problem,) = [problem for problem in problems if problem.endswith("(in the body)")]
    assert expected in problem


@pytest.mark.parametrize("token", ["hf_abcdefgh", "my_hf_AbCdEfGhIjKlMnOp", "api_org_abcdefghij", "h&#102;_abcdefgh"])
def test_tokens_are_found_and_not_repeated(tmp_path, token):
    (problem,) = check_card(write(tmp_path, body=f"\n\n{token}\n"))
    assert problem.startswith("line ") and "reads like an access token" in problem
    assert "bcdefgh" not in problem.lower()
    (problem,) = check_card(write(tmp_path, {**MODEL, "language": token}))
    assert "reads like an access token" in problem


@pytest.mark.parametrize(
    "place", ["/home/me/run", "`/data/x/y`", "file:///a/b", "C:\\Users\\me", "~/a/b", "(&#47;home/me/x)"]
)
def test_folders_of_a_machine_are_found(tmp_path, place):
    (problem,) = check_card(write(tmp_path, body=f"\n\nIt lies in {place}\n"))
    assert "names a folder of a machine" in problem and "me" not in problem.split("folder of a machine")[0].split()
