"""What zip files hold, before anything is unpacked."""

import zipfile
from pathlib import Path


def is_compressed(file: Path) -> bool:
    """Whether a zip file holds anything compressed, which torch.save never does: it may unfold to anything."""
    with zipfile.ZipFile(file) as archive:
        return any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist())
