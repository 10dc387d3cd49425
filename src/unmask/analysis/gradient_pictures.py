"""The matrices of a run's gradients as CSV files, and as four pictures. Needs matplotlib to draw.

Norms have the colours of viridis, by their logarithm where they span more than a factor of `_WIDE`. Ratios have a scale
from blue over white to red that is symmetrical about 1 in the logarithm: half and twice are equally far from white.
Grey, hatched cells are those where no sequence of the probe lay in a bucket.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unmask.analysis.gradient_history import LEVELS, RATIOS, ROLLING, Floats, History, Matrix
from unmask.analysis.tables import write_table
from unmask.writing import written_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colorbar import Colorbar
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with any common colour vision.
_COLOURS = {"low": "#0072B2", "medium": "#E69F00", "high": "#D55E00"}
_MARKERS = {"low": "o", "medium": "s", "high": "^"}
_RATIO_NAMES = {name: f"{over} / {under}" for name, (over, under) in RATIOS.items()}
_WIDE = 20.0
_MOST_TICKS = 11
_DOTS = 150
_HATCH: dict[str, Any] = {"facecolor": "#e4e4e4", "edgecolor": "#9a9a9a", "hatch": "////"}
# TDLM's band around equal norms.
_BAND = (0.5, 1.5)


def write_matrices(made: Sequence[Matrix], folder: Path) -> list[Path]:
    """Write each matrix as a CSV file with its name; what is NaN is empty. Returns the files."""
    return [
        write_table(
            folder / f"{one.name}.csv",
            (one.corner, *one.columns),
            (
                (name, *("" if math.isnan(value) else f"{value:.8g}" for value in values))
                for name, values in zip(one.rows, one.value_RC.tolist(), strict=True)
            ),
        )
        for one in made
    ]


def draw(found: History, made: tuple[Matrix, Matrix, Matrix, Matrix], folder: Path) -> list[Path]:
    """Draw each matrix as a PNG file with its name; returns the files."""
    norms, ratios, health, summary = made
    count = len(found.step_S)
    figures = [
        _over_time(norms, [*LEVELS.values()], _titled("Gradient norm by corruption", found), count, is_ratio=False),
        _over_time(ratios, [*_RATIO_NAMES.values()], _titled("Ratios of gradient norms", found), count, is_ratio=True),
        _health(health, found),
        _dashboard(summary, health, found),
    ]
    files = [folder / f"{one.name}.png" for one in made]
    for figure, file in zip(figures, files, strict=True):
        with written_file(file) as temporary:
            figure.savefig(temporary, dpi=_DOTS)
    return files


# --- heatmaps ---------------------------------------------------------------------------------------------------------


def _over_time(matrix: Matrix, names: Sequence[str], title: str, measurements: int, *, is_ratio: bool) -> Figure:
    figure = _figure(11, 3.4)
    axes = figure.subplots()
    _cells(axes, matrix.value_RC, **(_ratio_colours(matrix.value_RC) if is_ratio else _norm_colours(matrix.value_RC)))
    axes.set_yticks(range(len(names)), names)
    _label_steps(axes, matrix.columns, measurements)
    what = "ratio of norms, symmetrical about 1" if is_ratio else "L2 norm of the share\nof the gradient"
    bar = figure.colorbar(axes.images[0], ax=axes, pad=0.015, aspect=14)
    _label_bar(bar, what, is_ratio=is_ratio)
    axes.set_title(title, fontsize=11)
    _explain_gaps(figure, matrix.value_RC)
    return figure


def _health(matrix: Matrix, found: History) -> Figure:
    """Norms and ratios apart, each with what has its own unit on the left and scores from 0 to 1 on the right."""
    figure = _figure(11, 5.6)
    grid = figure.subplots(2, 2, width_ratios=[5, 2.6])
    at = {name: number for number, name in enumerate(matrix.columns)}
    blocks = [(slice(0, len(LEVELS)), [*LEVELS.values()]), (slice(len(LEVELS), None), [*_RATIO_NAMES.values()])]
    for (left, right), (rows, names), is_ratio in zip(grid, blocks, (False, True), strict=True):
        counts = matrix.value_RC[rows, at["measurements"]].tolist()
        named = [f"{name}\n{_counted(count)}" for name, count in zip(names, counts, strict=True)]
        _table(left, matrix.value_RC[rows], ["mean", "std", "range"], at, cmap="viridis", vmin=0)
        _table(
            right,
            matrix.value_RC[rows],
            ["variation", "stability"] + ["balance"] * is_ratio,
            at,
            cmap="cividis",
            vmin=0,
            vmax=1,
        )
        left.set_yticks(range(len(named)), named)
        right.set_yticks([])
        unit = "ratios of norms" if is_ratio else "norms"
        _label_bar(figure.colorbar(left.images[0], ax=left, pad=0.02, aspect=14), unit, is_ratio=False)
        if is_ratio:
            bar = figure.colorbar(right.images[0], ax=grid[:, 1], pad=0.03, aspect=30, extend="max")
            _label_bar(bar, "without a unit; variation is std / mean", is_ratio=False)
    figure.suptitle(_titled("Gradients over all of the run", found), fontsize=11)
    return figure


def _table(axes: Axes, value_RC: Floats, names: Sequence[str], at: dict[str, int], **colours: Any) -> None:
    """The named columns as coloured cells with their numbers."""
    shown_RC = value_RC[:, [at[name] for name in names]]
    image = _cells(axes, shown_RC, **colours)
    axes.set_xticks(range(len(names)), names)
    axes.tick_params(length=0)
    for row, column in np.ndindex(*shown_RC.shape):
        value = float(shown_RC[row, column])
        if math.isnan(value):
            continue
        red, green, blue, _ = image.cmap(image.norm(value))
        is_dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
        axes.text(
            column, row, f"{value:.3g}", ha="center", va="center", fontsize=9, color="white" if is_dark else "black"
        )


def _cells(axes: Axes, value_RC: Floats, **colours: Any) -> Any:
    axes.patch.set(**_HATCH)
    axes.spines[:].set_visible(False)
    image = axes.imshow(np.ma.masked_invalid(value_RC), aspect="auto", interpolation="nearest", **colours)
    # White between rows; columns of time join up.
    axes.set_yticks([row - 0.5 for row in range(1, len(value_RC))], minor=True)
    axes.grid(which="minor", axis="y", color="white", linewidth=1.5)
    axes.tick_params(which="minor", length=0)
    return image


def _norm_colours(value_RC: Floats) -> dict[str, Any]:
    from matplotlib.colors import LogNorm, Normalize

    known = value_RC[value_RC > 0]
    if _is_wide(value_RC):
        return {"cmap": "viridis", "norm": LogNorm(known.min(), known.max(), clip=True)}
    return {"cmap": "viridis", "norm": Normalize(0, known.max() if len(known) else 1)}


def _ratio_colours(value_RC: Floats) -> dict[str, Any]:
    from matplotlib.colors import LogNorm

    known = value_RC[value_RC > 0]
    reach = max(2.0, float(np.exp(np.abs(np.log(known)).max()))) if len(known) else 2.0
    return {"cmap": "RdBu_r", "norm": LogNorm(1 / reach, reach, clip=True)}


def _label_bar(bar: Colorbar, label: str, *, is_ratio: bool) -> None:
    from matplotlib.colors import LogNorm

    if isinstance(bar.norm, LogNorm):
        low, high = float(bar.norm.vmin or 1), float(bar.norm.vmax or 1)
        label += "" if is_ratio else " (log scale)"
        ticks = _doublings(low, high) if is_ratio else [one for one in _decades(low, high) if low <= one <= high]
        bar.set_ticks(ticks, labels=[f"{one:g}" if one >= 1 or not is_ratio else f"1/{1 / one:g}" for one in ticks])
        bar.ax.minorticks_off()
    bar.set_label(label, fontsize=9)


def _doublings(low: float, high: float) -> list[float]:
    """Powers of two from 1 outwards, at most nine of them."""
    most = math.floor(min(math.log2(high), -math.log2(low)) + 1e-9)
    return [2.0**power for power in range(-most, most + 1) if power % max(1, math.ceil(most / 4)) == 0]


def _decades(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    digits = (1, 2, 5) if len(powers) <= 4 else (1,)
    return [digit * 10.0**power for power in powers for digit in digits]


def _label_steps(axes: Axes, steps: Sequence[str], measurements: int) -> None:
    every = max(1, math.ceil(len(steps) / _MOST_TICKS))
    places = range(0, len(steps), every)
    axes.set_xticks(places, [f"{int(steps[place]):,}" for place in places])
    some = "" if len(steps) == measurements else f"{len(steps)} of "
    axes.set_xlabel(f"training step ({some}{_counted(measurements)}, a column each)")


def _counted(number: float) -> str:
    return f"{number:.0f} measurement{'s' * (number != 1)}"


def _titled(text: str, found: History) -> str:
    """A title that says where numbers are from, and if they are not what they seem."""
    warning = "" if found.is_measured else "\nTDLM's columns: norm of the whole gradient x share of the sequences"
    return f"{text}: {found.source}{warning}"


def _explain_gaps(figure: Figure, value_RC: Floats) -> None:
    from matplotlib.patches import Patch

    if np.isnan(value_RC).any():
        gap = Patch(label="no sequence of the probe in a bucket", **_HATCH)
        figure.legend(handles=[gap], loc="outside lower right", frameon=False, fontsize=9)


# --- dashboard --------------------------------------------------------------------------------------------------------


def _dashboard(summary: Matrix, health: Matrix, found: History) -> Figure:
    """Means, norms, the ratio high over low, and stability."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    figure = _figure(12, 8)
    (means, norms), (ratio, stability) = figure.subplots(2, 2)
    steps = [int(step) for step in summary.columns]
    series = dict(zip(summary.rows, summary.value_RC, strict=True))
    of_health = {row: dict(zip(health.columns, values, strict=True)) for row, values in _by_row(health)}

    for level in LEVELS:
        mean, std = of_health[level]["mean"], of_health[level]["std"]
        means.bar(level, 0 if math.isnan(mean) else mean, color=_COLOURS[level])
        if not math.isnan(std):
            means.errorbar(level, mean, yerr=[[min(std, mean)], [std]], color="black", capsize=4)
    means.set(title="Mean norm of each level, over all measurements (bars: std)", ylabel="L2 norm", xlabel="corruption")

    styles: dict[str, Any] = {"markersize": 3, "linewidth": 1.2}
    for level in LEVELS:
        own = styles | {"color": _COLOURS[level], "marker": _MARKERS[level], "label": level}
        norms.plot(steps, series[level], **own)
        stability.plot(steps, series[f"stability_{level}"], **own)
    norms.plot(steps, series["whole"], color="black", linestyle="--", linewidth=1.2, label="whole gradient")
    norms.set(title="Norms", ylabel="L2 norm")
    stability.set(
        title=f"Stability: 1 / (1 + std of the last {ROLLING} measurements)", ylabel="1: constant", ylim=(0, 1.03)
    )

    ratio.axhspan(*_BAND, color="#009E73", alpha=0.13, linewidth=0, label=f"{_BAND[0]:g} to {_BAND[1]:g}")
    ratio.axhline(1, color="black", linewidth=0.9, linestyle="--", label="equal norms")
    ratio.plot(steps, series["high_to_low"], color="#CC79A7", marker="D", label="high / low", **styles)
    ratio.set(title="Norm at high corruption over that at low", ylabel="ratio of norms")
    ratio.set_ylim(bottom=0)

    for axes in (norms, ratio, stability):
        axes.set_xlabel("training step")
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
        axes.legend(frameon=False, fontsize=9)
    for axes in (means, norms, ratio, stability):
        axes.grid(color="#e3e3e3", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set_fontsize(10.5)
    if _is_wide(summary.value_RC[: len(LEVELS)]):
        norms.set_yscale("log")
        norms.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        norms.yaxis.set_major_formatter(lambda norm, _: f"{norm:g}")
        norms.yaxis.set_minor_locator(NullLocator())
    else:
        norms.set_ylim(bottom=0)
    figure.suptitle(_titled("Gradients by corruption", found), fontsize=12)
    return figure


def _by_row(matrix: Matrix) -> zip[tuple[str, list[float]]]:
    return zip(matrix.rows, matrix.value_RC.tolist(), strict=True)


def _is_wide(values: Floats) -> bool:
    known = values[values > 0]
    return len(known) > 0 and known.max() / known.min() > _WIDE


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
