"""Typed records: JSON files that are written and read by the same class."""

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from typing_extensions import Self

from soflow.errors import RunError
from soflow.system.atomic import write_text

#: A count or a step.
Count = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
#: The number of a class, or -1 for a sample without a label.
Label = Annotated[int, Field(strict=True, ge=-1, lt=2**63)]


class Record(BaseModel):
    """A JSON file. Reading it validates the values; NaN and infinity are valid numbers.

    Unknown keys are ignored, so that later versions can add keys.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    #: Advice in the error about a damaged file.
    advice: ClassVar[str] = "delete it and run the same command again"

    @classmethod
    def read(cls, file: Path) -> Self | None:
        """Reads the file; None if it does not exist.

        Raises:
            RunError: If the file is damaged.
        """
        if not file.is_file():
            return None
        try:
            return cls.model_validate_json(file.read_bytes())
        except ValidationError:
            raise RunError(
                f"{file} is damaged or was written by another version of soflow: {cls.advice}"
            ) from None

    def write(self, file: Path) -> None:
        """Writes the file atomically.

        Raises:
            RunError: If the file cannot be written.
        """
        write_text(file, self.model_dump_json(indent=1) + "\n")
