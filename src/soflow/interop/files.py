"""Weights from elsewhere, read without running any code that their file may hold."""

import argparse
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from soflow.data.npz import is_zip
from soflow.errors import InputError, first_line
from soflow.system.archives import is_compressed

#: What wrappers put before a parameter's name: the reference implementation, data parallelism, torch.compile.
WRAPPERS = re.compile(r"^((network|module|_orig_mod)\.)+")


def read_file(file: Path) -> Any:
    """What a .safetensors file holds, or any file that torch.save wrote: its tensors, numbers, texts, dicts and lists.

    Raises InputError for a file that is damaged, and for one that would have to run code to be read.
    """
    if not file.is_file():
        raise InputError(
            f"{file} is a folder, not a file of weights"
            if file.is_dir()
            else f"there is no file {file}"
        )
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except (
            Exception
        ) as error:  # SafetensorError, and what the file system and unknown types raise
            raise InputError(f"{file} cannot be read as safetensors: {first_line(error)}") from None
    zipped = is_zip(file)
    try:
        if zipped:
            require_whole(file)
        # A Namespace is only its attributes; checkpoints of DiT and SiT keep their command line in one.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old pickle protocols
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        if not code and not is_pickle(file):
            raise InputError(f"{file} is no file of torch.save, nor of safetensors") from None
        raise InputError(
            f"{file} asks for more than tensors, numbers and texts{f': {code[1]}' if code else ''}; that could run code, so "
            "it was not read: get a file that holds weights alone, or save them alone where you trust this one"
        ) from None
    except InputError:
        raise
    except Exception as error:  # whatever a damaged file makes the reader stumble over
        raise InputError(
            f"{file} is damaged, or is no file of torch.save ({type(error).__name__})"
        ) from None


def require_whole(file: Path) -> None:
    """Raises InputError for a zip file that torch.save did not write, or whose content is not what was written."""
    if is_compressed(file):
        raise InputError(
            f"{file} is compressed, as torch.save does not: it may unpack to anything, and was not read"
        )
    with zipfile.ZipFile(file) as archive:
        if archive.testzip() is not None:  # torch.load does not look at checksums
            raise InputError(
                f"{file} is damaged: its content does not have the checksum recorded with it"
            )


def is_pickle(file: Path) -> bool:
    """Whether a file is one of torch.save, or begins as a pickle does: with a protocol from 2 to 5."""
    with file.open("rb") as stream:
        return is_zip(file) or stream.read(2) in {
            b"\x80\x02",
            b"\x80\x03",
            b"\x80\x04",
            b"\x80\x05",
        }


def is_plain(value: object) -> bool:
    """Whether this is a tensor of finite floating-point numbers, each of which is there: a small file can hold one that
    repeats a few without end, or has no elements and huge sizes.
    """
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.layout == torch.strided
        and not value.is_meta
        and 0 < value.numel() * value.element_size() <= value.untyped_storage().nbytes()
        and bool(value.isfinite().all())
    )


def plain(value: object) -> object:
    """A number out of a tensor of one, a list for a tuple; all else as it is."""
    if (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not value.is_meta
        and value.numel() == 1
    ):
        return value.item()
    return list(value) if isinstance(value, tuple) else value


def named_tensors(value: object, what: str) -> dict[str, Tensor]:
    """A state dict under the network's own names, without what wrappers put before them.

    Raises InputError where `value`, called `what` in the message, is none, or holds numbers that are not finite.
    """
    if not isinstance(value, Mapping) or not all(isinstance(x, Tensor) for x in value.values()):
        raise InputError(f"{what} holds no weights: it should map parameter names to tensors")
    tensors = {WRAPPERS.sub("", str(name)): tensor for name, tensor in value.items()}
    if len(tensors) < len(value):
        raise InputError(
            f"{what} holds the same parameter under two names, such as module.NAME and NAME"
        )
    strange = [name for name, tensor in tensors.items() if not is_plain(tensor)]
    if strange:
        raise InputError(
            f"{what} cannot be used: {strange[0]} is not a tensor of finite floating-point numbers"
        )
    return tensors


def require_fit(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    """Raises InputError, naming the first few tensors, unless names and shapes are the `expected` ones."""
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
