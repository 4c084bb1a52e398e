"""Small image classifiers trained on labeled data. Their last hidden layer gives the features."""

import hashlib
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
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
from soflow.system.isolation import random_state_kept
from soflow.system.progress import track

log = logging.getLogger(__name__)

#: Increase this whenever the classifier or its training changes. Old cache files are then ignored.
VERSION = 1
STEPS, BATCH = 800, 128
#: A classifier trained on fewer images overfits.
FEW = 1000
#: Images per forward pass.
CHUNK = 1000


class Classifier(nn.Module):
    """Maps images (B, C, H, W) in [-1, 1] to features (B, d), and features to class logits."""

    def __init__(self, body: nn.Sequential, dimensions: int, classes: int) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(dimensions, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, d) of images (B, C, H, W) in [-1, 1]."""
        return torch.cat([self.body(part) for part in images.split(CHUNK)])

    def logits(self, features: Tensor) -> Tensor:
        """Class logits (B, classes) from features (B, d)."""
        return self.head(features)


class ImageClassifier(Classifier):
    """Three convolutions and a hidden layer of width 64, for images of at least 8 x 8 pixels."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        channels, height, width = shape
        body = nn.Sequential(
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
        super().__init__(body, 64, classes)


Trained = TypeVar("Trained", bound=Classifier)


def load_classifier(dataset: Dataset) -> ImageClassifier:
    """Loads the classifier of a training split from the cache, or trains and caches it.

    Raises:
        InputError: If the dataset has no labels, or no images of at least 8 x 8 pixels.
    """
    if dataset.labels is None or len(dataset.shape) != 3 or min(dataset.shape[1:]) < 8:
        raise InputError(
            "the features 'classifier' need labeled images of at least 8 x 8 pixels: "
            "use evaluate.features=coordinates"
        )
    if int(dataset.labels.min()) < 0:
        dataset = dataset.part(dataset.labels >= 0, dataset.split)

    make = partial(ImageClassifier, dataset.shape, dataset.num_classes)
    file = cache_file(dataset, cache_folder())

    def train() -> ImageClassifier:
        log.info(f"training a classifier for {dataset.name}: {STEPS} steps, cached as {file}")
        if len(dataset) < FEW:
            log.warning(
                f"the features 'classifier' will overfit on only {len(dataset):,} training images: "
                "use evaluate.features=coordinates or a TorchScript file"
            )
        with track("training the classifier", STEPS) as task:
            return fit(make, dataset, STEPS, max_lr=3e-3, on_step=task.update)

    return cached(make(), file, train)


def fit(
    make: Callable[[], Trained],
    dataset: Dataset,
    steps: int,
    max_lr: float,
    label_smoothing: float = 0.0,
    on_step: Callable[[int], None] = lambda done: None,
) -> Trained:
    """Creates and trains a classifier. The seed is fixed: the same data give the same weights."""
    batches = Batches(dataset, BATCH, seed=0)
    with random_state_kept():
        torch.manual_seed(0)
        classifier = make()
        optimizer = torch.optim.AdamW(classifier.parameters(), lr=2e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=max_lr, total_steps=steps)
        for step in range(steps):
            batch = batches.microbatch(step)
            assert batch.labels is not None
            logits = classifier.logits(functional.dropout(classifier(batch.data), 0.2))
            loss = functional.cross_entropy(logits, batch.labels, label_smoothing=label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            on_step(step + 1)
    return classifier.eval()


def cache_file(dataset: Dataset, folder: Path) -> Path:
    """The cache file of the classifier for this dataset, named by a fingerprint of the data."""
    digest = hashlib.blake2b(digest_size=8)
    for part in torch.arange(len(dataset)).split(CHUNK):
        digest.update(dataset.rows[part].numpy().tobytes())
    if dataset.labels is not None:
        digest.update(dataset.labels.numpy().tobytes())
    return folder / f"classifier-{VERSION}-{digest.hexdigest()}.safetensors"


def cached(classifier: Trained, file: Path, train: Callable[[], Trained]) -> Trained:
    """Loads a classifier's weights from a cache file, or trains it and writes the file."""
    try:
        classifier.load_state_dict(load_file(file))
        return classifier.eval()
    except (OSError, RuntimeError, SafetensorError):  # missing or damaged
        classifier = train()
    with suppress(OSError):  # if the cache cannot be written, the next call trains again
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, save(classifier.state_dict()))
    return classifier
