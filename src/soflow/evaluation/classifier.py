"""A small classifier of a labelled data set, trained once on its training split.

Its last hidden layer gives features.
"""

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional

from soflow.data.batches import Batches
from soflow.data.dataset import Dataset
from soflow.errors import InputError
from soflow.system.atomic import replace_file
from soflow.system.cache import cache_folder
from soflow.system.progress import track

log = logging.getLogger(__name__)


class Classifier(nn.Module, ABC):
    """Maps images (B, C, H, W) in [-1, 1] to features (B, d), and these to logits (B, classes)."""

    @abstractmethod
    def logits(self, features: Tensor) -> Tensor: ...


Trained = TypeVar("Trained", bound=Classifier)

#: Changes whenever the classifier or its training does, so that figures are never mixed.
VERSION = 1
STEPS, BATCH = 800, 128
#: Images looked at together.
CHUNK = 1000


class ImageClassifier(Classifier):
    """Three convolutions and a hidden layer of 64; for square images of 8 pixels or more."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.body = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 128, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(128 * -(-height // 4) * -(-width // 4), 64),
            nn.ReLU(),
        )
        self.head = nn.Linear(64, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, 64) of images (B, C, H, W) in [-1, 1]."""
        return torch.cat([self.body(part) for part in images.split(CHUNK)])

    def logits(self, features: Tensor) -> Tensor:
        """Class logits (B, classes) from features (B, 64)."""
        return self.head(features)


def train_classifier(
    dataset: Dataset, on_step: Callable[[int], None] = lambda done: None, seed: int = 0
) -> ImageClassifier:
    """Trains a classifier on a training split; seeded, a minute or two on a CPU.

    Raises:
        InputError: If the data have no classes.
    """
    if dataset.labels is None or len(dataset.shape) != 3 or min(dataset.shape[1:]) < 8:
        raise InputError(
            "the features 'classifier' need labelled images of 8 pixels or more: "
            "use evaluate.features=coordinates"
        )
    return fit(
        lambda: ImageClassifier(dataset.shape, dataset.num_classes),
        Batches(dataset, BATCH, seed),
        STEPS,
        3e-3,
        seed,
        on_step,
    )


def fit(
    make: Callable[[], Trained],
    batches: Batches,
    steps: int,
    max_lr: float,
    seed: int,
    on_step: Callable[[int], None] = lambda done: None,
    label_smoothing: float = 0.0,
) -> Trained:
    """A classifier, made and trained from one seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = make()
        optimizer = torch.optim.AdamW(classifier.parameters(), lr=2e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=max_lr, total_steps=steps)
        for step in range(steps):
            batch = batches.microbatch(step)
            assert batch.labels is not None
            features = functional.dropout(classifier(batch.data), 0.2)
            loss = functional.cross_entropy(
                classifier.logits(features), batch.labels, label_smoothing=label_smoothing
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            on_step(step + 1)
    return classifier.eval()


def cache_file(dataset: Dataset, folder: Path) -> Path:
    """Where the classifier of these very data is kept."""
    digest = hashlib.blake2b(digest_size=8)
    for part in torch.arange(len(dataset)).split(CHUNK):
        digest.update(dataset.rows[part].numpy().tobytes())
    if dataset.labels is not None:
        digest.update(dataset.labels.numpy().tobytes())
    return folder / f"classifier-{VERSION}-{digest.hexdigest()}.safetensors"


def load_classifier(dataset: Dataset) -> ImageClassifier:
    """The classifier of a training split, from the cache or trained now and cached."""

    def train() -> ImageClassifier:
        log.info(
            f"training a classifier of {dataset.name} ({len(dataset):,} images), a minute or two; "
            f"it is kept in {cache_folder()}"
        )
        with track("training the classifier", STEPS) as task:
            return train_classifier(dataset, task.update)

    if dataset.labels is None or len(dataset.shape) != 3:
        return train()  # which says what is wrong
    classifier = ImageClassifier(dataset.shape, dataset.num_classes)
    return cached(classifier, cache_file(dataset, cache_folder()), train)


def cached(classifier: Trained, file: Path, train: Callable[[], Trained]) -> Trained:
    """The classifier with the weights in the file, or else trained now and written there."""
    try:
        classifier.load_state_dict(load_file(file))
        return classifier.eval()
    except (OSError, RuntimeError, SafetensorError):  # missing or damaged
        classifier = train()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, save(classifier.state_dict()))
    except OSError:
        return classifier  # a cache that cannot be written only costs time
    return classifier
