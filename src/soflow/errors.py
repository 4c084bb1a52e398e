"""The two kinds of failure a user meets. Each message is one line: what, why, what to do."""


class InputError(ValueError):
    """Something the user gave cannot be used. The command line prints it in one line and exits with 2."""


class RunError(RuntimeError):
    """Something went wrong in a run: a damaged file, a loss that is not a number. The command line exits with 1."""
