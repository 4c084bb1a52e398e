"""`soflow reference`: statistics of real data, worked out once and used for every evaluation."""

from pathlib import Path
from typing import Annotated

import typer

from soflow.cli.options import at_least, writable
from soflow.errors import InputError


def reference(
    data: Annotated[
        str,
        typer.Argument(
            help="Real data: a path or a name, with :SPLIT behind it; or an .npz of images."
        ),
    ],
    features: Annotated[
        str,
        typer.Option(
            help="inception (FID's), digits, classifier, coordinates, a TorchScript FILE or NAME=FILE. TorchScript is a "
            "program: give only files that you trust."
        ),
    ],
    out: Annotated[Path, typer.Option(help="FILE.npz, in ADM's layout: mu, sigma and more.")],
    size: Annotated[
        int,
        typer.Option(
            help="Side that images are resized and cropped to (default: as the first is)."
        ),
    ] = 0,
) -> None:
    """Work out the statistics of real data once, for soflow evaluate --reference FILE.npz."""
    at_least(size, 0, "--size")
    if out.suffix != ".npz":
        raise InputError(f"--out is {out}: it must end in .npz")
    writable(out, "--out")

    from soflow.evaluation.features import load_features
    from soflow.evaluation.judging import data_named, reference_of, told
    from soflow.evaluation.references import write_reference

    dataset = data_named(data, size)
    chosen = load_features(features, dataset, dataset.shape)
    statistics = reference_of(dataset, chosen)
    write_reference(out, statistics, chosen, told(dataset), dataset.shape)
    print(
        f"{statistics.count:,} samples of {dataset.name}, {statistics.dimensions:,} dimensions of {features}: {out}"
    )
