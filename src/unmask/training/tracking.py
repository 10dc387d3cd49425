"""What trackers are told, and under which names: ours, or those of the first public TiDAR port.

In: the records of a run, as they go to `metrics.jsonl`. Out: values to log, each with its step. A record's training
metrics are means over the steps since the one before: `training.logging_steps=1` gives the port's value of each batch.
"""

from __future__ import annotations

import dataclasses
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from unmask.errors import CheckpointError
from unmask.runs import RunFolder
from unmask.settings.recipe import Recipe
from unmask.settings.training import TAGGED, TrainingSettings
from unmask.writing import write_text

if TYPE_CHECKING:
    from accelerate import Accelerator

DIRECTORY = "TENSORBOARD_LOG_PATH"
"""Environment variable of the port: the folder of TensorBoard's files, instead of the run folder."""
PORT_TAGS = {
    "train/loss": "train/batch_loss",
    "train/ar_loss": "train/batch_ar_loss",
    "train/diffusion_loss": "train/batch_diffusion_loss",
    "train/ar_accuracy": "train/batch_accuracy",
    "train/diffusion_accuracy": "train/batch_accuracy_diff",
    "train/learning_rate": "train/lr",
}
"""Our name of a metric -> the port's."""
_EPOCH_TAGS = {
    "train/loss": "train/epoch_loss",
    "train/ar_loss": "train/epoch_ar_loss",
    "train/diffusion_loss": "train/epoch_diffusion_loss",
}
_IDS = "trackers.json"
_NAMED = {"wandb": "name", "swanlab": "experiment_name"}
"""Trackers that let us choose the id of a run -> their word for its name."""
Logged = tuple[int, dict[str, float]]


def tags_of(settings: TrainingSettings, *, rows: int, start: int) -> OwnTags | PortTags:
    """The names that settings choose, for a run over `rows` rows that goes on after `start` steps."""
    if settings.tracker_tags == "unmask":
        return OwnTags()
    return PortTags(rows=rows, batch_size=settings.batch_size, start=start)


def report_to_trackers(recipe: Recipe, run: RunFolder, accelerator: Accelerator, *, is_other_run: bool) -> None:
    """Begin a run at its trackers, or go on with the one that the run folder names.

    Args:
        recipe: of the run.
        run: its folder.
        accelerator: its processes; every one of them calls this.
        is_other_run: whether it went back, and writes steps again that the tracker, which only appends, has already.
    """
    settings = recipe.training
    known = {} if is_other_run else _known(run)
    ids = {tracker: known.get(tracker) or uuid.uuid4().hex[:21] for tracker in settings.report_to if tracker in _NAMED}
    if "mlflow" in settings.report_to and "mlflow" in known:
        ids["mlflow"] = known["mlflow"]  # which names its runs itself
    options = run_options(settings, recipe.name, ids)
    accelerator.init_trackers(settings.project, config=_flat(dataclasses.asdict(recipe)), init_kwargs=options)
    if accelerator.is_main_process:
        if "mlflow" in settings.report_to:
            started: Any = accelerator.get_tracker("mlflow", unwrap=True)
            ids["mlflow"] = str(started.info.run_id)
        if ids:
            write_text(run.root / _IDS, json.dumps(known | ids, indent=2) + "\n")


def run_options(settings: TrainingSettings, name: str, ids: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """What each tracker is told of a run when it begins: its name, id and tags, where it has them, in its own words."""
    options: dict[str, dict[str, Any]] = {}
    for tracker in settings.report_to:
        if tracker in TAGGED:
            tags = {"tags": list(settings.run_tags)} if settings.run_tags else {}
            options[tracker] = {_NAMED[tracker]: name, "id": ids[tracker], "resume": "allow"} | tags
        elif tracker == "trackio":  # one run for each name
            options[tracker] = {"name": name, "resume": "allow"}
        elif tracker == "mlflow":
            options[tracker] = {"run_id": ids[tracker]} if tracker in ids else {"run_name": name}
    return options


def _known(run: RunFolder) -> dict[str, str]:
    """The ids that the trackers know a run by.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        found = json.loads((run.root / _IDS).read_text(encoding="utf-8"))
        if isinstance(found, dict) and all(isinstance(one, str) for one in found.values()):
            return found
        raise ValueError("it must hold names and ids")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{run.root / _IDS} is damaged: {error}. Remove the file, and the trackers begin a run of their own."
        ) from None


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level of plain values, as trackers want them."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, int | float | str | bool) else str(value)
    return flat


def logging_folder(default: str) -> str:
    """Where TensorBoard's files go."""
    return os.environ.get(DIRECTORY) or default


class OwnTags:
    """Records under their own names."""

    def __call__(self, record: Mapping[str, Any]) -> Iterator[Logged]:
        yield record["step"], {name: value for name, value in record.items() if name != "step"}


class PortTags:
    """Records under the port's names, and the mean of each epoch when it ends.

    What the port has no name for keeps ours. A record counts for the epoch of its last step, and an epoch that was
    interrupted is averaged over what came after.

    Args:
        rows: rows of an epoch.
        batch_size: rows of a step.
        start: steps that were done before.
    """

    def __init__(self, *, rows: int, batch_size: int, start: int) -> None:
        self.rows, self.batch_size = rows, batch_size
        self._step, self._epoch, self._count = start, self._epoch_of(start + 1), 0
        self._sums: dict[str, float] = {}

    def __call__(self, record: Mapping[str, Any]) -> Iterator[Logged]:
        step = record["step"]
        yield step, {PORT_TAGS.get(name, name): value for name, value in record.items() if name != "step"}
        if "train/loss" not in record:
            return
        if self._epoch_of(step) != self._epoch:
            yield from self._ended()
            self._epoch = self._epoch_of(step)
        steps, self._step = step - self._step, step
        self._count += steps
        for name, tag in _EPOCH_TAGS.items():
            if name in record:
                self._sums[tag] = self._sums.get(tag, 0.0) + steps * record[name]
        if step * self.batch_size >= (self._epoch + 1) * self.rows:
            yield from self._ended()

    def _epoch_of(self, step: int) -> int:
        """The epoch, from 0, that the last row of a step belongs to."""
        return (step * self.batch_size - 1) // self.rows

    def _ended(self) -> Iterator[Logged]:
        if self._count:
            yield self._epoch, {tag: value / self._count for tag, value in self._sums.items()}
        self._sums, self._count = {}, 0
