"""Processes and precision, through `accelerate`."""

from __future__ import annotations

import contextlib
import gc
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from unmask.errors import SettingsError, require
from unmask.settings.deepspeed import engine_config
from unmask.settings.training import TrainingSettings
from unmask.training.tracking import logging_folder

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")


def start(settings: TrainingSettings, folder: Path) -> Accelerator:
    """The processes of this run, as `accelerate launch` or `torchrun` started them (or just this one).

    Raises:
        MissingExtraError: a tracker or DeepSpeed is asked for and not installed.
        SettingsError: the batch cannot be split, or the precision is not available here.
    """
    from accelerate import Accelerator, DeepSpeedPlugin
    from accelerate.state import AcceleratorState
    from accelerate.utils import ProjectConfiguration

    for tracker in settings.report_to:
        require(tracker, extra="track", purpose=f"training.report_to={tracker}")
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None and settings.precision == "fp16":
        raise SettingsError("training.precision fp16 needs a GPU. Use bf16 or fp32 on the CPU.")
    if device is None and settings.attention_backend == "flex":
        raise SettingsError(
            "training.attention_backend `flex` needs a GPU: FlexAttention has no backward pass on the CPU. Use `dense`."
        )
    if device is None and settings.deepspeed_config is not None:
        raise SettingsError(
            "training.deepspeed_config needs a GPU: on the CPU accelerate would leave DeepSpeed out silently. Set "
            "training.deepspeed_config=null, which takes the same steps without it."
        )
    plugin = None
    if settings.deepspeed_config is not None:
        require("deepspeed", extra="gpu", purpose="training.deepspeed_config")
        plugin = DeepSpeedPlugin(hf_ds_config=_engine_config(settings, Path(settings.deepspeed_config)))
    # The library keeps the first run's precision for the whole process; a second run may want another.
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        mixed_precision="no" if settings.precision == "fp32" else settings.precision,
        cpu=device is None,
        log_with=list(settings.report_to) or None,
        project_config=ProjectConfiguration(str(folder), logging_dir=logging_folder(str(folder))),
        deepspeed_plugin=plugin,
    )
    if settings.batch_size % accelerator.num_processes:
        raise SettingsError(
            f"training.batch_size must be a multiple of the number of processes ({accelerator.num_processes}), got "
            f"{settings.batch_size}."
        )
    return accelerator


def _engine_config(settings: TrainingSettings, file: Path) -> dict[str, Any]:
    """The DeepSpeed file under the recipe's settings, for as many processes as the launcher started."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"training.deepspeed_config {file} cannot be read as JSON: {error}.") from None
    return engine_config(config, settings, processes=int(os.environ.get("WORLD_SIZE", "1")))


@contextlib.contextmanager
def parting(accelerator: Accelerator, *, is_last: bool) -> Iterator[None]:
    """Close the trackers behind a run and, after the last run of several processes, their group.

    What the run prepared must be unreachable by then. A network's wrapper that outlives the group destroys it holding
    the interpreter's lock, and waits for threads that wait for that lock: the process never ends. So after an error,
    whose traceback holds the wrapper, the group ends with the process.
    """
    try:
        yield
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()
    if is_last and torch.distributed.is_available() and torch.distributed.is_initialized():
        gc.collect()  # a wrapper in a cycle of references is unreachable, and still there
        accelerator.state.destroy_process_group()


def from_main(value: T, accelerator: Accelerator) -> T:
    """The main process's value, in every process."""
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0] if accelerator.num_processes > 1 else value


def summed(values: Tensor, accelerator: Accelerator) -> Tensor:
    """The sum over all processes."""
    return accelerator.reduce(values, reduction="sum") if accelerator.num_processes > 1 else values  # type: ignore


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether no process holds all weights."""
    from accelerate.utils import DistributedType

    return accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
