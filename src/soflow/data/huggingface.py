"""Images from Hugging Face datasets: by name from the Hub, or local parquet and arrow files.

The columns of images and of classes are found by their types, or named.
"""

import io
import os
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import Field

from soflow.config.schema import DataConfig
from soflow.data.dataset import MOST_CLASSES
from soflow.data.file_fingerprints import file_of, fingerprint_of_folder
from soflow.data.images import Images, Opener, choose, open_image, require_split
from soflow.data.registry import SOURCES, ImageSource
from soflow.errors import InputError, first_line
from soflow.system.packages import optional_package
from soflow.system.records import Record

#: Builders of `datasets` for local files, by ending.
BUILDERS = {".parquet": "parquet", ".arrow": "arrow"}
TEXT = ("string", "large_string")
#: Folders whose files may be opened.
Roots = tuple[Path, ...]
#: The label of each row or None, the class names, and the reason if there are no labels.
Classes = tuple[list[int] | None, tuple[str, ...], str]


@SOURCES.register("huggingface")
class HuggingFace(ImageSource):
    """A data set on the Hub, or parquet and arrow files."""

    def splits(self, config: DataConfig) -> tuple[str, ...]:
        return tuple(open_splits(config.path))

    def open(self, config: DataConfig, split: str) -> Images:
        return HuggingFaceImages(config.path, split, config.image_column, config.label_column)


class SavedSplits(Record):
    """dataset_dict.json, as written by save_to_disk."""

    splits: list[str]


class SavedFile(Record):
    """A file that state.json names."""

    filename: str


class SavedState(Record):
    """state.json of a split, as written by save_to_disk."""

    files: list[SavedFile] = Field(alias="_data_files")


class HuggingFaceImages:
    """The images of one split."""

    def __init__(self, path: str, split: str, image: str = "", label: str = "") -> None:
        splits = open_splits(path)
        import datasets

        require_split(split, tuple(splits), path)
        table = splits[split]
        self.name, self.split = Path(path).stem, split
        self.column = image_column_of(table, path, image)
        chosen = label_column_of(table, path, label)
        # Names are those of the split train, so that classes have the same number in every split.
        names = text_in(splits.get("train", table), chosen)
        self.labels, self.class_names, self.unlabelled = classes(table, chosen, self.name, names)
        self.fingerprint = f"{table._fingerprint} {self.column} {chosen}"
        self.roots = roots_of(path)
        undecoded = datasets.Image(decode=False)
        self.images = table.select_columns([self.column]).cast_column(self.column, undecoded)

    def __len__(self) -> int:
        return len(self.images)

    def where(self, row: int) -> str:
        return f"row {row}"

    def openers(self, rows: range) -> Sequence[Opener]:
        try:
            stored = self.images[rows.start : rows.stop][self.column]
        except Exception as error:  # readers of damaged files raise anything
            raise InputError(f"{self.name} cannot be read: {first_line(error)}") from None
        return [partial(open_stored, one, self.roots) for one in stored]


def open_stored(stored: Mapping[str, Any] | None, roots: Roots) -> Image.Image:
    """An image as `datasets` stores it: bytes, or the path of a file below one of the folders."""
    if stored is None:
        raise ValueError("there is no image")
    data = stored["bytes"]
    return open_image(inside(roots, stored["path"]) if data is None else io.BytesIO(data))


def inside(roots: Roots, path: str) -> Path:
    """The file at a path, which may be relative to roots[0]. Raises ValueError if it is outside."""
    file = Path(os.path.abspath(roots[0] / path))
    places = (place(root) for root in roots for place in (os.path.abspath, os.path.realpath))
    if not any(file.is_relative_to(place) for place in places):
        raise ValueError(f"{path} lies outside {roots[0]}: it is not opened")
    return file


def roots_of(path: str) -> Roots:
    """The folder of local data, or the folders that data from the Hub are downloaded to."""
    from datasets import config
    from huggingface_hub.constants import HF_HUB_CACHE

    if Path(path).exists():
        return (Path(path) if Path(path).is_dir() else Path(path).parent,)
    caches = (config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, HF_HUB_CACHE)
    return tuple(map(Path, caches))


@lru_cache(maxsize=8)
def open_splits(path: str) -> Any:
    """All splits as `datasets` holds them, memory-mapped and not decoded."""
    datasets = optional_package("datasets", "data.source=huggingface needs", "data")
    if not path:
        raise InputError("data.source=huggingface needs data.path: a Hub name, or a parquet folder")
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    place = Path(path)
    # Spark also gives folders such endings.
    builder = None if place.is_dir() else BUILDERS.get(place.suffix.lower())
    if builder and not place.is_file():
        raise InputError(f"data.path={path} does not exist")
    try:
        # Versions before 4 would run scripts found among the data.
        datasets.config.HF_DATASETS_TRUST_REMOTE_CODE = False
        if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
            require_inside(place)
            saved = datasets.load_from_disk(path)
            return saved if isinstance(saved, dict) else {"train": saved}
        if not place.exists():
            return datasets.load_dataset(path)
        about = {"description": fingerprint_of(place), **({"data_files": path} if builder else {})}
        made = datasets.load_dataset_builder(builder or path, **about)
        for file in chain.from_iterable((made.config.data_files or {}).values()):
            inside(roots_of(path), file)  # a card among the data may name any file
        made.download_and_prepare()
        return made.as_dataset()
    except Exception as error:  # readers, the file system and the network raise anything
        raise InputError(f"data.path={path} cannot be read: {first_line(error)}") from None


def require_inside(folder: Path) -> None:
    """Raises ValueError if what save_to_disk wrote names files outside the folder."""
    saved = SavedSplits.read(folder / "dataset_dict.json")
    for split in ["."] if saved is None else saved.splits:
        state = SavedState.read(inside((folder,), os.path.join(split, "state.json")))
        for file in [] if state is None else state.files:
            inside((folder,), os.path.join(split, file.filename))


def fingerprint_of(place: Path) -> str:
    """A fingerprint of local files; `datasets` itself only looks at paths and times."""
    root, found = (place, sorted(place.rglob("*"))) if place.is_dir() else (place.parent, [place])
    files = [file_of(str(one.relative_to(root)), one.stat()) for one in found if one.is_file()]
    return fingerprint_of_folder(root, files)


def image_column_of(table: Any, path: str, named: str) -> str:
    """The column of images; a named one may hold files as bytes. Raises InputError without one."""
    import datasets

    images = [name for name, kind in table.features.items() if isinstance(kind, datasets.Image)]
    files = [name for name, kind in table.features.items() if holds_files(kind)]
    known = columns_of(table)
    column = choose(path, "column of images", "image_column", named, images, known, files)
    if column is None:
        hint = f"; if it has images, set data.image_column={files[0]}" if files else ""
        raise InputError(f"{path} has no column of images; {known}{hint}")
    return column


def label_column_of(table: Any, path: str, named: str) -> str | None:
    """The column of classes, or None. Raises InputError if it is not clear which one it is."""
    from datasets import ClassLabel

    columns, known = list(table.features), columns_of(table)
    found = [name for name in columns if isinstance(table.features[name], ClassLabel)]
    return choose(path, "column of classes", "label_column", named, found, known, columns)


def columns_of(table: Any) -> str:
    return f"its columns are {', '.join(table.features)}"


def holds_files(kind: Any) -> bool:
    """Whether a column may hold image files: bytes, or {bytes, path} as `datasets` has it."""
    import datasets

    if isinstance(kind, datasets.Value):
        return kind.dtype in ("binary", "large_binary")
    return isinstance(kind, dict) and set(kind) == {"bytes", "path"}


def text_in(table: Any, column: str | None) -> tuple[str, ...]:
    """The different texts in a column, sorted; () if it holds no text."""
    is_text = getattr(table.features.get(column), "dtype", "") in TEXT
    return tuple(sorted(set(table.unique(column)) - {None})) if is_text else ()


def classes(table: Any, column: str | None, name: str, names: tuple[str, ...]) -> Classes:
    """The class of each row and their names, or (None, (), reason). names: of a column of text."""
    import datasets

    if column is None:
        return None, (), f"{name} has no column of classes"
    kind, values = table.features[column], list(table[column])
    if isinstance(kind, datasets.ClassLabel):
        names = tuple(map(str, kind.names))
        for row, value in enumerate(values):
            if value is None or not 0 <= value < len(names):
                why = f"row {row} has {value}, its classes are 0 to {len(names) - 1}"
                return None, (), f"{name} is not labelled throughout: {why}"
        return values, names, ""
    most = max(len(values), MOST_CLASSES)
    if all(isinstance(value, int) and 0 <= value < most for value in values):
        return values, (), ""
    why = "holds neither classes nor numbers from 0 nor names throughout"
    if all(isinstance(value, str) for value in values):
        unknown = sorted(set(values) - set(names))
        if not unknown:
            numbers = {one: number for number, one in enumerate(names)}
            return [numbers[value] for value in values], names, ""
        why = f"has a class '{unknown[0]}' that the split train lacks"
    return None, (), f"the column '{column}' of {name} {why}"
