"""The cost of a training step at the paper's sizes, on a GPU: docs/gpu.md.

    python benchmarks/cost_table.py [--minutes 9.5] [KEY=VALUE ...]

DiT-B/4, B/2, L/2 and XL/2, each by SoFlow, MeanFlow and flow matching, in TF32, in bf16 (the
consistency pair in TF32) and compiled; SoFlow also with plain attention, as in the paper's own
table. Each is measured in a fresh process. The most informative measurements come first; those
for which no minutes are left are listed as not measured. KEY=VALUE are settings for all.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from soflow.comparison.bench import PLAIN_ATTENTION, bench
from soflow.comparison.measure import Measurement
from soflow.config import read_recipe
from soflow.errors import RunError
from soflow.system.progress import silent
from soflow.system.records import Record

HERE = Path(__file__).parent
SIZES = {"imagenet256-b2": 64, "imagenet256-l2": 32, "imagenet256-b4": 256, "imagenet256-xl2": 32}
PRECISIONS = {
    "tf32": ["precision=tf32"],
    "bf16": ["precision=bf16-tf32"],
    "bf16, compiled": ["precision=bf16-tf32", "compile=true"],
}
OBJECTIVES = ["soflow", "mean_flow", "flow_matching"]


class Row(Measurement):
    """One row of the table."""

    recipe: str
    precision: str
    objective: str
    plain: bool  # attention
    batch: int


class Table(Record):
    """benchmarks/results/gpu.json."""

    rows: list[Row]


def plan() -> Iterator[tuple[str, str, str, bool]]:
    """(recipe, precision, objective, plain attention), the most informative first."""
    for recipe in SIZES:
        for objective in OBJECTIVES:
            for precision in PRECISIONS:
                yield recipe, precision, objective, False
        yield recipe, "tf32", "soflow", True


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=9.5)
    parser.add_argument("--on-cpu", action="store_true")
    parser.add_argument("overrides", nargs="*")
    asked = parser.parse_args()
    if not torch.cuda.is_available() and not asked.on_cpu:
        parser.error("there is no GPU here; --on-cpu tries the script, with small KEY=VALUE sizes")
    end = time.monotonic() + 60 * asked.minutes
    rows: list[Row] = []
    missing = []
    for recipe, precision, objective, plain in plan():
        name = f"{recipe}, {precision}, {objective}{', plain attention' if plain else ''}"
        if time.monotonic() > end:
            missing.append(name)
            continue
        settings = [f"train.batch_size={SIZES[recipe]}", *PRECISIONS[precision], *asked.overrides]
        config = read_recipe(recipe, [*settings, f"objective.name={objective}"])
        programs = {name: PLAIN_ATTENTION} if plain else {}
        try:
            (measured,) = bench({name: config}, 1, programs, progress=silent)[name]
        except RunError as error:  # most likely for lack of memory, which is a result, too
            missing.append(f"{name} ({error})")
            continue
        row = Row(
            **measured.model_dump(),
            recipe=recipe,
            precision=precision,
            objective=objective,
            plain=plain,
            batch=config.train.batch_size,
        )
        rows.append(row)
        milliseconds, gigabytes = 1000 * row.seconds_per_step, row.peak_bytes / 2**30
        print(f"{name}: {milliseconds:.1f} ms/step, {gigabytes:.2f} GiB", flush=True)
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    Table(rows=rows).write(results / "gpu.json")
    (HERE.parent / "docs" / "gpu.md").write_text(page(rows, missing, asked.overrides))
    print("written: docs/gpu.md")


HEADER = (
    *("network", "batch", "precision", "objective", "ms/step", "samples/s", "GiB", "TFLOP/s"),
    "one-step samples/s",
)


def page(rows: list[Row], missing: list[str], overrides: list[str]) -> str:
    """docs/gpu.md."""
    device = rows[-1].device if rows else ""
    lines = [
        "# What a step costs on a GPU",
        "",
        f"{device}, torch {torch.__version__}; made by "
        f"`sh benchmarks/gpu.sh {' '.join(overrides)}`. A fresh process each, one round.",
        "",
        f"| {' | '.join(HEADER)} |",
        "|---" * len(HEADER) + "|",
    ]
    for row in rows:
        rate = row.batch / row.seconds_per_step
        cells = [
            row.recipe.removeprefix("imagenet256-"),
            str(row.batch),
            row.precision,
            row.objective + (", plain attention" if row.plain else ""),
            f"{1000 * row.seconds_per_step:.1f}",
            f"{rate:,.0f}",
            f"{row.peak_bytes / 2**30:.2f}",
            f"{rate * row.flops_per_sample / 1e12:.3g}",
            f"{row.one_step_samples_per_second:,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if missing:
        lines += ["", f"Not measured: {'; '.join(missing)}."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
