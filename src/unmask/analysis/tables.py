"""Numbers of an analysis as CSV files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from unmask.writing import write_text


def write_table(file: Path, titles: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    """Write one line for each row below the titles; returns the file, whose folder exists afterwards."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(titles)
    writer.writerows(rows)
    write_text(file, lines.getvalue())
    return file
