"""An information profile and what schedules cost under it, as CSV files and a picture. Needs matplotlib to draw.

In: a `Profile`, an `Analysis`, the conformance of its schedules, and perhaps generations. Out: profile.csv, excess.csv,
conformance.csv, generation.csv and schedules.png in a folder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unmask.analysis.information_profile import Profile
from unmask.analysis.schedule_generation import Generation
from unmask.analysis.schedules import OPTIMUM, Analysis, Conformance, Scored, isotonic
from unmask.analysis.tables import write_table
from unmask.writing import written_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, told apart with any common colour vision; the optimum is black.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C8C")
_MARKERS = "osD^vP*"
_NORMAL_95 = 1.96
_DOTS = 150


def write_tables(profile: Profile, found: Analysis, checks: Sequence[Conformance], folder: Path) -> list[Path]:
    """Write the numbers as CSV files; returns them."""
    curve = zip(profile.masked_M.tolist(), profile.mean().tolist(), profile.stderr().tolist(), strict=True)
    excess = (
        (number, rank, one.schedule, one.excess, one.low, one.high, one.optimality, one.first, one.last, _joined(one))
        for number, rows in found.scored.items()
        for rank, one in enumerate(rows, start=1)
    )
    scores = ("steps", "rank", "schedule", "excess", "low", "high", "optimality", "first_rank", "last_rank", "counts")
    kept = ((one.schedule, one.steps, one.rounding, one.angle, "; ".join(one.faults)) for one in checks)
    return [
        write_table(folder / "profile.csv", ("masked", "nats_per_token", "stderr"), curve),
        write_table(folder / "excess.csv", scores, excess),
        write_table(folder / "conformance.csv", ("schedule", "steps", "rounding_places", "angle", "faults"), kept),
    ]


def write_generations(made: Sequence[Generation], folder: Path) -> Path:
    """Write what was generated and judged as a CSV file."""
    titles = [field.name for field in dataclasses.fields(Generation)]
    return write_table(folder / "generation.csv", titles, (dataclasses.astuple(one) for one in made))


def draw(profile: Profile, found: Analysis, file: Path) -> None:
    """The profile with its interval, and the excess of each schedule by steps with intervals."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _draw_profile(left, profile)
    _draw_excess(right, found)
    for axes in (left, right):
        axes.grid(color="#e3e3e3", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    with written_file(file) as temporary:
        figure.savefig(temporary, dpi=_DOTS)


def _draw_profile(axes: Axes, profile: Profile) -> None:
    masked, mean, error = profile.masked_M.numpy(), profile.mean(), _NORMAL_95 * profile.stderr()
    axes.fill_between(masked, (mean - error).numpy(), (mean + error).numpy(), color="#0072B2", alpha=0.2, linewidth=0)
    axes.plot(masked, mean.numpy(), color="#0072B2", marker="o", markersize=2.5, linewidth=1, label="measured")
    axes.plot(masked, isotonic(mean).numpy(), color="black", linewidth=1, linestyle="--", label="nearest rising curve")
    axes.set_xlabel(f"masked tokens m of {profile.places}")
    axes.set_ylabel("f(m) [nats per masked token]")
    axes.set_title(f"Information profile, {profile.documents} documents (band: 95 %)", fontsize=10.5)
    axes.legend(frameon=False)


def _draw_excess(axes: Axes, found: Analysis) -> None:
    """One line per schedule; markers stand side by side, so that intervals do not cover each other."""
    series: dict[str, list[Scored]] = {}
    for rows in found.scored.values():
        for one in rows:
            series.setdefault(one.schedule, []).append(one)
    names = sorted(series, key=lambda name: (name == OPTIMUM, name))
    steps = list(found.scored)
    for place, name in enumerate(names):
        colour = "black" if name == OPTIMUM else _COLOURS[place % len(_COLOURS)]
        rows = series[name]
        shift = 1 + 0.02 * (place - (len(names) - 1) / 2)
        axes.errorbar(
            [one.steps * shift for one in rows],
            [one.excess for one in rows],
            # A percentile interval need not hold the estimate.
            yerr=[[max(one.excess - one.low, 0) for one in rows], [max(one.high - one.excess, 0) for one in rows]],
            color=colour,
            marker=_MARKERS[place % len(_MARKERS)],
            markersize=4,
            linewidth=1.1,
            capsize=2,
            label=name,
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(steps, [str(one) for one in steps])
    axes.minorticks_off()
    if min(one.low for rows in found.scored.values() for one in rows) > 0:
        axes.set_yscale("log")
    axes.set_xlabel("steps")
    axes.set_ylabel("excess [nats per token]")
    axes.set_title(f"Excess on {len(found.score_documents)} documents (bars: 95 %)", fontsize=10.5)
    axes.legend(frameon=False, fontsize=8)


def _joined(one: Scored) -> str:
    return "+".join(map(str, one.counts))
