"""The registry of networks, and what a network may say of itself.

A network is an `nn.Module` whose constructor takes `shape` (one sample's), `num_classes` (0: no
labels) and, if it wants them, `augment_labels` (how many augmentation labels a sample has). All
other constructor parameters are settings. Class attributes, all optional:

    dimensions: int        how many dimensions a sample must have: 1 for vectors, 3 for images
    takes_labels: bool     whether it takes class labels (default True)
    takes_augment: bool    whether it takes augmentation labels (default False)

A module marked `repeated = True` is one of many alike: it is compiled and sharded on its own.
"""

from torch import nn

from soflow.system.registry import Registry

#: Every network by the name that a configuration gives it.
NETWORKS: Registry[type[nn.Module]] = Registry("network")
