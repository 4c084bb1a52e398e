"""`soflow reference`: computes statistics of real data once, for all later evaluations."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from soflow.cli.options import at_least, require_writable_file

DATA = "Real data: a path or a dataset name, optionally with :SPLIT; or an .npz file of images."
FEATURES = (
    "Network that computes features: inception (for FID), digits, classifier, coordinates, or a "
    "TorchScript FILE or NAME=FILE. A TorchScript file is a program: use only files that you "
    "trust."
)
OUT = "File to write, in the format of ADM (guided-diffusion): mu, sigma and more; ends in .npz."
SIZE = (
    "Side in pixels to which images are resized and cropped (default: the size of the first image)."
)


def reference(
    data: Annotated[str, Argument(help=DATA)],
    features: Annotated[str, Option(help=FEATURES)],
    out: Annotated[Path, Option(help=OUT)],
    size: Annotated[int, Option(help=SIZE)] = 0,
) -> None:
    """Compute statistics of real data once, for soflow evaluate --reference FILE.npz."""
    at_least(0, size=size)
    require_writable_file(out, ".npz")

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
