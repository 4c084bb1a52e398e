"""Files with reference statistics, computed once and used for many evaluations.

The layout is ADM's, in float64: mu (d,) and sigma (d, d), mu_s and sigma_s of spatial features, and
images arr_0 (N, H, W, C). Files written here also have count, points (n, d) for metrics such as
precision and recall, and protocol, a JSON text that names the features.
"""

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from soflow.data.dataset import Scaling
from soflow.data.npz import UNREADABLE, load_array
from soflow.errors import InputError, RunError, first_line, in_short
from soflow.evaluation.features import Features
from soflow.evaluation.metrics import Moments
from soflow.evaluation.record import FeaturesUsed, Reference
from soflow.evaluation.statistics import Statistics
from soflow.system.atomic import write_bytes
from soflow.system.records import Count, Record


class ReferenceProtocol(Record):
    """The JSON text stored with the arrays of a reference. ADM's files have none."""

    features: FeaturesUsed = FeaturesUsed(name="inception")
    reference: Reference | None = None
    shape: list[Count] | None = None  # shape of a sample


Kind = TypeVar("Kind", bound=Record)


def arrays_in(file: Path) -> set[str]:
    """The names of the arrays in an .npz file. Raises InputError if it is damaged."""
    try:
        with zipfile.ZipFile(file) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except UNREADABLE as error:
        raise InputError(f"{file} cannot be read as an .npz file: {first_line(error)}") from None


def holds_statistics(file: Path) -> bool:
    return file.suffix == ".npz" and file.is_file() and bool({"mu", "sigma"} & arrays_in(file))


def write_reference(
    file: Path, statistics: Statistics, features: Features, about: Reference, shape: Sequence[int]
) -> None:
    """Writes a statistics file. Raises RunError if it cannot be written."""
    used = describe_features(features)
    protocol = ReferenceProtocol(features=used, reference=about, shape=list(shape))
    arrays: dict[str, np.ndarray] = {
        "mu": statistics.moments.mean.numpy(),
        "sigma": statistics.moments.covariance.numpy(),
        "count": np.array(statistics.count),
        "points": statistics.points.numpy(),
        "protocol": np.array(protocol.model_dump_json()),
    }
    if (spatial := statistics.spatial) is not None:
        arrays |= {"mu_s": spatial.mean.numpy(), "sigma_s": spatial.covariance.numpy()}
    content = io.BytesIO()  # numpy does not report a full disk
    np.savez(content, **arrays)  # type: ignore[arg-type]
    write_bytes(file, content.getvalue())


def describe_features(features: Features, dimensions: int = 0) -> FeaturesUsed:
    return FeaturesUsed(name=features.name, **features.origin, dimensions=dimensions)


def read_reference(
    file: Path, features: Features, dimensions: int, shape: Sequence[int]
) -> tuple[Statistics, Reference] | None:
    """Reads a statistics file.

    Args:
        file: The file.
        features: The features that the statistics must have been computed with.
        dimensions: Number of dimensions of the features.
        shape: Shape of a sample.

    Returns:
        The statistics and a description of their data. None if they belong to other features, but
        the file has images to compute new statistics from.

    Raises:
        InputError: If the file is incomplete or damaged, or belongs to other features or images of
            another shape.
    """
    there = arrays_in(file)
    if missing := {"mu", "sigma"} - there:
        raise InputError(
            f"{file} lacks the array {min(missing)}: store both mu and sigma, or only arr_0"
        )
    arrays = read(file, ("mu", "sigma", "mu_s", "sigma_s", "count", "points", "protocol"), there)
    protocol = protocol_of(arrays, file, ReferenceProtocol)
    made_with, asked = protocol.features, describe_features(features)
    if made_with.name != asked.name or (asked.checksum and made_with.checksum != asked.checksum):
        if "arr_0" in there:
            return None
        raise InputError(
            f"{file} was computed with the features {in_words(made_with)}, not {in_words(asked)}: "
            "choose these features or another reference"
        )
    if protocol.shape is not None and list(shape) != protocol.shape:
        raise InputError(
            f"{file} was computed from samples of shape {in_short(protocol.shape)}, "
            f"not {list(shape)}: choose another reference"
        )
    count = count_of(arrays, file)
    whole = moments(arrays["mu"], arrays["sigma"], count, dimensions, file)
    spatial = None
    if {"mu_s", "sigma_s"} <= arrays.keys():
        spatial = moments(arrays["mu_s"], arrays["sigma_s"], count, arrays["mu_s"].size, file)
    kept = arrays.get("points", np.zeros((0, dimensions)))
    points = numbers(kept, (*kept.shape[:1], dimensions), "points", file).float()
    about = protocol.reference or Reference(dataset=file.stem, count=count)
    about = Reference(dataset=about.dataset, split=about.split, count=count, file=file.name)
    return Statistics(count, whole, spatial, points, None), about


def scaling_in(file: Path, shape: Sequence[int]) -> Scaling | None:
    """The scaling of the coordinates in a file. Raises InputError if it does not fit the shape."""
    protocol = protocol_of(read(file, ("protocol",), arrays_in(file)), file, ReferenceProtocol)
    scaling = protocol.features.scaling
    if scaling is None:
        return None
    fits = len(scaling.mean) == len(scaling.std) == shape[0] and min(scaling.std) > 0
    if not fits:
        raise InputError(f"{file} is damaged: its scaling does not fit samples {list(shape)}")
    return scaling


def count_of(arrays: dict[str, np.ndarray], file: Path) -> int:
    """The number of samples behind the statistics, or 0 if the file does not store it."""
    count = arrays.get("count")
    if count is None:
        return 0
    if count.shape != () or not np.issubdtype(count.dtype, np.integer) or count < 2:
        raise InputError(f"{file} has count {in_short(count)}: it must be an integer, at least 2")
    return int(count)


def numbers(values: np.ndarray, shape: tuple[int, ...], name: str, file: Path) -> Tensor:
    """Converts to float64. Raises InputError unless all are finite floats of this shape."""
    if values.shape != shape or not np.issubdtype(values.dtype, np.floating):
        found = f"{name} {values.dtype}{list(values.shape)}"
        raise InputError(f"{file} has {found}, but these features need {list(shape)} floats")
    if not np.isfinite(values).all():
        raise InputError(f"{file} has NaN or infinite values in {name}")
    return torch.from_numpy(values.astype(np.float64))


def in_words(used: FeaturesUsed) -> str:
    return in_short(used.name) + (f" (checksum {used.checksum})" if used.checksum else "")


def moments(mu: np.ndarray, sigma: np.ndarray, count: int, dimensions: int, file: Path) -> Moments:
    """Checks a mean and a covariance. Raises InputError if they are invalid."""
    mean = numbers(mu, (dimensions,), "mu", file)
    covariance = numbers(sigma, (dimensions, dimensions), "sigma", file)
    if not torch.allclose(covariance, covariance.T, atol=1e-6 * float(covariance.abs().max())):
        raise InputError(f"{file} has a sigma that is not symmetric: it is not a covariance")
    found = Moments(mean, covariance, count)
    try:
        _ = found.root  # so that it fails now, and not after all samples are drawn
    except RunError as error:
        raise InputError(f"{file}: {error}") from None
    return found


def read(file: Path, names: tuple[str, ...], there: set[str]) -> dict[str, np.ndarray]:
    """Reads arrays of an .npz file safely: pickled objects are rejected."""
    return {name: load_array(file, name) for name in names if name in there}


def protocol_of(arrays: dict[str, np.ndarray], file: Path, kind: type[Kind]) -> Kind:
    """Parses the protocol stored with the arrays. Without one, returns the defaults."""
    return parse_protocol(str(arrays.get("protocol", "{}")), file, kind)


def parse_protocol(text: str, file: Path, kind: type[Kind]) -> Kind:
    """Parses a protocol. Raises InputError if the text is not valid JSON of this kind."""
    try:
        return kind.model_validate_json(text)
    except (ValidationError, UnicodeError):
        raise InputError(f"{file} is damaged: its protocol is not the expected JSON") from None
