"""Measures the effect of precision on quality: the recipe digits, over several seeds.

    python benchmarks/precision.py [SEEDS] [KEY=VALUE ...]        writes results/precision.md
    python benchmarks/precision.py --only fp32,bf16 3             measures only these rows

Only GPUs have TF32. Here it is simulated: the inputs of every matrix product, and the gradients
that flow back to it, are rounded to TF32's mantissa of ten bits. "tf32" rounds in all passes.
"bf16-tf32", which precision=auto selects on a GPU, rounds in the passes that are not in bfloat16.
"bf16 everywhere" also computes the consistency pair in bfloat16, which the library never does.
Finished runs are not trained again.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import mean, stdev
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from soflow.config import Config, read_recipe
from soflow.drawing import class_by_class, draw
from soflow.evaluation.references import make_scoring
from soflow.evaluation.scorer import Scorer
from soflow.objectives import passes
from soflow.system.progress import silent
from soflow.workflows.load import load
from soflow.workflows.train import train

HERE = Path(__file__).parent
PRODUCTS = (functional.linear, functional.conv2d, functional.scaled_dot_product_attention)


def rounded(x: Tensor) -> Tensor:
    """Rounds to the nearest float32 with ten mantissa bits."""
    return (x.contiguous().view(torch.int32) + 0x1000).bitwise_and(~0x1FFF).view(torch.float32)


class Rounded(torch.autograd.Function):
    """Rounds the input in the forward pass, or the gradient in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: bool) -> Tensor:
        ctx.forward = forward
        return rounded(x) if forward else x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient if ctx.forward else rounded(gradient), None


class Tf32(TorchFunctionMode):
    """Simulates TF32 in matrix products, except for the softmax inside attention."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in PRODUCTS:
            return func(*args, **(kwargs or {}))
        last = 3 if func is functional.scaled_dot_product_attention else 2
        factors = [Rounded.apply(x, True) if i < last else x for i, x in enumerate(args)]
        return Rounded.apply(func(*factors, **(kwargs or {})), False)


@contextmanager
def everywhere() -> Iterator[None]:
    """Computes the consistency pair in the precision of all other passes."""
    with mock.patch.object(passes, "float32", return_value=nullcontext()):
        yield


VARIANTS: dict[str, tuple[str, Callable[[], Any]]] = {
    "fp32": ("fp32", nullcontext),
    "bf16": ("bf16", nullcontext),
    "bf16-tf32": ("bf16", Tf32),
    "tf32": ("fp32", Tf32),
    "bf16 everywhere": ("bf16", everywhere),
}


def one_run(
    config: Config, folder: Path, context: Callable[[], Any], scorer: Scorer
) -> tuple[float, float, float]:
    """Returns one-step distance, mean_d(q^2) and flow-matching error at the end of a run."""
    with context():
        out = train(config, folder, progress=silent)
    model, num = load(folder).model, config.evaluate.num
    labels = class_by_class(num, model.num_classes)
    last = out.read_metrics()[-1]
    return (
        scorer.distance(scorer.gather(draw(model, num, labels, "renoise", 1, seed=0), num)),
        last["consistency_mse"],
        last["flow_matching_mse"],
    )


def main() -> None:
    arguments, chosen = sys.argv[1:], list(VARIANTS)
    if arguments[:1] == ["--only"]:
        chosen, arguments = arguments[1].split(","), arguments[2:]
    seeds = int(arguments[0]) if arguments else 3
    overrides = arguments[1:]
    config = read_recipe("digits", overrides)
    scorer = make_scoring(config, None, lambda samples: samples, baseline=False).scorer
    changes = f" with {' '.join(overrides)}" if overrides else ""
    lines = [
        f"Recipe digits{changes}, {config.train.steps:,} steps, {seeds} seeds, on a CPU, "
        f"torch {torch.__version__}; ±: standard deviation over seeds.",
        "",
        "| precision | one-step distance | mean_d(q^2) at the end | flow-matching error |",
        "|---|---|---|---|",
    ]
    for name in chosen:
        precision, context = VARIANTS[name]
        results = []
        for seed in range(seeds):
            print(f"{name}, seed {seed}", file=sys.stderr, flush=True)
            this = read_recipe(
                "digits", [*overrides, f"precision={precision}", f"train.seed={seed}"]
            )
            folder = Path("runs") / "precision" / f"{name.replace(' ', '-')}-{seed}"
            results.append(one_run(this, folder, context, scorer))
            print(
                f"  distance {results[-1][0]:.3g}, q^2 {results[-1][1]:.3g}",
                file=sys.stderr,
                flush=True,
            )
        cells = (
            f"{mean(x):.3g}" + (f" ± {stdev(x):.2g}" if seeds > 1 else "")
            for x in zip(*results, strict=True)
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
        (HERE / "results" / "precision.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
