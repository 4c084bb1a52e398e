"""The symbols of the paper, as they appear everywhere in the code.

| symbol | in code    | meaning                                                        | shape    |
|--------|------------|----------------------------------------------------------------|----------|
| x_0    | `data`     | a clean sample                                                 | (B, ...) |
| x_1    | `noise`    | standard normal noise                                          | (B, ...) |
| t, s   | `t`, `s`   | times in [0, 1], s <= t; data at t = 0, noise at t = 1         | (B,)     |
| l      | `l`        | a middle time, s <= l < t                                      | (B,)     |
| x_t    | `x_t`      | alpha(t) data + beta(t) noise                                  | (B, ...) |
| v_t    | `v_t`      | alpha'(t) data + beta'(t) noise, the conditional velocity      | (B, ...) |
| F      | `net`      | the network F(x_t, t, s, y)                                    | (B, ...) |
| f      | `solution` | the solution function f(x_t, t, s) = a x_t + b F(x_t, t, s, y) | (B, ...) |
| y      | `labels`   | class labels; `num_classes` is the null label                  | (B,)     |
| omega  | `guidance` | guidance scale, then the start and end of its t interval       | (B, 3)   |

A jump goes from t to s; a and b are functions of (t, s).

Source: SoFlow (arXiv 2512.15657). docs/paper_map.md maps its equations to the code.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from soflow.errors import InputError, in_short

Sample = Float[Tensor, "batch *shape"]
Times = Float[Tensor, "batch"]
Labels = Int[Tensor, "batch"]
Mask = Bool[Tensor, "batch"]
PerSample = Float[Tensor, "batch"]
GuidanceRows = Float[Tensor, "batch 3"]

#: Labels as users pass them: integers of any type; None draws samples without a label.
AnyLabels: TypeAlias = Tensor | np.ndarray | Sequence[Any] | None
#: Noise as users pass it: floats of any precision.
AnyNoise: TypeAlias = Tensor | np.ndarray


@runtime_checkable
class Net(Protocol):
    """The interface of every network: F(x, t, s, labels) returns a tensor shaped like x.

    `labels=None` means the null label. Networks that take further inputs get them by keyword:
    `augment` (B, A), augmentation labels; `cond` (B, ...), a condition; `guidance` (B, 3), the
    guidance scale and the start and end of the interval of t in which it acts.
    """

    def __call__(self, x: Tensor, t: Tensor, s: Tensor, *args: Any, **inputs: Any) -> Tensor: ...


@dataclass(frozen=True)
class Batch:
    """A batch of clean samples with their labels and conditions, one row per sample.

    Attributes:
        data: Samples (B, ...).
        labels: Class labels (B,), if any.
        augment: Augmentation labels (B, A), if any.
        cond: Further conditions (B, ...), if any, such as vectors or maps.

    Example:
        >>> import soflow, torch
        >>> batch = soflow.Batch(torch.randn(8, 1, 28, 28), labels=torch.arange(8))
        >>> len(batch), batch.rows(slice(4)).data.shape
        (8, torch.Size([4, 1, 28, 28]))
    """

    data: Tensor
    labels: Tensor | None = None
    augment: Tensor | None = None
    cond: Tensor | None = None

    def __len__(self) -> int:
        return len(self.data)

    def rows(self, which: slice | Tensor) -> "Batch":
        """The samples selected by a slice or a tensor of indices."""
        columns = (self.data, self.labels, self.augment, self.cond)
        return Batch(*(None if x is None else x[which] for x in columns))  # type: ignore[arg-type]


def across(t: Tensor, x: Tensor) -> Tensor:
    """Reshapes one number per sample (B,) to broadcast over x (B, ...)."""
    return t.view(-1, *[1] * (x.ndim - 1))


def mean_d(x: Tensor) -> Tensor:
    """The mean over all dimensions except the batch: (B, ...) -> (B,)."""
    return x.flatten(1).mean(1)


def as_labels(labels: AnyLabels, device: torch.device | None = None) -> Tensor | None:
    """Converts labels to an int64 tensor on a device.

    Raises:
        InputError: If the labels are not integers.
    """
    if labels is None:
        return None
    if not isinstance(labels, Tensor):
        try:
            values = np.asarray(labels)
        except ValueError:  # rows of different lengths
            values = np.array([None])
        if values.dtype.kind not in "iu" and values.size:
            what = in_short(labels if isinstance(labels, str) else next(iter(labels), labels))
            raise InputError(f"labels must be integers (class indices), not {what}")
        labels = torch.from_numpy(values.astype(np.int64))
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise InputError(f"labels must be integers (class indices), not {labels.dtype}")
    return labels.to(device, torch.int64)
