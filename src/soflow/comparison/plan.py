"""The planned runs of a comparison, and their files."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from soflow.comparison.cost import Cost, base_of
from soflow.comparison.record import Budget, Comparison, Curves, RunEvaluation
from soflow.config import Config
from soflow.config.schema import EvaluateConfig
from soflow.config.variants import folder_name
from soflow.data.dataset import DataRecord, Dataset
from soflow.errors import InputError, RunError
from soflow.run.checkpoint import checkpoints
from soflow.run.folder import RunFolder
from soflow.run.history import read_history
from soflow.run.resume import plain, require_same_data, require_same_settings
from soflow.sampling import Sampler

#: Number of points of a curve.
POINTS = 8


@dataclass(frozen=True)
class Planned:
    """One run of a comparison."""

    name: str
    config: Config
    folder: RunFolder

    @property
    def seed(self) -> int:
        return self.config.train.seed

    @property
    def evaluation_file(self) -> Path:
        return self.folder.path / "compared.json"

    @property
    def curves_file(self) -> Path:
        return self.folder.path / "curve.json"

    def is_finished(self, heun: bool) -> bool:
        """Whether this run is trained and evaluated, including Heun steps if requested."""
        found = RunEvaluation.read(self.evaluation_file) if self.folder.config.is_file() else None
        if found is None:
            return False
        needed = "heun" in evaluated_samplers(self.config, heun)
        return not needed or any(row.sampler == "heun" for row in found.rows)

    def read_evaluation(self) -> RunEvaluation:
        """The evaluation of a finished run."""
        found = RunEvaluation.read(self.evaluation_file)
        if found is None:
            raise RunError(f"{self.evaluation_file} is missing: run the same command again")
        return found

    def read_curves(self) -> Curves:
        """The curves so far."""
        return Curves.read(self.curves_file) or Curves()


def evaluated_samplers(config: Config, heun: bool) -> tuple[Sampler, ...]:
    """The samplers to evaluate. Heun, which is slow, only on request or if there are no jumps."""
    if heun or config.samplers[0] == "euler":
        return config.samplers
    return tuple(sampler for sampler in config.samplers if sampler != "heun")


def plan(
    configs: dict[str, Config],
    seeds: int,
    budget: Budget,
    out: Path,
    costs: dict[str, Cost] | None = None,
) -> Iterator[Planned]:
    """Yields all runs, seed by seed, so that an interrupted comparison has complete seeds.

    With the budget "time", the number of steps of a new run follows from the cost ratio. Existing
    runs in `out` keep their steps. Without costs, new runs that need them are skipped.
    """
    base = base_of(configs)
    for seed in range(seeds):
        for name, config in configs.items():
            seed_of_run = config.train.seed + seed
            folder = RunFolder(out / f"{folder_name(name)}-seed-{seed_of_run}")
            steps = config.train.steps
            if budget == "time" and name != base:
                if folder.config.is_file():
                    steps = folder.read_config().train.steps
                elif costs is not None:
                    steps = max(1, round(steps / costs[name].summary.step_ratio[1]))
                else:
                    continue
            train = {"steps": steps, "seed": seed_of_run, "sample_every": ceil(steps / POINTS)}
            nfe = {"nfe": tuple(sorted({1, *config.evaluate.nfe}))}
            changed = {
                "train": config.train.model_copy(update=train),
                "evaluate": config.evaluate.model_copy(update=nfe),
            }
            yield Planned(name, config.model_copy(update=changed), folder)


def require_base(settings: dict[str, dict[str, Any]], base: str, out: Path) -> None:
    """Raises InputError if the runs cannot all get the training time of the base."""
    if base not in settings:
        raise InputError(
            f"budget=time uses the training time of {base}: add {base} to the comparison"
        )
    for name, own in settings.items():
        if "train.steps" in own:
            raise InputError(
                f"{name} sets train.steps, but with budget=time the time of {base} decides: "
                "remove train.steps"
            )
    there = Comparison.read(out / "results.json")
    same = there is None or folder_name(there.base) == folder_name(base)
    if there is not None and not (there.budget == "time" and same):
        equal = "equal steps" if there.budget == "steps" else f"the training time of {there.base}"
        raise InputError(
            f"the runs in {out} have {equal}, not the training time of {base}: choose another "
            "folder with --out"
        )


def require_same_as_begun(
    configs: dict[str, Config], dataset: Dataset, seeds: int, budget: Budget, out: Path
) -> None:
    """Raises InputError if an existing run in `out` has other settings or other data."""
    for run in plan(configs, seeds, budget, out):
        if run.folder.config.is_file() and checkpoints(run.folder.checkpoints):
            started = run.folder.read_config()
            require_same_settings(started, run.config, run.folder)
            if (data := DataRecord.read(run.folder.data)) is not None:
                require_same_data(data, dataset.describe(), run.folder)
            if changes := read_history(run.folder.history):
                raise InputError(
                    f"{run.folder.path}: {changes[-1].key} was changed after step "
                    f"{changes[-1].step} of this run: move the run away to train it again, or "
                    "choose another folder with --out"
                )
            for key in EvaluateConfig.model_fields:
                old, new = (getattr(one.evaluate, key) for one in (started, run.config))
                if old != new:
                    raise InputError(
                        f"{run.folder.path} has evaluate.{key}={plain(old)}, not {plain(new)}: use "
                        "the same settings, or choose another folder with --out"
                    )
