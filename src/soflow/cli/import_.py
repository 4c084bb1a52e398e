"""`soflow import`: a checkpoint of the paper's reference implementation becomes a run folder."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from soflow.cli.options import at_least
from soflow.system.text import printable

log = logging.getLogger(__name__)


def import_(
    checkpoint: Annotated[Path, typer.Argument(help="The reference implementation's checkpoint.")],
    config: Annotated[Path, typer.Option(help="The YAML file that it was trained with.")],
    out: Annotated[Path, typer.Option(help="The run folder to make.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE", help="Changes to the configuration, e.g. data.source=digits."
        ),
    ] = None,
    heads: Annotated[
        int | None,
        typer.Option(help="Attention heads of a DiT (default: those of the YAML's model_type)."),
    ] = None,
) -> None:
    """Turn a checkpoint of the reference implementation into a run folder: sample it, evaluate it, train it on."""
    if heads is not None:
        at_least(heads, 1, "--heads")

    from soflow.interop.reference import import_checkpoint
    from soflow.system.progress import stages

    with stages() as on_stage:
        imported = import_checkpoint(checkpoint, config, out, heads, overrides or [], on_stage)
    sizes, translation = imported.sizes, imported.translation
    network = [f"network.{key}={value}" for key, value in sizes.network.items()]
    data = [f"data.shape={list(sizes.shape)}", f"data.num_classes={sizes.num_classes}"]
    for title, lines in (
        ("read off the checkpoint", [*network, *data, *imported.told]),
        ("settings", translation.used),
        (f"not told by the YAML, so as in the recipe {translation.recipe}", translation.assumed),
        ("changed by you", overrides or []),
        ("not taken over, their names have no known meaning", translation.unused),
    ):
        if lines:
            print(f"{title}:", *map(printable, lines), sep="\n  ")
    for text in imported.notes:
        log.info(f"note: {text}")
    print(
        f"written: {out}, {imported.step} of {imported.config.train.steps} steps done; next: soflow sample {out}"
    )
    if imported.step >= imported.config.train.steps:
        print(
            "nothing is left to train; to go on, import with train.steps=N (r(k, K) depends on it)"
        )
