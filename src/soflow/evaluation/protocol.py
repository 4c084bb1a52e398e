"""What figures must be quoted with: features, reference, settings, versions and warnings."""

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

#: How sliced Wasserstein distances are computed.
SLICED = f"{DIRECTIONS} directions or a few more, means over up to {PAIRS} pairs of subsets"


def protocol(scoring: Scoring, count: int) -> dict[str, Any]:
    """The fields of an evaluation of `count` samples that figures must be quoted with."""
    scorer, reference = scoring.scorer, scoring.scorer.reference
    return {
        "metric": scorer.features.metric,
        "num": count,
        "features": describe_features(scorer.features, reference.dimensions),
        "reference": scorer.about.model_copy(update={"points": len(reference.points)}),
        "wasserstein_points": scoring.equal_count(count) if scorer.features.columns else 0,
        "settings": {
            "samples": "rounded to 8 bits" if scorer.gaussian else "as they are",
            **({} if scorer.gaussian else {"points": f"{ENERGY_POINTS} of each set, or all"}),
            **({"sliced wasserstein": SLICED} if scorer.features.columns else {}),
            "precision and recall": f"k = {NEIGHBOURS}",
            "density and coverage": f"k = {DENSITY_NEIGHBOURS}",
            "kernel distance": f"{KERNEL_SUBSETS} subsets of {KERNEL_SUBSET} or all",
            "inception score": f"{SCORE_PARTS} parts or fewer",
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
        f"{fewer:,} {who} are no more than the {scorer.reference.dimensions:,} dimensions of the "
        f"features '{scorer.features.name}': figures marked * are not reliable, do not quote them",
    )
