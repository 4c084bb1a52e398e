"""`soflow`: the commands together, and what their failures look like.

Exit status: 0 done, 1 failed, 2 wrong use, 128 + signal after a signal (130 after Ctrl-C). Failures that a user can mend
are one line on stderr; anything else is a bug and keeps its traceback.
"""

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from soflow.cli.bench import bench
from soflow.cli.compare import compare
from soflow.cli.encode import encode
from soflow.cli.evaluate import evaluate
from soflow.cli.import_ import import_
from soflow.cli.recipes import recipes
from soflow.cli.reference import reference
from soflow.cli.report import report
from soflow.cli.sample import sample
from soflow.cli.train import train
from soflow.errors import InputError, RunError
from soflow.system import processes
from soflow.system.logs import show_notes
from soflow.system.text import printable

app = typer.Typer(
    name="soflow",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)
    ] = False,
) -> None:
    """One-step generative models: train a solution flow model, sample it in a single forward pass."""
    if show:
        from soflow import __version__

        print(f"soflow {__version__}")
        raise typer.Exit


for command in (recipes, train, sample, evaluate, reference, report, compare, bench, encode):
    app.command()(command)
app.command("import")(import_)


#: Every mistake in options and arguments; click's own class, wherever this version of typer keeps click.
UsageError: type[typer.BadParameter] = typer.BadParameter.__mro__[1]


#: Letters of a message, some of which may come from files.
MOST = 4000


def run(arguments: Sequence[str]) -> int:
    """Runs one command; returns the exit status."""
    show_notes()
    try:
        status = app(list(arguments) or ["--help"], prog_name="soflow", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except UsageError as error:
        command = getattr(getattr(error, "ctx", None), "command_path", "soflow")
        return fail(f"{error.format_message().rstrip('.')}; see {command} --help", 2)
    except InputError as error:
        return fail(str(error), 2)
    except RunError as error:
        return fail(str(error), 1)
    except (KeyboardInterrupt, typer.Abort):
        return fail("interrupted", 130)


def fail(message: str, status: int) -> int:
    rank = processes.index()  # of several processes each says what went wrong in it
    speaker = f"soflow: process {rank}" if rank else "soflow"
    line = printable(
        " ".join(message.split())
    )  # names in files may hold what moves a terminal's cursor
    line = line if len(line) <= MOST else f"{line[: MOST // 2]} ... {line[-MOST // 2 :]}"
    sys.stderr.write(f"{speaker}: {line}\n")  # at once, lest two processes share a line
    sys.stderr.flush()
    return status
