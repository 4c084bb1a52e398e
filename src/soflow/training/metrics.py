"""The training log: running means, and one line per logging step."""

from collections.abc import Mapping

from soflow.run.checkpoint import RunningMean, TrainState
from soflow.run.metrics import MetricsLine
from soflow.system.text import clock


def add_means(state: TrainState, means: Mapping[str, RunningMean]) -> None:
    """Adds the values of one step to the running means."""
    for name, mean in means.items():
        state.means.setdefault(name, RunningMean()).add(mean.total, mean.count)


def take_line(
    state: TrainState, metrics: Mapping[str, float], lr: float, batch_size: int
) -> MetricsLine:
    """The line of a logging step: means since the last line, and `metrics`. Resets the means."""
    means = {name: mean.value for name, mean in state.means.items() if mean.count}
    state.means = {}
    seconds_per_step = means.pop("seconds")
    values = {
        **means,
        **metrics,
        "lr": lr,
        "seconds": state.seconds,
        "steps_per_second": 1 / seconds_per_step,
        "samples_per_second": batch_size / seconds_per_step,
    }
    if state.skipped:
        values["skipped"] = state.skipped
    return MetricsLine(step=state.step, **values)


def metrics_of(line: MetricsLine) -> dict[str, float]:
    """All values of a line, without the step."""
    return line.model_dump(exclude={"step"})


def summary(line: MetricsLine, steps: int) -> str:
    """A readable line: the losses, the speed and the remaining time."""
    metrics = metrics_of(line)
    losses = [
        f"{name} {value:.4f}" for name, value in metrics.items() if name.endswith(("loss", "mse"))
    ]
    speed = f"{metrics['samples_per_second']:,.0f} samples/s"
    left = f"{clock((steps - line.step) / metrics['steps_per_second'])} left"
    return "  ".join([f"step {line.step:,} of {steps:,}", *losses, speed, left])


def progress_text(state: TrainState, batch_size: int) -> str:
    """Mean loss and speed since the last line, for the progress bar."""
    speed = batch_size / state.means["seconds"].value
    loss = f"loss {state.means['loss'].value:.4f}  " if "loss" in state.means else ""
    return f"{loss}{speed:,.0f} samples/s"
