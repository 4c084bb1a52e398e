"""Packages that only some features need."""

from importlib import import_module
from typing import Any

from soflow.errors import InputError


def optional_package(name: str, needs: str, extra: str) -> Any:
    """Imports a package.

    Raises:
        InputError: If it is not installed.
    """
    try:
        return import_module(name)
    except ImportError:
        raise InputError(f"{needs} the package {name}: pip install 'soflow[{extra}]'") from None
