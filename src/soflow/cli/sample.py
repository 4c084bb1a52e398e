"""`soflow sample`: draws samples from a trained run and writes them to files."""

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from soflow.cli.options import (
    GUIDANCE,
    INTERVAL,
    MOST_SAMPLES,
    TIMES,
    VAE,
    interval_of,
    times_of,
)
from soflow.errors import InputError

NFE = (
    "Number of network evaluations (NFE) per sample (default: 1; 2 with --sampler heun; without "
    "--sampler, 64 for runs trained by flow matching)."
)
SAMPLER = "Sampler: renoise, ode, euler or heun (default: the default sampler of the objective)."
LABELS = (
    "Classes of the samples, in turn, by number or name, such as 0,1,2 (default: all classes). "
    "The word none draws samples without labels, for runs trained with guidance or unlabeled data."
)
DRAW = "balanced: all classes in turn; random: the class of sample i is drawn from (seed, i)."
BATCH = "Number of samples drawn at once; does not change the samples."
SEED = "Seed. With the same sampler and NFE, sample i depends only on the seed, i and its label."
OUT = (
    "FILE.png for a picture; FILE.npz for arrays (arr_0: uint8 images, or vectors and signals in "
    "the units of the data; arr_1: labels); FILE.csv for vectors; or a folder for one PNG per "
    "image (default: a picture in the folder samples of the run)."
)
NUM = "Number of samples (default: one per condition if --cond is given, otherwise 64)."
NumOption = Option("--num", "-n", min=1, max=MOST_SAMPLES, help=NUM)
COND = (
    "Conditions, for runs that were trained with conditions: FILE.npy, or FILE.npz with an array "
    "cond; the samples take its rows in turn."
)
WEIGHTS = "Weights to sample with: ema (the EMA weights) or raw."


def sample(
    run: Annotated[Path, Argument(help="A run folder, or a checkpoint in one.")],
    num: Annotated[int | None, NumOption] = None,
    nfe: Annotated[int | None, Option(min=1, help=NFE)] = None,
    sampler: Annotated[str | None, Option(help=SAMPLER)] = None,
    times: Annotated[str | None, Option(metavar="1,...,0", help=TIMES)] = None,
    labels: Annotated[str | None, Option(help=LABELS)] = None,
    cond: Annotated[Path | None, Option(metavar="FILE", help=COND)] = None,
    guidance: Annotated[float | None, Option(help=GUIDANCE)] = None,
    guidance_interval: Annotated[str | None, Option(metavar="START,END", help=INTERVAL)] = None,
    draw: Annotated[Literal["balanced", "random"], Option(help=DRAW)] = "balanced",
    seed: Annotated[int, Option(min=0, help=SEED)] = 0,
    weights: Annotated[Literal["ema", "raw"], Option(help=WEIGHTS)] = "ema",
    batch: Annotated[int, Option(min=1, help=BATCH)] = 500,
    vae: Annotated[str, Option(help=VAE)] = "",
    out: Annotated[Path | None, Option(help=OUT)] = None,
) -> None:
    """Draw samples from a trained run."""
    from soflow.data.arrays import conditions_in
    from soflow.workflows.load import load
    from soflow.workflows.sample import sample_to_file
    from soflow.workflows.sample_request import SampleRequest

    if labels is not None and draw == "random":
        raise InputError("--labels and --draw random cannot be combined: leave out one of them")
    interval, jumps = interval_of(guidance_interval), times_of(times)
    loaded = load(run, weights, vae=vae)
    given = None if cond is None else conditions_in(cond, loaded.config.data.cond_column)
    request = SampleRequest.of(
        loaded, num, labels, draw, sampler, nfe, seed, batch,
        cond=given, guidance=guidance, guidance_interval=interval, times=jumps,
    )  # fmt: skip
    name = f"{loaded.checkpoint.path.name}-{request.sampler}-{request.nfe}-seed-{seed}"
    if guidance is not None:
        name += f"-guidance-{guidance:g}"
    if interval is not None:
        name += f"-in-{interval[0]:g}-{interval[1]:g}"
    if jumps is not None:
        name += "-times" + "".join(f"-{time:g}" for time in jumps)
    file = out or loaded.folder.samples / f"{name}.png"
    if sample_to_file(loaded, request, file):
        print(f"{request.num} samples, sampler {request.sampler}, NFE {request.nfe}: {file}")
