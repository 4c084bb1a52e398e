"""Comparing objectives: training them side by side, measuring and estimating what they cost."""

#: What is compared unless the user names others.
OBJECTIVES = ("soflow", "jump_flow", "mean_flow", "shortcut", "consistency", "flow_matching")
