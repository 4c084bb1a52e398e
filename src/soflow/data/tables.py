"""Tables: .csv, .tsv and .parquet files with numeric columns, or a folder with one file per split.

All numeric columns are features, unless data.columns selects some. The column of classes is found
by name, or set by data.label_column. Columns are standardized with the statistics of the training
split. Generated samples are converted back to the units of the columns.
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
#: Columns with these names are left out if they have a different integer in each row.
IDENTITIES = re.compile(
    r"(?i:|id|.*[_ -]id|index|idx|row|unnamed: 0|__index_level_0__)|.*[a-z]I[dD]"
)
Columns = dict[str, list[Any]]


@SOURCES.register("table")
class Tables:
    """A table with numeric columns."""

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
    """The features of a table (N, D), their names, and the class of each row."""

    values: np.ndarray
    names: tuple[str, ...]
    classes: Classes
    notes: tuple[str, ...]
    label_column: str | None


def files_of(path: str) -> dict[str, Path]:
    """The file of each split.

    Raises:
        InputError: If the path does not contain tables.
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
        wanted = "set it to a .csv, .tsv or .parquet file, or a folder with train.csv and test.csv"
        raise InputError(
            f"data.path={path} {what if place.exists() else 'does not exist'}: {wanted}"
        )
    return named


def read_table(file: Path, config: DataConfig, like: Table | None = None) -> Table:
    """Reads a table.

    Args:
        file: The file.
        config: The settings, which select the columns.
        like: The table of the training split, whose columns and classes are used.

    Raises:
        InputError: If the file cannot be read, a column is missing, or too many rows have missing
            values.
    """
    parquet = file.suffix.lower() == ".parquet"
    columns, found = (read_parquet(file), list[str]()) if parquet else read_text(file)
    count = len(next(iter(columns.values()), []))
    if not count:
        raise InputError(f"{file} has no rows: choose another file")
    known = f"its columns are {', '.join(map(printable, columns))}"
    for name in (*config.columns, *filter(None, [config.label_column])):
        if name not in columns:
            raise InputError(f"{file} has no column '{name}': {known}")
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
            f"{missing:,} of {count:,} rows in {file} have missing numbers, mostly in column "
            f"'{printable(worst)}': set data.max_unreadable={share} to leave out these rows, or "
            "select columns with data.columns"
        )
    if missing:
        notes.append(f"{missing:,} of {count:,} rows have missing numbers and are left out")
        values = values[whole]
        if classes.labels is not None:
            kept = [label for label, good in zip(classes.labels, whole, strict=True) if good]
            classes = replace(classes, labels=kept)
    return Table(values, tuple(features), classes, tuple(notes), column)


def choose(columns: Mapping[str, Sequence[Any]], file: Path) -> str | None:
    """The column of classes, if any. A numeric column must have a usual name and few integers."""

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
    """The numeric columns (N,) to use, by name, and the names of the other columns.

    Raises:
        InputError: If a selected column is missing or not numeric, or no column is numeric.
    """
    features, others = {}, []
    for name in asked or columns:
        if name == labels:
            continue
        if name not in columns:
            raise InputError(
                f"{file} has no column '{printable(name)}', but the training split has it: add it"
            )
        numbers = as_numbers(columns[name])
        if numbers is None and asked:
            raise InputError(
                f"the column '{printable(name)}' in {file} is not numeric: leave it out of "
                "data.columns"
            )
        if numbers is None and (row := mistake(columns[name])) is not None:
            found = f"'{printable(str(columns[name][row]))}' in row {row + 1}"
            raise InputError(
                f"the column '{printable(name)}' in {file} contains numbers, but {found}: correct "
                "it, or select columns with data.columns"
            )
        if numbers is None or (not asked and (is_identity(name, numbers) or is_empty(numbers))):
            others.append(name)
        else:
            features[name] = numbers
    if not features:
        raise InputError(f"{file} has no numeric columns: its columns are {', '.join(columns)}")
    return features, others


def is_identity(name: str, numbers: np.ndarray) -> bool:
    """Whether a column is an ID: by its name, and by a different integer in each row."""
    whole = bool((numbers == numbers.round()).all())
    named = IDENTITIES.fullmatch(name.strip()) is not None
    return named and whole and len(np.unique(numbers)) == len(numbers)


def is_empty(numbers: np.ndarray) -> bool:
    return bool(np.isnan(numbers).all())


def read_text(file: Path) -> tuple[Columns, list[str]]:
    """Reads the columns of a .csv or .tsv file, with notes for messages.

    Raises:
        InputError: If the file cannot be read.
    """
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            head = stream.read(2**16)
            stream.seek(0)
            first = head.splitlines()[0] if head else ""
            separator = max("\t;,", key=first.count)
            reader = csv.reader(stream, delimiter=separator, skipinitialspace=True, strict=True)
            rows = list(reader)
    except UnicodeDecodeError:
        raise InputError(f"{file} is not UTF-8 text: save it as UTF-8") from None
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{file} cannot be read: {first_line(error)}") from None
    rows = [row for row in rows if row]
    if not rows:
        raise InputError(f"{file} is empty: choose another file")
    names, body = [name.strip() for name in rows[0]], rows[1:]
    notes = []
    if not are_names(names):
        names, body = [f"column {number}" for number in range(len(names))], rows
        notes.append("there are no column names: the columns are named column 0, column 1, ...")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{file} has two columns named '{printable(twice)}': rename one")
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
    """Reads the columns of a .parquet file. Raises InputError if it cannot be read."""
    parquet = optional_package("pyarrow.parquet", "a .parquet file needs", "data")
    try:
        table = parquet.read_table(file)
    except Exception as error:  # readers of damaged files raise any exception
        raise InputError(f"{file} cannot be read: {first_line(error)}") from None
    return {name: table.column(name).to_pylist() for name in table.column_names}
