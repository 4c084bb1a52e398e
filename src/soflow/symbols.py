"""The symbols of the paper, as they appear everywhere in the code.

| symbol | in code    | meaning                                                   | shape    |
|--------|------------|-----------------------------------------------------------|----------|
| x_0    | `data`     | a clean sample                                            | (B, ...) |
| x_1    | `noise`    | standard normal                                           | (B, ...) |
| t, s   | `t`, `s`   | times in [0, 1], s <= t; data at t = 0, noise at t = 1    | (B,)     |
| l      | `l`        | a time between: s < l < t                                 | (B,)     |
| x_t    | `x_t`      | alpha(t) data + beta(t) noise                             | (B, ...) |
| v_t    | `v_t`      | alpha'(t) data + beta'(t) noise, the conditional velocity | (B, ...) |
| F      | `net`      | the network F(x_t, t, s, y)                               | (B, ...) |
| f      | `solution` | the solution map f(x_t, t, s) = a x_t + b F(x_t, t, s, y) | (B, ...) |
| y      | `labels`   | class labels; `num_classes` is the null label             | (B,)     |

Jumps go from t to s; a and b are functions of (t, s).

Source: SoFlow (arXiv 2512.15657). From its equations to the code: docs/paper_map.md.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor

Sample = Float[Tensor, "batch *shape"]
Times = Float[Tensor, "batch"]
Labels = Int[Tensor, "batch"]
Mask = Bool[Tensor, "batch"]
PerSample = Float[Tensor, "batch"]


@runtime_checkable
class Net(Protocol):
    """The contract of every network: F(x, t, s, labels), shaped like x.

    `labels=None` means the null label.
    """

    def __call__(
        self,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        labels: Tensor | None = None,
        augment: Tensor | None = None,
    ) -> Tensor: ...


@dataclass(frozen=True)
class Batch:
    """Clean samples (B, ...), optionally with labels (B,) and augmentation labels (B, A)."""

    data: Tensor
    labels: Tensor | None = None
    augment: Tensor | None = None

    def __len__(self) -> int:
        return len(self.data)

    def rows(self, which: slice) -> "Batch":
        """The samples that a slice selects."""
        labels, augment = (None if x is None else x[which] for x in (self.labels, self.augment))
        return Batch(self.data[which], labels, augment)


def across(t: Tensor, x: Tensor) -> Tensor:
    """Views one number per sample, (B,), so that it multiplies x, (B, ...)."""
    return t.view(-1, *[1] * (x.ndim - 1))


def mean_d(x: Tensor) -> Tensor:
    """The mean over all dimensions but the batch: (B, ...) -> (B,)."""
    return x.flatten(1).mean(1)
