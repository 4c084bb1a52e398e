"""The evaluation protocol, to be reported with metrics: features, reference, settings, versions."""

import platform
from importlib.metadata import version
from typing import Any

import torch

from soflow import __version__
from soflow.evaluation.metrics import (
    DENSITY_NEIGHBOURS,
    KERNEL_SUBSET,
    KERNEL_SUBSETS,
    NEIGHBOURS,
    SCORE_PARTS,
)
from soflow.evaluation.record import Machine
from soflow.evaluation.reference_files import describe_features
from soflow.evaluation.scorer import Scorer, Scoring
from soflow.evaluation.statistics import ENERGY_POINTS
from soflow.evaluation.wasserstein import DIRECTIONS, PAIRS

#: Description of the sliced Wasserstein distance.
SLICED = f"at least {DIRECTIONS} directions, mean over at most {PAIRS} pairs of subsets"


def protocol(scoring: Scoring, count: int) -> dict[str, Any]:
    """The protocol fields of an evaluation of `count` samples."""
    scorer, reference = scoring.scorer, scoring.scorer.reference
    return {
        "metric": scorer.features.metric,
        "num": count,
        "features": describe_features(scorer.features, reference.dimensions),
        "reference": scorer.about.model_copy(update={"points": len(reference.points)}),
        "wasserstein_points": scoring.equal_count(count) if scorer.features.columns else 0,
        "settings": {
            "samples": "rounded to 8 bits" if scorer.gaussian else "not rounded",
            **({} if scorer.gaussian else {"points": f"at most {ENERGY_POINTS} of each set"}),
            **({"sliced wasserstein": SLICED} if scorer.features.columns else {}),
            "precision and recall": f"k = {NEIGHBOURS}",
            "density and coverage": f"k = {DENSITY_NEIGHBOURS}",
            "kernel distance": f"{KERNEL_SUBSETS} subsets of at most {KERNEL_SUBSET}",
            "inception score": f"at most {SCORE_PARTS} splits",
        },
        "warnings": warnings_of(scorer, count),
        "versions": {
            "soflow": __version__,
            **{name: version(name) for name in ("torch", "torchmetrics", "numpy")},
            "python": platform.python_version(),
        },
    }


def this_machine(device: str = "") -> Machine:
    return Machine(device=device, processor=platform.machine(), threads=torch.get_num_threads())


def warnings_of(scorer: Scorer, count: int) -> tuple[str, ...]:
    if scorer.reliable(count):
        return ()
    fewer, who = min((count, "samples"), (scorer.reference.count or count, "real samples"))
    return (
        f"{fewer:,} {who} are too few for the {scorer.reference.dimensions:,} dimensions of the "
        f"features '{scorer.features.name}': metrics marked * are unreliable, do not report them",
    )
