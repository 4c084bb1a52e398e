"""The program itself: `soflow`, or `python -m soflow`, which is what torchrun and accelerate launch start."""

import os
import sys
import time


def main() -> None:
    """Runs the command line. Ctrl-C exits with 130 from the first import on."""
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
    """Ends a process among several that failed. What connects it to them may still be open: an orderly exit would wait for
    them, or abort. A launcher takes the first to end for the cause, so those that fail by another's end come a second later.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    time.sleep(1)
    os._exit(status)


if __name__ == "__main__":
    main()
