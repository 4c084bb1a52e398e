"""Data by name: every registered source behind one function, `load`."""

from pathlib import Path

from soflow.config.schema import DataConfig
from soflow.data import arrays, bundled, folder, huggingface, latents  # registers them
from soflow.data.bundled import digits
from soflow.data.dataset import Dataset
from soflow.data.huggingface import BUILDERS
from soflow.data.images import ENDINGS, Images
from soflow.data.latents import HDF5
from soflow.data.registry import SOURCES, ImageSource, source_of
from soflow.errors import InputError

__all__ = [
    "SOURCES", "arrays", "bundled", "digits", "find", "folder", "huggingface", "kind_of",
    "latents", "load", "open_images", "splits",
]  # fmt: skip

ARRAYS = (".npz", ".npy")
#: Endings of files that hold data.
FILES = (*ARRAYS, *BUILDERS, *HDF5)
#: Sources that read `data.path`, and what they find there.
LOOKS_LIKE = {
    "folder": "a folder of images",
    "huggingface": "parquet or arrow",
    "arrays": "a file of arrays",
    "latents": "latents",
}
#: Built-in sources of image files.
IMAGES = ("folder", "huggingface", "arrays")


def load(config: DataConfig, split: str = "train") -> Dataset:
    """Loads the data that a configuration names, with their classes.

    Args:
        config: The section `data`; its classes are neither checked nor dropped here.
        split: The split to load.

    Raises:
        InputError: If the data do not exist or cannot be used.
    """
    source = source_of(config.source)
    if source is None:
        return SOURCES[config.source](config, split)
    require_kind(config)
    return source.load(config, split)


def splits(config: DataConfig) -> tuple[str, ...]:
    """The splits that a source has. A source that is a function has the split train alone."""
    source = source_of(config.source)
    return ("train",) if source is None else source.splits(config)


def open_images(config: DataConfig, split: str) -> Images:
    """The images that a configuration names, not decoded yet.

    Raises:
        InputError: If the source holds no image files, or cannot be read.
    """
    source = source_of(config.source)
    if not isinstance(source, ImageSource):
        wrong = f"data.source is '{config.source}', which holds no image files"
        raise InputError(f"{wrong}: {', '.join(IMAGES)} do")
    require_kind(config)
    return source.open(config, split)


def require_kind(config: DataConfig) -> None:
    """Raises InputError if the files at data.path are read by another source."""
    known = config.source in IMAGES and config.path and Path(config.path).exists()
    if known and (kind := kind_of(config.path)) != config.source:
        raise InputError(f"data.path={config.path} is {LOOKS_LIKE[kind]}: use data.source={kind}")


def kind_of(path: str) -> str:
    """Which source reads a path. A path that does not exist is taken for a name on the Hub."""
    place, ending = Path(path), Path(path).suffix.lower()
    if ending in ARRAYS:
        return "arrays"
    if ending in HDF5:
        return "latents"
    if ending in BUILDERS or not place.is_dir():
        return "huggingface"
    if (place / "plan.json").is_file():
        return "latents"
    if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
        return "huggingface"
    kinds = {**dict.fromkeys(ENDINGS, "folder"), **dict.fromkeys(BUILDERS, "huggingface")}
    endings = (file.suffix.lower() for file in place.rglob("*"))
    # The first file decides, so that a folder of a million images is not listed.
    return next((kinds[one] for one in endings if one in kinds), "folder")


def find(text: str, like: DataConfig) -> tuple[DataConfig, str]:
    """Reads SOURCE[:SPLIT] of a command line.

    Args:
        text: A bundled or registered source, a path (folder, .npz, .npy, parquet, latents) or a
            name on the Hub, with an optional split.
        like: Gives the shape and the names of columns.

    Returns:
        The configuration, and the split or "".

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
        raise InputError(f"there is no {source}")
    return like.model_copy(update={"source": kind_of(path), "path": path}), split
