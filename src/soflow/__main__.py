"""The entry point: `soflow`, or `python -m soflow` under torchrun and accelerate launch."""

import os
import sys
import time
from io import TextIOWrapper


def main() -> None:
    """Runs the command line. Ctrl-C exits with 130, even during imports."""
    if isinstance(sys.stdout, TextIOWrapper):
        # File names may contain characters that a pipe on Windows cannot encode.
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
    """Ends a process of a distributed run immediately after a failure.

    A regular exit would wait for the other processes, or abort. The launcher reports the process
    that ends first as the cause. Every failing process waits one second before it ends, so the
    process that failed first also ends first.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    time.sleep(1)
    os._exit(status)


if __name__ == "__main__":
    main()
