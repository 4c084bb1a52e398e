"""`soflow encode`: images to the cached latents that are trained on."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from soflow.cli.options import at_least

SOURCE = "Images: a folder, .npz, parquet or a name on the Hub, with :SPLIT."
VAE = "An autoencoder of diffusers: a name on the Hub, or a folder."
IMAGES = "Column or array of images, if it is not clear."
SETTINGS = "data.range=[0,4095], data.num_classes=0, data.max_unreadable=0.1, ..."
LABELS = "Column or array of classes, if it is not clear."


def encode(
    source: Annotated[str, Argument(help=SOURCE)],
    settings: Annotated[list[str] | None, Argument(help=SETTINGS, metavar="KEY=VALUE")] = None,
    *,
    out: Annotated[Path, Option(help="The folder to make.")],
    vae: Annotated[str, Option(help=VAE)] = "stabilityai/sd-vae-ft-mse",
    size: Annotated[int, Option(help="Side to which images are cropped.")] = 256,
    flip: Annotated[bool, Option(help="Encode mirror images, too.")] = False,
    batch_size: Annotated[int, Option(help="Images encoded at once.")] = 32,
    image_column: Annotated[str, Option(help=IMAGES)] = "",
    label_column: Annotated[str, Option(help=LABELS)] = "",
) -> None:
    """Encode images into latents to train on.

    An interrupted call continues. Under torchrun, each process encodes some of the images.
    """
    at_least(1, size=size, batch_size=batch_size)

    from soflow.data import encoding
    from soflow.data.latents import load_latents
    from soflow.system import processes

    columns = (image_column, label_column)
    given = settings or []
    if not encoding.encode(source, out, vae, size, flip, batch_size, columns, overrides=given):
        print(f"process {processes.index()} is done; other processes are still encoding")
        return
    latents = load_latents(str(out))
    c, h, w = latents.shape
    print(
        f"encoded: {out}, {len(latents):,} latents {c}x{h}x{w} of {latents.num_classes} classes\n"
        f"next: soflow train RECIPE data.source=latents data.path={out} "
        f"data.shape=[{c},{h},{w}] data.num_classes=-1"
    )
