"""Cached latents: what `soflow encode` wrote, or the HDF5 file of the paper's reference implementation.

Rows hold mean and standard deviation of an autoencoder's posterior, (N, 2 C, h, w); every visit draws
z = (mean + std * normal - shift) * scale. Source: latent diffusion (arXiv 2112.10752); SoFlow trains on such latents.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from soflow.config.schema import DataConfig
from soflow.data.dataset import ENCODER, Dataset, Encoder, Rows, as_labels, encoder_of
from soflow.data.npz import UNREADABLE, require_in_proportion
from soflow.data.registry import SOURCES
from soflow.data.shards import open_store
from soflow.errors import InputError, RunError, first_line
from soflow.system.records import damaged, is_like

log = logging.getLogger(__name__)

HDF5 = (".h5", ".hdf5")
#: What the latents of an HDF5 file come from, as in the paper's recipe.
SD_VAE = "stabilityai/sd-vae-ft-mse"
SD_SCALE, SD_FACTOR = 0.18215, 8
#: Rows that the scale of latents is judged by, and what their standard deviation may be before people are told.
LOOKED_AT, USUAL = 256, (0.3, 3.0)
#: What index.json has of latents.
ENCODED = {"name": str, "encoder": ENCODER, "class_names": [str], "unlabelled": str}


@SOURCES.register("latents")
class Latents:
    """The latents that soflow encode made, or an HDF5 file."""

    def splits(self, config: DataConfig) -> tuple[str, ...]:
        return ("train",)

    def load(self, config: DataConfig, split: str) -> Dataset:
        return load_latents(config.path, split)


def load_latents(path: str, split: str) -> Dataset:
    """The latents in a folder that soflow encode made, or in an HDF5 file. They are one split, called train.

    Raises InputError where there are none, RunError for damaged ones.
    """
    if not path:
        raise InputError(
            "data.source=latents needs data.path: a folder that soflow encode made, or an HDF5 file"
        )
    if split != "train":
        raise InputError(
            f"{path} has no split '{split}': latents are one split, train; encode others into their own folder"
        )
    dataset = (
        load_hdf5(Path(path)) if Path(path).suffix.lower() in HDF5 else load_encoded(Path(path))
    )
    which = torch.linspace(0, len(dataset) - 1, min(LOOKED_AT, len(dataset))).long()
    require_latents(dataset.rows[which], path)
    std = float(dataset.samples(which).std())
    if not USUAL[0] < std < USUAL[1]:
        assert dataset.encoder is not None
        log.info(
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
            raise InputError(
                f"data.path={folder} is not encoded to its end: run the same soflow encode again"
            )
        raise InputError(f"data.path={folder} holds no latents: make them with soflow encode")
    rows, index = open_store(folder)
    if index.get("kind") != "latents":
        raise InputError(
            f"data.path={folder} holds {index.get('kind')}, not latents: make them with soflow encode"
        )
    if (
        not is_like(index, ENCODED)
        or len(rows.shape) != 4
        or rows.shape[1] % 2
        or not rows.dtype.is_floating_point
    ):
        raise damaged(folder / "index.json")
    encoder, names, why = (
        encoder_of(index["encoder"]),
        tuple(index["class_names"]),
        index["unlabelled"],
    )
    labels = as_labels(index.get("labels"), names, str(folder))
    return Dataset(
        index["name"], "train", rows, labels, names if labels is not None else (), encoder, why
    )


def load_hdf5(file: Path) -> Dataset:
    """The reference implementation's file: `latents` (N, 8, h, w), `labels` (N,), `amount` N and `latent_size` h."""
    try:
        import h5py
    except ImportError:
        raise InputError(
            "HDF5 latents need the package h5py: pip install 'soflow[latents]'"
        ) from None
    if not file.is_file():
        raise InputError(f"data.path={file} cannot be read: there is no such file")
    try:
        return hdf5_dataset(h5py.File(file, "r"), file)
    except InputError:
        raise
    except UNREADABLE as error:
        raise InputError(f"data.path={file} cannot be read as HDF5: {first_line(error)}") from None


def hdf5_dataset(opened: Any, file: Path) -> Dataset:
    """The data set in an open file. Raises InputError for another one, and what is UNREADABLE."""
    latents = own(opened, "latents")
    if latents is None or latents.ndim != 4 or latents.shape[1] % 2:
        raise InputError(
            f"{file} has no latents (N, 2 C, h, w), mean and std: it holds {', '.join(opened) or 'nothing'}"
        )
    if latents.dtype.kind != "f" or min(latents.shape) < 1:
        raise InputError(
            f"{file} has latents {latents.dtype}{list(latents.shape)}: they must be floats, and none of these sizes 0"
        )
    for name, found in (("amount", len(latents)), ("latent_size", latents.shape[-1])):
        stated = number(opened, name)
        if stated is not None and stated != found:
            raise InputError(
                f"{file} says {name}={stated}, but its latents are {list(latents.shape)}: it is not whole"
            )
    require_in_proportion(latents.nbytes, file.stat().st_size)
    labels = labels_of(opened, len(latents), file) if "labels" in opened else None
    encoder = Encoder(SD_VAE, SD_SCALE, size=SD_FACTOR * latents.shape[-1])
    return Dataset(
        file.stem, "train", hdf5_rows(file, latents), labels, (), encoder, f"{file} has no labels"
    )


def labels_of(opened: Any, count: int, file: Path) -> Tensor:
    """The class of each of `count` latents, (N,)."""
    labels = own(opened, "labels")
    if labels is None or labels.dtype.kind not in "iu":
        raise InputError(f"{file} has labels that are no whole numbers: save them as integers (N,)")
    if labels.size != count:
        raise InputError(f"{file} has {labels.size} labels for {count} latents: it is damaged")
    classes = as_labels(labels[()].ravel().tolist(), (), str(file))
    assert classes is not None
    return classes


def own(opened: Any, name: str) -> Any:
    """A data set whose values lie in the file itself; None where there is none of that name.

    Raises ValueError for one that leads elsewhere: links, other files' bytes, data sets put together of others'.
    """
    import h5py

    link = opened.get(name, getlink=True)
    if link is None:
        return None
    found = opened[name] if isinstance(link, h5py.HardLink) else None
    if found is None or (isinstance(found, h5py.Dataset) and (found.external or found.is_virtual)):
        raise ValueError(f"its {name} lie elsewhere: copy them into the file")
    return found if isinstance(found, h5py.Dataset) else None


def number(opened: Any, name: str) -> int | None:
    """A whole number kept as an attribute or as a data set of one element; None where there is none."""
    value = opened.attrs[name] if name in opened.attrs else own(opened, name)
    try:
        return None if value is None or np.size(value) != 1 else int(np.asarray(value).ravel()[0])
    except (TypeError, ValueError, IndexError):
        return None


def hdf5_rows(file: Path, latents: Any) -> Rows:
    """The rows memory-mapped where they lie in one piece, in this machine's order of bytes, else read by h5py."""
    offset = latents.id.get_offset()
    if offset is None or not latents.dtype.isnative:
        return Hdf5Rows(latents)
    return torch.from_numpy(
        np.memmap(file, latents.dtype, "c", offset, latents.shape)
    )  # "c": torch wants it writable


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
        try:
            rows = self.latents[indices][places]
        except UNREADABLE as error:
            raise RunError(
                f"{self.latents.file.filename} is damaged: {first_line(error)}"
            ) from None
        return torch.from_numpy(rows.astype(self.native, copy=False))
