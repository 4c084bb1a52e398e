"""Files, processes and progress: what has nothing to do with flows."""
