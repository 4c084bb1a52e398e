"""Numbers that went wrong: whether they did, and the sample by which they did."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from soflow.data.batches import Batch
from soflow.objectives.base import Draws, Losses
from soflow.training.sharding import share


def all_finite(tensors: Iterable[Tensor | None]) -> Tensor:
    """Whether every number in this process's shares of the tensors is finite, as 1.0 or 0.0, ()."""
    shares = [share(tensor.detach()) for tensor in tensors if tensor is not None]
    shares = [tensor for tensor in shares if tensor.numel()]
    if not shares:
        return torch.tensor(1.0)
    largest = torch.stack(torch._foreach_norm(shares, float("inf")))  # of a tensor that holds NaN this is NaN
    return largest.isfinite().all().float()


def wrong_gradients(network: nn.Module) -> str:
    """The first parameter with a gradient that is not finite, and how many there are."""
    names = [name for name, p in network.named_parameters() if p.grad is not None and not all_finite([p.grad])]
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{more}" if names else "a parameter in another process"


def sample_to_blame(
    loss_of: Callable[[Batch, Draws], Losses], batch: Batch, draws: Draws, parameters: Sequence[Tensor]
) -> tuple[int, str] | None:
    """The first sample whose loss or gradient, worked out of it alone, is not finite: its row, and what is told of it.

    Halves the batch until one sample is left; None where no half of it goes wrong again, as with other dropout masks.
    """

    def go_wrong(rows: slice) -> Losses | None:
        losses = loss_of(batch.rows(rows), draws.rows(rows))
        gradients = torch.autograd.grad(losses.total, list(parameters), allow_unused=True)
        return None if all_finite([losses.total, *gradients]) else losses

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
    return first, f"{told(losses)}{' (and others after it)' if others else ''}"


def told(losses: Losses) -> str:
    """Of one sample: the term it is in, its value, and its times: 'the consistency loss nan at t=0.7, l=0.6, s=0.2'."""
    ((name, branch),) = [(name, branch) for name, branch in losses.branches.items() if len(branch.loss)]
    times = ", ".join(f"{symbol}={float(time):.4g}" for symbol, time in branch.times.items())
    return f"the {name.replace('_', ' ')} loss, {float(branch.loss.detach()):.4g}, at {times}"
