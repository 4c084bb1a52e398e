"""`soflow evaluate`: figures of a trained run, or of samples made by anything."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from soflow.cli.options import (
    MOST_SAMPLES,
    at_least,
    between,
    one_of,
    require_asked_for,
    whole_numbers,
    writable,
)
from soflow.errors import InputError

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from soflow.config import Config
    from soflow.evaluation.judging import Compared
    from soflow.sampling import LabelDraw, Sampler
    from soflow.workflows.load import Weights


SUBJECT = "A run, a checkpoint in it, or samples made by anything: a folder of images, an .npz, or a data set and :SPLIT."
FEATURES = (
    "inception (FID's), digits, classifier, coordinates, a TorchScript FILE or NAME=FILE (default: the recipe's). "
    "TorchScript is a program: give only files that you trust."
)
REFERENCE = "Data, a path or a name, and :SPLIT; or an .npz of images or statistics (default: the training data)."
BASELINE = "Add real against real: held-out data in place of samples (default: for runs, where there are some)."


def evaluate(
    samples: Annotated[
        Path,
        typer.Argument(metavar="RUN|SAMPLES", help=SUBJECT),
    ],
    nfe: Annotated[
        str | None,
        typer.Option(help="Network evaluations a sample, e.g. 1,2,4 (default: the recipe's)."),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Samplers, e.g. renoise,ode (default: all of the method's; heun is its own ODE)."
        ),
    ] = None,
    num: Annotated[
        int | None, typer.Option(help="Samples to draw for each row (default: the recipe's).")
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(help=FEATURES),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(help=REFERENCE),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="ema (averaged), raw, or both (default: ema,raw).")
    ] = None,
    draw: Annotated[
        str | None, typer.Option(help="Classes of samples: balanced or random (default: balanced).")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the samples (default: 0).")] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Draw again with so many seeds, for means and deviations.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="Samples drawn at once; changes no figure (default: 500).")
    ] = None,
    baseline: Annotated[
        bool | None,
        typer.Option(help=BASELINE),
    ] = None,
    vae: Annotated[
        str | None,
        typer.Option(
            help="The autoencoder that decodes latents (default: the one that made them)."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where the figures go (default: evaluation.json in RUN; SAMPLES.evaluation.json)."
        ),
    ] = None,
) -> None:
    """Evaluate a run, or samples made by anything: a table, and evaluation.json with the protocol."""
    from soflow.system import processes

    if processes.count() > 1:
        raise InputError(
            "soflow evaluate runs in one process: draw with torchrun -m soflow sample RUN -n N --out FILE.npz, "
            "then evaluate FILE.npz"
        )
    if out is not None:
        writable(out, "--out")
    drawing = Drawing(
        nfe=None
        if nfe is None
        else [at_least(n, 1, "--nfe") for n in dict.fromkeys(whole_numbers(nfe, "--nfe"))],
        methods=None if methods is None else list(dict.fromkeys(methods.split(","))),
        num=None if num is None else between(num, 2, MOST_SAMPLES, "--num"),
        weights=[
            one_of(name, ("ema", "raw"), "--weights")
            for name in dict.fromkeys(("ema,raw" if weights is None else weights).split(","))
        ],
        labels=one_of(draw or "balanced", ("balanced", "random"), "--draw"),
        seed=at_least(seed or 0, 0, "--seed"),
        seeds=at_least(1 if seeds is None else seeds, 1, "--seeds"),
        batch=at_least(500 if batch is None else batch, 1, "--batch"),
        vae=vae or "",
    )
    for_runs = {
        "--nfe": nfe, "--methods": methods, "--num": num, "--weights": weights, "--draw": draw, "--seed": seed,
        "--seeds": seeds, "--batch": batch, "--vae": vae,
    }  # fmt: skip
    given = [option for option, value in for_runs.items() if value is not None]
    if is_run(samples) or (given and not samples.exists() and ":" not in str(samples)):
        evaluate_run(samples, features, reference, baseline, out, drawing)
        return
    if given:
        raise InputError(f"{given[0]} is for runs, and {samples} is none: leave it out")
    evaluate_samples(samples, features, reference, baseline, out)


@dataclass(frozen=True)
class Drawing:
    """The options that say how the samples of a run are drawn; None leaves it to the recipe."""

    nfe: list[int] | None
    methods: list[str] | None
    num: int | None
    weights: "list[Weights]"
    labels: "LabelDraw"
    seed: int
    seeds: int
    batch: int
    vae: str


def is_run(path: Path) -> bool:
    """Whether a path is meant as a run: its folder, or a checkpoint in it."""
    inside = path.absolute().parent.name == "checkpoints" and (
        path.name == "best" or path.name.startswith("step-")
    )
    return inside or (path / "config.yaml").exists() or (path / "checkpoints").exists()


def evaluate_run(
    path: Path,
    features: str | None,
    reference: str | None,
    baseline: bool | None,
    out: Path | None,
    drawing: Drawing,
) -> None:
    from soflow.evaluation.evaluate import Protocol, evaluate, rows_of, work
    from soflow.evaluation.judging import compared_with
    from soflow.run.folder import evaluation_file
    from soflow.system.progress import counting
    from soflow.workflows.load import load

    loaded = {name: load(path, name, vae=drawing.vae) for name in drawing.weights}
    run = next(iter(loaded.values()))
    config = run.config.evaluate
    require_asked_for(config.features, f"--features {config.features}", asked=features is not None)
    samplers = chosen_samplers(drawing.methods, run.config)
    seeds = range(drawing.seed, drawing.seed + drawing.seeds)
    protocol = Protocol(
        drawing.nfe or list(config.nfe),
        drawing.num or config.num,
        seeds,
        drawing.labels,
        drawing.batch,
    )
    compared = compared_with(
        run.config, run.encoder, run.model.decode, features or "", reference or "", baseline
    )
    sets = len(rows_of(samplers, protocol.nfe, drawing.weights)) * len(seeds)
    with counting(
        "evaluating", work(compared.scorer, [protocol.num] * sets + real_count(compared))
    ) as on_done:
        results = evaluate(
            {name: one.model for name, one in loaded.items()}, samplers, compared.scorer, compared.baseline, protocol,
            run.device, on_done, compared.points,
        )  # fmt: skip
    results = {"checkpoint": run.checkpoint.path.name, **results}
    show(results)
    if out is None:
        out = evaluation_file(run.folder, run.checkpoint.path.name)
    write(out, results)
    print(f"written: {out}")


def chosen_samplers(named: list[str] | None, config: "Config") -> "list[Sampler]":
    """The samplers of the run's method, or those of them that are named."""
    there = config.samplers
    for name in named or []:
        one_of(name, there, f"--methods, of a run by {config.objective.name},")
    return [sampler for sampler in there if named is None or sampler in named]


def evaluate_samples(
    path: Path, features: str | None, reference: str | None, baseline: bool | None, out: Path | None
) -> None:
    from soflow.evaluation.evaluate import evaluate_samples, work
    from soflow.evaluation.judging import compared_samples, open_samples
    from soflow.system.progress import counting

    missing = [
        option
        for option, value in {"--reference DATA": reference, "--features NAME": features}.items()
        if not value
    ]
    if path.exists() and missing:
        raise InputError(
            f"{path} holds samples: say what to compare them with by {' and '.join(missing)}"
        )
    named = (
        path.absolute()
        if path.exists()
        else Path.cwd() / str(path).replace("/", "-").replace(":", "-")
    )
    file = out or named.with_name(f"{named.name}.evaluation.json")
    writable(file, "--out")
    given = open_samples(str(path))
    if features is None or reference is None:
        raise InputError(
            f"{path} holds samples: say what to compare them with by {' and '.join(missing)}"
        )
    compared = compared_samples(given, features, reference, bool(baseline))
    with counting(
        "evaluating", work(compared.scorer, [given.count, *real_count(compared)])
    ) as on_done:
        results = evaluate_samples(
            compared.scorer, given.parts(), given.count, given.labels, compared.baseline, on_done
        )
    results = {"samples": {**given.protocol, "path": path.name, "count": given.count}, **results}
    show(results)
    write(file, results)
    print(f"written: {file}")


def real_count(compared: "Compared") -> list[int]:
    return [] if compared.baseline is None else [len(compared.baseline.data)]


def write(file: Path, results: dict[str, Any]) -> None:
    from soflow.system.atomic import write_json

    write_json(file, results)


def show(results: dict[str, Any]) -> None:
    """The results as a table on stdout."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from soflow.evaluation.tables import reading_aid, table, title
    from soflow.system.text import printable

    header, *rows = table(results)
    shown = Table(
        title=printable(title(results)), box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left"
    )
    for column in header:
        shown.add_column(column, justify="left" if column in ("weights", "sampler") else "right")
    for row in rows:
        shown.add_row(*row)
    console = Console(markup=False)  # names in files are no markup
    if not console.is_terminal:
        console = Console(width=max(console.width, 125), markup=False)
    console.print(shown)
    console.print(printable(reading_aid(results)), highlight=False)
    for name, value in results["diagnostics"].items():
        console.print(f"{name.replace('_', ' ')}: {value:.4f}", highlight=False)
