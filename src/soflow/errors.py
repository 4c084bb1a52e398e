"""The two exceptions that users see. Each message is one line: what is wrong, and what to do."""

import reprlib
from operator import index

#: The maximum length of a value, and of another library's message, within an error message.
VALUE_LENGTH, MESSAGE_LENGTH = 60, 300


class InputError(ValueError):
    """An argument, a setting or an input file is invalid.

    The message is one line: what is wrong, and what to do. The command line exits with status 2.

    Example:
        >>> import soflow
        >>> try:
        ...     soflow.load("runs/missing")
        ... except soflow.InputError:
        ...     print("no such run")
        no such run
    """


class RunError(RuntimeError):
    """A run failed, for example because of a damaged file or a non-finite loss.

    The message is one line: what went wrong, and what to do. The command line exits with status 1.

    Example:
        >>> import soflow, torch
        >>> samples, real = torch.full((100, 2), torch.nan), torch.randn(100, 2)
        >>> try:
        ...     soflow.evaluate_samples(samples, "coordinates", real)
        ... except soflow.RunError:
        ...     print("a sample is not finite")
        a sample is not finite
    """


def first_line(error: BaseException) -> str:
    """The first line of another library's message, or the error's type if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:MESSAGE_LENGTH]


def first_problem(error: RuntimeError) -> str:
    """The first problem in the message of torch's load_state_dict, such as a missing weight."""
    _, *lines = str(error).strip().splitlines() or [""]
    return lines[0].strip()[:MESSAGE_LENGTH] if lines else first_line(error)


def in_short(value: object) -> str:
    """A short, printable form of a value for error messages."""
    return shortened(" ".join(_short.repr(value).split()))


def require_whole(least: int, **numbers: object) -> None:
    """Raises InputError for the first number that is not an integer of at least `least`."""
    for name, number in numbers.items():
        try:
            enough = index(number) >= least  # type: ignore[arg-type]
        except TypeError:
            enough = False
        if not enough:
            raise InputError(f"{name} is {in_short(number)}: use an integer of at least {least}")


def shortened(text: str, length: int = VALUE_LENGTH) -> str:
    """Shortens a long text by cutting out its middle."""
    return text if len(text) <= length else f"{text[: length - 20]}...{text[-17:]}"


class _Short(reprlib.Repr):
    """Like `reprlib.Repr`, but also shortens integers with many digits."""

    def repr_int(self, value: int, level: int) -> str:
        if value.bit_length() < 200:
            return repr(value)
        return f"an integer of {value.bit_length():,} bits"


_short = _Short()
_short.maxstring = _short.maxother = VALUE_LENGTH
