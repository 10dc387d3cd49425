"""A comparison's record as pictures, PNG in memory. Needs matplotlib, imported only when drawing.

Likelihoods and differences with their intervals, the learning curves of runs, speed, and the quality of generated texts
against their variety. A bound is drawn hollow, with an arrow towards the side where the true value may lie.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from unmask.reports.curves import METHOD_COLOURS, OTHER_COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH, _DOTS = 9.0, 130
_GREY, _GRID = "#666666", "#e3e3e3"
_MARKERS = "osD^vP*X"


def pictures(record: dict[str, Any]) -> dict[str, bytes]:
    """Title and PNG of every picture that the record has numbers for, in order."""
    models, pairs = record["models"], record["pairs"]
    made = {
        "Bits per byte": _picture(1.2 + 0.5 * len(models), lambda axes: _likelihoods(axes, models)),
        "Differences": _picture(1.3 + 0.5 * len(pairs), lambda axes: _differences(axes, pairs)),
    }
    if any(model["training"] and model["training"]["curve"] for model in models):
        made["Learning"] = _picture(4.2, lambda axes: _curves(axes, models))
    generation = record["generation"]
    if generation is not None and generation["judge"] is not None:
        made["Generated texts"] = _picture(4.2, lambda axes: _quality(axes, models, generation["quality"]))
    made["Speed"] = _picture(1.5 + 0.6 * len(models), lambda axes: _speed(axes, models))
    return made


def _picture(height: float, draw: Callable[[Axes], None]) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.grid(color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    draw(axes)
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=_DOTS)
    return written.getvalue()


def _likelihoods(axes: Axes, models: Sequence[dict[str, Any]]) -> None:
    for place, (model, colour) in enumerate(zip(models, _colours(models), strict=True)):
        _dot(axes, place, model["bits_per_byte"], model, colour, hollow=model["kind"] != "exact")
        label = f"{'at most ' * (model['kind'] != 'exact')}{model['bits_per_byte']:.3f}"
        axes.annotate(
            label, (model["bits_per_byte"], place), (0, 9), textcoords="offset points", ha="center", fontsize=9
        )
    _rows(axes, [model["name"] for model in models])
    ends = [value for one in models for value in (one["low"], one["high"], one["bits_per_byte"]) if value is not None]
    spread = max(ends) - min(ends) or 0.1
    arrow = 0.08 * spread
    for place, (model, colour) in enumerate(zip(models, _colours(models), strict=True)):
        if model["kind"] != "exact":
            start = min(value for value in (model["low"], model["bits_per_byte"]) if value is not None)
            axes.annotate(
                "",
                (start - arrow, place),
                (start, place),
                arrowprops={"arrowstyle": "->", "color": colour, "linestyle": "--"},
            )
    axes.set_xlim(min(ends) - 0.2 * spread, max(ends) + 0.15 * spread)
    axes.set_xlabel("bits per byte (lower is better; hollow, with an arrow: an upper bound, the true value lies below)")


def _differences(axes: Axes, pairs: Sequence[dict[str, Any]]) -> None:
    axes.axvline(0, color="#000000", linewidth=1)
    plain = {"facecolor": "#ffffff", "edgecolor": "none", "pad": 1}
    for place, pair in enumerate(pairs):
        colour = METHOD_COLOURS["block_diffusion"] if pair["winner"] else _GREY
        _dot(axes, place, pair["difference"], pair, colour, hollow=pair["winner"] is None)
        text = f"{pair['winner']} is better" if pair["winner"] else f"no winner shown ({pair['basis']})"
        axes.annotate(
            text, (pair["difference"], place), (0, 9), textcoords="offset points", ha="center", fontsize=9, bbox=plain
        )
    _rows(axes, [f"{pair['a']}\n- {pair['b']}" for pair in pairs])
    axes.margins(x=0.25)
    axes.set_xlabel("difference in bits per byte, with its interval (below 0: the first has the lower figure)")


def _curves(axes: Axes, models: Sequence[dict[str, Any]]) -> None:
    from matplotlib.ticker import EngFormatter

    for number, (model, colour) in enumerate(zip(models, _colours(models), strict=True)):
        if not model["training"] or not model["training"]["curve"]:
            continue
        points = model["training"]["curve"]
        x, y = ([point[key] for point in points] for key in ("tokens", "bits_per_byte"))
        error = [point["stderr"] for point in points]
        axes.errorbar(
            x, y, yerr=error, color=colour, marker=_MARKERS[number % len(_MARKERS)], markersize=4, label=model["name"]
        )
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("training tokens")
    axes.set_ylabel("bits per byte of the run's own held-out rows")
    axes.legend(frameon=False)


def _quality(axes: Axes, models: Sequence[dict[str, Any]], quality: dict[str, dict[str, float]]) -> None:
    colours = dict(zip((model["name"] for model in models), _colours(models), strict=True))
    for number, (name, own) in enumerate(quality.items()):
        y, error = (own[key] / math.log(2) for key in ("judge_nats_per_byte", "judge_stderr"))
        marker = _MARKERS[number % len(_MARKERS)]
        axes.errorbar(
            own["unigram_entropy"], y, yerr=error, color=colours.get(name, "#000000"), marker=marker, capsize=3,
            linestyle="none", markersize=7, label=name,
        )  # fmt: skip
    axes.margins(0.2)
    axes.set_xlabel("entropy of the words, bits per word (higher: more varied)")
    axes.set_ylabel("bits per byte under the judge\n(lower: likelier)")
    axes.legend(frameon=False)


def _speed(axes: Axes, models: Sequence[dict[str, Any]]) -> None:
    from matplotlib.ticker import EngFormatter

    for what, shift, colour in (("scoring", -0.18, "#56B4E9"), ("generation", 0.18, "#E69F00")):
        for place, model in enumerate(models):
            if model[what] is not None:
                value = model[what]["bytes_per_second"]
                axes.barh(place + shift, value, height=0.32, color=colour, label=what if place == 0 else None)
                axes.annotate(f" {value:,.0f}", (value, place + shift), va="center", fontsize=9)
    axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    _rows(axes, [model["name"] for model in models])
    axes.set_xlabel("bytes per second (logarithmic)")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _dot(axes: Axes, place: int, value: float, figure: dict[str, Any], colour: str, *, hollow: bool) -> None:
    if figure["low"] is not None:
        axes.plot([figure["low"], figure["high"]], [place, place], color=colour, linewidth=2.2, solid_capstyle="butt")
    face = "#ffffff" if hollow else colour
    axes.plot(value, place, marker="o", markersize=8, color=colour, markerfacecolor=face, markeredgewidth=1.8)


def _rows(axes: Axes, names: Sequence[str]) -> None:
    """Names beside the rows, the first one on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.75)


def _colours(models: Sequence[dict[str, Any]]) -> list[str]:
    """The colour of each model's method, or another where that is taken."""
    taken: list[str] = []
    for model in models:
        choices = [METHOD_COLOURS.get(model["method"], OTHER_COLOURS[0]), *OTHER_COLOURS]
        taken.append(next((one for one in choices if one not in taken), choices[0]))
    return taken
