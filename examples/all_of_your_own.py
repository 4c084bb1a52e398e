"""Train your own objective, network and data, in one file."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

import soflow


class Network(nn.Module):
    """F(x, t, s) for points in the plane."""

    takes_labels = False

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 256), nn.SiLU(), nn.Linear(256, 2))

    def forward(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.layers(torch.cat([x, t[:, None], s[:, None]], dim=1))


@dataclass(frozen=True)
class TwoHalves(soflow.FlowMatching):
    """Half of the batch matches the flow. In the other half, one jump equals two half jumps."""

    samplers: ClassVar[tuple[str, ...]] = ("ode", "heun")

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> soflow.Draws:
        draws, half = super().draw(shape, generator), shape[0] // 2
        later = draws.t * torch.rand(shape[0], generator=generator, device=generator.device)
        return replace(draws, s=torch.cat([draws.t[:half], later[half:]]), n_flow_matching=half)

    def __call__(
        self, model: soflow.FlowModel, batch: soflow.Batch, draws: soflow.Draws, progress: float
    ) -> soflow.Losses:
        point = model.noising.sample(batch.data, draws.noise, draws.t)
        t, s, middle = point.t, draws.s, (draws.t + draws.s) / 2
        with torch.no_grad():
            halfway = model.solution(point.x_t, t, middle)
            mean = (model.net(point.x_t, t, middle) + model.net(halfway, middle, s)) / 2
        target = torch.where((s == t)[:, None], point.v_t, mean)
        error = ((model.net(point.x_t, t, s) - target) ** 2).mean(1)
        return soflow.losses(halves=soflow.Term(error, error.detach(), error * 0 + 1, {"t": t}))


def main(steps: int = 3000, out: str = "runs/all-of-your-own") -> Tensor:
    angle = 2 * torch.pi * torch.rand(4000, generator=torch.Generator().manual_seed(0))
    ring = torch.stack([angle.cos(), angle.sin()], dim=1)
    settings = [f"train.steps={steps}", "optimizer.lr=0.002", "data.range=[-1,1]"]
    soflow.train("vectors", out, settings, data=ring, network=Network(), objective=TwoHalves())
    return soflow.load(out).sample(1000, nfe=1)  # points on the ring


if __name__ == "__main__":
    print(main().norm(dim=1).quantile(torch.tensor([0.05, 0.5, 0.95])))
