"""`soflow evaluate`: evaluates a trained run, or samples from any generator."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from soflow.cli.options import (
    GUIDANCE,
    INTERVAL,
    MOST_SAMPLES,
    TIMES,
    VAE,
    at_least,
    interval_of,
    one_of,
    positive_numbers,
    print_table,
    require_writable_file,
    several_of,
    times_of,
)
from soflow.errors import InputError

if TYPE_CHECKING:
    from soflow.evaluation.record import Evaluation

SUBJECT = (
    "A run folder, a checkpoint in it, or samples: a folder of images, an .npz file, or a dataset "
    "as SOURCE:SPLIT."
)
NFE = (
    "Numbers of network evaluations (NFE) per sample, separated by commas, such as 1,2,4 "
    "(default: evaluate.nfe of the run)."
)
SAMPLERS = (
    "Samplers, separated by commas: renoise, ode, euler, heun (default: all that work with "
    "the objective; heun integrates the ODE of the model's velocity)."
)
NUM = "Number of samples per row of the table (default: evaluate.num of the run)."
FEATURES = (
    "Network that computes features: inception (for FID), digits, classifier, coordinates, or a "
    "TorchScript FILE or NAME=FILE (default: evaluate.features of the run). A TorchScript file is "
    "a program: use only files that you trust."
)
REFERENCE = (
    "Real data to compare with: SOURCE[:SPLIT], or an .npz file of images or of statistics "
    "(default: the training data)."
)
WEIGHTS = "Weights to evaluate: ema, raw, or both (default: ema,raw)."
DRAW = (
    "Classes of the samples. balanced: all classes equally often; random: drawn at random "
    "(default: balanced; for vectors and signals, the class frequencies of the reference)."
)
SEED = "Seed of the samples (default: 0)."
SEEDS = "Number of seeds to draw samples with; the table shows means and standard deviations."
BATCH = "Number of samples drawn at once; does not change the results (default: 500)."
BASELINE = (
    "Also score held-out real data (default: yes for runs, except for latents without another "
    "split; no for samples)."
)
OUT = (
    "File for the results (default: evaluation.json in the run folder, or SAMPLES.evaluation.json)."
)


def evaluate(
    samples: Annotated[Path, Argument(metavar="RUN|SAMPLES", help=SUBJECT)],
    nfe: Annotated[str | None, Option(help=NFE)] = None,
    samplers: Annotated[str | None, Option(help=SAMPLERS)] = None,
    times: Annotated[str | None, Option(metavar="1,...,0", help=TIMES)] = None,
    num: Annotated[int | None, Option(help=NUM)] = None,
    features: Annotated[str, Option(help=FEATURES)] = "",
    reference: Annotated[str, Option(help=REFERENCE)] = "",
    weights: Annotated[str | None, Option(help=WEIGHTS)] = None,
    guidance: Annotated[float | None, Option(help=GUIDANCE)] = None,
    guidance_interval: Annotated[str | None, Option(metavar="START,END", help=INTERVAL)] = None,
    draw: Annotated[str | None, Option(help=DRAW)] = None,
    seed: Annotated[int | None, Option(help=SEED)] = None,
    seeds: Annotated[int | None, Option(help=SEEDS)] = None,
    batch: Annotated[int | None, Option(help=BATCH)] = None,
    baseline: Annotated[bool | None, Option(help=BASELINE)] = None,
    vae: Annotated[str | None, Option(help=VAE)] = None,
    out: Annotated[Path | None, Option(help=OUT)] = None,
) -> None:
    """Evaluate a run, or samples from any generator.

    Prints a table, and writes the metrics with their protocol to a JSON file.
    """
    from soflow.system import processes

    if processes.count() > 1:
        raise InputError(
            "soflow evaluate runs in one process only: draw samples with "
            "torchrun -m soflow sample RUN -n N --out FILE.npz, then evaluate FILE.npz"
        )
    if out is not None:
        require_writable_file(out)
    for_runs = {
        "--nfe": nfe, "--samplers": samplers, "--num": num, "--weights": weights, "--draw": draw,
        "--seed": seed, "--seeds": seeds, "--batch": batch, "--vae": vae, "--guidance": guidance,
        "--guidance-interval": guidance_interval, "--times": times,
    }  # fmt: skip
    at_least(0, seed=seed)
    at_least(1, seeds=seeds, batch=batch)
    at_least(2, num=num)
    if num is not None and num > MOST_SAMPLES:
        raise InputError(f"--num is {num}: it must be at most {MOST_SAMPLES}")
    given = [option for option, value in for_runs.items() if value is not None]
    counts = positive_numbers(nfe, "--nfe") if nfe else ()
    known = ("renoise", "ode", "euler", "heun")
    named = several_of(known, samplers, "--samplers") if samplers else ()
    which = several_of(("ema", "raw"), "ema,raw" if weights is None else weights, "--weights")
    interval, jumps = interval_of(guidance_interval), times_of(times)
    labels = None if draw is None else one_of(("balanced", "random"), draw, "--draw")
    if not is_run(samples) and (samples.exists() or ":" in str(samples) or not given):
        if given:
            raise InputError(
                f"{given[0]} applies to runs only, and {samples} is not a run: leave it out"
            )
        evaluation, file = evaluate_files(samples, features, reference, bool(baseline), out)
    else:
        from soflow.evaluation.evaluate import EvaluationSettings
        from soflow.run.folder import evaluation_file, find_run
        from soflow.workflows.evaluate import evaluate

        first = seed or 0
        settings = EvaluationSettings(
            nfe=counts,
            samplers=named,
            num=num or 0,
            seeds=tuple(range(first, first + (seeds or 1))),
            labels=labels,
            batch_size=batch or 500,
            weights=which,
            features=features,
            reference=reference,
            baseline=baseline,
            vae=vae or "",
            guidance=guidance,
            guidance_interval=interval,
            times=jumps,
        )
        folder, _ = find_run(samples, which[0])
        evaluation = evaluate(samples, settings)
        file = out or evaluation_file(folder, evaluation.checkpoint)
    evaluation.write(file)  # first, since printing can fail, as with `| head`
    show(evaluation)
    print(f"written: {file}")


def is_run(path: Path) -> bool:
    """Whether a path names a run folder or a checkpoint in one."""
    named = path.name == "best" or path.name.startswith("step-")
    if named and path.absolute().parent.name == "checkpoints":
        return True
    files = ("config.yaml", "checkpoints", "cost.json")  # cost.json: a comparison, refused later
    return any((path / name).exists() for name in files)


def evaluate_files(
    path: Path, features: str, reference: str, baseline: bool, out: Path | None
) -> "tuple[Evaluation, Path]":
    """The evaluation of samples in files, and the file to write it to."""
    from soflow.evaluation.sample_set import open_samples
    from soflow.workflows.evaluate import evaluate_samples

    if not features or not reference:
        if not path.exists() and ":" not in str(path):
            open_samples(str(path))  # raises InputError: there are no samples
        missing = ["--reference DATA"] * (not reference) + ["--features NAME"] * (not features)
        raise InputError(
            f"{path} holds samples: to compare them with real data, set {' and '.join(missing)}"
        )
    named = path.absolute()
    if not path.exists():
        named = Path.cwd() / str(path).replace("/", "-").replace(":", "-")
    file = out or named.with_name(f"{named.name}.evaluation.json")
    require_writable_file(file)
    return evaluate_samples(path, features, reference, baseline), file


def show(evaluation: "Evaluation") -> None:
    """Prints the evaluation as a table."""
    from rich.box import SIMPLE_HEAD

    from soflow.evaluation.tables import remarks, table, title
    from soflow.system.text import printable

    rows = table(evaluation)
    left = len({"weights", "sampler"} & {*rows[0]})
    style = {"box": SIMPLE_HEAD, "padding": (0, 1, 0, 0), "title_justify": "left"}
    console = print_table(title(evaluation), rows, left, **style)
    console.print(printable(remarks(evaluation)), highlight=False)
    for name, value in evaluation.diagnostics.items():
        console.print(f"{name.replace('_', ' ')}: {value:.4f}", highlight=False)
