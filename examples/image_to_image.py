"""Image to image: complete the left half of a digit in one step.

Paired data are samples with a condition. Here the condition is a map (1, 8, 8): the digit without
its right half. The network receives it together with the noise and draws a matching digit.
Low-resolution images, outlines, masks or earlier frames work in the same way.

    python examples/image_to_image.py

Trains for half a minute on a CPU and writes pairs.png: condition, sample and original in turn.
"""

from pathlib import Path

import torch
from torch import Tensor

import soflow
from soflow.data.bundled import digits

#: Changes to the recipe. The condition replaces the classes.
SETTINGS = (
    "data.num_classes=0", "objective.guidance.scale=1", "network.patch=2", "network.width=96",
    "train.batch_size=64", "train.sample_every=0",
)  # fmt: skip


def left_half(images: Tensor) -> Tensor:
    """Images (N, 1, 8, 8) with a gray right half."""
    halves = images.clone()
    halves[..., 4:] = 0
    return halves


def read_as(images: Tensor, known: Tensor, labels: Tensor) -> Tensor:
    """Classifies images (N, 1, 8, 8) by the label of the nearest known image."""
    return labels[torch.cdist(images.flatten(1), known.flatten(1)).argmin(1)]


def main(out: str | Path = "runs/image-to-image", steps: int = 1000) -> dict[str, float]:
    """Trains, draws a sample for each held-out half, and scores the samples.

    Args:
        out: The run folder.
        steps: Training steps.

    Returns:
        given_half: Root mean square error of the left half.
        recognized: Fraction of samples that show the right digit.
        shuffled: The same, compared with the digits of other halves.
        real: The same for the held-out images instead of samples.
    """
    train, test = digits("train"), digits("test")
    images, truth = train.samples(), test.samples()
    data = {"image": images, "cond": left_half(images)}
    folder = soflow.train("digits", out, [*SETTINGS, f"train.steps={steps}"], data=data)

    run = soflow.load(folder.path)
    given = left_half(truth)
    samples = run.sample(cond=given, nfe=1, seed=0)  # (N, 1, 8, 8), one for each condition

    shown = torch.stack([given, samples, truth], dim=1)[:40].flatten(0, 1)
    soflow.save_picture(shown, Path(out) / "pairs.png", columns=12)
    assert train.labels is not None
    assert test.labels is not None
    found, real = (read_as(one, images, train.labels) for one in (samples, truth))
    return {
        "given_half": float((samples - truth)[..., :4].square().mean().sqrt()),
        "recognized": float((found == test.labels).float().mean()),
        "shuffled": float((found == test.labels.roll(1)).float().mean()),
        "real": float((real == test.labels).float().mean()),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.3f}")
