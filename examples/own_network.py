"""Train your own network: any module with the contract net(x, t, s, labels).

x (B, ...) holds noised samples, t and s (B,) the start and end times of a jump, and labels (B,) the
classes. The label `num_classes` means "no class". The result has the shape of x.

    python examples/own_network.py
"""

import torch
from torch import Tensor, nn

import soflow


class ConvNet(nn.Module):
    """Residual convolutions whose channels are shifted by the times and the class."""

    def __init__(self, channels: int = 1, classes: int = 10, width: int = 32, depth: int = 4):
        super().__init__()
        self.classes = classes
        self.inputs = nn.Conv2d(channels, width, 3, padding=1)
        self.times = nn.Sequential(nn.Linear(2, width), nn.SiLU(), nn.Linear(width, width))
        self.labels = nn.Embedding(classes + 1, width)  # the last row is "no class"
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(4, width), nn.SiLU(), nn.Conv2d(width, width, 5, padding=2))
            for _ in range(depth)
        )
        self.shifts = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.outputs = nn.Conv2d(width, channels, 3, padding=1)
        nn.init.zeros_(self.outputs.weight)

    def forward(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor | None = None) -> Tensor:
        if labels is None:
            labels = torch.full_like(t, self.classes, dtype=torch.long)
        condition = self.times(torch.stack([t, t - s], 1)) + self.labels(labels)
        x = self.inputs(x)
        for block, shift in zip(self.blocks, self.shifts, strict=True):
            x = x + block(x + shift(condition)[:, :, None, None])
        return self.outputs(x)


def main(steps: int = 300, out: str = "runs/own-network") -> Tensor:
    """Trains on the bundled digits. Returns one-step samples (20, 1, 8, 8)."""
    network = ConvNet()
    settings = [f"train.steps={steps}", "train.batch_size=64", "ema.decay=0.99"]
    soflow.train("digits", out, settings, network=network)
    run = soflow.load(out, network=network)  # in another process, give a new ConvNet()
    samples = run.sample(20, labels=[3, 7], nfe=1)
    soflow.save_picture(samples, f"{out}/threes-and-sevens.png", columns=10)
    return samples


if __name__ == "__main__":
    main()
