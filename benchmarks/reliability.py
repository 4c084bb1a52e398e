"""Runs the long reliability tests and writes their counts to docs/reliability.md.

python benchmarks/reliability.py            runs the tests (eight minutes on two cores)
python benchmarks/reliability.py --write    only writes the page, from benchmarks/results/
"""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
FIGURES, PAGE = HERE / "results" / "reliability.json", HERE.parent / "docs" / "reliability.md"
TESTS = (
    "run/test_resume.py",
    "run/test_faults.py",
    "run/test_hostile_checkpoints.py",
    "data/test_untrusted_files.py",
)

#: Names of the counts of kills in FIGURES, and in the table.
KILLS = {
    "kills": "processes killed by SIGKILL",
    "by call": "... at a function call",
    "by disk": "... during a disk operation",
    "by clock": "... by a timer",
    "while a checkpoint was written": "... while a checkpoint was written",
    "stops by SIGTERM": "stops by SIGTERM",
    "runs that ended as they would have": "runs with the same result as an uninterrupted run",
}


def run_all() -> None:
    """Runs the long tests. They add their counts to FIGURES."""
    FIGURES.write_text(json.dumps({"machine": f"{platform.machine()}, torch {torch.__version__}"}))
    tests = [str(HERE.parent / "tests" / name) for name in TESTS]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "slow",
        "-n",
        "2",
        "--dist",
        "worksteal",
        *tests,
    ]
    subprocess.run(command, env={**os.environ, "SOFLOW_FIGURES": str(FIGURES)}, check=True)


def table(figures: dict[str, Any]) -> str:
    """The counts as a Markdown table."""
    kills = figures["kills"]
    rows = {shown: kills[name] for name, shown in KILLS.items()}
    faults = {
        name.replace("the writing of one checkpoint", "writing one checkpoint"): count
        for name, count in figures.items()
        if name.startswith("faults")
    }
    files = {
        name.replace("hostile", "malicious"): count
        for name, count in figures.items()
        if name.startswith(("damaged", "hostile"))
    }
    rows |= faults | {"total of injected faults": sum(faults.values())}
    rows |= files | {"total of damaged and malicious inputs": sum(files.values())}
    return "\n".join(
        [
            "| what | count |",
            "|---|---|",
            *(f"| {name} | {count:,} |" for name, count in rows.items()),
        ]
    )


def page(figures: dict[str, Any]) -> str:
    """The text of docs/reliability.md."""
    text = (HERE / "reliability.md.in").read_text()
    return text.replace("@TABLE@", table(figures)).replace("@MACHINE@", figures["machine"])


def main() -> None:
    if sys.argv[1:] != ["--write"]:
        run_all()
    PAGE.write_text(page(json.loads(FIGURES.read_text())))
    print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
