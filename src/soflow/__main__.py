"""The program: `soflow`, or `python -m soflow` under torchrun and accelerate launch."""

import os
import sys
import time
from io import TextIOWrapper


def main() -> None:
    """Runs the command line. Ctrl-C exits with 130, even during imports."""
    if isinstance(sys.stdout, TextIOWrapper):
        # Names in a file may have letters that a pipe on Windows cannot take.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        from soflow.cli.main import run

        status = run(sys.argv[1:])
    except KeyboardInterrupt:
        status = 130
    except Exception:
        if not one_of_several():
            raise
        sys.excepthook(*sys.exc_info())
        status = 1
    if status and one_of_several():
        leave(status)
    sys.exit(status)


def one_of_several() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def leave(status: int) -> None:
    """Ends one of several processes after a failure.

    An orderly exit would wait for the other processes, or abort. A launcher reports the first
    process that ends as the cause, so every process waits a second: the others, which fail because
    of this one, end later.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    time.sleep(1)
    os._exit(status)


if __name__ == "__main__":
    main()
