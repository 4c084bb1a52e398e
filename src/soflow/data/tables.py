"""Tables: .csv, .tsv and .parquet files of numeric columns, or a folder of one file per split.

Every numeric column is a feature, unless data.columns names them. A column of classes is found by
its name, or named by data.label_column. Columns are standardized by the statistics of the split
that is trained on; samples get the columns' own units back.
"""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from soflow.config.schema import DataConfig
from soflow.data.cells import are_names, as_numbers, mistake, without_commas
from soflow.data.dataset import Dataset, as_labels
from soflow.data.file_fingerprints import fingerprint_of_file
from soflow.data.labels import (
    USUAL_NAMES,
    Classes,
    are_few,
    choose_labels,
    classes_of,
    without_gaps,
)
from soflow.data.registry import SOURCES
from soflow.data.rows import scaled_rows
from soflow.data.splits import named_split, split_of
from soflow.errors import InputError, first_line
from soflow.system.packages import optional_package
from soflow.system.text import printable

ENDINGS = (".csv", ".tsv", ".parquet")
#: Columns of such names that hold a whole number of its own for each row are left out.
IDENTITIES = re.compile(
    r"(?i:|id|.*[_ -]id|index|idx|row|unnamed: 0|__index_level_0__)|.*[a-z]I[dD]"
)
Columns = dict[str, list[Any]]


@SOURCES.register("table")
class Tables:
    """A table of numbers."""

    def splits(self, config: DataConfig) -> tuple[str, ...]:
        return tuple(files_of(config.path))

    def load(self, config: DataConfig, split: str) -> Dataset:
        files = files_of(config.path)
        split = named_split(split, tuple(files), config.path)
        first = files[named_split(config.split, tuple(files), config.path)]
        training = read_table(first, config)
        table = training if files[split] == first else read_table(files[split], config, training)
        content = f"{fingerprint_of_file(files[split])} {','.join(table.names)}"
        axes, where = (0, 1), str(files[split])
        rows, scaling, note = scaled_rows(
            table.values, axes, config.range, training.values, content, where
        )
        labels = None
        if table.classes.labels is not None:
            labels = as_labels(table.classes.labels, table.classes.names, where)
        columns = tuple(map(printable, table.names))
        return Dataset(
            printable(Path(config.path).stem), split, rows, labels, table.classes.names,
            unlabelled=table.classes.reason, scaling=replace(scaling, columns=columns),
            notes=(*table.notes, note),
        )  # fmt: skip


@dataclass(frozen=True)
class Table:
    """The features of a table, (N, D), their names, and the class of each row."""

    values: np.ndarray
    names: tuple[str, ...]
    classes: Classes
    notes: tuple[str, ...]
    label_column: str | None


def files_of(path: str) -> dict[str, Path]:
    """The file of each split.

    Raises:
        InputError: If there is no table.
    """
    place = Path(path)
    if not path:
        raise InputError("data.source=table needs data.path: a .csv, .tsv or .parquet file")
    if place.is_file():
        return {"train": place}
    found = sorted(x for x in place.glob("*") if x.suffix.lower() in ENDINGS)
    named = {split: x for x in found if (split := split_of(x.stem)) is not None}
    if len(found) == 1:
        return {"train": found[0]}
    if len(named) < len(found) or not found:
        what = "has files that are not named after splits" if found else "has no tables"
        wanted = "name one .csv, .tsv or .parquet file, or a folder with train.csv and test.csv"
        raise InputError(
            f"data.path={path} {what if place.exists() else 'does not exist'}: {wanted}"
        )
    return named


def read_table(file: Path, config: DataConfig, like: Table | None = None) -> Table:
    """Reads a table.

    Args:
        file: The file.
        config: Says which columns are used.
        like: The table of the split that is trained on, which has the same columns and classes.

    Raises:
        InputError: If the file cannot be read, a column is missing, or too many rows lack values.
    """
    parquet = file.suffix.lower() == ".parquet"
    columns, found = (read_parquet(file), list[str]()) if parquet else read_text(file)
    count = len(next(iter(columns.values()), []))
    if not count:
        raise InputError(f"{file} has no rows")
    known = f"its columns are {', '.join(map(printable, columns))}"
    for name in (*config.columns, *filter(None, [config.label_column])):
        if name not in columns:
            raise InputError(f"{file} has no column '{name}'; {known}")
    column, notes = None, found
    if config.num_classes:
        others = {name: x for name, x in columns.items() if name not in config.columns}
        column = config.label_column or (like.label_column if like else choose(others, file))
    classes = Classes(None, (), "data.num_classes is 0" if not config.num_classes else known)
    if column is not None:
        where, trained = f"{file}: {column}", like.classes if like else None
        names = trained.names if trained and not trained.stored else ()
        classes = classes_of(columns[column], names, where)
        used = trained.stored or trained.labels if trained else classes.labels
        classes = without_gaps(classes, used or (), config.num_classes, where)
        if classes.labels is None and (config.label_column or like):
            raise InputError(f"{classes.reason}: set data.num_classes=0 to train without classes")
        column = None if classes.labels is None else column
        notes += [] if column is None else [f"labels: the column '{printable(column)}'"]
    asked = like.names if like else config.columns
    features, left_out = features_of(columns, asked, column, file)
    if left_out:
        listed = ", ".join(printable(x) or "one without a name" for x in left_out)
        notes.append(f"columns left out: {listed}")
    values = np.stack(list(features.values()), axis=1)  # (N, D)
    whole = np.isfinite(values).all(1)
    missing = int((~whole).sum())
    if missing > config.max_unreadable * count:
        worst = max(features, key=lambda name: int((~np.isfinite(features[name])).sum()))
        share = min(1, round(missing / count + 0.01, 2))
        raise InputError(
            f"{missing:,} of {count:,} rows of {file} lack a number, mostly in "
            f"'{printable(worst)}': set data.max_unreadable={share} to leave them out, or "
            "data.columns to the columns to use"
        )
    if missing:
        notes.append(f"{missing:,} of {count:,} rows lack a number and are left out")
        values = values[whole]
        if classes.labels is not None:
            kept = [label for label, good in zip(classes.labels, whole, strict=True) if good]
            classes = replace(classes, labels=kept)
    return Table(values, tuple(features), classes, tuple(notes), column)


def choose(columns: Mapping[str, Sequence[Any]], file: Path) -> str | None:
    """The column of classes, if there is one. Numbers of a usual name must be few and whole."""

    def may_be(name: str, numbers: np.ndarray | None) -> bool:
        if numbers is None:
            return True
        given = numbers[np.isfinite(numbers)]
        whole = are_few(given) and bool((given == given.round()).all())
        return name.lower() in USUAL_NAMES and whole

    found = {name: x for name, x in columns.items() if may_be(name, as_numbers(x))}
    return choose_labels(found, str(file))


def features_of(
    columns: Columns, asked: Sequence[str], labels: str | None, file: Path
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The numeric columns (N,) to use, by name, and the names of the others.

    Raises:
        InputError: If a requested column is not numeric, or no column is.
    """
    features, others = {}, []
    for name in asked or columns:
        if name == labels:
            continue
        if name not in columns:
            raise InputError(f"{file} has no column '{printable(name)}', unlike the training split")
        numbers = as_numbers(columns[name])
        if numbers is None and asked:
            raise InputError(f"the column '{printable(name)}' of {file} holds more than numbers")
        if numbers is None and (row := mistake(columns[name])) is not None:
            found = f"'{printable(str(columns[name][row]))}' in row {row + 1}"
            raise InputError(
                f"the column '{printable(name)}' of {file} holds numbers, but {found}: correct it, "
                "or set data.columns to the columns to use"
            )
        if numbers is None or (not asked and (is_identity(name, numbers) or is_empty(numbers))):
            others.append(name)
        else:
            features[name] = numbers
    if not features:
        raise InputError(f"{file} has no column of numbers: its columns are {', '.join(columns)}")
    return features, others


def is_identity(name: str, numbers: np.ndarray) -> bool:
    """Whether a column tells rows apart: by its name, and a whole number of its own for each."""
    whole = bool((numbers == numbers.round()).all())
    named = IDENTITIES.fullmatch(name.strip()) is not None
    return named and whole and len(np.unique(numbers)) == len(numbers)


def is_empty(numbers: np.ndarray) -> bool:
    return bool(np.isnan(numbers).all())


def read_text(file: Path) -> tuple[Columns, list[str]]:
    """The columns of a .csv or .tsv file, and notes on how they are read. Raises InputError."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            head = stream.read(2**16)
            stream.seek(0)
            first = head.splitlines()[0] if head else ""
            separator = max("\t;,", key=first.count)
            reader = csv.reader(stream, delimiter=separator, skipinitialspace=True, strict=True)
            rows = list(reader)
    except UnicodeDecodeError:
        raise InputError(f"{file} cannot be read: it is not UTF-8, save it as such") from None
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{file} cannot be read: {first_line(error)}") from None
    rows = [row for row in rows if row]
    if not rows:
        raise InputError(f"{file} is empty")
    names, body = [name.strip() for name in rows[0]], rows[1:]
    notes = []
    if not are_names(names):
        names, body = [f"column {number}" for number in range(len(names))], rows
        notes.append("the first row holds values: the columns are called column 0, column 1, ...")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{file} has two columns '{printable(twice)}': rename one")
    wrong = next((i for i, row in enumerate(body) if len(row) != len(names)), None)
    if wrong is not None:
        what = f"row {wrong + 1} has {len(body[wrong])} values, not {len(names)}"
        raise InputError(f"{file} cannot be read: {what}")
    columns, meant = Columns(), dict[str, list[str]]()
    for i, name in enumerate(names):
        columns[name], meaning = without_commas([row[i] for row in body], separator)
        if meaning:
            meant.setdefault(meaning, []).append(printable(name))
    notes += [f"{meaning}: {', '.join(columns)}" for meaning, columns in meant.items()]
    return columns, notes


def read_parquet(file: Path) -> Columns:
    """The columns of a .parquet file. Raises InputError."""
    parquet = optional_package("pyarrow.parquet", "a .parquet file needs", "data")
    try:
        table = parquet.read_table(file)
    except Exception as error:  # readers of damaged files raise anything
        raise InputError(f"{file} cannot be read: {first_line(error)}") from None
    return {name: table.column(name).to_pylist() for name in table.column_names}
