"""Measures the error of jumps of different lengths during training, relative to the model's ODE.

    soflow compare fashion_mnist --objectives soflow,mean_flow --seeds 1 \\
        checkpoint.every=250 checkpoint.keep_every=250 --out runs/jumps
    python benchmarks/long_jump.py runs/jumps

Uses the EMA weights in the checkpoints of a comparison's runs. Writes FOLDER/long_jump.json, .md
and .png, or the files given by --out. All runs start from the same noise. Errors are
relative to the distance between the ODE's states at t and s.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from soflow.comparison.record import Comparison
from soflow.comparison.tables import name_of
from soflow.drawing import class_by_class, noise_of_samples
from soflow.evaluation.diagnostics import STEPS, JumpError, jump_errors
from soflow.evaluation.plots import as_text
from soflow.evaluation.tables import markdown_table
from soflow.run.checkpoint import Checkpoint, checkpoints
from soflow.system.atomic import write_text
from soflow.system.progress import track
from soflow.system.records import Record
from soflow.workflows.load import load

#: Jumps (t, s) in the table of errors over training.
SHOWN = ((1.0, 0.0), (1.0, 0.5), (0.5, 0.0), (0.25, 0.0))


class CheckpointErrors(Record):
    """The errors at one training step."""

    step: int
    errors: list[JumpError]

    def of(self, t: float, s: float) -> JumpError | None:
        """The error of the jump from t to s, if it was measured."""
        return next((one for one in self.errors if (one.t, one.s) == (t, s)), None)


class RunErrors(Record):
    """The errors of one run over training."""

    name: str
    folder: str
    checkpoints: list[CheckpointErrors]


class LongJump(Record):
    """The content of long_jump.json."""

    num: int
    heun_steps: int
    runs: list[RunErrors]


def names_in(folder: Path) -> dict[str, str]:
    """Maps the run folders of a finished comparison to the names of their objectives."""
    results = Comparison.read(folder / "results.json")
    objectives = {} if results is None else results.objectives
    return {run.folder: name_of(name) for name, one in objectives.items() for run in one.runs}


def measured(run: Path, name: str, num: int, most: int) -> RunErrors:
    """The errors of a run at up to `most` of its checkpoints."""
    kept = chosen(checkpoints(run / "checkpoints"), most)
    found = []
    with track(run.name, len(kept)) as progress:
        for i, checkpoint in enumerate(kept, 1):
            found.append(errors_at(checkpoint, num))
            progress.update(i, f"step {checkpoint.step:,}")
    return RunErrors(name=name, folder=run.name, checkpoints=found)


def chosen(kept: list[Checkpoint], most: int) -> list[Checkpoint]:
    """Up to `most` evenly spaced checkpoints, including the last one."""
    count = min(most, len(kept))
    return [kept[len(kept) * i // count - 1] for i in range(1, count + 1)]


def errors_at(checkpoint: Checkpoint, num: int) -> CheckpointErrors:
    """The errors of the EMA weights of a checkpoint."""
    run = load(checkpoint.path)
    model = run.model
    noise = noise_of_samples(0, 0, num, 1, model.shape, run.device)[0]
    labels = class_by_class(num, model.num_classes)
    on_device = None if labels is None else labels.to(run.device)
    return CheckpointErrors(step=checkpoint.step, errors=jump_errors(model, noise, on_device))


def markdown(found: LongJump) -> str:
    """A table of errors over training, and tables of all errors of the last checkpoints."""
    header = ["run", "step", *(f"{t:g} to {s:g}" for t, s in SHOWN), "mean of all"]
    rows = [header]
    for run in found.runs:
        for point in run.checkpoints:
            shown = [point.of(t, s) for t, s in SHOWN]
            cells = ["" if one is None else f"{one.relative:.3f}" for one in shown]
            everything = np.mean([one.relative for one in point.errors])
            rows.append([run.name, f"{point.step:,}", *cells, f"{everything:.3f}"])
    about = (
        f"Error of one jump from t to s, compared with {found.heun_steps} Heun steps of the "
        "model's own velocity. Relative to the distance between the states at t and s: root mean "
        f"square over dimensions, mean over {found.num:,} samples. EMA weights."
    )
    last = []
    for run in found.runs:
        point = run.checkpoints[-1]
        starts, ends = times(found)
        grid = [["t, s", *(f"{s:g}" for s in ends)]]
        for t in starts:
            errors = [point.of(t, s) for s in ends]
            cells = ["" if x is None else f"{x.relative:.3f} ({x.error:.3f})" for x in errors]
            grid.append([f"{t:g}", *cells])
        last += [
            f"{run.name}, step {point.step:,}: relative (absolute) errors.",
            markdown_table(grid),
        ]
    return "\n\n".join([about, markdown_table(rows), *last]) + "\n"


def times(found: LongJump) -> tuple[list[float], list[float]]:
    """The times t and s of all errors, largest first."""
    errors = [one for run in found.runs for point in run.checkpoints for one in point.errors]
    starts, ends = {one.t for one in errors}, {one.s for one in errors}
    return sorted(starts, reverse=True), sorted(ends, reverse=True)


def picture(found: LongJump) -> Figure:
    """Heat maps of relative errors: one row per run, one column per checkpoint, one scale."""
    starts, ends = times(found)
    columns = max(len(run.checkpoints) for run in found.runs)
    figure = Figure(figsize=(2.7 * columns + 1.2, 2.6 * len(found.runs)), layout="constrained")
    every = [x.relative for run in found.runs for point in run.checkpoints for x in point.errors]
    scale = LogNorm(min(every), max(every))
    axes: list[Axes] = []
    for row, run in enumerate(found.runs):
        for column, point in enumerate(run.checkpoints):
            one = figure.add_subplot(len(found.runs), columns, row * columns + column + 1)
            heat_map(one, point, starts, ends, scale)
            one.set_title(f"{as_text(run.name)}, step {point.step:,}", fontsize=9)
            axes.append(one)
    shown = axes[0].images[0]
    figure.colorbar(shown, ax=axes, label="relative error of one jump", shrink=0.8)
    return figure


def heat_map(
    axes: Axes, point: CheckpointErrors, starts: list[float], ends: list[float], scale: LogNorm
) -> None:
    """The errors of one checkpoint: one row per t, one column per s."""
    errors = [[point.of(t, s) for s in ends] for t in starts]
    values = np.array([[np.nan if x is None else x.relative for x in row] for row in errors])
    axes.imshow(values, norm=scale, cmap="viridis")
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if not np.isnan(value):
                color = "black" if scale(value) > 0.6 else "white"
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color=color)
    axes.set_xticks(range(len(ends)), [f"{s:g}" for s in ends], fontsize=7)
    axes.set_yticks(range(len(starts)), [f"{t:g}" for t in starts], fontsize=7)
    axes.set_xlabel("s", fontsize=8)
    axes.set_ylabel("t", fontsize=8)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the folder of a comparison")
    parser.add_argument("--seed", type=int, default=0, help="the seed of the runs (default: 0)")
    parser.add_argument("--only", help="names of run folders without -seed-N, separated by commas")
    parser.add_argument("--num", type=int, default=500, help="the number of samples (default: 500)")
    parser.add_argument(
        "--checkpoints",
        type=int,
        default=5,
        help="the largest number of checkpoints per run (default: 5)",
    )
    parser.add_argument("--out", type=Path, help="the path of the output files, without suffix")
    asked = parser.parse_args()
    ending = f"-seed-{asked.seed}"
    names = sorted(
        path.parent.name.removesuffix(ending)
        for path in asked.folder.glob(f"*{ending}/config.yaml")
    )
    wanted = asked.only.split(",") if asked.only else names
    if not names or set(wanted) - set(names):
        there = ", ".join(names) or "none"
        parser.error(f"{asked.folder}: the runs of seed {asked.seed} are {there}")
    if min(asked.num, asked.checkpoints) < 1:
        parser.error("--num and --checkpoints must be 1 or more")
    runs = [asked.folder / f"{name}{ending}" for name in wanted]
    if empty := [run.name for run in runs if not checkpoints(run / "checkpoints")]:
        parser.error(f"{empty[0]} has no checkpoint")
    shown = names_in(asked.folder)
    found = LongJump(
        num=asked.num,
        heun_steps=STEPS,
        runs=[
            measured(run, shown.get(run.name, run.name), asked.num, asked.checkpoints)
            for run in runs
        ],
    )
    out = asked.out or asked.folder / "long_jump"
    found.write(out.with_name(f"{out.name}.json"))
    write_text(out.with_name(f"{out.name}.md"), markdown(found))
    picture(found).savefig(out.with_name(f"{out.name}.png"), dpi=110)
    print(markdown(found))


if __name__ == "__main__":
    main()
