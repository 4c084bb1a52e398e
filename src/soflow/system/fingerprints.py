"""Checksums of files, and fingerprints that identify data by their content."""

import hashlib
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path


class Checksum:
    """The CRC-32 of bytes that are added piece by piece: finds damage, proves no origin."""

    def __init__(self) -> None:
        self.value = 0

    def add(self, data: bytes | memoryview) -> None:
        self.value = zlib.crc32(data, self.value)

    def __str__(self) -> str:
        """Eight hexadecimal digits."""
        return f"{self.value:08x}"


def checksum_of(parts: Iterable[bytes | memoryview]) -> str:
    """CRC-32 of the parts, one after the other, in hexadecimal."""
    total = Checksum()
    for part in parts:
        total.add(part)
    return str(total)


def checksum(file: Path) -> str:
    """CRC-32 of a file, in hexadecimal. Raises OSError if it cannot be read."""

    def blocks() -> Iterator[bytes]:
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                yield block

    return checksum_of(blocks())


def fingerprint_of(text: str) -> str:
    """16 hexadecimal digits that stand for a text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
