"""`soflow report`: one HTML page about one or more runs."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

OUT = "The page (default: RUN/report.html; report.html for several runs)."


def report(
    runs: Annotated[list[Path], Argument(help="Run folders.")],
    out: Annotated[Path | None, Option(help=OUT)] = None,
) -> None:
    """Write a self-contained HTML page with samples, figures and plots."""
    from soflow.workflows.report import report

    print(f"written: {report(runs, out)}")
