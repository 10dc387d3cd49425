"""`unmask analyze gradients RUN`: gradient norms by corruption over a run, as matrices and heatmaps."""

from __future__ import annotations

import argparse
import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unmask.cli.options import parser
from unmask.cli.output import note, show
from unmask.destinations import check_folder
from unmask.errors import ReportError
from unmask.runs import RunFolder

if TYPE_CHECKING:
    from unmask.analysis.gradient_history import Matrix, Records

_EXAMPLES = """\
  unmask analyze gradients runs/python-docs
  unmask analyze gradients runs/python-docs --output-dir pictures
  unmask analyze gradients offline-run-20250811_123519-fh5nsj6z --wandb-path runs/python-docs
  unmask analyze gradients run-20250811_123519-fh5nsj6z --entity my-team --project my-project
"""
# More lines than this of what was damaged are counted and not shown.
_MOST_LINES = 5


def run(arguments: Sequence[str]) -> int:
    """Run the verb; returns the exit code."""
    options = parser("analyze gradients", "Gradient norms by corruption over a run, as heatmaps.", _EXAMPLES)
    options.add_argument(
        "run", metavar="RUN", help="run folder with a metrics.jsonl, or a run of wandb: run-DATE_TIME-ID, name or path"
    )
    options.add_argument(
        "--wandb-path", "--wandb_path", type=Path, default=Path("wandb"), metavar="DIR", help="of its runs [wandb]"
    )
    options.add_argument("--entity", metavar="NAME", help="of a run on wandb's server [default: WANDB_ENTITY, or you]")
    options.add_argument("--project", metavar="NAME", help="of a run on wandb's server [default: WANDB_PROJECT]")
    options.add_argument(
        "--output-dir",
        "--output_dir",
        type=Path,
        metavar="DIR",
        help="[default: RUN/plots/gradients; gradients/ID for a run of wandb]",
    )
    parsed = options.parse_args(list(arguments))
    if parsed.output_dir is not None:
        check_folder(parsed.output_dir, "--output-dir")
    from unmask.analysis.gradient_history import COUNTED_NOTE, history, matrices
    from unmask.analysis.gradient_pictures import draw, write_matrices

    records, source, folder = _read(parsed)
    _warn(records.damage)
    found = history(records.rows, source)
    if not found.is_measured:
        note(f"note: {COUNTED_NOTE}")
    made = matrices(found)
    folder = parsed.output_dir or folder
    files = write_matrices(made, folder)
    if importlib.util.find_spec("matplotlib") is None:
        note('no pictures without matplotlib; install it with: pip install "unmask[plots]"')
    else:
        files += draw(found, made, folder)
    steps = found.step_S.tolist()
    show(f"{source}: {len(steps)} measurement{'s' * (len(steps) != 1)}, steps {steps[0]} to {steps[-1]}\n")
    show(_table(made[2]))
    show(f"\n{' '.join(map(str, files))}")
    return 0


def _read(parsed: argparse.Namespace) -> tuple[Records, str, Path]:
    """The records, where they are from, and where their pictures go."""
    from unmask.analysis.gradient_history import read_metrics
    from unmask.analysis.wandb_runs import find, read_file, read_server

    path = Path(parsed.run)
    metrics = path if path.suffix == ".jsonl" else RunFolder(path).metrics
    if metrics.is_file():
        run_folder = RunFolder(metrics.parent)
        return read_metrics(metrics), run_folder.root.resolve().name, run_folder.plots / "gradients"
    found = find(parsed.run, parsed.wandb_path)
    if found is None:
        raise ReportError(
            f"There is no run {parsed.run}: neither {metrics} nor a folder with a .wandb file here or in "
            f"{parsed.wandb_path}. wandb names its runs run-DATE_TIME-ID; --wandb-path says where their folders lie."
        )
    folder = Path("gradients") / found.id
    if found.file is None:
        return read_server(found.id, entity=parsed.entity, project=parsed.project), found.id, folder
    if parsed.entity or parsed.project:
        note(f"note: --entity and --project are not needed, {found.file} is here")
    return read_file(found.file), found.id, folder


def _warn(damage: Sequence[str]) -> None:
    for line in damage[:_MOST_LINES]:
        note(f"skipped {line}")
    if damage:
        note(f"skipped {len(damage)} damaged record{'s' * (len(damage) != 1)} in all")


def _table(matrix: Matrix) -> str:
    lines = [f"| | {' | '.join(matrix.columns)} |", f"|---|{'---:|' * len(matrix.columns)}"]
    for name, values in zip(matrix.rows, matrix.value_RC.tolist(), strict=True):
        cells = ("-" if math.isnan(value) else f"{value:.4g}" for value in values)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)
