"""The two kinds of failure a user meets. Each message is one line: what, why, what to do."""

import reprlib
from operator import index

#: Most characters of a value, and of another library's message, that a message shows.
VALUE_LENGTH, MESSAGE_LENGTH = 60, 300


class InputError(ValueError):
    """Something that was given cannot be used.

    Its message is one line: what is wrong, and what to do. The command line exits with status 2.

    Example:
        >>> import soflow
        >>> try:
        ...     soflow.load("runs/missing")
        ... except soflow.InputError:
        ...     print("no such run")
        no such run
    """


class RunError(RuntimeError):
    """A run failed, such as by a damaged file or a loss that is not finite.

    Its message is one line: what went wrong, and what to do. The command line exits with status 1.

    Example:
        >>> import pathlib, soflow
        >>> run = soflow.load("runs/digits")
        >>> size = (run.checkpoint.path / "ema.safetensors").write_bytes(b"damaged")
        >>> try:
        ...     soflow.load("runs/digits")
        ... except soflow.RunError:
        ...     print("the checkpoint is damaged")
        the checkpoint is damaged
    """


def first_line(error: BaseException) -> str:
    """The first line of another library's message, or the error's type if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:MESSAGE_LENGTH]


def placed_wrong(error: RuntimeError) -> str:
    """The first weight that torch's load_state_dict could not place, from its message."""
    _, *lines = str(error).strip().splitlines() or [""]
    return lines[0].strip()[:MESSAGE_LENGTH] if lines else first_line(error)


def in_short(value: object) -> str:
    """A value as messages show it: printable and short, even if a file holds a huge one."""
    return shortened(" ".join(_short.repr(value).split()))


def require_whole(least: int, **numbers: object) -> None:
    """Raises InputError for the first number that is no integer, or below `least`."""
    for name, number in numbers.items():
        try:
            enough = index(number) >= least  # type: ignore[arg-type]
        except TypeError:
            enough = False
        if not enough:
            raise InputError(f"{name} is {in_short(number)}: give an integer of {least} or more")


def shortened(text: str, length: int = VALUE_LENGTH) -> str:
    """A text whose middle is cut out if it is long."""
    return text if len(text) <= length else f"{text[: length - 20]}...{text[-17:]}"


class _Short(reprlib.Repr):
    """As reprlib, which shortens while it reads, but also for integers of many digits."""

    def repr_int(self, value: int, level: int) -> str:
        if value.bit_length() < 200:
            return repr(value)
        return f"a number of {value.bit_length():,} bits"


_short = _Short()
_short.maxstring = _short.maxother = VALUE_LENGTH
