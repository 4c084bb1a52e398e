"""Typed records of a comparison: results.json, and the files in each of its run folders."""

from typing import Literal

from pydantic import Field, JsonValue

from soflow.comparison.cost import CostSummary
from soflow.evaluation.record import Evaluation, Machine, RealRow, Reference, Row
from soflow.sampling import Sampler
from soflow.system.records import Count, Record

Budget = Literal["steps", "time"]


class Point(Record):
    """The distance of a few samples at one training step."""

    step: Count
    seconds: float = Field(allow_inf_nan=False)  # training time so far
    distance: float = Field(allow_inf_nan=False)


class Curve(Record):
    """Distances of `num` samples from one sampler during training."""

    sampler: Sampler
    nfe: Count
    num: Count
    points: list[Point] = Field([])

    @property
    def samples(self) -> tuple[Sampler, int, int]:
        """The sampler, NFE and number of samples, which identify the curve."""
        return self.sampler, self.nfe, self.num

    def with_point(self, point: Point) -> "Curve":
        """The curve with one more point, which replaces a point at the same step."""
        points = {one.step: one for one in (*self.points, point)}
        return self.model_copy(update={"points": [points[step] for step in sorted(points)]})


class Curves(Record):
    """The content of curve.json in a run folder."""

    curves: list[Curve] = Field([])

    def with_point(self, sampler: Sampler, nfe: int, num: int, point: Point) -> "Curves":
        """The curves with one more point. The curve with the new point becomes the last one."""
        curves = {curve.samples: curve for curve in self.curves}
        curve = curves.pop((sampler, nfe, num), Curve(sampler=sampler, nfe=nfe, num=num))
        return Curves(curves=[*curves.values(), curve.with_point(point)])


class RunEvaluation(Evaluation):
    """The content of compared.json in a run folder: the evaluation and the training time."""

    real: RealRow
    seconds: float = Field(allow_inf_nan=False)


class RunResults(Record):
    """The results of one run in results.json."""

    folder: str
    seed: Count
    seconds: float
    rows: list[Row] = Field(min_length=1)
    diagnostics: dict[str, float] = Field({})
    curves: list[Curve] = Field([])


class ObjectiveResults(Record):
    """The runs of one objective or variant, and the cost of its training steps."""

    settings: dict[str, JsonValue] = Field({})  # settings that differ from the recipe
    steps: Count
    cost: CostSummary
    runs: list[RunResults] = Field(min_length=1)

    @property
    def few_step_samplers(self) -> list[str]:
        """The evaluated samplers, without Heun."""
        samplers = (row.sampler for row in self.runs[0].rows if row.sampler != "heun")
        return list(dict.fromkeys(samplers))

    def rows(self, sampler: str, nfe: int) -> list[Row]:
        """The rows of a sampler, one per seed. Empty if this sampler was not evaluated."""
        asked = (sampler, nfe)
        return [row for run in self.runs for row in run.rows if (row.sampler, row.nfe) == asked]

    def distances(self, sampler: str, nfe: int) -> list[float]:
        """The distances of a sampler, one per seed."""
        return [row.distance for row in self.rows(sampler, nfe)]

    @property
    def one_step(self) -> list[float]:
        """The one-step distances, one per seed."""
        return self.distances(self.few_step_samplers[0], 1)


class Comparison(Record):
    """The content of results.json: the results of a comparison with their protocol."""

    recipe: str
    overrides: list[str] = Field([])
    budget: Budget
    base: str  # name of the variant that ratios refer to
    seeds: list[Count]
    batch_size: Count
    metric: str
    num: Count
    reference: Reference
    real: RealRow
    warnings: list[str] = Field([])
    versions: dict[str, str] = Field({})
    machine: Machine
    objectives: dict[str, ObjectiveResults] = Field(min_length=1)  # objectives or variants by name

    def __str__(self) -> str:
        """All tables in Markdown."""
        from soflow.comparison.tables import markdown

        return markdown(self)

    def _repr_html_(self) -> str:
        """The table of distances, for notebooks."""
        from soflow.comparison.tables import as_html

        return as_html(self)

    @property
    def variants(self) -> bool:
        """Whether variants are compared, not just objectives with default settings."""
        return any(
            one.settings not in ({}, {"objective.name": name})
            for name, one in self.objectives.items()
        )

    def batch_size_of(self, name: str) -> int:
        """The batch size of a variant."""
        own = self.objectives[name].settings.get("train.batch_size")
        return own if isinstance(own, int) else self.batch_size

    def ratios(self, name: str) -> list[float]:
        """One-step distances divided by those of the base with the same seed."""
        base = self.objectives[self.base]
        theirs = dict(zip((run.seed for run in base.runs), base.one_step, strict=True))
        one = self.objectives[name]
        pairs = zip((run.seed for run in one.runs), one.one_step, strict=True)
        return [distance / theirs[seed] for seed, distance in pairs if seed in theirs]
