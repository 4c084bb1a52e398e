"""Views of a module that replace some submodules and share everything else."""

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn


def with_submodules(root: nn.Module, replaced: Mapping[str, nn.Module]) -> Any:
    """A view of a module with some submodules replaced. `root` is not changed."""
    views = {"": view_of(root)}
    for name, module in replaced.items():
        *above, last = name.split(".")
        path, parent = "", views[""]
        for part in above:
            path = f"{path}.{part}"
            if path not in views:
                views[path] = view_of(parent.get_submodule(part))
                parent._modules[part] = views[path]
            parent = views[path]
        parent._modules[last] = module
    return views[""]


def view_of(module: nn.Module) -> nn.Module:
    """A shallow copy whose submodules can be replaced without changing the original."""
    view = copy.copy(module)
    view._modules = dict(module._modules)
    return view
