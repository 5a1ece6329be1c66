"""Who may import whom: each layer of the package uses only its own and lower ones, and each library where it belongs."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "papo_hub"

LAYERS = {
    0: "version resources redaction files elsewhere config batch images masking randomness rewards grading workers objectives "
    "statistics metrics",
    1: "modeling",
    2: "parts lora rows data stream digits head logprobs prefix_attention shared_prefix both_views semantic_masking rollout",
    3: "experience trainer run_state unfinished checkpoint sharding interruption memory guard preparation dry_run warmup "
    "report tracking plugins evaluation hub card dataset drawing figures",
    5: "cli ending",
}
LAYER = {name: layer for layer, names in LAYERS.items() for name in names.split()}

# Libraries beyond the standard one: the lowest layer, or the only rooms, that may use them.
LIBRARIES = {
    "torch": 0, "numpy": 0, "PIL": 0, "math_verify": 0, "sympy": 0, "latex2sympy2_extended": 0, "yaml": 0, "mathruler": 0,
    "transformers": 1, "tokenizers": 1, "safetensors": 1, "datasets": 2, "sklearn": 2, "accelerate": 3, "matplotlib": 3,
    "peft": 5, "jinja2": 3, "tqdm": 3, "xxhash": 3, "huggingface_hub": 5, "vllm": 6,
}  # fmt: skip
EXCEPTIONS = {
    ("lora", "peft"),  # the only room that knows how adapters are named and stored
    ("rollout", "vllm"),  # sampling in it, where it is installed
    ("metrics", "datasets"),  # the types of a metric's inputs
    ("hub", "huggingface_hub"),  # the only room that talks to the Hub
    ("rows", "huggingface_hub"),  # where the cache lies, whose links a dataset's image paths may follow
    ("dataset", "huggingface_hub"),  # likewise
    ("card", "huggingface_hub"),  # rendering a card; pushing it is hub's
}


def room(path: Path) -> str:
    """The first part of a module's name below papo_hub."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it, as absolute names."""
    package = ["papo_hub", *path.relative_to(PACKAGE).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {module} | ({f"papo_hub.{alias.name}" for alias in node.names} if module == "papo_hub" else set())
    return found


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_stay_within_their_layer(path):
    name = room(path)
    assert name in LAYER, f"{name} has no layer: add it to LAYERS"
    for module in imports(path):
        library, _, rest = module.partition(".")
        if library == "papo_hub":
            used = rest.partition(".")[0]
            if not used or used == "version":
                continue
            if used in LAYER:
                assert LAYER[used] <= LAYER[name], f"{name} (layer {LAYER[name]}) imports {used} (layer {LAYER[used]})"
        elif library in LIBRARIES and (name, library) not in EXCEPTIONS:
            assert LIBRARIES[library] <= LAYER[name], f"{name} (layer {LAYER[name]}) imports {library}"


def test_no_import_is_circular():
    """Between rooms: within one, Python itself complains."""
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        used = {module.split(".")[1] for module in imports(path) if module.startswith("papo_hub.")}
        graph.setdefault(room(path), set()).update((used & LAYER.keys()) - {room(path)})
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_what_travels_to_the_hub_needs_nothing_else_of_the_package():
    for path in (PACKAGE / "modeling").glob("*.py"):
        others = {module for module in imports(path) if module.startswith("papo_hub")}
        assert all(module.startswith("papo_hub.modeling") for module in others), f"{path.name}: {others}"


def test_no_file_is_too_long_to_read():
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 650, path
    for path in (ROOT / "recipes").glob("*.py"):
        limit = 100 if path.name == "minimal_loop.py" else 40
        assert len(path.read_text(encoding="utf-8").splitlines()) < limit, path


def test_nothing_pickled_is_loaded_and_no_remote_code_is_trusted():
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "recipes").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("torch.load", "pickle.load", "pickle.loads", "eval", "exec"), f"{path}: {called}"
                if called == "AutoModelForImageTextToText.from_pretrained":
                    assert path.name in ("loading.py", "minimal_loop.py"), f"{path}: load_vlm reads numbers alone"
                for keyword in node.keywords:  # the literal: nothing else can be seen here never to be true
                    assert keyword.arg != "trust_remote_code" or ast.unparse(keyword.value) == "False", path
