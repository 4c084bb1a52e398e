"""The two kinds of failure a user meets. Each message is one line: what, why, what to do."""

import reprlib

#: Letters of what a file holds, or of what another library says of it, that a message shows.
SHOWN, TOLD = 60, 300


def first_line(error: BaseException) -> str:
    """What another library's error says, in one line; its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:TOLD]


def in_short(value: object) -> str:
    """A value as messages show it: printable, and no longer than SHOWN, whatever a file has put there."""
    return shortened(_short.repr(value))


def shortened(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 20]}...{text[-17:]}"


class _Short(reprlib.Repr):
    """Shortens as reprlib does, which puts nothing long into words, and numbers that Python refuses to put into digits."""

    def repr_int(self, value: int, level: int) -> str:
        return (
            repr(value) if value.bit_length() < 200 else f"a number of {value.bit_length():,} bits"
        )


_short = _Short()
_short.maxstring = _short.maxother = SHOWN


class InputError(ValueError):
    """Something the user gave cannot be used. The command line prints it in one line and exits with 2."""


class RunError(RuntimeError):
    """Something went wrong in a run: a damaged file, a loss that is not a number. The command line exits with 1."""
