"""The cost of a training step of each variant, relative to a base. Stored in cost.json."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

from pydantic import Field, JsonValue, model_validator
from typing_extensions import Self

from soflow.comparison.bench import bench
from soflow.comparison.measure import SECONDS, Measurement
from soflow.config import Config
from soflow.config.variants import folder_name
from soflow.system.progress import Progress, track
from soflow.system.records import Count, Record

#: Sections of the configuration that affect the cost of a training step.
SECTIONS = {"data", "network", "noising", "objective", "optimizer", "ema", "precision", "compile"}
BASE = "soflow"


class CostSummary(Record):
    """The cost of an objective or variant. Ratios to the base are (minimum, median, maximum)."""

    seconds_per_step: float
    step_ratio: tuple[float, float, float]
    peak_bytes: float
    memory_ratio: tuple[float, float, float]
    flops_per_sample: float
    parameters: Count
    one_step_samples_per_second: float
    rounds: Count

    @classmethod
    def of(cls, measured: Sequence[Measurement], base: Sequence[Measurement]) -> Self:
        """Computes medians over the rounds, and ratios to the base within each round."""

        def middle(name: str) -> float:
            return median(getattr(one, name) for one in measured)

        def spread(name: str) -> tuple[float, float, float]:
            pairs = zip(measured, base, strict=True)
            ratios = [getattr(one, name) / getattr(other, name) for one, other in pairs]
            return min(ratios), median(ratios), max(ratios)

        return cls(
            seconds_per_step=middle("seconds_per_step"),
            step_ratio=spread("seconds_per_step"),
            peak_bytes=middle("peak_bytes"),
            memory_ratio=spread("peak_bytes"),
            flops_per_sample=measured[0].flops_per_sample,
            parameters=measured[0].parameters,
            one_step_samples_per_second=middle("one_step_samples_per_second"),
            rounds=len(measured),
        )


class Cost(Record):
    """Measurements of an objective or variant, and of the base in the same rounds."""

    measured_with: dict[str, JsonValue]
    base_measured_with: dict[str, JsonValue]
    measured: list[Measurement] = Field(min_length=1)
    base_measured: list[Measurement]

    @model_validator(mode="after")
    def in_pairs(self) -> Self:
        """Rejects measurements without a measurement of the base in the same round."""
        if len(self.measured) != len(self.base_measured):
            raise ValueError("measured and base_measured differ in length")
        return self

    @property
    def summary(self) -> CostSummary:
        return CostSummary.of(self.measured, self.base_measured)


class Costs(Record):
    """The content of cost.json."""

    objectives: dict[str, Cost] = Field({})


def settings_of(config: Config) -> dict[str, JsonValue]:
    """The settings that affect the cost of a training step."""
    names = ["batch_size", "accumulate"]
    if config.train.checkpoint_activations:  # only then, so that older cost.json stay valid
        names.append("checkpoint_activations")
    batch = {name: getattr(config.train, name) for name in names}
    return {**config.model_dump(mode="json", include=SECTIONS), **batch}


def base_of(names: Iterable[str]) -> str:
    """The name of the base: SoFlow if it is compared, otherwise the first name."""
    every = list(names)
    return next((name for name in every if folder_name(name) == BASE), every[0])


def costs_of(
    configs: dict[str, Config],
    file: Path,
    rounds: int,
    progress: Progress = track,
    seconds: float = SECONDS,
) -> dict[str, Cost]:
    """The cost of each variant. Reads the file, measures missing variants and adds them to it.

    Variants that were measured in fewer rounds, or with other settings, are measured again.
    """
    base = base_of(configs)
    kept = dict((Costs.read(file) or Costs()).objectives)
    settings = {name: settings_of(config) for name, config in configs.items()}
    missing = [
        name
        for name in configs
        if name not in kept
        or kept[name].measured_with != settings[name]
        or kept[name].base_measured_with != settings[base]
        or len(kept[name].measured) < rounds
    ]
    if missing:
        chosen = {name: configs[name] for name in (base, *missing)}
        measured = bench(chosen, rounds, progress=progress, seconds=seconds)
        for name in missing:
            kept[name] = Cost(
                measured_with=settings[name],
                base_measured_with=settings[base],
                measured=measured[name],
                base_measured=measured[base],
            )
        Costs(objectives=kept).write(file)
    return {name: kept[name] for name in configs}
