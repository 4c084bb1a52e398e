"""`soflow reference`: statistics of real data, computed once and used for every evaluation."""

from pathlib import Path
from typing import Annotated

import typer

from soflow.cli.options import at_least, writable
from soflow.errors import InputError


def reference(
    data: Annotated[
        str,
        typer.Argument(
            help="Real data: a path or a name, optionally with :SPLIT; or an .npz of images."
        ),
    ],
    features: Annotated[
        str,
        typer.Option(
            help="inception (FID's), digits, classifier, coordinates, a TorchScript FILE or "
            "NAME=FILE. TorchScript is a program: give only files that you trust."
        ),
    ],
    out: Annotated[Path, typer.Option(help="FILE.npz, in ADM's layout: mu, sigma and more.")],
    size: Annotated[
        int,
        typer.Option(help="Side that images are resized and cropped to (default: the first's)."),
    ] = 0,
) -> None:
    """Compute the statistics of real data once, for soflow evaluate --reference FILE.npz."""
    at_least(size, 0, "--size")
    if out.suffix != ".npz":
        raise InputError(f"--out is {out}: it must end in .npz")
    writable(out, "--out")

    from soflow.evaluation.features import load_features
    from soflow.evaluation.reference_files import write_reference
    from soflow.evaluation.references import describe_data, statistics_of
    from soflow.evaluation.sample_set import data_named

    dataset = data_named(data, size)
    network = load_features(features, dataset, dataset.shape)
    statistics = statistics_of(dataset, network)
    write_reference(out, statistics, network, describe_data(dataset), dataset.shape)
    print(
        f"{statistics.count:,} samples of {dataset.name}, {statistics.dimensions:,} dimensions "
        f"of {features}: {out}"
    )
