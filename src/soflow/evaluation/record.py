"""What an evaluation found: evaluation.json, written and read back by these classes."""

from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from torch import Tensor

from soflow.data.dataset import Scaling
from soflow.solution import FlowModel
from soflow.system.records import Count, Record


def as_unicode(text: Any) -> Any:
    """Text with escapes for what is not Unicode, as in some files' names."""
    if isinstance(text, str):
        return text.encode("utf-8", "backslashreplace").decode()
    return text


Name = Annotated[str, BeforeValidator(as_unicode)]


class Reference(Record):
    """The real data that samples are compared with."""

    dataset: Name
    split: Name = ""
    count: Count  # 0 if a file of statistics does not say
    points: Count = 0  # kept for what compares points, such as precision and recall
    file: Name = ""  # of statistics

    @property
    def name(self) -> str:
        return f"{self.dataset} {self.split}".strip()


class Figures(Record):
    """How a set of samples compares with a reference. Spreads are standard deviations.

    distance: Frechet distance (FID if the features are FID's), or energy distance of coordinates.
    distance_at_real_count: Of as few samples as there are held-out real ones. spatial_distance:
    sFID. kernel_distance: KID. recognized: The fraction of samples classified as their class.
    sliced_wasserstein: Sliced Wasserstein-2 distance. marginals: The Wasserstein-1 distance of each
    column or channel, by name. Both are of vectors, tables and signals, in standard deviations.
    reliable: Whether a Frechet distance rests on more samples, and real ones, than dimensions.
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
    sliced_wasserstein: float | None = None
    marginals: dict[Name, float] | None = None
    reliable: bool = True


class Row(Figures):
    """Samples of one sampler, by one set of weights, in `nfe` network evaluations."""

    weights: str
    sampler: str
    nfe: Count | None  # None for samples that were drawn elsewhere
    spread: dict[str, float] | None = None  # standard deviations over seeds, if there are several
    milliseconds_per_sample: float | None = None


class RealRow(Figures):
    """Held-out real data, scored like samples."""

    dataset: Name
    split: Name
    count: Count
    reference: Reference
    warnings: tuple[Name, ...] = ()


class Machine(Record):
    """Where something was measured."""

    device: str = ""
    processor: str
    threads: Count
    cores: Count | None = None


class FeaturesUsed(Record):
    """The feature network, and what is needed to tell it from another of that name."""

    name: Name
    checksum: str | None = None
    network: str | None = None
    scaling: Scaling | None = None  # that standardizes coordinates
    dimensions: Count = 0


class SampleProtocol(Record):
    """How samples in a file were drawn, as its author describes it: any keys."""

    model_config = ConfigDict(extra="allow")


class GuidanceUsed(Record):
    """The guidance that samples were drawn at; `scale` is None if each had its own."""

    scale: float | None
    start: float
    end: float

    @classmethod
    def of(cls, model: FlowModel, rows: Tensor | None = None) -> "GuidanceUsed | None":
        """What a model draws at, given (omega, start, end), (3,) or (B, 3), or by itself.

        None if its scale was fixed in training.
        """
        if model.guidance is None:
            return None
        used = model.chosen_guidance() if rows is None else rows
        first, *others = used.reshape(-1, 3).unique(dim=0).tolist()
        scale, start, end = (round(value, 6) for value in first)  # float32
        return cls(scale=None if others else scale, start=start, end=end)


class Samples(SampleProtocol):
    """Samples in files, with what their own protocol says."""

    path: Name
    count: Count


class Evaluation(Record):
    """Everything that a figure must be quoted with, and the figures."""

    advice: ClassVar[str] = "run soflow evaluate again"

    checkpoint: Name = ""  # of a run
    samples: Samples | None = None  # in place of a run
    metric: Name
    num: Count
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = (0,)
    labels: str = "none"
    guidance: GuidanceUsed | None = None  # of a run whose scales were drawn in training
    features: FeaturesUsed
    reference: Reference
    wasserstein_points: Count = 0  # of each set; 0 if there are no Wasserstein distances
    settings: dict[str, str] = Field(default_factory=dict)
    warnings: tuple[Name, ...] = ()
    versions: dict[str, str] = Field(default_factory=dict)
    rows: list[Row] = Field(min_length=1)
    real: RealRow | None = None
    diagnostics: dict[str, float] = Field(default_factory=dict)
    machine: Machine

    @model_validator(mode="after")
    def _runs_have_counts(self) -> "Evaluation":
        """Only samples in files have no number of network evaluations."""
        if self.samples is None and any(row.nfe is None for row in self.rows):
            raise ValueError("a row has no nfe")
        return self

    def _repr_html_(self) -> str:
        """The table of figures with its remarks, which a notebook shows."""
        from soflow.evaluation.tables import as_html

        return as_html(self)

    def row(self, sampler: str | None, nfe: int | None) -> Row | None:
        """The first row in `nfe` network evaluations, of one sampler or of any."""
        found = (r for r in self.rows if r.nfe == nfe and sampler in (None, r.sampler))
        return next(found, None)
