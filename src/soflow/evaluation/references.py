"""References in files: worked out once, used for every evaluation.

ADM's layout, float64: mu (d,), sigma (d, d), and mu_s, sigma_s of spatial features where there are any. Ours has beside them
count, points (n, d), which precision, recall, density, coverage and the kernel distance are worked out on, and protocol,
JSON that names the features. A file of ADM's has images in their place, arr_0 (N, H, W, C), which points are made of.
"""

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from soflow.errors import InputError, first_line
from soflow.evaluation.features import Features
from soflow.evaluation.metrics import Moments
from soflow.evaluation.statistics import Statistics
from soflow.files import beside, cannot_write

#: Samples behind a published mu and sigma that do not say how many; only whether they are enough depends on it.
UNKNOWN = 50_000


def arrays_in(file: Path) -> set[str]:
    """The names of the arrays in a .npz. Raises InputError for one that is damaged."""
    try:
        with zipfile.ZipFile(file) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{file} cannot be read as .npz: {first_line(error)}") from None


def holds_statistics(file: Path) -> bool:
    return file.suffix == ".npz" and file.is_file() and bool({"mu", "sigma"} & arrays_in(file))


def write_reference(file: Path, reference: Statistics, features: Features, about: dict[str, Any]) -> None:
    """Raises RunError where it cannot be written."""
    protocol = {"features": describe(features), "reference": about}
    arrays: dict[str, Any] = {
        "mu": reference.moments.mean.numpy(),
        "sigma": reference.moments.covariance.numpy(),
        "count": np.array(reference.count),
        "points": reference.points.numpy(),
        "protocol": np.array(json.dumps(protocol)),
    }
    if reference.spatial is not None:
        arrays |= {"mu_s": reference.spatial.mean.numpy(), "sigma_s": reference.spatial.covariance.numpy()}
    partial = beside(file)
    try:
        with partial.open("wb") as stream:
            np.savez(stream, **arrays)
        os.replace(partial, file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise cannot_write(file, error) from None


def describe(features: Features) -> dict[str, Any]:
    return {"name": features.name, **features.origin}


def read_reference(file: Path, features: Features, dimensions: int) -> tuple[Statistics, dict[str, Any]] | None:
    """The statistics in a file, and which reference they are of; None where they are of other features, but the file holds
    images of which these can be worked out.

    Raises InputError for a file that lacks something, or is of other features and no more.
    """
    there = arrays_in(file)
    if missing := {"mu", "sigma"} - there:
        raise InputError(f"{file} lacks the array {min(missing)}: a reference holds mu and sigma, or images as arr_0")
    arrays = read(file, ("mu", "sigma", "mu_s", "sigma_s", "count", "points", "protocol"), there)
    protocol = protocol_of(arrays, file)
    made_with = protocol.get("features") or {"name": "inception"}
    asked = describe(features)
    if any(made_with.get(key, value) != value for key, value in asked.items()):
        if "arr_0" in there:
            return None
        raise InputError(f"{file} is a reference of the features {told(made_with)}, and this asks for {told(asked)}")
    mu, sigma = arrays["mu"], arrays["sigma"]
    if mu.shape != (dimensions,) or sigma.shape != (dimensions, dimensions):
        raise InputError(
            f"{file} has mu {list(mu.shape)} and sigma {list(sigma.shape)}, but the features '{features.name}' have "
            f"{dimensions} dimensions"
        )
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise InputError(f"{file} has values in mu or sigma that are not finite numbers")
    count = int(arrays["count"]) if "count" in arrays else UNKNOWN
    spatial = moments(arrays["mu_s"], arrays["sigma_s"], count) if {"mu_s", "sigma_s"} <= arrays.keys() else None
    points = torch.from_numpy(arrays["points"]).float() if "points" in arrays else torch.zeros(0, dimensions)
    if points.ndim != 2 or points.shape[1] != dimensions:
        raise InputError(f"{file} has points {list(points.shape)}, but the features have {dimensions} dimensions")
    about = {**protocol.get("reference", {"dataset": file.stem, "split": "", "count": count}), "file": file.name}
    return Statistics(count, moments(mu, sigma, count), spatial, points, None), about


def told(made_with: dict[str, Any]) -> str:
    checksum = f" (checksum {made_with['checksum']})" if "checksum" in made_with else ""
    return f"'{made_with['name']}'{checksum}"


def moments(mu: np.ndarray, sigma: np.ndarray, count: int) -> Moments:
    mean, covariance = torch.from_numpy(mu).double(), torch.from_numpy(sigma).double()
    return Moments(mean, covariance, count)


def read(file: Path, names: tuple[str, ...], there: set[str]) -> dict[str, np.ndarray]:
    """Arrays of a .npz; nothing that could run code is read."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in names if name in there}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{file} is damaged: {first_line(error)}") from None


def protocol_of(arrays: dict[str, np.ndarray], file: Path) -> dict[str, Any]:
    """What is written beside arrays about how they came; {} of a file that says nothing."""
    if "protocol" not in arrays:
        return {}
    try:
        protocol = json.loads(str(arrays["protocol"]))
    except ValueError:
        protocol = None
    if not isinstance(protocol, dict):
        raise InputError(f"{file} is damaged: its protocol is no JSON")
    return protocol


def points_of(reference: Statistics, points: Tensor) -> Statistics:
    """A reference with points that were made of its images."""
    return Statistics(reference.count, reference.moments, reference.spatial, points, None)
