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
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from soflow.errors import InputError

#: What wrappers put before a parameter's name: the reference implementation, data parallelism, torch.compile.
WRAPPERS = re.compile(r"^((network|module|_orig_mod)\.)+")


def read_file(file: Path) -> Any:
    """What a .safetensors file holds, or any file that torch.save wrote: its tensors, numbers, texts, dicts and lists.

    Raises InputError for a file that is damaged, and for one that would have to run code to be read.
    """
    if not file.is_file():
        raise InputError(f"{file} is a folder, not a file of weights" if file.is_dir() else f"there is no file {file}")
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except SafetensorError as error:
            raise InputError(f"{file} cannot be read as safetensors: {error}") from None
    try:
        # A Namespace is only its attributes; checkpoints of DiT and SiT keep their command line in one.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old pickle protocols
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        raise InputError(
            f"{file} asks for more than tensors, numbers and texts{f': {code[1]}' if code else ''}; that could run code, so "
            "it was not read: get a file that holds weights alone"
        ) from None
    except Exception as error:  # whatever a damaged file makes the reader stumble over
        raise InputError(f"{file} is damaged, or is no file of torch.save ({type(error).__name__})") from None


def named_tensors(value: object, what: str) -> dict[str, Tensor]:
    """A state dict under the network's own names, without what wrappers put before them.

    Raises InputError where `value`, called `what` in the message, is none.
    """
    if not isinstance(value, Mapping) or not all(isinstance(x, Tensor) for x in value.values()):
        raise InputError(f"{what} holds no weights: it should map parameter names to tensors")
    return {WRAPPERS.sub("", str(name)): tensor for name, tensor in value.items()}


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
