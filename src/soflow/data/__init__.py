"""Data: where samples come from, how they are augmented, and which of them make up the batch of step k."""
