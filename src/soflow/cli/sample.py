"""`soflow sample`: draws samples of a trained run into a picture, an .npz or a folder of images."""

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from soflow.cli.options import GUIDANCE, INTERVAL, MOST_SAMPLES, VAE, interval_of

NFE = "Network evaluations per sample (default: 1; 64 after flow matching)."
SAMPLER = "renoise, ode, euler or heun (default: what suits the objective)."
LABELS = (
    "Classes to draw in turn, by number or name: 0,1,2 (default: all); none: without a label, if "
    "the run has trained that."
)
DRAW = "balanced: all classes in turn; random: each drawn from (seed, i)."
BATCH = "Samples drawn at once."
SEED = "Sample i depends on the seed, i and its label alone."
OUT = (
    "FILE.png, FILE.npz (arr_0: uint8 images, or vectors and signals in the data's own units; "
    "arr_1: labels), FILE.csv for vectors, or a folder of PNGs for images "
    "(default: a picture in RUN/samples)."
)
NUM = "How many samples (default: one per condition, or 64)."
NumOption = Option("--num", "-n", min=1, max=MOST_SAMPLES, help=NUM)
COND = (
    "Conditions, for runs that were trained with some: FILE.npy, or FILE.npz with an array cond; "
    "samples come in the order of its rows."
)


def sample(
    run: Annotated[Path, Argument(help="A run folder, or a checkpoint inside it.")],
    num: Annotated[int | None, NumOption] = None,
    nfe: Annotated[int | None, Option(min=1, help=NFE)] = None,
    sampler: Annotated[str | None, Option(help=SAMPLER)] = None,
    labels: Annotated[str | None, Option(help=LABELS)] = None,
    cond: Annotated[Path | None, Option(metavar="FILE", help=COND)] = None,
    guidance: Annotated[float | None, Option(help=GUIDANCE)] = None,
    guidance_interval: Annotated[str | None, Option(metavar="START,END", help=INTERVAL)] = None,
    draw: Annotated[Literal["balanced", "random"], Option(help=DRAW)] = "balanced",
    seed: Annotated[int, Option(min=0, help=SEED)] = 0,
    weights: Annotated[Literal["ema", "raw"], Option(help="ema (averaged) or raw.")] = "ema",
    batch: Annotated[int, Option(min=1, help=BATCH)] = 500,
    vae: Annotated[str, Option(help=VAE)] = "",
    out: Annotated[Path | None, Option(help=OUT)] = None,
) -> None:
    """Draw samples of a trained run."""
    from soflow.data.arrays import conditions_in
    from soflow.workflows.load import load
    from soflow.workflows.sample import SampleRequest, sample_to_file

    interval = interval_of(guidance_interval)
    loaded = load(run, weights, vae=vae)
    given = None if cond is None else conditions_in(cond, loaded.config.data.cond_column)
    request = SampleRequest.of(
        loaded, num, labels, draw, sampler, nfe, seed, batch,
        cond=given, guidance=guidance, guidance_interval=interval,
    )  # fmt: skip
    name = f"{loaded.checkpoint.path.name}-{request.sampler}-{request.nfe}-seed-{seed}"
    if guidance is not None:
        name += f"-guidance-{guidance:g}"
    if interval is not None:
        name += f"-in-{interval[0]:g}-{interval[1]:g}"
    file = out or loaded.folder.samples / f"{name}.png"
    if sample_to_file(loaded, request, file):
        print(f"{request.num} samples, {request.sampler} in {request.nfe}: {file}")
