"""The picture of `block_quality.py`: quality and variety of texts against the tokens that a forward reveals.

Results enter (one mapping for each setting), a PNG leaves. One curve for each model and block length: thresholds as a
line, fixed paces as hollow marks; autoregression as single marks, the real stories as a level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.reports.curves import LINE_STYLES, METHOD_COLOURS, OTHER_COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Results = Sequence[Mapping[str, Any]]
PANELS = {
    "judge_nats_per_byte": "nats per byte under the judge\n(lower: likelier)",
    "unigram_entropy": "entropy of the words, bits\n(lower: less varied)",
}
# Sequential, light to dark, told apart in grey as well: a longer block is a darker one.
BLOCK_COLOURS = ("#8FD175", METHOD_COLOURS["block_diffusion"], "#2B6A8F", "#3B2A66", "#000000")
POINTS = ("o", "D", "^", "v")
PACE_POINTS = ("o", "s", "^", "v")


def draw(results: Results, file: Path) -> None:
    """Write the picture: a column for each temperature, a row for each of PANELS."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    temperatures = sorted({one["temperature"] for one in results if "temperature" in one})
    size = (5.6 * len(temperatures), 7.6)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(PANELS), len(temperatures), squeeze=False, sharex=True, sharey="row")
    for row, (measure, label) in zip(grid, PANELS.items(), strict=True):
        for axes, temperature in zip(row, temperatures, strict=True):
            own = [one for one in results if one.get("temperature", temperature) == temperature]
            _draw_blocks(axes, own, measure)
            _draw_others(axes, own, measure)
            _dress(axes)
        row[0].set_ylabel(label)
    for axes, temperature in zip(grid[0], temperatures, strict=True):
        axes.set_title("greedy" if temperature == 0 else f"temperature {temperature:g}", fontsize=10.5)
    for axes in grid[-1]:
        axes.set_xlabel("tokens per forward")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)


def _draw_blocks(axes: Axes, results: Results, measure: str) -> None:
    blocks = [one for one in results if one["method"] == "block_diffusion"]
    names = list(dict.fromkeys(one["model"] for one in blocks))
    lengths = sorted({one["block_length"] for one in blocks})
    for name, length in dict.fromkeys((one["model"], one["block_length"]) for one in blocks):
        own = [one for one in blocks if (one["model"], one["block_length"]) == (name, length)]
        colour = BLOCK_COLOURS[lengths.index(length) % len(BLOCK_COLOURS)]
        style = LINE_STYLES[names.index(name) % len(LINE_STYLES)]
        dynamic = sorted((one["tokens_per_forward"], one[measure]) for one in own if "confidence_threshold" in one)
        static = [(one["tokens_per_forward"], one[measure]) for one in own if "confidence_threshold" not in one]
        label = f"{name}, block {length}"
        line = {"color": colour, "linestyle": style, "linewidth": 1.8, "marker": "o", "markersize": 3.5}
        axes.plot(*zip(*dynamic, strict=True), label=f"{label}, thresholds", **line) if dynamic else None
        hollow = {"s": 34, "facecolors": "white", "edgecolors": colour, "linewidths": 1.4, "zorder": 3}
        marker = PACE_POINTS[names.index(name) % len(PACE_POINTS)]
        axes.scatter(*zip(*static, strict=True), marker=marker, label=f"{label}, fixed pace", **hollow)


def _draw_others(axes: Axes, results: Results, measure: str) -> None:
    singles = [one for one in results if one["method"] == "autoregressive"]
    for at, one in enumerate(singles):
        mark = {"marker": POINTS[at % len(POINTS)], "s": 60, "color": METHOD_COLOURS["autoregressive"], "zorder": 4}
        axes.scatter(one["tokens_per_forward"], one[measure], label=f"{one['model']}, autoregressive", **mark)
    for one in results:
        if one["method"] == "real":
            axes.axhline(one[measure], color=OTHER_COLOURS[-1], linestyle=":", linewidth=1.5, label=one["model"])


def _dress(axes: Axes) -> None:
    from matplotlib.ticker import NullLocator, ScalarFormatter

    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(color="#e3e3e3", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
