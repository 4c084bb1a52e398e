"""Evaluation: features, distances, diagnostics of the solution function, and the report."""
