"""Feature networks: what samples are compared by.

Images are bytes, as in files, and go in in parts of BATCH, so figures do not depend on how samples
were drawn. The name of the features is part of a figure's name: only those of `inception` make FID.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from soflow.data.dataset import Dataset, to_floats
from soflow.errors import InputError, RunError, first_line
from soflow.evaluation.classifier import Classifier, load_classifier
from soflow.evaluation.digits import load_digit_classifier
from soflow.evaluation.inception import load_inception
from soflow.evaluation.pictures import is_image, to_uint8
from soflow.system.fingerprints import checksum

#: Where networks of files run, and distances between many points are computed.
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
#: Images that a network sees together.
BATCH = 100
NAMES = ("inception", "digits", "classifier", "coordinates")


class Activations(NamedTuple):
    """Features (B, d); of a classifier also logits (B, classes); of FID's network also (B, k)."""

    features: Tensor
    logits: Tensor | None = None
    spatial: Tensor | None = None


@dataclass(frozen=True)
class Features:
    """A feature network.

    Attributes:
        name: Its name.
        network: A function of bytes (B, C, H, W), or of samples as they are if they are no images.
        origin: What tells it from another of that name, such as a checksum.
    """

    name: str
    network: Callable[[Tensor], Activations | Tensor | tuple[Tensor, ...]]
    origin: dict[str, str] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, seen: Tensor) -> Activations:
        """The features of bytes (B, C, H, W) or samples (B, ...), on the CPU.

        Raises:
            InputError: If the network cannot take them, or gives something of another shape.
            RunError: If features are NaN or infinite.
        """
        try:
            # one layout for all: the last digits of sums follow it
            given = self.network(seen.clone(memory_format=torch.contiguous_format))
        except (RuntimeError, ValueError, TypeError, IndexError, torch.jit.Error) as error:
            told = [line for line in str(error).splitlines() if line.strip()][
                -1:
            ]  # TorchScript's own words come first
            raise InputError(
                f"the features '{self.name}' cannot take {len(seen)} images "
                f"of shape {list(seen.shape[1:])}: {''.join(told)}"
            ) from None
        parts = (given,) if isinstance(given, Tensor) else given
        if (
            not isinstance(parts, tuple)
            or not 1 <= len(parts) <= 3
            or not all(fits(part, len(seen)) for part in parts)
        ):
            raise InputError(
                f"the features '{self.name}' must return (B, d), or that and logits (B, classes), "
                f"but give {shapes(parts)} of {len(seen)} images"
            )
        plain = [None if part is None else part.float().cpu() for part in parts]
        found = Activations(*plain)  # type: ignore[arg-type]
        if not all(bool(part.isfinite().all()) for part in found if part is not None):
            raise RunError(
                f"the features '{self.name}' are not finite numbers for some of the images"
            )
        return found

    @property
    def metric(self) -> str:
        """The name of the distance by these features."""
        if self.name == "inception":
            return "FID"
        return "energy distance" if self.name == "coordinates" else f"FD-{self.name}"


def fits(part: Any, count: int) -> bool:
    return part is None or (
        isinstance(part, Tensor) and part.ndim == 2 and len(part) == count and part.shape[1] > 0
    )


def shapes(parts: Any) -> str:
    if not isinstance(parts, tuple):
        return type(parts).__name__
    return (
        " and ".join(
            str(list(part.shape)) if isinstance(part, Tensor) else type(part).__name__
            for part in parts
        )
        or "()"
    )


def as_seen(samples: Tensor) -> Tensor:
    """Samples (B, ...) as features see them: images as bytes (B, C, H, W), all else as it is.

    Raises RunError for samples that are no numbers.
    """
    if samples.dtype == torch.uint8:
        return samples
    strange = ~samples.flatten(1).isfinite().all(1)
    if bool(strange.any()):
        raise RunError(
            f"{int(strange.sum())} of {len(samples)} samples hold values that are not finite "
            "numbers (NaN)"
        )
    return (
        torch.from_numpy(to_uint8(samples)).permute(0, 3, 1, 2)
        if is_image(samples.shape[1:])
        else samples
    )


def load_features(
    name: str,
    dataset: Dataset | None,
    shape: tuple[int, ...],
) -> Features:
    """Loads features and tries them on samples of a shape.

    Args:
        name: Of features, or a TorchScript file, FILE or NAME=FILE.
        dataset: The training split, on which `classifier` is trained.
        shape: Of a sample.

    Raises:
        InputError: If the name is unknown, or the network cannot be loaded or take such samples.
    """
    features = find_features(name, dataset, shape)
    widths = {dimensions(features, shape, count) for count in (2, 1, BATCH)}
    if len(widths) > 1:
        raise InputError(
            f"the features '{name}' have other dimensions for other numbers of images: "
            f"{sorted(widths)}"
        )
    return features


def dimensions(features: Features, shape: tuple[int, ...], count: int = 2) -> int:
    """How many features samples of a shape have."""
    kind = torch.float32 if features.name == "coordinates" else torch.uint8
    return features(torch.zeros(count, *shape, dtype=kind)).features.shape[1]


def find_features(name: str, dataset: Dataset | None, shape: tuple[int, ...]) -> Features:
    if name == "coordinates":
        return Features(name, lambda samples: Activations(samples.flatten(1).float()))
    if not is_image(shape):
        raise InputError(
            f"the features '{name}' are for images, not for samples of shape {list(shape)}: "
            "use coordinates"
        )
    if name == "digits":
        if shape != (1, 8, 8):
            raise InputError(
                "the features 'digits' are for 8x8 digits, [1, 8, 8], "
                f"not for samples of shape {list(shape)}"
            )
        return classifier_features("digits", load_digit_classifier())
    if name == "classifier":
        if dataset is None:
            raise InputError(
                "the features 'classifier' are trained on data with classes: "
                "name others, or such data"
            )
        return classifier_features(f"{dataset.name}-classifier", load_classifier(dataset))
    if name == "inception":
        return Features(name, load_inception(DEVICE), {"network": "InceptionV3 of torch-fidelity"})
    called, file = file_of(name)
    if not file.is_file():
        raise unknown(name)
    return scripted(called or file.name.split(".")[0], file)


def file_of(name: str) -> tuple[str, Path]:
    """FILE or NAME=FILE: the name, or "", and the file."""
    called, _, file = (
        ("", "", name) if Path(name).is_file() or "=" not in name else name.partition("=")
    )
    return called, Path(file)


def check_name(name: str) -> None:
    """Raises InputError for unknown features, without loading any."""
    if name not in NAMES and not file_of(name)[1].is_file():
        raise unknown(name)


def unknown(name: str) -> InputError:
    close = get_close_matches(name, NAMES, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    if "." in name or "/" in name:
        hint = f"; there is no file {file_of(name)[1]}"
    return InputError(
        f"unknown features '{name}': choose one of {', '.join(NAMES)}, "
        f"or name a TorchScript file{hint}"
    )


def classifier_features(name: str, classifier: Classifier) -> Features:
    """Features and logits of one of our own classifiers."""

    def network(seen: Tensor) -> Activations:
        features = classifier(to_floats(seen))
        return Activations(features, classifier.logits(features))

    weights = torch.cat([parameter.detach().flatten() for parameter in classifier.parameters()])
    return Features(name, network, {"checksum": f"{zlib.crc32(weights.numpy().tobytes()):08x}"})


def scripted(name: str, file: Path) -> Features:
    """Features of a TorchScript file.

    It maps bytes (B, C, H, W) to features (B, d), or to (features, logits).
    """
    if name in NAMES:
        raise InputError(
            f"{file} cannot be called '{name}', the name of other features: "
            f"use --features NAME={file}"
        )
    try:
        module = torch.jit.load(str(file), map_location=DEVICE).eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(
            f"{file} cannot be read as TorchScript (torch.jit.save writes it): {first_line(error)}"
        ) from None
    return Features(name, lambda seen: module(seen.to(DEVICE)), {"checksum": checksum(file)})
