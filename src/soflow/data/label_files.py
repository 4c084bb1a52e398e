"""Labels of images in files next to the images.

metadata.csv, metadata.jsonl    format of Hugging Face's imagefolder: a column file_name, and others
dataset.json                    format of StyleGAN: {"labels": [["00000/img00000000.png", 6], ...]}
"""

import csv
import io
import json
import posixpath
from collections.abc import Sequence
from typing import Any

import numpy as np

from soflow.data.labels import Classes, choose_labels, classes_of, is_one_hot
from soflow.data.npz import UNREADABLE
from soflow.data.splits import split_of
from soflow.data.tree import Tree, normalized
from soflow.errors import InputError, first_line

#: The maximum number of bytes of a file of labels.
MOST_BYTES = 2**28
#: Names of the column of file names. The second is used in datasets with several images per row.
FILE_NAMES = ("file_name", "image_file_name")
Columns = dict[str, list[Any]]


def labels_beside(
    tree: Tree, names: Sequence[str], named: str, classes: Sequence[str]
) -> tuple[Classes | None, list[str]]:
    """The class of each image, from the nearest file of labels in or above the images' folder.

    Args:
        tree: The files.
        names: The names of the images of one split, sorted.
        named: The column of classes; "" finds it.
        classes: The class names of the split train; () if they are not known yet.

    Returns:
        The classes (None if no file has any), and notes on the files and columns used.

    Raises:
        InputError: If a file cannot be read, or several columns may be classes.
    """
    inside = posixpath.commonpath([posixpath.dirname(names[0]), posixpath.dirname(names[-1])]) + "/"
    above = [x for x in tree.label_files if inside.startswith(folder_of(x))]
    notes = unused(tree, names, above)
    for file in sorted(above, key=lambda x: (-len(folder_of(x)), x)):
        where, columns = tree.where(file), read(tree, file)
        if columns is None:
            notes.append(f"not used: {where}, which does not have the format of StyleGAN")
            continue
        if not columns:
            return Classes(None, (), f"{where} has no labels"), notes
        files = columns.pop(next(iter(columns)))
        if named and named not in columns:
            known = ", ".join(columns) or "none"
            raise InputError(
                f"data.label_column is '{named}', but {where} has no such column: its columns are "
                f"{known}"
            )
        splits = [name for name in columns if name != named and holds_splits(columns[name])]
        if splits:
            notes.append(
                f"not used: the column '{splits[0]}' of {where}, since splits must be subfolders"
            )
        chosen = choose(named, {x: columns[x] for x in columns if x not in splits}, where)
        if chosen is None:
            notes.append(f"not used: {where}, which has no column of classes")
            continue
        column, labels = chosen
        of_file = by_file(files, labels, folder_of(file), where)
        values = [of_file.get(normalized(name)) for name in names]
        missing = sum(normalized(name) not in of_file for name in names)
        if missing == len(names) and not classes:
            raise InputError(
                f"{where} does not list any of the images, such as {names[0]}: file_name must be "
                "their path relative to this file, or set data.num_classes=0"
            )
        found = classes_of(values, classes, f"{column} of {where}")
        if found.labels is None and not classes:
            raise InputError(f"{found.reason}: set data.num_classes=0 to train without classes")
        if found.labels is None:
            continue
        absent = len(of_file.keys() - {normalized(image.name) for image in tree.images})
        note = f"labels: {column} of {where}"
        note += f"; {missing:,} images are not listed there and have no label" if missing else ""
        note += f"; {absent:,} files that it lists do not exist" if absent else ""
        return found, [*notes, note]
    return None, notes


def unused(tree: Tree, names: Sequence[str], above: Sequence[str]) -> list[str]:
    """A note on files of labels that are not used and do not belong to another split."""
    mine = set(names)
    others = [image.name for image in tree.images if image.name not in mine]
    below = [
        file
        for file in tree.label_files
        if file not in above and not any(name.startswith(folder_of(file)) for name in others)
    ]
    which = (
        "not in a folder above all images" if len(below) == 1 else f"and {len(below) - 1:,} others"
    )
    return [f"not used: {tree.where(below[0])}, {which}"] if below else []


def choose(named: str, columns: Columns, where: str) -> tuple[str, list[Any]] | None:
    """A description of the column of classes for messages, and its values; None without any."""
    if named:
        return f"the column '{named}'", columns[named]
    numbers = {name: [as_number(value) for value in values] for name, values in columns.items()}
    column = choose_labels(numbers, where)
    if column is not None:
        return f"the column '{column}'", columns[column]
    hot = {name: x for name, x in numbers.items() if all(one in (0, 1) for one in x)}
    if len(hot) > 1 and is_one_hot(np.array(list(hot.values())).T):
        rows = zip(*hot.values(), strict=True)
        return f"the one-hot columns {' and '.join(hot)}", [list(hot)[x.index(1)] for x in rows]
    return None


def as_number(value: Any) -> Any:
    """Converts a number in text form, as in a .csv. Other values are unchanged."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def holds_splits(values: Sequence[Any]) -> bool:
    """Whether a column contains names of splits: train, test, ..."""
    found = [value for value in values if value not in (None, "")]
    splits = {split_of(value) if isinstance(value, str) else None for value in found}
    return len(splits) > 1 and None not in splits


def by_file(files: Sequence[Any], labels: Sequence[Any], folder: str, where: str) -> dict[str, Any]:
    """The label of each file. Raises InputError if a file has several."""
    found: dict[str, Any] = {}
    for name, label in zip(files, labels, strict=True):
        file = normalized(posixpath.normpath(folder + str(name).strip().replace("\\", "/")))
        if found.setdefault(file, label) != label:
            both = f"{found[file]} and {label}"
            raise InputError(f"{where} lists {name} with different labels, {both}: keep one")
    return found


def folder_of(file: str) -> str:
    """The folder of a file: "" or "train/"."""
    return file[: file.rfind("/") + 1]


def read(tree: Tree, file: str) -> Columns | None:
    """The columns of a file of labels, starting with the column of file names.

    Returns None if the file has another format, and {} if it declares that there are no labels.
    Raises InputError if it cannot be read.
    """
    where = tree.where(file)
    try:
        content = tree.read(file)
        if len(content) > MOST_BYTES:
            raise ValueError(f"it is larger than {MOST_BYTES:,} bytes")
        text = content.decode("utf-8-sig")
        reader = {"csv": rows_of_csv, "jsonl": rows_of_lines, "json": rows_of_stylegan}
        rows = reader[file.rsplit(".", 1)[-1].lower()](text)
    except UnicodeDecodeError:
        raise InputError(f"{where} is not UTF-8 text: save it as UTF-8") from None
    except (*UNREADABLE, RecursionError, csv.Error) as error:
        raise InputError(f"{where} cannot be read: {first_line(error)}") from None
    if rows is None:
        return None
    names = list(dict.fromkeys(key for row in rows for key in row))
    if not rows and file.lower().endswith(".json"):  # written by StyleGAN for images without labels
        return {}
    named = next((name for name in FILE_NAMES if name in names), None)
    if named is None:
        known = ", ".join(names) or "none"
        raise InputError(
            f"{where} has no column file_name, only {known}: rename the column of file names"
        )
    return {name: [row.get(name) for row in rows] for name in [named, *names]}


def rows_of_csv(text: str) -> list[dict[str, Any]]:
    """The rows of a text separated by commas, semicolons or tabs, as its first line shows."""
    separator = max(",;\t", key=text.partition("\n")[0].count)
    found = csv.DictReader(io.StringIO(text, newline=None), strict=True, delimiter=separator)
    return [{key.strip(): x for key, x in row.items() if key is not None} for row in found]


def rows_of_lines(text: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("a line is not a JSON object")
    return rows


def rows_of_stylegan(text: str) -> list[dict[str, Any]] | None:
    content = json.loads(text)
    labels = content.get("labels", 0) if isinstance(content, dict) else 0
    if labels is not None and not isinstance(labels, list):
        return None
    return [{"file_name": name, "label": label} for name, label in labels or ()]
