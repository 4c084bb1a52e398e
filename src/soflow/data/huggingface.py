"""Images in Hugging Face datasets: by name from the Hub, or local parquet and arrow files.

The columns of images and classes are found by type, or named in the configuration.
"""

import io
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from soflow.config.schema import DataConfig
from soflow.data.hub import Roots, inside, open_splits, roots_of
from soflow.data.images import Images, Opener, choose, open_image
from soflow.data.labels import USUAL_NAMES, Classes, choose_labels, classes_of, without_gaps
from soflow.data.registry import SOURCES, ImageSource
from soflow.data.splits import named_split
from soflow.errors import InputError, first_line

TEXT = ("string", "large_string")
NUMBERS = ("int", "uint", "float", "bool")


@SOURCES.register("huggingface")
class HuggingFace(ImageSource):
    """A dataset on the Hub, or local parquet and arrow files."""

    def splits(self, config: DataConfig) -> tuple[str, ...]:
        return tuple(open_splits(config.path, config.subset, config.revision))

    def open(self, config: DataConfig, split: str) -> Images:
        return HuggingFaceImages(
            config.path, split, config.image_column, config.label_column,
            config.subset, config.revision, config.num_classes,
        )  # fmt: skip


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
        num_classes: int = -1,
    ) -> None:
        splits = open_splits(path, subset, revision)
        import datasets

        self.split = named_split(split, tuple(splits), path)
        table = splits[self.split]
        self.name, self.notes = Path(path).stem, list[str]()
        self.column = image_column_of(table, path, image)
        chosen = label_column_of(table, path, label, self.column) if num_classes else None
        if not num_classes:
            found = Classes(None, (), "data.num_classes is 0")
        elif chosen is None:
            found = Classes(None, (), f"{self.name} has no column of classes: {columns_of(table)}")
        else:
            # Class names come from the split train, so that all splits number classes alike.
            training = splits.get("train", table)
            names = names_of(training, chosen)
            where = f"the column '{chosen}' of {self.name}"
            found = classes_of(list(table[chosen]), names, where)
            if not names and found.labels is not None:
                used = classes_of(list(training[chosen]), (), where).labels
                found = without_gaps(found, used or (), num_classes, where)
            sure = label or chosen.lower() in USUAL_NAMES
            if found.labels is None and sure and table is training:
                todo = "set data.num_classes=0 to train without classes"
                raise InputError(f"{found.reason}: {todo}")
            if found.labels is not None:
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
        except Exception as error:  # readers of damaged files raise any exception
            raise InputError(f"{self.name} cannot be read: {first_line(error)}") from None
        return [partial(open_stored, one, self.roots) for one in stored]


def open_stored(stored: Mapping[str, Any] | None, roots: Roots) -> Image.Image:
    """Opens an image stored by `datasets`: bytes, or the path of a file in one of the folders."""
    if stored is None:
        raise ValueError("the image is missing")
    data = stored["bytes"]
    return open_image(inside(roots, stored["path"]) if data is None else io.BytesIO(data))


def image_column_of(table: Any, path: str, named: str) -> str:
    """The column of images. A named column may also contain image files as bytes.

    Raises InputError if there is no such column.
    """
    import datasets

    images = [name for name, kind in table.features.items() if isinstance(kind, datasets.Image)]
    files = [name for name, kind in table.features.items() if holds_files(kind)]
    known = columns_of(table)
    column = choose(path, "column of images", "image_column", named, images, known, files)
    if column is None:
        hint = f": if {files[0]} contains images, set data.image_column={files[0]}" if files else ""
        raise InputError(f"{path} has no column of images ({known}){hint}")
    return column


def label_column_of(table: Any, path: str, named: str, images: str) -> str | None:
    """The column of classes, found by its type, its name or repeated text; None without any.

    Raises:
        InputError: If several columns may be classes.
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
    """Whether a column may contain image files: bytes, or {bytes, path} as in `datasets`."""
    import datasets

    if isinstance(kind, datasets.Value):
        return kind.dtype in ("binary", "large_binary")
    return isinstance(kind, dict) and set(kind) == {"bytes", "path"}


def names_of(table: Any, column: str) -> tuple[str, ...]:
    """The class names of a column; () for numbers without names."""
    kind = table.features.get(column)
    if hasattr(kind, "names"):
        return tuple(map(str, kind.names))
    is_text = getattr(kind, "dtype", "") in TEXT
    return tuple(sorted(set(table.unique(column)) - {None, ""})) if is_text else ()
