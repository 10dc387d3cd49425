"""Malformed data of text: every file and row that cannot be read, and the same once more with data.malformed=skip."""

from __future__ import annotations

import codecs
import gzip
import json
import os
import socket
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.malformed.case import Case, check, is_root, parametrized, written
from unmask.data.text import Corpus
from unmask.errors import DataError
from unmask.settings.data import DataSettings

GOOD = '{"text": "good"}\n'
Make = Callable[[Path], object]


def read(*sources: str, **settings: Any) -> tuple[list[str], int]:
    """The texts of sources in the working folder, and how many rows were skipped."""
    corpus = Corpus(sources, DataSettings(**settings))
    return list(corpus), corpus.skipped


def file(name: str, content: bytes | str, *, source: str | None = None, **settings: Any) -> Callable[[Path], object]:
    def use(folder: Path) -> object:
        written(folder, name, content)
        return read(source or name, **settings)

    return use


def made(make: Make, *sources: str, **settings: Any) -> Callable[[Path], object]:
    def use(folder: Path) -> object:
        make(folder)
        return read(*sources, **settings)

    return use


# --- rows that cannot be read: each stands between two good ones ------------------------------------------------------

DEEP = 100_000
ROWS: dict[str, tuple[str | bytes, str]] = {
    "cut in a text": ('{"text": "cut', "x.jsonl, line 2: not valid JSON (Unterminated string starting at, column 10)"),
    "cut after a key": ('{"text"', "line 2: not valid JSON (Expecting ':' delimiter, column 8)"),
    "single quotes": ("{'text': 'x'}", "line 2: not valid JSON (Expecting property name"),
    "no JSON at all": ("hello", "line 2: not valid JSON (Expecting value, column 1)"),
    "a trailing comma": ('{"text": "x",}', "line 2: not valid JSON"),
    "two objects on a line": ('{"text": "x"} {"text": "y"}', "line 2: not valid JSON (Extra data, column 15)"),
    "a comment": ("// comment", "line 2: not valid JSON"),
    "a raw line feed in a text": ('{"text": "a\nb"}', "line 2: not valid JSON (Unterminated string"),
    "a raw tab in a text": ('{"text": "a\tb"}', "line 2: not valid JSON (Invalid control character at, column 12)"),
    "a NUL in a text": ('{"text": "a\0b"}', "line 2: not valid JSON (Invalid control character at"),
    "a NUL alone": ("\0", "line 2: not valid JSON"),
    "a bad escape": (r'{"text": "\q"}', "line 2: not valid JSON (Invalid \\escape"),
    "a cut escape": (r'{"text": "\u12"}', "line 2: not valid JSON (Invalid \\uXXXX escape"),
    "another field": ('{"txt": "x"}', "line 2: there is no field `text`; the row has txt"),
    "no field": ("{}", "line 2: there is no field `text`; the row has none"),
    "many fields": (
        json.dumps({f"field{number}": 1 for number in range(999)}),
        "line 2: there is no field `text`; the row has field0, field1, field2",
    ),
    "another case of the field": ('{"Text": "x"}', "there is no field `text`; the row has Text"),
    "a number as text": ('{"text": 3}', "the field `text` must be text, got 3"),
    "null as text": ('{"text": null}', "the field `text` must be text, got null"),
    "NaN as text": ('{"text": NaN}', "the field `text` must be text, got NaN"),
    "true as text": ('{"text": true}', "the field `text` must be text, got true"),
    "a list as text": ('{"text": ["x"]}', 'the field `text` must be text, got ["x"]'),
    "an object as text": ('{"text": {"a": 1}}', 'the field `text` must be text, got {"a": 1}'),
    "a long list as text": (json.dumps({"text": list(range(99))}), "got [0, 1, 2, 3, 4, 5"),
    "a list": ("[1, 2]", "expected an object with the field `text`, got [1, 2]"),
    "a text": ('"text"', 'expected an object with the field `text`, got "text"'),
    "a number": ("12", "expected an object with the field `text`, got 12"),
    "null": ("null", "expected an object with the field `text`, got null"),
    "Infinity": ("-Infinity", "expected an object with the field `text`, got -Infinity"),
    "deep lists": ("[" * DEEP + "]" * DEEP, "line 2: JSON that is nested too deeply to be read"),
    "deep lists that do not end": ("[" * DEEP, "line 2: JSON that is nested too deeply to be read"),
    "deep objects": ('{"a":' * DEEP + "1" + "}" * DEEP, "line 2: JSON that is nested too deeply to be read"),
    "a deep field beside the text": (
        '{"text": "x", "more": ' + "[" * DEEP + "]" * DEEP + "}",
        "line 2: JSON that is nested too deeply to be read",
    ),
    "a number of 5,000 digits": (
        '{"text": "x", "id": ' + "9" * 5000 + "}",
        "line 2: not JSON that can be read (Exceeds the limit (4300 digits) for integer string conversion",
    ),
    "a negative number of 5,000 digits": ('{"text": -' + "9" * 5000 + "}", "not JSON that can be read (Exceeds"),
    "a key twice": ('{"text": "a", "text": "b"}', 'the key "text" stands twice in one object'),
    "a key twice within": ('{"text": "a", "m": {"k": 1, "k": 2}}', 'the key "k" stands twice in one object'),
    "half of a surrogate pair": (
        r'{"text": "ab\ud800"}',
        r"line 2: the text has half of a surrogate pair (\ud800, character 3), which stands for no character",
    ),
    "the other half": (r'{"text": "\udc00b"}', r"half of a surrogate pair (\udc00, character 1)"),
    "a pair the wrong way round": (r'{"text": "\udc00\ud800"}', r"half of a surrogate pair (\udc00"),
    "latin-1": (
        b'{"text": "gr\xfcn"}',
        "line 2: byte 0xfc at 12 is not UTF-8 (invalid start byte). Convert the file, for example: iconv -f LATIN1",
    ),
    "a cut character": (b'{"text": "\xe6\xbc"}', "line 2: byte 0xe6 at 10 is not UTF-8 (invalid continuation byte)"),
    "an over-long encoding": (b'{"text": "\xc0\x80"}', "byte 0xc0 at 10 is not UTF-8"),
    "a surrogate in UTF-8": (b'{"text": "\xed\xa0\x80"}', "byte 0xed at 10 is not UTF-8"),
    "binary": (bytes(range(128, 200)), "line 2: byte 0x80 at 0 is not UTF-8 (invalid start byte)"),
    "a line over the limit": ('{"text": "' + "x" * 3000 + '"}', "line 2: it is longer than 2,000 bytes (data.max_line"),
    "a binary line over the limit": (b"\xff" * 9000, "line 2: it is longer than 2,000 bytes (data.max_line_bytes)"),
}
SMALL = {"a line over the limit", "a binary line over the limit"}


def rows(row: str | bytes, **settings: Any) -> Callable[[Path], object]:
    content = row.encode() if isinstance(row, str) else row
    return file("x.jsonl", GOOD.encode() + content + b"\n" + GOOD.encode(), **settings)


def limits(name: str) -> dict[str, Any]:
    return {"max_line_bytes": 2000} if name in SMALL else {}


ROW_CASES = [
    Case(f"{name} in JSON lines", rows(row, **limits(name)), message, DataError)
    for name, (row, message) in ROWS.items()
]
SKIPPED_LINES = {"a raw line feed in a text": 2}
SKIP_CASES = [
    Case(
        f"{name} skipped",
        rows(row, malformed="skip", **limits(name)),
        value=(["good", "good"], SKIPPED_LINES.get(name, 1)),
    )
    for name, (row, _) in ROWS.items()
]

# --- files of rows ----------------------------------------------------------------------------------------------------

LINES = "".join(f'{{"text": "some words that take some room, number {number}"}}\n' for number in range(400)).encode()
PACKED = gzip.compress(LINES)


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
FILES: dict[str, tuple[str, bytes | str, str]] = {
    **{
        f"a Git-LFS pointer named {ending}": (f"x{ending}", POINTER, f"x{ending} is a Git-LFS pointer")
        for ending in (".jsonl", ".json", ".txt", ".csv", ".txt.gz", ".jsonl.zst", ".parquet")
    },
    "a gz file that is cut": ("x.jsonl.gz", PACKED[: len(PACKED) // 2], "Is it complete?"),
    "a gz file without its end": ("x.jsonl.gz", PACKED[:-4], "Compressed file ended before the end-of-stream marker"),
    "damaged deflate data": ("x.jsonl.gz", flipped(PACKED, 40), "x.jsonl.gz cannot be read after line"),
    "a gz file with a wrong checksum": ("x.jsonl.gz", flipped(PACKED, len(PACKED) - 6), "CRC check failed"),
    "a gz file with a wrong length": ("x.jsonl.gz", flipped(PACKED, len(PACKED) - 1), "Incorrect length of data"),
    "plain text named .gz": ("x.jsonl.gz", GOOD, "Not a gzipped file"),
    "an empty file named .gz": ("x.txt.gz", gzip.compress(b"")[:5], "Compressed file ended before"),
    "garbage after a gz file": ("x.jsonl.gz", PACKED + b"garbage", "Not a gzipped file"),
    "zlib named .gz": ("x.jsonl.gz", zlib.compress(LINES), "Not a gzipped file"),
    "a gz file of text that is cut": ("x.txt.gz", PACKED[:60], "x.txt.gz cannot be read: Compressed file ended"),
    "a gz bomb of lines": (
        "x.jsonl.gz",
        gzip.compress((b" " * 2**20 + b"\n") * 99, 9),
        "unpacks to more than 67,108,864 bytes",
    ),
    "a gz bomb of text": ("x.txt.gz", gzip.compress(b" " * 2**27, 9), "If it is meant to, raise data.max_expansion"),
    "latin-1 text": ("x.txt", b"gr\xfcn", "x.txt cannot be read: byte 0xfc at 2 is not UTF-8 (invalid start byte)"),
    "binary named .txt": ("x.txt", bytes(range(256)), "byte 0x80 at 128 is not UTF-8"),
    "a PNG named .txt": ("x.txt", b"\x89PNG\r\n\x1a\n", "byte 0x89 at 0 is not UTF-8"),
    "UTF-16 without a mark": ("x.txt", "hello there".encode("utf-16-le"), "as in UTF-16 without a byte-order mark"),
    "big-endian UTF-16 without a mark": ("x.jsonl", GOOD.encode("utf-16-be"), "iconv -f UTF-16LE -t UTF-8"),
    "UTF-32 without a mark": ("x.txt", "hello there".encode("utf-32-le"), "UTF-16 without a byte-order mark"),
    "UTF-16 that is cut": ("x.txt", codecs.BOM_UTF16_LE + b"h\0e", "is not UTF-16-LE (truncated data)"),
    "UTF-16 lines that are cut": ("x.jsonl", codecs.BOM_UTF16_LE + GOOD.encode("utf-16-le") + b"h", "UTF-16-LE"),
    "a JSON list that is cut": ("x.json", '[{"text": "a"},', "x.json begins like a JSON list and is not valid JSON"),
    "JSON lists one in each line": (
        "x.json",
        "[1]\n[2]\n",
        "begins like a JSON list and is not valid JSON (Extra data",
    ),
    "text named .json": ("x.json", "hello\nthere", "holds no object in each line and is not valid JSON"),
    "an object that is cut": ("x.json", '{\n "text": "a"\n', "belong into a .jsonl file"),
    "a deep .json file": ("x.json", "[" * DEEP + "]" * DEEP, "is JSON that is nested too deeply to be read"),
    "a .json list of texts": (
        "x.json",
        '["a", "b"]',
        'x.json, row 1: expected an object with the field `text`, got "a"',
    ),
    "a .json object of lists": (
        "x.json",
        '{"text": ["a", "b"]}',
        "x.json, line 1: the field `text` must be text, got [",
    ),
    "a .json object of rows": ("x.json", '{"data": [{"text": "a"}]}', "there is no field `text`; the row has data"),
    "a .json number": ("x.json", "7", "x.json, row 1: expected an object with the field `text`, got 7"),
    "CSV without the column": ("x.csv", "id,body\n1,hello\n", "row 1: there is no field `text`; the row has id, body"),
    "CSV with semicolons": ("x.csv", "id;text\n1;hello\n", "there is no field `text`; the row has id;text"),
    "CSV with a longer row": ("x.csv", "id,text\n1,a,b\n", "row 1: it has 3 fields, and the first line names 2"),
    "CSV with a shorter row": ("x.csv", "id,text\n1\n", "row 1: it has 1 fields, and the first line names 2"),
    "CSV with an open quotation": ("x.csv", 'text\n"never ends\nand on\n', "Is a quotation mark missing?"),
    "CSV with text after a quotation": ("x.csv", 'text\n"a" b\n', "x.csv cannot be read after line 2"),
    "CSV that names a field twice": ("x.csv", "text,text\na,b\n", "its first line names the field 'text' twice"),
    "CSV in latin-1": ("x.csv", b"text\ngr\xfcn\n", "x.csv, line 2: byte 0xfc at 2 is not UTF-8"),
    "TSV with commas": ("x.tsv", "id,text\n1,hello\n", "there is no field `text`; the row has id,text"),
    "a CSV file that is cut": ("x.csv.gz", gzip.compress(b"text\n" + b"a\n" * 9999)[:40], "x.csv.gz cannot be read"),
    "Parquet that is none": ("x.parquet", b"PAR1 and nothing more", "x.parquet cannot be read after row 0"),
    "an empty Parquet file": ("x.parquet", b"", "x.parquet cannot be read after row 0: Parquet file size is 0"),
    "text named .parquet": ("x.parquet", GOOD * 9, "Is it complete?"),
    "zstd that is none": ("x.jsonl.zst", b"garbage" * 9, "x.jsonl.zst cannot be read after line 0: ZSTD"),
}
FILE_CASES = [Case(name, file(path, content), message, DataError) for name, (path, content, message) in FILES.items()]
FIRST_SKIPPED = {"a .json list of texts": 2}


def skipped_only(name: str, path: str, content: bytes | str) -> Case:
    """The file is left out, and the rows of another one are read."""

    def use(folder: Path) -> object:
        written(folder, path, content)
        written(folder, "good.jsonl", GOOD)
        texts, skipped = read(path, "good.jsonl", malformed="skip")
        return texts[-1], skipped

    return Case(f"{name} skipped", use, value=("good", FIRST_SKIPPED.get(name, 1)))


SKIPPED_FILES = [skipped_only(name, path, content) for name, (path, content, _) in FILES.items()]

# --- names of sources -------------------------------------------------------------------------------------------------


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "x.jsonl")


def bound(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("x.jsonl")


def link(target: str, name: str = "x.jsonl") -> Make:
    return lambda folder: (folder / name).symlink_to(target)


def circle(folder: Path) -> None:
    (folder / "x.jsonl").symlink_to(folder / "y.jsonl")
    (folder / "y.jsonl").symlink_to(folder / "x.jsonl")


def folder_of(*names: str) -> Make:
    def make(folder: Path) -> None:
        for name in names:
            written(folder, f"texts/{name}", GOOD)

    return make


def nothing(folder: Path) -> None:
    pass


def private(folder: Path) -> None:
    written(folder, "x.jsonl", GOOD).chmod(0)


def within(make: Make) -> Make:
    """In a folder beside a good file."""

    def both(folder: Path) -> None:
        written(folder, "texts/a.jsonl", GOOD)
        make(folder / "texts")

    return both


NAMES = [
    Case("no source", made(nothing), "No data source was given. Set data.train to files", DataError),
    Case("an empty name", made(nothing, ""), "A data source has no name, got ''", DataError),
    Case("a blank name", made(nothing, "  "), "A data source has no name, got '  '", DataError),
    Case("a comma alone", made(nothing, ","), "A data source has no name", DataError),
    Case("a missing file", made(nothing, "gone.txt"), "No data: there is no gone.txt. A source is a file", DataError),
    Case("one missing of two", made(nothing, "gone.txt,lost.txt"), "there is no gone.txt", DataError),
    Case("a glob of nothing", made(nothing, "*.jsonl"), "there is no *.jsonl", DataError),
    Case("a bad glob", made(nothing, "[a.jsonl"), "there is no [a.jsonl", DataError),
    Case("an unknown user", made(nothing, "~nouser-zzz/x.txt"), "there is no ~nouser-zzz/x.txt", DataError),
    Case("a name with a NUL", made(nothing, "a\0b.txt"), "No data: ", DataError),
    Case("a long name", made(nothing, "x" * 5000 + ".txt"), "No data: ", DataError),
    Case("half of a surrogate pair in a name", made(nothing, "a\ud800.txt"), "No data: ", DataError),
    Case("a file below a file", made(lambda f: written(f, "a.txt", "x"), "a.txt/b.txt"), "there is no", DataError),
    Case("an empty folder", made(lambda f: (f / "e").mkdir(), "e"), "the folder e holds no .txt, .md", DataError),
    Case("a folder of hidden files", made(folder_of(".a.jsonl"), "texts"), "the folder texts holds no", DataError),
    Case(
        "a folder of notebook checkpoints",
        made(folder_of(".ipynb_checkpoints/a-checkpoint.txt"), "texts"),
        "the folder texts holds no",
        DataError,
    ),
    Case("a folder of pictures", made(folder_of("a.png"), "texts"), "the folder texts holds no .txt", DataError),
    Case("a picture", made(folder_of("a.png"), "texts/a.png"), "has none of the endings that can be read", DataError),
    Case("no ending", made(folder_of("a"), "texts/a"), "has none of the endings", DataError),
    Case("an archive", made(folder_of("a.tar.gz"), "texts/a.tar.gz"), "has none of the endings", DataError),
    Case("a packing that is not known", made(folder_of("a.txt.xz"), "texts/a.txt.xz"), "none of the end", DataError),
    Case(
        "a glob with a picture in it", made(folder_of("a.txt", "b.png"), "texts/*"), "b.png has none of the", DataError
    ),
    Case("a folder named as a file", made(lambda f: (f / "x.jsonl").mkdir(), "x.jsonl"), "x.jsonl holds no", DataError),
    Case(
        "a glob that meets a folder",
        made(lambda f: (f / "x.jsonl").mkdir(), "*.jsonl"),
        "x.jsonl is a folder, not a file",
        DataError,
    ),
    Case("a pipe", made(pipe, "x.jsonl"), "x.jsonl is a pipe, not a file", DataError),
    Case("a socket", made(bound, "x.jsonl"), "x.jsonl is a socket, not a file", DataError),
    Case("a device", made(link("/dev/zero"), "x.jsonl"), "x.jsonl is a device, not a file", DataError),
    Case("a device by its name", made(nothing, "/dev/zero"), "/dev/zero is a device, not a file", DataError),
    Case("a link to nothing", made(link("gone"), "x.jsonl"), "x.jsonl is a link to gone, which cannot be", DataError),
    Case("a link to itself", made(link("x.jsonl"), "x.jsonl"), "Too many levels of symbolic links", DataError),
    Case("links in a circle", made(circle, "x.jsonl"), "Too many levels of symbolic links", DataError),
    Case("a pipe in a folder", made(within(pipe), "texts"), "texts/x.jsonl is a pipe, not a file", DataError),
    Case("a link to nothing in a folder", made(within(link("gone")), "texts"), "is a link to gone, which", DataError),
    Case("links in a circle in a folder", made(within(circle), "texts"), "Too many levels of symbolic", DataError),
    Case("hf: alone", made(nothing, "hf:"), "'hf:' is no source: it names no dataset", DataError),
    Case("hf: with a split only", made(nothing, "hf:@train"), "it names no dataset", DataError),
    Case("hf: with a blank", made(nothing, "hf: "), "it names no dataset", DataError),
    Case("hf: without a split", made(nothing, "hf:name@"), "it names no split after @", DataError),
    Case("hf: without a configuration", made(nothing, "hf:name:"), "it names no configuration after :", DataError),
    Case("hf: with a missing folder", made(nothing, "hf:a/b/c"), "there is no folder 'a/b/c'", DataError),
    Case("hf: with a missing absolute folder", made(nothing, "hf:/nowhere"), "no folder '/nowhere'", DataError),
    Case("hf: with an unknown user", made(nothing, "hf:~nouser-zzz/x"), "no folder '~nouser-zzz/x'", DataError),
    Case("hf: with a NUL", made(nothing, "hf:a\0b"), "it names no dataset", DataError),
    Case("hf: with an address", made(nothing, "hf:https://x.org/a"), "cannot be loaded", DataError),
]
if not is_root():
    NAMES.append(Case("a file without permission", made(private, "x.jsonl"), "Permission denied", DataError))

# --- what is only unusual ---------------------------------------------------------------------------------------------


def round_trip(folder: Path) -> None:
    (folder / "texts").mkdir()
    (folder / "texts" / "again").symlink_to(folder / "texts")
    written(folder, "texts/a.jsonl", GOOD)


MARKED = codecs.BOM_UTF8 + GOOD.encode()
UNUSUAL = [
    Case("a byte-order mark", file("x.jsonl", MARKED), value=(["good"], 0)),
    Case("a byte-order mark of text", file("x.txt", codecs.BOM_UTF8 + b"a\n"), value=(["a\n"], 0)),
    Case("a byte-order mark in a gz file", file("x.jsonl.gz", gzip.compress(MARKED)), value=(["good"], 0)),
    Case("a byte-order mark of a list", file("x.json", codecs.BOM_UTF8 + b'[{"text": "a"}]'), value=(["a"], 0)),
    Case("a byte-order mark of a table", file("x.csv", codecs.BOM_UTF8 + b"text\na\n"), value=(["a"], 0)),
    Case("a byte-order mark alone", file("x.txt", codecs.BOM_UTF8), value=([], 0)),
    Case("UTF-16", file("x.txt", "gr\u00fcn \u6f22".encode("utf-16")), value=(["gr\u00fcn \u6f22"], 0)),
    Case("UTF-16 lines", file("x.jsonl", (GOOD * 3).encode("utf-16")), value=(["good"] * 3, 0)),
    Case("UTF-32 lines", file("x.jsonl", GOOD.encode("utf-32")), value=(["good"], 0)),
    Case("a mark in the middle", file("x.txt", "a\ufeffb"), value=(["a\ufeffb"], 0)),
    Case("line ends of Windows", file("x.jsonl", GOOD.replace("\n", "\r\n") * 2), value=(["good"] * 2, 0)),
    Case("line ends of old Macs", file("x.jsonl", GOOD.replace("\n", "\r") * 2), value=(["good"] * 2, 0)),
    Case(
        "mixed line ends",
        file("x.jsonl", '{"text": "a"}\r{"text": "b"}\r\n\n{"text": "c"}'),
        value=(["a", "b", "c"], 0),
    ),
    Case("line ends of text", file("x.txt", b"a\r\nb\rc\nd"), value=(["a\nb\nc\nd"], 0)),
    Case("no line end at the end", file("x.jsonl", GOOD.strip()), value=(["good"], 0)),
    Case("blank lines", file("x.jsonl", f"\n \n{GOOD}\n\t\n"), value=(["good"], 0)),
    Case("an empty file", file("x.jsonl", ""), value=([], 0)),
    Case("an empty text file", file("x.txt", ""), value=([], 0)),
    Case("an empty .json file", file("x.json", ""), value=([], 0)),
    Case("an empty table", file("x.csv", ""), value=([], 0)),
    Case("a table of names only", file("x.csv", "id,text\n"), value=([], 0)),
    Case("an empty list", file("x.json", "[]"), value=([], 0)),
    Case("white space only", file("x.txt", " \n\t "), value=([], 0)),
    Case("an empty text in a row", file("x.jsonl", '{"text": ""}\n' + GOOD), value=(["good"], 0)),
    Case("an empty gz file", file("x.jsonl.gz", gzip.compress(b"")), value=([], 0)),
    Case("two gz files in one", file("x.jsonl.gz", gzip.compress(GOOD.encode()) * 2), value=(["good"] * 2, 0)),
    Case("NaN in another field", file("x.jsonl", '{"text": "a", "score": NaN}'), value=(["a"], 0)),
    Case("a whole surrogate pair", file("x.jsonl", r'{"text": "\ud83d\ude42"}'), value=(["\U0001f642"], 0)),
    Case("half a pair in another field", file("x.jsonl", r'{"text": "a", "id": "\ud800"}'), value=(["a"], 0)),
    Case("an escaped NUL", file("x.jsonl", r'{"text": "a\u0000b"}'), value=(["a\0b"], 0)),
    Case(
        "a NUL in a text file",
        file("x.txt", "ten words and one \0 in the middle"),
        value=(["ten words and one \0 in the middle"], 0),
    ),
    Case("one object over several lines", file("x.json", '{\n "text": "a"\n}\n'), value=(["a"], 0)),
    Case("lines named .json", file("x.json", GOOD * 2), value=(["good"] * 2, 0)),
    Case("a list after blank lines", file("x.json", "\n" * 99 + '[{"text": "a"}]'), value=(["a"], 0)),
    Case("an ending in capitals", file("X.JSONL", GOOD), value=(["good"], 0)),
    Case("a quotation over lines", file("x.csv", 'text\n"a\nb, ""c"""\n'), value=(['a\nb, "c"'], 0)),
    Case("TSV", file("x.tsv", "id\ttext\n1\ta, b\n"), value=(["a, b"], 0)),
    Case("a packed table", file("x.csv.gz", gzip.compress(b"text\na\n")), value=(["a"], 0)),
    Case(
        "a field of a table beyond 131,072 characters",
        file("x.csv", f"text\n{'x' * 200_000}\n"),
        value=(["x" * 200_000], 0),
    ),
    Case("a name with a comma", file("a,b.txt", "x", source="a,b.txt"), value=(["x"], 0)),
    Case("a name with brackets", file("a[1].txt", "x"), value=(["x"], 0)),
    Case("a hidden file by its name", file(".a.txt", "x"), value=(["x"], 0)),
    Case(
        "a list of sources",
        made(folder_of("a.jsonl", "b.jsonl"), "texts/a.jsonl, texts/b.jsonl"),
        value=(["good"] * 2, 0),
    ),
    Case(
        "a folder with hidden files", made(folder_of("a.jsonl", ".b.jsonl", ".c/d.jsonl"), "texts"), value=(["good"], 0)
    ),
    Case("a folder in a hidden folder", made(folder_of(".c/d.jsonl"), "texts/.c"), value=(["good"], 0)),
    Case("a folder that links to itself", made(round_trip, "texts"), value=(["good"], 0)),
    Case("a linked file", made(within(link("a.jsonl", "b.jsonl")), "texts"), value=(["good"] * 2, 0)),
    Case(
        "a folder named as a file in a folder",
        made(folder_of("x.jsonl/a.txt", "b.jsonl"), "texts"),
        value=(["good", GOOD], 0),
    ),
    Case("a separator of line feeds", file("x.txt", "a\n\nb\n\n\n\nc", separator="\n\n"), value=(["a", "b", "c"], 0)),
    Case("a separator as a shell has it", file("x.txt", "a\n\nb", separator=r"\n\n"), value=(["a", "b"], 0)),
    Case("a separator of tabs", file("x.txt", "a\tb", separator=r"\t"), value=(["a", "b"], 0)),
    Case("a separator with a backslash", file("x.txt", r"a\nb", separator=r"\\n"), value=(["a", "b"], 0)),
    Case("a separator of spaces", file("x.txt", "a  b c", separator="  "), value=(["a", "b c"], 0)),
    Case("a line at the limit", file("x.jsonl", GOOD, max_line_bytes=len(GOOD)), value=(["good"], 0)),
    Case(
        "a file that grows as far as it may",
        file("x.txt.gz", gzip.compress(b"a" * (2**26 + 1), 9), max_expansion=2000),
        value=(["a" * (2**26 + 1)], 0),
    ),
]


@parametrized(ROW_CASES)
def test_a_row_that_cannot_be_read_is_named(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


@parametrized(SKIP_CASES)
def test_such_a_row_can_be_skipped_and_is_counted(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


@parametrized(FILE_CASES)
def test_a_file_that_cannot_be_read_is_named(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


@parametrized(SKIPPED_FILES)
def test_such_a_file_can_be_skipped_and_is_counted(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


@parametrized(NAMES)
def test_a_name_that_means_no_data_is_refused(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


@parametrized(UNUSUAL)
def test_what_is_only_unusual_is_read(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


@pytest.mark.parametrize("case", [*ROW_CASES, *FILE_CASES], ids=lambda case: case.name)
def test_every_message_about_a_row_says_how_to_go_on(case: Case, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        check(Case(case.name, case.use), tmp_path)
    assert str(caught.value).endswith("set data.text_field, or skip such rows: data.malformed=skip")
    assert "\n" not in str(caught.value)
