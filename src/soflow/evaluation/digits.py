"""The classifier for the bundled digits. It trains once, in seconds, with a fixed seed."""

import logging
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional

from soflow.data import sources
from soflow.data.dataset import Dataset
from soflow.evaluation.classifier import Classifier, cached, fit
from soflow.system.cache import cache_folder

log = logging.getLogger(__name__)

#: Change this whenever the classifier, its training or its file format changes. Old cache files are
#: then ignored.
DIGITS_VERSION = "digits-classifier-3"
DIGITS_STEPS = 500


class DigitClassifier(Classifier):
    """A small convolutional classifier of 8 x 8 digits. The last hidden layer has width 32."""

    def __init__(self) -> None:
        body = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * 4 * 4, 32),
            nn.ReLU(),
        )
        super().__init__(body, 32, 10)


def with_shifts(dataset: Dataset) -> Dataset:
    """Returns nine copies of each image: the original and all shifts by one pixel."""
    assert dataset.labels is not None
    padded = functional.pad(dataset.samples(), (1, 1, 1, 1), value=-1.0)
    moved = [padded[:, :, y : y + 8, x : x + 8] for y in range(3) for x in range(3)]
    return replace(dataset, rows=torch.cat(moved), labels=dataset.labels.repeat(9))


def train_digit_classifier() -> DigitClassifier:
    """Trains the classifier on the training split."""
    data = with_shifts(sources.digits("train"))
    return fit(DigitClassifier, data, DIGITS_STEPS, max_lr=4e-3, label_smoothing=0.05)


def load_digit_classifier() -> DigitClassifier:
    """Loads the digit classifier from the cache, or trains and caches it."""

    def train() -> DigitClassifier:
        log.info("training the digit classifier: only once, takes about ten seconds")
        return train_digit_classifier()

    return cached(DigitClassifier(), cache_folder() / f"{DIGITS_VERSION}.safetensors", train)
