"""Packages that only some features need."""

from importlib import import_module, metadata
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
        raise InputError(f"{needs} the package {name}: {install(extra)}") from None


def install(extra: str) -> str:
    """The command that installs what a feature needs, and keeps the torch that is installed.

    torchvision asks for one exact torch. Without the version, pip takes the newest torchvision and
    replaces torch, perhaps by a build that the GPU's driver is too old for.
    """
    try:
        kept = f' "torch=={metadata.version("torch")}"'
    except metadata.PackageNotFoundError:  # a torch that no package manager knows
        kept = ""
    return f'pip install "soflow[{extra}]"{kept}'  # quotes that the shells of all systems read
