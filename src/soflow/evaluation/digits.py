"""The classifier of the bundled digits: small, trained once in some seconds, seeded."""

import logging
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from soflow.data import sources
from soflow.data.batches import Batches
from soflow.data.dataset import Dataset
from soflow.evaluation.classifier import Classifier, cached, fit
from soflow.system.cache import cache_folder

log = logging.getLogger(__name__)

#: Changes whenever the classifier or its training does, so that figures are never mixed.
DIGITS_VERSION = "digits-classifier-2"
DIGITS_STEPS = 500


class DigitClassifier(Classifier):
    """A small convolutional classifier of 8x8 digits, with a last hidden layer of 32."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.conv3 = nn.Conv2d(64, 64, 3, padding=1)
        self.hidden = nn.Linear(64 * 4 * 4, 32)
        self.head = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, 32) of images (B, 1, 8, 8) in [-1, 1]."""
        x = functional.relu(self.conv1(images))
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)
        x = functional.relu(self.conv3(x))
        return functional.relu(self.hidden(x.flatten(1)))

    def logits(self, features: Tensor) -> Tensor:
        """Class logits (B, 10) from features (B, 32)."""
        return self.head(features)


def with_shifts(dataset: Dataset) -> Dataset:
    """Every image nine times: as it is and moved by one pixel in each direction."""
    assert dataset.labels is not None
    padded = functional.pad(dataset.samples(), (1, 1, 1, 1), value=-1.0)
    moved = [padded[:, :, y : y + 8, x : x + 8] for y in range(3) for x in range(3)]
    return replace(dataset, rows=torch.cat(moved), labels=dataset.labels.repeat(9))


def train_digit_classifier(seed: int = 0) -> DigitClassifier:
    """Trains the classifier on the training split; seeded, some seconds."""
    batches = Batches(with_shifts(sources.digits("train")), batch_size=128, seed=seed)
    return fit(DigitClassifier, batches, DIGITS_STEPS, 4e-3, seed, label_smoothing=0.05)


def load_digit_classifier() -> DigitClassifier:
    """The digit classifier, from the cache or trained now and cached."""

    def train() -> DigitClassifier:
        log.info("training the digit classifier, once, about ten seconds")
        return train_digit_classifier()

    return cached(DigitClassifier(), cache_folder() / f"{DIGITS_VERSION}.safetensors", train)
