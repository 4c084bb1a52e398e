"""`soflow encode`: images to the cached latents that are trained on."""

from pathlib import Path
from typing import Annotated

import typer

from soflow.cli.options import at_least


def encode(
    source: Annotated[
        str,
        typer.Argument(
            help="Images: a folder, .npz, parquet or a name on the Hub, with :SPLIT behind it."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The folder to make.")],
    vae: Annotated[
        str, typer.Option(help="An autoencoder of diffusers: its name on the Hub, or a folder.")
    ] = "stabilityai/sd-vae-ft-mse",
    size: Annotated[
        int, typer.Option(help="Side that the images are resized and cropped to.")
    ] = 256,
    flip: Annotated[bool, typer.Option(help="Encode the mirror image of each, too.")] = False,
    batch_size: Annotated[int, typer.Option(help="Images encoded at once.")] = 32,
    image_column: Annotated[
        str, typer.Option(help="Column or array of images, where it is not clear.")
    ] = "",
    label_column: Annotated[
        str, typer.Option(help="Column or array of classes, where it is not clear.")
    ] = "",
) -> None:
    """Encode images into latents for training. Running it again goes on; under torchrun each process does its share."""
    at_least(size, 1, "--size")
    at_least(batch_size, 1, "--batch-size")

    from soflow.data.encoding import encode as run
    from soflow.system import processes

    whole = run(source, out, vae, size, flip, batch_size, (image_column, label_column))
    if not whole:
        print(f"process {processes.index()}: done with its share; others are still encoding")
        return

    from soflow.data.latents import load_latents

    latents = load_latents(str(out), "train")
    c, h, w = latents.shape
    print(f"encoded: {out}, {len(latents):,} latents {c}x{h}x{w} of {latents.num_classes} classes")
    print(
        f"next: soflow train RECIPE data.source=latents data.path={out} data.shape=[{c},{h},{w}] data.num_classes=-1"
    )
