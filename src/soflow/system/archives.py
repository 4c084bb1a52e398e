"""Checks of zip files without unpacking them."""

import zipfile
from pathlib import Path


def is_compressed(file: Path) -> bool:
    """Whether any member of a zip file is compressed. torch.save never compresses."""
    with zipfile.ZipFile(file) as archive:
        return any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist())
