"""What samples are compared by: the features of a small digit classifier, or the coordinates themselves."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from soflow.data import sources
from soflow.data.batches import Batches
from soflow.data.sources import Dataset
from soflow.errors import InputError
from soflow.evaluation.metrics import recognized

#: Changes whenever the classifier or its training does, so that figures of different ones are never mixed.
DIGITS_VERSION = "digits-classifier-2"
DIGITS_STEPS = 500


@runtime_checkable
class Features(Protocol):
    """Features (B, d) of samples (B, ...), and class logits where the features come from a classifier."""

    name: str

    def __call__(self, samples: Tensor) -> Tensor: ...


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
    padded = functional.pad(dataset.data, (1, 1, 1, 1), value=-1.0)
    moved = [padded[:, :, y : y + 8, x : x + 8] for y in range(3) for x in range(3)]
    return replace(dataset, data=torch.cat(moved), labels=dataset.labels.repeat(9))


def train_digit_classifier(seed: int = 0) -> DigitClassifier:
    """Trains the classifier on the training split; seeded, some seconds."""
    batches = Batches(with_shifts(sources.load("digits", "train")), batch_size=128, seed=seed)
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
    dataset = sources.load("digits", split)
    assert dataset.labels is not None
    return recognized(classifier.logits(classifier(dataset.data)), dataset.labels)


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/soflow, by default ~/.cache/soflow."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "soflow"


def load_digit_classifier(note: Callable[[str], None] = lambda text: None) -> DigitClassifier:
    """The classifier, from the cache or trained now and put there; `note` hears why that takes a while."""
    file = cache_folder() / f"{DIGITS_VERSION}.safetensors"
    classifier = DigitClassifier()
    try:
        classifier.load_state_dict(load_file(file))
        return classifier.eval()
    except (OSError, RuntimeError, SafetensorError):  # not there, or not whole
        note("training the digit classifier, once, about ten seconds")
        classifier = train_digit_classifier()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}.partial")
        save_file(classifier.state_dict(), partial)
        os.replace(partial, file)
    except OSError:
        return classifier  # a cache that cannot be written only costs time
    return classifier


FEATURES = ("digits", "coordinates")


def load_features(name: str, shape: tuple[int, ...], note: Callable[[str], None] = lambda text: None) -> Features:
    """Features by name, for samples of that shape. Raises InputError for an unknown name or samples they cannot take."""
    if name not in FEATURES:
        raise InputError(f"unknown features '{name}': choose one of {', '.join(FEATURES)}")
    if name == "digits" and shape != (1, 8, 8):
        raise InputError(f"the features 'digits' are for 8x8 digits, [1, 8, 8], not for samples of shape {list(shape)}")
    return load_digit_classifier(note) if name == "digits" else Coordinates()
