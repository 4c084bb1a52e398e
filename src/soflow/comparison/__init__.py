"""Comparing objectives: training them side by side, measuring and estimating what they cost."""
