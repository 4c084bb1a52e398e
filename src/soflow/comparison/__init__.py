"""Comparison of objectives: train them, evaluate them, and measure or estimate their cost."""

#: Objectives that are compared by default.
OBJECTIVES = (
    "soflow",
    "jump_flow",
    "mean_flow",
    "imf",
    "alpha_flow",
    "shortcut",
    "consistency",
    "flow_matching",
)
