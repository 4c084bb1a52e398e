"""Writes samples to a picture, arrays in the format of ADM, a table, or a folder of images."""

import csv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from soflow.data.dataset import Dataset
from soflow.data.shards import Shards
from soflow.errors import InputError
from soflow.evaluation.features import column_names
from soflow.evaluation.pictures import grid_columns, save_picture, to_pil
from soflow.evaluation.record import GuidanceUsed
from soflow.system.atomic import replaced, require_writable
from soflow.system.records import Record
from soflow.workflows.load import Run

#: Number of rows of an array that are written at once.
ROWS = 1000


class SampleProtocol(Record):
    """How samples were drawn: protocol.json in a folder, `protocol` in an .npz."""

    run: str
    checkpoint: str
    weights: str
    sampler: str
    nfe: int
    times: tuple[float, ...] | None = None  # None if evenly spaced
    seed: int
    labels: str
    guidance: GuidanceUsed | None = None
    versions: dict[str, str]


def require_suitable(run: Run, file: Path) -> None:
    """Creates the folder of a file. Raises InputError if the file type does not suit the run."""
    pictures = run.encoder is not None or not column_names(run.model.shape, run.scaling)
    vectors = len(run.model.shape) == 1
    endings = (".png", ".npz", *([".csv"] if vectors else []), *([""] if pictures else []))
    if file.suffix not in endings:
        *most, last = [f"FILE{ending}" if ending else "a folder" for ending in endings]
        raise InputError(
            f"samples of shape {list(run.model.shape)} cannot be written to {file}: set out "
            f"(--out) to {', '.join(most)} or {last}"
        )
    require_writable(file.parent if file.suffix else file)
    if file.suffix and file.is_dir():
        raise InputError(f"cannot write {file}: it is a folder; choose another name")


def require_room(folder: Path, num: int) -> None:
    """Raises InputError if the folder holds images NNNNNN.png that would mix with new images."""
    numbered = sorted(
        file for file in folder.glob("*.png") if len(file.stem) >= 6 and file.stem.isdecimal()
    )
    why = "which soflow sample did not write"
    if numbered and SampleProtocol.read(folder / "protocol.json") is not None:
        numbered = [file for file in numbered if int(file.stem) >= num]
        why = "from an earlier call, which would mix with the new images"
    if numbered:
        image = numbered[0].name
        raise InputError(f"{folder} contains {image}, {why}: delete it or choose another folder")


def write(
    run: Run, rows: Shards, labels: Tensor | None, file: Path, protocol: SampleProtocol
) -> None:
    """Writes all samples to a file or folder."""
    names = column_names(run.model.shape, run.scaling)
    if file.suffix == ".png":
        samples = Dataset("samples", "", rows, None).samples()
        save_picture(samples, file, grid_columns(len(samples), labels), names)
    elif file.suffix == ".csv":
        names_of_classes = (*run.class_names, "")  # the null label has no name
        classes = None if labels is None else [names_of_classes[i] for i in labels.tolist()]
        label = run.config.data.label_column or "label"
        write_csv(rows, names, classes, label, file)
    elif file.suffix == ".npz":
        null = run.model.num_classes
        known = None if labels is None else labels.where(labels < null, -1)  # -1: no class
        write_npz(rows, known, file, protocol)
    else:
        protocol.write(file / "protocol.json")
        for i in range(len(rows)):
            to_pil(rows[torch.tensor([i])][0].numpy()).save(file / f"{i:06d}.png")


def write_csv(
    rows: Shards, names: Sequence[str], classes: Sequence[str] | None, label: str, file: Path
) -> None:
    """Writes vectors as a table with a header. The last column holds the classes."""
    header = [*names, *([] if classes is None else [label])]
    with replaced(file) as partial, partial.open("x", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(header)
        for part in torch.arange(len(rows)).split(ROWS):
            values = rows[part].numpy().astype(str).tolist()  # shortest text that is exact
            if classes is not None:
                values = [[*row, classes[i]] for row, i in zip(values, part.tolist(), strict=True)]
            table.writerows(values)


def write_npz(rows: Shards, labels: Tensor | None, file: Path, protocol: SampleProtocol) -> None:
    """Writes arrays in the format of ADM, a few rows at a time, with the protocol as JSON."""
    npy = np.lib.format
    with replaced(file) as partial, zipfile.ZipFile(partial, "x") as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as stream:
            dtype = rows[torch.tensor([0])].numpy().dtype
            header = {"descr": dtype.str, "fortran_order": False, "shape": tuple(rows.shape)}
            npy.write_array_header_1_0(stream, header)
            for part in torch.arange(len(rows)).split(ROWS):
                stream.write(rows[part].numpy().tobytes())
        if labels is not None:
            with archive.open("arr_1.npy", "w", force_zip64=True) as stream:
                npy.write_array(stream, labels.numpy())
        with archive.open("protocol.npy", "w") as stream:
            npy.write_array(stream, np.array(protocol.model_dump_json()))
