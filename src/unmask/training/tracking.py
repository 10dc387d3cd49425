"""What trackers are told, and under which names: ours, or those of the first public TiDAR port.

In: the records of a run, as they go to `metrics.jsonl`. Out: values to log, each with its step. A record's training
metrics are means over the steps since the one before: `training.logging_steps=1` gives the port's value of each batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from unmask.settings.training import TAGGED, TrainingSettings

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
Logged = tuple[int, dict[str, float]]


def tags_of(settings: TrainingSettings, *, rows: int, start: int) -> OwnTags | PortTags:
    """The names that settings choose, for a run over `rows` rows that goes on after `start` steps."""
    if settings.tracker_tags == "unmask":
        return OwnTags()
    return PortTags(rows=rows, batch_size=settings.batch_size, start=start)


def run_options(settings: TrainingSettings, name: str) -> dict[str, dict[str, Any]]:
    """What each tracker is told of a run when it begins: its name and tags, where it has them, as its own words are."""
    words = {"wandb": "name", "swanlab": "experiment_name"}
    tags = {"tags": list(settings.run_tags)} if settings.run_tags else {}
    return {tracker: {words[tracker]: name} | tags for tracker in settings.report_to if tracker in TAGGED}


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
