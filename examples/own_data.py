"""Train on your own data: a torch dataset, a tensor or an array, with or without labels.

The recipe `images` trains a DiT. Shape and classes are read from the data. The example trains
briefly, so its samples are rough. More steps give better samples.

    python examples/own_data.py
"""

import torch
from torch import Tensor
from torch.utils.data import Dataset

import soflow


class Shapes(Dataset[tuple[Tensor, str]]):
    """Discs and squares at random positions: images (1, 16, 16) in [-1, 1] and class names."""

    classes = ("disc", "square")

    def __init__(self, count: int = 2000) -> None:
        generator = torch.Generator().manual_seed(0)
        self.places = torch.rand(count, 2, generator=generator) * 6 + 5
        self.sizes = torch.rand(count, generator=generator) * 2 + 2.5

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        at = torch.stack(torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij"))
        away = at - self.places[index][:, None, None]
        square = index % 2
        distance = away.abs().amax(0) if square else away.norm(dim=0)
        image = torch.tanh(3 * (self.sizes[index] - distance))[None]
        return image, self.classes[square]


def main(steps: int = 250, out: str = "runs/own-data") -> Tensor:
    """Trains on discs and squares. Returns one-step samples of squares (30, 1, 16, 16)."""
    settings = [f"train.steps={steps}", "train.batch_size=64", "network.width=64"]
    settings += ["network.depth=4", "network.heads=4", "data.shape=[1,16,16]", "ema.decay=0.99"]
    settings += ["optimizer.lr=0.001", "optimizer.warmup=0"]
    soflow.train("images", out, settings, data=Shapes())
    squares = soflow.load(out).sample(30, labels=["square"], nfe=1)
    soflow.save_picture(squares, f"{out}/squares.png", columns=10)
    return squares


if __name__ == "__main__":
    main()
