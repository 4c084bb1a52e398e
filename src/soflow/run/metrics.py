"""metrics.jsonl: one line per logging step."""

import errno
import os
from pathlib import Path

from pydantic import ConfigDict, ValidationError

from soflow.system.atomic import write_text
from soflow.system.records import Count, Record


class MetricsLine(Record):
    """The values of one logging step, by name."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float]

    step: Count


def read_metrics(file: Path) -> list[dict[str, float]]:
    """Lines as "step" and values by name. Skips damaged lines, such as an incomplete last line."""
    return [line.model_dump() for line in read_lines(file)]


def read_lines(file: Path) -> list[MetricsLine]:
    lines = []
    for text in file.read_text("utf-8", "replace").splitlines() if file.is_file() else []:
        try:
            lines.append(MetricsLine.model_validate_json(text))
        except ValidationError:
            continue
    return lines


def forget_metrics_after(file: Path, step: int) -> None:
    """Removes the lines after `step`, because a resumed run writes them again."""
    kept = [line for line in read_lines(file) if line.step <= step]
    write_text(file, "".join(f"{line.model_dump_json()}\n" for line in kept))


def add_metrics(file: Path, lines: list[MetricsLine]) -> None:
    """Appends all lines or none. Raises OSError if they cannot be written."""
    text = "".join(f"{line.model_dump_json()}\n" for line in lines).encode()
    with file.open("ab", buffering=0) as stream:
        before = stream.seek(0, os.SEEK_END)
        try:
            if stream.write(text) < len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            stream.truncate(before)
            raise


def flush_metrics(file: Path) -> None:
    """Flushes the file to disk, before a checkpoint is written."""
    with file.open("ab") as stream:
        os.fsync(stream.fileno())
