"""Cached latents: a folder written by `soflow encode`, or an HDF5 file of the reference code.

Rows are the mean and standard deviation of an autoencoder's posterior, (N, 2 C, h, w). Training
draws z = (mean + std * normal - shift) * scale each time it reads a row.

Source: latent diffusion (arXiv 2112.10752), as used by SoFlow.
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
from soflow.data.splits import named_split
from soflow.data.store import AnyPlan, Plan
from soflow.errors import InputError, RunError, first_line, in_short
from soflow.system.packages import optional_package

log = logging.getLogger(__name__)

HDF5 = (".h5", ".hdf5")
#: The autoencoder of the latents in an HDF5 file, as in the paper.
SD_VAE = "stabilityai/sd-vae-ft-mse"
SD_SCALE, SD_FACTOR = 0.18215, 8
#: The number of rows that are checked, and the range of standard deviations without a warning.
LOOKED_AT, USUAL = 256, (0.3, 3.0)


class LatentsPlan(Plan):
    """The plan of a folder of latents.

    `source` is the fingerprint of the images. `unlabelled` is the reason why there are no classes.
    `flip` says whether flipped images are also encoded.
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
    """Latents of `soflow encode`, or an HDF5 file. They have one split, train."""

    def splits(self, config: DataConfig) -> tuple[str, ...]:
        return ("train",)

    def load(self, config: DataConfig, split: str) -> Dataset:
        return load_latents(config.path, split)


def load_latents(path: str, split: str = "train") -> Dataset:
    """Loads latents.

    Args:
        path: A folder written by `soflow encode`, or an HDF5 file.
        split: The split, which must be "train".

    Raises:
        InputError: If the path does not contain latents.
        RunError: If the latents are damaged.
    """
    if not path:
        raise InputError(
            "data.source=latents needs data.path: a folder written by soflow encode, or HDF5"
        )
    named_split(split, ("train",), f"{path} (encode other splits into separate folders)")
    load = load_hdf5 if Path(path).suffix.lower() in HDF5 else load_encoded
    dataset = load(Path(path))
    which = torch.linspace(0, len(dataset) - 1, min(LOOKED_AT, len(dataset))).long()
    rows = dataset.rows[which]  # (n, 2 C, h, w)
    if not rows.isfinite().all():
        raise InputError(f"{path} has non-finite latents: encode the images again")
    if (rows.chunk(2, dim=1)[1] < 0).any():
        layout = "rows (2 C, h, w) must be C means followed by C standard deviations"
        raise InputError(f"{path} has negative standard deviations: {layout}")
    std = float(dataset.samples(which).std())
    if not USUAL[0] < std < USUAL[1]:
        assert dataset.encoder is not None
        log.info(
            f"{path}: with the scale {dataset.encoder.scale}, latents have a standard deviation of "
            f"{std:.2g}, but networks expect about 1: check the scale of the autoencoder"
        )
    return dataset


def load_encoded(folder: Path) -> Dataset:
    """Loads a folder written by `soflow encode`."""
    plan_file = folder / "plan.json"
    if plan_file.is_file() and not (folder / "index.json").is_file():
        raise InputError(
            f"data.path={folder} is incomplete: run the same soflow encode command again"
        )
    started = AnyPlan.read(plan_file)
    plan = (
        LatentsPlan.read(plan_file) if started is not None and started.kind == "latents" else None
    )
    if plan is None:
        held = "no plan.json" if started is None else f"{in_short(started.kind)}, not latents"
        raise InputError(f"data.path={folder} has {held}: make latents with soflow encode")
    rows, index = open_store(folder)
    if len(rows.shape) != 4 or rows.shape[1] % 2 or not rows.dtype.is_floating_point:
        raise RunError(
            f"{folder} is damaged: its rows {list(rows.shape)} are not latents, encode the images "
            "again"
        )
    labels = as_labels(index.labels, plan.class_names, str(folder))
    names = plan.class_names if labels is not None else ()
    return Dataset(plan.name, "train", rows, labels, names, plan.encoder, plan.unlabelled)


def load_hdf5(file: Path) -> Dataset:
    """Loads an HDF5 file of the reference code: see `hdf5_dataset`."""
    h5py = optional_package("h5py", "HDF5 latents need", "latents")
    if not file.is_file():
        raise InputError(f"data.path={file} does not exist: check the path")
    try:
        return hdf5_dataset(h5py.File(file, "r"), file)
    except InputError:
        raise
    except UNREADABLE as error:
        raise InputError(f"data.path={file} cannot be read as HDF5: {first_line(error)}") from None


def hdf5_dataset(opened: Any, file: Path) -> Dataset:
    """The dataset in an opened HDF5 file.

    The file has `latents` (N, 2 C, h, w), and optionally `labels` (N,), `amount` (N) and
    `latent_size` (h). Raises InputError if it has other content, or one of UNREADABLE.
    """
    latents = own(opened, "latents")
    if latents is None or latents.ndim != 4 or latents.shape[1] % 2:
        held = ", ".join(opened) or "nothing"
        raise InputError(
            f"{file} has no array 'latents' (N, 2 C, h, w) of means and standard deviations: it "
            f"has {held}"
        )
    shape = list(latents.shape)
    if latents.dtype.kind != "f" or min(shape) < 1:
        what = f"latents {latents.dtype}{shape}"
        raise InputError(f"{file} has {what}: latents must be floats, with all sizes at least 1")
    for name, found in (("amount", shape[0]), ("latent_size", shape[-1])):
        stated = number(opened, name)
        if stated not in (None, found):
            what = f"{name}={stated}, but its latents are {shape}"
            raise InputError(f"{file} is incomplete: it states {what}")
    require_in_proportion(latents.nbytes, file.stat().st_size)
    labels = labels_of(opened, len(latents), file) if "labels" in opened else None
    encoder = Encoder(name=SD_VAE, scale=SD_SCALE, size=SD_FACTOR * shape[-1])
    rows: Rows = Hdf5Rows(latents)
    offset = latents.id.get_offset()
    if offset is not None and latents.dtype.isnative:  # contiguous values can be memory-mapped
        # torch expects writable memory, hence copy-on-write ("c").
        rows = torch.from_numpy(np.memmap(file, latents.dtype, "c", offset, latents.shape))
    return Dataset(file.stem, "train", rows, labels, (), encoder, f"{file} has no labels")


def labels_of(opened: Any, count: int, file: Path) -> Tensor | None:
    """The classes (N,) of the latents, N = `count`."""
    labels = own(opened, "labels")
    if labels is None or labels.dtype.kind not in "iu":
        raise InputError(f"{file} has labels that are not integers: save them as integers (N,)")
    if labels.size != count:
        raise InputError(f"{file} has {labels.size} labels for {count} latents: it is damaged")
    return as_labels(labels[()].ravel().tolist(), (), str(file))


def own(opened: Any, name: str) -> Any:
    """The HDF5 dataset of this name, or None. Raises ValueError if it is stored in another file."""
    import h5py

    link = opened.get(name, getlink=True)
    if link is None:
        return None
    found = opened[name] if isinstance(link, h5py.HardLink) else None
    held = found if isinstance(found, h5py.Dataset) else None
    if found is None or (held is not None and (held.external or held.is_virtual)):
        raise ValueError(f"its {name} are stored in another file: copy them into this one")
    return held


def number(opened: Any, name: str) -> int | None:
    """An integer stored as an attribute or as an HDF5 dataset with one element; None without it."""
    value = opened.attrs[name] if name in opened.attrs else own(opened, name)
    try:
        return None if value is None or np.size(value) != 1 else int(np.asarray(value).ravel()[0])
    except (TypeError, ValueError, IndexError):
        return None


class Hdf5Rows:
    """Rows of an HDF5 dataset that is compressed, chunked or in another byte order."""

    def __init__(self, latents: Any) -> None:
        self.latents = latents
        self.shape = tuple(latents.shape)
        self.native = latents.dtype.newbyteorder("=")
        self.dtype = torch.from_numpy(np.empty(0, self.native)).dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, which: Tensor) -> Tensor:
        """The rows at these indices (n,). Each is read only once, in the order of the file."""
        indices, places = np.unique(which.numpy(), return_inverse=True)
        try:
            rows = self.latents[indices][places]
        except UNREADABLE as error:
            name = self.latents.file.filename
            raise RunError(f"{name} is damaged: {first_line(error)}") from None
        return torch.from_numpy(rows.astype(self.native, copy=False))
