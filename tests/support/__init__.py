"""Helpers for tests: data, runs, exact solutions, injected faults."""
