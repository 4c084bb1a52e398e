"""Measures the effect of each optimization and writes docs/performance.md.

    python benchmarks/performance.py            measures everything (half an hour on two slow cores)
    python benchmarks/performance.py --only T   measures only the section with title T
    python benchmarks/performance.py --write    only writes the page, from benchmarks/results/

Each variant of a step is measured in a fresh process with the code of `soflow bench`. The variants
are measured in turn. Variants without a setting are patches: `python benchmarks/performance.py
PATCH,...` runs one measurement with these patches, like `python -m soflow.comparison.measure`.
"""

import platform
import sys
from importlib import import_module
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from soflow.comparison import measure
from soflow.comparison.bench import PLAIN_ATTENTION, bench
from soflow.comparison.measure import Measurement
from soflow.config import Config, read_recipe
from soflow.objectives.passes import Inputs
from soflow.symbols import Net
from soflow.system.records import Record
from soflow.training.optimizers import SETTINGS
from soflow.training.trainer import Trainer

HERE = Path(__file__).parent
FIGURES, PAGE = HERE / "results" / "performance.json", HERE.parent / "docs" / "performance.md"
#: Variants of a step: configuration overrides, and the arguments of a patched program.
VARIANTS: dict[str, tuple[list[str], list[str]]] = {
    "SoFlow": ([], []),
    "separate passes": ([], [__file__, "apart"]),
    "AdamW and EMA in loops": ([], [__file__, "loops"]),
    "plain attention": ([], list(PLAIN_ATTENTION)),
    "compile=true": (["compile=true"], []),
    "precision=bf16": (["precision=bf16"], []),
    "activation checkpointing": (["train.checkpoint_activations=true"], []),
    "channels last": ([], [__file__, "channels-last"]),
    "flow matching": (["objective.name=flow_matching"], []),
    "MeanFlow": (["objective.name=mean_flow"], []),
    "MeanFlow, derivative=jumps": (["objective.name=mean_flow", "objective.derivative=jumps"], []),
}
LARGE = [
    name for name in VARIANTS if not any(word in name for word in ("loops", "compile", "channels"))
]
#: By section title: a recipe with overrides, the number of rounds, and the variants.
RECIPES = {
    "digits": (
        ["digits", "precision=fp32"],
        2,
        [name for name in VARIANTS if name != "channels last"],
    ),
    "DiT-B/4, batch size 8": (["imagenet256-b4", "precision=fp32", "train.batch_size=8"], 2, LARGE),
    "CIFAR-10 UNet, batch size 4": (
        ["cifar10", "precision=fp32", "train.batch_size=4"],
        1,
        ["SoFlow", "activation checkpointing", "channels last"],
    ),
    "DiT-B/4, batch size 32": (
        ["imagenet256-b4", "precision=fp32", "train.batch_size=32"],
        1,
        ["SoFlow", "MeanFlow"],
    ),
}


class Section(Record):
    """The measurements of one recipe by variant, and the machine."""

    machine: str
    measured: dict[str, list[Measurement]]


class Performance(Record):
    """Sections by title, as stored in benchmarks/results/performance.json."""

    sections: dict[str, Section]


def apart(net: Net, *groups: Inputs) -> list[Tensor]:
    """Runs one forward pass per group of rows instead of one for all groups."""
    return [group.through(net) if len(group.x) else group.x for group in groups]


def lerp(averages: list[Tensor], weights: list[Tensor], weight: float) -> None:
    """Replaces torch._foreach_lerp_ by a loop."""
    for average, one in zip(averages, weights, strict=True):
        average.lerp_(one, weight)


def patch(name: str) -> None:
    """Disables or changes one optimization in this process.

    apart: One forward pass per group of rows.
    loops: AdamW and EMA weights are updated parameter by parameter.
    plain: torch's default AdamW; EMA weights are updated parameter by parameter.
    channels-last: The network uses the memory format channels_last.
    reading: Losses are read after every step, which waits for the GPU.
    """
    if name == "apart":
        for module in ("passes", "shortcut", "mean_flow"):
            import_module(f"soflow.objectives.{module}").together = apart  # type: ignore[attr-defined]
    elif name in ("loops", "plain"):
        SETTINGS["adamw"] = {"foreach": False} if name == "loops" else {}
        torch._foreach_lerp_ = lerp  # type: ignore[assignment]
    elif name == "channels-last":
        real = measure.make_network  # type: ignore[attr-defined]

        def channels_last(config: Config, own: nn.Module | None = None) -> nn.Module:
            return real(config, own).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

        measure.make_network = channels_last  # type: ignore[attr-defined]
    elif name == "reading":
        Trainer.computes_at_once = True  # type: ignore[assignment, method-assign]
    else:
        raise SystemExit(f"unknown patch {name}")


def measure_section(title: str) -> Section:
    """Measures all variants of one recipe."""
    print(title, file=sys.stderr, flush=True)
    (recipe, *overrides), rounds, variants = RECIPES[title]
    configs: dict[str, Config] = {}
    programs: dict[str, list[str]] = {}
    for name in variants:
        settings, program = VARIANTS[name]
        configs[name] = read_recipe(recipe, [*overrides, *settings])
        if program:
            programs[name] = program
    processor = f"{platform.machine()} with {torch.backends.cpu.get_cpu_capability()}"
    return Section(
        machine=f"{processor}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        measured=bench(configs, rounds, programs),
    )


def table(measured: dict[str, list[Measurement]], batch_size: int) -> str:
    """One row per variant, with ratios to SoFlow in the same round."""
    first = measured["SoFlow"]
    lines = [
        "| variant | ms/step | time | least to most | of peak | MiB | memory | MFLOP/sample |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, ones in measured.items():
        pairs = list(zip(ones, first, strict=True))
        times = sorted(one.seconds_per_step / base.seconds_per_step for one, base in pairs)
        memory = median(one.peak_bytes / base.peak_bytes for one, base in pairs)
        cells = [
            name,
            f"{1000 * median(one.seconds_per_step for one in ones):.4g}",
            f"{median(times):.2f}",
            f"{times[0]:.2f} to {times[-1]:.2f}",
            f"{median(one.share_of_peak(batch_size) for one in ones):.0%}",
            f"{median(one.peak_bytes for one in ones) / 2**20:,.0f}",
            f"{memory:.2f}",
            f"{ones[0].flops_per_sample / 1e6:,.4g}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def batch_of(title: str) -> int:
    recipe, *overrides = RECIPES[title][0]
    return read_recipe(recipe, overrides).train.batch_size


def page(figures: Performance) -> str:
    """The text of docs/performance.md."""
    text = (HERE / "performance.md.in").read_text()
    tables = "\n\n".join(
        f"**{title}** ({one.machine}; rounds: {len(one.measured['SoFlow'])})\n\n"
        f"{table(one.measured, batch_of(title))}"
        for title, one in figures.sections.items()
    )
    precision = HERE / "results" / "precision.md"
    return text.replace("@TABLES@", tables).replace("@PRECISION@", precision.read_text().strip())


def main() -> None:
    if sys.argv[1:] and not sys.argv[1].startswith("--"):
        for name in sys.argv[1].split(","):
            patch(name)
        measure.answer()
        return
    figures = Performance.read(FIGURES) or Performance(sections={})
    titles = list(RECIPES)
    if sys.argv[1:] == ["--write"]:
        titles = []
    elif sys.argv[1:2] == ["--only"]:
        titles = sys.argv[2:]
    for title in titles:
        figures.sections[title] = measure_section(title)
        figures.write(FIGURES)
    PAGE.write_text(page(figures))
    print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
