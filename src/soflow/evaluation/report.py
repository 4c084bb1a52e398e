"""The content of templates/report.html: samples, metrics, plots and costs of one or more runs."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from markupsafe import Markup
from torch import Tensor

from soflow.data.dataset import Dataset
from soflow.drawing import class_by_class, sample_many
from soflow.evaluation import plots
from soflow.evaluation.diagnostics import STEPS
from soflow.evaluation.html import duration, image, render
from soflow.evaluation.pairs import PAIRS, ROWS, draw_pairs, paired
from soflow.evaluation.pictures import about, picture
from soflow.evaluation.plots import Curve
from soflow.evaluation.record import Evaluation, Metrics
from soflow.evaluation.sample_plots import clouds, curves, journeys, vectors
from soflow.evaluation.scorer import as_frequent
from soflow.evaluation.tables import remarks, table, title
from soflow.sampling import Sampler
from soflow.solution import FlowModel
from soflow.symbols import Sample

COLUMNS = 10
#: Times s at which f(noise, 1, s) is shown.
JOURNEY = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0]


@dataclass(frozen=True)
class Subject:
    """A run to report."""

    name: str  # name of the run folder
    model: FlowModel
    dataset: Dataset | None
    metrics: Curve
    evaluation: Evaluation | None
    config: str  # the text of config.yaml
    seconds: float  # training time
    device: torch.device
    samplers: tuple[Sampler, ...]
    drawing: tuple[Sampler, int]  # sampler and NFE of the pictures
    class_names: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()  # names of columns or channels
    missing: str = ""  # why the dataset is missing


@dataclass(frozen=True)
class Picture:
    """A picture as a data URI, with a caption and the times below its columns, if any."""

    uri: Markup
    text: str = ""
    times: tuple[str, ...] = ()


def page(subjects: list[Subject]) -> str:
    """Renders the report as HTML."""
    return render(
        "report.html",
        title="soflow: " + ", ".join(subject.name for subject in subjects),
        sections=[section(subject) for subject in subjects],
        comparisons=comparisons(subjects) if len(subjects) > 1 else {},
        diagnostic_steps=STEPS,
        metrics=[one.evaluation.metric for one in subjects if one.evaluation is not None],
    )


def section(subject: Subject) -> dict[str, Any]:
    """The section of one run."""
    jumps = {"renoise", "ode"} <= set(subject.samplers)  # the model can jump to any s
    jumps = jumps and not subject.model.cond_shape
    return {
        "name": subject.name,
        "tiles": tiles(subject),
        "samples": samples(subject),
        "pixels": len(subject.model.shape) == 3,
        "missing": subject.missing,
        "quality": None if subject.evaluation is None else quality(subject.evaluation),
        "journey": journey(subject) if jumps else None,
        "curves": [image(figure) for figure in plots.training(subject.metrics)],
        "surrogate": bool(subject.metrics) and "consistency_mse" in subject.metrics[0],
        "cost": cost(subject),
        "config": subject.config,
    }


def tiles(subject: Subject) -> list[tuple[str, str]]:
    """The most important metrics, shown at the top."""
    evaluation, found = subject.evaluation, []
    if evaluation is not None:
        one, real = evaluation.row(None, 1), evaluation.real
        heun = next((row for row in evaluation.rows if row.sampler == "heun"), None)
        if one is not None and one.recognized is not None:
            text = "of one-step samples recognized as their class"
            found.append((f"{one.recognized:.1%}", text))
        if one is not None:
            small = " (indistinguishable from 0)" if one.distance < 0 else ""
            found.append((f"{one.distance:.3g}", f"{evaluation.metric}, one step{small}"))
        if heun is not None:
            text = f"the same model's ODE, {plots.heun_steps(heun)} Heun steps"
            found.append((f"{heun.distance:.3g}", text))
        if real is not None:
            found.append((f"{real.distance:.3g}", "held-out real data"))
    return [*found, (duration(subject.seconds), "training time")]


def samples(subject: Subject) -> list[Picture]:
    """Pictures of samples, next to real data if available.

    Images have one column per class. Conditional samples take their conditions from the dataset, so
    they need a dataset.
    """
    sampler, nfe = subject.drawing
    how = "in one forward pass" if nfe == 1 else f"with {sampler}, {nfe} network evaluations"
    if subject.model.cond_shape:
        return [] if subject.dataset is None else [pairs(subject, subject.dataset, how)]
    if len(subject.model.shape) == 1:
        return [points(subject, how)]
    classes, names = subject.model.num_classes, subject.columns
    columns = min(classes or COLUMNS, COLUMNS)
    rows = 8 if len(subject.model.shape) == 3 else 4
    labels = class_by_class(rows * columns, columns if classes else 0)
    drawn, real = draw(subject, rows * columns, labels), None
    if subject.dataset is not None:
        real = real_by_class(subject.dataset, columns, rows)
        real = subject.model.decode(real.to(subject.device)).cpu()
    text = f"drawn {how}, uncurated"
    if classes:
        text += f", one column per class{named(subject, columns)}"
    shown = f"{text}. {about(drawn.shape[1:], names)}"
    found = [Picture(image(picture(drawn, columns, names, real)), shown)]
    if real is not None:
        found.append(Picture(image(picture(real, columns, names, real)), "real data"))
    return found


def pairs(subject: Subject, dataset: Dataset, how: str) -> Picture:
    """Conditional samples next to real samples with the same conditions."""
    drawn = draw_pairs(subject.model, dataset, ROWS * PAIRS, subject.drawing, subject.device)
    order = "condition (if it is an image), sample, real image"
    text = f"{order}; samples drawn {how}, uncurated"
    return Picture(image(paired(*drawn, subject.columns)), text)


def points(subject: Subject, how: str) -> Picture:
    """Vectors with real data: next to them for two columns, otherwise in the same plot."""
    classes, real = subject.model.num_classes, None
    labels = class_by_class(4000, classes)
    if subject.dataset is not None and subject.dataset.labels is not None:
        labels = as_frequent(subject.dataset.labels, 4000, classes)
    drawn = draw(subject, 4000, labels)
    if subject.dataset is not None:
        real = subject.dataset.samples(slice(4000)).to(subject.device)
        real = subject.model.decode(real).cpu()
    if drawn.shape[1] != 2:
        return Picture(image(vectors(drawn, subject.columns, real)), f"Samples drawn {how}.")
    both = {f"samples drawn {how}": drawn} | ({} if real is None else {"real data": real})
    return Picture(image(clouds(both, subject.columns)))


def draw(subject: Subject, num: int, labels: Tensor | None) -> Sample:
    return sample_many(subject.model, num, labels, *subject.drawing, seed=0, device=subject.device)


def named(subject: Subject, count: int) -> str:
    """The names of the first classes as ': cat, dog', or '' if the classes are just numbered."""
    names = subject.class_names[:count]
    numbered = all(name == str(number) for number, name in enumerate(names))
    return "" if numbered else f": {', '.join(names)}"


def real_by_class(dataset: Dataset, columns: int, rows: int) -> Tensor:
    """At most `rows` rows of real images, with one column per class for labeled data."""
    labels = dataset.labels
    if labels is None:
        return dataset.samples(slice(rows * columns))
    by_class = [(labels == label).nonzero()[:rows, 0] for label in range(columns)]
    complete = min(map(len, by_class))
    if not complete:  # a class without samples
        return dataset.samples(slice(rows * columns))
    return dataset.samples(torch.stack([indices[:complete] for indices in by_class], 1).flatten())


def quality(evaluation: Evaluation) -> dict[str, Any]:
    """The plot of distance over NFE, the table of all metrics, and the diagnostics."""
    diagnostics = evaluation.diagnostics.items()
    return {
        "text": f"{title(evaluation)}. Lower is better. {remarks(evaluation)}",
        "plot": image(plots.distance_against_nfe(evaluation)),
        "rows": table(evaluation),
        "diagnostics": [[name.replace("_", " "), f"{value:.4f}"] for name, value in diagnostics],
    }


def journey(subject: Subject) -> Picture:
    """f(noise, 1, s) for s from 1 to 0, for one noise and several classes or for many noises."""
    text = "f(noise, 1, s) for s from 1 (noise) to 0 (data). Each s takes one forward pass."
    model = subject.model
    count = 300 if len(model.shape) == 1 else min(subject.model.num_classes or 4, 5)
    noise = torch.randn(count, *model.shape, generator=torch.Generator().manual_seed(1))
    labels = class_by_class(count, model.num_classes)
    if labels is not None:
        labels = labels.to(subject.device)
    if labels is not None and len(model.shape) > 1:
        noise = noise[:1].expand_as(noise)
        names = named(subject, count)
        text += f" All rows start from the same noise, with a different class each{names}."
    noise = noise.to(subject.device)
    with torch.no_grad():
        one = noise.new_ones(count)
        way = [model.decode(model.solution(noise, one, s * one, labels)).cpu() for s in JOURNEY]
        steps = torch.stack(way, dim=1)
    if len(model.shape) == 1:
        return Picture(image(journeys(steps, JOURNEY, subject.columns)), text)
    ticks = tuple(f"{s:g}" for s in JOURNEY)
    every = steps.flatten(0, 1)
    if len(model.shape) == 2:
        figure = curves(every, len(JOURNEY), subject.columns, steps[:, -1], ticks)
        return Picture(image(figure), text)
    return Picture(image(picture(every, len(JOURNEY), subject.columns, steps[:, -1])), text, ticks)


def cost(subject: Subject) -> list[list[str]]:
    """Table rows with the cost of training and sampling."""
    parameters = sum(p.numel() for p in subject.model.net.parameters())  # type: ignore[attr-defined]
    rows = [["parameters", f"{parameters:,}"], ["training", duration(subject.seconds)]]
    step = int(subject.metrics[-1]["step"]) if subject.metrics else 0
    if step:
        rows.append(["steps", f"{step:,}"])
    if step and subject.seconds > 0:
        rows.append(["training speed", f"{step / subject.seconds:,.1f} steps/s"])
    evaluation = subject.evaluation
    if evaluation is not None:
        one, machine = evaluation.row(None, 1), evaluation.machine
        if one is not None and one.milliseconds_per_sample is not None:
            speed = f"{one.milliseconds_per_sample:.3f} ms per sample"
            rows.append(["one-step sampling", speed])
        where = f"{machine.device}, {machine.processor}, {machine.threads} threads"
        versions = ", ".join(f"{name} {number}" for name, number in evaluation.versions.items())
        rows += [["evaluated on", where], ["versions", versions]]
    return rows


def comparisons(subjects: list[Subject]) -> dict[str, list[list[str]]]:
    """One comparison table per protocol: metrics are only comparable within one protocol."""
    by_protocol: dict[str, dict[str, Evaluation]] = {}
    for subject in subjects:
        if subject.evaluation is not None:
            alike = by_protocol.setdefault(protocol_of(subject.evaluation), {})
            alike[subject.name] = subject.evaluation
    return {name: side_by_side(alike) for name, alike in by_protocol.items()}


def side_by_side(evaluations: dict[str, Evaluation]) -> list[list[str]]:
    """Distances, with one row per sampler and one column per run."""
    runs = evaluations.values()

    def distances(rows: Iterable[Metrics | None]) -> list[str]:
        return ["" if row is None else f"{row.distance:.4g}" for row in rows]

    rows = [["sampler", "NFE", *evaluations]]
    drawn = [row for one in runs for row in one.rows]
    for sampler, nfe in dict.fromkeys((row.sampler, row.nfe) for row in drawn):
        rows.append([sampler, str(nfe), *distances(one.row(sampler, nfe) for one in runs)])
    return [*rows, ["real data", "", *distances(one.real for one in runs)]]


def protocol_of(evaluation: Evaluation) -> str:
    """A heading with the settings that comparable metrics share."""
    checksum = evaluation.features.checksum
    features = f", features {checksum}" if checksum else ""
    return f"{title(evaluation)}, {evaluation.rows[0].weights} weights{features}"
