"""Compressed files, and what a decoder's exception means: damage, a limit of the decoder, a failing disk or network."""

import bz2
import gzip
import lzma
import re
import zlib
from typing import BinaryIO

import pyarrow as pa

COMPRESSED_CHUNK_BYTES = 1 << 16  # read from a compressed file at once: what is lost where it is damaged
LONGEST_QUOTE = 300  # characters of a library's message
_PROGRAMS = {"gz": "gzip -d", "bz2": "bzip2 -d", "xz": "xz -d", "zst": "zstd -d --long=31"}
_DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, pa.ArrowException)
_BAD_TEXT = re.compile("(JSON|CSV) parse error")  # the file is whole, and its text is wrong
_REFUSAL = re.compile(
    "too much memory|memory (usage )?limit|dictionary mismatch|unsupported (options|combination|frame|integrity)|"
    "invalid or unsupported options|unknown compression method|encrypt|(codec|compression type) .* not|exceeded size limit",
    re.IGNORECASE,
)


def decompressed(stored: BinaryIO, compression: str) -> BinaryIO:
    """Open the content of an open file, decompressed if it is compressed; all streams that it holds one after another."""
    if compression == "gz":
        return gzip.GzipFile(fileobj=stored)
    if compression == "bz2":
        return bz2.BZ2File(stored)
    if compression == "xz":
        return lzma.LZMAFile(stored)
    if compression == "zst":
        return pa.BufferedInputStream(pa.CompressedInputStream(stored, "zstd"), COMPRESSED_CHUNK_BYTES)
    return stored


def explain(error: Exception, where: str = "", compression: str = "") -> str:
    """Complete the sentence "a.gz …" after an exception of a decoder: what is the matter ``where``, and the cure."""
    said = _message(error)
    while error.__cause__ is not None:  # libraries wrap what their decoders raise
        error = error.__cause__
    said = said if said.endswith(_message(error)) else f"{said}: {_message(error)}"
    at = f" {where}" if where else ""
    if isinstance(error, MemoryError | NotImplementedError) or _REFUSAL.search(said):
        program = f"decompress it first ({_PROGRAMS[compression]})" if compression else "write it again in another way"
        return f"cannot be decoded here{at}, which need not be damage ({said}): {program}."
    if isinstance(error, OSError) and error.errno:
        return f"cannot be read{at} ({said})." + ("" if isinstance(error, FileNotFoundError) else " Try again.")
    if (isinstance(error, _DAMAGE) or type(error) is OSError) and not _BAD_TEXT.search(said):
        return f"is damaged or truncated{at} ({said}). Download it again."
    return f"cannot be read{at} ({type(error).__name__}: {said})."


def _message(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST_QUOTE else f"{text[:LONGEST_QUOTE]}…"
