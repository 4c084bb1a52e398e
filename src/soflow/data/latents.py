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
    which = torch.linspace(0, len(dataset) - 1, min(LOOKED_AT, len(dataset))).long()
    require_latents(dataset.rows[which], path)
    std = float(dataset.samples(which).std())
    if not USUAL[0] < std < USUAL[1]:
        assert dataset.encoder is not None
        note(
            f"{path}: latents have a standard deviation of {std:.2g} at the scale {dataset.encoder.scale}; networks expect "
            "about 1: is the scale that of their autoencoder?"
        )
    return dataset


def require_latents(rows: Tensor, path: str) -> None:
    """Raises InputError where rows (n, 2 C, h, w) cannot be means and standard deviations."""
    if not rows.isfinite().all():
        raise InputError(f"{path} has latents that are not finite numbers: encode the images again")
    if (rows.chunk(2, dim=1)[1] < 0).any():
        raise InputError(
            f"{path} has standard deviations below 0: of (N, 2 C, h, w) the first C are means, the others these"
        )


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
    latents = opened.get("latents")
    if not isinstance(latents, h5py.Dataset) or latents.ndim != 4 or latents.shape[1] % 2:
        raise InputError(f"{file} has no latents (N, 2 C, h, w), mean and std: it holds {', '.join(opened) or 'nothing'}")
    if latents.dtype.kind != "f" or min(latents.shape) < 1:
        raise InputError(
            f"{file} has latents {latents.dtype}{list(latents.shape)}: they must be floats, and none of these sizes 0"
        )
    for name, found in (("amount", len(latents)), ("latent_size", latents.shape[-1])):
        stated = number(opened, name)
        if stated is not None and stated != found:
            raise InputError(f"{file} says {name}={stated}, but its latents are {list(latents.shape)}: it is not whole")
    labels = labels_of(opened, len(latents), file) if "labels" in opened else None
    encoder = Encoder(SD_VAE, SD_SCALE, size=SD_FACTOR * latents.shape[-1])
    return Dataset(file.stem, "train", hdf5_rows(file, latents), labels, (), encoder, f"{file} has no labels")


def labels_of(opened: Any, count: int, file: Path) -> Tensor:
    """The class of each of `count` latents, (N,)."""
    labels = opened["labels"]
    if not hasattr(labels, "dtype") or labels.dtype.kind not in "iu":
        raise InputError(f"{file} has labels that are no whole numbers: save them as integers (N,)")
    classes = torch.from_numpy(labels[()].astype(np.int64)).flatten()
    if len(classes) != count or int(classes.min()) < 0:
        least = f" from {int(classes.min())}" if len(classes) else ""
        raise InputError(f"{file} has {len(classes)} labels{least} for {count} latents: it is damaged")
    return classes


def number(opened: Any, name: str) -> int | None:
    """A whole number kept as an attribute or as a data set of one element; None where there is none."""
    value = opened.attrs.get(name, opened.get(name))
    try:
        return None if value is None else int(np.asarray(value).ravel()[0])
    except (TypeError, ValueError, IndexError):
        return None


def hdf5_rows(file: Path, latents: Any) -> Rows:
    """The rows memory-mapped where they lie in one piece, in this machine's order of bytes, else read by h5py."""
    offset = latents.id.get_offset()
    if offset is None or not latents.dtype.isnative:
        return Hdf5Rows(latents)
    return torch.from_numpy(np.memmap(file, latents.dtype, "c", offset, latents.shape))  # "c": torch wants it writable


class Hdf5Rows:
    """Rows of a data set that is compressed, chunked or of another machine's order of bytes."""

    def __init__(self, latents: Any) -> None:
        self.latents = latents
        self.shape = tuple(latents.shape)
        self.native = latents.dtype.newbyteorder("=")
        self.dtype = torch.from_numpy(np.empty(0, self.native)).dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, which: Tensor) -> Tensor:
        """The rows at these indices (n,), each read once, in the order in which they lie there."""
        indices, places = np.unique(which.numpy(), return_inverse=True)
        return torch.from_numpy(self.latents[indices][places].astype(self.native, copy=False))
