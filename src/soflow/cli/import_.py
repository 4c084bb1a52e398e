"""`soflow import`: makes a run folder from a checkpoint of the paper's reference implementation."""

import logging
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from soflow.system.text import printable

log = logging.getLogger(__name__)

CHANGES = "Changes to the configuration, e.g. data.source=digits."
HEADS = "Attention heads of a DiT (default: those of the YAML's model_type)."


def import_(
    checkpoint: Annotated[Path, Argument(help="The reference implementation's checkpoint.")],
    config: Annotated[Path, Option(help="The YAML file that it was trained with.")],
    out: Annotated[Path, Option(help="The run folder to make.")],
    overrides: Annotated[list[str] | None, Argument(metavar="KEY=VALUE", help=CHANGES)] = None,
    heads: Annotated[int | None, Option(min=1, help=HEADS)] = None,
) -> None:
    """Make a run folder from a checkpoint of the reference implementation."""
    from soflow.interop.reference import import_checkpoint

    imported = import_checkpoint(checkpoint, config, out, heads, overrides or [])
    sizes, translation = imported.sizes, imported.translation
    network = [f"network.{key}={value}" for key, value in sizes.network.items()]
    data = [f"data.shape={list(sizes.shape)}", f"data.num_classes={sizes.num_classes}"]
    for title, lines in (
        ("from the checkpoint", [*network, *data, *imported.facts]),
        ("from the YAML file", translation.used),
        (f"not in the YAML file, taken from the recipe {translation.recipe}", translation.assumed),
        ("changed by you", overrides or []),
        ("not used, because their meaning is unknown", translation.unused),
    ):
        if lines:
            print(f"{title}:", *map(printable, lines), sep="\n  ")
    for note in imported.notes:
        log.info(f"note: {note}")
    steps = imported.config.train.steps
    print(f"written: {out}, {imported.step} of {steps} steps done; next: soflow sample {out}")
    if imported.step >= steps:
        print("training is complete; to continue, import with train.steps=N")
