"""Typed records: what is written to disk as JSON is read back by the same class."""

import json
import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from typing_extensions import Self

from soflow.errors import RunError
from soflow.system.atomic import write_text

#: A count or a step.
Count = Annotated[int, Field(strict=True, ge=0, lt=2**63)]


class Record(BaseModel):
    """A file of JSON. Values are checked when it is read; NaN and infinity are numbers.

    Keys that the class does not know are ignored, so that a record may grow.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    @classmethod
    def read(cls, file: Path) -> Self | None:
        """Reads the file; None if there is none.

        Raises:
            RunError: If the file is damaged.
        """
        if not file.is_file():
            return None
        try:
            return cls.model_validate_json(file.read_bytes())
        except ValidationError:
            raise RunError(
                f"{file} is damaged or was written by another version of soflow: "
                "delete it and run the same command again"
            ) from None

    def write(self, file: Path) -> None:
        """Writes the file as a whole.

        Raises:
            RunError: If it cannot be written.
        """
        write_text(file, self.model_dump_json(indent=1) + "\n")


def parse_json(text: str | bytes) -> dict[str, Any] | None:
    """The mapping that a text of JSON is; None for any other text."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):  # no JSON, and brackets without end
        return None
    return values if isinstance(values, dict) else None


def read_json(file: Path, like: Any = ()) -> dict[str, Any]:
    """What the file holds, {} where there is none. Raises RunError for a damaged one, and for one of another kind."""
    if not file.is_file():
        return {}
    values = parse_json(file.read_bytes())
    if values is None or (like and not is_like(values, like)):
        raise damaged(file)
    return values


def is_like(value: Any, kind: Any) -> bool:
    """Whether a value of JSON is of a kind: str, natural, number or finite; None; [kind], a list; {"name": kind, ...}, with
    these names and perhaps others, and {...: kind}, with whatever names; (kind, None), either, and a name may be left out.
    """
    if isinstance(kind, tuple):
        return any(is_like(value, one) for one in kind)
    if isinstance(kind, list):
        return isinstance(value, list) and all(is_like(one, kind[0]) for one in value)
    if isinstance(kind, dict):
        return isinstance(value, dict) and all(
            is_like(one, inner)
            for name, inner in kind.items()
            for one in (value.values() if name is ... else [value.get(name)])
        )
    return (
        value is None
        if kind is None
        else isinstance(value, str)
        if kind is str
        else bool(kind(value))
    )


def natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def number(value: Any) -> bool:
    """One that computers reckon with; it may be NaN or infinite."""
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)


def finite(value: Any) -> bool:
    return number(value) and math.isfinite(value)


def damaged(file: Path) -> RunError:
    return RunError(f"{file} is damaged: delete it and run the same command again")
