"""Statistics of a reference in a file: computed once, used for every evaluation.

ADM's layout, float64: mu (d,) and sigma (d, d), mu_s and sigma_s of spatial features, and images
arr_0 (N, H, W, C). Our files have count, points (n, d) for figures that compare points, and
protocol, JSON that names the features.
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
    """The text beside the arrays of a reference. ADM's files have none."""

    features: FeaturesUsed = FeaturesUsed(name="inception")
    reference: Reference | None = None
    shape: list[Count] | None = None  # of a sample


Kind = TypeVar("Kind", bound=Record)


def arrays_in(file: Path) -> set[str]:
    """The names of the arrays in an .npz. Raises InputError for a damaged file."""
    try:
        with zipfile.ZipFile(file) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except UNREADABLE as error:
        raise InputError(f"{file} cannot be read as .npz: {first_line(error)}") from None


def holds_statistics(file: Path) -> bool:
    return file.suffix == ".npz" and file.is_file() and bool({"mu", "sigma"} & arrays_in(file))


def write_reference(
    file: Path, statistics: Statistics, features: Features, about: Reference, shape: Sequence[int]
) -> None:
    """Writes statistics of samples of a shape. Raises RunError if the file cannot be written."""
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
    content = io.BytesIO()  # numpy does not notice if a disk is full
    np.savez(content, **arrays)  # type: ignore[arg-type]
    write_bytes(file, content.getvalue())


def describe_features(features: Features, dimensions: int = 0) -> FeaturesUsed:
    return FeaturesUsed(name=features.name, **features.origin, dimensions=dimensions)


def read_reference(
    file: Path, features: Features, dimensions: int, shape: Sequence[int]
) -> tuple[Statistics, Reference] | None:
    """Reads statistics made with these features, of which there are `dimensions`.

    Returns:
        The statistics, and which data they are of; None if they are of other features, but the
        file has images for which these can be computed.

    Raises:
        InputError: If the file lacks something, is damaged, or is of other features or images.
    """
    there = arrays_in(file)
    if missing := {"mu", "sigma"} - there:
        raise InputError(f"{file} lacks the array {min(missing)}: give mu and sigma, or arr_0")
    arrays = read(file, ("mu", "sigma", "mu_s", "sigma_s", "count", "points", "protocol"), there)
    protocol = protocol_of(arrays, file, ReferenceProtocol)
    made_with, asked = protocol.features, describe_features(features)
    if made_with.name != asked.name or (asked.checksum and made_with.checksum != asked.checksum):
        if "arr_0" in there:
            return None
        raise InputError(
            f"{file} is a reference of the features {in_words(made_with)}, not {in_words(asked)}"
        )
    if protocol.shape is not None and list(shape) != protocol.shape:
        raise InputError(f"{file} is of images {in_short(protocol.shape)}, not {list(shape)}")
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
    """What standardizes the coordinates in a file. Raises InputError if it does not fit samples."""
    protocol = protocol_of(read(file, ("protocol",), arrays_in(file)), file, ReferenceProtocol)
    scaling = protocol.features.scaling
    if scaling is None:
        return None
    fits = len(scaling.mean) == len(scaling.std) == shape[0] and min(scaling.std) > 0
    if not fits:
        raise InputError(f"{file} is damaged: its scaling is not that of samples {list(shape)}")
    return scaling


def count_of(arrays: dict[str, np.ndarray], file: Path) -> int:
    """How many samples the moments are of; 0 if the file does not say."""
    count = arrays.get("count")
    if count is None:
        return 0
    if count.shape != () or not np.issubdtype(count.dtype, np.integer) or count < 2:
        raise InputError(f"{file} has count {in_short(count)}: it must be an integer of 2 or more")
    return int(count)


def numbers(values: np.ndarray, shape: tuple[int, ...], name: str, file: Path) -> Tensor:
    """The values in float64. Raises InputError unless they are finite numbers of that shape."""
    if values.shape != shape or not np.issubdtype(values.dtype, np.floating):
        found = f"{name} {values.dtype}{list(values.shape)}"
        raise InputError(f"{file} has {found}, but these features need {list(shape)} floats")
    if not np.isfinite(values).all():
        raise InputError(f"{file} has values in {name} that are not finite numbers")
    return torch.from_numpy(values.astype(np.float64))


def in_words(used: FeaturesUsed) -> str:
    return in_short(used.name) + (f" (checksum {used.checksum})" if used.checksum else "")


def moments(mu: np.ndarray, sigma: np.ndarray, count: int, dimensions: int, file: Path) -> Moments:
    """A mean and a covariance. Raises InputError for arrays that are neither."""
    mean = numbers(mu, (dimensions,), "mu", file)
    covariance = numbers(sigma, (dimensions, dimensions), "sigma", file)
    if not torch.allclose(covariance, covariance.T, atol=1e-6 * float(covariance.abs().max())):
        raise InputError(f"{file} has a sigma that is not symmetric, so it is no covariance")
    found = Moments(mean, covariance, count)
    try:
        _ = found.root  # fails now, not after all samples are drawn
    except RunError as error:
        raise InputError(f"{file}: {error}") from None
    return found


def read(file: Path, names: tuple[str, ...], there: set[str]) -> dict[str, np.ndarray]:
    """Arrays of an .npz; nothing that could run code is read."""
    return {name: load_array(file, name) for name in names if name in there}


def protocol_of(arrays: dict[str, np.ndarray], file: Path, kind: type[Kind]) -> Kind:
    """The protocol stored with the arrays, as text; defaults if the file has no protocol."""
    return parse_protocol(str(arrays.get("protocol", "{}")), file, kind)


def parse_protocol(text: str, file: Path, kind: type[Kind]) -> Kind:
    """Raises InputError for a text that is not JSON, or not of that kind."""
    try:
        return kind.model_validate_json(text)
    except (ValidationError, UnicodeError):
        raise InputError(f"{file} is damaged: its protocol is not the JSON it should be") from None
