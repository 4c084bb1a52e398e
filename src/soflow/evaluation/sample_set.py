"""Samples to evaluate: a folder of images, an .npz file in ADM's layout, a dataset, or tensors."""

import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from os.path import expanduser
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from soflow.config.schema import DataConfig
from soflow.data import sources
from soflow.data.dataset import Dataset
from soflow.data.images import MODES, channels_of, in_mode, open_image
from soflow.data.npz import UNREADABLE, damaged, open_member, read_head
from soflow.data.tree import FolderTree
from soflow.errors import InputError, RunError, first_line, in_short
from soflow.evaluation.record import SampleProtocol
from soflow.evaluation.reference_files import arrays_in, parse_protocol, protocol_of, read
from soflow.evaluation.statistics import parts_of

#: Samples read per part.
ROWS = 500
#: The kinds of samples that can be evaluated, for messages.
KINDS = "a run folder, a folder of images, an .npz file with arr_0, or a dataset"


@dataclass(frozen=True)
class SampleSet:
    """Samples in files or in memory.

    Attributes:
        name: Name of the file or the folder.
        shape: Shape of one sample.
        count: Number of samples N.
        parts: Reads all samples in parts: bytes (B, C, H, W) for images, otherwise floats (B, ...).
        labels: Labels (N,), or None.
        protocol: How the samples were drawn, as stored with the files.
        columns: Names of the columns of a table.
    """

    name: str
    shape: tuple[int, ...]
    count: int
    parts: Callable[[], Iterator[Tensor]]
    labels: Tensor | None = None
    protocol: SampleProtocol = field(default_factory=SampleProtocol)
    columns: tuple[str, ...] = ()


def open_samples(text: str) -> SampleSet:
    """Opens samples by a path, or by a dataset name, SOURCE[:SPLIT].

    Raises:
        InputError: If there are no samples, or if images differ in size or number of channels.
    """
    text = expanduser(text)
    path = Path(text)
    npz = path.suffix == ".npz"
    if path.is_dir() and (npz or sources.kind_of(text) == "folder"):
        return sample_folder(path)
    if path.is_file() and npz:
        return sample_arrays(path)
    readable = path.is_dir() or (path.is_file() and path.suffix in sources.FILES)
    if path.exists() and not readable:
        raise InputError(f"{path} contains no samples: choose {KINDS}")
    known = ":" in text or text in sources.SOURCES or path.parent == Path(".")
    if not path.exists() and not known:
        raise InputError(f"{path} does not exist: choose {KINDS}")
    data = data_named(text, 0)
    columns = () if data.scaling is None else data.scaling.columns
    return SampleSet(
        data.name, data.shape, len(data), lambda: parts_of(data), data.labels, columns=columns
    )


def samples_in_memory(samples: Tensor | np.ndarray, labels: Tensor | None) -> SampleSet:
    """Wraps samples in memory.

    Args:
        samples: Floats (N, ...), or images as bytes (N, C, H, W).
        labels: Labels (N,), or None.

    Raises:
        InputError: If the samples have a wrong type or shape, or there is not one label per sample.
    """
    if not isinstance(samples, Tensor | np.ndarray):
        raise InputError(f"samples is {in_short(samples)}: pass a tensor or an array (N, ...)")
    rows = torch.as_tensor(samples)
    if rows.ndim < 2 or not (rows.is_floating_point() or rows.dtype == torch.uint8):
        raise InputError(
            f"samples are {rows.dtype}{list(rows.shape)}: pass floats (N, ...), or bytes "
            "(N, C, H, W)"
        )
    if labels is not None and labels.shape != rows.shape[:1]:
        raise InputError(
            f"labels have shape {list(labels.shape)}: pass one label per sample, [{len(rows)}]"
        )
    if rows.dtype not in (torch.uint8, torch.float64):
        rows = rows.float()
    shape = tuple(rows.shape[1:])
    return SampleSet("samples", shape, len(rows), lambda: iter(rows.cpu().split(ROWS)), labels)


def data_named(text: str, size: int) -> Dataset:
    """Loads SOURCE[:SPLIT]. Images get side length `size`; 0 takes the size of the first image."""
    data, split = sources.find(text, DataConfig(num_classes=0))
    split = split or data.split
    if data.source == "table":
        data = table_like(data)
    if data.source == "latents":
        raise InputError(f"{text} holds latents: choose the images they were encoded from")
    if data.source in sources.IMAGES:
        image = first_image(data, split, text)
        side = size or min(image.size)
        data = data.model_copy(update={"shape": (channels_of(image), side, side)})
    return sources.load(data, split)


def table_like(data: DataConfig, columns: Sequence[str] = ()) -> DataConfig:
    """A table with only these columns, or with all. The label column is left out."""
    return data.model_copy(update={"columns": tuple(columns) or data.columns, "num_classes": -1})


def first_image(data: DataConfig, split: str, named: str) -> Image:
    images = sources.open_images(data, split)
    try:
        return images.openers(range(1))[0]()
    except Exception:
        raise InputError(f"{named}: {images.where(0)} cannot be read as an image") from None


def sample_folder(path: Path) -> SampleSet:
    """Opens a folder of images, sorted by name, with its protocol.json if it exists."""
    names = sorted(file.name for file in FolderTree(path).images)
    if not names:
        raise InputError(
            f"{path} is not a run folder (no config.yaml) and has no images: choose {KINDS}"
        )
    kinds: dict[tuple[int, int, int], str] = {}
    for name in names:
        kinds.setdefault(kind(path / name), name)
        if len(kinds) > 1:
            (one, first), (two, second) = kinds.items()
            raise InputError(
                f"{path}: {first} is {in_words(one)}, but {second} is {in_words(two)}: "
                "all samples must have the same size and channels"
            )
    (shape,) = kinds

    def parts() -> Iterator[Tensor]:
        for first in range(0, len(names), ROWS):
            chosen = names[first : first + ROWS]
            pixels = np.stack([decoded(path / name, shape[0]) for name in chosen])
            rows = torch.from_numpy(pixels).reshape(-1, *shape[1:], shape[0])
            yield rows.permute(0, 3, 1, 2)

    file = path / "protocol.json"
    text = file.read_text("utf-8", "replace") if file.is_file() else "{}"
    protocol = parse_protocol(text, file, SampleProtocol)
    return SampleSet(path.resolve().name, shape, len(names), parts, None, protocol)


def kind_of(image: Image) -> tuple[int, int, int]:
    """The channels, height and width of an image."""
    return channels_of(image), image.height, image.width


def in_words(shape: tuple[int, ...]) -> str:
    return f"{shape[2]}x{shape[1]} {'gray' if shape[0] == 1 else 'RGB'}"


def kind(file: Path) -> tuple[int, int, int]:
    """The channels, height and width of an image file, read from its header."""
    try:
        with open_image(file) as image:
            return kind_of(image)
    except Exception as error:  # decoders raise any exception
        raise InputError(f"{file} cannot be read as an image: {first_line(error)}") from None


def decoded(file: Path, channels: int) -> np.ndarray:
    try:
        with open_image(file) as image:
            return np.asarray(in_mode(image, MODES[channels], set()))
    except Exception as error:  # decoders raise any exception
        raise RunError(f"{file} cannot be read as an image: {first_line(error)}") from None


def sample_arrays(path: Path) -> SampleSet:
    """Opens an .npz file: samples arr_0 as bytes (N, H, W, C) or floats (N, ...), labels arr_1."""
    there = arrays_in(path)
    if "arr_0" not in there:
        raise InputError(
            f"{path} has no array arr_0 with the samples: it has {', '.join(sorted(there))}"
        )
    with opened(path, "arr_0") as (_, shape, dtype):
        images = dtype == np.uint8 and len(shape) == 4 and shape[3] in MODES
        last = len(shape) == 4 and shape[3] in MODES  # looks like images, but as floats
        others = np.issubdtype(dtype, np.floating) and len(shape) in (2, 3, 4) and not last
    if not (images or others) or min(shape) < 1:
        raise InputError(
            f"{path}: arr_0 is {dtype}{list(shape)}: it must be uint8 (N, H, W, 1 or 3), or floats "
            "(N, D), (N, C, L) or (N, C, H, W)"
        )
    beside = read(path, ("arr_1", "protocol"), there)
    classes = beside.get("arr_1")
    if classes is not None:
        fitting = classes.shape == shape[:1] and np.issubdtype(classes.dtype, np.integer)
        if not fitting or classes.min() < -1:
            raise InputError(
                f"{path}: arr_1 is {classes.dtype}{list(classes.shape)}: it must hold "
                f"{shape[0]} class labels, integers from 0, or -1 for no class"
            )
    labels = None
    if classes is not None and classes.max() >= 0:
        labels = torch.from_numpy(classes.astype(np.int64))

    def parts() -> Iterator[Tensor]:
        for rows in rows_of(path, "arr_0"):
            values = rows if rows.dtype == torch.float64 else rows.float()
            yield rows.permute(0, 3, 1, 2) if images else values

    one = (shape[3], *shape[1:3]) if images else shape[1:]
    protocol = protocol_of(beside, path, SampleProtocol)
    return SampleSet(path.stem, one, shape[0], parts, labels, protocol)


@contextmanager
def opened(path: Path, name: str) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype]]:
    """Opens an array in an .npz file as a stream of bytes, with its shape and dtype."""
    with ExitStack() as stack:
        try:
            archive = stack.enter_context(zipfile.ZipFile(path))
            member = archive.getinfo(f"{name}.npy")
            stream = stack.enter_context(open_member(archive, member))
            head = read_head(stream, member.file_size)
        except UNREADABLE as error:
            raise damaged(path, error) from None
        if head.columns_first or head.dtype.hasobject:
            what = "Python objects" if head.dtype.hasobject else "an array in Fortran order"
            raise InputError(f"{path}: {name} holds {what}: save a numeric array in C order")
        yield stream, head.shape, head.dtype


def rows_of(path: Path, name: str) -> Iterator[Tensor]:
    """Reads an array in an .npz file, ROWS rows at a time. Raises RunError if it is damaged."""
    with opened(path, name) as (stream, (count, *shape), dtype):
        row = int(np.prod(shape)) * dtype.itemsize
        for first in range(0, count, ROWS):
            wanted = min(ROWS, count - first)
            try:
                content = stream.read(wanted * row)
            except UNREADABLE as error:
                raise RunError(f"{path} is damaged: {first_line(error)}") from None
            if len(content) < wanted * row:
                whole = first + len(content) // row
                raise RunError(f"{path} is damaged: {name} ends after {whole:,} of {count:,} rows")
            values = np.frombuffer(content, dtype).reshape(wanted, *shape)
            yield torch.from_numpy(values.astype(dtype.newbyteorder("=")))
