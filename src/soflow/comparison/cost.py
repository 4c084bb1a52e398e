"""What each method's step costs beside another's, measured once and kept in cost.json."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

from soflow.comparison.measure import Measurement, bench
from soflow.config import Config
from soflow.system.atomic import write_json
from soflow.system.records import damaged, number, read_json

#: What a step's cost depends on.
SECTIONS = {"data", "network", "noising", "objective", "optimizer", "ema", "precision", "compile"}


#: A measurement in cost.json.
MEASURED = {field.name: str if field.name == "device" else number for field in fields(Measurement)}


@dataclass(frozen=True)
class Cost:
    """What a method costs, and what the one it is held against cost in the same rounds."""

    measured: list[Measurement]
    beside: list[Measurement]

    @property
    def step(self) -> float:
        """Seconds a step, the median."""
        return self.middle("seconds_per_step")

    def middle(self, key: str) -> float:
        return median(getattr(one, key) for one in self.measured)

    def ratios(self, key: str = "seconds_per_step") -> list[float]:
        """What it cost in units of the other, a round each."""
        return [
            getattr(one, key) / getattr(other, key)
            for one, other in zip(self.measured, self.beside, strict=True)
        ]

    def figures(self) -> dict[str, Any]:
        """In plain numbers; ratios as least, median, most."""

        def spread(key: str) -> list[float]:
            ratios = self.ratios(key)
            return [min(ratios), median(ratios), max(ratios)]

        return {
            "seconds_per_step": self.step,
            "step_ratio": spread("seconds_per_step"),
            "peak_bytes": self.middle("peak_bytes"),
            "memory_ratio": spread("peak_bytes"),
            "flops_per_sample": self.middle("flops_per_sample"),
            "parameters": self.measured[0].parameters,
            "one_step_samples_per_second": self.middle("one_step_samples_per_second"),
            "rounds": len(self.measured),
        }


def key(config: Config) -> dict[str, Any]:
    """What tells whether a cost was measured of such steps."""
    batch = {"batch_size": config.train.batch_size, "accumulate": config.train.accumulate}
    return {**config.model_dump(mode="json", include=SECTIONS), **batch}


def base_of(names: Mapping[str, Any]) -> str:
    """The method that the others are held against: SoFlow, or the first where it is not among them."""
    return "soflow" if "soflow" in names else next(iter(names))


def measure(
    configs: dict[str, Config],
    file: Path,
    rounds: int,
    counting: Callable[[str, int], AbstractContextManager[Callable[[int], None]]],
) -> dict[str, Cost]:
    """The cost of each method beside the base, from the file or measured now and put there."""
    base = base_of(configs)
    asked = {
        name: {"key": key(config), "base": key(configs[base])} for name, config in configs.items()
    }
    kept = read_json(file, {...: {"measured": [MEASURED], "beside": [MEASURED]}})
    try:
        missing = {
            name: config
            for name, config in configs.items()
            if kept.get(name, {}).get("asked") != asked[name]
        }
        if missing:
            chosen = {base: configs[base], **missing}
            with counting("measuring steps", rounds * len(chosen)) as on_done:
                measured = bench(chosen, rounds, on_done)
            for name in missing:
                ones, others = ([asdict(one) for one in measured[which]] for which in (name, base))
                kept[name] = {"asked": asked[name], "measured": ones, "beside": others}
            write_json(file, kept)
        return {
            name: Cost(
                *(
                    [Measurement(**one) for one in kept[name][which]]
                    for which in ("measured", "beside")
                )
            )
            for name in configs
        }
    except (AttributeError, KeyError, TypeError):
        raise damaged(file) from None
