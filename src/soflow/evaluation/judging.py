"""What the samples of a run, or of anything, are compared with: features, a reference, and real data beside it."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from soflow.config import Config
from soflow.config.schema import DataConfig
from soflow.data import sources
from soflow.data.dataset import Dataset, Encoder
from soflow.data.images import channels_of
from soflow.data.training_data import make_dataset
from soflow.errors import InputError, RunError
from soflow.evaluation.features import Features, as_seen, dimensions, load_features
from soflow.evaluation.references import arrays_in, holds_statistics, read_reference
from soflow.evaluation.sample_set import SampleSet, open_sample_set, sample_arrays
from soflow.evaluation.statistics import (
    ENERGY_POINTS,
    POINTS,
    Baseline,
    Scorer,
    Statistics,
    gather,
    parts_of,
)
from soflow.system.progress import counting

log = logging.getLogger(__name__)

#: Latents decoded at once.
DECODED = 64

Decode = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Compared:
    """The scorer; real data beside it, or None; data as the model sees them, for diagnostics, or None."""

    scorer: Scorer
    baseline: Baseline | None
    points: Dataset | None


def compared_with(
    config: Config,
    encoder: Encoder | None,
    decode: Decode,
    features: str = "",
    reference: str = "",
    baseline: bool | None = None,
) -> Compared:
    """What the samples of a run are compared with, by default its training data and evaluate.features.

    reference: SOURCE[:SPLIT] or a file of statistics. baseline: whether there are to be real data beside it; None: where
    that takes no decoding of latents again. Raises InputError for data or features that do not fit the samples, before
    anything long begins.
    """
    require_real(reference, baseline)
    shape = config.data.shape if encoder is None else (encoder.channels, encoder.size, encoder.size)
    name = features or config.evaluate.features
    chosen = None if name == "classifier" else load_features(name, None, shape)
    if holds_statistics(Path(reference)):
        own = own_data(config)
        chosen = chosen or load_features(name, training_data(config, encoder, decode), shape)
        return Compared(
            scorer_from_file(Path(reference), chosen, shape, config.data.num_classes), None, own
        )
    data, split = reference_data(config, encoder, reference, shape)
    first = seen(sources.load(data, split), decode, config.evaluate.num)
    require_shape(first, shape, reference or config.data.path or config.data.source)
    chosen = chosen or load_features(name, training_data(config, encoder, decode), shape)
    scorer = Scorer(chosen, reference_of(first, chosen), told(first), config.data.num_classes)
    if baseline is None:
        baseline = data.source != "latents" or other_split(data, split) is not None
    beside = (
        baseline_of(scorer, first, data, split, decode, config.evaluate.num) if baseline else None
    )
    if encoder is not None:
        return Compared(scorer, beside, own_data(config))
    return Compared(scorer, beside, first if beside is None else beside.data)


def compared_samples(given: SampleSet, features: str, reference: str, baseline: bool) -> Compared:
    """The same for samples that are there already; `classifier` is trained on the reference."""
    require_real(reference, baseline)
    if given.count < 2:
        raise InputError(f"{given.name} holds one sample: a distance needs 2 or more")
    chosen = None if features == "classifier" else load_features(features, None, given.shape)
    if chosen is not None:
        chosen(
            as_seen(next(given.parts()))[:2]
        )  # says what is wrong with samples before the reference is looked at
    if holds_statistics(Path(reference)):
        chosen = chosen or load_features(
            features, None, given.shape
        )  # which says that it needs data
        return Compared(scorer_from_file(Path(reference), chosen, given.shape), None, None)
    data, split = sources.find(reference, DataConfig(shape=given.shape, num_classes=0))
    split = split or data.split
    if data.source == "latents":
        raise InputError(f"{reference} holds latents: name the images that they are of")
    require_fitting(data, split, given.shape, reference)
    first = sources.load(data, split)
    require_shape(first, given.shape, reference)
    chosen = chosen or load_features(features, first, given.shape)
    scorer = Scorer(chosen, reference_of(first, chosen), told(first), first.num_classes)
    beside = baseline_of(scorer, first, data, split, lambda images: images, 0) if baseline else None
    return Compared(scorer, beside, None)


def require_real(reference: str, baseline: bool | None) -> None:
    """Raises InputError for a run in place of data, and for a baseline beside a file that has no data in it."""
    if reference and (Path(reference) / "config.yaml").is_file():
        raise InputError(f"--reference {reference} is a run folder: name real data")
    if baseline and holds_statistics(Path(reference)):
        raise InputError(
            f"--baseline needs real images, and {reference} holds statistics: name the data as --reference"
        )


def reference_data(
    config: Config, encoder: Encoder | None, source: str, shape: tuple[int, ...]
) -> tuple[DataConfig, str]:
    """The data that samples of a run are compared with, and their split."""
    if not source:
        return config.data, config.data.split
    like = config.data if encoder is None else config.data.model_copy(update={"shape": shape})
    data, split = sources.find(source, like)
    split = split or data.split
    require_fitting(data, split, shape, source)
    return data, split


def training_data(config: Config, encoder: Encoder | None, decode: Decode) -> Dataset:
    """What a classifier of a run's data is trained on, whatever its samples are compared with."""
    return seen(sources.load(config.data, config.data.split), decode, config.evaluate.num)


def seen(data: Dataset, decode: Decode, num: int) -> Dataset:
    """Data as people see them: of latents `num`, as images."""
    return data if data.encoder is None else decoded(data, decode, num)


def other_split(data: DataConfig, split: str) -> str | None:
    """A split that holds what another does not, test first."""
    there = sources.splits(data)
    others = ("test", "validation", "valid", "val", "train")
    return next((other for other in others if other != split and other in there), None)


def baseline_of(
    scorer: Scorer,
    first: Dataset,
    data: DataConfig,
    split: str,
    decode: Decode,
    num: int,
) -> Baseline:
    """Another split, held against the same reference; or, where there is none, every tenth sample against the others."""
    other = other_split(data, split)
    if other is not None:
        return Baseline(seen(sources.load(data, other), decode, num), scorer)
    tenth = torch.arange(len(first)) % 10 == 0
    rest = first.part(~tenth, f"{split} without every tenth")
    against = Scorer(
        scorer.features, reference_of(rest, scorer.features), told(rest), scorer.num_classes
    )
    return Baseline(first.part(tenth, f"{split}, every tenth"), against)


def data_named(text: str, size: int) -> Dataset:
    """The images or points that a command line names, SOURCE[:SPLIT]; images of side `size`, or 0: that of the first."""
    data, split = sources.find(text, DataConfig(num_classes=0))
    if data.source == "latents":
        raise InputError(f"{text} holds latents: name the images that they are of")
    if data.source in sources.IMAGES:
        image = first_image(data, split or data.split, text)
        side = size or min(image.size)
        data = data.model_copy(update={"shape": (channels_of(image), side, side)})
    return sources.load(data, split or data.split)


def open_samples(text: str) -> SampleSet:
    """Samples by anything: a folder of images or an .npz as they are, or a data set, SOURCE[:SPLIT]."""
    path = Path(text)
    if path.exists() and (path.suffix == ".npz" or sources.kind_of(text) == "folder"):
        return open_sample_set(path)
    if path.is_file() and path.suffix not in sources.FILES:
        raise InputError(
            f"{path} holds no samples: give a run, a folder of images, an .npz with arr_0, or a data set"
        )
    if (
        not path.exists()
        and ":" not in text
        and text not in sources.SOURCES
        and path.parent != Path(".")
    ):
        raise InputError(
            f"there is no {path}: give a run, a folder of images, an .npz of samples, or a data set"
        )
    data = data_named(text, 0)
    return SampleSet(data.name, data.shape, len(data), lambda: parts_of(data), data.labels)


def reference_of(data: Dataset, features: Features) -> Statistics:
    """The statistics of a data set."""
    with counting(f"looking at {data.name}", len(data)) as on_done:
        return gather(parts_of(data), features, len(data), points_of(features), on_done)


def points_of(features: Features) -> int:
    """How many points are kept of a reference."""
    return ENERGY_POINTS if features.name == "coordinates" else POINTS


def told(data: Dataset) -> dict[str, Any]:
    return {"dataset": data.name, "split": data.split, "count": len(data)}


def scorer_from_file(
    file: Path, features: Features, shape: tuple[int, ...], num_classes: int = 0
) -> Scorer:
    """A scorer by a file of statistics; what they lack is worked out of the images in it, if it has some."""
    found = read_reference(file, features, dimensions(features, shape), shape)
    if found is not None and (len(found[0].points) or "arr_0" not in arrays_in(file)):
        return Scorer(features, *found, num_classes)
    images = sample_arrays(file)
    if images.shape != shape:
        raise InputError(
            f"{file} has images of shape {list(images.shape)}, and those compared {list(shape)}"
        )
    with counting(f"looking at {file.name}", images.count) as on_done:
        of_images = gather(images.parts(), features, images.count, POINTS, on_done)
    if found is None:
        about = {"dataset": file.stem, "split": "", "count": images.count, "file": file.name}
        return Scorer(features, of_images, about, num_classes)
    return Scorer(features, replace(found[0], points=of_images.points), found[1], num_classes)


def require_shape(data: Dataset, shape: tuple[int, ...], named: str) -> None:
    if data.shape != shape:
        raise InputError(
            f"{named} has samples of shape {list(data.shape)}, and those compared {list(shape)}"
        )


def require_fitting(data: DataConfig, split: str, shape: tuple[int, ...], named: str) -> None:
    """Raises InputError for images that could only be compared with samples of `shape` after being enlarged or recoloured,
    judging by the first. Larger images of a folder or a data set are cropped as for training; arrays must fit.
    """
    if data.source not in sources.IMAGES or len(shape) != 3:
        return
    image = first_image(data, split, named)
    size, channels = shape[1], channels_of(image)
    wrong = image.size != (size, size) if data.source == "arrays" else min(image.size) < size
    if wrong or channels != shape[0]:
        colours = {1: "grey", 3: "RGB"}
        raise InputError(
            f"{named} has images of {image.width}x{image.height}, {colours[channels]}, and the samples are "
            f"{shape[2]}x{size}, {colours[shape[0]]}: name data of their kind"
        )


def first_image(data: DataConfig, split: str, named: str) -> Image:
    images = sources.open_images(data, split)
    try:
        return images.openers(range(1))[0]()
    except Exception:
        raise InputError(f"{named}: {images.where(0)} cannot be read as an image") from None


def own_data(config: Config) -> Dataset | None:
    """What a run was trained on; None, with a remark, where it is not there any more."""
    try:
        return make_dataset(config.data)
    except (InputError, RunError) as error:
        log.info(f"{error}; so there are no diagnostics")
        return None


class DecodedRows:
    """Some latents of a data set as images (n, C, H, W), decoded whenever they are asked for."""

    dtype = torch.float32

    def __init__(self, latents: Dataset, which: Tensor, decode: Decode) -> None:
        self.latents, self.which, self.decode = latents, which, decode
        self.shape = (len(which), *self[torch.tensor([0])].shape[1:])

    def __len__(self) -> int:
        return len(self.which)

    def __getitem__(self, which: Tensor, /) -> Tensor:
        parts = self.which[which].split(DECODED)
        return torch.cat([self.decode(self.latents.samples(part)) for part in parts])


def decoded(latents: Dataset, decode: Decode, num: int) -> Dataset:
    """`num` latents from all over a data set, or all of them, as images; never all of them in memory."""
    which = torch.linspace(0, len(latents) - 1, min(num, len(latents)), dtype=torch.float64).long()
    labels = None if latents.labels is None else latents.labels[which]
    rows = DecodedRows(latents, which, decode)
    return Dataset(f"{latents.name}, decoded", latents.split, rows, labels, latents.class_names)
