"""Bundled data: the 8x8 digits of scikit-learn, and seeded 2D points."""

import math
from abc import ABC, abstractmethod

import numpy as np
import torch

from soflow.config.schema import DataConfig
from soflow.data.dataset import Dataset
from soflow.data.registry import SOURCES
from soflow.data.splits import named_split

SPLITS = ("train", "test")
#: Points in the training split of a 2D dataset. The test split has a quarter of this number.
TOY_POINTS = 65_536


def digits(split: str) -> Dataset:
    """The 1,797 handwritten 8x8 digits of scikit-learn.

    Args:
        split: "train" (80 % of each class) or "test" (the other 20 %).
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    source = load_digits()
    indices = np.arange(len(source.target))
    train, test = train_test_split(indices, test_size=0.2, stratify=source.target, random_state=0)
    chosen = train if split == "train" else test
    images = torch.from_numpy(source.images[chosen]).float()[:, None]  # (N, 1, 8, 8), 0 .. 16
    labels = torch.from_numpy(source.target[chosen]).long()
    names = tuple(map(str, source.target_names))
    return Dataset("digits", split, images / 8 - 1, labels, names)


class Bundled(ABC):
    """A source with the splits train and test."""

    def splits(self, config: DataConfig) -> tuple[str, ...]:
        return SPLITS

    def load(self, config: DataConfig, split: str) -> Dataset:
        return self.make(config.source, named_split(split, SPLITS, config.source))

    @abstractmethod
    def make(self, name: str, split: str) -> Dataset: ...


@SOURCES.register("digits")
class Digits(Bundled):
    """See `digits`."""

    def make(self, name: str, split: str) -> Dataset:
        return digits(split)


class Toy(Bundled):
    """Seeded 2D points without labels."""

    def make(self, name: str, split: str) -> Dataset:
        count = TOY_POINTS if split == "train" else TOY_POINTS // 4
        points = self.draw(count, np.random.default_rng(0 if split == "train" else 1))
        return Dataset(name, split, torch.from_numpy(points).float(), labels=None)

    @abstractmethod
    def draw(self, count: int, random: np.random.Generator) -> np.ndarray:
        """Draws points (count, 2)."""


@SOURCES.register("moons")
class Moons(Toy):
    """Two interleaving half circles, centered, with a standard deviation of about 1."""

    def draw(self, count: int, random: np.random.Generator) -> np.ndarray:
        from sklearn.datasets import make_moons

        points, _ = make_moons(count, noise=0.06, random_state=int(random.integers(2**31)))
        return (points - [0.5, 0.25]) * 1.2


@SOURCES.register("checkerboard")
class Checkerboard(Toy):
    """Points distributed uniformly on the dark squares of a 4 x 4 checkerboard over [-2, 2]^2."""

    def draw(self, count: int, random: np.random.Generator) -> np.ndarray:
        row = random.integers(0, 4, count)
        column = 2 * random.integers(0, 2, count) + row % 2
        return np.stack([column, row], axis=1) + random.random((count, 2)) - 2


@SOURCES.register("eight_gaussians")
class EightGaussians(Toy):
    """Eight narrow Gaussians (std 0.1) on a circle of radius 2."""

    def draw(self, count: int, random: np.random.Generator) -> np.ndarray:
        angle = 2 * math.pi / 8 * random.integers(0, 8, count)
        centers = 2 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        return centers + 0.1 * random.standard_normal((count, 2))
