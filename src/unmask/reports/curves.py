"""Loss curves of one or more runs: `loss.png` to look at, `loss.csv` to compute with.

Metrics files enter (`metrics.jsonl`, one JSON object per logged step); two files leave.
The x axis is training tokens, the only fair one between methods; training losses of different objectives are
not comparable in height, held-out bits per byte are. Needs matplotlib, imported only when drawing.
"""

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, cycle
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from unmask.errors import ReportError
from unmask.runs import MetricsLine, metrics_lines
from unmask.writing import write_text, written_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Keys of a metrics line, in the order of the CSV. Losses are nats per token; `eval/stderr` is the standard
# error of `eval/bits_per_byte`.
METRICS = (
    "tokens",
    "train/loss",
    "train/grad_norm",
    "train/learning_rate",
    "eval/bits_per_byte",
    "eval/nats_per_token",
    "eval/stderr",
)

# Okabe and Ito, "Color Universal Design" (2008): told apart with any common colour vision.
METHOD_COLOURS = {
    "autoregressive": "#0072B2",
    "masked_diffusion": "#D55E00",
    "block_diffusion": "#009E73",
    "tidar": "#CC79A7",
}
OTHER_COLOURS = ("#000000", "#E69F00", "#56B4E9", "#8C8C8C")
LINE_STYLES = ("-", "--", ":", "-.")
# The smoothed curve averages over this share of a run's points.
SMOOTHING_SHARE = 0.05


class LossReport(NamedTuple):
    """The files that `loss_curves` wrote."""

    png: Path
    csv: Path


Records = dict[int, dict[str, float]]
"""The metrics measured at each step, by step in ascending order."""


class _Run(NamedTuple):
    name: str
    records: Records
    positions: Mapping[int, float]  # step -> where on the x axis
    colour: str
    line_style: str

    def steps(self, metric: str) -> list[int]:
        """Return the steps at which `metric` was measured and finite."""
        items = self.records.items()
        return [step for step, metrics in items if math.isfinite(metrics.get(metric, math.nan))]

    def x(self, steps: Iterable[int]) -> list[float]:
        return [self.positions[step] for step in steps]

    def values(self, metric: str, steps: Iterable[int], default: float = math.nan) -> list[float]:
        return [self.records[step].get(metric, default) for step in steps]


def read_metrics(path: Path) -> Records:
    """Read a `metrics.jsonl`: the METRICS measured at each step.

    Lines of one step are merged. If a metric occurs twice at a step, as after a resume from an earlier
    checkpoint, the later line counts.

    Raises:
        ReportError: the file is missing or empty, or a line is damaged; the message names file and line.
    """
    records: Records = {}
    for line in metrics_lines(path):
        if line.damage is not None:
            raise ReportError(f"{line.where}: {line.damage}. Delete the line if a crash cut it off.")
        records.setdefault(line.values["step"], {}).update(_numbers(line))
    if not records:
        raise ReportError(f"`{path}` holds no metrics. Did the run log its first step?")
    return dict(sorted(records.items()))


def _numbers(line: MetricsLine) -> dict[str, float]:
    """The METRICS on a line that were measured."""
    found = {name: line.values[name] for name in METRICS if name in line.values}
    for name, value in found.items():
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ReportError(f"{line.where}: `{name}` must be a number, got {value!r}.")
    return {name: value for name, value in found.items() if not math.isnan(value)}


def loss_curves(series: Mapping[str, Path], output: Path) -> LossReport:
    """Draw the runs of `series` (run name to its `metrics.jsonl`) into `output`/loss.png and loss.csv.

    A run whose name is or starts with that of a method has its colour; the folder is made if needed.

    Raises:
        ReportError: no runs, a metrics file that `read_metrics` rejects, or matplotlib is not installed.
    """
    if not series:
        raise ReportError("loss curves need at least one run, got none.")
    runs = {name: read_metrics(path) for name, path in series.items()}
    figure = _figure(runs)
    report = LossReport(png=output / "loss.png", csv=output / "loss.csv")
    _write_csv(runs, report.csv)
    with written_file(report.png) as file:
        figure.savefig(file, dpi=160)
    return report


def _write_csv(runs: Mapping[str, Records], path: Path) -> None:
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(("run", "step", "metric", "value"))
    for run, records in runs.items():
        for step, metrics in records.items():
            writer.writerows((run, step, name, metrics[name]) for name in METRICS if name in metrics)
    write_text(path, lines.getvalue())


def _figure(runs: Mapping[str, Records]) -> "Figure":
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise ReportError("loss curves need matplotlib. Run `pip install matplotlib`.") from error

    # No pyplot: it would choose a backend and keep the figure for the whole process.
    figure = Figure(figsize=(11, 4.6), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    in_tokens = all("tokens" in metrics for records in runs.values() for metrics in records.values())
    drawn = _styled(runs, in_tokens=in_tokens)
    _draw_training(left, drawn)
    _draw_held_out(right, drawn)
    for axes in (left, right):
        _dress(axes, "training tokens" if in_tokens else "step")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(runs)), frameon=False)
    return figure


def _styled(runs: Mapping[str, Records], *, in_tokens: bool) -> list[_Run]:
    """Give each run the colour of its method, and another line style where a colour is taken."""
    others = cycle(OTHER_COLOURS)
    num_taken: Counter[str] = Counter()
    styled: list[_Run] = []
    for name, records in runs.items():
        method = next((method for method in METHOD_COLOURS if name.startswith(method)), None)
        colour = METHOD_COLOURS[method] if method else next(others)
        positions = {step: metrics["tokens"] if in_tokens else step for step, metrics in records.items()}
        line_style = LINE_STYLES[num_taken[colour] % len(LINE_STYLES)]
        styled.append(_Run(name, records, positions, colour, line_style))
        num_taken[colour] += 1
    return styled


def _draw_training(axes: "Axes", runs: Sequence[_Run]) -> None:
    levels: list[float] = []
    for run in runs:
        steps = run.steps("train/loss")
        x, y = run.x(steps), run.values("train/loss", steps)
        smooth = _smoothed(y)
        axes.plot(x, y, color=run.colour, alpha=0.22, linewidth=0.8)
        axes.plot(x, smooth, color=run.colour, linestyle=run.line_style, linewidth=1.8, label=run.name)
        levels += smooth
    if levels:
        # A diffusion loss of one batch swings widely; the smoothed curves decide what the panel shows.
        margin = 0.1 * (max(levels) - min(levels)) or 0.1
        axes.set_ylim(min(levels) - margin, max(levels) + margin)
    axes.set_title("Training loss (light: each logged step, line: smoothed)", fontsize=10.5)
    axes.set_ylabel("loss [nats per token]")


def _smoothed(values: Sequence[float]) -> list[float]:
    """Return the moving average over a centred window, which the ends of the run cut off.

    Centred, because an exponential average lags behind a falling loss by its whole window.
    """
    sums = [0.0, *accumulate(values)]
    half = int(SMOOTHING_SHARE * len(values) / 2)
    spans = [(max(0, index - half), min(len(values), index + half + 1)) for index in range(len(values))]
    return [(sums[stop] - sums[start]) / (stop - start) for start, stop in spans]


def _draw_held_out(axes: "Axes", runs: Sequence[_Run]) -> None:
    num_points = 0
    for run in runs:
        steps = run.steps("eval/bits_per_byte")
        x, y = run.x(steps), run.values("eval/bits_per_byte", steps)
        errors = run.values("eval/stderr", steps, default=0.0)
        low = [value - error for value, error in zip(y, errors, strict=True)]
        high = [value + error for value, error in zip(y, errors, strict=True)]
        axes.plot(x, y, color=run.colour, linestyle=run.line_style, linewidth=1.8, marker="o", markersize=3.5)
        axes.fill_between(x, low, high, color=run.colour, alpha=0.2, linewidth=0)
        num_points += len(steps)
    if not num_points:
        axes.text(0.5, 0.5, "no held-out evaluation was logged", transform=axes.transAxes, ha="center")
    axes.set_title("Held-out bits per byte (band: one standard error)", fontsize=10.5)
    axes.set_ylabel("bits per byte")


def _dress(axes: "Axes", x_label: str) -> None:
    from matplotlib.ticker import EngFormatter

    axes.set_xlabel(x_label)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(color="#e3e3e3", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
