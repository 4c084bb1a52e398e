"""history.jsonl: the settings that were changed while a run went on, one line per change."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ValidationError

from soflow.errors import RunError
from soflow.system.atomic import write_text
from soflow.system.records import Count, Record

#: A setting as JSON has it.
Value = bool | int | float | str | tuple[float, ...]


class Change(Record):
    """One setting that was changed: after `step` steps, at the time `when` (UTC)."""

    advice: ClassVar[str] = "restore it, or remove it to go on without it"

    step: Count
    when: str
    key: str
    old: Value
    new: Value

    def same_as(self, other: "Change") -> bool:
        """Whether both are one change, that was written twice."""
        return self.model_copy(update={"when": other.when}) == other


def read_history(file: Path) -> list[Change]:
    """The changes of a run, oldest first; none if there is no file.

    Raises:
        RunError: If the file is damaged.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        return [Change.model_validate_json(line) for line in lines]
    except (UnicodeDecodeError, ValidationError):
        raise RunError(f"{file} is damaged: {Change.advice}") from None


def write_history(file: Path, changes: Sequence[Change], step: int) -> None:
    """Adds the changes of a run that goes on from `step`, and writes the file as a whole.

    A change that a killed process wrote already is kept once. Earlier changes of later steps now
    take effect at `step`: the run goes back to a checkpoint before them.
    """
    before = read_history(file)
    kept = [one.model_copy(update={"step": min(one.step, step)}) for one in before]
    last = {one.key: one for one in kept}
    kept += [one for one in changes if one.key not in last or not one.same_as(last[one.key])]
    if kept != before:
        write_text(file, "".join(f"{one.model_dump_json()}\n" for one in kept))


def first_value(history: Sequence[Change], key: str, now: Any) -> Any:
    """The value that a setting had at the beginning of a run; `now` if it never changed."""
    return next((change.old for change in history if change.key == key), now)
