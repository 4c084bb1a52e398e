"""Loads data by name from any registered source."""

import os
from pathlib import Path

from soflow.config.schema import DataConfig
from soflow.data import arrays, bundled, folder, huggingface, latents, own, tables  # registers them
from soflow.data.bundled import digits
from soflow.data.dataset import Dataset
from soflow.data.hub import BUILDERS
from soflow.data.images import ENDINGS, Images
from soflow.data.latents import HDF5
from soflow.data.registry import SOURCES, ImageSource, source_of
from soflow.data.tree import LABEL_FILES, is_system
from soflow.errors import InputError

__all__ = [
    "SOURCES", "arrays", "bundled", "digits", "find", "folder", "huggingface", "kind_of",
    "latents", "load", "open_images", "own", "resolved", "splits", "tables",
]  # fmt: skip

ARRAYS = (".npz", ".npy")
#: Extensions of data files.
TABLES = (".csv", ".tsv")
FILES = (*ARRAYS, *BUILDERS, *HDF5, *TABLES, ".zip")
#: The maximum number of files that are inspected to find the source for a folder.
MOST_FILES = 20_000
#: Sources that read `data.path`, with a description of the data they read.
LOOKS_LIKE = {
    "folder": "a folder or zip file of images",
    "huggingface": "parquet or arrow",
    "arrays": "a file of arrays",
    "table": "a table",
    "latents": "latents",
}
#: Built-in sources of image files.
IMAGES = ("folder", "huggingface", "arrays")


def load(config: DataConfig, split: str = "train") -> Dataset:
    """Loads the data of a configuration with all of their classes.

    Args:
        config: The section `data`. `num_classes` is not applied here.
        split: The split to load.

    Raises:
        InputError: If the data do not exist or cannot be used.
    """
    config = resolved(config)
    source = source_of(config.source)
    if source is None:
        return SOURCES[config.source](config, split)
    return source.load(config, split)


def splits(config: DataConfig) -> tuple[str, ...]:
    """The splits of a source. A source that is a function only has the split train."""
    config = resolved(config)
    source = source_of(config.source)
    return ("train",) if source is None else source.splits(config)


def open_images(config: DataConfig, split: str) -> Images:
    """Opens the images of a configuration without decoding them.

    Raises:
        InputError: If the source does not contain image files, or cannot be read.
    """
    config = resolved(config)
    source = source_of(config.source)
    if not isinstance(source, ImageSource):
        wrong = f"data.source is '{config.source}', which does not contain image files"
        raise InputError(f"{wrong}: choose one of {', '.join(IMAGES)}")
    return source.open(config, split)


def require_path_is_read(config: DataConfig) -> None:
    """Raises InputError if a path is set for a source of bundled data."""
    if config.source == "auto":
        return
    if config.path and isinstance(source_of(config.source), bundled.Bundled):
        raise InputError(
            f"data.path={config.path} has no effect, since data.source={config.source} is bundled "
            "with soflow: set data.source=auto to read the path (or use the recipe images), or "
            "leave out the path"
        )


def resolved(config: DataConfig) -> DataConfig:
    """The configuration with `data.source=auto` replaced by the source that reads `data.path`.

    Raises:
        InputError: If `data.path` is not set, or the files there need another source.
    """
    if config.source == "auto":
        if not config.path:
            raise InputError(
                "data.path is not set: set it to your data, such as a folder of images, a file of "
                "arrays or a table"
            )
        return config.model_copy(update={"source": kind_of(config.path)})
    known = config.source in (*IMAGES, "table") and config.path and Path(config.path).exists()
    try:
        kind = kind_of(config.path) if known else config.source
    except MixedFolder:
        return config
    if kind != config.source:
        parquet = Path(config.path).suffix == ".parquet" or Path(config.path).is_dir()
        if not (parquet and {kind, config.source} <= {"table", "huggingface"}):
            found = f"data.path={config.path} is {LOOKS_LIKE[kind]}"
            raise InputError(f"{found}: set data.source={kind}")
    return config


def kind_of(path: str) -> str:
    """The source that reads a path. A path that does not exist counts as a name on the Hub."""
    place = Path(path)
    ending = "" if place.is_dir() else place.suffix.lower()
    if ending in ARRAYS:
        return "arrays"
    if ending in HDF5:
        return "latents"
    if ending in TABLES or (ending == ".parquet" and place.is_file() and not has_images(place)):
        return "table"
    if ending == ".zip" or (ending in ENDINGS and place.is_file()):
        return "folder"  # raises an error for a single image
    if ending in BUILDERS or not place.is_dir():
        return "huggingface"
    if (place / "plan.json").is_file():
        return "latents"
    if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
        return "huggingface"
    images, data, tables = look_into(place)
    if images and data:
        raise MixedFolder(
            f"data.path={path} has images and {data.suffix} files, such as {data}: use a folder "
            "with one of them, or set data.source=folder or data.source=huggingface"
        )
    if data:
        table = data.suffix.lower() == ".parquet" and not has_images(data)
        return "table" if table else "huggingface"
    return "table" if tables and not images else "folder"


class MixedFolder(InputError):
    """A folder has files of several kinds, and `data.source` must select one."""


def look_into(place: Path) -> tuple[bool, Path | None, bool]:
    """Whether a folder has images, its first parquet or arrow file, and whether it has tables.

    Files of labels are ignored. In large folders, the search stops after MOST_FILES files.
    """
    images, data, tables, count = False, None, False, 0
    seen = set()
    for here, folders, names in os.walk(place, followlinks=True):
        folders[:] = sorted(name for name in folders if not is_system(name))
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        for name in sorted(names):
            ending = Path(name).suffix.lower()
            if is_system(name) or name.lower() in (*LABEL_FILES, "metadata.parquet"):
                continue
            images = images or ending in ENDINGS
            tables = tables or (Path(here) == place and ending in TABLES)
            data = data or (Path(here, name) if ending in BUILDERS else None)
        count += len(names)
        if count >= MOST_FILES and (images or data):
            break
    return images, data, tables


def has_images(file: Path) -> bool:
    """Whether a .parquet file has a column of image files: bytes, or {bytes, path}."""
    try:
        from pyarrow import parquet, types

        schema = parquet.read_schema(file)
    except Exception:  # not installed, or a damaged file: `datasets` reports the error
        return True
    binary = (types.is_binary, types.is_large_binary)
    inner = [
        kind.field("bytes").type
        for kind in schema.types
        if types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    ]
    return any(is_binary(kind) for kind in (*schema.types, *inner) for is_binary in binary)


def find(text: str, like: DataConfig) -> tuple[DataConfig, str]:
    """Parses SOURCE[:SPLIT], as used on the command line.

    Args:
        text: A bundled or registered source, a path (folder, .npz, .npy, parquet, latents) or a
            name on the Hub, with an optional split.
        like: The configuration to change, which has the shape and the names of columns.

    Returns:
        The configuration with the source and the path, and the split or "".

    Raises:
        InputError: If a path does not exist.
    """
    source, _, split = text.rpartition(":")
    if not source or "/" in split or Path(text).exists():
        source, split = text, ""
    if source in SOURCES and source not in LOOKS_LIKE:
        return like.model_copy(update={"source": source, "path": ""}), split
    path = str(Path(source).expanduser()) if source.startswith("~") else source
    local = source.startswith((".", "/", "~")) or source.count("/") > 1
    if (local or Path(source).suffix.lower() in FILES) and not Path(path).exists():
        raise InputError(f"{source} does not exist: check the path")
    return like.model_copy(update={"source": kind_of(path), "path": path}), split
