"""A small residual network for vectors: F(x, t, s, y) for data of low dimension."""

from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional

from soflow.networks.conditions import ConditionInput
from soflow.networks.embeddings import LabelEmbedder, TimeEmbedder
from soflow.networks.registry import NETWORKS, require_fit
from soflow.symbols import Labels, Times
from soflow.system.registry import Setting


class ResidualBlock(nn.Module):
    """x + linear(silu(linear(x) + condition)), the second linear zero at the start."""

    repeated = True  # one of many alike, compiled and sharded on its own

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, width)
        self.condition = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, width)
        nn.init.zeros_(self.fc2.weight)
        nn.init.zeros_(self.fc2.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = self.fc1(functional.silu(x)) + self.condition(condition)
        return x + self.fc2(functional.silu(h))


@NETWORKS.register("mlp")
class MLP(nn.Module):
    """F(x, t, s, labels): vectors (B, D) -> same.

    Samples keep noise in some directions if `width` is less than D, since F then has rank `width`.

    Args:
        shape: One sample's, (D,).
        num_classes: 0 for a network without labels.
        cond_shape: One condition's shape, () without (networks/conditions.py).

    Raises:
        ValueError: For another shape, or a width below D.
    """

    dimensions = 1

    def __init__(
        self,
        shape: tuple[int, ...],
        num_classes: int = 0,
        width: Annotated[
            int, Setting("width of the residual stream; at least the D of data.shape", gt=0)
        ] = 128,
        depth: Annotated[int, Setting("number of residual blocks", gt=0)] = 4,
        cond_shape: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.settings = {"width": width, "depth": depth}
        require_fit(self, shape)
        (dimensions,) = shape
        if width < dimensions:  # the noise of all values cannot pass through fewer channels
            raise ValueError(f"MLP: width {width} must be at least the {dimensions} values of data")
        self.cond = ConditionInput(cond_shape, shape, width)
        self.x_embedder = nn.Linear(dimensions, width)
        self.t_embedder = TimeEmbedder(width)
        self.s_embedder = TimeEmbedder(width)  # embeds t - s
        self.y_embedder = LabelEmbedder(num_classes, width)
        self.blocks = nn.ModuleList([ResidualBlock(width) for _ in range(depth)])
        self.final_layer = nn.Linear(width, dimensions)
        nn.init.zeros_(self.final_layer.weight)
        nn.init.zeros_(self.final_layer.bias)

    def forward(
        self,
        x: Tensor,
        t: Times,
        s: Times,
        labels: Labels | None = None,
        cond: Tensor | None = None,
    ) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            times = self.t_embedder(t) + self.s_embedder(t - s)
            embedding = times + self.y_embedder(labels, like=x)
            condition = functional.silu(self.cond.added(embedding, cond))
        x = self.x_embedder(x)
        for block in self.blocks:
            x = block(x, condition)
        return self.final_layer(functional.silu(x))
