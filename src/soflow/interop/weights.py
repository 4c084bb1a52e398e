"""Reads weight files from other sources safely: code inside a file is never run."""

import argparse
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors.torch import load_file
from torch import Tensor

from soflow.data.npz import is_zip
from soflow.errors import InputError, first_line
from soflow.system.archives import is_compressed

#: Prefixes of parameter names, from the reference implementation, DataParallel and torch.compile.
WRAPPERS = re.compile(r"^((network|module|_orig_mod)\.)+")
#: The first bytes of a pickle with protocol 2 to 5.
PICKLES = {bytes([0x80, protocol]) for protocol in (2, 3, 4, 5)}


def read_file(file: Path) -> Any:
    """Reads a safetensors file, or a torch.save file with tensors, numbers, strings and dicts.

    Raises:
        InputError: If the file is damaged, or cannot be read without running code.
    """
    if not file.is_file():
        raise InputError(f"{file} does not exist or is not a file: choose a file with weights")
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except Exception as error:  # SafetensorError, OSError or an unknown dtype
            raise InputError(f"{file} cannot be read as safetensors: {first_line(error)}") from None
    try:
        if zipped := is_zip(file):
            require_intact(file)
        # Checkpoints of DiT and SiT store their options in a Namespace, which only has attributes.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old pickle protocols
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        if not code and not is_pickle(file):
            raise InputError(
                f"{file} is neither a torch.save file nor a safetensors file"
            ) from None
        raise InputError(
            f"{file} contains more than tensors, numbers and strings"
            f"{f' ({code[1]})' if code else ''}, and reading it could run code: use a file that "
            "contains only weights"
        ) from None
    except InputError:
        raise
    except Exception as error:  # torch raises many types of errors for damaged files
        kind = type(error).__name__
        raise InputError(f"{file} is damaged, or is not a torch.save file ({kind})") from None


def require_intact(file: Path) -> None:
    """Raises InputError if a zip file is compressed or does not match its checksums."""
    if is_compressed(file):
        raise InputError(f"{file} is compressed, unlike torch.save files: save it with torch.save")
    with zipfile.ZipFile(file) as archive:
        if archive.testzip() is not None:  # torch.load does not check checksums
            raise InputError(f"{file} is damaged: its content does not match its checksum")


def is_pickle(file: Path) -> bool:
    """Whether the file looks like a torch.save file: a zip file or a pickle."""
    with file.open("rb") as stream:
        return is_zip(file) or stream.read(2) in PICKLES


def is_dense(value: object) -> TypeGuard[Tensor]:
    """Whether this is a dense tensor with storage."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta


def is_finite_tensor(value: object) -> bool:
    """Whether this is a dense tensor of finite floating-point numbers that are all stored.

    With zero strides, a small file could describe a huge tensor that repeats a few stored numbers.
    """
    if not is_dense(value) or not value.is_floating_point():
        return False
    stored = 0 < value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    return stored and bool(value.isfinite().all())


def plain(value: object) -> object:
    """Converts a tensor with one element to a number, and a tuple to a list."""
    if is_dense(value) and value.numel() == 1:
        return value.item()
    return list(value) if isinstance(value, tuple) else value


def named_tensors(value: object, what: str) -> dict[str, Tensor]:
    """Checks a state dict and removes the prefixes of wrappers from its names.

    Args:
        value: Content of a file.
        what: Name of the content in error messages.

    Returns:
        The tensors by name.

    Raises:
        InputError: If it is not a state dict, or contains NaN or infinite values.
    """
    if not isinstance(value, Mapping) or not all(isinstance(x, Tensor) for x in value.values()):
        raise InputError(f"{what} is not a state dict: it must map parameter names to tensors")
    tensors = {WRAPPERS.sub("", str(name)): tensor for name, tensor in value.items()}
    if len(tensors) < len(value):
        raise InputError(f"{what} has a parameter under two names, such as module.NAME and NAME")
    for name, tensor in tensors.items():
        if not is_finite_tensor(tensor):
            raise InputError(f"{what}: {name} is not a tensor of finite floating-point numbers")
    return tensors


def require_fit(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    """Raises InputError with the first differences if names or shapes differ."""
    problems = [f"it lacks {name}" for name in expected if name not in weights]
    problems += [f"the network has no {name}" for name in weights if name not in expected]
    problems += [
        f"{name} has shape {list(weights[name].shape)}, not {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise InputError(f"{what} does not fit the network: {', '.join(problems[:3])}{more}")
