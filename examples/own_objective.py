"""Write your own objective: alpha-Flow, trained and sampled like any other.

    F(x_t, t, s) -> sg( alpha v + (1 - alpha) F(x_l, l, s) ),   l = t + alpha (s - t)

alpha falls from 1 (flow matching) towards 0 (MeanFlow). The target equals that of SoFlow's
consistency loss divided by s - t. Source: alpha-Flow (arXiv 2510.20771).

    python examples/own_objective.py
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

import soflow


@dataclass(frozen=True)
class AlphaFlow:
    """Learns velocities from one part of the batch and mean velocities from the rest."""

    samplers: ClassVar[tuple[str, ...]] = ("renoise", "ode", "heun")
    whole_network: ClassVar[bool] = False  # it only calls the network
    parameterization: ClassVar[str] = "euler"  # x_l and the target are straight steps
    flow_matching_share: float = 0.5
    least: float = 0.05  # smallest alpha
    eps: float = 0.01
    guidance: soflow.Guidance = soflow.Guidance(scale=1.15)

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> soflow.Draws:
        times = soflow.LogitNormal(-0.4, 1.0)
        share = self.flow_matching_share  # these samples have s = t
        return soflow.draw_ordered_jumps(shape, share, times, self.guidance, generator)

    def alpha(self, progress: float) -> float:
        """Falls from 1 to `least` along a sigmoid."""
        return max(self.least, 1 / (1 + exp(20 * (progress - 0.5))))

    def __call__(
        self, model: soflow.FlowModel, batch: soflow.Batch, draws: soflow.Draws, progress: float
    ) -> soflow.Losses:
        jumps, v = soflow.guided_jumps(model, batch, draws, self.guidance)
        x_t, t, s, alpha = jumps.x, jumps.t, jumps.s, self.alpha(progress)
        l = t + alpha * (s - t)  # l = t where s = t
        x_l = x_t + across(l - t, v) * v
        with torch.no_grad():
            target = alpha * v + (1 - alpha) * jumps._replace(x=x_l, t=l).through(model.net)
        target[: draws.n_flow_matching] = v[: draws.n_flow_matching]
        squared = ((jumps.through(model.net) - target) ** 2).flatten(1).mean(1)
        weight = soflow.adaptive_weight(squared, p=1.0, eps=self.eps)
        term = soflow.Term(weight * squared, squared.detach(), weight, {"t": t, "s": s})
        return soflow.losses(alpha_flow=term)


def across(t: Tensor, x: Tensor) -> Tensor:
    """Views one number per sample, (B,), for multiplication with x, (B, ...)."""
    return t.view(-1, *[1] * (x.ndim - 1))


def main(steps: int = 200, out: str = "runs/alpha-flow") -> float:
    """Trains alpha-Flow on the bundled digits. Returns the distance of its one-step samples."""
    settings = [f"train.steps={steps}", "train.batch_size=64", "ema.decay=0.99"]
    soflow.train("digits", out, settings, objective=AlphaFlow())
    run = soflow.load(out)
    figures = run.evaluate(num=500, nfe=(1,), samplers=("renoise",))
    image = Path(out) / "one-step.png"
    soflow.save_picture(run.sample(100, nfe=1), image, columns=10)
    print(f"one-step distance {figures.rows[0].distance:.3g}; {image}")
    return figures.rows[0].distance


if __name__ == "__main__":
    main()
