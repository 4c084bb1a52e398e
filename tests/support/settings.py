"""Settings shared by tests."""

#: A DiT that trains in milliseconds.
TINY_DIT = ["network.width=32", "network.depth=1", "network.heads=2", "network.patch=4"]
