"""Measures results, time and memory of `soflow evaluate` on CIFAR-10.

    python benchmarks/evaluation.py CIFAR10 NAME=FEATURES

Prints a table and writes benchmarks/results/evaluation.json. CIFAR10 is the dataset, on the Hub or
as a folder of parquet files. FEATURES is a TorchScript file that takes its uint8 images. The test
split is evaluated three times, each in a fresh process, with a different reference: the whole
training split, its first 10,000 images, and the test split itself, whose distance must be 0.
Finally, samples of a small untrained run are drawn and evaluated in batches of 10 and of 500.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from soflow.data.shards import Shards
from soflow.evaluation.record import Evaluation, Row
from soflow.evaluation.sample_set import data_named

FIRST = 10_000
SHOWN = (
    *("distance", "distance_spread", "precision", "recall", "density", "coverage"),
    "recognized",
)


def soflow(*arguments: object) -> tuple[float, float]:
    """Runs a command. Returns its time in seconds and its peak memory in GB."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "soflow", *map(str, arguments)], stdout=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"soflow {arguments[0]} failed")
    return time.perf_counter() - start, used.ru_maxrss / 1e6


def row(file: Path) -> Row:
    """The first row of an evaluation."""
    evaluation = Evaluation.read(file)
    assert evaluation is not None
    return evaluation.rows[0]


def main() -> None:
    data, features = sys.argv[1:3]
    place = Path(tempfile.mkdtemp())
    asked = ["--features", features]
    train = data_named(data, 0)
    assert isinstance(train.rows, (Shards, torch.Tensor))
    assert train.labels is not None
    np.savez(
        place / "first.npz",
        arr_0=train.rows[torch.arange(FIRST)].numpy(),
        arr_1=train.labels[:FIRST].numpy(),
    )
    rows: dict[str, object] = {}
    results: dict[str, object] = {
        "versions": {"torch": torch.__version__},
        "threads": torch.get_num_threads(),
        "rows": rows,
    }
    for name, reference in (
        ("train", data),
        ("first 10,000 of train", place / "first.npz"),
        ("test", f"{data}:test"),
    ):
        file = place / "x.json"
        seconds, memory = soflow(
            "evaluate", f"{data}:test", "--reference", reference, *asked, "--out", file
        )
        figures = row(file)
        rows[name] = {"seconds": seconds, "gigabytes": memory, **figures.model_dump()}
        shown = ", ".join(f"{key} {getattr(figures, key):.4f}" for key in SHOWN)
        print(f"test against {name}: {shown}; {seconds:.0f} s, {memory:.2f} GB")
    tiny = [
        "network.model_channels=16",
        "network.blocks=1",
        "train.steps=2",
        "train.batch_size=16",
        f"data.path={data}",
    ]
    soflow("train", "cifar10", *tiny, "--out", place / "run")
    drawn = {}
    for batch in (10, 500):
        options = [
            "--num",
            1000,
            "--nfe",
            1,
            "--samplers",
            "renoise",
            "--weights",
            "raw",
            "--no-baseline",
            "--batch",
            batch,
        ]
        soflow(
            "evaluate",
            place / "run",
            *options,
            *asked,
            "--reference",
            place / "first.npz",
            "--out",
            place / "x.json",
        )
        drawn[batch] = row(place / "x.json")
    worst = max(
        abs(getattr(drawn[10], key) / getattr(drawn[500], key) - 1)
        for key in ("distance", "kernel_distance", "inception_score")
    )
    results["batch 10 against 500, largest relative difference"] = worst
    print(f"1,000 samples in batches of 10 and of 500: metrics differ by {worst:.1e}")
    (Path(__file__).parent / "results" / "evaluation.json").write_text(
        json.dumps(results, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
