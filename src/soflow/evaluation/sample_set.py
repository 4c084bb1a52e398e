"""Samples to evaluate: images, an .npz in ADM's layout or a data set, part by part; tensors."""

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

#: Images read at once.
ROWS = 500
#: What can be evaluated.
KINDS = "a run folder, a folder of images, an .npz with arr_0, or a data set"


@dataclass(frozen=True)
class SampleSet:
    """Samples in files or in memory.

    Attributes:
        name: Of the file or the folder.
        shape: Of one sample.
        count: How many samples.
        parts: Reads all of them: bytes (B, C, H, W), or floats (B, ...) if they are no pictures.
        labels: (N,), or None.
        protocol: How they were drawn, if the files say so.
        columns: The names of the columns of a table.
    """

    name: str
    shape: tuple[int, ...]
    count: int
    parts: Callable[[], Iterator[Tensor]]
    labels: Tensor | None = None
    protocol: SampleProtocol = field(default_factory=SampleProtocol)
    columns: tuple[str, ...] = ()


def open_samples(text: str) -> SampleSet:
    """Samples by a path, or by the name of a data set, SOURCE[:SPLIT].

    Raises:
        InputError: If there are none, or images are not all of one size and kind.
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
        raise InputError(f"{path} holds no samples: give {KINDS}")
    known = ":" in text or text in sources.SOURCES or path.parent == Path(".")
    if not path.exists() and not known:
        raise InputError(f"there is no {path}: give {KINDS}")
    data = data_named(text, 0)
    columns = () if data.scaling is None else data.scaling.columns
    return SampleSet(
        data.name, data.shape, len(data), lambda: parts_of(data), data.labels, columns=columns
    )


def samples_in_memory(samples: Tensor | np.ndarray, labels: Tensor | None) -> SampleSet:
    """Samples (N, ...) as floats or, of images (N, C, H, W), as bytes; labels (N,).

    Raises:
        InputError: If there are no samples, or not one label per sample.
    """
    if not isinstance(samples, Tensor | np.ndarray):
        raise InputError(f"samples is {in_short(samples)}: give a tensor or an array (N, ...)")
    rows = torch.as_tensor(samples)
    if rows.ndim < 2 or not (rows.is_floating_point() or rows.dtype == torch.uint8):
        raise InputError(f"samples are {rows.dtype}{list(rows.shape)}: give floats (N, ...)")
    if labels is not None and labels.shape != rows.shape[:1]:
        raise InputError(f"labels have shape {list(labels.shape)}, not [{len(rows)}]")
    if rows.dtype not in (torch.uint8, torch.float64):
        rows = rows.float()
    shape = tuple(rows.shape[1:])
    return SampleSet("samples", shape, len(rows), lambda: iter(rows.cpu().split(ROWS)), labels)


def data_named(text: str, size: int) -> Dataset:
    """The images or points of SOURCE[:SPLIT]; images of side `size`, or 0: that of the first."""
    data, split = sources.find(text, DataConfig(num_classes=0))
    split = split or data.split
    if data.source == "table":
        data = table_like(data)
    if data.source == "latents":
        raise InputError(f"{text} holds latents: name the images that they are of")
    if data.source in sources.IMAGES:
        image = first_image(data, split, text)
        side = size or min(image.size)
        data = data.model_copy(update={"shape": (channels_of(image), side, side)})
    return sources.load(data, split)


def table_like(data: DataConfig, columns: Sequence[str] = ()) -> DataConfig:
    """A table of certain columns, or of all. A column of classes is no coordinate."""
    return data.model_copy(update={"columns": tuple(columns) or data.columns, "num_classes": -1})


def first_image(data: DataConfig, split: str, named: str) -> Image:
    images = sources.open_images(data, split)
    try:
        return images.openers(range(1))[0]()
    except Exception:
        raise InputError(f"{named}: {images.where(0)} cannot be read as an image") from None


def sample_folder(path: Path) -> SampleSet:
    """The images below a folder, by name, with protocol.json if it is there. See `open_samples`."""
    names = sorted(file.name for file in FolderTree(path).images)
    if not names:
        raise InputError(
            f"{path} is no run folder (it has no config.yaml) and no folder of images: it has none"
        )
    kinds: dict[tuple[int, int, int], str] = {}
    for name in names:
        kinds.setdefault(kind(path / name), name)
        if len(kinds) > 1:
            (one, first), (two, second) = kinds.items()
            raise InputError(
                f"{path}: {first} is {in_words(one)}, but {second} is {in_words(two)}: "
                "samples must be of one size and kind"
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
    """Channels, height and width of an image."""
    return channels_of(image), image.height, image.width


def in_words(shape: tuple[int, ...]) -> str:
    return f"{shape[2]}x{shape[1]} {'grey' if shape[0] == 1 else 'RGB'}"


def kind(file: Path) -> tuple[int, int, int]:
    """The kind of an image, by its header."""
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
    """The samples arr_0, images (N, H, W, 1 or 3) or floats, and labels arr_1, (N,), of an .npz."""
    there = arrays_in(path)
    if "arr_0" not in there:
        raise InputError(f"{path} has no arr_0, the samples: it has {', '.join(sorted(there))}")
    with opened(path, "arr_0") as (_, shape, dtype):
        images = dtype == np.uint8 and len(shape) == 4 and shape[3] in MODES
        last = len(shape) == 4 and shape[3] in MODES  # images, but not in bytes
        others = np.issubdtype(dtype, np.floating) and len(shape) in (2, 3, 4) and not last
    if not (images or others) or min(shape) < 1:
        raise InputError(
            f"{path}: arr_0 is {dtype}{list(shape)}, not uint8 (N, H, W, 1 or 3) or floats (N, D), "
            "(N, C, L) or (N, C, H, W)"
        )
    beside = read(path, ("arr_1", "protocol"), there)
    classes = beside.get("arr_1")
    if classes is not None:
        fitting = classes.shape == shape[:1] and np.issubdtype(classes.dtype, np.integer)
        if not fitting or classes.min() < 0:
            raise InputError(
                f"{path}: arr_1 is {classes.dtype}{list(classes.shape)}, not [{shape[0]}] "
                "whole numbers from 0"
            )
    labels = None if classes is None else torch.from_numpy(classes.astype(np.int64))

    def parts() -> Iterator[Tensor]:
        for rows in rows_of(path, "arr_0"):
            values = rows if rows.dtype == torch.float64 else rows.float()
            yield rows.permute(0, 3, 1, 2) if images else values

    one = (shape[3], *shape[1:3]) if images else shape[1:]
    protocol = protocol_of(beside, path, SampleProtocol)
    return SampleSet(path.stem, one, shape[0], parts, labels, protocol)


@contextmanager
def opened(path: Path, name: str) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype]]:
    """A stream of the bytes of an array in an .npz, with its shape and type."""
    with ExitStack() as stack:
        try:
            archive = stack.enter_context(zipfile.ZipFile(path))
            member = archive.getinfo(f"{name}.npy")
            stream = stack.enter_context(open_member(archive, member))
            head = read_head(stream, member.file_size)
        except UNREADABLE as error:
            raise damaged(path, error) from None
        if head.columns_first or head.dtype.hasobject:
            what = "objects" if head.dtype.hasobject else "an array in Fortran order"
            raise InputError(f"{path} holds {what}: save plain arrays")
        yield stream, head.shape, head.dtype


def rows_of(path: Path, name: str) -> Iterator[Tensor]:
    """The rows of an array in an .npz, ROWS at a time. Raises RunError for a damaged file."""
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
