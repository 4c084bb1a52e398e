"""Evaluates models: a row of metrics per sampler and set of weights, and one for held-out data."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from statistics import mean, stdev
from typing import Any, Literal

import torch
from torch import Tensor

from soflow.data.batches import seeded_generator
from soflow.data.dataset import Dataset
from soflow.drawing import LabelDraw, asked_guidance, class_by_class, draw
from soflow.errors import InputError, in_short, require_whole
from soflow.evaluation.diagnostics import diagnose
from soflow.evaluation.protocol import protocol, this_machine, warnings_of
from soflow.evaluation.record import Evaluation, GuidanceUsed, Metrics, RealRow, Row, Samples
from soflow.evaluation.sample_set import SampleSet
from soflow.evaluation.scorer import Scoring
from soflow.evaluation.statistics import Counter, parts_of
from soflow.guidance import numbers
from soflow.sampling import HEUN_STEPS, Sampler, noise_count, sample, times_given
from soflow.solution import FlowModel
from soflow.system.progress import Progress, track

#: Maximum number of points for the diagnostics.
DIAGNOSTIC_POINTS = 500
#: Maximum batch size when sampling is timed.
TIMED_BATCH = 500
#: Maximum number of network evaluations that are timed.
TIMED_STEPS = 8


@dataclass(frozen=True)
class EvaluationSettings:
    """The settings of an evaluation: samplers, numbers of samples, features and reference.

    Attributes:
        nfe: Numbers of network evaluations (NFE) of the few-step samplers. By default, the
            recipe's `evaluate.nfe`.
        times: Times of `renoise` and `ode`, from 1 (noise) to 0 (data). They replace `nfe`. By
            default, evenly spaced.
        samplers: Samplers to evaluate. By default, all that work with the run's objective.
        num: Samples per row and seed. By default (0), the recipe's `evaluate.num`.
        seeds: Seeds to draw samples with. With several seeds, each metric is the mean over the
            seeds, and its spread is the standard deviation over the seeds.
        guidance: Guidance scale, for a run that was trained with random scales. By default, the
            run's `objective.guidance.scale`.
        guidance_interval: Interval (start, end) of t in which guidance acts. By default, (0, 1).
        labels: How labels are chosen, "balanced" or "random". By default, images have balanced
            labels; vectors and signals have labels as frequent as in the reference.
        batch_size: Samples drawn per batch. It does not change the results.
        weights: Weights to evaluate: "ema", "raw" or both.
        features: Name of the features. By default, the recipe's `evaluate.features`.
        reference: Real data to compare with: SOURCE[:SPLIT], a statistics file, or data in Python
            as for `soflow.train`. By default, the training data.
        baseline: Whether to also score held-out real data. By default, True except for a
            statistics file and for latents without another split.
        vae: Autoencoder that decodes latents. By default, the one that encoded them.

    Raises:
        InputError: If a value is invalid.

    Example:
        >>> import soflow
        >>> settings = soflow.EvaluationSettings(nfe=(1, 4), num=5000, seeds=(0, 1, 2))
        >>> settings.weights
        ('ema', 'raw')
    """

    nfe: tuple[int, ...] = ()
    samplers: tuple[Sampler, ...] = ()
    num: int = 0
    seeds: tuple[int, ...] = (0,)
    labels: LabelDraw | None = None
    batch_size: int = 500
    weights: tuple[Literal["ema", "raw"], ...] = ("ema", "raw")
    features: str = ""
    reference: Any = ""
    baseline: bool | None = None
    vae: str = ""
    guidance: float | None = None
    guidance_interval: tuple[float, float] | None = None
    times: Sequence[Any] | None = None

    def __post_init__(self) -> None:
        for name in ("nfe", "samplers", "seeds", "weights"):
            given = getattr(self, name)
            if isinstance(given, str) or not isinstance(given, Sequence):
                raise InputError(f"{name} is {in_short(given)}: it must be a list or a tuple")
        if self.times is not None:
            if self.nfe and self.nfe != (len(self.times) - 1,):
                raise InputError(
                    f"times has {len(self.times)} times, so nfe is {len(self.times) - 1}: "
                    "leave out nfe"
                )
            object.__setattr__(self, "times", times_given(self.times))
            object.__setattr__(self, "nfe", (len(self.times) - 1,))
        if self.guidance is not None and numbers(self.guidance, "guidance").ndim:
            raise InputError("guidance must be one number: all samples use the same scale")
        require_whole(0, num=self.num)
        require_whole(1, batch_size=self.batch_size)
        for count in self.nfe:
            require_whole(1, nfe=count)
        for seed in self.seeds:
            require_whole(0, seeds=seed)
        for name, given, known in (
            ("labels", [self.labels], (None, "balanced", "random")),
            ("weights", self.weights, ("ema", "raw")),
        ):
            for one in given:
                if one not in known:
                    choice = " or ".join(filter(None, known))
                    raise InputError(f"{name} is {in_short(one)}: choose {choice}")


def rows_of(
    samplers: Sequence[Sampler], nfe: Sequence[int], weights: Sequence[str] = ("ema",)
) -> list[tuple[str, Sampler, int]]:
    """The weights, the sampler and the NFE of each row.

    Each set of weights gets one row per few-step sampler and NFE. At NFE 1, `renoise` and `ode`
    give the same samples, so only the first of them gets a row. With `heun`, the first weights get
    a row for the model's own ODE.
    """
    few = [sampler for sampler in samplers if sampler != "heun"]
    same_jump = [sampler for sampler in few if sampler in ("renoise", "ode")][1:]
    rows = [
        (which, sampler, n)
        for which in weights
        for n in nfe
        for sampler in few
        if n > 1 or sampler not in same_jump
    ]
    return rows + ([(weights[0], "heun", 2 * HEUN_STEPS)] if "heun" in samplers else [])


def evaluate(
    models: Mapping[str, FlowModel],
    samplers: Sequence[Sampler],
    scoring: Scoring,
    settings: EvaluationSettings,
    device: torch.device,
    progress: Progress = track,
) -> Evaluation:
    """Evaluates a model.

    Args:
        models: The model with each set of weights, by name: "ema" or "raw".
        samplers: Samplers to evaluate.
        scoring: The scorer and the real data.
        settings: How samples are drawn: `nfe`, `num`, `seeds`, `labels`, `guidance`, `batch_size`.
        device: Device of the models.
        progress: Displays the progress.

    Returns:
        The metrics of each row, with the evaluation protocol.

    Raises:
        InputError: If metrics cannot be computed with these settings.
        RunError: If a sample contains NaN or infinity.
    """
    first, num = next(iter(models.values())), settings.num
    chosen_scale = asked_guidance(first, settings.guidance, settings.guidance_interval)
    used = GuidanceUsed.of(first, chosen_scale)
    if chosen_scale is not None:
        models = {name: model.with_guidance(chosen_scale) for name, model in models.items()}
        first = next(iter(models.values()))
    chosen = rows_of(samplers, settings.nfe, list(models))
    time_of = cache(partial(milliseconds_per_sample, first, settings, device))

    def row(weights: str, sampler: Sampler, nfe: int) -> Row:
        found = []
        for seed in settings.seeds:
            labels, cond, _ = scoring.draw_inputs(settings.labels, num, first, seed)
            times = settings.times if sampler in ("renoise", "ode") else None
            parts = draw(
                models[weights], num, labels, sampler, nfe, seed, settings.batch_size, device,
                cond=cond, times=times,
            )  # fmt: skip
            found.append(metrics(scoring, parts, num, labels, count))
        values = over_seeds(found) | {"milliseconds_per_sample": time_of(sampler, nfe)}
        return Row(weights=weights, sampler=sampler, nfe=nfe, **values)

    with progress("evaluating", work(scoring, [num] * len(chosen) * len(settings.seeds))) as task:
        count = Counter(task)
        rows = [row(*one) for one in chosen]
        real = real_row(scoring, num, count)
    *_, labels_from = scoring.draw_inputs(settings.labels, 1, first)
    points = scoring.points if {"ode", "heun"} <= set(samplers) else None
    return Evaluation(
        rows=rows,
        real=real,
        seeds=tuple(settings.seeds),
        labels=labels_from,
        guidance=used,
        times=settings.times,
        diagnostics={} if points is None else diagnostics(first, points, settings, device),
        machine=this_machine(str(device)),
        **protocol(scoring, num),
    )


def evaluate_sample_set(
    samples: SampleSet, path: str, scoring: Scoring, progress: Progress = track
) -> Evaluation:
    """Evaluates samples that were drawn elsewhere; `path` says where they come from."""
    with progress("evaluating", work(scoring, [samples.count])) as task:
        count = Counter(task)
        found = metrics(scoring, samples.parts(), samples.count, samples.labels, count)
        real = real_row(scoring, samples.count, count)
    how = samples.protocol.model_extra or {}
    return Evaluation(
        samples=Samples.model_validate({**how, "path": path, "count": samples.count}),
        rows=[Row(weights="", sampler="given", nfe=None, **over_seeds([found]))],
        real=real,
        machine=this_machine(),
        **protocol(scoring, samples.count),
    )


def work(scoring: Scoring, counts: list[int]) -> int:
    """Total progress, in samples drawn and compared, for sets of these sizes and the baseline."""
    real = [] if scoring.baseline is None else [len(scoring.baseline.data)]
    return sum(2 * count + len(scoring.scorer.reference.points) for count in counts + real)


def metrics(
    scoring: Scoring, parts: Iterable[Tensor], num: int, labels: Tensor | None, count: Counter
) -> Metrics:
    """Computes the metrics of `num` samples, read in parts (B, ...)."""
    scorer, baseline = scoring.scorer, scoring.baseline
    statistics = scorer.gather(parts, num, count.add)
    found = scorer.metrics(statistics, labels, count.add, scoring.equal_count(num))
    if baseline is None or len(baseline.data) >= num:
        return found
    # A random subset keeps the class frequencies, which matter for tables, vectors and signals.
    by_class = None if scorer.features.columns else labels
    alike = scorer.distance_of_some(statistics, len(baseline.data), by_class)
    return found.model_copy(update={"distance_at_real_count": alike})


def real_row(scoring: Scoring, num: int, count: Counter) -> RealRow | None:
    """Scores the held-out real data, if any, next to a set of `num` samples."""
    if scoring.baseline is None:
        return None
    data, scorer = scoring.baseline.data, scoring.baseline.scorer
    statistics = scorer.gather(parts_of(data), len(data), count.add)
    return RealRow(
        dataset=data.name,
        split=data.split,
        count=len(data),
        reference=scorer.about,
        warnings=warnings_of(scorer, len(data)),
        **dict(scorer.metrics(statistics, data.labels, count.add, scoring.equal_count(num))),
    )


def over_seeds(found: Sequence[Metrics]) -> dict[str, Any]:
    """The fields of a row. For several seeds, these are means, with spreads over the seeds."""
    values = dict(found[0])
    if len(found) == 1:
        return values
    if columns := values["marginals"]:
        every = [one.marginals or {} for one in found]
        values["marginals"] = {name: mean(one[name] for one in every) for name in columns}
    spread = {
        name: stdev(getattr(one, name) for one in found)
        for name, value in values.items()
        if isinstance(value, float) and "spread" not in name
    }
    for name, deviation in spread.items():
        values[name] = mean(getattr(one, name) for one in found)
        if f"{name}_spread" in values:
            values[f"{name}_spread"] = deviation
    return {**values, "spread": spread}


@torch.no_grad()
def milliseconds_per_sample(
    model: FlowModel, settings: EvaluationSettings, device: torch.device, sampler: Sampler, nfe: int
) -> float:
    """Times one batch, extrapolated from at most TIMED_STEPS evaluations, without drawing noise."""
    batch, timed = min(settings.num, settings.batch_size, TIMED_BATCH), min(nfe, TIMED_STEPS)
    shape = (noise_count(sampler, timed), batch, *model.shape)
    generator = seeded_generator(0, "timing", 0, device)
    noises = torch.randn(*shape, generator=generator, device=device)
    classes = class_by_class(batch, model.num_classes)
    labels = None if classes is None else classes.to(device)
    if model.cond_shape:
        model = model.conditioned(torch.zeros(batch, *model.cond_shape, device=device))
    noises.sum().item()  # waits for the device
    start = time.perf_counter()
    sample(model, noises, labels, sampler, timed).sum().item()
    return 1000 * (time.perf_counter() - start) / batch * nfe / timed


def diagnostics(
    model: FlowModel, dataset: Dataset, settings: EvaluationSettings, device: torch.device
) -> dict[str, float]:
    """Diagnostics at points between data and noise, with t uniform on (0, 1)."""
    generator = seeded_generator(settings.seeds[0], "diagnostics", 0, torch.device("cpu"))
    if model.cond_shape and model.cond_shape != dataset.cond_shape:
        return {}  # the data lack the conditions that the model needs
    dataset = dataset if model.cond_shape else replace(dataset, cond=None)
    data, cond = dataset.pairs(slice(min(settings.num, DIAGNOSTIC_POINTS)))
    labels, null = None, model.num_classes
    if dataset.labels is not None and null:
        labels = dataset.labels[: len(data)]
        known = (labels >= 0) & (labels < null)
        if model.null_trained:
            labels = labels.where(known, null)
        else:  # skips unlabeled data
            data, labels = data[known], labels[known]
            cond = None if cond is None else cond[known]
    if null and not model.null_trained and (labels is None or not len(labels)):
        return {}  # the model needs labels, and the data have none
    labels = None if labels is None else labels.to(device)
    noise = torch.randn(data.shape, generator=generator)
    t = torch.rand(len(data), generator=generator)
    point = model.noising.sample(*(x.to(device) for x in (data, noise, t)))
    cond = None if cond is None else cond.to(device)
    return asdict(diagnose(model, point, labels, generator, settings.batch_size, cond))
