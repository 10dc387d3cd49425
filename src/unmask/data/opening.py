"""Files of text, packed or not -> their text, whole or line by line; damage and bombs are one error each.

In: a file's name and the limits of the settings. Out: text. UTF-8 unless a byte-order mark says UTF-16 or UTF-32; the
mark is dropped, and every line end becomes `\\n`. `.gz` and `.zst` are unpacked on the way and never on the disk.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from unmask.errors import DataError, require
from unmask.settings.data import DataSettings

PACKED = (".gz", ".zst")
_FREE_BYTES = 2**26
"""A packed file may always grow to this, however small it is."""
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_SAMPLE = 4096
_POINTER = b"version https://git-lfs"


class DamagedFileError(DataError):
    """A file, or the rest of it, cannot be read."""


class _Unpacked(io.RawIOBase):
    """What a packed file unpacks to, up to a limit."""

    def __init__(self, inner: BinaryIO, source: str, settings: DataSettings) -> None:
        self._inner, self._source, self._settings = inner, source, settings
        self._read = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        part = self._inner.read(len(buffer))
        self._read += len(part)
        check_growth(self._source, self._read, self._settings)
        buffer[: len(part)] = part
        return len(part)


def check_growth(source: str, unpacked: int, settings: DataSettings) -> None:
    """Refuse a file that unpacks to more than it may.

    Raises:
        DamagedFileError: it does.
    """
    if unpacked <= _FREE_BYTES:
        return
    limit = max(_FREE_BYTES, settings.max_expansion * os.stat(source).st_size)
    if unpacked > limit:
        raise DamagedFileError(
            f"{source} unpacks to more than {limit:,} bytes: {settings.max_expansion} times its size, or 64 MiB. If it "
            "is meant to, raise data.max_expansion"
        )


@contextlib.contextmanager
def reading(source: str, done: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Turn what goes wrong while a file is read into one error; `done` says how far the reader came.

    Raises:
        DamagedFileError: the file cannot be read.
    """
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        what = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        what = what or type(error).__name__
        raise DamagedFileError(f"{source} cannot be read{done()}: {what[:200]}. Is it complete?") from None
    except UnicodeDecodeError as error:
        raise DamagedFileError(f"{source} cannot be read{done()}: {not_text(error)}") from None


def not_text(error: UnicodeDecodeError) -> str:
    """What a decoder met, and what to do about it."""
    given = error.object[error.start : error.start + 1].hex()
    return (
        f"byte 0x{given} at {error.start:,} is not {error.encoding.upper()} ({error.reason}). Convert the file, for "
        "example: iconv -f LATIN1 -t UTF-8"
    )


@contextlib.contextmanager
def opened(source: str, settings: DataSettings) -> Iterator[tuple[io.BufferedReader, str]]:
    """The bytes of a file, unpacked, after its byte-order mark; and the encoding of its text.

    Raises:
        DamagedFileError: it unpacks to more than it may, holds UTF-16 without a mark, or was not fetched.
        MissingExtraError: it is packed by zstd, which needs an extra.
    """
    check_fetched(source)
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(_stream(source, settings))
        head = stream.peek(_SAMPLE)[:_SAMPLE]
        mark, encoding = next((pair for pair in _MARKS if head.startswith(pair[0])), (b"", "utf-8"))
        if not mark and _is_wide(head):
            raise DamagedFileError(
                f"{source} cannot be read: every second byte is 0, as in UTF-16 without a byte-order mark. Convert the "
                "file: iconv -f UTF-16LE -t UTF-8"
            )
        stream.read(len(mark))
        yield stream, encoding


def check_fetched(source: str) -> None:
    """Refuse what Git leaves in the place of a large file.

    Raises:
        DamagedFileError: the file is such a pointer.
    """
    with open(source, "rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise DamagedFileError(
                f"{source} is a Git-LFS pointer, not the file that it stands for. Fetch it: git lfs pull, in "
                f"{Path(source).parent}"
            )


def _stream(source: str, settings: DataSettings) -> io.BufferedReader:
    if source.endswith(".gz"):
        return io.BufferedReader(_Unpacked(cast(BinaryIO, gzip.open(source, "rb")), source, settings), 2**17)
    if source.endswith(".zst"):
        require("pyarrow", extra="data", purpose=f"The file {source}, which zstd packed,")
        import pyarrow

        packed = cast(BinaryIO, pyarrow.input_stream(source, compression="zstd"))
        return io.BufferedReader(_Unpacked(packed, source, settings), 2**17)
    return open(source, "rb")


def _is_wide(head: bytes) -> bool:
    """Whether text of one byte per character is interleaved with zeros."""
    half = len(head) // 2
    return half >= 2 and max(head[0::2].count(0), head[1::2].count(0)) > 0.7 * half


def read_text(source: str, settings: DataSettings) -> str:
    """The text of a file.

    Raises:
        DamagedFileError: it is damaged, too large when unpacked, or not text.
    """
    with reading(source), opened(source, settings) as (stream, encoding):
        text = stream.read().decode(encoding)
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def lines(source: str, settings: DataSettings, refuse: Callable[[str], None]) -> Iterator[tuple[int, str]]:
    """The lines of a file with their numbers, without their ends.

    Lines that are too long, or not text, are handed to `refuse`, which stops the reader or lets it go on.

    Raises:
        DamagedFileError: the rest of the file cannot be read.
    """
    number, limit = 0, settings.max_line_bytes
    with reading(source, lambda: f" after line {number}"), opened(source, settings) as (stream, encoding):
        is_utf8 = encoding == "utf-8"
        wide = None if is_utf8 else io.TextIOWrapper(stream, encoding, newline="\n")
        while line := stream.readline(limit + 1) if wide is None else wide.readline(limit + 1).encode():
            number += 1
            if len(line) > limit:
                while line and not line.endswith(b"\n"):
                    line = stream.readline(limit) if wide is None else wide.readline(limit).encode()
                refuse(f"{source}, line {number}: it is longer than {limit:,} bytes (data.max_line_bytes)")
                continue
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                refuse(f"{source}, line {number}: {not_text(error)}")
                continue
            parts = text.replace("\r\n", "\n").rstrip("\r\n").split("\r")
            yield from ((number + at, part) for at, part in enumerate(parts))
            number += len(parts) - 1


def base_name(source: str) -> str:
    """The name of a file without the ending of its packing, in lower case."""
    name = Path(source).name.lower()
    for ending in PACKED:
        name = name.removesuffix(ending)
    return name
