"""What an evaluation found: evaluation.json, written and read back by these classes."""

from pydantic import Field

from soflow.system.records import Count, Record


class Reference(Record):
    """The real data that samples are compared with."""

    dataset: str
    split: str = ""
    count: Count  # 0 if a file of statistics does not say
    points: Count = 0  # kept for what compares points, such as precision and recall
    file: str = ""


class Figures(Record):
    """How a set of samples compares with a reference; None is what does not apply.

    distance: Frechet distance (FID if the features are FID's), or energy distance of coordinates.
    spatial_distance: sFID. kernel_distance: KID. recognized: the share of samples that the
    features' classifier takes for their class. reliable: False if a Frechet distance rests on no
    more samples, or real ones, than there are dimensions. Spreads are standard deviations.
    """

    distance: float = Field(allow_inf_nan=False)
    distance_spread: float | None = None
    distance_at_real_count: float | None = None
    spatial_distance: float | None = None
    kernel_distance: float | None = None
    kernel_distance_spread: float | None = None
    inception_score: float | None = None
    inception_score_spread: float | None = None
    precision: float | None = None
    recall: float | None = None
    density: float | None = None
    coverage: float | None = None
    recognized: float | None = None
    reliable: bool = True


class Row(Figures):
    """Samples of one sampler, by one set of weights, in `nfe` network evaluations."""

    weights: str
    sampler: str
    nfe: Count | None
    spread: dict[str, float] | None = None  # standard deviations over seeds, if there are several
    milliseconds_per_sample: float | None = None


class RealRow(Figures):
    """Held-out real data, scored like samples."""

    dataset: str
    split: str
    count: Count
    reference: Reference
    warnings: list[str] = []


class Machine(Record):
    """Where something was measured."""

    device: str = ""
    processor: str
    threads: Count
    cores: Count | None = None


class FeaturesUsed(Record):
    """The feature network, and what is needed to tell it from another of that name."""

    name: str
    checksum: str | None = None
    dimensions: Count = 0
    weights: str | None = None


class Evaluation(Record):
    """Everything that a figure must be quoted with, and the figures."""

    checkpoint: str = ""  # of a run
    metric: str
    num: Count
    seeds: list[Count] = [0]
    labels: str = "none"
    features: FeaturesUsed
    reference: Reference
    settings: dict[str, str] = {}
    warnings: list[str] = []
    versions: dict[str, str] = {}
    rows: list[Row] = Field(min_length=1)
    real: RealRow | None = None
    diagnostics: dict[str, float] = {}
    machine: Machine
