"""Executes the tutorials in full, and stores their outputs in docs/tutorials/.

Progress bars and notes about the machine are left out.

    python benchmarks/tutorials.py             # all of them
    python benchmarks/tutorials.py method      # docs/tutorials/method.ipynb
"""

import resource
import sys
import tempfile
from pathlib import Path

import nbformat

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support import notebooks


def cpu_seconds() -> float:
    """The CPU time of all finished kernels."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def store(name: str) -> None:
    """Executes one tutorial, and stores its outputs."""
    before = cpu_seconds()
    with tempfile.TemporaryDirectory() as folder:
        done = notebooks.executed(notebooks.read(name), Path(folder))
    file = notebooks.TUTORIALS / f"{name}.ipynb"
    nbformat.write(notebooks.without_machine(done), file)
    size = file.stat().st_size / 1e6
    print(f"{file.name}: {cpu_seconds() - before:.0f} s of CPU time, {size:.2f} MB", flush=True)


if __name__ == "__main__":
    for tutorial in sys.argv[1:] or notebooks.NAMES:
        store(tutorial)
