"""A run's gradients by corruption over its training: records -> the matrices of four heatmaps.

In: the records of a run, from its `metrics.jsonl` or from wandb. Out: a `History`, and a `Matrix` for each heatmap of
TDLM, NaN where no sequence of the probe lay in a bucket. The norms of an Unmask run are those of real gradients
(`gradients`); TDLM's own are read too, and are something else: see `COUNTED_NOTE`.
Shapes: L = 3 levels of corruption, S measurements, R rows, C columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unmask.errors import ReportError
from unmask.runs import metrics_lines

Floats = NDArray[np.float64]

LEVELS = {"low": "low (up to 30 % masked)", "medium": "medium (30 to 70 %)", "high": "high (above 70 %)"}
RATIOS = {"high_to_low": ("high", "low"), "medium_to_low": ("medium", "low"), "high_to_medium": ("high", "medium")}
HEALTH = ("mean", "std", "variation", "range", "stability", "balance", "measurements")
MOST_POINTS = 50
"""Columns of a picture at most."""
ROLLING = 10
"""Measurements that a stability over time looks back on, itself among them."""
COUNTED_NOTE = (
    "These are TDLM's own columns: the norm of the whole gradient times the share of the sequences in a bucket, so a "
    "ratio of two of them is a ratio of counts and says nothing about gradients."
)
_WHOLE = "whole"
_MEASURED = {_WHOLE: "probe/gradient/norm"} | {level: f"probe/gradient/{level}_norm" for level in LEVELS}
_COUNTED = {_WHOLE: "research/gradient_norm_total"} | {
    level: f"research/gradient_norm_{level}_corruption" for level in LEVELS
}
# Of metrics.jsonl, of TDLM's records, and of wandb.
_STEPS = ("step", "train/step", "_step")


class Records(NamedTuple):
    """What a source holds.

    Attributes:
        rows: one mapping from names to values for each record.
        damage: where and why something was skipped.
    """

    rows: list[dict[str, Any]]
    damage: list[str]


@dataclass(frozen=True)
class History:
    """Gradient norms over a run.

    Attributes:
        source: where they are from, for messages and titles.
        is_measured: False for TDLM's columns.
        step_S: int64, ascending.
        norm_LS: of each level's share of the gradient; NaN where it had no sequence.
        whole_S: of the whole gradient.
    """

    source: str
    is_measured: bool
    step_S: NDArray[np.int64]
    norm_LS: Floats
    whole_S: Floats


@dataclass(frozen=True)
class Matrix:
    """The numbers of a heatmap.

    Attributes:
        name: of its files.
        corner: what the rows are.
        rows: their names.
        columns: their names; steps, where they are points in time.
        value_RC: NaN where there is nothing.
    """

    name: str
    corner: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    value_RC: Floats


# --- reading ----------------------------------------------------------------------------------------------------------


def read_metrics(path: Path) -> Records:
    """The records of a `metrics.jsonl`. A damaged line is skipped, and named with its number.

    Raises:
        ReportError: the file cannot be read.
    """
    found = Records([], [])
    for line in metrics_lines(path):
        damage = line.damage or _damage(line.values)
        if damage is None:
            found.rows.append(line.values)
        else:
            found.damage.append(f"{line.where}: {damage}")
    return found


def _damage(record: Mapping[str, Any]) -> str | None:
    """Which of the numbers that are needed is none."""
    for name in (*_MEASURED.values(), *_COUNTED.values()):
        if name in record and not _is_number(record[name]):
            return f"its `{name}` must be a number or null and is {record[name]!r}"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def history(rows: Iterable[Mapping[str, Any]], source: str) -> History:
    """What records say about gradients by corruption. Of a step that occurs twice, as after a resume, the last counts.

    Args:
        rows: records; those that say nothing about it are passed over.
        source: where they are from.

    Raises:
        ReportError: none says anything, or every bucket was always empty.
    """
    rows = list(rows)
    for names in (_MEASURED, _COUNTED):
        by_step = {_step(row): row for row in rows if any(names[level] in row for level in LEVELS)}
        if by_step:
            break
    else:
        raise ReportError(
            f"{source} has no gradient metrics ({', '.join(_MEASURED[level] for level in LEVELS)}). A diffusion run "
            "writes them every training.detailed_metrics_steps steps, and never by default: train with "
            "training.detailed_metrics_steps=500, for example."
        )
    steps = sorted(by_step)
    # TDLM writes 0 for an empty bucket.
    is_measured = names is _MEASURED
    found = {
        kind: np.array([_value(by_step[step].get(name), zero_is_empty=not is_measured) for step in steps])
        for kind, name in names.items()
    }
    norm_LS = np.stack([found[level] for level in LEVELS])
    if np.isnan(norm_LS).all():
        raise ReportError(f"The gradient metrics of {source} are all empty: no bucket ever held a sequence.")
    return History(source, is_measured, np.array(steps, dtype=np.int64), norm_LS, found[_WHOLE])


def _step(row: Mapping[str, Any]) -> int:
    return round(next((row[name] for name in _STEPS if _is_number(row.get(name)) and math.isfinite(row[name])), 0))


def _value(value: Any, *, zero_is_empty: bool) -> float:
    if not _is_number(value) or not math.isfinite(value) or (zero_is_empty and value == 0):
        return math.nan
    return float(value)


# --- matrices ---------------------------------------------------------------------------------------------------------


def matrices(found: History, most: int = MOST_POINTS) -> tuple[Matrix, Matrix, Matrix, Matrix]:
    """The numbers of the four heatmaps.

    - corruption_level_vs_time: the norm of each level;
    - gradient_ratios_over_time: ratios of norms;
    - gradient_health_matrix: over *all* measurements of a level's norm, or of a ratio: mean, standard deviation
      (n - 1), that over the mean, range, stability 1 / (1 + std) and, for ratios, balance 1 / (1 + |mean - 1|);
    - gradient_summary_dashboard: the norms, the whole one, high over low, and the stability of the last `ROLLING`
      measurements of each level.

    Args:
        found: the norms.
        most: measurements that the matrices over time show: the first, the last, and evenly many in between.
    """
    ratio = ratios(found)
    shown = np.unique(np.linspace(0, len(found.step_S) - 1, min(most, len(found.step_S))).round().astype(int))
    steps = tuple(str(step) for step in found.step_S[shown])

    def over_time(name: str, corner: str, rows: Mapping[str, Floats]) -> Matrix:
        return Matrix(name, corner, tuple(rows), steps, np.stack([*rows.values()])[:, shown])

    norms = dict(zip(LEVELS, found.norm_LS, strict=True))
    summary = norms | {_WHOLE: found.whole_S, "high_to_low": ratio["high_to_low"]}
    summary |= {f"stability_{level}": _rolling_stability(norms[level]) for level in LEVELS}
    return (
        over_time("corruption_level_vs_time", "level", norms),
        over_time("gradient_ratios_over_time", "ratio", ratio),
        Matrix(
            "gradient_health_matrix",
            "norm_or_ratio",
            (*LEVELS, *RATIOS),
            HEALTH,
            np.array(
                [_health(norm_S) for norm_S in norms.values()]
                + [_health(ratio_S, is_ratio=True) for ratio_S in ratio.values()]
            ),
        ),
        over_time("gradient_summary_dashboard", "series", summary),
    )


def ratios(found: History) -> dict[str, Floats]:
    """Each ratio of norms, [S]; NaN where either is missing or the lower one is 0."""
    norms = dict(zip(LEVELS, found.norm_LS, strict=True))
    lower = {level: np.where(norm_S == 0, np.nan, norm_S) for level, norm_S in norms.items()}
    return {name: norms[over] / lower[under] for name, (over, under) in RATIOS.items()}


def _health(value_S: Floats, *, is_ratio: bool = False) -> list[float]:
    """The columns of HEALTH."""
    known = value_S[~np.isnan(value_S)]
    if not len(known):
        return [math.nan] * (len(HEALTH) - 1) + [0.0]
    mean, std = float(known.mean()), _std(known)
    return [
        mean,
        std,
        std / mean if mean else math.nan,
        float(np.ptp(known)),
        1 / (1 + std),
        1 / (1 + abs(mean - 1)) if is_ratio else math.nan,
        float(len(known)),
    ]


def _rolling_stability(value_S: Floats) -> Floats:
    """1 / (1 + std) of the values among the last `ROLLING` measurements; NaN where these are fewer than two."""
    windows = (value_S[max(0, end - ROLLING) : end] for end in range(1, len(value_S) + 1))
    return np.array([1 / (1 + _std(window[~np.isnan(window)])) for window in windows])


def _std(known: Floats) -> float:
    return float(known.std(ddof=1)) if len(known) > 1 else math.nan
