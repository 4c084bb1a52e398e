"""Cached latents: what `soflow encode` wrote, or the HDF5 file of the reference implementation.

Rows hold mean and standard deviation of the posterior of an autoencoder, (N, 2 C, h, w). Every
visit draws z = (mean + std * normal - shift) * scale.

Source: latent diffusion (arXiv 2112.10752); SoFlow trains on such latents.
"""

import logging
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from soflow.config.schema import DataConfig
from soflow.data.dataset import Dataset, Encoder, Rows, as_labels
from soflow.data.npz import UNREADABLE, require_in_proportion
from soflow.data.registry import SOURCES
from soflow.data.shards import open_store
from soflow.data.store import AnyPlan, Plan
from soflow.errors import InputError, RunError, first_line, in_short

log = logging.getLogger(__name__)

HDF5 = (".h5", ".hdf5")
#: The autoencoder behind the latents of an HDF5 file, as in the paper.
SD_VAE = "stabilityai/sd-vae-ft-mse"
SD_SCALE, SD_FACTOR = 0.18215, 8
#: Rows that are checked, and the range of standard deviations that needs no remark.
LOOKED_AT, USUAL = 256, (0.3, 3.0)


class LatentsPlan(Plan):
    """What latents are made from.

    Attributes:
        source: The fingerprint of the images.
        unlabelled: Why there are no classes.
        encoder: The autoencoder.
        flip: Whether mirror images are encoded, too.
    """

    kind: Literal["latents"] = "latents"
    name: str
    split: str = ""
    source: str = ""
    class_names: tuple[str, ...]
    unlabelled: str
    encoder: Encoder
    flip: bool = False


@SOURCES.register("latents")
class Latents:
    """The latents that soflow encode made, or an HDF5 file. They are one split, train."""

    def splits(self, config: DataConfig) -> tuple[str, ...]:
        return ("train",)

    def load(self, config: DataConfig, split: str) -> Dataset:
        return load_latents(config.path, split)


def load_latents(path: str, split: str = "train") -> Dataset:
    """Loads latents.

    Args:
        path: A folder that soflow encode made, or an HDF5 file.
        split: Must be "train".

    Raises:
        InputError: If there are no latents.
        RunError: If they are damaged.
    """
    if not path:
        raise InputError(
            "data.source=latents needs data.path: a folder made by soflow encode, or an HDF5 file"
        )
    if split != "train":
        raise InputError(
            f"{path} has no split '{split}': latents have one split, train; "
            "encode other images into a folder of their own"
        )
    load = load_hdf5 if Path(path).suffix.lower() in HDF5 else load_encoded
    dataset = load(Path(path))
    which = torch.linspace(0, len(dataset) - 1, min(LOOKED_AT, len(dataset))).long()
    require_latents(dataset.rows[which], path)
    std = float(dataset.samples(which).std())
    if not USUAL[0] < std < USUAL[1]:
        assert dataset.encoder is not None
        log.info(
            f"{path}: latents have a standard deviation of {std:.2g} at the scale "
            f"{dataset.encoder.scale}; networks expect about 1: check the scale of the autoencoder"
        )
    return dataset


def require_latents(rows: Tensor, path: str) -> None:
    """Raises InputError if rows (n, 2 C, h, w) cannot be means and standard deviations."""
    if not rows.isfinite().all():
        raise InputError(f"{path} has latents that are not finite numbers: encode the images again")
    if (rows.chunk(2, dim=1)[1] < 0).any():
        raise InputError(
            f"{path} has standard deviations below 0: "
            "of (N, 2 C, h, w), the first C are means and the others standard deviations"
        )


def load_encoded(folder: Path) -> Dataset:
    """What soflow encode wrote."""
    plan_file, index_file = folder / "plan.json", folder / "index.json"
    if not index_file.is_file():
        if plan_file.is_file():
            raise InputError(f"data.path={folder} is incomplete: run the same soflow encode again")
        raise InputError(f"data.path={folder} holds no latents: make them with soflow encode")
    begun = AnyPlan.read(plan_file)
    kind = "rows without a plan.json" if begun is None else begun.model_dump().get("kind")
    if kind != "latents":
        raise InputError(
            f"data.path={folder} holds {in_short(kind)}, not latents: make them with soflow encode"
        )
    plan = LatentsPlan.read(plan_file)
    assert plan is not None
    rows, index = open_store(folder)
    if len(rows.shape) != 4 or rows.shape[1] % 2 or not rows.dtype.is_floating_point:
        raise RunError(f"{folder} is damaged: its rows {list(rows.shape)} are no latents")
    labels = as_labels(index.labels, plan.class_names, str(folder))
    names = plan.class_names if labels is not None else ()
    return Dataset(plan.name, "train", rows, labels, names, plan.encoder, plan.unlabelled)


def load_hdf5(file: Path) -> Dataset:
    """The reference implementation's file, see `hdf5_dataset`."""
    try:
        import h5py
    except ImportError:
        raise InputError(
            "HDF5 latents need the package h5py: pip install 'soflow[latents]'"
        ) from None
    if not file.is_file():
        raise InputError(f"data.path={file} does not exist")
    try:
        return hdf5_dataset(h5py.File(file, "r"), file)
    except InputError:
        raise
    except UNREADABLE as error:
        raise InputError(f"data.path={file} cannot be read as HDF5: {first_line(error)}") from None


def hdf5_dataset(opened: Any, file: Path) -> Dataset:
    """The data set in `latents` (N, 8, h, w), `labels` (N,), `amount` N and `latent_size` h.

    Raises:
        InputError: If the file holds something else; or one of UNREADABLE.
    """
    latents = own(opened, "latents")
    if latents is None or latents.ndim != 4 or latents.shape[1] % 2:
        raise InputError(
            f"{file} has no latents (N, 2 C, h, w), mean and standard deviation: "
            f"it holds {', '.join(opened) or 'nothing'}"
        )
    if latents.dtype.kind != "f" or min(latents.shape) < 1:
        raise InputError(
            f"{file} has latents {latents.dtype}{list(latents.shape)}: "
            "they must be floats, and no size may be 0"
        )
    for name, found in (("amount", len(latents)), ("latent_size", latents.shape[-1])):
        stated = number(opened, name)
        if stated is not None and stated != found:
            raise InputError(
                f"{file} says {name}={stated}, but its latents are {list(latents.shape)}: "
                "it is incomplete"
            )
    require_in_proportion(latents.nbytes, file.stat().st_size)
    labels = labels_of(opened, len(latents), file) if "labels" in opened else None
    encoder = Encoder(name=SD_VAE, scale=SD_SCALE, size=SD_FACTOR * latents.shape[-1])
    rows = hdf5_rows(file, latents)
    return Dataset(file.stem, "train", rows, labels, (), encoder, f"{file} has no labels")


def labels_of(opened: Any, count: int, file: Path) -> Tensor:
    """The class of each of `count` latents, (N,)."""
    labels = own(opened, "labels")
    if labels is None or labels.dtype.kind not in "iu":
        raise InputError(f"{file} has labels that are not integers: save them as integers (N,)")
    if labels.size != count:
        raise InputError(f"{file} has {labels.size} labels for {count} latents: it is damaged")
    classes = as_labels(labels[()].ravel().tolist(), (), str(file))
    assert classes is not None
    return classes


def own(opened: Any, name: str) -> Any:
    """The data set of this name, if its values are stored in the file itself; None without it.

    Raises:
        ValueError: If the values are elsewhere: a link, an external file or a virtual data set.
    """
    import h5py

    link = opened.get(name, getlink=True)
    if link is None:
        return None
    found = opened[name] if isinstance(link, h5py.HardLink) else None
    if found is None or (isinstance(found, h5py.Dataset) and (found.external or found.is_virtual)):
        raise ValueError(f"its {name} are stored elsewhere: copy them into the file")
    return found if isinstance(found, h5py.Dataset) else None


def number(opened: Any, name: str) -> int | None:
    """An integer kept as an attribute or as a data set of one element; None without it."""
    value = opened.attrs[name] if name in opened.attrs else own(opened, name)
    try:
        return None if value is None or np.size(value) != 1 else int(np.asarray(value).ravel()[0])
    except (TypeError, ValueError, IndexError):
        return None


def hdf5_rows(file: Path, latents: Any) -> Rows:
    """The rows, memory-mapped if they are contiguous and in native byte order, else by h5py."""
    offset = latents.id.get_offset()
    if offset is None or not latents.dtype.isnative:
        return Hdf5Rows(latents)
    # torch wants writable memory, hence copy on write ("c").
    return torch.from_numpy(np.memmap(file, latents.dtype, "c", offset, latents.shape))


class Hdf5Rows:
    """Rows of a data set that is compressed, chunked or in another byte order."""

    def __init__(self, latents: Any) -> None:
        self.latents = latents
        self.shape = tuple(latents.shape)
        self.native = latents.dtype.newbyteorder("=")
        self.dtype = torch.from_numpy(np.empty(0, self.native)).dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, which: Tensor) -> Tensor:
        """The rows at these indices (n,), each read once, in the order of the file."""
        indices, places = np.unique(which.numpy(), return_inverse=True)
        try:
            rows = self.latents[indices][places]
        except UNREADABLE as error:
            name = self.latents.file.filename
            raise RunError(f"{name} is damaged: {first_line(error)}") from None
        return torch.from_numpy(rows.astype(self.native, copy=False))
