"""`soflow report`: writes an HTML page about one or more runs."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

OUT = "HTML file to write (default: report.html in the run folder, or here for several runs)."


def report(
    runs: Annotated[list[Path], Argument(help="Run folders.")],
    out: Annotated[Path | None, Option(help=OUT)] = None,
) -> None:
    """Write a self-contained HTML page with the samples, metrics and plots of runs."""
    from soflow.workflows.report import report

    print(f"written: {report(runs, out)}")
