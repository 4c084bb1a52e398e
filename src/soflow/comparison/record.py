"""The results of a comparison: results.json, and what each of its runs keeps, as typed records."""

from typing import Literal

from pydantic import Field, JsonValue

from soflow.comparison.cost import CostFigures
from soflow.evaluation.record import Evaluation, Machine, RealRow, Reference, Row
from soflow.sampling import Sampler
from soflow.system.records import Count, Record

Budget = Literal["steps", "time"]


class Point(Record):
    """The distance of a few samples at one step of a training."""

    step: Count
    seconds: float = Field(allow_inf_nan=False)  # of training until then
    distance: float = Field(allow_inf_nan=False)


class Curve(Record):
    """Distances on the way of `num` samples drawn by one sampler."""

    sampler: Sampler
    nfe: Count
    num: Count
    points: list[Point] = Field([])

    @property
    def samples(self) -> tuple[Sampler, int, int]:
        """What tells curves apart."""
        return self.sampler, self.nfe, self.num

    def with_point(self, point: Point) -> "Curve":
        """The curve with one more point; a point of the same step is replaced."""
        points = {one.step: one for one in (*self.points, point)}
        return self.model_copy(update={"points": [points[step] for step in sorted(points)]})


class Curves(Record):
    """curve.json of a run."""

    curves: list[Curve] = Field([])

    def with_point(self, sampler: Sampler, nfe: int, num: int, point: Point) -> "Curves":
        """The curves with one more point in that of these samples, which comes last."""
        curves = {curve.samples: curve for curve in self.curves}
        curve = curves.pop((sampler, nfe, num), Curve(sampler=sampler, nfe=nfe, num=num))
        return Curves(curves=[*curves.values(), curve.with_point(point)])


class RunEvaluation(Evaluation):
    """compared.json of a run: its evaluation, and the seconds that its training took."""

    real: RealRow
    seconds: float = Field(allow_inf_nan=False)


class RunResults(Record):
    """One run in results.json."""

    folder: str
    seed: Count
    seconds: float
    rows: list[Row] = Field(min_length=1)
    diagnostics: dict[str, float] = Field({})
    curves: list[Curve] = Field([])


class ObjectiveResults(Record):
    """All runs of one objective or variant, and what its steps cost."""

    settings: dict[str, JsonValue] = Field({})  # what it changes of the recipe
    steps: Count
    cost: CostFigures
    runs: list[RunResults] = Field(min_length=1)

    @property
    def few_step_samplers(self) -> list[str]:
        """The samplers that were evaluated, without Heun's."""
        samplers = (row.sampler for row in self.runs[0].rows if row.sampler != "heun")
        return list(dict.fromkeys(samplers))

    def rows(self, sampler: str, nfe: int) -> list[Row]:
        """The rows of a sampler, one per seed; empty if the objective has no such sampler."""
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
    """results.json: everything that the figures must be quoted with, and the figures."""

    recipe: str
    overrides: list[str] = Field([])
    budget: Budget
    base: str  # what distances and costs are relative to
    seeds: list[Count]
    batch_size: Count
    metric: str
    num: Count
    reference: Reference
    real: RealRow
    warnings: list[str] = Field([])
    versions: dict[str, str] = Field({})
    machine: Machine
    objectives: dict[str, ObjectiveResults] = Field(min_length=1)  # or variants, by name

    @property
    def variants(self) -> bool:
        """Whether more than objectives with their defaults are compared."""
        return any(
            one.settings not in ({}, {"objective.name": name})
            for name, one in self.objectives.items()
        )

    def batch_size_of(self, name: str) -> int:
        """The samples per step of a variant."""
        own = self.objectives[name].settings.get("train.batch_size")
        return own if isinstance(own, int) else self.batch_size

    def ratios(self, name: str) -> list[float]:
        """One-step distances over the base's of the same seed."""
        base = self.objectives[self.base]
        theirs = dict(zip((run.seed for run in base.runs), base.one_step, strict=True))
        one = self.objectives[name]
        pairs = zip((run.seed for run in one.runs), one.one_step, strict=True)
        return [distance / theirs[seed] for seed, distance in pairs if seed in theirs]
