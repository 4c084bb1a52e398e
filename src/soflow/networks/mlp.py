"""A small residual network F(x, t, s, y) for vectors of low dimension."""

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
    """x + linear(silu(linear(silu(x)) + linear(condition))), initially the identity."""

    repeated = True  # compiled and sharded block by block

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

    x and the result are (B, D); t and s are (B,). `width` must be at least D. A narrower network
    has an output of rank `width`, and noise remains in the other directions of samples.

    Args:
        shape: The shape of one sample, (D,).
        num_classes: The number of classes; 0 for a network without labels. The label
            `num_classes`, or labels=None, means "no class".
        cond_shape: The shape of one condition, (E,); () without conditions.
        takes_guidance: Whether the network takes `guidance` (B, 3): a scale and its interval of t.

    Raises:
        ValueError: If `shape` is not (D,), or `width` is less than D.

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
            int, Setting("width of the hidden layers; at least the dimension of the data", gt=0)
        ] = 128,
        depth: Annotated[int, Setting("number of residual blocks", gt=0)] = 4,
        cond_shape: tuple[int, ...] = (),
        takes_guidance: bool = False,
    ) -> None:
        super().__init__()
        self.settings = {"width": width, "depth": depth}
        require_fit(self, shape)
        (dimensions,) = shape
        if width < dimensions:
            raise ValueError(
                f"MLP: width is {width}, but samples have {dimensions} values: use a width "
                f"(network.width) of at least {dimensions}"
            )
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
        """F(x, t, s, labels): (B, D) -> (B, D); t, s and labels are (B,)."""
        with torch.autocast(x.device.type, enabled=False):
            times = self.t_embedder(t) + self.s_embedder(t - s)
            embedding = times + self.y_embedder(labels, like=x)
            embedding = added_guidance(self.guidance_embedder, embedding, guidance)
            condition = functional.silu(self.cond.added(embedding, cond))
        x = self.x_embedder(x)
        for block in self.blocks:
            x = block(x, condition)
        return self.final_layer(functional.silu(x))
