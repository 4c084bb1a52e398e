"""The cost of a training step at the paper's sizes, on a GPU: docs/gpu.md.

    python benchmarks/cost_table.py [--minutes 9.5] [KEY=VALUE ...]

DiT-B/4, B/2, L/2 and XL/2, each by SoFlow, MeanFlow and flow matching, in TF32, in bf16 (the consistency pair in TF32) and
compiled; SoFlow with plain attention, too, as in the paper's own table. A fresh process each. The most telling measurements
come first; when the minutes are over the rest is named as not measured. KEY=VALUE are settings for all of them.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from soflow.comparison import measure as bench
from soflow.config import read_recipe
from soflow.errors import RunError

HERE = Path(__file__).parent
SIZES = {"imagenet256-b2": 64, "imagenet256-l2": 32, "imagenet256-b4": 256, "imagenet256-xl2": 32}
PRECISIONS = {
    "tf32": ["precision=tf32"],
    "bf16": ["precision=bf16-tf32"],
    "bf16, compiled": ["precision=bf16-tf32", "compile=true"],
}
METHODS = ["soflow", "mean_flow", "flow_matching"]


def plan() -> Iterator[tuple[str, str, str, bool]]:
    """(recipe, precision, method, plain attention), the most telling first."""
    for recipe in SIZES:
        for method in METHODS:
            for precision in PRECISIONS:
                yield recipe, precision, method, False
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
        parser.error(
            "there is no GPU here; --on-cpu tries the script on a CPU, with small networks by KEY=VALUE"
        )
    end = time.monotonic() + 60 * asked.minutes
    rows, missing, device = [], [], ""
    for recipe, precision, method, plain in plan():
        name = f"{recipe}, {precision}, {method}{', plain attention' if plain else ''}"
        if time.monotonic() > end:
            missing.append(name)
            continue
        settings = [
            f"train.batch_size={SIZES[recipe]}",
            *PRECISIONS[precision],
            *asked.overrides,
            f"objective.name={method}",
        ]
        programs = {name: bench.PLAIN_ATTENTION} if plain else {}
        try:
            (measured,) = bench.bench(
                {name: read_recipe(recipe, settings)}, rounds=1, programs=programs
            )[name]
        except RunError as error:  # for want of memory, most likely: that is a result, too
            missing.append(f"{name} ({error})")
            continue
        device = measured.device
        batch = read_recipe(recipe, settings).train.batch_size
        rows.append(
            {
                "recipe": recipe,
                "precision": precision,
                "method": method,
                "plain": plain,
                "batch": batch,
                **asdict(measured),
            }
        )
        print(
            f"{name}: {1000 * measured.seconds_per_step:.1f} ms/step, {measured.peak_bytes / 2**30:.2f} GiB",
            flush=True,
        )
    lines = [
        "# What a step costs on a GPU",
        "",
        f"{device}, torch {torch.__version__}; made by `sh benchmarks/gpu.sh {' '.join(asked.overrides)}`. A fresh process "
        "each, one round.",
        "",
        "| network | batch | precision | method | ms/step | samples/s | GiB | TFLOP/s | one-step samples/s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        rate = row["batch"] / row["seconds_per_step"]
        cells = [row["recipe"].removeprefix("imagenet256-"), str(row["batch"]), row["precision"]]
        cells += [
            row["method"] + (", plain attention" if row["plain"] else ""),
            f"{1000 * row['seconds_per_step']:.1f}",
        ]
        cells += [
            f"{rate:,.0f}",
            f"{row['peak_bytes'] / 2**30:.2f}",
            f"{rate * row['flops_per_sample'] / 1e12:.3g}",
        ]
        lines.append(
            "| " + " | ".join([*cells, f"{row['one_step_samples_per_second']:,.0f}"]) + " |"
        )
    if missing:
        lines += ["", f"Not measured: {'; '.join(missing)}."]
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "gpu.json").write_text(json.dumps(rows, indent=1) + "\n")
    (HERE.parent / "docs" / "gpu.md").write_text("\n".join(lines) + "\n")
    print("written: docs/gpu.md")


if __name__ == "__main__":
    main()
