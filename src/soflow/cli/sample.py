"""`soflow sample`: draws samples of a trained run into a picture, an .npz or a folder of images."""

import logging
from pathlib import Path
from typing import Annotated, Literal

import typer

from soflow.cli.options import MOST_SAMPLES

log = logging.getLogger(__name__)


def sample(
    run: Annotated[Path, typer.Argument(help="A run folder, or a checkpoint inside it.")],
    num: Annotated[
        int, typer.Option("--num", "-n", min=1, max=MOST_SAMPLES, help="How many samples.")
    ] = 64,
    nfe: Annotated[
        int | None,
        typer.Option(
            min=1, help="Network evaluations per sample (default: 1; 64 after flow matching)."
        ),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(help="renoise, ode, euler or heun (default: what suits the objective)."),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(help="Classes to draw in turn, by number or name: 0,1,2 (default: all)."),
    ] = None,
    draw: Annotated[
        Literal["balanced", "random"],
        typer.Option(help="balanced: all classes in turn; random: each drawn from (seed, i)."),
    ] = "balanced",
    seed: Annotated[
        int, typer.Option(min=0, help="Sample i depends on the seed, i and its label alone.")
    ] = 0,
    weights: Annotated[Literal["ema", "raw"], typer.Option(help="ema (averaged) or raw.")] = "ema",
    vae: Annotated[
        str,
        typer.Option(
            help="The autoencoder that decodes latents (default: the one that made them)."
        ),
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option(
            help="FILE.png, FILE.npz (arr_0: uint8 images or vectors, arr_1: labels) or a folder "
            "(default: a picture in RUN/samples)."
        ),
    ] = None,
) -> None:
    """Draw samples of a trained run."""
    from soflow.workflows.load import load
    from soflow.workflows.sample import SampleRequest, sample_to_file

    loaded = load(run, weights, vae=vae)
    request = SampleRequest.of(loaded, num, labels, draw, sampler, nfe, seed)
    name = f"{loaded.checkpoint.path.name}-{request.sampler}-{request.nfe}-seed-{seed}.png"
    file = out or loaded.folder.samples / name
    if sample_to_file(loaded, request, file):
        print(f"{num} samples, {request.sampler} in {request.nfe}: {file}")
