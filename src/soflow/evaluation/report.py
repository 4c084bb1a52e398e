"""One self-contained HTML page about one or more runs: what they draw, how good it is, and what it cost."""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from soflow.data.dataset import Dataset
from soflow.evaluation import pictures
from soflow.evaluation import plots as figures
from soflow.evaluation.tables import reading_aid, table, title
from soflow.sampling import Sampler, sample_many
from soflow.solution import FlowModel
from soflow.symbols import Sample

COLUMNS = 10
CONSISTENCY = (
    "The consistency loss, a surrogate, has no meaning as a value; what is drawn is the squared difference quotient. It "
    "does not go to zero: the direction of a single sample's path varies even at the best of maps."
)
DIAGNOSTICS = (
    "<p>Does the learned map solve the flow it claims to solve? Root mean square differences: df/ds against the velocity; "
    "two jumps against one; one jump against 64 Heun steps.</p>"
)
NOT_FID = (
    "Distances here are not FID: that name belongs to one network's features under one protocol."
)
#: Times at which one noise is shown on its way along f(noise, 1, s).
JOURNEY = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0]


@dataclass(frozen=True)
class Subject:
    """What the report needs of a run. `evaluation` is evaluation.json, or None where there was no evaluation yet;
    `samplers` are those of the method, `drawing` the sampler and its network evaluations for pictures.
    """

    name: str
    model: FlowModel
    dataset: Dataset
    metrics: list[dict[str, Any]]
    evaluation: dict[str, Any] | None
    config: str
    seconds: float
    device: torch.device
    samplers: tuple[Sampler, ...]
    drawing: tuple[Sampler, int]
    class_names: tuple[str, ...] = ()


def render(subjects: list[Subject]) -> str:
    """The whole page."""
    heading = "soflow: " + ", ".join(subject.name for subject in subjects)
    style = (files("soflow.evaluation") / "report.css").read_text()
    body = "".join(section(subject) for subject in subjects)
    if len(subjects) > 1:
        body = comparison(subjects) + body
    metrics = [
        subject.evaluation["metric"] for subject in subjects if subject.evaluation is not None
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(heading)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{style}</style></head><body><main>{body}'
        f"<footer>Made by soflow. {NOT_FID if 'FID' not in metrics else ''}</footer></main></body></html>"
    )


def section(subject: Subject) -> str:
    """One run: headline figures, samples, distances, the journey of a noise, losses, settings, cost."""
    parts = [f"<h1>{escape(subject.name)}</h1>", headline(subject), samples(subject)]
    if subject.evaluation is None:
        parts.append(
            f"<p>No distances yet: run <code>soflow evaluate {escape(subject.name)}</code> and report again.</p>"
        )
    else:
        parts.append(quality(subject.evaluation))
    if {"renoise", "ode"} <= set(subject.samplers):  # a map to every s
        parts.append(journey(subject))
    if subject.metrics:
        note = CONSISTENCY if "consistency_mse" in subject.metrics[0] else ""
        parts.append(
            f"<h2>Training</h2><p>Means between two log lines. {note}</p>"
            + embed(figures.losses(subject.metrics))
        )
        told = dict.fromkeys(name for line in subject.metrics for name in line if is_distance(name))
        parts.extend(embed(figures.distance_in_training(subject.metrics, name)) for name in told)
    parts.append(cost(subject))
    parts.append(
        f"<h2>Settings</h2><details><summary>config.yaml</summary><pre>{escape(subject.config)}</pre></details>"
    )
    return "".join(parts)


def is_distance(name: str) -> bool:
    """Whether a logged value is of the evaluations during training."""
    return name in ("FID", "energy distance") or name.startswith("FD-")


def headline(subject: Subject) -> str:
    """The few figures to look at first."""
    evaluation, tiles = subject.evaluation, []
    if evaluation is not None:
        one = next((row for row in evaluation["rows"] if row["nfe"] == 1), None)
        heun = next((row for row in evaluation["rows"] if row["sampler"] == "heun"), None)
        if one is not None:
            if one.get("recognized") is not None:
                tiles.append(
                    (f"{one['recognized']:.1%}", "of one-step samples recognized as their class")
                )
            tiles.append((f"{one['distance']:.3g}", f"{evaluation['metric']}, one step"))
        if heun is not None:
            tiles.append(
                (f"{heun['distance']:.3g}", f"the same model's ODE, {heun['nfe'] // 2} Heun steps")
            )
        if evaluation["real"] is not None:
            tiles.append((f"{evaluation['real']['distance']:.3g}", "held-out real data"))
    tiles.append((minutes(subject.seconds), "of training"))
    return (
        "<div class=tiles>"
        + "".join(f"<div><b>{escape(a)}</b>{escape(b)}</div>" for a, b in tiles)
        + "</div>"
    )


def samples(subject: Subject) -> str:
    """One-step samples beside real data: class by class for images, as clouds of points for vectors."""
    if len(subject.model.shape) == 1:
        drawn = draw(subject, 4000, None)
        clouds = {
            f"samples drawn {in_words(subject)}": drawn,
            "real data": subject.dataset.samples(slice(4000)),
        }
        return "<h2>Samples</h2>" + embed(figures.clouds(clouds))
    classes = subject.model.num_classes
    columns = min(classes or COLUMNS, COLUMNS)
    labels = torch.arange(8 * columns) % columns if classes else None
    drawn = draw(subject, 8 * columns, labels)
    real = subject.model.decode(
        real_by_class(subject.dataset, columns, rows=8).to(subject.device)
    ).cpu()
    return (
        "<h2>Samples</h2><div class=pair><figure>"
        + picture(drawn, columns)
        + f"<figcaption>drawn {in_words(subject)}, unselected"
        + (f", a class a column{escape(named(subject, columns))}" if classes else "")
        + "</figcaption></figure><figure>"
        + picture(real, columns)
        + "<figcaption>real data</figcaption></figure></div>"
    )


def named(subject: Subject, count: int) -> str:
    """': cat, dog' of the first classes; nothing where their names are but their numbers."""
    names = subject.class_names[:count]
    return (
        ""
        if all(name == str(number) for number, name in enumerate(names))
        else f": {', '.join(names)}"
    )


def real_by_class(dataset: Dataset, columns: int, rows: int) -> Tensor:
    """Real images, a class a column where there are classes, up to `rows` of them: (rows * columns, ...)."""
    if dataset.labels is None:
        return dataset.samples(slice(rows * columns))
    by_class = [
        dataset.samples((dataset.labels == label).nonzero()[:rows, 0]) for label in range(columns)
    ]
    complete = min(len(images) for images in by_class)
    return torch.stack([images[:complete] for images in by_class], dim=1).flatten(0, 1)


def quality(evaluation: dict[str, Any]) -> str:
    """Distance against network evaluations, the table of all figures, and the diagnostics."""
    header, *rows = table(evaluation)
    head = "".join(f"<th>{escape(name)}" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}" for cell in row) for row in rows)
    diagnostics = "".join(
        f"<tr><td>{escape(name.replace('_', ' '))}<td>{value:.4f}"
        for name, value in evaluation["diagnostics"].items()
    )
    return (
        f"<h2>Quality</h2><p>{escape(title(evaluation))}; smaller is better. {escape(reading_aid(evaluation))}</p>"
        + embed(figures.distance_against_nfe(evaluation))
        + f"<table><tr>{head}{body}"
        + "</table>"
        + (DIAGNOSTICS + f"<table>{diagnostics}</table>" if diagnostics else "")
    )


def journey(subject: Subject) -> str:
    """Noise carried along f(noise, 1, s) as s goes from 1 to 0: each picture is one network evaluation.

    With classes it is one noise, on its way to several of them; vectors show many at once.
    """
    text = "<h2>One noise on its way</h2><p>f(noise, 1, s) for s from 1 (noise) to 0 (data): each is one forward pass"
    model, vectors = subject.model, len(subject.model.shape) == 1
    count = 300 if vectors else min(subject.model.num_classes or 4, 5)
    noise = torch.randn(count, *model.shape, generator=torch.Generator().manual_seed(1))
    labels = None
    if model.num_classes:
        labels = torch.arange(count, device=subject.device) % model.num_classes
        noise = noise[:1].expand_as(noise)
        text += f". The rows start from the same noise and differ in the class alone{escape(named(subject, count))}"
    text, noise = f"{text}.</p>", noise.to(subject.device)
    with torch.no_grad():
        one = noise.new_ones(count)
        way = [model.decode(model.solution(noise, one, s * one, labels)).cpu() for s in JOURNEY]
        steps = torch.stack(way, dim=1)
    if vectors:
        return text + embed(figures.journeys(steps))
    captions = "".join(f"<span>{s:g}</span>" for s in JOURNEY)
    return (
        f"{text}<figure class=journey>{picture(steps.flatten(0, 1), len(JOURNEY))}"
        f"<figcaption class=ticks>{captions}</figcaption></figure>"
    )


def cost(subject: Subject) -> str:
    """What training and sampling took."""
    parameters = sum(p.numel() for p in subject.model.net.parameters())  # type: ignore[attr-defined]
    rows = [("parameters", f"{parameters:,}"), ("training", minutes(subject.seconds))]
    if subject.metrics:
        last = subject.metrics[-1]
        rows.append(("steps", f"{last['step']:,}"))
        if subject.seconds > 0:
            rows.append(("training speed", f"{last['step'] / subject.seconds:,.1f} steps/s"))
    if subject.evaluation is not None:
        one = next((row for row in subject.evaluation["rows"] if row["nfe"] == 1), None)
        machine, versions = subject.evaluation["machine"], subject.evaluation["versions"]
        if one is not None:
            rows.append(("one-step sampling", f"{one['milliseconds_per_sample']:.3f} ms a sample"))
        rows.append(
            (
                "evaluated on",
                f"{machine['device']}, {machine['processor']}, {machine['threads']} threads",
            )
        )
        rows.append(
            ("versions", ", ".join(f"{name} {number}" for name, number in versions.items()))
        )
    return (
        "<h2>Cost</h2><table>"
        + "".join(f"<tr><td>{escape(a)}<td>{escape(b)}" for a, b in rows)
        + "</table>"
    )


def comparison(subjects: list[Subject]) -> str:
    """The runs side by side: a table for each metric, since distances of different metrics cannot be compared."""
    evaluated = [
        (subject.name, subject.evaluation) for subject in subjects if subject.evaluation is not None
    ]
    parts = ["<h1>Side by side</h1>"]
    for protocol in dict.fromkeys(protocol_of(evaluation) for _, evaluation in evaluated):
        columns = [
            (name, evaluation)
            for name, evaluation in evaluated
            if protocol_of(evaluation) == protocol
        ]
        samplers = dict.fromkeys(
            (row["sampler"], row["nfe"]) for _, evaluation in columns for row in evaluation["rows"]
        )
        head = "".join(f"<th>{escape(name)}" for name, _ in columns)
        body = ""
        for sampler, nfe in samplers:
            body += f"<tr><td>{escape(sampler)}<td>{nfe}"
            for _, evaluation in columns:
                row = next(
                    (
                        row
                        for row in evaluation["rows"]
                        if (row["sampler"], row["nfe"]) == (sampler, nfe)
                    ),
                    None,
                )
                body += "<td>" if row is None else f"<td>{row['distance']:.4g}"
        reached = [evaluation["real"] for _, evaluation in columns]
        real = "".join("<td>" if row is None else f"<td>{row['distance']:.4g}" for row in reached)
        parts.append(
            f"<h2>{escape(protocol)}</h2><table><tr><th>sampler<th>NFE{head}{body}<tr><td>real data<td>{real}</table>"
        )
    return "".join(parts)


def protocol_of(evaluation: dict[str, Any]) -> str:
    """What figures must share to stand side by side, in words."""
    checksum = evaluation["features"].get("checksum")
    features = f", features {checksum}" if checksum else ""
    return f"{title(evaluation)}, {evaluation['rows'][0]['weights']} weights{features}"


def draw(subject: Subject, num: int, labels: Tensor | None) -> Sample:
    return sample_many(subject.model, num, labels, *subject.drawing, seed=0, device=subject.device)


def in_words(subject: Subject) -> str:
    """How its pictures were drawn."""
    sampler, nfe = subject.drawing
    return "in one forward pass" if nfe == 1 else f"by {sampler} in {nfe} network evaluations"


def minutes(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.1f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


def picture(images: Tensor, columns: int) -> str:
    """Images inline, as a grid."""
    sheet = pictures.picture(images, columns)
    return inline(lambda stream: sheet.save(stream, format="png"), f"{len(images)} images")


def embed(figure: Figure) -> str:
    """A plot inline."""
    return f"<figure class=plot>{inline(lambda stream: figure.savefig(stream, format='png', dpi=160), 'plot')}</figure>"


def inline(write: Callable[[io.BytesIO], None], text: str) -> str:
    stream = io.BytesIO()
    write(stream)
    data = base64.b64encode(stream.getvalue()).decode()
    return f'<img alt="{escape(text)}" src="data:image/png;base64,{data}">'
