"""Runs the published comparisons and writes docs/results.md, docs/ideas.md and their pictures.

    python benchmarks/results.py                      runs all comparisons (days on a CPU)
    python benchmarks/results.py --only ideas-digits  runs one comparison
    python benchmarks/results.py --only cifar10 --seed 1  runs one seed of it, and adds its results
    python benchmarks/results.py --only cifar10 --names soflow,jump_flow  runs these objectives,
                                                      and adds their results
    python benchmarks/results.py --write              only writes, from benchmarks/results/*.json

Fashion-MNIST and CIFAR-10 are downloaded from the Hub, or read from folders of their parquet files:
--fashion-mnist FOLDER, --cifar10 FOLDER.

Each section is one `soflow compare` in runs/. Finished runs are not trained again.
"""

import argparse
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from math import floor, log10
from pathlib import Path
from statistics import mean, stdev
from textwrap import fill

from PIL import Image

from soflow.comparison.bench import bench
from soflow.comparison.cost import CostSummary
from soflow.comparison.page import draw_samples
from soflow.comparison.plots import plots, sheets
from soflow.comparison.record import Comparison
from soflow.comparison.tables import HEUN, how, markdown, name_of, what
from soflow.config.variants import folder_name, read_compared
from soflow.evaluation.tables import markdown_table

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
PICTURES = DOCS / "results"


@dataclass(frozen=True)
class Section:
    """One comparison: its name, its title and the arguments of `soflow compare`."""

    name: str
    title: str
    arguments: str
    page: str = "results"  # the page in docs/
    data: str | None = None  # the option that names a local folder of the data

    @property
    def figures(self) -> Path:
        return HERE / "results" / f"{self.name}.json"


#: The title of the grid of real data.
REAL = "real data"
PEERS = "--objectives soflow,jump_flow,mean_flow,imf,alpha_flow"
IDEAS = "--variants benchmarks/ideas.yaml --rounds 1"
BEST = (
    "--only 'SoFlow, MeanFlow, JumpFlow, weight 1, no direct jumps, fewer jumps with weight 4, "
    "guidance as an input, fewer jumps, QK-norm'"
)
CONFIRMED = "JumpFlow, fewer jumps, QK-norm, guidance as an input"
FEATURES = "evaluate.features=benchmarks/classifiers"
DIGITS = f"digits {FEATURES}/digits-classifier.pt"
FASHION_MNIST = f"fashion_mnist {FEATURES}/fashion_mnist-classifier.pt"
SMALL = "network.width=128 network.depth=4 network.heads=4 train.steps=1500"
CIFAR10 = (
    "images data.source=huggingface data.path=uoft-cs/cifar10 data.shape=[3,16,16] "
    "data.num_classes=10 network.patch=4 "
    "objective.guidance.scale=1.5 optimizer.lr=1e-3 optimizer.warmup=100 ema.decay=0.995 "
    f"train.batch_size=128 {FEATURES}/cifar10-resnet56.pt {SMALL}"
)
SECTIONS = [
    Section(
        "digits-peers",
        "Digits, equal steps",
        f"{DIGITS} {PEERS},shortcut,consistency,flow_matching --heun --out runs/published-digits",
    ),
    Section(
        "fashion-mnist-peers",
        "Fashion-MNIST, equal steps",
        f"{FASHION_MNIST} {PEERS} checkpoint.keep_every=500 --out runs/compare-fashion",
        data="fashion_mnist",
    ),
    Section(
        "cifar10",
        "CIFAR-10 at 16x16 pixels, equal steps",
        f"{CIFAR10} {PEERS} --heun --out runs/compare-cifar10",
        data="cifar10",
    ),
    Section(
        "ideas-digits",
        "On digits",
        f"{DIGITS} train.steps=1000 {IDEAS} --out runs/ideas-digits",
        page="ideas",
    ),
    Section(
        "ideas-fashion-mnist-recipe",
        "On Fashion-MNIST, with the network of the recipe",
        f"{FASHION_MNIST} {IDEAS} --only '{CONFIRMED}' checkpoint.keep_every=500 "
        "--out runs/ideas-fashion-recipe",
        page="ideas",
        data="fashion_mnist",
    ),
    Section(
        "ideas-fashion-mnist",
        "On Fashion-MNIST, with a small network",
        f"{FASHION_MNIST} {SMALL} {IDEAS} {BEST} --out runs/ideas-fashion",
        page="ideas",
        data="fashion_mnist",
    ),
]


def run(section: Section, extra: list[str], seed: int | None = None, names: str = "") -> None:
    """Runs the comparison, or one seed of it, and stores its results and pictures."""
    arguments = shlex.split(section.arguments)
    if seed is not None:
        extra = [*extra, "--seeds", "1", f"train.seed={seed}"]
    partial = (seed is not None or names) and section.figures.is_file()
    kept = read(section.figures) if partial else None
    if names:
        extra = [*extra, "--objectives" if "--objectives" in arguments else "--only", names]
    subprocess.run([sys.executable, "-m", "soflow", "compare", *arguments, *extra], check=True)
    out = Path(arguments[arguments.index("--out") + 1])
    results = read(out / "results.json")
    shown = [
        text for text in results.overrides if not text.startswith(("data.path=", "train.seed="))
    ]
    results = results.model_copy(update={"overrides": shown})
    drawn = draw_samples(results, out)
    new = dict(zip([*results.objectives, REAL], drawn.values(), strict=True))
    if kept is not None:
        if kept.base not in results.objectives:
            results = with_costs(results, kept.base, "--variants" in arguments)
        results = joined(kept, results)
    section.figures.parent.mkdir(exist_ok=True)
    results.write(section.figures)
    PICTURES.mkdir(exist_ok=True)
    plots(results).savefig(PICTURES / f"{section.name}-plots.png", dpi=110)
    first = {name for name, one in results.objectives.items() if seed in (None, one.runs[0].seed)}
    sheet(section, results, {name: new[name] for name in new if name in {*first, REAL}})


def sheet(section: Section, results: Comparison, new: dict[str, Image.Image]) -> None:
    """Keeps the new sample grids, and draws one picture of the kept grids of all objectives."""
    grids = HERE / "results" / "grids" / section.name
    grids.mkdir(parents=True, exist_ok=True)
    for name, grid in new.items():
        grid.save(grids / f"{folder_name(name)}.png")
    titles = {REAL: REAL}
    for name, one in results.objectives.items():
        steps = how(*HEUN) if one.few_step_samplers[0] == "euler" else how("ode", 1)
        titles[name] = f"{name_of(name)}, {steps}"
    shown: dict[str, Image.Image] = {
        titles[name]: Image.open(grids / f"{folder_name(name)}.png")
        for name in [*results.objectives, REAL]
    }
    sheets(shown).savefig(PICTURES / f"{section.name}-samples.png", dpi=110)


def with_costs(results: Comparison, base: str, variants: bool) -> Comparison:
    """Measures the costs of results without the base again, in turn with the base."""
    names = [base, *results.objectives]
    file, only = (HERE / "ideas.yaml", names) if variants else (None, [])
    read = read_compared(results.recipe, names, file, only, results.overrides)
    measured = bench({name: read[name].config for name in names}, rounds=1 if variants else 3)
    objectives = {}
    for name, one in results.objectives.items():
        cost = CostSummary.of(measured[name], measured[base])
        objectives[name] = one.model_copy(update={"cost": cost})
    return results.model_copy(update={"objectives": objectives})


def joined(kept: Comparison, new: Comparison) -> Comparison:
    """The new results with the kept runs that they do not replace.

    The base remains the kept one. A new run replaces the kept run of the same objective and seed.
    If the settings of an objective have changed, all of its kept runs are dropped. The results do
    not contain the defaults of the library: if they have changed, run all seeds again.
    """
    protocol = "recipe overrides budget batch_size metric num reference"
    for key in protocol.split():
        assert getattr(kept, key) == getattr(new, key), f"{key} differs from the kept results"
    objectives = dict(kept.objectives)
    for name, ours in new.objectives.items():
        theirs, runs = kept.objectives.get(name), ours.runs
        if theirs and (theirs.steps, theirs.settings) != (ours.steps, ours.settings):
            print(f"{name}: other settings than those of the kept runs, which are dropped")
        elif theirs:
            again = {run.seed for run in ours.runs}
            runs = [*[run for run in theirs.runs if run.seed not in again], *ours.runs]
        runs = sorted(runs, key=lambda run: run.seed)
        objectives[name] = ours.model_copy(update={"runs": runs})
    seeds = sorted({run.seed for one in objectives.values() for run in one.runs})
    return new.model_copy(update={"base": kept.base, "objectives": objectives, "seeds": seeds})


def read(file: Path) -> Comparison:
    results = Comparison.read(file)
    assert results is not None
    return results


def verdict(results: Comparison) -> str:
    """Names the lowest one-step distance, and tabulates differences of objectives from the base's.

    Only seeds of all objectives count. If there are others, the sentence names those that count.
    """
    seeds = [{run.seed for run in own.runs} for own in results.objectives.values()]
    both = set.intersection(*seeds)
    common = f"For the seeds that all have ({', '.join(map(str, sorted(both)))}): "
    scope = "" if both == set(results.seeds) else common
    one = {
        name: [found for found, run in zip(own.one_step, own.runs, strict=True) if run.seed in both]
        for name, own in results.objectives.items()
    }
    best = min(one, key=lambda name: mean(one[name]))
    ours = one.pop(results.base)
    base = name_of(results.base)
    several = len(ours) > 1
    header = [what(results), f"difference from {base}"]
    if several:
        header.append("in standard deviations")
    rows = [header]
    digits = max(0, 1 - floor(log10(mean(ours))))  # two digits of the base's distance
    for name, theirs in one.items():
        gap = mean(theirs) - mean(ours)
        text = f"{gap:+.{digits}f}"
        cells = [name_of(name), text if float(text) else "0"]
        if several:
            cells.append(f"{abs(gap) / max(stdev(ours), stdev(theirs)):.1f}")
        rows.append(cells)
    if best == results.base:
        first = f"{scope}**{base} has the lowest one-step distance, {mean(ours):.3g}.**"
    else:
        first = (
            f"{scope}**{name_of(best)} has the lowest one-step distance, {mean(one[best]):.3g}. "
            f"The distance of {base} is {mean(ours):.3g}.**"
        )
    if results.variants:  # the table of distances follows, and differences of many rows are noise
        return first
    unit = (
        " The last column uses the larger of the two standard deviations over seeds."
        if several
        else ""
    )
    return f"{first}{unit}\n\n{markdown_table(rows)}"


def uneven(results: Comparison) -> list[str]:
    """A sentence on the seeds of each objective, if not all have the same seeds."""
    groups: dict[str, list[str]] = {}
    for name, one in results.objectives.items():
        seeds = ", ".join(str(run.seed) for run in one.runs)
        groups.setdefault(seeds, []).append(name_of(name))
    *small, largest = sorted(groups, key=lambda seeds: len(groups[seeds]))
    parts = [f"{', '.join(groups[seeds])} ({seeds})" for seeds in small]
    return [f"Seeds: {'; '.join(parts)}; all others ({largest})."] if small else []


def commands(section: Section, results: Comparison) -> list[str]:
    """The commands for the results so far: objectives and seeds may be fewer than planned."""
    names = list(results.objectives)
    arguments = re.sub(r"--objectives \S+", f"--objectives {','.join(names)}", section.arguments)
    arguments = re.sub(r"--only '[^']*'", f"--only '{', '.join(names)}'", arguments)
    seeds, whole = results.seeds, f"soflow compare {arguments}"
    if seeds == [0, 1, 2]:
        return [whole]
    if seeds == list(range(len(seeds))):
        return [f"{whole} --seeds {len(seeds)}"]
    return [f"{whole} --seeds 1 train.seed={seed}" for seed in seeds]


def text_of(section: Section) -> str:
    results = read(section.figures)
    note = HERE / "results" / f"{section.name}.md"
    parts = [
        f"## {section.title}",
        "\n".join(f"    {line}" for line in commands(section, results)),
        verdict(results),
        *uneven(results),
        *([note.read_text().strip()] if note.is_file() else []),
        f"![distances](results/{section.name}-plots.png)",
        markdown(results),
        f"![samples](results/{section.name}-samples.png)",
    ]
    text = "\n\n".join(part.rstrip("\n") for part in parts)
    return "\n\n".join(map(wrapped, text.split("\n\n"))) + "\n"


def wrapped(paragraph: str) -> str:
    """Breaks the lines of a paragraph of prose; leaves tables, commands, lists and pictures."""
    prose = paragraph[:1].isalnum() or paragraph.startswith("**")
    return fill(paragraph, 100, break_on_hyphens=False) if prose else paragraph


def write(page: str) -> None:
    """Writes a page: the introduction, then all sections that have results."""
    there = [one for one in SECTIONS if one.page == page and one.figures.is_file()]
    head = (HERE / "results" / f"{page}-head.md").read_text().strip()
    (DOCS / f"{page}.md").write_text("\n".join([head, "", *map(text_of, there)]))
    print(f"written: docs/{page}.md")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fashion-mnist", help="a local folder of Fashion-MNIST's parquet files")
    parser.add_argument("--cifar10", help="a local folder of CIFAR-10's parquet files")
    parser.add_argument("--write", action="store_true", help="write the pages without training")
    parser.add_argument(
        "--only", choices=[section.name for section in SECTIONS], help="run only this section"
    )
    parser.add_argument(
        "--seed",
        type=int,
        help="run only this seed of the section, and keep the results of other seeds",
    )
    parser.add_argument(
        "--names", default="", help="run only these objectives or variants of the section"
    )
    asked = parser.parse_args()
    if (asked.seed is not None or asked.names) and asked.only is None:
        parser.error("--seed and --names need --only")
    for section in SECTIONS:
        if not asked.write and asked.only in (None, section.name):
            local = section.data and getattr(asked, section.data)
            own = [f"data.path={local}"] if local else []
            run(section, own, asked.seed, asked.names)
    for page in ("results", "ideas"):
        write(page)


if __name__ == "__main__":
    main()
