"""Compares SoFlow, JumpFlow and MeanFlow on CIFAR-10 with equal network, data and training time.

    sh benchmarks/gpu_quality.sh --data PATH [--features FILE] [--seconds 35] [--on-cpu]
                                 [--out FOLDER] [KEY=VALUE ...]

PATH is a folder of CIFAR-10's parquet files, or one of the files. FILE is a TorchScript file with
the features for the Frechet distance (which is not FID), by default the ResNet-56 in
benchmarks/classifiers. The script first measures the time of a
step. All objectives then train with class labels for the number of steps that fit into the given
seconds. On a GPU, blocks are compiled.
"""

import argparse
import shutil
import time
from pathlib import Path

from gpu_page import QualityResults, add_options, finish, machine
from soflow.comparison.compare import compare
from soflow.comparison.cost import costs_of
from soflow.comparison.page import write_page
from soflow.config import read_objectives

OBJECTIVES = ("soflow", "mean_flow", "jump_flow")
FEATURES = Path(__file__).parent / "classifiers" / "cifar10-resnet56.pt"
#: A DiT with 22 million parameters. The EMA decay fits the short training.
SETTINGS = [
    "data.source=huggingface", "data.shape=[3,32,32]", "data.num_classes=10", "data.flip=true",
    "network.patch=4", "network.width=384", "network.depth=9", "network.heads=6",
    "objective.guidance.scale=1.5",
    "optimizer.lr=5e-4", "optimizer.warmup=100", "ema.decay=0.99",
    "train.batch_size=256", "train.log_every=50", "evaluate.num=5000",
    "checkpoint.every=1000000",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.add_argument("--data", required=True)
    parser.add_argument("--features", default=FEATURES)
    parser.add_argument("--seconds", type=float, default=35.0)
    parser.add_argument("overrides", nargs="*")
    asked = parser.parse_args()
    start = time.monotonic()
    if asked.on_cpu:
        exact = ["precision=fp32", "compile=false"]
    else:
        exact = ["precision=bf16-tf32", "compile=true"]
    settings = [
        *SETTINGS, *exact, f"data.path={asked.data}", f"evaluate.features={asked.features}",
        *asked.overrides,
    ]  # fmt: skip
    out = asked.out / "gpu_quality-runs"  # kept if interrupted: delete it to start over
    out.mkdir(parents=True, exist_ok=True)
    costs = costs_of(read_objectives("images", OBJECTIVES, settings), out / "cost.json", 1)
    steps = max(1, round(asked.seconds / costs["soflow"].summary.seconds_per_step))
    settings.append(f"train.steps={steps}")
    for count in range(1, len(OBJECTIVES) + 1):  # results are written after each objective
        later = tuple(f"{name}:" for name in OBJECTIVES[count:])
        own = [text for text in settings if not text.startswith(later)] if later else settings
        compared = compare("images", out, OBJECTIVES[:count], 1, "time", own, rounds=1)
        write_page(compared, out)
        for picture in ("plots", "samples"):
            shutil.copyfile(out / f"{picture}.png", asked.out / f"gpu_quality-{picture}.png")
        paths = ("data.path=", "evaluate.features=")
        shown = [text for text in compared.overrides if not text.startswith(paths)]
        results = QualityResults(
            machine=machine(),
            seconds=time.monotonic() - start,
            compared=compared.model_copy(update={"overrides": shown}),
        )
        finish(results, asked.out, "gpu_quality")
    shutil.rmtree(out)


if __name__ == "__main__":
    main()
