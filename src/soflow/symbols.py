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
| omega  | `guidance` | its scale, and the start and end of the t it acts in      | (B, 3)   |

Jumps go from t to s; a and b are functions of (t, s).

Source: SoFlow (arXiv 2512.15657). From its equations to the code: docs/paper_map.md.
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

#: Labels as people give them: integers of any type, or None for no condition.
AnyLabels: TypeAlias = Tensor | np.ndarray | Sequence[Any] | None
#: Noise as people give it: floats of any precision.
AnyNoise: TypeAlias = Tensor | np.ndarray


@runtime_checkable
class Net(Protocol):
    """The contract of every network: F(x, t, s, labels), shaped like x.

    `labels=None` means the null label. More inputs are given by keyword, and only to networks that
    take them: `augment` (B, A), augmentation labels; `cond` (B, ...), a condition; `guidance`
    (B, 3), the guidance scale, and the start and the end of the interval of t in which it acts.
    """

    def __call__(self, x: Tensor, t: Tensor, s: Tensor, *args: Any, **inputs: Any) -> Tensor: ...


@dataclass(frozen=True)
class Batch:
    """Clean samples with what belongs to them, one row per sample.

    Attributes:
        data: Samples (B, ...).
        labels: Their classes (B,), if any.
        augment: Their augmentation labels (B, A), if any.
        cond: What else they are conditioned on (B, ...), if anything, such as vectors or maps.

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
        """The samples that a slice, or a tensor of indices, selects."""
        columns = (self.data, self.labels, self.augment, self.cond)
        return Batch(*(None if x is None else x[which] for x in columns))  # type: ignore[arg-type]


def across(t: Tensor, x: Tensor) -> Tensor:
    """Views one number per sample, (B,), so that it multiplies x, (B, ...)."""
    return t.view(-1, *[1] * (x.ndim - 1))


def mean_d(x: Tensor) -> Tensor:
    """The mean over all dimensions but the batch: (B, ...) -> (B,)."""
    return x.flatten(1).mean(1)


def as_labels(labels: AnyLabels, device: torch.device | None = None) -> Tensor | None:
    """Labels as a tensor of int64 on a device.

    Raises:
        InputError: If they are not integers.
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
            raise InputError(f"labels are integers, the numbers of classes, not {what}")
        labels = torch.from_numpy(values.astype(np.int64))
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise InputError(f"labels are integers, the numbers of classes, not {labels.dtype}")
    return labels.to(device, torch.int64)
