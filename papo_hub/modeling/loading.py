"""Models of folders and Hub repositories, read as numbers: from safetensors alone, and never with code that comes along.

What a folder says about itself is a stranger's word. It may name weights in a pickled format, files outside of itself,
another repository as its base, or a kernel to download: transformers would follow. Here each is an error.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedConfig
from transformers.utils import ADAPTER_CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

SAFE_FILE = r"[^/\\]+\.safetensors"
CONVERT = (
    "Only safetensors are loaded, since other formats can run code. Convert it where you trust it: "
    'AutoModelForImageTextToText.from_pretrained(...).save_pretrained("converted"), and name that folder.'
)


HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


class UntrustedModel(ValueError):
    """A model, or its processor, that asks for more than to have its numbers read."""


def read_config(path_or_id: str | os.PathLike, **hub: Any) -> PreTrainedConfig:
    """The configuration of a model; `hub` are of `HUB_OPTIONS`.

    Raises UntrustedModel where it has its own code or asks for a kernel, OSError and ValueError as AutoConfig.
    """
    try:
        config = AutoConfig.from_pretrained(path_or_id, trust_remote_code=False, **hub)
    except ValueError as error:
        raise own_code(path_or_id, error) from None
    for part in _parts(config):
        if "/" in str(part._attn_implementation):
            raise UntrustedModel(
                f"{path_or_id} asks for the attention kernel {part._attn_implementation} in its config.json, which would "
                "be downloaded and run. Remove attn_implementation there; you may set it yourself."
            )
    return config


def _parts(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    yield config
    for name in config.sub_configs:
        if isinstance(part := getattr(config, name, None), PreTrainedConfig):
            yield from _parts(part)


def own_code(path_or_id: str | os.PathLike, error: ValueError) -> ValueError:
    """transformers' refusal of custom code, without its advice to trust it; any other error as it is."""
    if "trust_remote_code" not in str(error):
        return error
    return UntrustedModel(
        f"{path_or_id} needs code of its own (auto_map), which is never run. Take a model or processor that transformers "
        "has, or install its code as a package that registers it."
    )


def check_model_files(path_or_id: str | os.PathLike, **hub: Any) -> PreTrainedConfig:
    """The configuration of a model whose files can be trusted to be numbers; nothing large is read or downloaded.

    Raises:
        UntrustedModel: as `read_config`; no safetensors in a folder; weights of another format, or elsewhere; an adapter.
        OSError, ValueError: as AutoConfig.
    """
    config = read_config(path_or_id, **hub)
    if _file(path_or_id, ADAPTER_CONFIG_NAME, **hub):
        raise UntrustedModel(
            f"{path_or_id} is an adapter ({ADAPTER_CONFIG_NAME}), and its base is any model that it names. Merge it into "
            "its base (peft's merge_and_unload, then save_pretrained), and name that folder."
        )
    index = _file(path_or_id, SAFE_WEIGHTS_INDEX_NAME, **hub)
    if not index and os.path.isdir(path_or_id) and not _file(path_or_id, SAFE_WEIGHTS_NAME, **hub):
        raise UntrustedModel(f"{path_or_id} has no {SAFE_WEIGHTS_NAME}. {CONVERT}")
    for name in (*_named(index), getattr(config, "transformers_weights", None) or SAFE_WEIGHTS_NAME):
        if not isinstance(name, str) or not re.fullmatch(SAFE_FILE, name):
            raise UntrustedModel(
                f"{path_or_id} takes weights from {name!r:.200}, which is no safetensors file beside its config.json. {CONVERT}"
            )
    return config


def load_vlm(path_or_id: str | os.PathLike, **kwargs: Any) -> Any:
    """What `AutoModelForImageTextToText.from_pretrained` gives, as `load_safely` loads it."""
    return load_safely(AutoModelForImageTextToText, path_or_id, **kwargs)


def load_safely(auto_class: Any, path_or_id: str | os.PathLike, **kwargs: Any) -> Any:
    """What `from_pretrained` of one of transformers' Auto classes gives, from safetensors alone and without custom code.

    Args:
        auto_class: for example AutoModelForImageTextToText.
        path_or_id: a folder or a Hub id.
        **kwargs: `revision`, `dtype`, `attn_implementation`, `output_loading_info`, ...

    Raises:
        UntrustedModel: as `check_model_files`, and for weights that are not what their name says.
        OSError, ValueError: as transformers does.
    """
    check_model_files(path_or_id, **{name: kwargs[name] for name in HUB_OPTIONS if name in kwargs})
    try:
        return auto_class.from_pretrained(path_or_id, use_safetensors=True, trust_remote_code=False, **kwargs)
    except ValueError as error:
        raise own_code(path_or_id, error) from error
    except SafetensorError as error:
        raise UntrustedModel(f"{path_or_id} has weights that are no safetensors, or damaged ones: {error}") from error
    except OSError as error:  # of a Hub repository, which has been asked only now
        if "use_safetensors" not in str(error):
            raise
        raise UntrustedModel(f"{path_or_id} has no {SAFE_WEIGHTS_NAME}. {CONVERT}") from None


def _named(index: str | None) -> set[Any]:
    """The files that an index of weights names."""
    if index is None:
        return set()
    try:
        return set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UntrustedModel(f"{index} is damaged: it does not say which file holds which weight") from None


def _file(path_or_id: str | os.PathLike, name: str, **hub: Any) -> str | None:
    """Where a file of a model lies; None where it has none."""
    return cached_file(
        path_or_id,
        name,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **hub,
    )
