"""Objectives: what the network is trained for. Importing this package registers all of them."""

from soflow.objectives import consistency, flow_matching, mean_flow, shortcut, soflow
from soflow.objectives.base import OBJECTIVES

__all__ = ["OBJECTIVES", "consistency", "flow_matching", "mean_flow", "shortcut", "soflow"]
