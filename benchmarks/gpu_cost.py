"""Measures the cost of a training step of the paper's networks on a GPU.

    sh benchmarks/gpu_cost.sh [--minutes 3.7] [--on-cpu] [--out FOLDER] [--only N] [KEY=VALUE ...]

Each configuration runs in a fresh process on random data. The variants lead from "reference"
(PyTorch's defaults: eager mode, TF32, one pass per group of samples, the default AdamW, EMA weights
in a loop, the loss read after each step) to this library's defaults, one optimization at a time.
The most important configurations are measured first. KEY=VALUE settings apply to all of them.
"""

import argparse
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

import torch

from gpu_page import CostResults, CostRow, add_options, finish, machine
from soflow.comparison.bench import ask, worker
from soflow.comparison.counting import Counts, count
from soflow.comparison.measure import Times
from soflow.config import Config, read_recipe
from soflow.errors import first_line

#: Batch sizes by recipe.
BATCHES = {"imagenet256-b2": 64, "imagenet256-l2": 32, "imagenet256-b4": 256, "imagenet256-xl2": 32}
REFERENCE = "reference"
DEFAULTS = "defaults"
#: Settings, and patches of benchmarks/performance.py that disable optimizations.
VARIANTS = {
    REFERENCE: (["precision=tf32", "compile=false"], "apart,plain,reading"),
    "+ packed passes": (["precision=tf32", "compile=false"], "plain,reading"),
    "+ fused optimizer and average": (["precision=tf32", "compile=false"], "reading"),
    "+ no waiting for the device": (["precision=tf32", "compile=false"], ""),
    "+ bfloat16": (["precision=bf16-tf32", "compile=false"], ""),
    DEFAULTS: (["precision=bf16-tf32", "compile=true"], ""),
    "defaults, activations checkpointed": (
        ["precision=bf16-tf32", "compile=true", "train.checkpoint_activations=true"],
        "",
    ),
}
B2, L2, B4, XL2 = BATCHES
#: Recipe, objective and variant, the most important first.
PLAN = [
    (B2, "soflow", REFERENCE),
    (B2, "soflow", DEFAULTS),
    (B2, "mean_flow", REFERENCE),
    (L2, "soflow", DEFAULTS),
    (B2, "mean_flow", DEFAULTS),
    *((B2, "soflow", name) for name in list(VARIANTS)[1:5]),
    (B4, "soflow", DEFAULTS),
    (XL2, "soflow", DEFAULTS),
    (B4, "soflow", REFERENCE),
    (L2, "soflow", REFERENCE),
    (B2, "flow_matching", DEFAULTS),
    (B4, "mean_flow", DEFAULTS),
    (XL2, "soflow", "defaults, activations checkpointed"),
    (L2, "mean_flow", DEFAULTS),
    (XL2, "mean_flow", DEFAULTS),
    (XL2, "soflow", REFERENCE),
    (B4, "flow_matching", DEFAULTS),
    (L2, "flow_matching", DEFAULTS),
]
#: Seconds per measurement, and the number of processes that import libraries in advance.
SECONDS, AHEAD = 1.5, 4


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.add_argument(
        "--minutes", type=float, default=3.7, help="start no measurement after this time"
    )
    parser.add_argument("--only", type=int, help="run only the first N measurements")
    parser.add_argument("overrides", nargs="*")
    asked = parser.parse_args()
    if not torch.cuda.is_available() and not asked.on_cpu:
        parser.error("no GPU found: use --on-cpu with small KEY=VALUE sizes to try the script")
    start = time.monotonic()
    rows: list[CostRow] = []
    missing: list[str] = []
    counts: dict[tuple[str, str, str, bool], Future[Counts]] = {}
    plan = PLAN[: asked.only]

    def save(rows: list[CostRow], missing: list[str]) -> None:
        seconds = time.monotonic() - start
        results = CostResults(machine=machine(), seconds=seconds, rows=rows, missing=missing)
        finish(results, asked.out, "gpu_cost")

    def config_of(recipe: str, objective: str, variant: str) -> Config:
        settings = [f"train.batch_size={BATCHES[recipe]}", *VARIANTS[variant][0], *asked.overrides]
        if asked.on_cpu:
            settings = [*settings, "compile=false", "precision=fp32"]
        return read_recipe(recipe, [*settings, f"objective.name={objective}"])

    def program(variant: str) -> list[str]:
        patches = VARIANTS[variant][1]
        performance = __file__.replace("gpu_cost", "performance")
        return [performance, patches] if patches else ["-m", "soflow.comparison.measure"]

    with ExitStack() as stack, ThreadPoolExecutor(1) as counting:
        workers = {}
        for number, (recipe, objective, variant) in enumerate(plan):
            name = f"{recipe}, {objective}, {variant}"
            if time.monotonic() - start > 60 * asked.minutes:
                missing.append(name)
                continue
            for ahead in range(number, min(number + AHEAD, len(plan))):
                if ahead not in workers:
                    workers[ahead] = stack.enter_context(worker(program(plan[ahead][2])))
            config = config_of(recipe, objective, variant)
            process = workers.pop(number)
            assert process.stdout is not None
            process.stdout.readline()  # "ready"
            key = (recipe, objective, config.precision, config.train.checkpoint_activations)
            if key not in counts:  # count operations while the other process measures
                counts[key] = counting.submit(count, config)
            try:
                times: Times = ask(process, name, config, SECONDS)
                counted = counts[key].result()
            except Exception as error:  # most likely out of memory, which is also a result
                print(error, file=sys.stderr, flush=True)
                missing.append(f"{name} ({first_line(error)})")
                continue
            batch = config.train.batch_size
            row = CostRow(
                **dict(times), **dict(counted),
                network=recipe, objective=objective, variant=variant, batch=batch,
            )  # fmt: skip
            rows.append(row)
            print(
                f"{name}: {1000 * row.seconds_per_step:.1f} ms/step, "
                f"{row.peak_bytes / 2**30:.2f} GiB, {row.share_of_peak(batch):.0%} of peak",
                flush=True,
            )
            save(rows, [*missing, *map(", ".join, plan[number + 1 :])])
    save(rows, missing)


if __name__ == "__main__":
    main()
