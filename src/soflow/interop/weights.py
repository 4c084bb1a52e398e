"""Reads weights of others without running any code that their file may hold."""

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

#: Prefixes of parameter names: the reference implementation's, data parallelism's, torch.compile's.
WRAPPERS = re.compile(r"^((network|module|_orig_mod)\.)+")
#: How a pickle begins: with a protocol from 2 to 5.
PICKLES = {bytes([0x80, protocol]) for protocol in (2, 3, 4, 5)}


def read_file(file: Path) -> Any:
    """Reads a .safetensors file, or a file of torch.save with tensors, numbers, texts and dicts.

    Raises:
        InputError: If the file is damaged, or would have to run code to be read.
    """
    if not file.is_file():
        raise InputError(f"{file} is missing, or is not a file of weights")
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except Exception as error:  # SafetensorError, and errors of files and unknown types
            raise InputError(f"{file} cannot be read as safetensors: {first_line(error)}") from None
    try:
        if zipped := is_zip(file):
            require_whole(file)
        # A Namespace is only its attributes. Checkpoints of DiT and SiT keep their options in one.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old pickle protocols
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        if not code and not is_pickle(file):
            raise InputError(f"{file} is no file of torch.save, nor of safetensors") from None
        raise InputError(
            f"{file} holds more than tensors, numbers and texts{f': {code[1]}' if code else ''}; "
            "reading it could run code: get or save a file that holds only weights"
        ) from None
    except InputError:
        raise
    except Exception as error:  # torch raises many kinds of errors for damaged files
        kind = type(error).__name__
        raise InputError(f"{file} is damaged, or is no file of torch.save ({kind})") from None


def require_whole(file: Path) -> None:
    """Raises InputError for a zip file that is compressed, or whose content has changed."""
    if is_compressed(file):
        raise InputError(f"{file} is compressed, as torch.save never does: it was not read")
    with zipfile.ZipFile(file) as archive:
        if archive.testzip() is not None:  # torch.load does not check checksums
            raise InputError(f"{file} is damaged: its content does not match its checksum")


def is_pickle(file: Path) -> bool:
    """Whether the file may be one of torch.save: a zip file or a pickle."""
    with file.open("rb") as stream:
        return is_zip(file) or stream.read(2) in PICKLES


def is_dense(value: object) -> TypeGuard[Tensor]:
    """Whether this is a tensor whose numbers are stored one by one."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta


def is_finite_tensor(value: object) -> bool:
    """Whether this is a dense tensor of finite floating-point numbers, all of them stored.

    A small file can hold a tensor that repeats a few numbers without end.
    """
    if not is_dense(value) or not value.is_floating_point():
        return False
    stored = 0 < value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    return stored and bool(value.isfinite().all())


def plain(value: object) -> object:
    """The number in a tensor of one number, a list for a tuple, and all else unchanged."""
    if is_dense(value) and value.numel() == 1:
        return value.item()
    return list(value) if isinstance(value, tuple) else value


def named_tensors(value: object, what: str) -> dict[str, Tensor]:
    """A state dict under the network's own names, without the prefixes of wrappers.

    Args:
        value: What a file holds.
        what: Its name in error messages.

    Raises:
        InputError: If it is no state dict, or holds numbers that are not finite.
    """
    if not isinstance(value, Mapping) or not all(isinstance(x, Tensor) for x in value.values()):
        raise InputError(f"{what} holds no weights: it must map parameter names to tensors")
    tensors = {WRAPPERS.sub("", str(name)): tensor for name, tensor in value.items()}
    if len(tensors) < len(value):
        raise InputError(f"{what} holds a parameter under two names, such as module.NAME and NAME")
    for name, tensor in tensors.items():
        if not is_finite_tensor(tensor):
            raise InputError(f"{what}: {name} is not a tensor of finite floating-point numbers")
    return tensors


def require_fit(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    """Raises InputError with the first few differences in names and shapes."""
    problems = [f"it lacks {name}" for name in expected if name not in weights]
    problems += [f"{name} has no place in the network" for name in weights if name not in expected]
    problems += [
        f"{name} has shape {list(weights[name].shape)}, not {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise InputError(f"{what} does not fit the network: {', '.join(problems[:3])}{more}")
