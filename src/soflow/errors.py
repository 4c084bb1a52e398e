"""The two kinds of failure a user meets. Each message is one line: what, why, what to do."""


def first_line(error: BaseException) -> str:
    """What another library's error says, in one line; its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class InputError(ValueError):
    """Something the user gave cannot be used. The command line prints it in one line and exits with 2."""


class RunError(RuntimeError):
    """Something went wrong in a run: a damaged file, a loss that is not a number. The command line exits with 1."""
