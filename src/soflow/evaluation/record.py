"""The result of an evaluation. These classes write evaluation.json and read it back."""

from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from torch import Tensor

from soflow.data.dataset import Scaling
from soflow.solution import FlowModel
from soflow.system.records import Count, Record


def as_unicode(text: Any) -> Any:
    """Escapes characters that are not valid Unicode, which some file names contain."""
    if isinstance(text, str):
        return text.encode("utf-8", "backslashreplace").decode()
    return text


Name = Annotated[str, BeforeValidator(as_unicode)]


class Reference(Record):
    """The real data that samples are compared with."""

    dataset: Name
    split: Name = ""
    count: Count  # 0 if unknown: some statistics files do not store it
    points: Count = 0  # points kept for metrics such as precision and recall
    file: Name = ""  # name of the statistics file

    @property
    def name(self) -> str:
        return f"{self.dataset} {self.split}".strip()


class Metrics(Record):
    """Metrics of a set of samples compared with a reference. Spreads are standard deviations.

    Attributes:
        distance: Frechet distance (FID with the features `inception`), or energy distance of
            coordinates.
        distance_at_real_count: The same distance from the number of held-out real samples.
        spatial_distance: Frechet distance of spatial features, sFID with `inception`.
        kernel_distance: Kernel distance, KID with `inception`.
        inception_score: Inception score, for features with logits.
        precision: Fraction of samples near a real sample.
        recall: Fraction of real samples near a sample.
        density: How densely real samples surround the samples.
        coverage: Fraction of real samples with a sample nearby.
        recognized: Fraction of samples that are classified as their own class.
        sliced_wasserstein: Sliced Wasserstein-2 distance of vectors, tables or signals. In standard
            deviations if the data are standardized.
        marginals: Wasserstein-1 distance of each column or channel, by name, in the same units.
        reliable: Whether samples and real samples both outnumber the feature dimensions, as a
            Frechet distance requires.
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


class Row(Metrics):
    """Metrics of samples from one sampler and one set of weights, with `nfe` evaluations."""

    weights: str
    sampler: str
    nfe: Count | None  # None for samples drawn elsewhere
    spread: dict[str, float] | None = None  # standard deviations over several seeds
    milliseconds_per_sample: float | None = None


class RealRow(Metrics):
    """Metrics of held-out real data, scored like samples."""

    dataset: Name
    split: Name
    count: Count
    reference: Reference
    warnings: tuple[Name, ...] = ()


class Machine(Record):
    """The machine of a measurement or an evaluation."""

    device: str = ""
    processor: str
    threads: Count
    cores: Count | None = None


class FeaturesUsed(Record):
    """The feature network. A checksum distinguishes networks with the same name."""

    name: Name
    checksum: str | None = None
    network: str | None = None
    scaling: Scaling | None = None  # standardizes coordinates
    dimensions: Count = 0


class SampleProtocol(Record):
    """How samples in a file were drawn, as its author describes it. Any keys are allowed."""

    model_config = ConfigDict(extra="allow")


class GuidanceUsed(Record):
    """The guidance that samples were drawn with. `scale` is None if it differs between samples."""

    scale: float | None
    start: float
    end: float

    @classmethod
    def of(cls, model: FlowModel, rows: Tensor | None = None) -> "GuidanceUsed | None":
        """The guidance of a model, or None if its scale was fixed during training.

        Args:
            model: The model.
            rows: Chosen (omega, start, end), of shape (3,) or (B, 3). By default, the model's own.
        """
        if model.guidance is None:
            return None
        used = model.chosen_guidance() if rows is None else rows
        first, *others = used.reshape(-1, 3).unique(dim=0).tolist()
        scale, start, end = (round(value, 6) for value in first)  # the values are float32
        return cls(scale=None if others else scale, start=start, end=end)


class Samples(SampleProtocol):
    """Samples in files, with the protocol stored next to them."""

    path: Name
    count: Count


class Evaluation(Record):
    """The metrics of an evaluation with their protocol."""

    advice: ClassVar[str] = "run soflow evaluate again"

    checkpoint: Name = ""  # empty for samples in files
    samples: Samples | None = None  # None for a run
    metric: Name
    num: Count
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = (0,)
    labels: str = "none"
    guidance: GuidanceUsed | None = None  # None if the scale was fixed during training
    times: tuple[float, ...] | None = None  # of renoise and ode; None if evenly spaced
    features: FeaturesUsed
    reference: Reference
    wasserstein_points: Count = 0  # samples per set; 0 without Wasserstein distances
    settings: dict[str, str] = Field(default_factory=dict)
    warnings: tuple[Name, ...] = ()
    versions: dict[str, str] = Field(default_factory=dict)
    rows: list[Row] = Field(min_length=1)
    real: RealRow | None = None
    diagnostics: dict[str, float] = Field(default_factory=dict)
    machine: Machine

    @model_validator(mode="after")
    def _runs_have_counts(self) -> "Evaluation":
        """Only rows of samples in files may lack the NFE."""
        if self.samples is None and any(row.nfe is None for row in self.rows):
            raise ValueError("a row has no nfe")
        return self

    def __str__(self) -> str:
        """The table of metrics with remarks, in Markdown."""
        from soflow.evaluation.tables import markdown

        return markdown(self)

    def _repr_html_(self) -> str:
        """The table of metrics with remarks, for notebooks."""
        from soflow.evaluation.tables import as_html

        return as_html(self)

    def row(self, sampler: str | None, nfe: int | None) -> Row | None:
        """The first row with this NFE and this sampler (None: any sampler), or None."""
        found = (r for r in self.rows if r.nfe == nfe and sampler in (None, r.sampler))
        return next(found, None)
