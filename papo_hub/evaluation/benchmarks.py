"""The benchmarks of an evaluation: one entry each, how they are chosen, and how their rows are read.

The nine of the paper (arXiv 2507.06448, Table 1) are read from the very rows that its authors published, since some of
them are filtered (see docs/evaluation_benchmarks.md). To add a benchmark, add an entry to `_TABLE`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from papo_hub.config import ConfigError, is_repository_id
from papo_hub.data import PROMPT_SUFFIX
from papo_hub.digits import DigitRows
from papo_hub.evaluation.official import TURNS, Archive, OfficialTable
from papo_hub.hub import Client
from papo_hub.hub.cache import read_commit
from papo_hub.rows import BUILDERS, DataError, Rows, load_rows

PAPO_EVAL = "PAPOGalaxy/PAPO_eval"


@dataclass(frozen=True)
class Benchmark:
    """What is evaluated on, and how.

    name: on the command line and in results; unique in an evaluation.
    title: in reports.
    group: "general", "vision" (the paper's two), "tiny", or "local" for a user's own data.
    dataset: a Hub id, a local path, or "digits".
    split, revision: of the dataset; revision None is main.
    columns: what the dataset calls `problem`, `answer` and `images`, where it calls them otherwise.
    answer_type: what a right answer is, for readers.
    licence: of the original, as its page on the Hub states it.
    original: the Hub id that the problems come from.
    prompt_suffix: added to problems that do not ask for \\boxed{} themselves, as the paper's rows do.
    max_completion_length: tokens of an answer.
    problems: number of rows; None: unknown.
    archive: a ZIP of the images in the dataset's repository; None: the rows hold their images.
    """

    name: str
    title: str
    group: str
    dataset: str
    split: str = "test"
    revision: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict, hash=False)
    answer_type: str = ""
    licence: str = ""
    original: str = ""
    prompt_suffix: str = PROMPT_SUFFIX
    max_completion_length: int = 2048
    problems: int | None = None
    archive: str | None = None


def _paper(
    name: str, title: str, group: str, split: str, archive: str, problems: int, original: str, licence: str, answer: str
) -> Benchmark:
    return Benchmark(
        name, title, group, PAPO_EVAL, split, columns=TURNS, answer_type=answer, licence=licence, original=original,
        problems=problems, archive=f"{archive}_images.zip",
    )  # fmt: skip


_MATHVERSE = "AI4Math_MathVerse"
_TABLE = (
    Benchmark(
        "digits", "Three handwritten digits", "tiny", "digits", answer_type="number", licence="cc-by-4.0",
        original="UCI Optical Recognition of Handwritten Digits", prompt_suffix="", max_completion_length=16,
        problems=400,
    ),
    _paper(
        "geometry3k", "Geometry3K", "general", "hiyouga_geometry3k", "hiyouga_geometry3k", 601,
        "hiyouga/geometry3k", "not stated", "expression",
    ),
    _paper(
        "mathvista", "MathVista", "general", "AI4Math_MathVista", "AI4Math_MathVista", 1000,
        "AI4Math/MathVista", "cc-by-sa-4.0", "choice or number",
    ),
    _paper(
        "we_math", "We-Math", "general", "We_Math", "We-Math_We-Math", 1740,
        "We-Math/We-Math", "cc-by-nc-4.0", "choice",
    ),
    _paper(
        "mmk12", "MMK12", "general", "PAPO_MMK12", "PAPO_MMK12_test", 2000,
        "FanqingM/MMK12", "unverified", "choice or expression",
    ),
    _paper("mathverse", "MathVerse", "general", _MATHVERSE, _MATHVERSE, 2180, "AI4Math/MathVerse", "mit", "choice"),
    _paper(
        "logicvista", "LogicVista", "vision", "lscpku_LogicVista", "lscpku_LogicVista", 447,
        "lscpku/LogicVista", "unverified", "choice",
    ),
    _paper(
        "counting", "CLEVR counting", "vision", "BUAADreamer_clevr_count_70k", "BUAADreamer_clevr_count_70k", 200,
        "BUAADreamer/clevr_count_70k", "not stated", "number",
    ),
    _paper(
        "mmmu_pro", "MMMU-Pro", "vision", "MMMU_MMMU_Pro", "MMMU_MMMU_Pro", 1730,
        "MMMU/MMMU_Pro", "apache-2.0", "choice",
    ),
    _paper(
        "mathverse_v", "MathVerse-V", "vision", f"{_MATHVERSE}_vision_dependent", f"{_MATHVERSE}_vision_dependent",
        1308, "AI4Math/MathVerse", "mit", "choice",
    ),
)  # fmt: skip

BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in _TABLE}


def _group(name: str) -> tuple[str, ...]:
    return tuple(benchmark.name for benchmark in _TABLE if benchmark.group == name)


GROUPS: dict[str, tuple[str, ...]] = {name: _group(name) for name in ("tiny", "general", "vision")}
GROUPS["all"] = GROUPS["general"] + GROUPS["vision"]

# Accuracy in percent, mean of 8 answers a problem at temperature 1 (the paper's Table 1, version 5).
_COLUMNS = (*GROUPS["general"], "general", *GROUPS["vision"], "vision", "overall")
PAPER_RESULTS: dict[str, dict[str, float]] = {
    model: dict(zip(_COLUMNS, values, strict=True))
    for model, values in {
        "GRPO-3B": (28.72, 59.34, 58.90, 57.24, 55.25, 51.89, 38.14, 55.81, 25.66, 52.26, 42.97, 47.92),
        "PAPO-G-3B": (30.95, 61.38, 60.09, 57.39, 57.14, 53.39, 38.67, 62.56, 27.11, 53.95, 45.57, 49.92),
        "GRPO-7B": (40.18, 65.48, 68.12, 72.26, 66.51, 62.51, 45.62, 73.94, 35.17, 61.71, 54.11, 58.78),
        "PAPO-G-7B": (40.25, 69.53, 66.79, 72.52, 68.43, 63.50, 46.07, 89.81, 36.63, 64.97, 59.37, 61.66),
        "DAPO-3B": (31.20, 60.89, 59.95, 66.83, 56.25, 55.02, 40.69, 74.25, 28.42, 53.09, 49.11, 52.40),
        "PAPO-D-3B": (35.65, 62.53, 62.67, 64.09, 60.51, 57.09, 41.67, 83.56, 28.76, 57.72, 52.93, 55.24),
        "DAPO-7B": (35.92, 61.91, 58.51, 75.93, 55.64, 57.58, 37.05, 90.05, 29.02, 51.04, 51.79, 55.01),
        "PAPO-D-7B": (44.11, 67.53, 68.30, 80.61, 68.58, 65.83, 46.70, 91.38, 36.34, 64.87, 59.82, 63.16),
    }.items()
}


# --- choosing ---------------------------------------------------------------------------------------------------------


def select(
    names: Sequence[str], *, columns: Mapping[str, str] | None = None, split: str | None = None
) -> list[Benchmark]:
    """The benchmarks that `names` ask for, each once: those of the table in its order, then the user's own in theirs.

    A name is a group of `GROUPS`, an entry of `BENCHMARKS`, a local file or folder, or a Hub dataset OWNER/NAME, with
    @REVISION where it is not main. `columns` and `split` say how the user's own data is read ("test" by default); the
    table's entries know that themselves. A user's own benchmark is called by its file or repository name.

    Raises ConfigError: a name that is none of these; nothing asked for; columns or a split with no data of the user's.
    """
    chosen: set[str] = set()
    own: dict[str, None] = {}
    for name in names:
        if name in GROUPS or name in BENCHMARKS:
            chosen.update(GROUPS.get(name, (name,)))
        elif Path(name).expanduser().exists() or _is_hub_name(name):
            own[name] = None
        else:
            raise ConfigError(_unknown(name))
    if not chosen and not own:
        raise ConfigError(f"benchmarks: none named; {_choices()}.")
    if not own and (columns or split):
        raise ConfigError(
            "columns and split say how your own data is read, but only benchmarks of the table are named: drop them, "
            "or name a file, a folder or OWNER/NAME."
        )
    selected = [benchmark for benchmark in _TABLE if benchmark.name in chosen]
    taken = {*BENCHMARKS, *GROUPS}
    for name in own:
        selected.append(_own(name, columns or {}, split or "test", taken))
        taken.add(selected[-1].name)
    return selected


def _own(source: str, columns: Mapping[str, str], split: str, taken: set[str]) -> Benchmark:
    dataset, _, revision = (source, "", "") if Path(source).expanduser().exists() else source.partition("@")
    path = Path(dataset).expanduser()
    title = (path.stem if path.suffix in BUILDERS else path.name) or path.resolve().name
    stem = re.sub(r"[^\w.-]+", "-", title).strip("-.") or "data"
    names = (stem, *(f"{stem}-{number}" for number in range(2, len(taken) + 3)))
    name = next(name for name in names if name not in taken)
    return Benchmark(name, title, "local", dataset, split, revision or None, dict(columns))


def _is_hub_name(name: str) -> bool:
    return Path(name).suffix not in BUILDERS and is_repository_id(name.partition("@")[0])


def _unknown(name: str) -> str:
    if Path(name).suffix in BUILDERS or Path(name).is_absolute() or name.startswith((".", "~")):
        return f"benchmarks: no such file or folder: {name} (relative paths start at {Path.cwd()})."
    near = difflib.get_close_matches(name.lower().replace("-", "_"), [*GROUPS, *BENCHMARKS], n=3)
    meant = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"benchmarks: {name!r} is unknown.{meant} {_choices()}."


def _choices() -> str:
    return (
        f"choose from the groups {', '.join(GROUPS)}, the benchmarks {', '.join(BENCHMARKS)}, "
        "a parquet, JSON-lines or JSON file, a folder of them, or a Hub dataset OWNER/NAME"
    )


# --- reading ----------------------------------------------------------------------------------------------------------


def load(benchmark: Benchmark, limit: int | None = None) -> Rows:
    """The rows, or the first `limit` of them, for `papo_hub.data.check_row(row, rows.root)`.

    A row has `problem`, `answer`, `images`, an `id` that is unique in the benchmark (the dataset's own where its ids are
    unique, else the row's index) and the short texts that become tags. Reading a row never fails for what is in it:
    `check_row` says what is wrong. Rows may hold `messages` in place of `problem` and `answer`, see
    `papo_hub.evaluation.official`. The archive of images is downloaded once, at the commit of the rows.

    Raises FileNotFoundError and DataError as `papo_hub.rows.load_rows`, and `papo_hub.hub.HubError` where the archive
    cannot be downloaded.
    """
    if benchmark.dataset == "digits":
        return Rows(DigitRows(benchmark.split, size=min(limit or benchmark.problems, benchmark.problems)))
    rows = _read(benchmark)
    table = OfficialTable(rows, limit)
    if benchmark.archive and table.names_files():
        table.archive = Archive(_download(benchmark))
    return Rows(table, rows.root)


def _read(benchmark: Benchmark) -> Rows:
    """The dataset with its columns as the entry, else as either form of rows calls them."""
    first: DataError | None = None
    # A user's own mapping is meant as it stands; that of the table yields if the authors publish in the plain form.
    own = benchmark.group == "local" and benchmark.columns
    for columns in [benchmark.columns] if own else [benchmark.columns, {}, TURNS]:
        try:
            return load_rows(benchmark.dataset, benchmark.split, columns, benchmark.revision)
        except DataError as error:
            if "has no column" not in str(error):
                raise
            first = first or error
    raise DataError(
        f"{first} Or on the command line: --problem_column, --answer_column and --images_column. Without them, rows have "
        "the columns problem, answer and images, or messages (one turn of the user and one of the assistant) and images."
    ) from first


def _download(benchmark: Benchmark) -> Path:
    client = Client()
    commit = read_commit(benchmark.dataset, benchmark.revision, "dataset")
    return Path(
        client.call(
            f"download {benchmark.archive} of {benchmark.dataset}",
            lambda: client.api.hf_hub_download(
                benchmark.dataset, benchmark.archive, repo_type="dataset", revision=commit or benchmark.revision
            ),
        )
    )
