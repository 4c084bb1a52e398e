"""`soflow evaluate`: figures of a trained run, or of samples of any origin."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from soflow.cli.options import (
    MOST_SAMPLES,
    at_least,
    between,
    one_of,
    whole_numbers,
    writable,
)
from soflow.errors import InputError

if TYPE_CHECKING:
    from soflow.evaluation.record import Evaluation

SUBJECT = (
    "A run, a checkpoint in it, or samples: a folder of images, an .npz, or a data set "
    "as SOURCE:SPLIT."
)
FEATURES = (
    "inception (FID's), digits, classifier, coordinates, a TorchScript FILE or NAME=FILE "
    "(default: the recipe's). TorchScript is a program: give only files that you trust."
)
REFERENCE = (
    "Real data as SOURCE[:SPLIT], or an .npz of images or statistics (default: the training data)."
)
BASELINE = "Score held-out real data, too (default: for runs, if there are some)."
DRAW = "Classes of samples: balanced or random (default: balanced)."
VAE = "The autoencoder that decodes latents (default: the one that made them)."
SAMPLERS = ("renoise", "ode", "euler", "heun")
OUT = "Where the figures go (default: evaluation.json in RUN; SAMPLES.evaluation.json)."


def evaluate(
    samples: Annotated[Path, typer.Argument(metavar="RUN|SAMPLES", help=SUBJECT)],
    nfe: Annotated[
        str | None,
        typer.Option(help="Network evaluations per sample, e.g. 1,2,4 (default: the recipe's)."),
    ] = None,
    samplers: Annotated[
        str | None,
        typer.Option(help="E.g. renoise,ode (default: all of the objective's; heun: its ODE)."),
    ] = None,
    num: Annotated[
        int | None, typer.Option(help="Samples per row (default: the recipe's).")
    ] = None,
    features: Annotated[str | None, typer.Option(help=FEATURES)] = None,
    reference: Annotated[str | None, typer.Option(help=REFERENCE)] = None,
    weights: Annotated[
        str | None, typer.Option(help="ema (averaged), raw, or both (default: ema,raw).")
    ] = None,
    draw: Annotated[str | None, typer.Option(help=DRAW)] = None,
    seed: Annotated[int | None, typer.Option(help="Of the samples (default: 0).")] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Draw with several seeds, for means and deviations.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="Samples drawn at once; changes no figure (default: 500).")
    ] = None,
    baseline: Annotated[bool | None, typer.Option(help=BASELINE)] = None,
    vae: Annotated[str | None, typer.Option(help=VAE)] = None,
    out: Annotated[Path | None, typer.Option(help=OUT)] = None,
) -> None:
    """Evaluate a run, or samples of any origin: a table, and evaluation.json with the protocol."""
    from soflow.system import processes

    if processes.count() > 1:
        raise InputError(
            "soflow evaluate runs in one process: draw with "
            "torchrun -m soflow sample RUN -n N --out FILE.npz, then evaluate FILE.npz"
        )
    if out is not None:
        writable(out, "--out")
    for_runs = {
        "--nfe": nfe, "--samplers": samplers, "--num": num, "--weights": weights, "--draw": draw,
        "--seed": seed, "--seeds": seeds, "--batch": batch, "--vae": vae,
    }  # fmt: skip
    given = [option for option, value in for_runs.items() if value is not None]
    counts = [at_least(n, 1, "--nfe") for n in whole_numbers(nfe, "--nfe")] if nfe else []
    first = at_least(seed or 0, 0, "--seed")
    several = at_least(1 if seeds is None else seeds, 1, "--seeds")
    which = [
        one_of(name, ("ema", "raw"), "--weights")
        for name in ("ema,raw" if weights is None else weights).split(",")
    ]
    named = (
        [one_of(name, SAMPLERS, "--samplers") for name in samplers.split(",")] if samplers else []
    )
    number = 0 if num is None else between(num, 2, MOST_SAMPLES, "--num")
    labels = one_of(draw or "balanced", ("balanced", "random"), "--draw")
    at_once = at_least(500 if batch is None else batch, 1, "--batch")
    if not is_run(samples) and (samples.exists() or ":" in str(samples) or not given):
        if given:
            raise InputError(f"{given[0]} is for runs, and {samples} is not one: leave it out")
        evaluate_files(samples, features, reference, bool(baseline), out)
        return

    from soflow.evaluation.evaluate import EvaluationSettings
    from soflow.run.folder import find_run
    from soflow.workflows.evaluate import evaluate, write_evaluation

    settings = EvaluationSettings(
        nfe=tuple(dict.fromkeys(counts)),
        samplers=tuple(dict.fromkeys(named)),
        num=number,
        seeds=tuple(range(first, first + several)),
        labels=labels,
        batch=at_once,
        weights=tuple(dict.fromkeys(which)),
        features=features or "",
        reference=reference or "",
        baseline=baseline,
        vae=vae or "",
    )
    folder, *_ = find_run(samples)
    evaluation = evaluate(samples, settings)
    show(evaluation)
    if out is None:
        out = write_evaluation(folder, evaluation)
    else:
        evaluation.write(out)
    print(f"written: {out}")


def is_run(path: Path) -> bool:
    """Whether a path is meant as a run: its folder, or a checkpoint in it."""
    inside = path.absolute().parent.name == "checkpoints" and (
        path.name == "best" or path.name.startswith("step-")
    )
    return inside or (path / "config.yaml").exists() or (path / "checkpoints").exists()


def evaluate_files(
    path: Path, features: str | None, reference: str | None, baseline: bool, out: Path | None
) -> None:
    from soflow.evaluation.sample_set import open_samples
    from soflow.workflows.evaluate import evaluate_samples

    if not features or not reference:
        if not path.exists() and ":" not in str(path):
            open_samples(str(path))  # which says so
        missing = ["--reference DATA"] * (not reference) + ["--features NAME"] * (not features)
        raise InputError(
            f"{path} holds samples: say what to compare them with by {' and '.join(missing)}"
        )
    named = path.absolute()
    if not path.exists():
        named = Path.cwd() / str(path).replace("/", "-").replace(":", "-")
    file = out or named.with_name(f"{named.name}.evaluation.json")
    writable(file, "--out")
    evaluation = evaluate_samples(path, features, reference, baseline)
    show(evaluation)
    evaluation.write(file)
    print(f"written: {file}")


def show(evaluation: "Evaluation") -> None:
    """The evaluation as a table on stdout."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from soflow.evaluation.tables import remarks, table, title
    from soflow.system.text import printable

    header, *rows = table(evaluation)
    shown = Table(
        title=printable(title(evaluation)),
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title_justify="left",
    )
    for column in header:
        shown.add_column(column, justify="left" if column in ("weights", "sampler") else "right")
    for row in rows:
        shown.add_row(*row)
    console = Console(markup=False)  # names in files are no markup
    if not console.is_terminal:
        console = Console(width=max(console.width, 125), markup=False)
    console.print(shown)
    console.print(printable(remarks(evaluation)), highlight=False)
    for name, value in evaluation.diagnostics.items():
        console.print(f"{name.replace('_', ' ')}: {value:.4f}", highlight=False)
