"""The card of a dataset, from its statistics alone."""

from __future__ import annotations

import json
import shlex
from typing import Any

import datasets
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCard, DatasetCardData

from papo_hub.card import plain, text
from papo_hub.config import is_repository_id
from papo_hub.resources import resource

SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
)
SHOWN_COUNTS = {
    "answers": "answers by kind",
    "longer_side": "images by longer side, px",
    "skipped_kinds": "left out, why",
}


def render_card(
    statistics: dict[str, Any], features: datasets.Features, about: dict[str, Any], name: str, tag: str | None
) -> DatasetCard:
    """The card of the dataset that `statistics` describes.

    Args:
        features: of its columns.
        about: `license`, `language` (or None) and `pretty_name`.
        name: OWNER/NAME, or the folder that it lies in.
        tag: the version that the examples load, or None.
    """
    splits = statistics["splits"]
    rows = sum(split["rows"] for split in splits.values())
    data = DatasetCardData(
        license=about["license"],
        language=about["language"],
        task_categories=["visual-question-answering", "image-text-to-text"],
        size_categories=next((label for limit, label in SIZES if rows < limit), "n>10M"),
        pretty_name=about["pretty_name"],
        tags=["reinforcement-learning", "multimodal-reasoning", "verifiable-answers", "papo_hub"],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"data/{split}-*"} for split in splits],
            }
        ],
    )
    infos = datasets.splits.SplitDict()
    for split, counts in splits.items():
        infos.add(datasets.SplitInfo(split, num_bytes=counts["arrow_bytes"], num_examples=counts["rows"]))
    info = datasets.DatasetInfo(
        features=features,
        splits=infos,
        download_size=sum(split["file_bytes"] for split in splits.values()),
        dataset_size=sum(split["arrow_bytes"] for split in splits.values()),
    )
    DatasetInfosDict(default=info).to_dataset_card_data(data)
    # `datasets` caches a local folder by its card alone: without this, other rows of the same size would not be seen.
    hashes = ", ".join(f"{split} {counts['content_hash']}" for split, counts in splits.items())
    data["dataset_info"]["description"] = f"SHA-256 of the content: {hashes}"
    name, on_hub = plain(name), is_repository_id(name)
    first = next(iter(splits))
    return DatasetCard.from_template(
        data,
        template_path=resource("model_cards/dataset_card.md.jinja"),
        title=text(about["pretty_name"]),
        rows=f"{rows:,}",
        splits=list(splits),
        first=first,
        load_from=json.dumps(name if on_hub else f"./{name}"),
        train_on=name if on_hub else shlex.quote(f"./{name}"),
        tag=tag if on_hub else None,
        tags=[text(column) for column in list(features)[4:]],
        example={key: text(value) for key, value in splits[first]["example"].items()},
        row_numbers=all(split["ids"] == "row numbers" for split in splits.values()),
        table=_table(splits),
        counts=_counts(splits),
        hashes={split: counts["content_hash"] for split, counts in splits.items()},
        source=_source(statistics["source"]),
        version=statistics["papo_hub"],
        skipped=sum(split["skipped"] for split in splits.values()),
        license_unknown=about["license"] == "unknown",
        repeated=sum(split["repeated"] + split["in_earlier_splits"] for split in splits.values()),
    )


def _table(splits: dict[str, Any]) -> list[list[str]]:
    """A row a measure, a column a split."""

    def spread(counts: dict[str, int]) -> str:
        return f"{counts['min']:,} / {counts['median']:,} / {counts['max']:,}"

    measures = {
        "rows": lambda split: f"{split['rows']:,}",
        "images": lambda split: f"{split['images']:,}",
        "images a row": lambda split: spread(split["images_per_row"]),
        "image width, px": lambda split: spread(split["width"]),
        "image height, px": lambda split: spread(split["height"]),
        "characters of a problem": lambda split: spread(split["problem_characters"]),
        "characters of an answer": lambda split: spread(split["answer_characters"]),
        "image data, MB": lambda split: f"{split['bytes'] / 1e6:,.1f}",
        "rows that repeat another of the split": lambda split: f"{split['repeated']:,}",
        "rows that are in an earlier split": lambda split: f"{split['in_earlier_splits']:,}",
        "rows left out": lambda split: f"{split['skipped']:,}",
    }
    return [[name, *map(measure, splits.values())] for name, measure in measures.items()]


def _counts(splits: dict[str, Any]) -> list[list[str]]:
    """A row a kind that occurs, in the groups of SHOWN_COUNTS, a column a split."""
    lines = []
    for group, title in SHOWN_COUNTS.items():
        for kind in dict.fromkeys(kind for split in splits.values() for kind in split[group]):
            lines.append([f"{title}: {text(kind)}", *(f"{split[group].get(kind, 0):,}" for split in splits.values())])
    return lines


def _source(source: dict[str, Any]) -> str:
    if source["kind"] == "task":
        return (
            "the digits task of papo_hub: questions about the scans of scikit-learn's load_digits (UCI, Optical "
            "Recognition of Handwritten Digits)"
        )
    if source["kind"] == "files":
        return f"local files: {text(source['name'])}"
    name = plain(source["name"])
    shown = f"[{name}](https://huggingface.co/datasets/{name})" if is_repository_id(name) else text(name)
    named = f", revision {text(source['revision'])}" if source["revision"] else ""
    return shown + named + (f", commit {source['commit']}" if source["commit"] else "")
