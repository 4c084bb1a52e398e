"""`soflow encode`: encodes images into latents, the training data of latent models."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from soflow.cli.options import at_least

SOURCE = (
    "Images: a folder, an .npz file, parquet files, or the name of a dataset on the Hugging Face "
    "Hub; add :SPLIT to choose a split."
)
VAE = "The autoencoder, in diffusers format: a name on the Hugging Face Hub, or a folder."
IMAGES = "Column or array that holds the images, if there are several candidates."
SETTINGS = (
    "Settings of the data, such as data.range=[0,4095], data.num_classes=0 or "
    "data.max_unreadable=0.1."
)
LABELS = "Column or array that holds the classes, if there are several candidates."
SIZE = "Side in pixels to which images are resized and cropped."
FLIP = "Also encode the mirror image of each image."
BATCH = "Number of images encoded at once."


def encode(
    source: Annotated[str, Argument(help=SOURCE)],
    settings: Annotated[list[str] | None, Argument(help=SETTINGS, metavar="KEY=VALUE")] = None,
    *,
    out: Annotated[Path, Option(help="The folder to write the latents to.")],
    vae: Annotated[str, Option(help=VAE)] = "stabilityai/sd-vae-ft-mse",
    size: Annotated[int, Option(help=SIZE)] = 256,
    flip: Annotated[bool, Option(help=FLIP)] = False,
    batch_size: Annotated[int, Option(help=BATCH)] = 32,
    image_column: Annotated[str, Option(help=IMAGES)] = "",
    label_column: Annotated[str, Option(help=LABELS)] = "",
) -> None:
    """Encode images into latents for training.

    To resume after an interruption, run the same command again. Under torchrun, the processes
    share the work.
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
        f"encoded: {out}, {len(latents):,} latents {c}x{h}x{w}, {latents.num_classes} classes\n"
        f"next: soflow train RECIPE data.source=latents data.path={out} "
        f"data.shape=[{c},{h},{w}] data.num_classes=-1"
    )
