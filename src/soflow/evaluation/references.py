"""Makes scorers: reads the reference (real data or a statistics file) and held-out real data."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from os.path import expanduser
from pathlib import Path

import torch
from torch import Tensor

from soflow.config import Config
from soflow.config.schema import DataConfig
from soflow.data import sources
from soflow.data.dataset import Dataset, Encoder, Scaling
from soflow.data.splits import HELD_OUT, split_of
from soflow.data.training_data import make_dataset
from soflow.errors import InputError, RunError
from soflow.evaluation.decoded import Decode, as_images
from soflow.evaluation.features import (
    Features,
    as_uint8,
    coordinates,
    dimensions,
    features_device,
    load_features,
)
from soflow.evaluation.record import Reference
from soflow.evaluation.reference_files import (
    arrays_in,
    holds_statistics,
    read_reference,
    scaling_in,
)
from soflow.evaluation.sample_set import (
    SampleSet,
    first_image,
    in_words,
    kind_of,
    sample_arrays,
    table_like,
)
from soflow.evaluation.scorer import Baseline, Scorer, Scoring
from soflow.evaluation.statistics import (
    ENERGY_POINTS,
    POINTS,
    Counter,
    Statistics,
    gather,
    parts_of,
)
from soflow.evaluation.statistics_cache import cached_statistics
from soflow.solution import unchanged
from soflow.system.progress import track

log = logging.getLogger(__name__)


def make_scoring(
    config: Config,
    encoder: Encoder | None,
    decode: Decode,
    features: str = "",
    reference: str | Dataset = "",
    baseline: bool | None = None,
    scaling: Scaling | None = None,
    device: torch.device | None = None,
) -> Scoring:
    """Makes the scorer for the samples of a run, and collects the real data it needs.

    Args:
        config: Configuration of the run.
        encoder: The autoencoder of the run's latents, or None.
        decode: Converts the model's samples to images, or to the data's own units.
        features: Name of the features. By default, the run's `evaluate.features`.
        reference: SOURCE[:SPLIT], a statistics file or a dataset. By default, the training data.
        baseline: Whether to score held-out real data. By default, True unless this requires
            decoding more latents of the same split.
        scaling: Scaling of the training data. Coordinates of all sets are standardized with it.
        device: Device for the features, as in `load_features`.

    Raises:
        InputError: If data or features do not fit the samples.
    """
    if not isinstance(reference, Dataset):
        reference = expanduser(reference)
        require_real(reference, baseline)
    shape = config.data.shape if encoder is None else (encoder.channels, encoder.size, encoder.size)
    num, num_classes = config.evaluate.num, config.data.num_classes
    name = features or config.evaluate.features
    # Load the features first, so that a wrong name is reported before any long work.
    network = None if name == "classifier" else load_features(name, None, shape, device)

    def loaded(real: Dataset | None = None) -> Features:
        if name == "coordinates" and real is not None:
            return coordinates(shape, scaling or real.scaling, features_device(device))
        if network is not None:
            return network
        training = sources.load(config.data, config.data.split)
        return load_features(name, as_images(training, decode, num), shape, device)

    if isinstance(reference, Dataset):
        require_shape(reference.shape, shape, f"the reference, {reference.name},")
        scorer = scorer_of(reference, loaded(reference), num_classes)
        held_out = tenth_against_rest(scorer, reference) if baseline is not False else None
        labels = reference.labels if reference.num_classes == num_classes else None
        given = conditions_for(config, reference)
        return Scoring(scorer, held_out, training_points(config), labels, given)
    if holds_statistics(Path(reference)):
        scorer = scorer_from_file(Path(reference), loaded(), shape, num_classes)
        given = conditions_for(config)
        return Scoring(scorer, None, training_points(config), conditions=given)
    data, split = config.data, config.data.split
    if reference:
        columns = () if scaling is None else scaling.columns
        data, split = find_data(reference, data.model_copy(update={"shape": shape}), columns)
    first = as_images(sources.load(data, split), decode, num)
    require_shape(first.shape, shape, reference or config.data.path or config.data.source)
    scorer = scorer_of(first, loaded(first), num_classes)
    if baseline is None:
        baseline = data.source != "latents" or other_split(data, split) is not None
    held_out = make_baseline(scorer, first, data, split, decode, num) if baseline else None
    labels = first.labels if first.num_classes == num_classes else None
    given = conditions_for(config, first)
    if encoder is not None:
        return Scoring(scorer, held_out, training_points(config), labels)
    points = first if held_out is None else held_out.data
    return Scoring(scorer, held_out, points, labels, given)


def conditions_for(config: Config, reference: Dataset | None = None) -> Dataset | None:
    """The dataset that provides conditions for samples: the reference or the training data.

    Returns:
        The dataset, or None for a run without conditions.

    Raises:
        InputError: If neither dataset has conditions of the run's shape.
    """
    shape = config.data.cond_shape
    if not shape:
        return None
    if reference is not None and reference.cond_shape == shape:
        return reference
    try:
        return make_dataset(config.data)
    except (InputError, RunError) as error:
        raise InputError(
            f"samples of this run need conditions {list(shape)}, but its training data cannot be "
            f"loaded ({error}): restore them, pass them as data=, or choose a reference with "
            "conditions"
        ) from None


def make_sample_scoring(
    samples: SampleSet, features: str, reference: str | Path | Dataset, baseline: bool = False
) -> Scoring:
    """Like `make_scoring`, for samples in files. The reference also trains `classifier`."""
    if not isinstance(reference, Dataset):
        reference = expanduser(reference)
        require_real(reference, baseline)
    if samples.count < 2:
        raise InputError(f"{samples.name} holds only one sample: a distance needs at least 2")
    shape = samples.shape
    network = None if features == "classifier" else load_features(features, None, shape)
    if network is not None:
        # Try the features first: unusable samples are reported before the reference is read.
        first_part = next(samples.parts())[:2]
        network(as_uint8(first_part, pixels=features != "coordinates"))
    if isinstance(reference, Dataset):
        require_shape(reference.shape, shape, f"the reference, {reference.name},")
        if network is None or features == "coordinates":
            network = load_features(features, reference, shape)
        scorer = scorer_of(reference, network, reference.num_classes)
        return Scoring(scorer, tenth_against_rest(scorer, reference) if baseline else None)
    if holds_statistics(Path(reference)):
        network = network or load_features(features, None, shape)  # raises for `classifier`
        return Scoring(scorer_from_file(Path(reference), network, shape))
    data, split = find_data(reference, DataConfig(shape=shape, num_classes=0), samples.columns)
    if data.source == "latents":
        raise InputError(f"{reference} holds latents: choose the images they were encoded from")
    first = sources.load(data, split)
    require_shape(first.shape, shape, reference)
    if network is None or features == "coordinates":  # these features depend on the data
        network = load_features(features, first, shape)
    scorer = scorer_of(first, network, first.num_classes)
    held_out = make_baseline(scorer, first, data, split, unchanged, 0) if baseline else None
    return Scoring(scorer, held_out)


def scorer_of(data: Dataset, features: Features, num_classes: int) -> Scorer:
    """Makes a scorer. Raises InputError if image features are used on data that are not images."""
    if data.scaling is not None and features.name != "coordinates":
        raise InputError(
            f"the features '{features.name}' need images in [-1, 1], but {data.name} has values in "
            "its own units: use coordinates"
        )
    return Scorer(features, statistics_of(data, features), describe_data(data), num_classes)


def statistics_of(data: Dataset, features: Features) -> Statistics:
    """The statistics of a dataset, from the cache or computed."""

    def compute() -> Statistics:
        return gather_all(parts_of(data), features, len(data), data.name)

    return cached_statistics(data, features, compute)


def gather_all(parts: Iterable[Tensor], features: Features, count: int, name: str) -> Statistics:
    """Computes the statistics of a reference of `count` samples, read in parts (B, ...)."""
    keep = ENERGY_POINTS if features.name == "coordinates" else POINTS
    with track(f"features of {name}", count) as task:
        return gather(parts, features, count, keep, Counter(task).add)


def describe_data(data: Dataset) -> Reference:
    return Reference(dataset=data.name, split=data.split, count=len(data))


def scorer_from_file(
    file: Path, features: Features, shape: tuple[int, ...], num_classes: int = 0
) -> Scorer:
    """Makes a scorer from a statistics file. Computes missing parts from the images in the file."""
    if features.name == "coordinates":
        features = coordinates(shape, scaling_in(file, shape), features.device)
    found = read_reference(file, features, dimensions(features, shape), shape)
    if found is not None and (len(found[0].points) or "arr_0" not in arrays_in(file)):
        return Scorer(features, *found, num_classes)
    images = sample_arrays(file)
    require_shape(images.shape, shape, str(file))
    statistics = gather_all(images.parts(), features, images.count, file.name)
    about = Reference(dataset=file.stem, count=images.count, file=file.name)
    if found is not None:
        statistics, about = replace(found[0], points=statistics.points), found[1]
    return Scorer(features, statistics, about, num_classes)


def find_data(named: str, like: DataConfig, columns: Sequence[str] = ()) -> tuple[DataConfig, str]:
    """Finds real data that fit samples of shape `like.shape`, and their split.

    For tables, `columns` names the columns to read, in the order of the samples.
    """
    data, split = sources.find(named, like)
    if data.source == "table":
        data = table_like(data, columns)
    split = split or data.split
    require_fitting(data, split, like.shape, named)
    return data, split


def make_baseline(
    scorer: Scorer, first: Dataset, data: DataConfig, split: str, decode: Decode, num: int
) -> Baseline:
    """The baseline: another split if one exists, otherwise every tenth sample."""
    other = other_split(data, split)
    if other is not None:
        return Baseline(as_images(sources.load(data, other), decode, num), scorer)
    return tenth_against_rest(scorer, first)


def tenth_against_rest(scorer: Scorer, data: Dataset) -> Baseline:
    """The baseline of every tenth sample, scored against all other samples."""
    tenth = torch.arange(len(data)) % 10 == 0
    rest = data.part(~tenth, f"{data.split} without every tenth")
    against = scorer_of(rest, scorer.features, scorer.num_classes)
    return Baseline(data.part(tenth, f"{data.split}, every tenth"), against)


def other_split(data: DataConfig, split: str) -> str | None:
    """A split other than this one, preferably a held-out one. None if there is no other."""
    there = sources.splits(data)
    found = {split_of(other) or other: other for other in there if other != split}
    own = split_of(split)
    return next((found[one] for one in (*HELD_OUT, "train") if one in found and one != own), None)


def training_points(config: Config) -> Dataset | None:
    """The training data of a run. Logs a message and returns None if they cannot be loaded."""
    try:
        return make_dataset(config.data)
    except (InputError, RunError) as error:
        log.info(f"{error}; skipping the diagnostics")
        return None


def require_real(reference: str, baseline: bool | None) -> None:
    """Raises InputError if the reference is a run, or statistics that have no baseline."""
    if reference and (Path(reference) / "config.yaml").is_file():
        raise InputError(f"reference {reference} is a run folder: choose real data")
    if baseline and holds_statistics(Path(reference)):
        raise InputError(
            f"the baseline needs real data, but the reference {reference} has only statistics: "
            "choose another reference, or leave out the baseline"
        )


def require_shape(real: tuple[int, ...], shape: tuple[int, ...], named: str) -> None:
    if real != shape:
        raise InputError(
            f"{named} has samples of shape {list(real)}, but the samples to evaluate have shape "
            f"{list(shape)}: choose data of this shape"
        )


def require_fitting(data: DataConfig, split: str, shape: tuple[int, ...], named: str) -> None:
    """Raises InputError if the first image would have to be enlarged or recolored to fit `shape`.

    Larger images of a folder or a dataset are cropped as for training. Arrays must fit exactly.
    """
    if data.source not in sources.IMAGES or len(shape) != 3:
        return
    image = first_image(data, split, named)
    size, found = shape[1], kind_of(image)
    wrong = image.size != (size, size) if data.source == "arrays" else min(image.size) < size
    if wrong or found[0] != shape[0]:
        raise InputError(
            f"{named} has images of {in_words(found)}, but the samples are {in_words(shape)}: "
            "choose data of the same size and channels"
        )
