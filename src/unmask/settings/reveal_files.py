"""Reveal schedules in files: how many places each step of a block reveals, as measured or as you like.

In and out: a JSON object with `places`, the places of a block, and `counts`, which maps a number of steps to that many
counts; `{"places": 8, "counts": {"2": [5, 3], "4": [3, 2, 2, 1]}}`. Other keys say where the counts come from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from unmask.errors import SettingsError
from unmask.settings.checks import is_true
from unmask.writing import write_json

SUFFIX = ".json"
_FORM = '{"places": 8, "counts": {"2": [5, 3]}}'


@dataclass(frozen=True)
class RevealFile:
    """Counts for blocks of one length.

    Attributes:
        places: of a block.
        counts: for each number of steps, how many places each of them reveals, at least one each.
        name: where they come from, for messages.
    """

    places: int
    counts: Mapping[int, tuple[int, ...]]
    name: str

    def __post_init__(self) -> None:
        is_true(self.places >= 1, f"{self.name}: places must be at least 1, got {self.places}.")
        is_true(bool(self.counts), f"{self.name} has no counts. Give some, as in {_FORM}.")
        for steps, row in self.counts.items():
            is_true(
                len(row) == steps and min(row, default=0) >= 1 and sum(row) == self.places,
                f"{self.name}: the counts for {steps} steps must be {steps} numbers of at least 1 that sum to "
                f"{self.places} places, got {list(row)}, {len(row)} numbers with the sum {sum(row)}.",
            )

    def of(self, places: int, steps: int) -> tuple[int, ...]:
        """The counts for a block.

        Raises:
            SettingsError: the file has none for it.
        """
        is_true(
            places == self.places,
            f"{self.name} is for blocks of {self.places} places, got one of {places}. Set block_length, or "
            f"max_new_tokens where a canvas is one block, to {self.places}. Or measure a schedule for {places}: "
            f"unmask analyze schedule MODEL --save FILE, for a canvas with --places {places}",
        )
        known = ", ".join(map(str, sorted(self.counts)))
        is_true(
            steps in self.counts,
            f"{self.name} has no counts for {steps} steps. Set denoising_steps to one of: {known}.",
        )
        return self.counts[steps]

    def write(self, file: Path, **about: Any) -> None:
        """Write the counts, and what else is to be known about them."""
        record = {"places": self.places, "counts": {str(steps): list(row) for steps, row in self.counts.items()}}
        write_json(file, record | about, indent=1)


def is_file_name(schedule: str) -> bool:
    """Whether a reveal schedule is a file rather than a name."""
    return schedule.endswith(SUFFIX)


def read(file: str) -> RevealFile:
    """The counts in a file.

    Raises:
        SettingsError: it is missing, no JSON, or not of this form.
    """
    try:
        found = json.loads(Path(file).expanduser().read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(
            f"There is no reveal schedule {file}. Measure one: unmask analyze schedule MODEL --data FILE --save {file}"
        ) from None
    except (OSError, ValueError, RuntimeError) as error:
        raise SettingsError(f"The reveal schedule {file} cannot be read: {error}. It has the form {_FORM}.") from None
    places, counts = (found.get(name) for name in ("places", "counts")) if isinstance(found, dict) else (None, None)
    if not (_is_count(places) and isinstance(counts, dict) and all(_is_entry(*entry) for entry in counts.items())):
        raise SettingsError(f"The reveal schedule {file} must have the form {_FORM}, got {json.dumps(found)[:80]}.")
    return RevealFile(places, {int(steps): tuple(row) for steps, row in counts.items()}, file)


def _is_entry(steps: str, row: object) -> bool:
    return steps.isdecimal() and isinstance(row, list) and all(map(_is_count, row))


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
