"""What strangers write is read and never run: models, processors, checkpoints, data sets, answers. And secrets stay where
they are. Each hostile file holds a canary, a file that appears where something of it is executed."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from datasets import Dataset
from PIL import Image
from safetensors.torch import load_file

from papo_hub.batch import Sample
from papo_hub.cli import main, train_command
from papo_hub.config import ConfigError
from papo_hub.data import chat_text
from papo_hub.grading import mathematics, mathruler
from papo_hub.hub.versions import Row, _record, table
from papo_hub.modeling import PapoForConditionalGeneration, UntrustedModel, load_processor, load_vlm
from papo_hub.preparation import check_sees, load_model
from papo_hub.rewards import accuracy_reward
from papo_hub.rows import DataError, load_rows, stream_rows

ROOT = Path(__file__).parents[2]
BIN, INDEX, SAFE = "pytorch_model.bin", "model.safetensors.index.json", "model.safetensors"


class Payload:
    """Unpickled, it creates the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return open, (str(self.canary), "w")


@pytest.fixture
def canary(tmp_path, monkeypatch) -> Iterator[Path]:
    """Nothing may create it. Nor may torch unpickle, even the harmless part of it, or anybody be asked on the terminal."""
    calls = []
    monkeypatch.setattr("torch.load", lambda *arguments, **options: calls.append("torch.load") or {})
    monkeypatch.setattr("builtins.input", lambda question: calls.append(question) or "n")
    (tmp_path / "canary").mkdir()
    yield tmp_path / "canary" / "sings"
    assert calls == []


@pytest.fixture
def folder(tiny_model_folder, tmp_path) -> Path:
    return shutil.copytree(tiny_model_folder, tmp_path / "model")


def edited(file: Path, **changes) -> None:
    """A JSON file with other values; None: without the key."""
    content = json.loads(file.read_text()) if file.exists() else {}
    content = {name: value for name, value in (content | changes).items() if value is not None}
    file.write_text(json.dumps(content))


def pickled(file: Path, canary: Path) -> None:
    torch.save({"lm_head.weight": Payload(canary)}, file)


def code(file: Path, canary: Path, names: str) -> None:
    """A module with these classes, which sings when it is imported."""
    file.write_text(f"open({str(canary)!r}, 'w')\n" + "".join(f"class {name}: pass\n" for name in names.split()))


def test_the_canaries_sing(tmp_path, monkeypatch):
    """Else nothing below could fail."""
    sings = tmp_path / "sings"
    pickled(tmp_path / BIN, sings)
    torch.load(tmp_path / BIN, weights_only=False)
    assert sings.exists()
    sings.unlink()
    pickle.loads(pickle.dumps(Payload(sings)))
    assert sings.exists()
    sings.unlink()
    code(tmp_path / "modeling_sings.py", sings, "Model")
    monkeypatch.syspath_prepend(tmp_path)
    import modeling_sings

    assert modeling_sings.Model and sings.exists()


# --- weights ----------------------------------------------------------------------------------------------------------


def index(folder: Path, name: object) -> None:
    names = dict.fromkeys(load_file(folder / SAFE), name)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}))
    (folder / SAFE).unlink()


def only_pickled(folder, canary):
    (folder / SAFE).unlink()
    pickled(folder / BIN, canary)


def only_pickled_shards(folder, canary):
    only_pickled(folder, canary)
    (folder / f"{BIN}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": BIN}}))


def index_of_pickles(folder, canary):
    index(folder, BIN)
    pickled(folder / BIN, canary)


def index_that_climbs(folder, canary):
    shutil.copy(folder / SAFE, folder.parent / SAFE)
    index(folder, f"../{SAFE}")


def index_elsewhere(folder, canary):
    shutil.copy(folder / SAFE, folder.parent / SAFE)
    index(folder, f"{folder.parent / SAFE}")


def index_of_nothing(folder, canary):
    (folder / INDEX).write_text("[]")


def config_names_a_pickle(folder, canary):
    pickled(folder / "adapter_model.bin", canary)
    edited(folder / "config.json", transformers_weights="adapter_model.bin")


def config_names_what_climbs(folder, canary):
    shutil.copy(folder / SAFE, folder.parent / SAFE)
    edited(folder / "config.json", transformers_weights=f"../{SAFE}")


def pickle_by_another_name(folder, canary):
    pickled(folder / SAFE, canary)


def adapter(folder, canary):
    edited(folder / "adapter_config.json", base_model_name_or_path="some/base", peft_type="LORA")
    pickled(folder / "adapter_model.bin", canary)


def adapter_alone(folder, canary):
    adapter(folder, canary)
    (folder / SAFE).unlink()


def own_model(folder, canary):
    code(folder / "modeling_own.py", canary, "Config Model")
    places = {"AutoConfig": "modeling_own.Config", "AutoModelForImageTextToText": "modeling_own.Model"}
    edited(folder / "config.json", model_type="own", auto_map=places)


def own_model_of_another_repository(folder, canary):
    own_model(folder, canary)
    edited(folder / "config.json", auto_map={"AutoConfig": "some/other--modeling_own.Config"})


def kernel(folder, canary):
    edited(folder / "config.json", attn_implementation="some/kernel")


def kernel_of_a_part(folder, canary):
    edited(folder / "config.json", attn_implementation={"text_config": "some/kernel"})


def kernel_in_a_wrapper(folder, canary):
    config = json.loads((folder / "config.json").read_text())
    wrapper = {"model_type": "papo", "vlm_config": config | {"attn_implementation": "some/kernel"}}
    (folder / "config.json").write_text(json.dumps(wrapper))


REFUSED = {
    only_pickled: r"has no model.safetensors. Only safetensors are loaded.*save_pretrained\(",
    only_pickled_shards: "has no model.safetensors. Only safetensors are loaded",
    index_of_pickles: "takes weights from 'pytorch_model.bin'.*Convert it",
    index_that_climbs: r"takes weights from '\.\./model.safetensors', which is no safetensors file beside",
    index_elsewhere: "takes weights from '/.*/model.safetensors'",
    index_of_nothing: "index.json is damaged",
    config_names_a_pickle: "takes weights from 'adapter_model.bin'",
    config_names_what_climbs: r"takes weights from '\.\./model.safetensors'",
    pickle_by_another_name: "has weights that are no safetensors, or damaged ones",
    adapter: r"is an adapter.*merge_and_unload",
    adapter_alone: r"is an adapter.*merge_and_unload",
    own_model: "needs code of its own.*never run",
    own_model_of_another_repository: "needs code of its own.*never run",
    kernel: "asks for the attention kernel some/kernel",
    kernel_of_a_part: "asks for the attention kernel some/kernel",
    kernel_in_a_wrapper: "asks for the attention kernel some/kernel",
}


@pytest.mark.parametrize("make", REFUSED, ids=lambda make: make.__name__)
def test_a_model_is_numbers_or_refused(folder, canary, fast_config, make):
    make(folder, canary)
    for load in (load_vlm, PapoForConditionalGeneration.from_backbone):
        with pytest.raises(UntrustedModel, match=REFUSED[make]):
            load(folder)
    with pytest.raises(ConfigError, match=f"model_name_or_path: .*{REFUSED[make]}"):
        load_model(fast_config(model_name_or_path=str(folder)))
    with pytest.raises(ConfigError, match=f"resume_from_checkpoint: .*{REFUSED[make]}"):
        load_model(fast_config(), checkpoint=folder)
    if make is not pickle_by_another_name:  # which shows when it is read
        with pytest.raises(ConfigError, match=f"MODEL: .*{REFUSED[make]}"):
            check_sees(str(folder), None, "MODEL")
    assert not canary.exists()


@pytest.mark.parametrize("make", [only_pickled, index_of_pickles, adapter, own_model], ids=lambda make: make.__name__)
def test_so_is_a_repository_of_the_hub(folder, canary, tmp_path, make):
    make(folder, canary)
    commit, place = "0123456789" * 4, tmp_path / "cache" / "models--some--model"
    shutil.copytree(folder, place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    with pytest.raises(UntrustedModel, match=f"some/model .*{REFUSED[make].split('has no')[0]}"):
        load_vlm("some/model", cache_dir=tmp_path / "cache")
    assert not canary.exists()


@pytest.mark.parametrize("make", [only_pickled, own_model, adapter], ids=lambda make: make.__name__)
def test_the_commands_say_so_in_one_line(folder, canary, tmp_path, capsys, make):
    make(folder, canary)
    places = ["--model_name_or_path", str(folder), "--output_dir", str(tmp_path / "run")]
    recipe = str(ROOT / "recipes" / "tiny" / "papo_g.yaml")
    for refused in (
        lambda: main(["evaluate", str(folder), "--output_dir", str(tmp_path / "evaluation")]),
        lambda: train_command(["--config", recipe, *places]),
        lambda: train_command(["--config", recipe, "--dry_run", *places]),
    ):
        assert refused() == 2
        told = capsys.readouterr().err.strip()
        assert re.fullmatch(rf"error: .*{REFUSED[make]}.*", told), told
        assert "trust_remote_code" not in told, "no advice to run it"
    assert not canary.exists() and not (tmp_path / "run").exists() and not (tmp_path / "evaluation").exists()


def test_beside_safetensors_other_formats_and_code_are_left_alone(folder, canary):
    """Many a repository has both, and names code that transformers has itself."""
    whole = load_vlm(folder).state_dict()
    pickled(folder / BIN, canary)
    code(folder / "modeling_own.py", canary, "Config Model")
    edited(folder / "config.json", auto_map={"AutoModelForImageTextToText": "modeling_own.Model"})
    (folder / "custom_generate").mkdir()
    code(folder / "custom_generate" / "generate.py", canary, "generate")
    loaded = load_vlm(folder).state_dict()
    assert all(torch.equal(loaded[name], whole[name]) for name in whole) and not canary.exists()


def test_the_wrapper_reads_safetensors_alone(folder, canary, tmp_path):
    PapoForConditionalGeneration.from_backbone(folder).save_pretrained(tmp_path / "wrapped")
    PapoForConditionalGeneration.from_pretrained(tmp_path / "wrapped")
    (tmp_path / "wrapped" / SAFE).unlink()
    pickled(tmp_path / "wrapped" / BIN, canary)
    with pytest.raises(OSError, match="model.safetensors"):
        PapoForConditionalGeneration.from_pretrained(tmp_path / "wrapped")
    assert not canary.exists()


# --- processors -------------------------------------------------------------------------------------------------------


def own_processor(folder, canary):
    code(folder / "own.py", canary, "Own")
    edited(folder / "processor_config.json", processor_class="Own", auto_map={"AutoProcessor": "own.Own"})
    edited(folder / "config.json", model_type="own", auto_map={"AutoProcessor": "own.Own"})


def own_tokenizer(folder, canary):
    code(folder / "own.py", canary, "Own OwnFast")
    place = {"AutoTokenizer": ["own.Own", "own.OwnFast"]}
    edited(folder / "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=place)


def own_image_processor(folder, canary):
    code(folder / "own.py", canary, "Own")
    own = {"image_processor_type": "OwnImageProcessor", "auto_map": {"AutoImageProcessor": "own.Own"}}
    edited(folder / "processor_config.json", image_processor=own)
    edited(folder / "preprocessor_config.json", **own)


def audio_tokenizer(folder, canary):
    place = {"audio_tokenizer_class": "AutoModel", "audio_tokenizer_name_or_path": str(folder)}
    edited(folder / "processor_config.json", audio_tokenizer=place)


def audio_tokenizer_file(folder, canary):
    place = {"audio_tokenizer_class": "AutoModel", "audio_tokenizer_name_or_path": str(folder)}
    edited(folder / "audio_tokenizer_config.json", **place)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (own_processor, "needs code of its own"),
        (own_image_processor, "needs code of its own"),
        (audio_tokenizer, "has an audio tokenizer"),
        (audio_tokenizer_file, "has an audio tokenizer"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_processor_is_settings_or_refused(folder, canary, make, told):
    make(folder, canary)
    with pytest.raises(UntrustedModel, match=told):
        load_processor(folder)
    assert not canary.exists()


def test_a_tokenizer_needs_no_code(folder, canary, tiny_processor):
    own_tokenizer(folder, canary)
    assert load_processor(folder).tokenizer("sum").input_ids == tiny_processor.tokenizer("sum").input_ids
    assert not canary.exists()


def test_what_was_asked_of_the_loader_is_not_saved(tiny_processor, tmp_path):
    tiny_processor.save_pretrained(tmp_path)
    for file in tmp_path.glob("*.json"):
        assert "trust_remote_code" not in file.read_text()


ESCAPES = [
    "{{ cycler.__init__.__globals__.os.mkdir(%r) }}",
    "{{ self.__init__.__globals__.__builtins__.open(%r, 'w') }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }} %r",
    "{{ raise_exception.__globals__['jinja2'].environment.os.mkdir(%r) }}",
    "{{ messages.append(messages) }} %r",
    "{%% include %r %%}",
]


@pytest.mark.parametrize("template", ESCAPES)
def test_a_chat_template_stays_in_its_sandbox(folder, canary, template):
    (folder / "chat_template.jinja").write_text(template % str(canary))
    processor = load_processor(folder)
    sample = Sample("a", "<image>sum", "1", (Image.new("RGB", (28, 28)),))
    with pytest.raises(Exception, match=r"unsafe|no loader|undefined|has no attribute"):
        chat_text(sample, processor)
    assert not canary.exists()


# --- data sets --------------------------------------------------------------------------------------------------------

ROW = {"problem": "<image>sum", "answer": "1", "images": ["x.png"]}


def script(data, canary):
    code(data / "data.py", canary, "Builder")


def pickled_frame(data, canary):
    (data / "train.pkl").write_bytes(pickle.dumps(Payload(canary)))


def frame_of_the_card(data, canary):
    pickled_frame(data, canary)
    (data / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  builder_name: pandas\n  data_files: train.pkl\n---\n"
    )


def pickled_tensors(data, canary):
    pickled(data / "train.pt", canary)


def pickled_array(data, canary):
    np.save(data / "train.npy", np.array([Payload(canary)], dtype=object), allow_pickle=True)


@pytest.mark.parametrize("read", [load_rows, stream_rows])
@pytest.mark.parametrize("make", [script, pickled_frame, frame_of_the_card, pickled_tensors, pickled_array])
def test_a_data_set_is_a_table_or_refused(canary, tmp_path, make, read):
    data = tmp_path / "data"
    data.mkdir()
    make(data, canary)
    with pytest.raises(
        (DataError, FileNotFoundError, RuntimeError), match=r"scripts are no longer|Unable to find|No \(supp"
    ):
        read(data)
    assert not canary.exists()
    if make is not frame_of_the_card:  # beside a table they are left alone
        (data / "train.jsonl").write_text(json.dumps(ROW) + "\n")
        assert next(iter(read(data).table))["problem"] == ROW["problem"] and not canary.exists()


@pytest.mark.parametrize("read", [load_rows, stream_rows])
def test_a_pickled_type_of_a_column_is_not_unpickled(canary, tmp_path, read):
    """Arrow's extension types written in Python are pickles in the metadata of a file's schema."""
    hidden = {
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": pickle.dumps(Payload(canary)),
    }
    fields = [pa.field("problem", pa.string()), pa.field("answer", pa.string())]
    schema = pa.schema([*fields, pa.field("images", pa.binary(), metadata=hidden)])
    arrays = [pa.array(["<image>sum"]), pa.array(["1"]), pa.array([b"no image"], pa.binary())]
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), tmp_path / "train.parquet")
    assert next(iter(read(tmp_path / "train.parquet").table))["images"] == b"no image"
    assert not canary.exists()


# --- answers ----------------------------------------------------------------------------------------------------------


def as_string(source: str) -> str:
    """A string that two letters and digits can spell: MathRuler evaluates what has no more different letters."""
    return "".join(rf"\textbackslash{{}}{ord(char):03o}" for char in source)


CALLS = ["frac('{}')", "sqrt(frac('{}'))", "re('{}')", "ln('{}')", '1+frac("{}")', "frac('{}'+'')"]


@pytest.mark.parametrize("call", CALLS)
def test_a_boxed_answer_runs_nothing_in_mathruler(canary, call):
    source = as_string(f"open('{canary}','w')")
    response = rf"<think></think>\boxed{{{call.format(source)}}}"
    assert mathruler.load()("x", mathruler.boxed(response)) is False
    assert accuracy_reward(response, "x", "mathruler") == 0.0
    assert not canary.exists()


@pytest.mark.parametrize("text", ["(1).real", "x.y", "x.__doc__", "__x", "'1'", '"1"', "ff''"])
def test_mathruler_sees_no_string_attribute_or_hidden_name(text, monkeypatch):
    from mathruler import grader

    mathruler.load()
    evaluated = []
    monkeypatch.setattr("sympy.parsing.sympy_parser.eval_expr", lambda code, *_: evaluated.append(code))
    with pytest.raises((ValueError, SyntaxError)):
        grader.sympy_parser.parse_expr(text, grader.sympy_parser.standard_transformations)
    assert evaluated == []


LATEX = [
    "{}", r"\text{{{}}}", r"\operatorname{{{}}}(x)", r"x_{{\text{{{}}}}}", r"\frac{{{}}}{{2}}", r"\{{{},2\}}",
    r"\begin{{pmatrix}}{}&1\\2&3\end{{pmatrix}}", r"x\in {}", r"\left|{}\right|", r"{}\text{{ or }}3",
]  # fmt: skip


def test_math_evaluates_numbers_alone(monkeypatch):
    """SymPy's parser ends in `eval`: what reaches it are the digits of a number, whatever the answer."""
    from sympy.parsing import sympy_parser

    evaluated, grade = set(), mathematics.load()
    real = sympy_parser.eval_expr
    monkeypatch.setattr(sympy_parser, "eval_expr", lambda code, *names: evaluated.add(str(code)) or real(code, *names))
    for source in ("__import__('os').mkdir('x')", "open(canary)", "'1+1'", r"\_\_import\_\_('os')", "x.y.z", "eval(7)"):
        for form in LATEX:
            for answer in ("2", "x+1"):
                try:
                    grade(answer, form.format(source))
                except Exception:  # as the worker does: not an answer
                    continue
    assert evaluated and all(re.fullmatch(r"(Integer|Float) \('?[\d.]+'? \)", code) for code in evaluated), evaluated


# --- secrets ----------------------------------------------------------------------------------------------------------

SECRETS = {
    "HF_TOKEN": "hf_" + "CaNaRy01" * 4,
    "HUGGING_FACE_HUB_TOKEN": "hub-canary-1234",
    "WANDB_API_KEY": "wandb-canary-1234",
    "AWS_SECRET_ACCESS_KEY": "aws/canary/1234",
}
IN_A_PATH = "hf_" + "pAtHcAnA" * 4
IN_A_LINK = "link-canary-1234"


def leaks(text: bytes) -> list[str]:
    return [secret for secret in (*SECRETS.values(), IN_A_PATH, IN_A_LINK) if secret.encode() in text]


@pytest.fixture
def secrets(monkeypatch) -> None:
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)


def test_a_run_and_its_evaluation_hold_no_secret(tiny_model_folder, fast_config, tmp_path, secrets, monkeypatch, capfd):
    """Data and model lie in a folder named like a token, and every byte that is written or printed is searched."""
    place = tmp_path / IN_A_PATH
    model = str(shutil.copytree(tiny_model_folder, place / "model"))
    Image.new("RGB", (28, 28)).save(place / "x.png")
    rows = [{"problem": f"<image>sum: {i} 2 ?", "answer": f"{i + 2}", "images": ["x.png"]} for i in range(8)]
    for split in ("train", "test"):
        (place / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = fast_config(
        model_name_or_path=model,
        dataset_name=str(place / "train.jsonl"),
        output_dir="run",
        max_steps=1,
        save_steps=1,
        eval_dataset_name=str(place / "test.jsonl"),
        eval_problems=2,
        eval_samples=1,
        log_completions=True,
        report_to="tensorboard",
    )
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(yaml.safe_dump(asdict(config)))
    train = ["--config", "recipe.yaml", "--model_name_or_path", model]
    monkeypatch.setattr("sys.argv", ["train.py", *train, "--wandb_api_key=" + SECRETS["WANDB_API_KEY"]])
    assert train_command(train) == 0
    options = [
        "--benchmarks",
        str(place / "test.jsonl"),
        "--k",
        "1",
        "--views",
        "clean",
        "--max_completion_length",
        "4",
    ]
    assert main(["evaluate", model, *options, "--output_dir", "evaluation"]) == 0

    files = [file for name in ("run", "evaluation") for file in Path(name).rglob("*") if file.is_file()]
    names = {file.name for file in files}
    assert {"config.yaml", "provenance.json", "README.md", "trainer_state.json", "settings.json", "report.md"} <= names
    assert {f"{file}": found for file in files if (found := leaks(file.read_bytes()))} == {}
    assert leaks("".join(capfd.readouterr()).encode()) == []
    assert "hf_…" in Path("run/config.yaml").read_text(), "there was one to be left out"
    command = json.loads(Path("run/provenance.json").read_text())["command"]
    assert command == f"train.py --config recipe.yaml --model_name_or_path {tmp_path}/hf_…/model --wandb_api_key=…"


@pytest.mark.parametrize(
    "typo",
    [
        ["--model_name_or_path", SECRETS["HF_TOKEN"]],
        ["--model_name_or_path", SECRETS["WANDB_API_KEY"]],
        ["--dataset_name", f"https://me:{IN_A_LINK}@host.org/rows.parquet"],
        ["--dataset_name", f"https://host.org/rows.parquet?token={IN_A_LINK}"],
        ["--learning_rate", IN_A_PATH],
    ],
    ids=" ".join,
)
def test_an_error_repeats_no_secret(typo, tmp_path, tiny_model_folder, secrets, capsys):
    recipe = str(ROOT / "recipes" / "tiny" / "papo_g.yaml")
    given = ["--model_name_or_path", str(tiny_model_folder), "--output_dir", str(tmp_path / "run")]
    assert train_command(["--config", recipe, *given, *typo]) == 2
    told = capsys.readouterr()
    assert "error: " in told.err and "…" in told.err
    assert leaks((told.out + told.err).encode()) == []


# --- what others see --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "recipe",
    [
        "\n".join(
            ["gamma: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60)), "objective: *a59"]
        ),
        "[" * 5000,
        "model_name_or_path: {a: b}",
    ],
    ids=["laughs", "deep", "mapping"],
)
def test_a_table_of_versions_takes_nothing_but_words_from_a_stranger(recipe, tmp_path):
    """The first recipe would print 2^60 words."""
    (tmp_path / "config.yaml").write_text(recipe)
    answers = {"hf_hub_download": tmp_path / "config.yaml", "list_repo_commits": [SimpleNamespace(created_at=None)]}
    repository = SimpleNamespace(
        held=lambda commit: {"config.yaml": SimpleNamespace(size=len(recipe))},
        call=lambda what, method, **options: answers[method],
    )
    row = Row(version="v1\x1b[2J", kind="tag", commit="0" * 40, **_record(repository, "0" * 40))
    lines = table([row]).splitlines()
    assert len(lines) == 2 and "\x1b" not in lines[1] and len(lines[1]) < 200


def _rows(folder):
    folder.mkdir(parents=True)
    Dataset.from_list([{"problem": "a", "answer": "1", "images": []}]).to_parquet(folder / "train.parquet")
    return folder


def test_a_card_of_a_data_set_names_its_own_files_alone(tmp_path):
    """Else a folder that was downloaded would read, and train on, any table of this machine."""
    _rows(tmp_path / "private")
    folder = _rows(tmp_path / "public")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files: ../private/*.parquet\n---\n"
    )
    with pytest.raises(DataError, match="its card takes rows from .*private/train.parquet, which is none of its own"):
        load_rows(folder)
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: train.parquet\n---\n")
    assert len(load_rows(folder)) == 1


def test_so_does_the_state_of_a_saved_one(tmp_path):
    Dataset.from_list([{"problem": "a", "answer": "1", "images": []}]).save_to_disk(tmp_path / "saved")
    assert len(load_rows(tmp_path / "saved")) == 1
    state = tmp_path / "saved" / "state.json"
    content = json.loads(state.read_text())
    content["_data_files"] = [{"filename": "../private.arrow"}]
    state.write_text(json.dumps(content))
    with pytest.raises(DataError, match="takes rows from ../private.arrow, which is not beside it"):
        load_rows(tmp_path / "saved")


def test_an_archive_that_may_hold_pickles_is_no_data_set(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "sample.txt").write_text("x")
    with tarfile.open(tmp_path / "data" / "train-0.tar", "w") as archive:
        archive.add(tmp_path / "sample.txt", "0.txt")
    with pytest.raises(DataError, match="would be read as webdataset, .*: convert it to parquet"):
        load_rows(tmp_path / "data")
