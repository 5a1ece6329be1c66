"""Files and folders that are whole or not there: whatever is killed, and whenever, nobody finds half of one."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path


def replace_file(file: Path, text: str) -> None:
    """Written aside and renamed: whoever reads finds the old text or the new one, whole."""
    aside = file.with_name(f"partial-{file.name}")
    aside.write_text(text, encoding="utf-8")
    sync(aside)
    aside.replace(file)


def replace_folder(aside: Path, folder: Path) -> None:
    """Rename the finished folder `aside` to `folder`, which may exist and is then removed."""
    for file in (path for path in aside.rglob("*") if path.is_file()):
        sync(file)
    remove_folder(folder)
    aside.rename(folder)
    sync(folder.parent)


def remove_folder(folder: Path) -> None:
    """Under its own name it is there whole or not at all: what a kill leaves behind is `removed-*`."""
    if folder.exists():
        grave = folder.with_name(f"removed-{folder.name}")
        shutil.rmtree(grave, ignore_errors=True)
        folder.rename(grave)
        shutil.rmtree(grave)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk: a rename must not outlive what it names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_full(error: Exception) -> bool:
    """Whether a write failed for want of space. (safetensors tells it in words only.)"""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(error)
