"""Checksums of files, and fingerprints that identify data by its content."""

import hashlib
import zlib
from collections.abc import Iterable
from functools import partial
from pathlib import Path


def checksum_of(parts: Iterable[bytes | memoryview]) -> str:
    """CRC-32 of the concatenated parts, in hexadecimal. Detects damage, not manipulation."""
    total = 0
    for part in parts:
        total = zlib.crc32(part, total)
    return f"{total:08x}"


def checksum(file: Path) -> str:
    """CRC-32 of a file, in hexadecimal. Raises OSError if it cannot be read."""
    with file.open("rb") as stream:
        return checksum_of(iter(partial(stream.read, 1 << 22), b""))


def fingerprint_of(text: str) -> str:
    """A hash of a text, as 16 hexadecimal digits."""
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
