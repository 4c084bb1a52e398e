"""References in files: worked out once, used for every evaluation.

ADM's layout, float64: mu (d,), sigma (d, d), and mu_s, sigma_s of spatial features where there are any. Ours has beside them
count, points (n, d), which precision, recall, density, coverage and the kernel distance are worked out on, and protocol,
JSON that names the features. A file of ADM's has images in their place, arr_0 (N, H, W, C), which points are made of.
"""

import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from soflow.data.npz import UNREADABLE, load_array
from soflow.errors import InputError, RunError, first_line, in_short
from soflow.evaluation.features import Features
from soflow.evaluation.metrics import Moments
from soflow.evaluation.statistics import Statistics
from soflow.system.atomic import write_bytes
from soflow.system.records import parse_json


def arrays_in(file: Path) -> set[str]:
    """The names of the arrays in a .npz. Raises InputError for one that is damaged."""
    try:
        with zipfile.ZipFile(file) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except UNREADABLE as error:
        raise InputError(f"{file} cannot be read as .npz: {first_line(error)}") from None


def holds_statistics(file: Path) -> bool:
    return file.suffix == ".npz" and file.is_file() and bool({"mu", "sigma"} & arrays_in(file))


def write_reference(
    file: Path,
    reference: Statistics,
    features: Features,
    about: dict[str, Any],
    shape: Sequence[int],
) -> None:
    """shape: of a sample. Raises RunError where it cannot be written."""
    protocol = {"features": describe(features), "reference": about, "shape": list(shape)}
    arrays: dict[str, Any] = {
        "mu": reference.moments.mean.numpy(),
        "sigma": reference.moments.covariance.numpy(),
        "count": np.array(reference.count),
        "points": reference.points.numpy(),
        "protocol": np.array(json.dumps(protocol)),
    }
    if reference.spatial is not None:
        arrays |= {
            "mu_s": reference.spatial.mean.numpy(),
            "sigma_s": reference.spatial.covariance.numpy(),
        }
    content = io.BytesIO()
    np.savez(
        content, **arrays
    )  # not into the file: numpy does not notice a disk that takes no more
    write_bytes(file, content.getvalue())


def describe(features: Features) -> dict[str, Any]:
    return {"name": features.name, **features.origin}


def read_reference(
    file: Path, features: Features, dimensions: int, shape: Sequence[int]
) -> tuple[Statistics, dict[str, Any]] | None:
    """The statistics in a file, and which reference they are of; None where they are of other features, but the file holds
    images of which these can be worked out. shape: of a sample to be compared.

    Raises InputError for a file that lacks something, that is damaged, or that is of other features or other images.
    """
    there = arrays_in(file)
    if missing := {"mu", "sigma"} - there:
        raise InputError(
            f"{file} lacks the array {min(missing)}: a reference holds mu and sigma, or images as arr_0"
        )
    arrays = read(file, ("mu", "sigma", "mu_s", "sigma_s", "count", "points", "protocol"), there)
    protocol = protocol_of(arrays, file)
    made_with, asked = protocol.get("features", {"name": "inception"}), describe(features)
    if not isinstance(made_with, dict) or any(
        made_with.get(key) != asked[key] for key in asked if key in IDENTITY
    ):
        if "arr_0" in there:
            return None
        raise InputError(
            f"{file} is a reference of the features {told(made_with)}, and this asks for {told(asked)}"
        )
    if list(shape) != protocol.get("shape", list(shape)):
        raise InputError(
            f"{file} is a reference of images {in_short(protocol['shape'])}, and those compared are {list(shape)}"
        )
    count = count_of(arrays, file)
    whole = moments(arrays["mu"], arrays["sigma"], count, dimensions, file)
    spatial = None
    if {"mu_s", "sigma_s"} <= arrays.keys():
        spatial = moments(arrays["mu_s"], arrays["sigma_s"], count, arrays["mu_s"].size, file)
    points = torch.zeros(0, dimensions)
    if "points" in arrays:
        points = torch.from_numpy(
            numbers(arrays["points"], (*arrays["points"].shape[:1], dimensions), "points", file)
        ).float()
    about = protocol.get("reference")
    if not isinstance(about, dict) or "dataset" not in about:
        about = {"dataset": file.stem}
    of = {"dataset": str(about["dataset"]), "split": str(about.get("split", ""))}
    return Statistics(count, whole, spatial, points, None), {
        **of,
        "count": count,
        "file": file.name,
    }


#: What of a description of features must agree.
IDENTITY = ("name", "checksum")


def count_of(arrays: dict[str, np.ndarray], file: Path) -> int:
    """How many samples the moments are of; 0 where the file does not say."""
    if "count" not in arrays:
        return 0
    count = arrays["count"]
    if count.shape != () or not np.issubdtype(count.dtype, np.integer) or count < 2:
        raise InputError(
            f"{file} has count {in_short(count)}, which must be a whole number of 2 or more"
        )
    return int(count)


def numbers(values: np.ndarray, shape: tuple[int, ...], name: str, file: Path) -> np.ndarray:
    """The values in float64. Raises InputError unless they are finite numbers of that shape."""
    if values.shape != shape or not np.issubdtype(values.dtype, np.floating):
        raise InputError(
            f"{file} has {name} {values.dtype}{list(values.shape)}, but these features need {list(shape)} floats"
        )
    if not np.isfinite(values).all():
        raise InputError(f"{file} has values in {name} that are not finite numbers")
    return values.astype(np.float64)


def told(made_with: Any) -> str:
    if not isinstance(made_with, dict):
        return "of no name"
    checksum = f" (checksum {made_with['checksum']})" if "checksum" in made_with else ""
    return f"'{made_with.get('name')}'{checksum}"


def moments(mu: np.ndarray, sigma: np.ndarray, count: int, dimensions: int, file: Path) -> Moments:
    """Raises InputError for what is no mean and covariance."""
    mean = torch.from_numpy(numbers(mu, (dimensions,), "mu", file))
    covariance = torch.from_numpy(numbers(sigma, (dimensions, dimensions), "sigma", file))
    if not torch.allclose(covariance, covariance.T, atol=1e-6 * float(covariance.abs().max())):
        raise InputError(f"{file} has a sigma that is no covariance: it is not symmetric")
    found = Moments(mean, covariance, count)
    try:
        found.root  # now, and not after all samples are drawn
    except RunError as error:
        raise InputError(f"{file}: {error}") from None
    return found


def read(file: Path, names: tuple[str, ...], there: set[str]) -> dict[str, np.ndarray]:
    """Arrays of a .npz; nothing that could run code is read."""
    return {name: load_array(file, name) for name in names if name in there}


def protocol_of(arrays: dict[str, np.ndarray], file: Path) -> dict[str, Any]:
    """What is written beside arrays about how they came; {} of a file that says nothing."""
    if "protocol" not in arrays:
        return {}
    protocol = parse_json(str(arrays["protocol"]))
    if protocol is None:
        raise InputError(f"{file} is damaged: its protocol is no JSON")
    return protocol
