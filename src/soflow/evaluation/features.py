"""Feature networks for comparing samples.

Images are rounded to 8 bits, as in files, and processed BATCH at a time, so metrics do not depend
on how samples were drawn. The name of the features is part of the metric's name: only `inception`
gives FID. Vectors, tables and signals are compared by their coordinates, which are standardized if
the training data are standardized.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from soflow.data.dataset import Dataset, Scaling, to_floats
from soflow.errors import InputError, RunError, first_line
from soflow.evaluation.classifier import Classifier, load_classifier
from soflow.evaluation.digits import load_digit_classifier
from soflow.evaluation.inception import load_inception
from soflow.evaluation.pictures import is_image, to_uint8
from soflow.system.devices import default_device
from soflow.system.fingerprints import checksum, checksum_of
from soflow.system.memory import out_of_memory_explained

CPU = torch.device("cpu")
#: Images per forward pass of a feature network.
BATCH = 100
NAMES = ("inception", "digits", "classifier", "coordinates")


class Activations(NamedTuple):
    """Features (B, d), class logits (B, classes) and spatial features (B, k) for sFID."""

    features: Tensor
    logits: Tensor | None = None
    spatial: Tensor | None = None


@dataclass(frozen=True)
class Features:
    """A feature network.

    Attributes:
        name: Name of the features.
        network: Maps images as bytes (B, C, H, W), or other samples (B, ...), to activations.
        origin: Properties that distinguish networks with the same name, such as a checksum.
        columns: Names of the columns or channels, if samples are not images.
        device: Device for the network, if it is loaded from a file, and for distances between
            points.
    """

    name: str
    network: Callable[[Tensor], Activations | Tensor | tuple[Tensor, ...]]
    origin: dict[str, Any] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    device: torch.device = CPU

    @torch.no_grad()
    def __call__(self, seen: Tensor) -> Activations:
        """Computes features of images as bytes (B, C, H, W) or samples (B, ...), on the CPU.

        Raises:
            InputError: If the network fails on the samples, or returns wrong shapes.
            RunError: If features are NaN or infinite.
        """
        try:
            # The last digits of sums depend on the memory layout, so it is always contiguous.
            with out_of_memory_explained(f"the features '{self.name}' do not fit"):
                returned = self.network(seen.clone(memory_format=torch.contiguous_format))
        except RunError:
            raise
        except (RuntimeError, ValueError, TypeError, IndexError, torch.jit.Error) as error:
            last = str(error).strip().splitlines()[-1:]  # TorchScript puts its traceback first
            raise InputError(
                f"the features '{self.name}' cannot take {len(seen)} images "
                f"of shape {list(seen.shape[1:])}: {''.join(last)}"
            ) from None
        parts = returned if isinstance(returned, tuple) else (returned,)
        given = [part for part in parts if part is not None]
        fitting = all(is_matrix(part, len(seen)) for part in given)
        if not fitting or len(parts) > 3 or not given or parts[0] is None:
            raise InputError(
                f"the features '{self.name}' must return (B, d), optionally with logits "
                f"(B, classes), but return {' and '.join(map(shape_of, parts)) or '()'} "
                f"for {len(seen)} images"
            )
        found = [None if part is None else part.float().cpu() for part in parts]
        if not all(bool(part.isfinite().all()) for part in found if part is not None):
            raise RunError(f"the features '{self.name}' of some images are NaN or infinite")
        return Activations(*found)  # type: ignore[arg-type]

    @property
    def metric(self) -> str:
        """The name of the distance between these features."""
        names = {"inception": "FID", "coordinates": "energy distance"}
        return names.get(self.name, f"FD-{self.name}")


def is_matrix(part: Any, count: int) -> bool:
    return isinstance(part, Tensor) and part.ndim == 2 and len(part) == count and part.shape[1] > 0


def shape_of(part: Any) -> str:
    return str(list(part.shape)) if isinstance(part, Tensor) else type(part).__name__


def as_uint8(samples: Tensor, pixels: bool = True) -> Tensor:
    """Converts images to bytes (B, C, H, W). Returns other samples unchanged.

    Args:
        samples: Bytes, or floats (B, ...).
        pixels: Whether image-shaped samples are images in [-1, 1]. If False, they are physical
            fields in the data's own units.

    Raises:
        RunError: If a sample is NaN or infinite.
    """
    if samples.dtype == torch.uint8:
        return samples
    strange = int((~samples.flatten(1).isfinite().all(1)).sum())
    if strange:
        raise RunError(f"{strange} of {len(samples)} samples contain NaN or infinite values")
    if not (pixels and is_image(samples.shape[1:])):
        return samples
    return torch.from_numpy(to_uint8(samples)).permute(0, 3, 1, 2)


def load_features(
    name: str,
    dataset: Dataset | None,
    shape: tuple[int, ...],
    device: torch.device | None = None,
) -> Features:
    """Loads a feature network and tests it on samples of the given shape.

    Args:
        name: Name of the features, or a TorchScript file as FILE or NAME=FILE.
        dataset: Training split, on which `classifier` is trained.
        shape: Shape of a sample.
        device: Device for the features. By default, a GPU if there is one. Devices other than CUDA
            are replaced by the CPU.

    Raises:
        InputError: If the name is unknown, or if the network cannot be loaded or fails on samples
            of this shape.
    """
    features = find_features(name, dataset, shape, features_device(device))
    widths = {dimensions(features, shape, count) for count in (2, 1, BATCH)}
    if len(widths) > 1:
        raise InputError(
            f"the features '{name}' must have a fixed number of dimensions, but return "
            f"{sorted(widths)}, depending on the number of images"
        )
    return features


def dimensions(features: Features, shape: tuple[int, ...], count: int = 2) -> int:
    """The number of feature dimensions of a sample of this shape."""
    dtype = torch.float32 if features.name == "coordinates" else torch.uint8
    return features(torch.zeros(count, *shape, dtype=dtype)).features.shape[1]


def features_device(device: torch.device | None) -> torch.device:
    """The device for features: a CUDA device, by default that of this process, or the CPU."""
    chosen = default_device() if device is None else device
    return chosen if chosen.type == "cuda" else CPU


def find_features(
    name: str, dataset: Dataset | None, shape: tuple[int, ...], device: torch.device
) -> Features:
    if name == "coordinates":
        return coordinates(shape, None if dataset is None else dataset.scaling, device)
    if not is_image(shape):
        raise InputError(f"the features '{name}' need images, not {list(shape)}: use coordinates")
    if name == "inception":
        origin = {"network": "InceptionV3 of torch-fidelity"}
        return Features(name, load_inception(device), origin, device=device)
    if name == "digits":
        if shape != (1, 8, 8):
            raise InputError(f"the features 'digits' need images [1, 8, 8], not {list(shape)}")
        return classifier_features(name, load_digit_classifier(), device)
    if name == "classifier":
        if dataset is None:
            raise InputError(
                "the features 'classifier' need labeled data to train on: choose other features"
            )
        return classifier_features(f"{dataset.name}-classifier", load_classifier(dataset), device)
    check_name(name)
    return scripted(*file_of(name), device)


def coordinates(
    shape: Sequence[int], scaling: Scaling | None, device: torch.device = CPU
) -> Features:
    """The samples themselves as features, standardized like the real data."""

    def network(samples: Tensor) -> Tensor:
        if scaling is None:
            return samples.flatten(1)
        columns = samples.double().flatten(2) if samples.ndim > 2 else samples.double()[..., None]
        mean, std = (
            torch.tensor(x, dtype=torch.float64)[:, None] for x in (scaling.mean, scaling.std)
        )
        return ((columns - mean) / std).flatten(1)

    origin = {} if scaling is None else {"scaling": scaling}
    return Features("coordinates", network, origin, column_names(shape, scaling), device)


def column_names(shape: Sequence[int], scaling: Scaling | None) -> tuple[str, ...]:
    """Names of the columns of vectors, or of the channels of other samples. Empty for images."""
    if scaling is None and is_image(shape):
        return ()
    named = scaling is not None and len(scaling.columns) == shape[0]
    if scaling is not None and named:
        return scaling.columns
    kind = "x" if len(shape) == 1 else "channel "
    return tuple(f"{kind}{i}" for i in range(shape[0]))


def file_of(name: str) -> tuple[str, Path]:
    """Splits FILE or NAME=FILE into name and file."""
    called, _, file = name.partition("=")
    if Path(name).expanduser().is_file() or not file:
        called, file = "", name
    return called or Path(file).name.split(".")[0], Path(file).expanduser()


def check_name(name: str) -> None:
    """Raises InputError if the features are unknown. Loads nothing."""
    if name in NAMES or file_of(name)[1].is_file():
        return
    choices = f"choose one of {', '.join(NAMES)}, or a TorchScript file"
    if "." in name or "/" in name:
        raise InputError(
            f"the features file {file_of(name)[1].absolute()} does not exist: {choices}"
        )
    close = get_close_matches(name, NAMES, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise InputError(f"unknown features '{name}': {choices}{hint}")


def classifier_features(name: str, classifier: Classifier, device: torch.device) -> Features:
    """Features and logits of a classifier trained here."""

    def network(seen: Tensor) -> Activations:
        features = classifier(to_floats(seen))
        return Activations(features, classifier.logits(features))

    weights = torch.cat([parameter.detach().flatten() for parameter in classifier.parameters()])
    origin = {"checksum": checksum_of([weights.numpy().tobytes()])}
    return Features(name, network, origin, device=device)


def scripted(name: str, file: Path, device: torch.device) -> Features:
    """Features from a TorchScript file, which maps bytes to features or to (features, logits)."""
    if name in NAMES:
        raise InputError(f"'{name}' is a built-in name: choose another, --features NAME={file}")
    try:
        module = torch.jit.load(str(file), map_location=device).eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(
            f"{file} cannot be read as TorchScript, as torch.jit.save writes it: "
            f"{first_line(error)}"
        ) from None
    origin = {"checksum": checksum(file)}
    return Features(name, lambda seen: module(seen.to(device)), origin, device=device)
