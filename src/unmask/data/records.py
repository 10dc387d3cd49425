"""Files of rows -> their rows: JSON lines, JSON lists, CSV and TSV, Parquet.

In: a file and the limits of the settings. Out: each row as Python has it, and where it stands. Rows that cannot be read
are handed to `refuse`, which stops the reader or lets it go on; what ends a whole file is a `DamagedFileError`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from unmask.data.opening import DamagedFileError, base_name, check_fetched, check_growth, lines, opened, reading
from unmask.errors import DataError, require
from unmask.settings.data import DataSettings

JSON, TABLES, PARQUET = (".jsonl", ".json", ".ndjson"), {".csv": ",", ".tsv": "\t"}, ".parquet"
_BATCH_ROWS = 256


class Reader(NamedTuple):
    """How rows are read.

    Attributes:
        settings: limits.
        refuse: is handed what is wrong with a row.
        fields: the only fields that are wanted, or None for all.
    """

    settings: DataSettings
    refuse: Callable[[str], None]
    fields: tuple[str, ...] | None = None


def has_rows(source: str) -> bool:
    """Whether a file holds rows, rather than plain text."""
    return base_name(source).endswith((*JSON, *TABLES, PARQUET))


def rows_of(source: str, reader: Reader, *, start: int = 0) -> Iterator[tuple[int, Any, str]]:
    """The rows of a file from number `start` on: each one's number, the row, and where it stands.

    Raises:
        DamagedFileError: the rest of the file cannot be read.
    """
    name = base_name(source)
    if name.endswith(PARQUET):
        return _parquet_rows(source, reader, start)
    separator = next((mark for ending, mark in TABLES.items() if name.endswith(ending)), None)
    rows = _json_rows(source, reader, start) if separator is None else _table_rows(source, reader, separator, start)
    return rows


def parsed(text: str) -> Any:
    """A JSON text as Python has it.

    Raises:
        DataError: it is not JSON, or cannot be held; the message does not say where.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        place = "" if error.lineno == 1 else f"line {error.lineno}, "
        raise DataError(f"not valid JSON ({error.msg}, {place}column {error.colno})") from None
    except RecursionError:
        raise DataError("JSON that is nested too deeply to be read") from None
    except ValueError as error:
        raise DataError(f"not JSON that can be read ({str(error).split('; ')[0]})") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {json.dumps(twice)[:60]} stands twice in one object")
    return made


def _json_rows(source: str, reader: Reader, start: int) -> Iterator[tuple[int, Any, str]]:
    """Rows of JSON lines, or of a `.json` file that holds one list or object."""
    if base_name(source).endswith(".json") and not _has_lines(source, reader):
        for number, row in enumerate(_whole(source, reader)):
            if number >= start:
                yield number, row, f"{source}, row {number + 1}"
        return
    for number, line in lines(source, reader.settings, reader.refuse):
        if number <= start or not line.strip():
            continue
        where = f"{source}, line {number}"
        try:
            row = parsed(line)
        except DataError as error:
            reader.refuse(f"{where}: {error}")
            continue
        yield number - 1, row, where


def _has_lines(source: str, reader: Reader) -> bool:
    """Whether the first line that holds something is an object by itself."""
    for _, line in lines(source, reader.settings, lambda message: None):
        if line.strip():
            try:
                return isinstance(parsed(line), dict)
            except DataError:
                return False
    return True


def _whole(source: str, reader: Reader) -> list[Any]:
    """The rows of a `.json` file that is one JSON text."""
    limit = reader.settings.max_line_bytes
    with reading(source), opened(source, reader.settings) as (stream, encoding):
        content = stream.read(limit + 1)
        if len(content) > limit:
            raise DamagedFileError(
                f"{source} is one JSON text of more than {limit:,} bytes (data.max_line_bytes), which would be held in "
                "memory. Write its rows one in each line of a .jsonl file"
            )
        text = content.decode(encoding)
    try:
        rows = parsed(text)
    except DataError as error:
        what = "begins like a JSON list and" if text.lstrip().startswith("[") else "holds no object in each line and"
        raise DamagedFileError(
            f"{source} {what} is {error}. Rows that stand one in each line belong into a .jsonl file"
        ) from None
    return rows if isinstance(rows, list) else [rows]


def _table_rows(source: str, reader: Reader, separator: str, start: int) -> Iterator[tuple[int, Any, str]]:
    """Rows of a CSV or TSV file, whose first line names the fields."""
    # The module's own limit is one for the process; ours is the larger one, and holds for each line as well.
    csv.field_size_limit(max(csv.field_size_limit(), reader.settings.max_line_bytes))
    # An end of line inside quotes is text, so the ends go back to where they were.
    text = (line + "\n" for _, line in lines(source, reader.settings, reader.refuse))
    table = csv.reader(text, delimiter=separator, strict=True)
    names: list[str] | None = None
    number = 0
    while True:
        try:
            row = next(table, None)
        except csv.Error as error:
            raise DamagedFileError(
                f"{source} cannot be read after line {table.line_num}: {error}. Is a quotation mark missing?"
            ) from None
        if row is None:
            return
        if not row:
            continue
        if names is None:
            names = _names(source, row)
            continue
        number += 1
        where = f"{source}, row {number}"
        if len(row) != len(names):
            reader.refuse(f"{where}: it has {len(row)} fields, and the first line names {len(names)}")
        elif number > start:
            yield number - 1, dict(zip(names, row, strict=True)), where


def _names(source: str, row: Sequence[str]) -> list[str]:
    names = [name.strip() for name in row]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise DamagedFileError(f"{source} cannot be read: its first line names the field {twice[0]!r} twice")
    return names


def _parquet_rows(source: str, reader: Reader, start: int) -> Iterator[tuple[int, Any, str]]:
    require("pyarrow", extra="data", purpose=f"The file {source}")
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        check_fetched(source)
        with parquet.ParquetFile(source) as file:
            columns = wanted(file.schema_arrow.names, reader, source)
            check_growth(source, _unpacked_bytes(file.metadata, columns), reader.settings)
            for batch in file.iter_batches(_BATCH_ROWS, columns=columns):
                if number + len(batch) <= start:
                    number += len(batch)
                    continue
                for at in range(len(batch)):
                    number += 1
                    if number <= start:
                        continue
                    where = f"{source}, row {number}"
                    try:
                        yield number - 1, {name: batch.column(name)[at].as_py() for name in columns}, where
                    except (ValueError, OverflowError, pyarrow.ArrowException) as error:
                        reader.refuse(f"{where}: {' '.join(str(error).split())[:200]}")
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        if isinstance(error, DataError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise DamagedFileError(f"{source} cannot be read after row {number}: {reason}. Is it complete?") from None


def _unpacked_bytes(metadata: Any, columns: Sequence[str]) -> int:
    """What the columns of a Parquet file unpack to, as it says."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    parts = [group.column(number) for group in groups for number in range(group.num_columns)]
    return sum(part.total_uncompressed_size for part in parts if part.path_in_schema.split(".")[0] in columns)


def wanted(columns: Sequence[str], reader: Reader, source: str) -> list[str]:
    """The columns of a table that are to be read.

    Raises:
        DataError: one of them is not there.
    """
    if reader.fields is None:
        return list(columns)
    missing = [name for name in reader.fields if name not in columns]
    if missing:
        raise DamagedFileError(
            f"{source}: there is no field `{missing[0]}`; the table has {', '.join(columns) or 'none'}"
        )
    return list(reader.fields)
