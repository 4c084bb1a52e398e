"""Writes the classifiers whose features the published comparisons use, as TorchScript files.

    python benchmarks/classifiers.py                            writes digits-classifier.pt
    python benchmarks/classifiers.py fashion_mnist [FOLDER]     FOLDER: a local copy of the data

Each machine trains a slightly different classifier. With these files, distances of different
machines can be compared: evaluate.features=FILE. Writing them again makes new results incomparable
with the published ones.
"""

import sys
from pathlib import Path
from zipfile import ZipFile

import torch
from torch import Tensor, nn

from soflow.config import read_recipe
from soflow.data import sources
from soflow.evaluation.classifier import Classifier, load_classifier
from soflow.evaluation.digits import load_digit_classifier

FOLDER = Path(__file__).parent / "classifiers"


class OfBytes(nn.Module):
    """Maps images as bytes (B, C, H, W) to features (B, d) and logits (B, classes)."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.body, self.head = classifier.body, classifier.head

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(images.float() / 127.5 - 1)
        return features, self.head(features)


def remove_source_locations(file: Path) -> None:
    """Removes the debug records of TorchScript, which hold paths of this machine."""
    with ZipFile(file) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with ZipFile(file, "w") as archive:
        for name, content in records.items():
            if not name.endswith(".debug_pkl"):
                archive.writestr(name, content)


def main(name: str = "digits", folder: str = "") -> None:
    if name == "digits":
        classifier: Classifier = load_digit_classifier()
    else:
        config = read_recipe(name, [f"data.path={folder}"] if folder else [])
        classifier = load_classifier(sources.load(config.data, config.data.split))
    FOLDER.mkdir(exist_ok=True)
    file = FOLDER / f"{name}-classifier.pt"
    torch.jit.script(OfBytes(classifier).eval()).save(str(file))
    remove_source_locations(file)
    print(f"written: {file}")


if __name__ == "__main__":
    main(*sys.argv[1:])
