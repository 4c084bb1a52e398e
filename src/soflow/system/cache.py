"""The cache folder."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/soflow, by default ~/.cache/soflow. It can be deleted at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "soflow"
