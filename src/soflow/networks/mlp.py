"""A small residual network for vectors: F(x, t, s, y) for data of low dimension."""

from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional

from soflow.networks.conditions import ConditionInput
from soflow.networks.embeddings import (
    GuidanceEmbedder,
    LabelEmbedder,
    TimeEmbedder,
    added_guidance,
)
from soflow.networks.registry import NETWORKS, require_fit
from soflow.symbols import GuidanceRows, Labels, Times
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
    """A residual network F(x, t, s, labels) for vectors.

    x and the result are (B, D); t and s are (B,). `width` must be at least D: otherwise F would
    have rank `width`, and samples would keep noise in the other directions.

    Args:
        shape: The shape of one sample, (D,).
        num_classes: The number of classes; 0 for a network without labels. The label
            `num_classes`, or labels=None, means "no class".
        cond_shape: The shape of one condition, (E,); () without conditions.
        takes_guidance: Whether the network takes a guidance scale and its interval, `guidance`.

    Raises:
        ValueError: For another shape, or a width below D.

    Example:
        >>> import soflow, torch
        >>> network = soflow.MLP(shape=(2,), num_classes=3, width=64, depth=2)
        >>> x, t, s = torch.randn(4, 2), torch.ones(4), torch.zeros(4)
        >>> network(x, t, s, torch.tensor([0, 1, 2, 3])).shape
        torch.Size([4, 2])
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
        takes_guidance: bool = False,
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
        self.guidance_embedder = GuidanceEmbedder(width) if takes_guidance else None
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
        guidance: GuidanceRows | None = None,
    ) -> Tensor:
        """F(x, t, s, labels): (B, ...), (B,), (B,), (B,) or None -> (B, ...)."""
        with torch.autocast(x.device.type, enabled=False):
            times = self.t_embedder(t) + self.s_embedder(t - s)
            embedding = times + self.y_embedder(labels, like=x)
            embedding = added_guidance(self.guidance_embedder, embedding, guidance)
            condition = functional.silu(self.cond.added(embedding, cond))
        x = self.x_embedder(x)
        for block in self.blocks:
            x = block(x, condition)
        return self.final_layer(functional.silu(x))
