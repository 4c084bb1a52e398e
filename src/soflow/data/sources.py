"""Data sets that need no download: scikit-learn's 8x8 digits, and two-dimensional toy sets as vectors."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from soflow.errors import InputError

#: Points in a toy set's training split; its test split has a quarter as many.
TOY_POINTS = 65_536


@dataclass(frozen=True)
class Dataset:
    """Samples as one float32 tensor (N, ...), images in [-1, 1]; labels (N,) or None."""

    name: str
    split: str
    data: Tensor
    labels: Tensor | None
    class_names: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """One sample's shape: (C, H, W) for images, (D,) for vectors."""
        return tuple(self.data.shape[1:])

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.data)


def digits(split: str) -> Dataset:
    """The 1,797 handwritten 8x8 digits bundled with scikit-learn: 80 % to train on, 20 % held out, class by class."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    source = load_digits()
    rows = train_test_split(np.arange(len(source.target)), test_size=0.2, stratify=source.target, random_state=0)
    chosen = rows[0 if split == "train" else 1]
    images = torch.from_numpy(source.images[chosen]).float()[:, None]  # (N, 1, 8, 8), 0 .. 16
    labels = torch.from_numpy(source.target[chosen]).long()
    return Dataset("digits", split, images / 8 - 1, labels, tuple(str(name) for name in source.target_names))


def toy(name: str, draw: Callable[[int, np.random.Generator], np.ndarray]) -> Callable[[str], Dataset]:
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


def load(name: str, split: str = "train", path: str = "", channels: int = 0) -> Dataset:
    """The dataset of that name; path, channels: of what `huggingface` reads. Raises InputError for a name or split that
    there is none of.
    """
    if name == "huggingface":
        from soflow.data.huggingface import load_images

        return load_images(path, split, channels)
    if name not in SOURCES:
        raise InputError(f"data source '{name}' cannot be read: this version reads {', '.join(SOURCES)} and huggingface")
    if split not in SPLITS:
        raise InputError(f"{name} has no split '{split}': its splits are {' and '.join(SPLITS)}")
    return SOURCES[name](split)
