"""Writes docs/gpu.md from the results of the three GPU scripts in benchmarks/results/.

python benchmarks/gpu_page.py
"""

import argparse
import platform
import shutil
from pathlib import Path

import torch

from soflow.comparison.measure import Measurement
from soflow.comparison.record import Comparison
from soflow.comparison.tables import markdown
from soflow.evaluation.tables import markdown_table
from soflow.system.records import Count, Record

HERE = Path(__file__).parent
ROOT = HERE.parent
RESULTS, PAGE = HERE / "results", ROOT / "docs" / "gpu.md"


class TestResults(Record):
    """The content of gpu_tests.json."""

    machine: str
    seconds: float
    outcomes: dict[str, str]  # by test
    figures: dict[str, float | str]


class CostRow(Measurement):
    """The cost of one configuration."""

    network: str
    objective: str
    variant: str
    batch: Count


class CostResults(Record):
    """The content of gpu_cost.json."""

    machine: str
    seconds: float
    rows: list[CostRow]
    missing: list[str]


class QualityResults(Record):
    """The content of gpu_quality.json."""

    machine: str
    seconds: float
    compared: Comparison


def machine() -> str:
    """The device and versions, which are part of every result."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return f"{device}, torch {torch.__version__}, Python {platform.python_version()}"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that all scripts share."""
    parser.add_argument("--on-cpu", action="store_true", help="run without a GPU")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder for the results")


def finish(results: Record, out: Path, name: str) -> None:
    """Writes the results, and the page of all results in the folder."""
    out.mkdir(parents=True, exist_ok=True)
    results.write(out / f"{name}.json")
    page = PAGE if out == RESULTS else out / "gpu.md"
    page.write_text(text_of(out))
    if out == RESULTS:
        (PAGE.parent / "results").mkdir(exist_ok=True)
        for picture in out.glob("gpu_quality-*.png"):
            shutil.move(picture, PAGE.parent / "results" / picture.name)
    print(f"written: {page}, {out / name}.json", flush=True)


def text_of(out: Path) -> str:
    """The text of the page."""
    template = (HERE / "gpu.md.in").read_text()
    tests = TestResults.read(out / "gpu_tests.json")
    cost = CostResults.read(out / "gpu_cost.json")
    quality = QualityResults.read(out / "gpu_quality.json")
    parts = {
        "@TESTS@": "Not run on a GPU yet." if tests is None else about_tests(tests),
        "@GOALS@": goals(cost),
        "@COST@": "Not measured on a GPU yet." if cost is None else about_cost(cost),
        "@QUALITY@": "Not run on a GPU yet." if quality is None else about_quality(quality),
    }
    for name, text in parts.items():
        template = template.replace(name, text)
    return template


def about_tests(results: TestResults) -> str:
    """Counts of outcomes, failed tests, and measured values."""
    failed = {name: said for name, said in results.outcomes.items() if said[:4] in ("fail", "erro")}
    skipped = sum(said.startswith("skipped") for said in results.outcomes.values())
    passed = len(results.outcomes) - len(failed) - skipped
    lines = [
        f"{results.machine}; {results.seconds:.0f} seconds: {passed} passed, {len(failed)} failed, "
        f"{skipped} skipped."
    ]
    if failed:
        lines.append("\n".join(f"* `{name}` {said}" for name, said in failed.items()))
    seen = [["figure", "value"], *([name, shown(value)] for name, value in results.figures.items())]
    return "\n\n".join([*lines, markdown_table(seen)])


def shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"


def goals(results: CostResults | None) -> str:
    """One row per goal with the measured value."""
    rows = {} if results is None else {(r.network, r.objective, r.variant): r for r in results.rows}
    b2, l2 = "imagenet256-b2", "imagenet256-l2"
    reference = rows.get((b2, "soflow", "reference"))
    ours = rows.get((b2, "soflow", "defaults"))
    mean_flow = rows.get((b2, "mean_flow", "defaults"))
    plain = rows.get((b2, "mean_flow", "reference"))
    large = rows.get((l2, "soflow", "defaults"))
    seen = {
        "DiT-B/2: throughput of the defaults divided by that of the reference, at least 3": (
            ours and reference and f"{reference.seconds_per_step / ours.seconds_per_step:.2f}"
        ),
        "DiT-B/2: memory of the defaults divided by that of the reference, at most 0.6": (
            ours and reference and f"{ours.peak_bytes / reference.peak_bytes:.2f}"
        ),
        "DiT-L/2: fraction of the measured peak of matrix products, at least 0.45": (
            large and f"{large.share_of_peak(large.batch):.2f}"
        ),
        "DiT-B/2: step time of MeanFlow divided by SoFlow's, defaults, at least 1.4": (
            mean_flow and ours and f"{mean_flow.seconds_per_step / ours.seconds_per_step:.2f}"
        ),
        "DiT-B/2: step time of MeanFlow divided by SoFlow's, reference": (
            plain and reference and f"{plain.seconds_per_step / reference.seconds_per_step:.2f}"
        ),
        "DiT-B/2: speed of one-step sampling divided by the bare forward pass, at least 0.95": (
            ours and f"{ours.bare_forward_ratio:.3f}"
        ),
    }
    return markdown_table(
        [["goal", "measured"], *([goal, text or "not measured"] for goal, text in seen.items())]
    )


def about_cost(results: CostResults) -> str:
    """One row per measurement, and the configurations that were not measured."""
    header = "network|batch|objective|variant|ms/step|samples/s|GiB|of peak|one-step samples/s"
    rows = [header.split("|")]
    rows += [
        [
            row.network.removeprefix("imagenet256-"),
            f"{row.batch}",
            row.objective,
            row.variant,
            f"{1000 * row.seconds_per_step:.1f}",
            f"{row.batch / row.seconds_per_step:,.0f}",
            f"{row.peak_bytes / 2**30:.2f}",
            f"{row.share_of_peak(row.batch):.0%}",
            f"{row.one_step_samples_per_second:,.0f}",
        ]
        for row in results.rows
    ]
    missing = f"\n\nNot measured: {'; '.join(results.missing)}." if results.missing else ""
    where = f"{results.machine}; {results.seconds:.0f} seconds in total, one round."
    return f"{where}\n\n{markdown_table(rows)}{missing}"


def about_quality(results: QualityResults) -> str:
    """The tables, curves and samples of the comparison."""
    pictures = [
        f"![{what}](results/gpu_quality-{name}.png)"
        for name, what in (("plots", "distances"), ("samples", "samples"))
    ]
    where = f"{results.machine}; {results.seconds:.0f} seconds in total."
    return "\n\n".join([where, markdown(results.compared).strip(), *pictures])


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    PAGE.write_text(text_of(RESULTS))
    print(f"written: {PAGE}")
