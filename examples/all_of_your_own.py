"""An objective, a network and data of your own, in one file.

python examples/all_of_your_own.py
"""

from dataclasses import dataclass

import torch
from torch import nn

import soflow


class Network(nn.Module):
    """F(x, t, s, labels) of points in the plane; there are no labels."""

    takes_labels = False

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Linear(4, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 2)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x, t, s, labels=None):  # type: ignore[no-untyped-def]
        return self.layers(torch.cat([x, t[:, None], s[:, None]], dim=1))


@dataclass(frozen=True)
class SelfConsistency:
    """Velocities from half of the batch; the rest: one jump is two jumps of half the length."""

    samplers = ("ode", "heun")
    whole_network = False

    def draw(self, shape, generator):  # type: ignore[no-untyped-def]
        noise, n = torch.randn(*shape, generator=generator), shape[0] // 2
        times = torch.rand(2, shape[0], generator=generator).sort(dim=0, descending=True).values
        s = torch.cat([times[0, :n], times[1, n:]])
        return soflow.Draws(noise, times[0], s, torch.zeros(shape[0], dtype=torch.bool), n)

    def __call__(self, model, batch, draws, progress):  # type: ignore[no-untyped-def]
        point = model.noising.sample(batch.data, draws.noise, draws.t)
        t, s, middle = draws.t, draws.s, (draws.t + draws.s) / 2
        with torch.no_grad():
            halfway = model.solution(point.x_t, t, middle)
            mean = (model.net(point.x_t, t, middle) + model.net(halfway, middle, s)) / 2
        target = torch.where((s == t)[:, None], point.v_t, mean)
        squared = ((model.net(point.x_t, t, s) - target) ** 2).mean(1)
        term = soflow.Term(squared, squared.detach(), torch.ones_like(t), {"t": t, "s": s})
        return soflow.Losses(squared.mean(), {"mse": squared.detach()}, {"all": term})


def main(steps: int = 3000, out: str = "runs/all-of-your-own") -> torch.Tensor:
    angle = 2 * torch.pi * torch.rand(4000, generator=torch.Generator().manual_seed(0))
    ring = torch.stack([angle.cos(), angle.sin()], dim=1)
    settings = [f"train.steps={steps}", "optimizer.lr=0.002", "data.range=[-1,1]"]
    soflow.train("vectors", out, settings, data=ring, network=Network(),
                 objective=SelfConsistency())  # fmt: skip
    return soflow.load(out).sample(1000, nfe=1)  # about 1 away from 0


if __name__ == "__main__":
    print(f"distances from 0: {main().norm(dim=1).quantile(torch.tensor([0.05, 0.5, 0.95]))}")
