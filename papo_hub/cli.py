"""papo-hub: the commands. Bad input ends with one message and exit code 2, never with a traceback."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

from papo_hub.config import ConfigError, help_text, is_repository_id, load_config, parse_overrides
from papo_hub.ending import ended
from papo_hub.redaction import printable
from papo_hub.resources import resource
from papo_hub.version import __version__

_COLUMNS = ("problem", "answer", "images")  # of every row


def main(arguments: list[str] | None = None) -> int:
    """The `papo-hub` entry point. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="papo-hub", description=__doc__.split(":")[0] + ": PAPO from one command.")
    parser.add_argument("--version", action="version", version=f"papo_hub {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("quickstart", help="train the tiny model on real handwritten digits, in minutes, on a CPU")
    commands.add_parser(
        "train", help="run a recipe: papo-hub train RECIPE.yaml [--key value] (one process)", add_help=False
    )
    push = commands.add_parser("push", help="push a finished run to the Hub, as one version")
    push.add_argument("run", type=Path, help="the run folder")
    push.add_argument("repo_id", help="OWNER/NAME; created where it does not exist")
    push.add_argument("--revision", default="main", help="the branch, one per variant, e.g. gamma-0.02 (default: main)")
    push.add_argument("--tag", help="one per release, e.g. v1.0; never moved")
    push.add_argument("--private", action="store_true", help="create the repository private")
    push.add_argument(
        "--format",
        choices=("plain", "papo", "adapter"),
        default="plain",
        help="papo: the wrapper, with its code; adapter: of a LoRA run, the adapter alone (default: plain)",
    )
    push.add_argument("--dry_run", "--dry-run", action="store_true", help="list files, sizes and hashes; send nothing")
    listed = commands.add_parser("versions", help="the versions of a Hub repository, as a table")
    listed.add_argument("repo_id", help="OWNER/NAME")
    commands.add_parser(
        "evaluate", help="avg@k on benchmarks, and how much the model looks: papo-hub evaluate MODEL", add_help=False
    )
    compared = commands.add_parser("compare", help="two evaluations of the same problems, problem by problem")
    for name in ("a", "b"):
        compared.add_argument(name, type=Path, help="a folder that papo-hub evaluate wrote, or a run")
    compared.add_argument("--output", type=Path, help="the page (default: comparison.html beside the answers of B)")
    _add_look(commands)
    card = commands.add_parser("card", help="write a run's model card, or print that of a spec (model_cards/*.yaml)")
    card.add_argument("source", type=Path, help="a run folder, or a spec")
    card.add_argument("repo_id", nargs="?", help="OWNER/NAME that a run goes to")
    card.add_argument("--revision", help="the version that its loading lines name")
    commands.add_parser("doctor", help="what is installed, who is logged in, what can be reached, what absences mean")

    chosen, rest = parser.parse_known_args(arguments)
    if chosen.command == "train":
        recipe = [] if not rest or rest[0].startswith("-") else ["--config", rest.pop(0)]
        return train_command(recipe + rest)
    if chosen.command == "evaluate":
        return evaluate_command(rest)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    command = {
        "quickstart": lambda _: quickstart_command(),
        "push": push_command,
        "versions": versions_command,
        "compare": compare_command,
        "look": look_command,
        "card": card_command,
        "doctor": lambda _: doctor_command(),
    }
    return command[chosen.command](chosen)


def push_command(chosen: argparse.Namespace) -> int:
    """papo-hub push RUN OWNER/NAME. Returns the exit code."""

    def run() -> None:
        from papo_hub.hub.run import listed, prepared, preparing, push_run

        if not is_repository_id(chosen.repo_id):
            raise ConfigError(f"{chosen.repo_id!r} must be OWNER/NAME in letters, digits, '-', '_' and '.'.")
        if chosen.dry_run:
            with preparing(chosen.run):
                print(listed(prepared(chosen.run, chosen.repo_id, chosen.revision, chosen.tag, chosen.format)))
            print(
                f"This would go to {chosen.repo_id}, branch {chosen.revision}, tag {chosen.tag or 'none'}; nothing was sent."
            )
            return
        version = push_run(
            chosen.run,
            chosen.repo_id,
            revision=chosen.revision,
            tag=chosen.tag,
            private=chosen.private,
            format=chosen.format,
        )
        revision = version.tag or (None if version.branch == "main" else version.branch)
        pinned = f', revision="{revision}"' if revision else ""
        named = f'"{version.repo_id}"{pinned}'
        if chosen.format == "adapter":
            loading = f"PeftModel.from_pretrained(base, {named})"
        else:
            trusted = ", trust_remote_code=True" if chosen.format == "papo" else ""
            loading = f'AutoModelForImageTextToText.from_pretrained({named}, dtype="auto"{trusted})'
        print(f"{version.url}\n{loading}")

    return ended(run)


def push_dataset_command(arguments: list[str]) -> int:
    """recipes/push_dataset.py SOURCE OWNER/NAME. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="recipes/push_dataset.py",
        description="Rows of problem, answer and images → a checked dataset on the Hub, with card and statistics.",
    )
    parser.add_argument("source", help="a folder, a parquet or JSON-lines file, a Hub dataset id, or digits")
    parser.add_argument("repo_id", help="OWNER/NAME; created where it does not exist")
    parser.add_argument("--split", nargs="+", default=["train"], help="splits of the source (default: train)")
    parser.add_argument("--limit", type=int, help="only the first so many rows of each split")
    parser.add_argument("--source_revision", help="branch, tag or commit of a source on the Hub")
    for name in _COLUMNS:
        parser.add_argument(f"--{name}_column", default=name, help=f"the source's name for {name}")
    parser.add_argument("--text_columns", nargs="+", default=[], help="further columns of text to keep")
    parser.add_argument("--license", help="as the Hub spells it, e.g. cc-by-4.0 (default: unknown)")
    parser.add_argument("--language", help="of problems and answers, e.g. en")
    parser.add_argument("--pretty_name", help="how the card calls the dataset")
    parser.add_argument("--drop_unusable", action="store_true", help="leave unusable rows out and list them")
    parser.add_argument("--folder", type=Path, help="where the dataset is written (default: datasets/OWNER/NAME)")
    parser.add_argument("--revision", default="main", help="the branch (default: main)")
    parser.add_argument("--tag", help="one per release, e.g. v1.0; never moved")
    parser.add_argument("--private", action="store_true", help="create the repository private")
    parser.add_argument("--dry_run", "--dry-run", action="store_true", help="write and list the dataset; send nothing")
    chosen = parser.parse_args(arguments)

    def run() -> None:
        from papo_hub.dataset import build_dataset
        from papo_hub.hub import publish
        from papo_hub.hub.run import listed

        report = build_dataset(
            chosen.source,
            chosen.folder or Path("datasets", chosen.repo_id),
            splits=chosen.split,
            columns={name: getattr(chosen, f"{name}_column") for name in _COLUMNS},
            revision=chosen.source_revision,
            limit=chosen.limit,
            tags=chosen.text_columns,
            repo_id=chosen.repo_id,
            tag=chosen.tag,
            license=chosen.license,
            language=chosen.language,
            pretty_name=chosen.pretty_name,
            drop_unusable=chosen.drop_unusable,
        )
        print(printable(report))
        if chosen.dry_run:
            print(f"{listed(report.folder)}\nThis would go to {chosen.repo_id}; nothing was sent.")
            return
        rows = sum(split["rows"] for split in report.statistics["splits"].values())
        version = publish(
            report.folder,
            chosen.repo_id,
            repo_type="dataset",
            branch=chosen.revision,
            tag=chosen.tag,
            message=f"{rows} rows",
            private=chosen.private,
            say=print,
        )
        print(version.url)

    return ended(run)


def versions_command(chosen: argparse.Namespace) -> int:
    """papo-hub versions OWNER/NAME. Returns the exit code."""

    def run() -> None:
        from papo_hub.hub.versions import table, versions

        print(table(versions(chosen.repo_id)))

    return ended(run)


def evaluate_command(arguments: list[str]) -> int:
    """recipes/evaluate.py MODEL [--benchmarks NAME …] [--option value …]. Returns the exit code."""
    chosen = _evaluation_parser().parse_args([_underscored(argument) for argument in arguments])

    def run() -> None:
        from papo_hub.evaluation.protocol import Protocol
        from papo_hub.evaluation.run import Request, evaluate, regrade

        if (chosen.model is None) == (chosen.from_answers is None):
            raise ConfigError(
                "Name a MODEL to evaluate (a run, a folder, OWNER/NAME), or answers to grade: --from_answers."
            )
        if chosen.from_answers:
            regrade(chosen.from_answers, chosen.grader or Protocol.grader, chosen.output_dir)
            return
        options = vars(chosen)
        given = {f.name: options[f.name] for f in fields(Protocol) if options.get(f.name) is not None}
        if given.get("temperature") == 0:
            given = {"k": 1} | given
        given.setdefault("view_k", max(given.get("k", Protocol.k) // 4, 1))
        if "views" in given:
            given["views"] = tuple(given["views"])
        asked = {f.name: options[f.name] for f in fields(Request) if f.name in options}
        asked["benchmarks"] = tuple(chosen.benchmarks)
        asked["columns"] = {name: column for name in _COLUMNS if (column := options[f"{name}_column"])}
        evaluate(Request(protocol=Protocol(**given), **asked))

    return ended(run)


def _evaluation_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="papo-hub evaluate",
        allow_abbrev=False,
        description="A model on benchmarks: every answer on disk, avg@k with intervals, and how much the model looks. "
        "An interrupted evaluation goes on where it was. Also under accelerate launch: recipes/evaluate.py.",
    )
    add = parser.add_argument
    add("model", nargs="?", metavar="MODEL", help="a run, a model folder, or a Hub id OWNER/NAME")
    add("--revision", help="branch, tag or commit of a Hub id")
    add(
        "--benchmarks", nargs="+", metavar="NAME", default=["tiny"],
        help="tiny, general, vision, all, an entry of the table (docs/evaluation_benchmarks.md), a parquet or JSON-lines "
        "file, a folder, a dataset OWNER/NAME (default: tiny)",
    )  # fmt: skip
    add("--k", type=int, help="answers to each problem (default: 8)")
    add("--view_k", type=int, help="answers to each masked or blank view (default: a quarter of k)")
    add(
        "--views", nargs="+", metavar="VIEW",
        help="of each problem: clean, blank, mask-R with the share R of patches hidden (default: clean mask-0.3 mask-0.6 "
        "mask-0.9 blank; clean alone is the paper's evaluation, at half the cost)",
    )  # fmt: skip
    add("--temperature", type=float, help="of sampling; 0: greedy, one answer (default: 1.0)")
    add("--top_p", type=float, help="nucleus sampling (default: 1.0, off)")
    add(
        "--max_completion_length", type=int, help="tokens of an answer (default: the benchmark's, 2048 for the paper's)"
    )
    add(
        "--max_prompt_length",
        type=int,
        help="tokens of a prompt with its images; a longer one is skipped (default: 8192)",
    )
    add("--seed", type=int, help="the answers are a function of it (default: 42)")
    add("--grader", help="math, or mathruler for the verdicts of the published numbers (default: math)")
    add("--batch_size", type=int, help="answers decoded together: lower it where memory ends (default: 64)")
    add("--max_tokens", type=int, help="of a forward pass that measures the perception KL (default: 16384)")
    add("--limit", type=int, help="only the first so many problems of each benchmark")
    add("--split", help="of your own data (default: test)")
    for name in _COLUMNS:
        add(f"--{name}_column", help=f"what your own data calls {name}")
    add(
        "--prompt_suffix", help="added to problems that do not ask for \\boxed{} (default: as trained, or as the paper)"
    )
    add("--min_pixels", type=int, help="an image is enlarged to at least that (default: the run's, or the processor's)")
    add("--max_pixels", type=int, help="an image is reduced to at most that (default: the run's, or the processor's)")
    add(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="of the weights (default: auto)",
    )
    add("--attn_implementation", help="sdpa, flash_attention_2, … (default: that of transformers)")
    add("--output_dir", type=Path, help="the folder (default: RUN/evaluation/final, else evaluations/NAME)")
    add("--from_answers", type=Path, help="grade this answers.jsonl, or the folder's, anew: without a model")
    return parser


def _underscored(argument: str) -> str:
    """--top-p as --top_p."""
    name, equals, value = argument.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if name.startswith("--") else argument


def compare_command(chosen: argparse.Namespace) -> int:
    """papo-hub compare A B. Returns the exit code."""

    def run() -> None:
        from papo_hub.evaluation.compare import compare

        a, b = (_evaluation_of(folder) for folder in (chosen.a, chosen.b))
        page = chosen.output or b / "comparison.html"
        print(f"{compare(a, b, page).text}\n\nThe page, with the problems that changed most, is {page}.")

    return ended(run)


def _evaluation_of(folder: Path) -> Path:
    """An evaluation folder itself; of a run, the evaluation of its model."""
    if not (folder / "config.yaml").is_file():
        return folder
    places = [folder / "evaluation" / name for name in ("final", "after")]
    found = next((place for place in places if (place / "answers.jsonl").is_file()), None)
    if found is None:
        raise ConfigError(f"The run {folder} has not been evaluated: papo-hub evaluate {folder}")
    return found


def _add_look(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("look", help="what an answer owes to an image, and to which parts of it, as a page")
    add = parser.add_argument
    add("model", metavar="MODEL", help="a run, a model folder, or a Hub id OWNER/NAME")
    add("image", metavar="IMAGE", type=Path, help="a file: PNG, JPEG, WebP, …")
    add("question", metavar="QUESTION", help="what to ask about it, in quotes")
    add("--answer", help="the answer to look at (default: the model's own, sampled greedily)")
    for name, kind, default, what in (
        ("cells", int, 8, "cells along the image's longer side, hidden one by one"),
        ("mask_ratio", float, 0.6, "share of patches that the masked image hides"),
        ("mask_patch_size", int, 14, "side of such a patch in pixels of the image"),
        ("seed", int, 0, "of the mask"),
        ("max_new_tokens", int, 256, "of a sampled answer"),
        ("max_tokens", int, 16_384, "of a forward pass: lower it where memory ends"),
        ("output", Path, Path("look.html"), "the page"),
    ):
        spellings = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
        add(*spellings, type=kind, default=default, help=f"{what} (default: {default})")


def look_command(chosen: argparse.Namespace) -> int:
    """papo-hub look MODEL IMAGE QUESTION. Returns the exit code."""

    def run() -> None:
        from torch import OutOfMemoryError

        from papo_hub.evaluation.look import check_request, look, open_model
        from papo_hub.evaluation.look_page import write_look
        from papo_hub.images import UnusableImage, decode_image
        from papo_hub.masking import RandomPatchMask

        if chosen.output.is_dir():
            raise ConfigError(
                f"--output {chosen.output} is a folder: name a file in it, e.g. {chosen.output}/look.html."
            )
        try:
            image = decode_image(chosen.image)
        except UnusableImage as error:
            raise ConfigError(f"IMAGE: {error}") from None
        try:
            mask = RandomPatchMask(chosen.mask_patch_size, chosen.mask_ratio)
        except ValueError as error:
            raise ConfigError(f"mask: {error}") from None
        numbers = {name: getattr(chosen, name) for name in ("cells", "max_new_tokens", "max_tokens")}
        check_request(chosen.question, chosen.answer, **numbers)
        model, processor, suffix, label = open_model(chosen.model)
        options = numbers | {"mask": mask, "seed": chosen.seed, "prompt_suffix": suffix, "progress": True}
        try:
            found = look(model, processor, image, chosen.question, chosen.answer, **options)
        except OutOfMemoryError as error:
            raise ConfigError(
                f"max_tokens: {chosen.max_tokens} at a time are more than memory holds; lower it."
            ) from error
        write_look(found, chosen.output, label, chosen.image.name)
        print(printable(f"{''.join(found.tokens)}\n"))
        most = int(found.divergence.argmax())
        print(
            printable(
                f"{float(found.divergence.sum()):.3f} nats between the image and the masked image; the token with most is "
                f"{most + 1} of {len(found.tokens)}, {found.tokens[most]!r}, with {float(found.divergence[most]):.3f}.\n"
                f"The page, with the regions that matter, is {chosen.output}."
            )
        )

    return ended(run)


def card_command(chosen: argparse.Namespace) -> int:
    """papo-hub card RUN_OR_SPEC [OWNER/NAME]. Returns the exit code."""

    def run() -> None:
        from papo_hub.card import render_spec, write_card

        try:
            if chosen.source.is_file():
                print(render_spec(chosen.source))
            else:
                print(write_card(chosen.source, chosen.repo_id, chosen.revision))
        except ValueError as error:  # a file that does not hold what its name says
            raise ConfigError(str(error)) from None

    return ended(run)


def doctor_command() -> int:
    """papo-hub doctor. Returns 1 where something needs mending."""
    from papo_hub.hub.doctor import examine, report

    text, well = report(examine())
    print(text)
    return 0 if well else 1


def train_command(arguments: list[str]) -> int:
    """recipes/train.py: --config RECIPE [--dry_run] [--key value …]. Returns the exit code."""
    if "--help" in arguments or "-h" in arguments:
        print(f"usage: recipes/train.py --config RECIPE.yaml [--dry_run] [--key value ...]\n\nkeys:\n{help_text()}")
        return 0

    def run() -> None:
        overrides = parse_overrides(arguments)
        dry_run = overrides.pop("dry_run", "false") == "true"
        config = load_config(_recipe(overrides), overrides)
        if dry_run:
            from papo_hub.dry_run import dry_run_report

            print(printable(dry_run_report(config)))
            return
        from papo_hub.trainer import train

        folder = train(config)
        if os.environ.get("RANK", "0") == "0":
            print(f"Finished: {folder}/README.md tells what came of it; the model is in {folder}/model.")

    return ended(run)


def warmup_command(arguments: list[str]) -> int:
    """recipes/warmup.py: --config RECIPE [--key value …]. Returns the exit code."""
    from papo_hub.warmup import WarmupConfig, warm_up

    if "--help" in arguments or "-h" in arguments:
        print(f"usage: recipes/warmup.py --config RECIPE.yaml [--key value ...]\n\nkeys:\n{help_text(WarmupConfig)}")
        return 0

    def run() -> None:
        overrides = parse_overrides(arguments)
        print(f"The warmed-up model is in {warm_up(load_config(_recipe(overrides), overrides, WarmupConfig))}.")

    return ended(run)


def quickstart_command() -> int:
    """Warm-up, PAPO-G, and what changed: the main job of a newcomer. Returns the exit code."""
    run = Path("runs/tiny/papo_g")
    if not Path("runs/tiny/warmup/warmup.json").exists():
        print("1/2  Warm-up: a tiny Qwen2.5-VL learns to read digits, supervised (about a minute).", flush=True)
        if code := _launch("warmup.py", "tiny/warmup.yaml"):
            return code
    if not (run / "README.md").exists():
        print(
            "2/2  PAPO-G: it learns from its own answers, rewarded and held to the image (about two minutes).",
            flush=True,
        )
        if code := _launch("train.py", "tiny/papo_g.yaml", "--resume_from_checkpoint", "latest"):
            return code
    print(before_after_table(run))
    # `make` runs this from an environment that the user's shell need not know.
    first = "" if shutil.which("papo-hub") else f"  source {os.path.relpath(Path(sys.prefix, 'bin/activate'))}\n"
    print(
        f"\nThe run is in {run}: open README.md, figures/overview.png, samples.md.\nNext:\n{first}"
        "  accelerate launch --config_file accelerate_configs/cpu.yaml recipes/train.py --config recipes/tiny/grpo.yaml\n"
        "  papo-hub compare runs/tiny/papo_g/evaluation/before runs/tiny/papo_g                  # which answers changed\n"
        "  papo-hub evaluate runs/tiny/papo_g                                                    # how much does it look?\n"
        "  papo-hub push runs/tiny/papo_g OWNER/NAME --tag v1.0 --dry_run                        # what would go to the Hub\n"
        "  papo-hub train recipes/tiny/papo_g.yaml --gamma 0.3 --output_dir runs/tiny/too_much   # watch it hack the KL\n"
        "  papo-hub train recipes/qwen2_5_vl_3b/papo_g.yaml --dry_run                            # the same, at full size"
    )
    return 0


def before_after_table(run: Path) -> str:
    """evaluation.json as a table: accuracy before → after for each view and group of questions."""
    rows = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    found = {(row["when"], row["view"], row["group"]): row for row in rows}
    names = {"all": "all questions", "high": "image only", "partial": "partly in the text", "low": "all in the text"}
    lines = [
        "",
        f"{'held-out questions':<22}{'accuracy, clean image':>24}{'masked image':>20}{'perception KL, nats/token':>30}",
    ]
    for group, name in names.items():
        if ("after", "clean", group) not in found:
            continue
        cells = []
        for view in ("clean", "masked"):
            before, after = (found[when, view, group]["accuracy"] for when in ("before", "after"))
            cells.append(f"{before:.1%} → {after:.1%}")
        before, after = (found[when, "clean", group]["perception_kl"] for when in ("before", "after"))
        lines.append(f"{name:<22}{cells[0]:>24}{cells[1]:>20}{f'{before:.3f} → {after:.3f}':>30}")
    first = found["after", "clean", "all"]
    lines.append(f"(avg@{first['samples']} over {first['problems']} questions on digits that training never showed)")
    return "\n".join(lines)


def _launch(script: str, recipe: str, *arguments: str) -> int:
    """`accelerate launch` of one of our scripts, on the CPU."""
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    command += ["--config_file", str(resource("accelerate_configs/cpu.yaml")), str(resource(f"recipes/{script}"))]
    # Threads cost the tiny model more than they give, and many times more where other programs want the cores.
    environment = {"OMP_NUM_THREADS": "1"} | os.environ
    command += ["--config", str(resource(f"recipes/{recipe}")), *arguments]
    return subprocess.run(command, env=environment).returncode


def _recipe(overrides: dict[str, str]) -> str:
    if "config" not in overrides:
        raise ConfigError("Name a recipe: --config recipes/tiny/papo_g.yaml.")
    return overrides.pop("config")
