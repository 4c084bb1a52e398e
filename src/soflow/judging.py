"""What the samples of a run, or of anything, are compared with: features, a reference, and real data beside it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from soflow.assemble import held_out_of, make_dataset
from soflow.config import Config
from soflow.config.schema import DataConfig
from soflow.data import sources
from soflow.data.dataset import Dataset, Encoder
from soflow.errors import InputError, RunError
from soflow.evaluation.features import Features, load_features
from soflow.evaluation.given import Given, given_arrays, open_given
from soflow.evaluation.references import arrays_in, holds_statistics, points_of, read_reference
from soflow.evaluation.statistics import POINTS, Judge, Statistics, gather, parts_of
from soflow.progress import counting

#: Latents decoded at once.
DECODED = 64

Note = Callable[[str], None]
Decode = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Compared:
    """The judge; real data that are not in its reference, or None; data as the model sees them, for diagnostics, or None."""

    judge: Judge
    held_out: Dataset | None
    points: Dataset | None


def compared_with(
    config: Config,
    encoder: Encoder | None,
    decode: Decode,
    note: Note,
    features: str = "",
    reference: str = "",
    baseline: bool = True,
) -> Compared:
    """What the samples of a run are compared with, by default its training data and evaluate.features.

    reference: SOURCE[:SPLIT] or a file of statistics. Raises InputError for data or features that do not fit the samples,
    before anything long begins.
    """
    shape = config.data.shape if encoder is None else (encoder.channels, encoder.size, encoder.size)
    name = features or config.evaluate.features
    if holds_statistics(Path(reference)):
        own = own_data(config, note)
        chosen = load_features(name, own if encoder is None else None, shape, note)
        judge = judge_by_file(Path(reference), chosen, shape, config.data.num_classes)
        return Compared(judge, None, own)
    early = None if name == "classifier" else load_features(name, None, shape, note)
    data, held_out, points = real_data(config, encoder, decode, note, reference, baseline)
    training = held_out if held_out is not None and held_out.split == "train" else data
    chosen = early or load_features(name, training, shape, note)
    judge = Judge(chosen, reference_of(data, chosen), told(data), config.data.num_classes)
    return Compared(judge, held_out, points)


def compared_given(given: Given, features: str, reference: str, baseline: bool, note: Note) -> Compared:
    """The same for samples that are there already."""
    if holds_statistics(Path(reference)):
        if baseline:
            raise InputError(f"--baseline needs real images, and {reference} holds statistics: name the data as --reference")
        chosen = load_features(features, None, given.shape, note)
        return Compared(judge_by_file(Path(reference), chosen, given.shape), None, None)
    like = DataConfig(shape=given.shape, num_classes=0)
    data, split = sources.find(reference, like)
    if data.source == "latents":
        raise InputError(f"{reference} holds latents: name the images that they are of")
    require_fitting(data, split or data.split, given.shape, reference)
    early = None if features == "classifier" else load_features(features, None, given.shape, note)
    if baseline:
        first, held_out = held_out_of(data, split or data.split, note)
    else:
        first, held_out = sources.load(data, split or data.split, note), None
    require_shape(first, given.shape, reference)
    chosen = early or load_features(features, first, given.shape, note)
    judge = Judge(chosen, reference_of(first, chosen), told(first), first.num_classes)
    return Compared(judge, held_out, None)


def data_named(text: str, size: int, note: Note) -> Dataset:
    """The images or points that a command line names, SOURCE[:SPLIT]; images of side `size`, or 0: that of the first."""
    data, split = sources.find(text, DataConfig(num_classes=0))
    if data.source == "latents":
        raise InputError(f"{text} holds latents: name the images that they are of")
    if data.source in sources.IMAGES:
        image = first_image(data, split or data.split, text)
        side = size or min(image.size)
        data = data.model_copy(update={"shape": (channels_of(image), side, side)})
    return sources.load(data, split or data.split, note)


def open_samples(text: str, note: Note) -> Given:
    """Samples by anything: a folder of images or an .npz as they are, or a data set, SOURCE[:SPLIT]."""
    path = Path(text)
    if path.exists() and (path.suffix == ".npz" or sources.kind_of(text) == "folder"):
        return open_given(path)
    if path.is_file() and path.suffix not in sources.FILES:
        raise InputError(f"{path} holds no samples: give a run, a folder of images, an .npz with arr_0, or a data set")
    if not path.exists() and ":" not in text and text not in sources.SOURCES and path.parent != Path("."):
        raise InputError(f"there is no {path}: give a run, a folder of images, an .npz of samples, or a data set")
    data = data_named(text, 0, note)
    return Given(data.name, data.shape, len(data), lambda: parts_of(data), data.labels)


def channels_of(image: Image) -> int:
    return 1 if image.mode in ("1", "L", "I", "I;16") else 3


def reference_of(data: Dataset, features: Features) -> Statistics:
    """The statistics of a data set."""
    with counting(f"looking at {data.name}", len(data)) as on_done:
        return gather(parts_of(data), features, len(data), POINTS, on_done)


def told(data: Dataset) -> dict[str, Any]:
    return {"dataset": data.name, "split": data.split, "count": len(data)}


def judge_by_file(file: Path, features: Features, shape: tuple[int, ...], num_classes: int = 0) -> Judge:
    """A judge by a file of statistics; what they lack is worked out of the images in it, if it has some."""
    probe = torch.zeros(2, *shape, dtype=torch.uint8) if features.name != "coordinates" else torch.zeros(2, *shape)
    found = read_reference(file, features, features(probe).features.shape[1])
    if found is not None and len(found[0].points):
        return Judge(features, *found, num_classes)
    if found is not None:
        statistics, about = found
        if "arr_0" not in arrays_in(file):
            return Judge(features, statistics, about, num_classes)
    images = given_arrays(file)
    if images.shape != shape:
        raise InputError(f"{file} has images of shape {list(images.shape)}, the samples are {list(shape)}")
    with counting(f"looking at {file.name}", images.count) as on_done:
        of_images = gather(images.parts(), features, images.count, POINTS, on_done)
    if found is None:
        about = {"dataset": file.stem, "split": "", "count": images.count, "file": file.name}
        return Judge(features, of_images, about, num_classes)
    return Judge(features, points_of(statistics, of_images.points), about, num_classes)


def real_data(
    config: Config, encoder: Encoder | None, decode: Decode, note: Note, source: str = "", baseline: bool = True
) -> tuple[Dataset, Dataset | None, Dataset | None]:
    """A reference, real data beside it if there is to be a baseline, and data as the model sees them, if there are.

    By default the training data; latents are decoded, evaluate.num of them. `source` names other data, SOURCE[:SPLIT], which
    then are images of the size that the run draws.
    """
    like = config.data
    if encoder is not None:
        like = like.model_copy(update={"shape": (encoder.channels, encoder.size, encoder.size)})
    data, split = sources.find(source, like) if source else (config.data, config.data.split)
    split = split or data.split
    if source:
        require_fitting(data, split, like.shape, source)
    if baseline:
        reference, held_out = held_out_of(data, split, note)
    else:
        reference, held_out = sources.load(data, split, note), None
    if encoder is None:
        if source:
            require_shape(reference, like.shape, source)
        return reference, held_out, reference if held_out is None else held_out
    if data.source != "latents":
        return reference, held_out, own_data(config, note)
    num = config.evaluate.num
    shown = None if held_out is None else decoded(held_out, decode, num)
    return decoded(reference, decode, num), shown, reference if held_out is None else held_out


def require_shape(data: Dataset, shape: tuple[int, ...], named: str) -> None:
    if data.shape != shape:
        raise InputError(f"{named} has samples of shape {list(data.shape)}, and those compared {list(shape)}")


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


def own_data(config: Config, note: Note) -> Dataset | None:
    """What a run was trained on; None, with a remark, where it is not there any more."""
    try:
        return make_dataset(config.data)
    except (InputError, RunError) as error:
        note(f"{error}; so there are no diagnostics")
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
