"""Labels of images in files beside them.

metadata.csv, metadata.jsonl    Hugging Face's imagefolder: a column file_name, and others
dataset.json                    StyleGAN: {"labels": [["00000/img00000000.png", 6], ...]}
"""

import csv
import io
import json
import posixpath
from collections.abc import Sequence
from typing import Any

from soflow.data.labels import Classes, choose_labels, classes_of
from soflow.data.tree import Tree, normalized
from soflow.errors import InputError, first_line

#: The most bytes of a file of labels.
MOST_BYTES = 2**28
#: Columns of images: metadata.csv may have several, such as for pairs.
FILE_NAMES = ("file_name", "image_file_name")
Columns = dict[str, list[Any]]


def labels_beside(
    tree: Tree, names: Sequence[str], prefix: str, named: str, classes: Sequence[str]
) -> tuple[Classes, str] | None:
    """The class of each image by the file of labels nearest to them.

    Args:
        tree: Where the images are.
        names: The images of one split.
        prefix: The folder of the split.
        named: The column of classes, or "" if it is to be found.
        classes: The names of the classes, if they are known from the split train.

    Returns:
        The classes and a note on where they come from, or None without a file of labels.

    Raises:
        InputError: If the file cannot be read, or it is not clear which column holds the classes.
    """
    above = [x for x in tree.label_files if prefix.startswith(folder_of(x))]
    for file in sorted(above, key=lambda x: (-len(folder_of(x)), x)):
        columns = read(tree, file)
        if not columns:  # StyleGAN writes such a file for images without labels
            continue
        files = columns.pop(next(iter(columns)))
        where = tree.where(file)
        if named and named not in columns:
            known = ", ".join(columns) or "none"
            raise InputError(f"{where} has no column '{named}', set by data.label_column: {known}")
        column = named or choose_labels(columns, where)
        if column is None:
            continue
        place = folder_of(file)
        of_file = {
            normalized(posixpath.normpath(place + str(name).replace("\\", "/"))): value
            for name, value in zip(files, columns[column], strict=True)
        }
        values = [of_file.get(normalized(name)) for name in names]
        found = classes_of(values, classes, f"the column '{column}' of {where}")
        if found.labels is None and not classes and any(x is not None for x in values):
            raise InputError(f"{found.reason}: set data.num_classes=0 to train without classes")
        if found.labels is None:
            continue
        missing = sum(normalized(name) not in of_file for name in names)
        unlisted = f"; {missing:,} images are not listed there and have no label" if missing else ""
        return found, f"labels: the column '{column}' of {where}{unlisted}"
    return None


def folder_of(file: str) -> str:
    """The folder of a file: "" or "train/"."""
    return file[: file.rfind("/") + 1]


def read(tree: Tree, file: str) -> Columns:
    """The columns of a file of labels, that of file names first. Raises InputError."""
    where = tree.where(file)
    try:
        content = tree.read(file)
        if len(content) > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
        text = content.decode("utf-8-sig")
        reader = {"csv": rows_of_csv, "jsonl": rows_of_lines, "json": rows_of_stylegan}
        rows = reader[file.rsplit(".", 1)[-1].lower()](text)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, csv.Error) as error:
        raise InputError(f"{where} cannot be read: {first_line(error)}") from None
    names = list(dict.fromkeys(key for row in rows for key in row))
    if not rows and file.endswith(".json"):
        return {}
    named = next((name for name in FILE_NAMES if name in names), None)
    if named is None:
        known = ", ".join(names) or "none"
        raise InputError(f"{where} has no column file_name, only {known}: rename it to file_name")
    return {name: [row.get(name) for row in rows] for name in [named, *names]}


def rows_of_csv(text: str) -> list[dict[str, Any]]:
    found = csv.DictReader(io.StringIO(text), strict=True)
    return [{key: value for key, value in row.items() if key is not None} for row in found]


def rows_of_lines(text: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("a line is not a JSON object")
    return rows


def rows_of_stylegan(text: str) -> list[dict[str, Any]]:
    labels = json.loads(text).get("labels") or []
    return [{"file_name": name, "label": label} for name, label in labels]
