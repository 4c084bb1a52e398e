"""Typed records: what is written to disk as JSON is read back by the same class."""

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from typing_extensions import Self

from soflow.errors import RunError
from soflow.system.atomic import write_text

#: A count or a step.
Count = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
#: A class, or -1 for a sample without a label.
Label = Annotated[int, Field(strict=True, ge=-1, lt=2**63)]


class Record(BaseModel):
    """A file of JSON. Values are checked when it is read; NaN and infinity are numbers.

    Keys that the class does not know are ignored, so that a record may grow.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    #: What to do about a damaged file.
    advice: ClassVar[str] = "delete it and run the same command again"

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
                f"{file} is damaged or was written by another version of soflow: {cls.advice}"
            ) from None

    def write(self, file: Path) -> None:
        """Writes the file as a whole.

        Raises:
            RunError: If it cannot be written.
        """
        write_text(file, self.model_dump_json(indent=1) + "\n")
