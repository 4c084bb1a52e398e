"""The cache folder."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/soflow, by default ~/.cache/soflow. Its content can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "soflow"
