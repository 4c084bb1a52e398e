"""Evaluation: features, distances, diagnostics of the learned map, and the report."""
