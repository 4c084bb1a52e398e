"""Cached latents: what `soflow encode` wrote, or the HDF5 file of the paper's reference implementation.

Rows hold mean and standard deviation of an autoencoder's posterior, (N, 2 C, h, w); every visit draws
z = (mean + std * normal - shift) * scale. Source: latent diffusion (arXiv 2112.10752); SoFlow trains on such latents.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from soflow.data.cache import Note
from soflow.data.dataset import Dataset, Encoder, Rows
from soflow.data.store import open_store
from soflow.errors import InputError, first_line

HDF5 = (".h5", ".hdf5")
#: What the latents of an HDF5 file come from, as in the paper's recipe.
SD_VAE = "stabilityai/sd-vae-ft-mse"
SD_SCALE, SD_FACTOR = 0.18215, 8
#: Rows that the scale of latents is judged by, and what their standard deviation may be before people are told.
LOOKED_AT, USUAL = 256, (0.3, 3.0)


def load_latents(path: str, split: str, note: Note = lambda text: None) -> Dataset:
    """The latents in a folder that soflow encode made, or in an HDF5 file. They are one split, called train.

    Raises InputError where there are none, RunError for damaged ones.
    """
    if not path:
        raise InputError("data.source=latents needs data.path: a folder that soflow encode made, or an HDF5 file")
    if split != "train":
        raise InputError(f"{path} has no split '{split}': latents are one split, train; encode others into their own folder")
    dataset = load_hdf5(Path(path)) if Path(path).suffix.lower() in HDF5 else load_encoded(Path(path))
    std = float(dataset.samples(torch.linspace(0, len(dataset) - 1, min(LOOKED_AT, len(dataset))).long()).std())
    if not USUAL[0] < std < USUAL[1]:
        assert dataset.encoder is not None
        note(
            f"{path}: latents have a standard deviation of {std:.2g} at the scale {dataset.encoder.scale}; networks expect "
            "about 1: is the scale that of their autoencoder?"
        )
    return dataset


def load_encoded(folder: Path) -> Dataset:
    """What soflow encode wrote."""
    if not (folder / "index.json").is_file():
        if (folder / "plan.json").is_file():
            raise InputError(f"data.path={folder} is not encoded to its end: run the same soflow encode again")
        raise InputError(f"data.path={folder} holds no latents: make them with soflow encode")
    rows, index = open_store(folder)
    if index.get("kind") != "latents":
        raise InputError(f"data.path={folder} holds {index.get('kind')}, not latents: make them with soflow encode")
    encoder = Encoder(**index["encoder"])
    labels = None if index["labels"] is None else torch.tensor(index["labels"], dtype=torch.int64)
    names, why = tuple(index["class_names"]), index["unlabelled"]
    return Dataset(index["name"], "train", rows, labels, names if labels is not None else (), encoder, why)


def load_hdf5(file: Path) -> Dataset:
    """The reference implementation's file: `latents` (N, 8, h, w), `labels` (N,), `amount` N and `latent_size` h."""
    try:
        import h5py
    except ImportError:
        raise InputError("HDF5 latents need the package h5py: pip install 'soflow[latents]'") from None
    if not file.is_file():
        raise InputError(f"data.path={file} cannot be read: there is no such file")
    try:
        opened = h5py.File(file, "r")
    except OSError as error:
        raise InputError(f"data.path={file} cannot be read as HDF5: {first_line(error)}") from None
    if "latents" not in opened or opened["latents"].ndim != 4 or opened["latents"].shape[1] % 2:
        raise InputError(f"{file} has no latents (N, 2 C, h, w), mean and std: it holds {', '.join(opened) or 'nothing'}")
    latents = opened["latents"]
    for name, found in (("amount", len(latents)), ("latent_size", latents.shape[-1])):
        stated = number(opened, name)
        if stated is not None and stated != found:
            raise InputError(f"{file} says {name}={stated}, but its latents are {list(latents.shape)}: it is not whole")
    labels = torch.from_numpy(opened["labels"][:].astype(np.int64)).flatten() if "labels" in opened else None
    if labels is not None and (len(labels) != len(latents) or int(labels.min()) < 0):
        found = f"{len(labels)} labels from {int(labels.min())}"
        raise InputError(f"{file} has {found} for {len(latents)} latents: it is damaged")
    encoder = Encoder(SD_VAE, SD_SCALE, size=SD_FACTOR * latents.shape[-1])
    return Dataset(file.stem, "train", hdf5_rows(file, latents), labels, (), encoder, f"{file} has no labels")


def number(opened: Any, name: str) -> int | None:
    """A whole number kept as an attribute or as a data set of one element."""
    value = opened.attrs.get(name, opened[name][()] if name in opened else None)
    return None if value is None else int(np.asarray(value).ravel()[0])


def hdf5_rows(file: Path, latents: Any) -> Rows:
    """The rows memory-mapped where they lie in one piece, else read by h5py."""
    offset = latents.id.get_offset()
    if offset is None:
        return Hdf5Rows(latents)
    return torch.from_numpy(np.memmap(file, latents.dtype, "c", offset, latents.shape))  # "c": torch wants it writable


class Hdf5Rows:
    """Rows of a compressed or chunked data set."""

    def __init__(self, latents: Any) -> None:
        self.latents = latents
        self.shape = tuple(latents.shape)
        self.dtype = torch.from_numpy(np.empty(0, latents.dtype)).dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, which: Tensor) -> Tensor:
        """The rows at these indices (n,), each read once, in the order in which they lie there."""
        indices, places = np.unique(which.numpy(), return_inverse=True)
        return torch.from_numpy(self.latents[indices][places])
