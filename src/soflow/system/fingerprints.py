"""Checksums of files, and fingerprints that identify data by their content."""

import hashlib
import zlib
from pathlib import Path


def checksum(file: Path) -> str:
    """CRC-32 of a file, in hexadecimal: finds damage, proves no origin."""
    value = 0
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            value = zlib.crc32(block, value)
    return f"{value:08x}"


def fingerprint_of(text: str) -> str:
    """16 hexadecimal digits that stand for a text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
