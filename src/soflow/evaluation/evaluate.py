"""Evaluates a model: a row of figures for each weights and sampler, with what real data reach beside them."""

import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

from soflow import __version__
from soflow.data.batches import seeded_generator
from soflow.data.dataset import Dataset
from soflow.evaluation.diagnostics import diagnose
from soflow.evaluation.metrics import (
    DENSITY_NEIGHBOURS,
    KERNEL_SUBSET,
    KERNEL_SUBSETS,
    NEIGHBOURS,
    SCORE_PARTS,
)
from soflow.evaluation.references import describe
from soflow.evaluation.statistics import (
    ENERGY_POINTS,
    Baseline,
    Figures,
    Scorer,
    Statistics,
    parts_of,
)
from soflow.sampling import (
    LabelDraw,
    Sampler,
    class_by_class,
    draw,
    draw_classes,
    noise_count,
    sample,
)
from soflow.solution import FlowModel

#: Heun steps of the model's own velocity, the yardstick for few-step samples; two network evaluations each.
HEUN_STEPS = 32
#: Points that the diagnostics look at.
DIAGNOSTIC_POINTS = 500
#: Samples drawn at once where the time of drawing is measured, where there are as many.
TIMED_BATCH = 500


@dataclass(frozen=True)
class Protocol:
    """How samples are drawn: `num` of them for each seed, at each number of evaluations, their classes balanced or at
    random, `batch` at once, which changes no figure.
    """

    nfe: Sequence[int]
    num: int
    seeds: Sequence[int] = (0,)
    labels: LabelDraw = "balanced"
    batch: int = 500


def rows_of(
    samplers: Sequence[Sampler], nfe: Sequence[int], weights: Sequence[str] = ("ema",)
) -> list[tuple[str, Sampler, int]]:
    """What is evaluated: of each weights each few-step sampler at each number of evaluations; and the model's own ODE, of
    the first weights alone, if it has one. In one step renoise and ode are the same.
    """
    few: list[Sampler] = [sampler for sampler in samplers if sampler != "heun"]
    rows = [
        (which, sampler, n)
        for which in weights
        for n in nfe
        for sampler in (few[:1] if n == 1 else few)
    ]
    return rows + ([(weights[0], "heun", 2 * HEUN_STEPS)] if "heun" in samplers else [])


def evaluate(
    models: Mapping[str, FlowModel],
    samplers: Sequence[Sampler],
    scorer: Scorer,
    baseline: Baseline | None,
    protocol: Protocol,
    device: torch.device,
    on_progress: Callable[[int], None] = lambda done: None,
    points: Dataset | None = None,
) -> dict[str, Any]:
    """Everything evaluation.json holds of the model's quality.

    models: by the name of their weights, "ema" or "raw". samplers: those that mean something for what the model learned.
    baseline: real samples, which say what a distance of real data is; None leaves them out.
    points: data as the model sees them, which may be latents, for the diagnostics; None leaves those out. `on_progress`
    hears how much is done of `work`. Raises InputError for settings that cannot give a figure, RunError for samples that are
    no numbers.
    """
    progress = Progressing(on_progress)
    first = next(iter(models.values()))
    costs: dict[tuple[Sampler, int], float] = {}

    def row(weights: str, method: Sampler, n: int) -> dict[str, Any]:
        found, alike = [], []
        for seed in protocol.seeds:
            labels = draw_classes(protocol.labels, protocol.num, first.num_classes, seed)
            parts = draw(
                models[weights], protocol.num, labels, method, n, seed, protocol.batch, device
            )
            drawn = progress.gather(scorer, parts, protocol.num)
            found.append(scorer.figures(drawn, labels, progress.add))
            if baseline is not None and len(baseline.data) < protocol.num:
                alike.append(scorer.distance_of_some(drawn, len(baseline.data), labels))
        if (method, n) not in costs:
            costs[method, n] = milliseconds_per_sample(
                first, method, n, device, min(protocol.num, protocol.batch, TIMED_BATCH)
            )
        return {
            "weights": weights,
            "sampler": method,
            "nfe": n,
            **over_seeds(found),
            "distance_at_real_count": mean(alike) if alike else None,
            "milliseconds_per_sample": costs[method, n],
        }

    rows = [row(*chosen) for chosen in rows_of(samplers, protocol.nfe, list(models))]
    solved = points is not None and {"ode", "heun"} <= set(samplers)
    count = min(protocol.num, DIAGNOSTIC_POINTS)
    return {
        **about(scorer, protocol.num),
        "seeds": list(protocol.seeds),
        "labels": protocol.labels if first.num_classes else "none",
        "rows": rows,
        "real": None if baseline is None else real_row(baseline, progress),
        "diagnostics": diagnostics(first, points, count, protocol, device)
        if solved and points
        else {},
        "machine": {
            "device": str(device),
            "processor": platform.machine(),
            "threads": torch.get_num_threads(),
        },
    }


def evaluate_samples(
    scorer: Scorer,
    parts: Iterable[Tensor],
    count: int,
    labels: Tensor | None,
    baseline: Baseline | None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """The same of samples that are there already."""
    progress = Progressing(on_progress)
    drawn = progress.gather(scorer, parts, count)
    few = len(baseline.data) if baseline is not None else count
    row = {
        **over_seeds([scorer.figures(drawn, labels, progress.add)]),
        "distance_at_real_count": scorer.distance_of_some(drawn, few, labels)
        if few < count
        else None,
    }
    return {
        **about(scorer, count),
        "rows": [{"weights": "", "sampler": "given", "nfe": None, **row}],
        "real": None if baseline is None else real_row(baseline, progress),
        "diagnostics": {},
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
    }


class Progressing:
    """Adds up what is done by everything that an evaluation does in turn."""

    def __init__(self, on_progress: Callable[[int], None]) -> None:
        self.on_progress = on_progress
        self.done = 0

    def add(self, rows: int) -> None:
        self.done += rows
        self.on_progress(self.done)

    def gather(self, scorer: Scorer, parts: Iterable[Tensor], count: int) -> Statistics:
        before = self.done
        statistics = scorer.gather(parts, count, lambda done: self.on_progress(before + done))
        self.done = before + count
        return statistics


def work(scorer: Scorer, counts: Sequence[int]) -> int:
    """How much there is to do for sets of so many samples: each is drawn, and its neighbourhoods are looked at."""
    return sum(count + (count + len(scorer.reference.points)) for count in counts)


def real_row(baseline: Baseline, progress: Progressing) -> dict[str, Any]:
    """The figures of real samples."""
    data, scorer = baseline.data, baseline.scorer
    found = scorer.figures(
        progress.gather(scorer, parts_of(data), len(data)), data.labels, progress.add
    )
    return {
        "dataset": data.name,
        "split": data.split,
        "count": len(data),
        "reference": scorer.about,
        "warnings": warnings_of(scorer, len(data)),
        **asdict(found),
    }


def over_seeds(found: Sequence[Figures]) -> dict[str, Any]:
    """Means over seeds; of several seeds the spreads are standard deviations over them."""
    if len(found) == 1:
        return {**asdict(found[0]), "spread": None}
    values = [asdict(figures) for figures in found]
    names = [
        name
        for name, value in values[0].items()
        if value is not None and "spread" not in name and name != "reliable"
    ]
    spread = {name: stdev(one[name] for one in values) for name in names}
    return {
        **values[0],
        **{name: mean(one[name] for one in values) for name in names},
        **{f"{name}_spread": spread[name] for name in names if f"{name}_spread" in values[0]},
        "spread": spread,
    }


def about(scorer: Scorer, count: int) -> dict[str, Any]:
    """The protocol: what a figure must be told with, so that it can be traced."""
    return {
        "metric": scorer.features.metric,
        "num": count,
        "features": {**describe(scorer.features), "dimensions": scorer.reference.dimensions},
        "reference": {**scorer.about, "points": len(scorer.reference.points)},
        "settings": {
            "samples": "rounded to 8 bits" if scorer.gaussian else "as they are",
            **({} if scorer.gaussian else {"points": f"{ENERGY_POINTS} of each set, or all"}),
            "precision and recall": f"k = {NEIGHBOURS}",
            "density and coverage": f"k = {DENSITY_NEIGHBOURS}",
            "kernel distance": f"{KERNEL_SUBSETS} subsets of {KERNEL_SUBSET} or all",
            "inception score": f"{SCORE_PARTS} parts or fewer",
        },
        "warnings": warnings_of(scorer, count),
        "versions": {"soflow": __version__}
        | {name: version(name) for name in ("torch", "torchmetrics", "numpy")}
        | {"python": platform.python_version()},
    }


def warnings_of(scorer: Scorer, count: int) -> list[str]:
    if scorer.reliable(count):
        return []
    fewer, who = min((count, "samples"), (scorer.reference.count or count, "real samples"))
    return [
        f"{fewer:,} {who} are no more than the {scorer.reference.dimensions:,} dimensions of the features "
        f"'{scorer.features.name}': figures marked * are not reliable, and not to be quoted"
    ]


@torch.no_grad()
def milliseconds_per_sample(
    model: FlowModel, method: Sampler, nfe: int, device: torch.device, batch: int
) -> float:
    """The time of a sampler, without that of its noise, after two network evaluations to warm up."""
    noises = torch.randn(noise_count(method, nfe), batch, *model.shape, device=device)
    labels = class_by_class(batch, model.num_classes)
    labels = None if labels is None else labels.to(device)
    for count in (min(nfe, 2), nfe):
        start = time.perf_counter()
        noise = noises[: noise_count(method, count)]
        sample(model, noise, labels, method, count).sum().item()  # waits for the device
        seconds = time.perf_counter() - start
    return 1000 * seconds / batch


def diagnostics(
    model: FlowModel, dataset: Dataset, count: int, protocol: Protocol, device: torch.device
) -> dict[str, float]:
    """Jumps against velocities, at points of the path between held-out data and noise, t even on (0, 1)."""
    generator = seeded_generator(protocol.seeds[0], "diagnostics", 0, torch.device("cpu"))
    data = dataset.samples(slice(count))
    labels = (
        dataset.labels[: len(data)].to(device)
        if dataset.labels is not None and model.num_classes
        else None
    )
    noise = torch.randn(data.shape, generator=generator)
    t = torch.rand(len(data), generator=generator)
    point = model.noising.sample(*(x.to(device) for x in (data, noise, t)))
    return asdict(diagnose(model, point, labels, generator, protocol.batch))
