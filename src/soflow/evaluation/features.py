"""What samples are compared by: the features of a small classifier, or the coordinates themselves."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from soflow.data import sources
from soflow.data.batches import Batches
from soflow.data.dataset import Dataset
from soflow.errors import InputError
from soflow.evaluation.classifier import ImageClassifier, cache_file, train_classifier
from soflow.evaluation.metrics import recognized
from soflow.files import cache_folder

#: Changes whenever the classifier or its training does, so that figures of different ones are never mixed.
DIGITS_VERSION = "digits-classifier-2"
DIGITS_STEPS = 500


@runtime_checkable
class Features(Protocol):
    """Features (B, d) of samples (B, ...), and class logits where the features come from a classifier."""

    name: str

    def __call__(self, samples: Tensor) -> Tensor: ...


@runtime_checkable
class Classifier(Features, Protocol):
    """Features that come from a classifier."""

    def logits(self, features: Tensor) -> Tensor: ...


class Coordinates:
    """The samples themselves, flattened."""

    name = "coordinates"

    def __call__(self, samples: Tensor) -> Tensor:
        return samples.flatten(1)


class DigitClassifier(nn.Module):
    """A small convolutional classifier of 8x8 digits; its last hidden layer, 32 wide, gives the features."""

    name = "digits"

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
    """Every image nine times: as it is and moved by a pixel in each direction, since digits are not always centred."""
    assert dataset.labels is not None
    padded = functional.pad(dataset.samples(), (1, 1, 1, 1), value=-1.0)
    moved = [padded[:, :, y : y + 8, x : x + 8] for y in range(3) for x in range(3)]
    return replace(dataset, rows=torch.cat(moved), labels=dataset.labels.repeat(9))


def train_digit_classifier(seed: int = 0) -> DigitClassifier:
    """Trains the classifier on the training split; seeded, some seconds."""
    batches = Batches(with_shifts(sources.digits("train")), batch_size=128, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = DigitClassifier()
        optimizer = torch.optim.AdamW(classifier.parameters(), lr=2e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=DIGITS_STEPS)
        for step in range(DIGITS_STEPS):
            batch = batches.share(step)
            assert batch.labels is not None
            features = functional.dropout(classifier(batch.data), 0.2)
            loss = functional.cross_entropy(classifier.logits(features), batch.labels, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return classifier.eval()


@torch.no_grad()
def accuracy(classifier: DigitClassifier, split: str = "test") -> float:
    """Share of the held-out real digits that the classifier recognizes."""
    dataset = sources.digits(split)
    assert dataset.labels is not None
    return recognized(classifier.logits(classifier(dataset.samples())), dataset.labels)


Note = Callable[[str], None]
Trained = TypeVar("Trained", DigitClassifier, ImageClassifier)


def load_digit_classifier(note: Note = lambda text: None) -> DigitClassifier:
    """The digit classifier, from the cache or trained now and put there; `note` hears why that takes a while."""

    def train() -> DigitClassifier:
        note("training the digit classifier, once, about ten seconds")
        return train_digit_classifier()

    return cached(DigitClassifier(), cache_folder() / f"{DIGITS_VERSION}.safetensors", train)


def load_classifier(dataset: Dataset, note: Note = lambda text: None) -> ImageClassifier:
    """The classifier of a training split, from the cache or trained now and put there."""

    def train() -> ImageClassifier:
        note(f"training a classifier of {dataset.name}, once, a minute or two")
        return train_classifier(dataset, lambda done: None if done % 200 else note(f"  step {done}"))

    if dataset.labels is None or len(dataset.shape) != 3:
        return train()  # which says what is wrong
    classifier = ImageClassifier(dataset.name, dataset.shape, dataset.num_classes)
    return cached(classifier, cache_file(dataset, cache_folder()), train)


def cached(classifier: Trained, file: Path, train: Callable[[], Trained]) -> Trained:
    """The classifier with the weights in the file, or else trained now and written there."""
    try:
        classifier.load_state_dict(load_file(file))
        return classifier.eval()
    except (OSError, RuntimeError, SafetensorError):  # not there, or not whole
        classifier = train()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}.partial")
        save_file(classifier.state_dict(), partial)
        os.replace(partial, file)
    except OSError:
        return classifier  # a cache that cannot be written only costs time
    return classifier


FEATURES = ("digits", "classifier", "coordinates")


def load_features(name: str, dataset: Dataset, note: Note = lambda text: None) -> Features:
    """Features by name; dataset: the training split of the data. Raises InputError for an unknown name or data they
    cannot take.
    """
    if name not in FEATURES:
        raise InputError(f"unknown features '{name}': choose one of {', '.join(FEATURES)}")
    if name == "digits" and dataset.shape != (1, 8, 8):
        raise InputError(
            f"the features 'digits' are for 8x8 digits, [1, 8, 8], not for samples of shape {list(dataset.shape)}"
        )
    if name == "classifier":
        return load_classifier(dataset, note)
    return load_digit_classifier(note) if name == "digits" else Coordinates()
