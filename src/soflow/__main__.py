"""The program itself: `soflow`, or `python -m soflow`, which is what torchrun and accelerate launch start."""

import sys


def main() -> None:
    """Runs the command line. Ctrl-C exits with 130 from the first import on."""
    try:
        from soflow.cli.main import run

        sys.exit(run(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
