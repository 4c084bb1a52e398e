"""Runs the tests in tests/gpu, which check what a GPU may compute differently.

    sh benchmarks/gpu_tests.sh [--on-cpu] [--out FOLDER] [PYTEST ARGUMENTS]

If the environment variable SOFLOW_REFERENCE_CASES names a folder of reference cases, they also run
on the GPU.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

from gpu_page import ROOT, TestResults, add_options, finish, machine


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    asked, arguments = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        report, figures = Path(folder) / "report.xml", Path(folder) / "figures.json"
        tests = ["tests/gpu"]
        if os.environ.get("SOFLOW_REFERENCE_CASES"):
            tests.append("tests/objectives/test_reference_cases.py")
        command = [sys.executable, "-m", "pytest", "-m", "gpu or not slow", *tests]
        command += ["-p", "no:cacheprovider", f"--junitxml={report}", *arguments]
        device = "cpu" if asked.on_cpu else "cuda"
        environment = {"SOFLOW_TEST_DEVICE": device, "SOFLOW_FIGURES": str(figures)}
        start = time.monotonic()
        status = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}).returncode
        seconds = time.monotonic() - start
        if status not in (0, 1):
            sys.exit(status)  # pytest could not run the tests
        outcomes = {}
        for case in ElementTree.parse(report).iter("testcase"):
            problem = case[0] if len(case) else None
            outcome = "passed" if problem is None else problem.tag
            said = (
                ""
                if problem is None
                else next(iter((problem.get("message") or "").splitlines()), "")
            )
            outcomes[case.get("name", "")] = f"{outcome}: {said}" if said else outcome
        seen = json.loads(figures.read_text()) if figures.is_file() else {}
    results = TestResults(machine=machine(), seconds=seconds, outcomes=outcomes, figures=seen)
    finish(results, asked.out, "gpu_tests")
    sys.exit(status)


if __name__ == "__main__":
    main()
