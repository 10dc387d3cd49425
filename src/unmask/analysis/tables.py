"""Numbers of an analysis as CSV files."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path


def write_table(file: Path, titles: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    """Write one line for each row below the titles; returns the file, whose folder exists afterwards."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(titles)
        writer.writerows(rows)
    return file
