"""Estimates the cost of the paper's networks and writes docs/cluster.md.

    python benchmarks/cluster.py

The script measures nothing. It compares estimates with the measurements in benchmarks/results/.
"""

from contextlib import nullcontext
from pathlib import Path
from statistics import median

from torch.nn.attention import SDPBackend, sdpa_kernel

from soflow.comparison.estimate import COLUMNS, Estimate, assumption, cells, estimate
from soflow.comparison.measure import Measurement
from soflow.config import read_recipe
from soflow.system.records import Record

HERE = Path(__file__).parent
FIGURES, PAGE = HERE / "results" / "performance.json", HERE.parent / "docs" / "cluster.md"
RECIPES = [
    "imagenet256-b4",
    "imagenet256-b2",
    "imagenet256-m2",
    "imagenet256-l2",
    "imagenet256-xl2",
    "cifar10",
]
#: Settings and number of GPUs of each table.
TABLES = [
    (("precision=tf32",), 8),
    (("precision=bf16-tf32",), 8),
    (("precision=bf16-tf32", "train.accumulate=8"), 1),
]
#: Sections of benchmarks/performance.py, with their recipe and settings.
MEASURED = {
    "DiT-B/4, batch size 8": ["imagenet256-b4", "precision=fp32", "train.batch_size=8"],
    "DiT-B/4, batch size 32": ["imagenet256-b4", "precision=fp32", "train.batch_size=32"],
}
VARIANTS = {
    "SoFlow": [],
    "plain attention": [],
    "precision=bf16": ["precision=bf16"],
    "flow matching": ["objective.name=flow_matching"],
    "MeanFlow": ["objective.name=mean_flow"],
    "MeanFlow, derivative=jumps": ["objective.name=mean_flow", "objective.derivative=jumps"],
}


class Section(Record):
    """One section of the results of benchmarks/performance.py, by variant."""

    measured: dict[str, list[Measurement]]


class Measured(Record):
    """The results of benchmarks/performance.py, by title."""

    sections: dict[str, Section]


def command(settings: tuple[str, ...], gpus: int) -> str:
    return f"soflow bench {' '.join(RECIPES)} {' '.join(settings)} --estimate --gpus {gpus}"


def row(recipe: str, settings: tuple[str, ...], gpus: int) -> str:
    return f"| {' | '.join(cells(recipe, estimate(read_recipe(recipe, settings), gpus)))} |"


def table(settings: tuple[str, ...], gpus: int) -> str:
    """The command and the table that it prints."""
    head = [f"| {' | '.join(COLUMNS)} |", "|---|---|" + "---:|" * (len(COLUMNS) - 2)]
    rows = [row(recipe, settings, gpus) for recipe in RECIPES]
    return "\n".join([f"    {command(settings, gpus)}", "", *head, *rows])


def of(recipe: list[str], plain_attention: bool = False) -> Estimate:
    with sdpa_kernel(SDPBackend.MATH) if plain_attention else nullcontext():
        return estimate(read_recipe(recipe[0], recipe[1:]))


def against_measured() -> str:
    """One row per measurement: memory without the process itself, and fraction of the peak."""
    read = Measured.read(FIGURES)
    assert read is not None
    figures = {title: section.measured for title, section in read.sections.items()}
    small = of(["digits", "precision=fp32"]).memory.total
    process = middle(figures["digits"]["SoFlow"], "peak_bytes") - small
    lines = [
        "| step | variant | MiB measured | MiB estimated | off | of peak |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for title, recipe in MEASURED.items():
        for name, settings in VARIANTS.items():
            if name not in figures[title]:
                continue
            ones = figures[title][name]
            made = of([*recipe, *settings], plain_attention=name == "plain attention")
            took = middle(ones, "peak_bytes") - process
            share = median(one.share_of_peak(made.samples) for one in ones)
            lines.append(
                f"| {title} | {name} | {took / 2**20:,.0f} | {made.memory.total / 2**20:,.0f} "
                f"| {100 * (made.memory.total / took - 1):+.1f} % | {share:.0%} |"
            )
    return "\n".join(lines)


def middle(ones: list[Measurement], name: str) -> float:
    return median(getattr(one, name) for one in ones)


def against_the_paper() -> str:
    """Memory of DiT-B/2 in GB, with the recipe's batch of 256 samples on one GPU."""
    lines = ["| | paper | bf16, estimated | float32, estimated |", "|---|---:|---:|---:|"]
    for name, objective, plain, paper in (
        ("SoFlow, fused attention", "soflow", False, 35.44),
        ("SoFlow, plain attention", "soflow", True, 38.95),
        ("MeanFlow", "mean_flow", True, 51.45),
    ):
        settings = ["imagenet256-b2", f"objective.name={objective}"]
        sizes = [
            of([*settings, f"precision={p}"], plain).memory.total / 1e9 for p in ("bf16", "fp32")
        ]
        lines.append(f"| {name} | {paper} | {sizes[0]:.1f} | {sizes[1]:.1f} |")
    return "\n".join(lines)


def page() -> str:
    """The text of docs/cluster.md."""
    text = (HERE / "cluster.md.in").read_text()
    tables = "\n\n".join(table(settings, gpus) for settings, gpus in TABLES)
    text = text.replace("@TABLES@", tables).replace("@ASSUMPTION@", assumption())
    return text.replace("@MEASURED@", against_measured()).replace("@PAPER@", against_the_paper())


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"written: {PAGE}")
