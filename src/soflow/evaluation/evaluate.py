"""Evaluates a model: one row of figures a sampler, with what real data reaches beside it."""

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from soflow.data.batches import seeded_generator
from soflow.data.dataset import Dataset
from soflow.errors import InputError
from soflow.evaluation.diagnostics import diagnose
from soflow.evaluation.features import Classifier, Features
from soflow.evaluation.metrics import Moments, energy_distance, frechet_distance, recognized
from soflow.sampling import Method, class_by_class, noise_count, sample, sample_many
from soflow.solution import FlowModel

#: Heun steps of the model's own velocity, the yardstick for few-step samples; two network evaluations each.
HEUN_STEPS = 32
#: Points that the diagnostics look at, and that an energy distance is worked out on.
DIAGNOSTIC_POINTS = 500
ENERGY_POINTS = 4000
#: Samples drawn at once where the time of drawing is measured, where there are as many.
TIMED_BATCH = 500


@dataclass(frozen=True)
class Row:
    """The figures of one sampler.

    `recognized` is the share of samples recognized as their class, where there are any. `distance_at_real_count` is that of
    only as many samples as there are held-out real ones: a small set's distance reads high, so this is the one to hold
    against theirs.
    """

    sampler: str
    nfe: int
    distance: float
    distance_at_real_count: float
    recognized: float | None
    milliseconds_per_sample: float


class Judge:
    """Compares samples with a reference set by some features.

    A classifier's features are compared by the Frechet distance of their Gaussians. Coordinates, whose distribution is
    anything but Gaussian, by the energy distance of the first ENERGY_POINTS points.
    """

    def __init__(self, features: Features, reference: Dataset) -> None:
        self.features = features
        self.reference = reference
        self.classifier = features if isinstance(features, Classifier) else None
        self.most = ENERGY_POINTS if self.classifier is None else None
        if self.classifier is None:
            self.metric = f"Energy distance ({features.name}, unbiased)"
        else:
            self.metric = f"Frechet distance ({features.name} features)"
        with torch.no_grad():
            self.reference_features = features(reference.samples(slice(self.most)))

    @torch.no_grad()
    def __call__(self, samples: Tensor, labels: Tensor | None) -> tuple[float, float | None]:
        """The distance of samples (N, ...) to the reference, and the share of them recognized as their labels (N,)."""
        features = self.features(samples[: self.most])
        if self.classifier is None:
            return energy_distance(features, self.reference_features), None
        distance = frechet_distance(Moments.of(features), Moments.of(self.reference_features))
        share = None if labels is None else recognized(self.classifier.logits(features), labels)
        return distance, share

    def describe(self, dataset: Dataset) -> dict[str, Any]:
        """Which real samples, and how many of them are compared."""
        return {"dataset": dataset.name, "split": dataset.split, "count": min(len(dataset), self.most or len(dataset))}


def rows_of(samplers: Sequence[Method], nfe: Sequence[int]) -> list[tuple[Method, int]]:
    """What is evaluated: each few-step sampler at each number of evaluations, and the model's own ODE if it has one.

    In one step renoise and ode are the same.
    """
    few: list[Method] = [sampler for sampler in samplers if sampler != "heun"]
    own: list[tuple[Method, int]] = [("heun", 2 * HEUN_STEPS)] if "heun" in samplers else []
    return [(sampler, n) for n in nfe for sampler in (few[:1] if n == 1 else few)] + own


def evaluate(
    model: FlowModel,
    samplers: Sequence[Method],
    judge: Judge,
    held_out: Dataset,
    nfe: Sequence[int],
    num: int,
    seed: int,
    device: torch.device,
    on_progress: Callable[[int], None] = lambda done: None,
    points: Dataset | None = None,
) -> dict[str, Any]:
    """Everything evaluation.json holds of the model's quality.

    samplers: those that mean something for what the model learned. held_out: real samples, not in the judge's reference,
    that say what a distance of real data is. points: data as the model sees them, which may be latents, for the
    diagnostics; None leaves those out. num: samples drawn for each sampler, class by class in turn. `on_progress`
    hears how many are drawn of those of all samplers. Raises InputError for settings that cannot give a figure.
    """
    if num < 2:
        raise InputError(f"the number of samples is {num}: a distance needs 2 or more")
    labels = class_by_class(num, model.num_classes)

    def row(index: int, method: Method, n: int) -> Row:
        def on_batch(done: int) -> None:
            on_progress(index * num + done)

        samples = sample_many(model, num, labels, method, n, seed, device=device, on_batch=on_batch)
        distance, share = judge(samples, labels)
        few = slice(len(held_out))
        distance_of_few, _ = judge(samples[few], None if labels is None else labels[few])
        return Row(method, n, distance, distance_of_few, share, milliseconds_per_sample(model, method, n, device, min(num, TIMED_BATCH)))

    rows = [row(index, method, n) for index, (method, n) in enumerate(rows_of(samplers, nfe))]
    real_distance, real_recognized = judge(held_out.samples(), held_out.labels)
    return {
        "metric": judge.metric,
        "num": min(num, judge.most or num),
        "seed": seed,
        "labels": "each class in turn" if labels is not None else "none",
        "reference": judge.describe(judge.reference),
        "rows": [asdict(row) for row in rows],
        "real": {**judge.describe(held_out), "distance": real_distance, "recognized": real_recognized},
        "diagnostics": diagnostics(model, points, min(num, DIAGNOSTIC_POINTS), seed, device)
        if points is not None and {"ode", "heun"} <= set(samplers)
        else {},
        "versions": {name: version(name) for name in ("soflow", "torch", "numpy")} | {"python": platform.python_version()},
        "machine": {"device": str(device), "processor": platform.machine(), "threads": torch.get_num_threads()},
    }


@torch.no_grad()
def milliseconds_per_sample(model: FlowModel, method: Method, nfe: int, device: torch.device, batch: int) -> float:
    """What a sampler takes once its noise is there; the second of two batches, so warmed up."""
    noises = torch.randn(noise_count(method, nfe), batch, *model.shape, device=device)
    labels = class_by_class(batch, model.num_classes)
    labels = None if labels is None else labels.to(device)
    for _ in range(2):
        start = time.perf_counter()
        sample(model, noises, labels, method, nfe).sum().item()  # waits for the device
        seconds = time.perf_counter() - start
    return 1000 * seconds / batch


def diagnostics(model: FlowModel, dataset: Dataset, count: int, seed: int, device: torch.device) -> dict[str, float]:
    """Jumps against velocities, at points of the path between held-out data and noise, t even on (0, 1)."""
    generator = seeded_generator(seed, "diagnostics", 0, torch.device("cpu"))
    data = dataset.samples(slice(count))
    labels = dataset.labels[: len(data)].to(device) if dataset.labels is not None and model.num_classes else None
    noise = torch.randn(data.shape, generator=generator)
    t = torch.rand(len(data), generator=generator)
    point = model.path.sample(*(x.to(device) for x in (data, noise, t)))
    return asdict(diagnose(model, point, labels, generator))


def table(results: dict[str, Any]) -> list[list[str]]:
    """The figures for people, header first: each beside what held-out real data reaches; ms are milliseconds a sample.

    Where there are fewer real samples than drawn ones, the distance of as few drawn ones stands there, too.
    """
    real = results["real"]
    rows = [["sampler", "NFE", "distance", f"first {real['count']}", f"real {real['count']}", "recognized", "real", "ms"]]
    for row in results["rows"]:
        distances = [f"{x:.4g}" for x in (row["distance"], row["distance_at_real_count"], real["distance"])]
        shares = ["" if x is None else f"{x:.3f}" for x in (row["recognized"], real["recognized"])]
        rows.append([row["sampler"], str(row["nfe"]), *distances, *shares, f"{row['milliseconds_per_sample']:.3f}"])
    silent = {3} if real["count"] >= results["num"] else set()
    silent |= {5, 6} if real["recognized"] is None else set()
    return [[cell for i, cell in enumerate(row) if i not in silent] for row in rows]


def reading_aid(results: dict[str, Any]) -> str:
    """What stands beside the figures, in a sentence or two."""
    real = results["real"]
    text = f"Beside each figure: {real['count']:,} held-out real samples of {real['dataset']} ({real['split']} split). "
    if real["count"] < results["num"]:
        text += f"So small a set reads high: hold it against the distance of the first {real['count']:,} drawn. "
    return text + "ms: milliseconds a sample."
