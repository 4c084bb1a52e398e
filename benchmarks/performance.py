"""What each measure for speed buys, one by one: docs/performance.md, whole.

    python benchmarks/performance.py               measures everything again (a quarter of an hour on two cores)
    python benchmarks/performance.py --write       writes the page from the figures in benchmarks/results/

Every variant of a step is measured by `soflow bench`'s own code, in fresh processes, in turn. A variant that no setting
makes is made by a patch: `python benchmarks/performance.py PATCH` is one measurement with it, configuration on stdin.
"""

import json
import sys
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from soflow.comparison import measure as bench
from soflow.config import Config, read_recipe
from soflow.objectives.passes import Inputs
from soflow.symbols import Net

HERE = Path(__file__).parent
FIGURES, PAGE = HERE / "results" / "performance.json", HERE.parent / "docs" / "performance.md"
#: Variants of a step: overrides, and the patch or the program that makes it.
VARIANTS: dict[str, tuple[list[str], list[str]]] = {
    "SoFlow as it is": ([], []),
    "passes one by one": ([], [__file__, "apart"]),
    "AdamW and average in loops": ([], [__file__, "loops"]),
    "plain attention": ([], list(bench.PLAIN_ATTENTION)),
    "compile=true": (["compile=true"], []),
    "precision=bf16": (["precision=bf16"], []),
    "flow matching": (["objective.name=flow_matching"], []),
    "MeanFlow": (["objective.name=mean_flow"], []),
    "MeanFlow, derivative=jumps": (["objective.name=mean_flow", "objective.derivative=jumps"], []),
}
LARGE = [name for name in VARIANTS if "loops" not in name and "compile" not in name]
#: Recipes with their overrides, rounds, and the variants that are measured of each.
RECIPES = {
    "digits": (["digits"], 2, list(VARIANTS)),
    "DiT-B/4, batches of 8": (["imagenet256-b4", "train.batch_size=8"], 2, LARGE),
    "DiT-B/4, batches of 32": (
        ["imagenet256-b4", "train.batch_size=32"],
        1,
        ["SoFlow as it is", "MeanFlow"],
    ),
}


def apart(net: Net, *groups: Inputs) -> list[Tensor]:
    """A pass for each group of rows, in place of one for all."""
    return [net(*group) if len(group.x) else group.x for group in groups]


def patch(name: str) -> None:
    """Makes this process's steps the slow way."""
    if name == "apart":
        for module in ("base", "soflow", "shortcut", "mean_flow"):
            import_module(f"soflow.objectives.{module}").together = apart  # type: ignore[attr-defined]
    elif name == "loops":
        adamw = torch.optim.AdamW

        def in_a_loop(parameters: Any, fused: bool, **settings: Any) -> torch.optim.AdamW:
            return adamw(parameters, **settings, foreach=False)

        def lerp(averages: list[Tensor], weights: list[Tensor], weight: float) -> None:
            for average, one in zip(averages, weights, strict=True):
                average.lerp_(one, weight)

        torch.optim.AdamW = in_a_loop  # type: ignore[assignment, misc]
        torch._foreach_lerp_ = lerp  # type: ignore[assignment]
    else:
        raise SystemExit(f"unknown patch {name}")


def measure_all() -> dict[str, Any]:
    """All variants of all recipes: plain figures by recipe and variant."""
    figures: dict[str, Any] = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "recipes": {},
    }
    for title, ((recipe, *overrides), rounds, variants) in RECIPES.items():
        configs: dict[str, Config] = {}
        programs: dict[str, list[str]] = {}
        for name in variants:
            settings, program = VARIANTS[name]
            configs[name] = read_recipe(recipe, [*overrides, *settings])
            if program:
                programs[name] = program
        total = rounds * len(configs)

        def told(done: int, title: str = title, total: int = total) -> None:
            print(f"\r{title}: {done} of {total} measurements", end="", file=sys.stderr, flush=True)

        measured = bench.bench(configs, rounds, told, programs)
        print(file=sys.stderr)
        figures["recipes"][title] = {
            name: [asdict(one) for one in ones] for name, ones in measured.items()
        }
    return figures


def table(measured: dict[str, list[dict[str, Any]]]) -> str:
    """A row a variant, ratios to SoFlow as it is of the same round."""
    first = measured["SoFlow as it is"]
    lines = [
        "| variant | ms/step | time | least to most | MiB | memory | MFLOP/sample |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, ones in measured.items():
        times, memory = (
            sorted(one[key] / base[key] for one, base in zip(ones, first, strict=True))
            for key in ("seconds_per_step", "peak_bytes")
        )
        lines.append(
            f"| {name} | {1000 * median(one['seconds_per_step'] for one in ones):.4g} | {median(times):.2f} "
            f"| {times[0]:.2f} to {times[-1]:.2f} | {median(one['peak_bytes'] for one in ones) / 2**20:,.0f} "
            f"| {median(memory):.2f} | {ones[0]['flops_per_sample'] / 1e6:,.4g} |"
        )
    return "\n".join(lines)


def page(figures: dict[str, Any]) -> str:
    """docs/performance.md."""
    text = (HERE / "performance.md.in").read_text()
    device = next(iter(figures["recipes"]["digits"].values()))[0]["device"]
    machine = f"{device}, {figures['threads']} threads, torch {figures['torch']}"
    tables = "\n\n".join(
        f"**{title}** ({machine}; rounds: {len(one['MeanFlow'])})\n\n{table(one)}"
        for title, one in figures["recipes"].items()
    )
    precision = HERE / "results" / "precision.md"
    return text.replace("@TABLES@", tables).replace("@PRECISION@", precision.read_text().strip())


def main() -> None:
    if sys.argv[1:] and sys.argv[1] != "--write":
        patch(sys.argv[1])
        print(json.dumps(asdict(bench.measure(Config.model_validate_json(sys.stdin.read())))))
        return
    if not sys.argv[1:]:
        FIGURES.parent.mkdir(exist_ok=True)
        FIGURES.write_text(json.dumps(measure_all(), indent=1) + "\n")
    PAGE.write_text(page(json.loads(FIGURES.read_text())))
    print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
