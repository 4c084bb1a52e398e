"""`soflow`: all commands, and the reporting of errors.

Exit status: 0 done, 1 failed, 2 wrong usage, 128 + signal after a signal (130 after Ctrl-C).
Errors that a user can fix are one line on stderr. Any other error is a bug and keeps its traceback.
"""

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from soflow.cli.bench import bench
from soflow.cli.compare import compare
from soflow.cli.encode import encode
from soflow.cli.evaluate import evaluate
from soflow.cli.import_ import import_
from soflow.cli.modules import import_modules, split_imports
from soflow.cli.recipes import recipes
from soflow.cli.reference import reference
from soflow.cli.report import report
from soflow.cli.sample import sample
from soflow.cli.train import train
from soflow.errors import InputError, RunError
from soflow.system import processes
from soflow.system.logs import show_notes
from soflow.system.memory import is_out_of_memory, out_of_memory
from soflow.system.text import printable

IMPORT = (
    "Import a Python module before the command runs. The configuration can then name the "
    "objectives, networks and data sources that the module registers. The module is installed or "
    "in the current folder. The option can be anywhere on the command line, and can be repeated."
)

app = typer.Typer(
    name="soflow",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def soflow(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    modules: Annotated[
        list[str] | None, typer.Option("--import", metavar="MODULE", help=IMPORT)
    ] = None,
) -> None:
    """Train generative models that draw a sample in one forward pass."""
    if version:
        from soflow import __version__

        print(f"soflow {__version__}")
        raise typer.Exit


EPILOG = "Every command also accepts --import MODULE; see soflow --help."

for command in (recipes, train, sample, evaluate, reference, report, compare, bench, encode):
    app.command(epilog=EPILOG)(command)
app.command("import", epilog=EPILOG)(import_)

#: Base class of all errors in options and arguments: click's class, wherever typer imports it from.
UsageError: type[typer.BadParameter] = typer.BadParameter.__mro__[1]

#: Longest message in characters. Some messages quote files.
LONGEST = 4000


def with_home(argument: str) -> str:
    """Replaces ~ by the home folder at the start of an argument and after `=`.

    A shell expands ~ only at the start of a word.
    """
    name, equals, value = argument.partition("=")
    if equals and value.startswith("~") and name.replace("-", "").replace(".", "").isidentifier():
        return f"{name}={os.path.expanduser(value)}"
    return os.path.expanduser(argument)


def run(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit status."""
    show_notes()
    try:
        modules, arguments = split_imports(list(map(with_home, arguments)))
        import_modules(modules)
        status = app(list(arguments) or ["--help"], prog_name="soflow", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except UsageError as error:
        command = getattr(getattr(error, "ctx", None), "command_path", "soflow")
        message = error.format_message().rstrip(".").replace(": Value error, ", ": ")
        return fail(f"{message}; see {command} --help", 2)
    except InputError as error:
        return fail(str(error), 2)
    except RunError as error:
        return fail(str(error), 1)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return fail(f"{out_of_memory(error)}: free memory, or reduce the batch size", 1)
    except (KeyboardInterrupt, typer.Abort):
        return fail("interrupted", 130)


def fail(message: str, status: int) -> int:
    """Prints an error message as one line. With several processes, each prints its own."""
    rank = processes.index()
    speaker = f"soflow: process {rank}" if rank else "soflow"
    line = printable(" ".join(message.split()))
    if len(line) > LONGEST:
        line = f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"
    sys.stderr.write(f"{speaker}: {line}\n")  # one write, so that processes do not mix their lines
    sys.stderr.flush()
    return status
