"""history.jsonl: the settings that were changed during a run, one line per change."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ValidationError

from soflow.errors import RunError
from soflow.system.atomic import write_text
from soflow.system.records import Count, Record

#: The value of a setting in JSON.
Value = bool | int | float | str | tuple[float, ...]


class Change(Record):
    """One changed setting. It changed after `step` steps, at the time `when` (UTC)."""

    advice: ClassVar[str] = "restore it, or remove it to resume without it"

    step: Count
    when: str
    key: str
    old: Value
    new: Value

    def same_as(self, other: "Change") -> bool:
        """Whether both records describe the same change."""
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
    """Adds the changes of a run that resumes at `step`, and rewrites the file.

    A change that a killed process has already written is kept once. If the run resumes at a
    checkpoint before earlier changes, these now take effect at `step`.
    """
    before = read_history(file)
    kept = [one.model_copy(update={"step": min(one.step, step)}) for one in before]
    last = {one.key: one for one in kept}
    kept += [one for one in changes if one.key not in last or not one.same_as(last[one.key])]
    if kept != before:
        write_text(file, "".join(f"{one.model_dump_json()}\n" for one in kept))


def first_value(history: Sequence[Change], key: str, now: Any) -> Any:
    """The value of a setting at the start of a run; `now` if it never changed."""
    return next((change.old for change in history if change.key == key), now)
