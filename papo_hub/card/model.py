"""Model cards: what a run folder, or the spec of a released model, has to say for itself.

Only files are read: nothing of the environment, no network. Whatever comes from them is escaped on its way into the
body, and reaches the front matter only as a well-formed repository id, as words or as a number.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from papo_hub.card.benchmarks import benchmark_results, benchmark_table, benchmark_text, model_index
from papo_hub.card.check import NO_BASE
from papo_hub.card.equation import equation
from papo_hub.card.escape import listed, plain, text, words
from papo_hub.card.files import hub_ids, mapping, optional, recipe
from papo_hub.card.results import evaluation_rows, is_number, percent, samples
from papo_hub.config import is_repository_id
from papo_hub.figures import metric_columns
from papo_hub.objectives import OBJECTIVES
from papo_hub.redaction import names_a_secret, public_path
from papo_hub.resources import resource

PAPO_TAGS = {"papo_g": ("papo", "grpo"), "papo_d": ("papo", "dapo")}
PAPER_URL = "https://arxiv.org/abs/2507.06448"
PAPER = f"[Perception-Aware Policy Optimization for Multimodal Reasoning]({PAPER_URL})"
NO_VALUE = "–"

# A model trained from one of these inherits its terms.
BASE_LICENSES = {
    "Qwen/Qwen2.5-VL-3B-Instruct": {
        "license": "other",
        "license_name": "qwen-research",
        "license_link": "https://huggingface.co/Qwen/Qwen2.5-VL-3B-Instruct/blob/main/LICENSE",
    },
    "Qwen/Qwen2.5-VL-7B-Instruct": {"license": "apache-2.0"},
    "Qwen/Qwen3-VL-2B-Thinking": {"license": "apache-2.0"},
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
SPEC = ("model_id", "base_model", "datasets", "recipe", "results", "remarks")


def write_card(run: Path, model_id: str | None = None, revision: str | None = None, folder: Path | None = None) -> Path:
    """Write README.md, the model card of a finished run; returns its path.

    Args:
        run: a run folder, of which all that is said is read. config.yaml is required; provenance.json, metrics.jsonl and
            evaluation.json add what they have, and evaluation/final/ where papo-hub evaluate measured the model.
        model_id: the repository that the model goes to; by default the card loads it from the run's model/ folder.
        revision: its tag, branch or commit, to which the card pins the loading.
        folder: where the card goes: beside the figures and files that it links, and the weights that it describes. By
            default the run, whose weights are in model/.

    Raises:
        FileNotFoundError: the run has no config.yaml, or there is no `folder`.
        ValueError: a file of the run does not hold what its name says, `model_id` is not "owner/name", or `revision` is
            no name of a revision or comes without `model_id`.
    """
    run = Path(run)
    described = run / "model" if folder is None else Path(folder)
    weights, adapter = optional(described / "config.json"), (described / "adapter_config.json").is_file()
    folder = run if folder is None else Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder: the card goes beside the files that it links")
    config = recipe(run)
    provenance = optional(run / "provenance.json")
    evaluation = evaluation_rows(run)
    steps = int(metric_columns(run)["step"][-1]) if (run / "metrics.jsonl").is_file() else config.get("max_steps")

    base, data = config.get("model_name_or_path"), config.get("dataset_name")
    objective = _objective_name(config)
    base_ids, data_ids = hub_ids(base, run), hub_ids(data, run)
    benchmarks = benchmark_results(run)
    results = _eval_results(evaluation, config, hub_ids(config.get("eval_dataset_name"), run)) + model_index(benchmarks)
    name = model_id or f"papo_hub run {plain(run.name)}"
    card_data = _card_data(base_ids, data_ids, objective, name, results, adapter)

    length = f" for {text(steps)} steps" if steps else ""
    summary = (
        f"This is {text(base or 'a vision-language model')} trained with {text(method_name(objective) or objective)}{length} "
        f"by papo_hub, a training suite around the method of {PAPER}. It is a run of our own, not a release of that "
        "paper's authors, and its numbers are not the paper's."
    )
    card = _render(
        card_data,
        title=text(model_id or run.name),
        summary=summary,
        base=_base_text(base, base_ids, config.get("model_revision")),
        load=_loading(model_id, revision, f"{run.name}/model"),
        adapted=_adapted(base, base_ids, config) if adapter else None,
        wrapped=weights.get("model_type") == "papo",
        carries_code="auto_map" in weights,
        data=_data_text(config),
        evaluation=_evaluation_text(evaluation, config),
        results=_evaluation_table(evaluation),
        benchmarks=benchmark_text(benchmarks),
        benchmark_results=benchmark_table(benchmarks),
        overview=next(iter(_existing(folder, dict([OVERVIEW]))), None),
        pictures=_existing(folder, PICTURES),
        files=_existing(folder, FILES),
        recipe=_rows(config),
        provenance=_provenance_rows(provenance),
        **equation(config),
    )
    path = folder / "README.md"
    path.write_text(f"{card}\n", encoding="utf-8")
    return path


def render_spec(spec: Path) -> ModelCard:
    """The card of a released model from its spec (model_cards/*.yaml), every number of which is a cited source's.

    `results` is a table of scores, or the sentence that says why there is none. Its numbers reach the model-index with
    the paper as their source.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not a mapping, or has other keys than a spec has.
    """
    content = mapping(Path(spec))
    if missing := [key for key in SPEC if key not in content]:
        raise ValueError(f"{spec} lacks {', '.join(missing)}")
    if unknown := content.keys() - set(SPEC):
        raise ValueError(f"{spec} has keys that no spec has: {', '.join(sorted(map(plain, unknown)))}")
    config, results = content["recipe"], content["results"]
    table, entries, evaluation = [], [], text(results)
    if isinstance(results, dict):
        evaluation = f"As reported by the paper ({text(results['metric'])}); not measured by papo_hub."
        table = [["task", text(results["baseline"]), "this model", "change"]] + [
            [text(task), f"{before:.2f}", f"{after:.2f}", f"{after - before:+.2f}"]
            for task, (before, after) in results["scores"].items()
        ]
        entries = [
            EvalResult(
                task_type="image-text-to-text",
                dataset_name="the paper's nine benchmarks",
                dataset_type=results["dataset"],
                metric_type="accuracy",
                metric_name=f"{results['metric']}, {task}",
                metric_value=after,
                source_name="the paper, arXiv 2507.06448",
                source_url=results["source"],
            )
            for task, (_, after) in results["scores"].items()
        ]
    base = content["base_model"]
    return _render(
        _card_data([base], content["datasets"], config["objective"], content["model_id"], entries),
        title=text(content["model_id"]),
        summary=f"This is {text(base)} trained with {text(method_name(config['objective']))} and released by the authors of "
        f"{PAPER}. This card restates the paper and the authors' code; papo_hub did not train the model.",
        base=_base_text(base, [base], None),
        load=_loading(content["model_id"], None, ""),
        unpinned=True,
        data=f"Trained on {listed(content['datasets'])}.",
        evaluation=evaluation,
        results=table,
        remarks=[text(remark) for remark in content["remarks"]],
        recipe=_rows(config),
        **equation(config),
    )


# --------------------------------------------------------------------------------------------------------------- pieces


def _card_data(
    base: list[str],
    data: list[str],
    objective: str,
    model_name: str,
    results: list[EvalResult],
    adapter: bool = False,
) -> ModelCardData:
    return ModelCardData(
        **_license(base),
        library_name="peft" if adapter else "transformers",
        pipeline_tag="image-text-to-text",
        base_model=base[0] if base else None,
        base_model_relation=("adapter" if adapter else "finetune") if base else None,
        datasets=data or None,
        tags=[
            *(PAPO_TAGS.get(objective, (objective,)) if objective in OBJECTIVES else ()),
            "vision-language",
            "reinforcement-learning",
            "multimodal-reasoning",
            "papo_hub",
            *(["lora"] if adapter else ()),
        ],
        metrics=["accuracy"] if results else None,
        model_name=model_name if results else None,
        eval_results=results or None,
    )


def _license(base: list[str]) -> dict[str, str]:
    """The base model's terms; where only its id is known, a reference to them; where not even that, no claim."""
    if not base:
        return {"license": "unknown"}
    referred = {"license": "other", "license_name": "as-the-base-model"}
    return BASE_LICENSES.get(base[0], {**referred, "license_link": f"https://huggingface.co/{base[0]}"})


def _base_text(base: Any, base_ids: list[str], revision: Any) -> str:
    if base_ids:
        at = f" at revision {text(revision)}" if revision else ""
        return f"Base model: {text(base_ids[0])}{at}. Its licence applies to these weights."
    what = f"The base model is the local folder {text(base)}" if base else "The recipe names no base model"
    return f"{what}, so that {NO_BASE}, and the licence that these weights inherit is not known to this card."


def _loading(model_id: str | None, revision: str | None, local: str) -> str:
    """The arguments that name a model, as they stand in the code of the card."""
    if model_id is None:
        if revision is not None:
            raise ValueError("revision is of a repository on the Hub: give model_id as well")
        return json.dumps(plain(local))
    if not is_repository_id(model_id):
        raise ValueError(f"model_id must be owner/name in letters, digits, '-', '_' and '.'; got {plain(model_id)!r}")
    if revision is None:
        return json.dumps(model_id)
    if not re.fullmatch(r"\w[\w./-]*", revision, re.ASCII):
        raise ValueError(f"revision must name a tag, branch or commit; got {plain(revision)!r}")
    return f"{json.dumps(model_id)}, revision={json.dumps(revision)}"


def _adapted(base: Any, base_ids: list[str], config: dict[str, Any]) -> str:
    """The arguments that name the model of which the weights are an adapter."""
    if base_ids:
        return _loading(base_ids[0], config.get("model_revision"), "")
    return json.dumps(public_path(plain(base or "the base model")))


def _existing(folder: Path, files: dict[str, str]) -> list[dict[str, str]]:
    return [{"path": path, "alt": alt} for path, alt in files.items() if (folder / path).is_file()]


def _render(card_data: ModelCardData, **context: Any) -> ModelCard:
    return ModelCard.from_template(card_data, template_path=resource("model_cards/model_card.md.jinja"), **context)


def method_name(objective: Any) -> str | None:
    """As papers write it: papo_g is PAPO-G. None for what is no objective."""
    return objective.upper().replace("_", "-") if isinstance(objective, str) and objective in OBJECTIVES else None


def _objective_name(config: dict[str, Any]) -> str:
    return plain(config.get("objective") or "reinforcement learning")


def _data_text(config: dict[str, Any]) -> str:
    data, revision = config.get("dataset_name"), config.get("dataset_revision")
    if not data:
        return "The recipe names no dataset."
    split = f", split {text(config['dataset_split'])}" if config.get("dataset_split") else ""
    return f"Trained on {listed(data)}{split}{f' at revision {text(revision)}' if revision else ''}."


def _eval_results(evaluation: list[dict], config: dict[str, Any], data: list[str]) -> list[EvalResult]:
    """model-index entries of the trained model; view and group are in the metric's name, for it groups by dataset."""
    return [
        EvalResult(
            task_type="image-text-to-text",
            dataset_name=data[0] if data else words(config.get("eval_dataset_name") or "") or "held-out problems",
            dataset_type=data[0] if data else "local",
            dataset_split=words(config["eval_split"]) if config.get("eval_split") else None,
            metric_type="accuracy",
            metric_name=f"{_metric([row])} (%), {words(row['view'])} image, {_group(row['group'])}",
            metric_value=percent(row),
        )
        for row in evaluation
        if row["when"] == "after" and percent(row) is not None
    ]


def _metric(rows: list[dict]) -> str:
    """The name of the metric where all rows share one k."""
    found = {samples(row) for row in rows}
    k = found.pop() if len(found) == 1 else None
    return f"avg@{k} accuracy" if k else "accuracy"


def _group(name: str) -> str:
    return "all problems" if name == "all" else f"problems of {words(name)} vision dependence"


def _evaluation_text(evaluation: list[dict], config: dict[str, Any]) -> str:
    if not evaluation:
        return "This run was not evaluated."
    sampling = [f"{key.replace('_', '-')} {text(config[key])}" for key in ("temperature", "top_p") if key in config]
    drawn = f" ({', '.join(sampling)})" if sampling else ""
    where = f" on {text(config['eval_dataset_name'])}" if config.get("eval_dataset_name") else ""
    first = f", its first {text(config['eval_problems'])} problems," if config.get("eval_problems") else ""
    return (
        f"Measured by papo_hub{where}{first} before and after training. The numbers are {_metric(evaluation)}: the mean "
        f"over problems and sampled answers{drawn}. Every problem is answered with its image and with the image masked; "
        "problems of high vision dependence are those that cannot be answered without it. Perception KL is the "
        "divergence between both views in nats per token."
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
        accuracy = [100 * row["accuracy"] if is_number(row.get("accuracy")) else None for row in pair]
        divergence = [
            f"{row['perception_kl']:.3f}" if is_number(row.get("perception_kl")) else NO_VALUE for row in pair
        ]
        problems = next((row["problems"] for row in reversed(pair) if row.get("problems")), NO_VALUE)
        change = f"{accuracy[1] - accuracy[0]:+.1f}" if None not in accuracy else NO_VALUE
        shown = [NO_VALUE if value is None else f"{value:.1f}" for value in accuracy]
        table.append([text(view), text(group), text(problems), *shown, change, " → ".join(divergence)])
    return table


def _rows(config: dict[str, Any]) -> list[tuple[str, str]]:
    """The recipe as table rows, without unset keys and without anything that is named like a credential."""
    return [(text(key), text(value)) for key, value in config.items() if value is not None and not names_a_secret(key)]


def _provenance_rows(provenance: dict[str, Any]) -> list[tuple[str, str]]:
    names = {"model_commit": "commit of the base model", "dataset_commit": "commit of the dataset"}
    names |= {"commit": "commit of papo_hub"} | {name: name for name in ("command", "hardware", "started", "finished")}
    rows = [(shown, text(provenance[name])) for name, shown in names.items() if provenance.get(name)]
    if isinstance(versions := provenance.get("versions"), dict) and versions:
        rows.append(("versions", ", ".join(f"{text(name)} {text(version)}" for name, version in versions.items())))
    return rows
