"""The long tests that kill, damage and attack, and what they counted: docs/reliability.md.

python benchmarks/reliability.py            runs them (eight minutes on two cores), then writes
python benchmarks/reliability.py --write    writes from the figures in benchmarks/results/
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


def run_all() -> None:
    """Runs the long tests, which note in FIGURES what they count."""
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
    """One row for each thing that was counted."""
    kills = figures["kills"]
    rows = {"lives of runs ended by SIGKILL": kills["kills"]}
    rows |= {
        f"... {how}": kills[how]
        for how in ("by call", "by disk", "by clock", "while a checkpoint was written")
    }
    rows |= {
        name: kills[name] for name in ("stops by SIGTERM", "runs that ended as they would have")
    }
    faults = {name: count for name, count in figures.items() if name.startswith("faults")}
    files = {
        name: count for name, count in figures.items() if name.startswith(("damaged", "hostile"))
    }
    rows |= faults | {"faults injected, in all": sum(faults.values())}
    rows |= files | {"damaged and hostile files and settings tried, in all": sum(files.values())}
    return "\n".join(
        [
            "| what | times |",
            "|---|---|",
            *(f"| {name} | {count:,} |" for name, count in rows.items()),
        ]
    )


def page(figures: dict[str, Any]) -> str:
    """docs/reliability.md."""
    text = (HERE / "reliability.md.in").read_text()
    return text.replace("@TABLE@", table(figures)).replace("@MACHINE@", figures["machine"])


def main() -> None:
    if sys.argv[1:] != ["--write"]:
        run_all()
    PAGE.write_text(page(json.loads(FIGURES.read_text())))
    print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
