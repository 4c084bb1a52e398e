"""Training objectives, one module each. Importing this package registers all of them."""

from soflow.objectives import (
    alpha_flow,
    consistency,
    flow_matching,
    imf,
    jump_flow,
    mean_flow,
    shortcut,
    soflow,
)
from soflow.objectives.base import OBJECTIVES

__all__ = [
    "OBJECTIVES",
    "alpha_flow",
    "consistency",
    "flow_matching",
    "imf",
    "jump_flow",
    "mean_flow",
    "shortcut",
    "soflow",
]
