"""`AttentionMap`s as pictures: the rule of a layout, and a heatmap of every layer and head. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unmask.analysis.attention_maps import AttentionMap
from unmask.writing import written_file

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

# With more tokens than this on an axis their texts would not be legible.
MOST_LABELS = 48
_INCHES_PER_TOKEN = 0.19
_DOTS = 130
_SEEN, _UNSEEN = "#0072B2", "#f4f4f4"


def draw_rule(found: AttentionMap, queries: Sequence[str], keys: Sequence[str], file: Path) -> None:
    """Which key each query sees, with the texts of both."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    rows, columns = found.sees_QK.shape
    width, height = max(3.0, columns * _INCHES_PER_TOKEN + 1.2), max(2.4, rows * _INCHES_PER_TOKEN + 1.4)
    figure = Figure(figsize=(min(width, 14.0), min(height, 14.0)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.imshow(found.sees_QK.numpy(), cmap=ListedColormap([_UNSEEN, _SEEN]), vmin=0, vmax=1, interpolation="nearest")
    _label(axes, queries, keys)
    _grid(axes, rows, columns)
    axes.set_title(f"{found.layout}: what each token (row) sees", fontsize=10)
    _save(figure, file)


def draw_weights(
    found: AttentionMap, queries: Sequence[str], keys: Sequence[str], file: Path, layers: Sequence[int]
) -> None:
    """A heatmap for each of the layers (a row of them) and heads; white sees nothing or what the rule hides.

    All heads share one scale, the square root of the weight, so that small weights stay visible.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    heads = found.weights_NHQK.shape[1]
    rows, columns = found.sees_QK.shape
    side = min(3.2, max(1.5, 0.06 * columns))
    size = (side * heads + 0.9, (side * rows / columns + 0.35) * len(layers) + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(layers), heads, squeeze=False, sharex=True, sharey=True)
    scale = {"cmap": "viridis_r", "vmin": 0, "vmax": 1, "interpolation": "nearest"}
    for line, layer in zip(grid, layers, strict=True):
        for head, axes in enumerate(line):
            axes.imshow(_visible(found, layer, head), **scale)
            axes.set_title(f"layer {layer}, head {head}", fontsize=8)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.tick_params(labelsize=6)
    if len(layers) == heads == 1:
        _label(grid[0][0], queries, keys)
    bar = figure.colorbar(grid[0][0].images[0], ax=grid, shrink=0.6, pad=0.01)
    bar.set_label("square root of the weight", fontsize=8)
    figure.suptitle(f"{found.layout}: attention weights (rows: queries, columns: keys)", fontsize=10)
    _save(figure, file)


def _visible(found: AttentionMap, layer: int, head: int) -> NDArray[np.float32]:
    weights_QK = found.weights_NHQK[layer, head].sqrt()
    return weights_QK.masked_fill(~found.sees_QK, float("nan")).numpy()


def _label(axes: Axes, queries: Sequence[str], keys: Sequence[str]) -> None:
    if len(keys) <= MOST_LABELS:
        axes.set_xticks(range(len(keys)), keys, rotation=90, fontsize=7)
    if len(queries) <= MOST_LABELS:
        axes.set_yticks(range(len(queries)), queries, fontsize=7)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)


def _grid(axes: Axes, rows: int, columns: int) -> None:
    """White lines between cells, while there is room for them."""
    if max(rows, columns) <= 2 * MOST_LABELS:
        axes.set_xticks([at - 0.5 for at in range(1, columns)], minor=True)
        axes.set_yticks([at - 0.5 for at in range(1, rows)], minor=True)
        axes.grid(which="minor", color="white", linewidth=0.6)
        axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)


def _save(figure: object, file: Path) -> None:
    with written_file(file) as temporary:
        figure.savefig(temporary, dpi=_DOTS)  # type: ignore[attr-defined]
