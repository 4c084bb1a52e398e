"""Small files that are always whole: written beside and renamed."""

import json
import os
from pathlib import Path
from typing import Any

from soflow.errors import InputError, RunError


def require_writable(folder: Path) -> None:
    """Makes the folder. Raises InputError where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}; choose another folder with --out") from None
    if not os.access(folder, os.W_OK):
        raise InputError(f"cannot write to {folder}: no permission; choose another folder with --out")


def read_json(file: Path) -> dict[str, Any]:
    """What the file holds, {} where there is none. Raises RunError for a damaged one."""
    if not file.is_file():
        return {}
    try:
        values = json.loads(file.read_text())
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise damaged(file)
    return values


def damaged(file: Path) -> RunError:
    return RunError(f"{file} is damaged: delete it and run the same command again")


def write_json(file: Path, values: dict[str, Any]) -> None:
    write_text(file, json.dumps(values, indent=1) + "\n")


def write_text(file: Path, text: str) -> None:
    """Raises RunError where it cannot be written."""
    partial = file.with_suffix(".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, file)
    except OSError as error:
        raise RunError(f"cannot write {file}: {error.strerror}; make room, then run the same command again") from None
