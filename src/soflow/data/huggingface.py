"""Images from Hugging Face datasets: by name from the Hub, or local parquet and arrow files.

The columns of images and of classes are found by their types, or named.
"""

import io
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from PIL import Image
from pydantic import Field

from soflow.config.schema import DataConfig
from soflow.data.file_fingerprints import file_of, fingerprint_of_folder
from soflow.data.images import Images, Opener, choose, open_image
from soflow.data.labels import USUAL_NAMES, Classes, choose_labels, classes_of
from soflow.data.registry import SOURCES, ImageSource
from soflow.data.splits import named_split
from soflow.errors import InputError, first_line
from soflow.system.packages import optional_package
from soflow.system.records import Record

#: Builders of `datasets` for local files, by ending.
BUILDERS = {".parquet": "parquet", ".arrow": "arrow"}
TEXT = ("string", "large_string")
NUMBERS = ("int", "uint", "float", "bool")
#: Folders whose files may be opened.
Roots = tuple[Path, ...]
#: Seconds in which the Hub must answer before anything is asked of it.
PATIENCE = 1.5


@SOURCES.register("huggingface")
class HuggingFace(ImageSource):
    """A data set on the Hub, or parquet and arrow files."""

    def splits(self, config: DataConfig) -> tuple[str, ...]:
        return tuple(open_splits(config.path, config.subset, config.revision))

    def open(self, config: DataConfig, split: str) -> Images:
        return HuggingFaceImages(
            config.path, split, config.image_column, config.label_column,
            config.subset, config.revision, config.num_classes != 0,
        )  # fmt: skip


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

    def __init__(
        self,
        path: str,
        split: str,
        image: str = "",
        label: str = "",
        subset: str = "",
        revision: str = "",
        labelled: bool = True,
    ) -> None:
        splits = open_splits(path, subset, revision)
        import datasets

        self.split = named_split(split, tuple(splits), path)
        table = splits[self.split]
        self.name, self.notes = Path(path).stem, list[str]()
        self.column = image_column_of(table, path, image)
        chosen = label_column_of(table, path, label, self.column) if labelled else None
        if not labelled:
            found = Classes(None, (), "data.num_classes is 0")
        elif chosen is None:
            found = Classes(None, (), f"{self.name} has no column of classes; {columns_of(table)}")
        else:
            # Names are those of the split train: classes have the same number in every split.
            training = splits.get("train", table)
            names = names_of(training, chosen)
            where = f"the column '{chosen}' of {self.name}"
            found = classes_of(list(table[chosen]), names, where)
            sure = label or chosen.lower() in USUAL_NAMES
            if found.labels is None and sure and table is training:
                todo = "set data.num_classes=0 to train without classes"
                raise InputError(f"{found.reason}: {todo}")
            self.notes.append(f"labels: {where}")
        self.labels, self.class_names, self.unlabelled = found.labels, found.names, found.reason
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


def open_splits(path: str, subset: str = "", revision: str = "") -> Any:
    """All splits as `datasets` holds them, memory-mapped and not decoded.

    Args:
        path: Local files, or a name on the Hub.
        subset: The configuration of a data set that has several.
        revision: A branch, tag or commit on the Hub.

    Raises:
        InputError: If the data cannot be read.
    """
    if not path:
        raise InputError("data.source=huggingface needs data.path: a Hub name, or a parquet folder")
    place = Path(path)
    if not place.exists():
        require_hub_name(path)
    datasets = optional_package("datasets", "data.source=huggingface needs", "data")
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    if not place.exists():
        return opened(path, subset, revision, "")
    if revision:
        raise InputError(f"data.revision is for the Hub, but {path} is local: leave it out")
    # Files that change on the disk are read again, also within one process.
    return opened(path, subset, "", fingerprint_of(place))


@lru_cache(maxsize=8)
def opened(path: str, subset: str, revision: str, content: str) -> Any:
    """The splits of local files with a fingerprint, `content`, or of a data set on the Hub."""
    import datasets

    place = Path(path)
    # Spark also gives folders such endings.
    builder = None if place.is_dir() else BUILDERS.get(place.suffix.lower())
    try:
        # Versions before 4 would run scripts found among the data.
        datasets.config.HF_DATASETS_TRUST_REMOTE_CODE = False
        if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
            require_inside(place)
            saved = datasets.load_from_disk(path)
            return saved if isinstance(saved, dict) else {"train": saved}
        if not content:
            return datasets.load_dataset(path, subset or None, revision=revision or None)
        about: dict[str, Any] = {"data_files": path} if builder else {"name": subset or None}
        if subset:  # which the card among the data describes
            about["cache_dir"] = os.path.join(datasets.config.HF_DATASETS_CACHE, content)
        else:
            about["description"] = content
        made = datasets.load_dataset_builder(builder or path, **about)
        for file in chain.from_iterable((made.config.data_files or {}).values()):
            inside(roots_of(path), file)  # a card among the data may name any file
        made.download_and_prepare()
        return made.as_dataset()
    except Exception as error:  # readers, the file system and the network raise anything
        if (subsets := subsets_of(path, revision)) and subset not in subsets:
            wrong = f"has no subset '{subset}', only" if subset else "has the subsets"
            known = f"data.path={path} {wrong} {', '.join(subsets)}"
            raise InputError(f"{known}: set data.subset={subsets[0]}") from None
        raise InputError(f"data.path={path} cannot be read: {first_line(error)}") from None


def subsets_of(path: str, revision: str) -> list[str]:
    """The subsets of a data set; none if it has one of no name, or cannot be read."""
    import datasets

    with suppress(Exception):
        found = datasets.get_dataset_config_names(path, revision=revision or None)
        return [] if found == ["default"] else list(found)
    return []


def require_hub_name(path: str) -> None:
    """Raises InputError for what cannot be a name on the Hub, or if the Hub cannot be reached."""
    constants = optional_package(
        "huggingface_hub.constants", "data.source=huggingface needs", "data"
    )
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1 or "\\" in path
    if looks_local or Path(path).suffix.lower() in BUILDERS:
        raise InputError(f"data.path={path} does not exist")
    if constants.HF_HUB_OFFLINE:
        return
    if not answers(constants.ENDPOINT):
        raise InputError(
            f"data.path={path} is not a local path, and {constants.ENDPOINT} cannot be reached: "
            "name local data, or set HF_HUB_OFFLINE=1 to use what was downloaded before"
        )


def answers(address: str) -> bool:
    """Whether a server, or the proxy that leads to it, accepts a connection soon."""
    parts = urlsplit(getproxies().get(urlsplit(address).scheme) or address)
    port = parts.port or {"http": 80}.get(parts.scheme, 443)

    def connect() -> bool:
        with socket.create_connection((parts.hostname or "", port), timeout=PATIENCE):
            return True

    found: list[bool] = []
    with suppress(OSError):
        # A name server may take longer than any timeout of a connection.
        thread = Thread(target=lambda: found.append(attempt(connect)), daemon=True)
        thread.start()
        thread.join(PATIENCE)
    return found == [True]


def attempt(connect: Callable[[], bool]) -> bool:
    try:
        return connect()
    except OSError:
        return False


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


def label_column_of(table: Any, path: str, named: str, images: str) -> str | None:
    """The column of classes, or None: by its type, its name, or texts that repeat.

    Raises:
        InputError: If it is not clear which one it is.
    """
    from datasets import ClassLabel

    columns = [name for name in table.features if name != images]
    found = [name for name in columns if isinstance(table.features[name], ClassLabel)]
    if named or found:
        known = columns_of(table)
        return choose(path, "column of classes", "label_column", named, found, known, columns)
    kinds = {name: getattr(table.features[name], "dtype", "") for name in columns}
    usable = [name for name, kind in kinds.items() if kind in TEXT or kind.startswith(NUMBERS)]
    named_so = {name: () for name in usable if name.lower() in USUAL_NAMES}
    texts = {name: list(table[name]) for name in usable if kinds[name] in TEXT}
    return choose_labels(named_so or texts, path)


def columns_of(table: Any) -> str:
    return f"its columns are {', '.join(table.features)}"


def holds_files(kind: Any) -> bool:
    """Whether a column may hold image files: bytes, or {bytes, path} as `datasets` has it."""
    import datasets

    if isinstance(kind, datasets.Value):
        return kind.dtype in ("binary", "large_binary")
    return isinstance(kind, dict) and set(kind) == {"bytes", "path"}


def names_of(table: Any, column: str) -> tuple[str, ...]:
    """The names of the classes in a column; () for numbers without names."""
    kind = table.features.get(column)
    if hasattr(kind, "names"):
        return tuple(map(str, kind.names))
    is_text = getattr(kind, "dtype", "") in TEXT
    return tuple(sorted(set(table.unique(column)) - {None, ""})) if is_text else ()
