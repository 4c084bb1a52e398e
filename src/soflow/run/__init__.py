"""A run on disk: the run folder, checkpoints, logs and the lock."""
