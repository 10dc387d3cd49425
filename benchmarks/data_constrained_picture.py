"""The pictures of the data-constrained study: a record enters, a PNG leaves.

`draw` shows the arms over epochs: along the longest runs on the selection part, and by budget on the report part.
`draw_control` shows masked diffusion's bound and TDLM's number of the same checkpoints beside autoregression.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_constrained_runs import ARMS
from data_constrained_score import TDLM

from unmask.reports.curves import METHOD_COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLES = {
    "autoregressive": (METHOD_COLOURS["autoregressive"], "-", "o"),
    "autoregressive-regularized": ("#56B4E9", "--", "s"),
    "autoregressive-masked-input": ("#2B6A8F", ":", "^"),
    "masked-diffusion": (METHOD_COLOURS["masked_diffusion"], "-", "o"),
    "masked-diffusion-unweighted": ("#E69F00", "--", "s"),
    "block-diffusion": (METHOD_COLOURS["block_diffusion"], "-.", "D"),
    "tidar": (METHOD_COLOURS["tidar"], ":", "v"),
}
"""Colour, line and mark of each arm."""


def draw(record: Mapping[str, Any], file: Path) -> None:
    """The arms over epochs; seeds as a band from the lowest to the highest."""
    figure, (along, by_budget) = _figure(2, (12.4, 5.4), share_y=True)
    arms = [arm for arm in ARMS if any(line["arm"] == arm for line in record["results"])]
    for arm in arms:
        _draw_course(along, [one for one in record["trajectories"] if one["arm"] == arm], arm)
        _draw_budgets(by_budget, [one for one in record["results"] if one["arm"] == arm], arm)
    along.set_title("along the longest runs, selection half", fontsize=10.5)
    by_budget.set_title("by budget, report half: line best checkpoint, hollow last one", fontsize=10.5)
    along.set_ylabel("held-out bits per byte (diffusion: bound)")
    for axes in (along, by_budget):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("epochs")
        _plain_ticks(axes)
    handles, labels = by_budget.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    _save(figure, file)


def draw_control(record: Mapping[str, Any], file: Path) -> None:
    """AR's best checkpoint of each budget, masked diffusion's, and what TDLM's loss says of the latter."""
    figure, (axes,) = _figure(1, (7.4, 4.2), share_y=True)
    series = {
        "AR, exact": ("autoregressive", "best", METHOD_COLOURS["autoregressive"], "-"),
        "masked diffusion, bound": ("masked-diffusion", "best", METHOD_COLOURS["masked_diffusion"], "-"),
        f"the same checkpoints, {TDLM}": ("masked-diffusion", "best_tdlm", "#6E6E6E", "--"),
    }
    for label, (arm, figure_of, colour, style) in series.items():
        lines = [line for line in record["results"] if line["arm"] == arm]
        budgets = sorted({line["epochs"] for line in lines})
        values = [[line[figure_of] for line in lines if line["epochs"] == budget] for budget in budgets]
        _draw_seeds(axes, budgets, values, label=label, color=colour, linestyle=style, marker="o", markersize=4.5)
    axes.set_xscale("log")
    axes.set_xlabel("epochs of the run")
    axes.set_ylabel("held-out bits per byte, best checkpoint")
    _plain_ticks(axes)
    axes.legend(frameon=False, fontsize=9)
    _save(figure, file)


def _draw_course(axes: Axes, runs: Sequence[Mapping[str, Any]], arm: str) -> None:
    if not runs:
        return
    colour, style, _ = STYLES[arm]
    steps = [point["step"] for point in runs[0]["points"]]
    epochs = [step / steps[-1] * runs[0]["epochs"] for step in steps]
    values = [*zip(*([point["bits_per_byte"] for point in run["points"]] for run in runs), strict=True)]
    _draw_seeds(axes, epochs, values, color=colour, linestyle=style)


def _draw_budgets(axes: Axes, lines: Sequence[Mapping[str, Any]], arm: str) -> None:
    colour, style, mark = STYLES[arm]
    budgets = sorted({line["epochs"] for line in lines})
    best, final = (
        [[line[which] for line in lines if line["epochs"] == budget] for budget in budgets]
        for which in ("best", "final")
    )
    _draw_seeds(axes, budgets, best, label=ARMS[arm], color=colour, linestyle=style, marker=mark, markersize=4.5)
    last = [statistics.fmean(one) for one in final]
    axes.scatter(budgets, last, marker=mark, s=42, facecolors="none", edgecolors=colour, linewidths=1.3, zorder=3)


def _draw_seeds(axes: Axes, places: Sequence[float], values: Sequence[Sequence[float]], **options: Any) -> None:
    """A line through the means of the seeds, and a band from the lowest to the highest."""
    axes.plot(places, [statistics.fmean(one) for one in values], linewidth=1.8, **options)
    low, high = [min(one) for one in values], [max(one) for one in values]
    axes.fill_between(places, low, high, color=options["color"], alpha=0.2, linewidth=0)


def _figure(columns: int, size: tuple[float, float], *, share_y: bool) -> tuple[Figure, Sequence[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08))
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns, squeeze=False, sharey=share_y)[0]


def _plain_ticks(axes: Axes) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.yaxis.set_major_locator(FixedLocator([2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 10, 12]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(FixedLocator([1, 2, 5, 10, 20, 40, 100, 200, 400, 1000]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)
