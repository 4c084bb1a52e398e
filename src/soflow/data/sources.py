"""Where data come from: every source behind one function, `load`.

Bundled are scikit-learn's 8x8 digits and two-dimensional toy sets as vectors.
"""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from soflow.config.schema import DataConfig
from soflow.data.arrays import ArrayImages, splits_of_file
from soflow.data.cache import cached
from soflow.data.dataset import Dataset
from soflow.data.folder import FolderImages, splits_of
from soflow.data.huggingface import BUILDERS, HuggingFaceImages, open_splits
from soflow.data.images import ENDINGS, MODES, Images
from soflow.data.latents import HDF5, load_latents
from soflow.errors import InputError

#: Points in a toy set's training split; its test split has a quarter as many.
TOY_POINTS = 65_536


def digits(split: str) -> Dataset:
    """The 1,797 handwritten 8x8 digits bundled with scikit-learn: 80 % to train on, 20 % held out, class by class."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    source = load_digits()
    rows = train_test_split(
        np.arange(len(source.target)), test_size=0.2, stratify=source.target, random_state=0
    )
    chosen = rows[0 if split == "train" else 1]
    images = torch.from_numpy(source.images[chosen]).float()[:, None]  # (N, 1, 8, 8), 0 .. 16
    labels = torch.from_numpy(source.target[chosen]).long()
    return Dataset(
        "digits", split, images / 8 - 1, labels, tuple(str(name) for name in source.target_names)
    )


def toy(
    name: str, draw: Callable[[int, np.random.Generator], np.ndarray]
) -> Callable[[str], Dataset]:
    """A source of seeded points in the plane, without labels."""

    def load(split: str) -> Dataset:
        count = TOY_POINTS if split == "train" else TOY_POINTS // 4
        points = draw(count, np.random.default_rng(0 if split == "train" else 1))
        return Dataset(name, split, torch.from_numpy(points).float(), labels=None)

    return load


def moons(count: int, random: np.random.Generator) -> np.ndarray:
    """Two interleaving half circles, centred, of spread 1 or so."""
    from sklearn.datasets import make_moons

    points, _ = make_moons(count, noise=0.06, random_state=int(random.integers(2**31)))
    return (points - [0.5, 0.25]) * 1.2


def checkerboard(count: int, random: np.random.Generator) -> np.ndarray:
    """Uniform on the dark squares of a 4 x 4 board over [-2, 2]^2."""
    row = random.integers(0, 4, count)
    column = 2 * random.integers(0, 2, count) + row % 2
    return np.stack([column, row], axis=1) + random.random((count, 2)) - 2


def eight_gaussians(count: int, random: np.random.Generator) -> np.ndarray:
    """Eight narrow Gaussians (std 0.1) on a circle of radius 2."""
    angle = 2 * math.pi / 8 * random.integers(0, 8, count)
    centres = 2 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return centres + 0.1 * random.standard_normal((count, 2))


SOURCES: dict[str, Callable[[str], Dataset]] = {
    "digits": digits,
    "moons": toy("moons", moons),
    "checkerboard": toy("checkerboard", checkerboard),
    "eight_gaussians": toy("eight_gaussians", eight_gaussians),
}
SPLITS = ("train", "test")
#: Sources whose data lie at `data.path`.
IMAGES = ("folder", "huggingface", "arrays")
KINDS = (*SOURCES, *IMAGES, "latents")


def load(config: DataConfig, split: str = "train") -> Dataset:
    """The data that a configuration names, with their classes whether or not these are trained with.

    Raises InputError for data that are not there
    or cannot be used.
    """
    if config.source in SOURCES:
        if split not in SPLITS:
            raise InputError(
                f"{config.source} has no split '{split}': its splits are {' and '.join(SPLITS)}"
            )
        return SOURCES[config.source](split)
    if config.source == "latents":
        return load_latents(config.path, split)
    channels, size = channels_and_size(config.shape)
    return cached(open_images(config, split), size, channels)


def splits(config: DataConfig) -> tuple[str, ...]:
    """The splits that a source has."""
    if config.source in SOURCES:
        return SPLITS
    if config.source == "folder":
        return tuple(splits_of(Path(config.path)))
    if config.source == "arrays":
        return splits_of_file(config.path)
    return tuple(open_splits(config.path)) if config.source == "huggingface" else ("train",)


def open_images(config: DataConfig, split: str) -> Images:
    """The images that a configuration names, not decoded yet."""
    if config.source in KINDS and config.source not in IMAGES:
        raise InputError(
            f"data.source is '{config.source}', which holds no image files: {', '.join(IMAGES)} do"
        )
    if config.source not in IMAGES:
        near = (
            "; ImageNet is trained on as latents: see soflow encode"
            if "imagenet" in config.source
            else ""
        )
        raise InputError(
            f"data.source is '{config.source}': it must be one of {', '.join(KINDS)}{near}"
        )
    kind = kind_of(config.path)
    if config.path and kind != config.source and Path(config.path).exists():
        raise InputError(f"data.path={config.path} is {LOOKS_LIKE[kind]}: use data.source={kind}")
    if config.source == "folder":
        return FolderImages(config.path, split)
    if config.source == "arrays":
        return ArrayImages(config.path, split, config.image_column, config.label_column)
    return HuggingFaceImages(config.path, split, config.image_column, config.label_column)


def channels_and_size(shape: tuple[int, ...]) -> tuple[int, int]:
    """C and H of [C, H, H]. Raises InputError for a shape that images cannot have."""
    if len(shape) != 3 or shape[0] not in MODES or shape[1] != shape[2]:
        raise InputError(
            f"data.shape is {list(shape)}: images are [1, H, H] (grey) or [3, H, H] (RGB); or set data.size=H"
        )
    return shape[0], shape[1]


FILES = (".npz", ".npy", *BUILDERS, *HDF5)
LOOKS_LIKE = {
    "folder": "a folder of images",
    "huggingface": "parquet or arrow",
    "arrays": "a file of arrays",
    "latents": "latents",
}


def kind_of(path: str) -> str:
    """Which source reads what lies at a path; a path where nothing lies is taken for a name on the Hub."""
    place, ending = Path(path), Path(path).suffix.lower()
    if ending in (".npz", ".npy"):
        return "arrays"
    if ending in HDF5:
        return "latents"
    if ending in BUILDERS or not place.is_dir():
        return "huggingface"
    if (place / "plan.json").is_file():
        return "latents"
    if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
        return "huggingface"
    kinds = {**dict.fromkeys(ENDINGS, "folder"), **dict.fromkeys(BUILDERS, "huggingface")}
    found = (
        kinds[file.suffix.lower()] for file in place.rglob("*") if file.suffix.lower() in kinds
    )
    return next(
        found, "folder"
    )  # by the first that is met: a folder of a million images is not looked through


def find(text: str, like: DataConfig) -> tuple[DataConfig, str]:
    """SOURCE[:SPLIT] of a command line as a configuration and a split, "" where none is named.

    SOURCE is a bundled set, a path (folder, .npz, .npy, parquet, latents) or a name on the Hub. like: says the shape and the
    columns.
    """
    source, split = text, ""
    head, colon, tail = text.rpartition(":")
    if colon and head and "/" not in tail and not Path(text).exists():
        source, split = head, tail
    if source in SOURCES:
        return like.model_copy(update={"source": source, "path": ""}), split
    path = str(Path(source).expanduser()) if source.startswith("~") else source
    local = (
        source.startswith((".", "/", "~"))
        or source.count("/") > 1
        or Path(source).suffix.lower() in FILES
    )
    if local and not Path(path).exists():
        raise InputError(f"there is no {source}")
    return like.model_copy(update={"source": kind_of(path), "path": path}), split
