"""The comparisons that ship: docs/results.md and its pictures.

    python benchmarks/results.py --fashion-mnist FOLDER    trains (hours on a CPU), then writes
    python benchmarks/results.py --write                   writes from benchmarks/results/*.json

Every section is one `soflow compare` in runs/; finished runs are not trained again.
"""

import argparse
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from soflow.comparison.record import Comparison
from soflow.comparison.tables import markdown, name_of

HERE = Path(__file__).parent
PAGE, PICTURES = HERE.parent / "docs" / "results.md", HERE.parent / "docs" / "results"


@dataclass(frozen=True)
class Section:
    """One comparison: its name, its title and the arguments of its command."""

    name: str
    title: str
    arguments: str

    @property
    def figures(self) -> Path:
        return HERE / "results" / f"{self.name}.json"


SECTIONS = [
    Section("digits-steps", "Digits, equal steps", "digits --heun --out runs/compare-digits"),
    Section(
        "digits-time",
        "Digits, equal time",
        "digits --objectives soflow,mean_flow,shortcut,consistency --budget time --heun "
        "--out runs/compare-digits-time",
    ),
    Section(
        "fashion-mnist",
        "Fashion-MNIST",
        "fashion_mnist --objectives soflow,mean_flow --seeds 1 --heun --out runs/compare-fashion",
    ),
]


def run(section: Section, extra: list[str]) -> None:
    """Runs the comparison, and keeps its figures and pictures."""
    arguments = shlex.split(section.arguments)
    subprocess.run([sys.executable, "-m", "soflow", "compare", *arguments, *extra], check=True)
    out = Path(arguments[arguments.index("--out") + 1])
    results = read(out / "results.json")
    shown = [text for text in results.overrides if not text.startswith("data.path=")]
    section.figures.parent.mkdir(exist_ok=True)
    results.model_copy(update={"overrides": shown}).write(section.figures)
    PICTURES.mkdir(exist_ok=True)
    for picture in ("plots", "samples"):
        shutil.copyfile(out / f"{picture}.png", PICTURES / f"{section.name}-{picture}.png")


def read(file: Path) -> Comparison:
    results = Comparison.read(file)
    assert results is not None
    return results


def verdict(results: Comparison) -> str:
    """The base's one-step distance against every other's, in units of the spread over seeds."""
    one = {name: objective.one_step for name, objective in results.objectives.items()}
    ours = one.pop(results.base)
    told = []
    for name, theirs in one.items():
        gap = mean(theirs) - mean(ours)
        text = f"{'below' if gap > 0 else 'above'} {name_of(name)}'s by {abs(gap):.2g}"
        if len(ours) > 1:
            spread = max(stdev(ours), stdev(theirs))
            text += f" ({abs(gap) / spread:.1f} times the larger standard deviation)"
        told.append(text)
    return f"{name_of(results.base)}'s one-step distance, {mean(ours):.3g}, is {'; '.join(told)}."


def text_of(section: Section) -> str:
    results = read(section.figures)
    note = HERE / "results" / f"{section.name}.md"
    parts = [
        f"## {section.title}",
        f"    soflow compare {section.arguments}",
        f"**{verdict(results)}**",
        *([note.read_text().strip()] if note.is_file() else []),
        f"![distances](results/{section.name}-plots.png)",
        markdown(results),
        f"![samples](results/{section.name}-samples.png)",
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--fashion-mnist", help="a local folder of its parquet files (default: from the Hub)"
    )
    parser.add_argument("--write", action="store_true", help="train nothing")
    parser.add_argument("--only", help="only this section")
    asked = parser.parse_args()
    for section in SECTIONS:
        if not asked.write and asked.only in (None, section.name):
            local = section.name == "fashion-mnist" and asked.fashion_mnist
            run(section, [f"data.path={asked.fashion_mnist}"] if local else [])
    if asked.only and asked.only not in {section.name for section in SECTIONS}:
        names = ", ".join(section.name for section in SECTIONS)
        parser.error(f"--only {asked.only}: the sections are {names}")
    there = [section for section in SECTIONS if section.figures.is_file()]
    head = (HERE / "results" / "head.md").read_text().strip()
    PAGE.write_text("\n".join([head, "", *map(text_of, there)]))
    print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
