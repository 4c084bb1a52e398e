"""`soflow import`: turns a checkpoint of the paper's reference implementation into a run folder."""

import logging
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from soflow.system.text import printable

log = logging.getLogger(__name__)

CHANGES = "Changes to the configuration, such as data.source=digits."
HEADS = "Number of attention heads of a DiT (default: that of model_type in the YAML file)."


def import_(
    checkpoint: Annotated[Path, Argument(help="A checkpoint of the reference implementation.")],
    config: Annotated[Path, Option(help="The YAML file that the checkpoint was trained with.")],
    out: Annotated[Path, Option(help="The run folder to create.")],
    overrides: Annotated[list[str] | None, Argument(metavar="KEY=VALUE", help=CHANGES)] = None,
    heads: Annotated[int | None, Option(min=1, help=HEADS)] = None,
) -> None:
    """Turn a checkpoint of the paper's reference implementation into a run folder."""
    from soflow.interop.reference import import_checkpoint

    imported = import_checkpoint(checkpoint, config, out, heads, overrides or [])
    sizes, translation = imported.sizes, imported.translation
    network = [f"network.{key}={value}" for key, value in sizes.network.items()]
    data = [f"data.shape={list(sizes.shape)}", f"data.num_classes={sizes.num_classes}"]
    for title, lines in (
        ("from the checkpoint", [*network, *data, *imported.facts]),
        ("from the YAML file", translation.used),
        (f"not in the YAML file, from the recipe {translation.recipe}", translation.assumed),
        ("changed by you", overrides or []),
        ("ignored, because the meaning is unknown", translation.unused),
    ):
        if lines:
            print(f"{title}:", *map(printable, lines), sep="\n  ")
    for note in imported.notes:
        log.info(f"note: {note}")
    steps = imported.config.train.steps
    print(f"written: {out}, {imported.step} of {steps} steps done; next: soflow sample {out}")
    if imported.step >= steps:
        print("training is complete; to train further, import again with a larger train.steps=N")
