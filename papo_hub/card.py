"""Model cards: what a run folder, or the spec of a released model, has to say for itself.

Only files are read: nothing of the environment, no network. Whatever comes from them is escaped on its way into the
body, and reaches the front matter only as a well-formed repository id or a number.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from papo_hub.figures import metric_columns, read_evaluation
from papo_hub.objectives import OBJECTIVES, Objective, Weights, with_reduction
from papo_hub.resources import resource

NAMES = {"grpo": "GRPO", "dapo": "DAPO", "papo_g": "PAPO-G", "papo_d": "PAPO-D"}
ALGORITHM_TAGS = {"grpo": ("grpo",), "dapo": ("dapo",), "papo_g": ("papo", "grpo"), "papo_d": ("papo", "dapo")}
PAPER = "[Perception-Aware Policy Optimization for Multimodal Reasoning](https://arxiv.org/abs/2507.06448)"
NO_VALUE = "–"

# Bases under other terms than Apache-2.0; a model trained from one inherits them.
BASE_LICENSES = {
    "Qwen/Qwen2.5-VL-3B-Instruct": {
        "license": "other",
        "license_name": "qwen-research",
        "license_link": "https://huggingface.co/Qwen/Qwen2.5-VL-3B-Instruct/blob/main/LICENSE",
    }
}

SYMBOLS = {  # LaTeX without backslash-punctuation, which some Markdown renderers eat
    "reference_kl": r"\mathrm{KL}[\pi \Vert \pi_{\mathrm{ref}}]",
    "perception_kl": r"\mathrm{KL}[\pi \Vert \pi_{\mathrm{mask}}]",
    "entropy": r"\mathrm{H}[\pi]",
    "masked_entropy": r"\mathrm{H}[\pi_{\mathrm{mask}}]",
}

PICTURES = {
    "figures/example.png": "A completion, its tokens coloured by their visual dependence",
    "figures/before_after.png": "Accuracy before and after training, with clean and with masked images",
    "figures/reward.png": "Reward over the steps of training",
    "figures/perception.png": "Perception KL, entropies and clip fractions over the steps of training",
}
OVERVIEW = ("figures/overview.png", "The run in one picture: an example, the training curve, accuracy before and after")
FILES = {
    "config.yaml": "the resolved recipe",
    "metrics.jsonl": "every step's metrics",
    "evaluation.json": "the evaluation",
    "samples.md": "sampled completions",
    "provenance.json": "provenance",
}


def write_card(run: Path, model_id: str | None = None) -> Path:
    """Write `run`/README.md, the model card of a finished run; returns its path.

    Args:
        run: a run folder. config.yaml is required; provenance.json, metrics.jsonl, evaluation.json, figures/ and model/
            add what they have.
        model_id: the repository that the model goes to; by default the card loads it from the run's model/ folder.

    Raises:
        FileNotFoundError: the run has no config.yaml.
        ValueError: a file of the run does not hold what its name says, or `model_id` is not "owner/name".
    """
    run = Path(run)
    config = _mapping(run / "config.yaml", yaml.safe_load)
    provenance = _mapping(run / "provenance.json", json.loads) if (run / "provenance.json").is_file() else {}
    weights = _mapping(run / "model/config.json", json.loads) if (run / "model/config.json").is_file() else {}
    evaluation = read_evaluation(run)
    if model_id is not None and not _is_repository(model_id):
        raise ValueError(f"model_id must be owner/name in letters, digits, '-', '_' and '.'; got {model_id!r}")
    steps = int(metric_columns(run)["step"][-1]) if (run / "metrics.jsonl").is_file() else config.get("max_steps")

    base, data = config.get("model_name_or_path"), config.get("dataset_name")
    objective = config.get("objective")
    base_ids, data_ids = _repositories(base), _repositories(data)
    results = _eval_results(evaluation, config)
    card_data = _card_data(base_ids, data_ids, objective, model_id or f"papo_hub run {_plain(run.name)}", results)

    method = _text(NAMES.get(objective, objective or "reinforcement learning"))
    length = f" for {_text(steps)} steps" if steps else ""
    summary = (
        f"This is {_text(base or 'a vision-language model')} trained with {method}{length} by papo_hub, a training "
        f"suite around the method of {PAPER}. It is a run of our own, not a release of that paper's authors, and its "
        "numbers are not the paper's."
    )
    card = _render(
        card_data,
        title=_text(model_id or run.name),
        summary=summary,
        load_from=json.dumps(model_id or f"{run.name}/model"),
        wrapped=weights.get("model_type") == "papo",
        data=f"Trained on {_list(data)}." if data else "The recipe names no dataset.",
        evaluation=_evaluation_text(evaluation, config),
        results=_evaluation_table(evaluation),
        overview=next(iter(_existing(run, dict([OVERVIEW]))), None),
        pictures=_existing(run, PICTURES),
        files=_existing(run, FILES),
        recipe=_rows(config),
        provenance=_provenance_rows(provenance),
        **_objective(config),
    )
    path = run / "README.md"
    path.write_text(f"{card}\n", encoding="utf-8")
    return path


def render_spec(spec: Path) -> ModelCard:
    """The card of a released model from its spec (model_cards/*.yaml), every number of which is a cited source's.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not a mapping, or lacks one of its keys.
    """
    content = _mapping(Path(spec), yaml.safe_load)
    missing = {"model_id", "base_model", "datasets", "recipe", "results"} - content.keys()
    if missing:
        raise ValueError(f"{spec} lacks {', '.join(sorted(missing))}")
    recipe, results = content["recipe"], content["results"]
    method = _text(NAMES[recipe["objective"]])
    card_data = _card_data(
        _repositories(content["base_model"]),
        _repositories(content["datasets"]),
        recipe["objective"],
        content["model_id"],
    )
    scores = [
        [_text(task), f"{before:.2f}", f"{after:.2f}", f"{after - before:+.2f}"]
        for task, (before, after) in results["scores"].items()
    ]
    return _render(
        card_data,
        title=_text(content["model_id"]),
        summary=f"This is {_text(content['base_model'])} trained with {method} and released by the authors of "
        f"{PAPER}. This card restates the paper; papo_hub did not train the model.",
        load_from=json.dumps(content["model_id"]),
        data=f"Trained on {_list(content['datasets'])}.",
        evaluation=f"As reported by the paper ({_text(results['metric'])}); not measured by papo_hub.",
        results=[["task", _text(results["baseline"]), "this model", "change"], *scores],
        recipe=_rows(recipe),
        **_objective(recipe),
    )


# ------------------------------------------------------------------------------------------------------------- escaping


def _plain(value: Any) -> str:
    """One line of printable text fit for the public: no credentials, no folders of the machine it was written on."""
    if isinstance(value, float):
        value = f"{value:g}"
    line = "".join(char if char.isprintable() else " " for char in str(value))
    line = re.sub(r"\bhf_[A-Za-z0-9]{8,}", "hf_…", line)
    return re.sub(r"(?<![\w.:/~])~?/(?:[^\s/]+/)+", "…/", line)


def _text(value: Any) -> str:
    """Markdown that shows `value` and does nothing else.

    Character references can never open a tag, a link, a table cell or emphasis (CommonMark 0.31, section 2.5), so
    every character that might is written as one; so are outer underscores, and the dot of "www." and the colon of "://",
    which GitHub's Markdown makes links of. Not for the start of a line, where even a plain "-" has a meaning.
    """
    markup = r"""[^\w /,+.()%:;='"…-]|(?<=www)\.|:(?=/)|(?<![^\W_])_|_(?![^\W_])"""
    return re.sub(markup, lambda match: f"&#{ord(match[0])};", _plain(value), flags=re.IGNORECASE)


def _list(value: Any) -> str:
    return ", ".join(map(_text, value if isinstance(value, list) else [value]))


def _is_repository(value: Any) -> bool:
    """Whether it reads as a Hub repository "owner/name" and is not a folder here."""
    pattern = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
    return (
        isinstance(value, str)
        and len(value) <= 96
        and re.fullmatch(pattern, value, re.ASCII) is not None
        and not Path(value).exists()
    )


def _repositories(value: Any) -> list[str]:
    return [item for item in (value if isinstance(value, list) else [value]) if _is_repository(item)]


# --------------------------------------------------------------------------------------------------------------- pieces


def _mapping(path: Path, parse: Any) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: a model card needs it")
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a mapping, not {type(content).__name__}")
    return content


def _existing(run: Path, files: dict[str, str]) -> list[dict[str, str]]:
    return [{"path": path, "alt": alt} for path, alt in files.items() if (run / path).is_file()]


def _card_data(
    base: list[str], data: list[str], objective: str, model_name: str, results: list[EvalResult] | None = None
) -> ModelCardData:
    license = BASE_LICENSES.get(base[0], {}) if base else {}
    return ModelCardData(
        **{"license": "apache-2.0", **license},
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        base_model=base[0] if base else None,
        datasets=data or None,
        tags=[
            *ALGORITHM_TAGS.get(objective, ()),
            "vision-language",
            "reinforcement-learning",
            "multimodal-reasoning",
            "papo_hub",
        ],
        model_name=model_name if results else None,
        eval_results=results or None,
    )


def _render(card_data: ModelCardData, **context: Any) -> ModelCard:
    return ModelCard.from_template(card_data, template_path=resource("model_cards/model_card.md.jinja"), **context)


def _objective(config: dict[str, Any]) -> dict[str, list[str]]:
    """The equation (signs turned: the paper maximises) with the numbers of `config`, and what to know about it."""
    if config.get("objective") not in OBJECTIVES:
        return {"terms": [], "notes": []}
    fields = ("gamma", "eta_clean", "eta_masked", "beta", "epsilon", "epsilon_high", "delta")
    numbers = {name: _number(config, name) for name in fields if config.get(name) is not None}
    if "epsilon" in numbers:
        numbers.setdefault("epsilon_high", numbers["epsilon"])
    weights = Weights(**{**numbers, "delta": numbers.get("delta")})
    algorithm = OBJECTIVES[config["objective"]]
    if config.get("reduction") in ("token", "sequence"):
        algorithm = with_reduction(algorithm, config["reduction"])
    objective = Objective(algorithm, weights)

    low, high = 1 - weights.epsilon, 1 + weights.epsilon_high
    terms = [rf"\min[ r A, \mathrm{{clip}}(r, {low:g}, {high:g}) A ]"]
    for term in objective.active:
        if term.name != "surrogate":
            scale = -term.scale(weights)
            terms.append(f"{'-' if scale < 0 else '+'} {abs(scale):g} {SYMBOLS[term.name]}")

    each = (
        "all tokens of an update"
        if algorithm[0].reduction == "token"
        else "a completion's tokens, then over completions"
    )
    notes = [f"Means are taken over {each}."]
    if weights.delta is not None:
        notes.append(f"Where *A* < 0, the first term is bounded below by {weights.delta:g} *A*.".replace("<", "&lt;"))
    if objective.needs_masked:
        ratio, patch = config.get("mask_ratio"), config.get("mask_patch_size")
        cells = (
            f", cells of {_text(patch)}×{_text(patch)} pixels with probability {_text(ratio)}"
            if ratio and patch
            else ""
        )
        notes.append(f"*π* with index mask is the same policy seeing the image partly blackened{cells}.")
    if objective.needs("perception_kl") and config.get("gamma_end") is not None:
        share = (
            100 * _number(config, "gamma_annealing_ratio") if config.get("gamma_annealing_ratio") is not None else 100
        )
        notes.append(
            f"The perception weight runs linearly from {weights.gamma:g} to {_number(config, 'gamma_end'):g} over the "
            f"first {share:g}% of the steps, and scales the entropy weights along."
        )
    if objective.needs("masked_entropy") and config.get("masked_logprobs") == "frozen":
        notes.append("The masked view is computed without gradient here, so its entropy term changes nothing.")
    return {"terms": terms, "notes": notes}


def _number(config: dict[str, Any], key: str) -> float:
    try:
        return float(config[key])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{key} must be a number, got {config[key]!r}") from error


def _eval_results(evaluation: list[dict], config: dict[str, Any]) -> list[EvalResult]:
    """model-index entries of the trained model; view and group are in the metric's name, for it groups by dataset."""
    name = config.get("eval_dataset_name")
    data = _repositories(name)
    return [
        EvalResult(
            task_type="image-text-to-text",
            dataset_name=data[0] if data else _word(name or "held-out problems"),
            dataset_type=data[0] if data else "local",
            dataset_split=_word(config["eval_split"]) if config.get("eval_split") else None,
            metric_type="accuracy",
            metric_name=f"accuracy (%), {_word(row['view'])} image, {_word(row['group'])} vision dependence",
            metric_value=round(100 * row["accuracy"], 2),
        )
        for row in evaluation
        if row["when"] == "after" and _known(row.get("accuracy"))
    ]


def _word(value: str) -> str:
    return re.sub(r"\W+", " ", str(value))


def _known(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _evaluation_text(evaluation: list[dict], config: dict[str, Any]) -> str:
    samples = sorted({row["samples"] for row in evaluation if row.get("samples")})
    name = f"avg@{_text(samples[0])}" if len(samples) == 1 else "average"
    sampling = [f"{key.replace('_', '-')} {_text(config[key])}" for key in ("temperature", "top_p") if key in config]
    drawn = f" ({', '.join(sampling)})" if sampling else ""
    where = f" on {_text(config['eval_dataset_name'])}" if config.get("eval_dataset_name") else ""
    return (
        f"Accuracy{where} is {name}: the mean over problems and sampled answers{drawn}. Every problem is answered "
        "with its image and with the image masked; questions of high vision dependence are those that cannot be "
        "answered without it. Perception KL is the divergence between both views in nats per token."
    )


def _evaluation_table(evaluation: list[dict]) -> list[list[str]]:
    """Header and one row for each view and group; an empty list without evaluation."""
    if not evaluation:
        return []
    cells = {(row["view"], row["group"], row["when"]): row for row in evaluation}
    table = [
        ["image", "vision dependence", "problems", "before, %", "after, %", "change", "perception KL before → after"]
    ]
    for view, group in dict.fromkeys((view, group) for view, group, _ in cells):
        pair = [cells.get((view, group, when), {}) for when in ("before", "after")]
        accuracy = [100 * row["accuracy"] if _known(row.get("accuracy")) else None for row in pair]
        divergence = [f"{row['perception_kl']:.3f}" if _known(row.get("perception_kl")) else NO_VALUE for row in pair]
        problems = next((row["problems"] for row in reversed(pair) if row.get("problems")), NO_VALUE)
        change = f"{accuracy[1] - accuracy[0]:+.1f}" if None not in accuracy else NO_VALUE
        shown = [NO_VALUE if value is None else f"{value:.1f}" for value in accuracy]
        table.append([_text(view), _text(group), _text(problems), *shown, change, " → ".join(divergence)])
    return table


def _rows(config: dict[str, Any]) -> list[tuple[str, str]]:
    """The recipe as table rows, without unset keys and without anything that is named like a credential."""
    secret = re.compile(r"(token|secret|password|api_?key)$", re.IGNORECASE)
    return [
        (_text(key), _text(value)) for key, value in config.items() if value is not None and not secret.search(str(key))
    ]


def _provenance_rows(provenance: dict[str, Any]) -> list[tuple[str, str]]:
    names = ("commit", "command", "hardware", "started", "finished")
    rows = [(name, _text(provenance[name])) for name in names if provenance.get(name)]
    if versions := provenance.get("versions"):
        rows.append(("versions", ", ".join(f"{_text(name)} {_text(version)}" for name, version in versions.items())))
    return rows
