"""Files that are either whole or not there, and their checksums."""

import os
from pathlib import Path

import xxhash

BLOCK = 1 << 22


def write_atomically(path: Path, text: str) -> None:
    """Puts a text file in place in one step: readers see the old one or all of the new one."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def digest(path: Path, *hashers) -> list[str]:
    """Hexadecimal digests of a file, read once in blocks."""
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            for hasher in hashers:
                hasher.update(block)
    return [hasher.hexdigest() for hasher in hashers]


def fast_checksum(path: Path) -> str:
    """xxh3_64 of a file, hexadecimal: finds damage, not malice."""
    return digest(path, xxhash.xxh3_64())[0]
