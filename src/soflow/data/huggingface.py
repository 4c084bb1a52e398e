"""Images from Hugging Face datasets: by name from the Hub, or from local parquet or arrow files.

Columns are found by their types, or named: the image column, and the class column if there is one.
"""

import io
import os
import sys
from collections.abc import Sequence
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

from PIL import Image

from soflow.config.schema import DataConfig
from soflow.data.content import file_of, of_folder
from soflow.data.dataset import MOST_CLASSES
from soflow.data.images import Images, Opener, open_image
from soflow.data.registry import SOURCES, ImageSource
from soflow.errors import InputError, first_line
from soflow.system.records import read_json

#: Local files that the package `datasets` reads, by their endings.
BUILDERS = {".parquet": "parquet", ".arrow": "arrow"}
TEXT = ("string", "large_string")
#: Folders whose files may be opened.
Roots = tuple[Path, ...]


class HuggingFaceImages:
    """The images of one split, with their classes if it has any."""

    def __init__(
        self, path: str, split: str, image_column: str = "", label_column: str = ""
    ) -> None:
        table = open_split(path, split)
        self.name = Path(path).stem
        self.split = split
        image = image_column_of(table, path, image_column)
        label = label_column_of(table, path, label_column)
        self.labels, self.class_names, self.unlabelled = classes(
            table, label, self.name, names_of(path, label, table)
        )
        self.fingerprint = f"{table._fingerprint} {image} {label}"
        self.column, self.roots = image, roots_of(path)
        self.images = undecoded(table, image)

    def __len__(self) -> int:
        return len(self.images)

    def where(self, row: int) -> str:
        return f"row {row}"

    def openers(self, rows: range) -> Sequence[Opener]:
        try:
            stored = self.images[rows.start : rows.stop][self.column]
        except Exception as error:  # whatever readers of damaged files raise
            raise InputError(f"{self.name} cannot be read: {first_line(error)}") from None
        return [partial(open_stored, one, self.roots) for one in stored]


@SOURCES.register("huggingface")
class HuggingFace(ImageSource):
    """A data set on the Hub, or parquet and arrow files."""

    def splits(self, config: DataConfig) -> tuple[str, ...]:
        return tuple(open_splits(config.path))

    def open(self, config: DataConfig, split: str) -> Images:
        return HuggingFaceImages(config.path, split, config.image_column, config.label_column)


def open_stored(stored: dict[str, Any] | None, roots: Roots) -> Image.Image:
    """An image as `datasets` stores it: bytes, or the path of a file, which must lie below one of the folders."""
    if stored is None:
        raise ValueError("there is no image")
    data = stored["bytes"]
    return open_image(inside(roots, stored["path"]) if data is None else io.BytesIO(data))


def inside(roots: Roots, path: str) -> Path:
    """The file at a path that data name, from the first of the folders or whole. Raises ValueError where it lies in none."""
    file = Path(os.path.abspath(roots[0] / path))
    if not any(
        file.is_relative_to(place)
        for root in roots
        for place in (os.path.abspath(root), os.path.realpath(root))
    ):
        raise ValueError(f"{path} lies outside {roots[0]}: nothing there is opened")
    return file


def roots_of(path: str) -> Roots:
    """The folder of data here; of those from the Hub the ones that they are downloaded into."""
    import datasets
    from huggingface_hub.constants import HF_HUB_CACHE

    if not Path(path).exists():
        return (
            Path(datasets.config.HF_DATASETS_CACHE),
            Path(datasets.config.DOWNLOADED_DATASETS_PATH),
            Path(HF_HUB_CACHE),
        )
    return (Path(path) if Path(path).is_dir() else Path(path).parent,)


@lru_cache(maxsize=8)
def open_splits(path: str) -> Any:
    """All splits as `datasets` holds them, memory-mapped and not yet decoded."""
    try:
        import datasets
    except ImportError:
        raise InputError(
            "data.source=huggingface needs the package datasets: pip install 'soflow[data]'"
        ) from None
    if not path:
        raise InputError(
            "data.source=huggingface needs data.path: a name on the Hub, or a folder of parquet files"
        )
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    builder = (
        None if Path(path).is_dir() else BUILDERS.get(Path(path).suffix.lower())
    )  # Spark calls folders so, too
    if builder and not Path(path).is_file():
        raise InputError(f"data.path={path} cannot be read: there is no such file")
    try:
        datasets.config.HF_DATASETS_TRUST_REMOTE_CODE = (
            False  # versions before 4 would run scripts that lie among data
        )
        if (Path(path) / "dataset_dict.json").is_file() or (Path(path) / "state.json").is_file():
            require_inside(Path(path))
            saved = datasets.load_from_disk(path)
            return saved if isinstance(saved, dict) else {"train": saved}
        if not Path(path).exists():
            return datasets.load_dataset(path)
        files = {"data_files": path} if builder else {}
        made = datasets.load_dataset_builder(
            builder or path, description=content_of(Path(path)), **files
        )
        for file in chain.from_iterable((made.config.data_files or {}).values()):
            inside(roots_of(path), file)  # a card among the data may name any
        made.download_and_prepare()
        return made.as_dataset()
    except Exception as error:  # whatever its readers, the file system and the network raise
        raise InputError(f"data.path={path} cannot be read: {first_line(error)}") from None


def require_inside(folder: Path) -> None:
    """Raises ValueError where what save_to_disk wrote leads to files that do not lie below the folder."""
    splits = read_json(folder / "dataset_dict.json", {"splits": [str]}).get("splits", ["."])
    for split in splits:
        state = inside((folder,), os.path.join(split, "state.json"))
        for file in read_json(state, {"_data_files": [{"filename": str}]}).get("_data_files", []):
            inside((folder,), os.path.join(split, file["filename"]))


def content_of(place: Path) -> str:
    """Digits for files here. `datasets` knows these by their paths and times alone, and gives what it read before where
    both are the same; what they are described by counts, too.
    """
    root, found = (place, sorted(place.rglob("*"))) if place.is_dir() else (place.parent, [place])
    return of_folder(
        root,
        [file_of(str(file.relative_to(root)), file.stat()) for file in found if file.is_file()],
    )


def open_split(path: str, split: str) -> Any:
    splits = open_splits(path)
    if split not in splits:
        raise InputError(f"{path} has no split '{split}': its splits are {' and '.join(splits)}")
    return splits[split]


def image_column_of(table: Any, path: str, named: str) -> str:
    """The column of images; one that is named may hold images' files as bytes, not being marked as images.

    Raises InputError where the one that is named is none, or where there is not just one.
    """
    import datasets

    images = [name for name, kind in table.features.items() if isinstance(kind, datasets.Image)]
    files = [name for name, kind in table.features.items() if holds_files(kind)]
    there = f"its columns are {', '.join(table.features)}"
    if named and named not in table.features:
        raise InputError(f"{path} has no column '{named}', which data.image_column names; {there}")
    if named and named not in images + files:
        raise InputError(
            f"the column '{named}' of {path}, which data.image_column names, has no images; {there}"
        )
    if not named and not images:
        bytes_are_there = (
            f"; if images are in it, set data.image_column={files[0]}" if files else ""
        )
        raise InputError(f"{path} has no column of images; {there}{bytes_are_there}")
    if not named and len(images) > 1:
        raise InputError(
            f"{path} has several columns of images: choose one with data.image_column={images[0]}; {there}"
        )
    return named or images[0]


def label_column_of(table: Any, path: str, named: str) -> str | None:
    """The column of classes, None where there is none. Raises InputError where that is not clear."""
    import datasets

    found = [name for name, kind in table.features.items() if isinstance(kind, datasets.ClassLabel)]
    if named and named not in table.features:
        there = f"its columns are {', '.join(table.features)}"
        raise InputError(f"{path} has no column '{named}', which data.label_column names; {there}")
    if not named and len(found) > 1:
        choice = f"choose one with data.label_column={found[0]}"
        raise InputError(f"{path} has several columns of classes, {' and '.join(found)}: {choice}")
    return named or (found[0] if found else None)


def holds_files(kind: Any) -> bool:
    """Whether a column that is not marked as images may hold them: bytes, or {bytes, path} as `datasets` stores them."""
    import datasets

    if isinstance(kind, datasets.Value):
        return kind.dtype in ("binary", "large_binary")
    return isinstance(kind, dict) and set(kind) == {"bytes", "path"}


def names_of(path: str, column: str | None, table: Any) -> tuple[str, ...]:
    """The names in a column of text, sorted: those of the split train, so that a class has one number in every split."""
    first = open_splits(path).get("train", table)
    if (
        column is None
        or column not in first.features
        or getattr(first.features[column], "dtype", "") not in TEXT
    ):
        return ()
    return tuple(sorted({name for name in first.unique(column) if name is not None}))


def classes(
    table: Any, column: str | None, name: str, names: tuple[str, ...]
) -> tuple[list[int] | None, tuple[str, ...], str]:
    """The class of each row, the classes' names, and why there are none where a row is not labelled. names: of text."""
    if column is None:
        return None, (), f"{name} has no column of classes"
    import datasets

    kind, values = table.features[column], list(table[column])
    if isinstance(kind, datasets.ClassLabel):
        names = tuple(str(one) for one in kind.names)
    elif all(
        isinstance(value, int) and 0 <= value < max(len(values), MOST_CLASSES) for value in values
    ):
        return values, (), ""
    elif all(isinstance(value, str) for value in values):
        numbers = {one: number for number, one in enumerate(names)}
        strange = sorted(set(values) - set(names))
        if strange:
            return (
                None,
                (),
                f"the column '{column}' of {name} has a class '{strange[0]}', which the split train has not",
            )
        values = [numbers[value] for value in values]
    else:
        return (
            None,
            (),
            f"the column '{column}' of {name} holds neither classes nor numbers from 0 nor names throughout",
        )
    for row, value in enumerate(values):
        if value is None or not 0 <= value < len(names):
            known = f"its classes are 0 to {len(names) - 1}"
            return None, (), f"{name} is not labelled throughout: row {row} has {value}, {known}"
    return values, names, ""


def undecoded(table: Any, column: str) -> Any:
    """The image column alone, as it is stored."""
    import datasets

    return table.select_columns([column]).cast_column(column, datasets.Image(decode=False))
