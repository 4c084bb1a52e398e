"""Optional packages, which only some features need."""

from importlib import import_module, metadata
from typing import Any

from soflow.errors import InputError


def optional_package(name: str, needs: str, extra: str) -> Any:
    """Imports an optional package.

    Args:
        name: The package.
        needs: The start of the error message, such as "evaluation needs".
        extra: The extra of soflow that installs the package.

    Raises:
        InputError: If the package is not installed.
    """
    try:
        return import_module(name)
    except ImportError:
        raise InputError(f"{needs} the package {name}: {install(extra)}") from None


def install(extra: str) -> str:
    """The command that installs an extra and keeps the installed version of torch.

    torchvision requires one exact version of torch. Without the pinned version, pip installs the
    newest torchvision and replaces torch, possibly with a build that is too new for the GPU driver.
    """
    try:
        kept = f' "torch=={metadata.version("torch")}"'
    except metadata.PackageNotFoundError:  # torch was not installed as a package
        kept = ""
    return f'pip install "soflow[{extra}]"{kept}'  # double quotes work in all shells
