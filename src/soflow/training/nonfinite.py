"""Numbers that went wrong: whether they did, and the sample by which they did."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from soflow.objectives.base import Draws, Losses
from soflow.symbols import Batch
from soflow.training.sharding import share

OTHERS = " (and others after it)"


def all_finite(tensors: Iterable[Tensor | None]) -> Tensor:
    """Whether each number in this process's shares of the tensors is finite, and its square, which AdamW keeps: 1. or 0."""
    shares = [share(tensor.detach()) for tensor in tensors if tensor is not None]
    return torch.stack(torch._foreach_norm(shares)).isfinite().all().float()


def wrong_gradients(network: nn.Module) -> str:
    """The first parameter with a gradient that is not finite, and how many there are; "" where there is none."""
    names = [
        name
        for name, p in network.named_parameters()
        if p.grad is not None and not all_finite([p.grad])
    ]
    return f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}" if names else ""


def sample_to_blame(
    loss_of: Callable[[Batch, Draws], Losses],
    batch: Batch,
    draws: Draws,
    parameters: Sequence[Tensor],
) -> tuple[int, str] | None:
    """The first sample whose loss, a part of it or gradient, worked out of it alone, is not finite: its row, and what is
    told of it. Halves the batch until one sample is left; None where none goes wrong again, as with other dropout masks.
    """

    def go_wrong(rows: slice) -> Losses | None:
        losses = loss_of(batch.rows(rows), draws.rows(rows))
        gradients = torch.autograd.grad(losses.total, list(parameters), allow_unused=True)
        return None if all_finite([losses.total, *losses.parts.values(), *gradients]) else losses

    first, last = 0, len(batch)
    while last - first > 1:
        middle = (first + last) // 2
        if go_wrong(slice(first, middle)):
            last = middle
        else:
            first = middle
    losses = go_wrong(slice(first, last))
    if losses is None:
        return None
    others = last < len(batch) and go_wrong(slice(last, None))
    return first, f"{told(losses)}{OTHERS if others else ''}"


def told(losses: Losses) -> str:
    """Of one sample: the term it is in, its value, and its times: 'the consistency loss, nan, at t=0.7, l=0.6, s=0.2'."""
    ((name, branch),) = [
        (name, branch) for name, branch in losses.terms.items() if len(branch.loss)
    ]
    times = ", ".join(f"{symbol}={float(time):.4g}" for symbol, time in branch.times.items())
    return f"the {name.replace('_', ' ')} loss, {float(branch.loss.detach()):.4g}, at {times}"
