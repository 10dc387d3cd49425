"""What the cases of the GPU script share: models, the clock of the device, and a record that is written as it grows."""

from __future__ import annotations

import gc
import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import measure
import torch
from shape import QUICK, Shape
from torch import Tensor

from unmask.models.backbone import AttentionBackend, Backbone
from unmask.settings.model import DiffusionConfig, Method

BLOCK = 4
# Of SDAR's published configurations: Qwen3's, with embeddings of their own at either end.
SIZES = {
    "1.7b": Shape(2048, 6144, 28, heads=16, key_value_heads=8, head_width=128, vocabulary=151_936, block_length=BLOCK),
    "4b": Shape(2560, 9728, 36, heads=32, key_value_heads=8, head_width=128, vocabulary=151_936, block_length=BLOCK),
}
MASK_TOKEN_ID = 151_669  # SDAR's; the rows behind it are spare
# What a case may fail with without ending the script: every error of PyTorch, and checks that do not hold.
ERRORS = (RuntimeError, ValueError, TypeError, AssertionError, ImportError)


class Skipped(Exception):
    """A case does not apply here; the text says why."""


def mask_token_id(shape: Shape) -> int:
    return min(MASK_TOKEN_ID, shape.mask_token_id)


def backbone(
    shape: Shape,
    device: torch.device,
    dtype: torch.dtype,
    *,
    method: Method = "block_diffusion",
    attention_backend: AttentionBackend = "dense",
) -> Backbone:
    """The stock class with random weights, made on the device; the same ones at each call."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            network = shape.network()
    finally:
        torch.set_default_dtype(usual)
    return Backbone(network, entry(shape, method), attention_backend=attention_backend).eval()


def entry(shape: Shape, method: Method) -> DiffusionConfig:
    mask = mask_token_id(shape)
    if method == "autoregressive":
        return DiffusionConfig(method=method, vocabulary_size=mask)
    return DiffusionConfig(method=method, block_length=BLOCK, mask_token_id=mask, vocabulary_size=mask + 1)


def random_ids(shape: Shape, rows: int, columns: int, *, seed: int = 1) -> Tensor:
    """Random tokens on the CPU, int64 [rows, columns]; never the mask."""
    return torch.randint(0, mask_token_id(shape), (rows, columns), generator=torch.Generator().manual_seed(seed))


# --- time and memory ---------------------------------------------------------------------------------------------


def wait(device: torch.device) -> None:
    """Until everything that was asked of the device is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def timed(job: Callable[[], object], device: torch.device, *, rounds: int, warm_up: int = 1) -> list[float]:
    """Seconds of each round, after some that are not counted."""
    times = []
    for number in range(warm_up + rounds):
        wait(device)
        began = time.perf_counter()
        job()
        wait(device)
        if number >= warm_up:
            times.append(time.perf_counter() - began)
    return times


def milliseconds(job: Callable[[], object], device: torch.device, *, rounds: int, warm_up: int = 2) -> float:
    """The median."""
    return 1000 * statistics.median(timed(job, device, rounds=rounds, warm_up=warm_up))


def forget_peak(device: torch.device) -> None:
    """Begin to count the peak of memory anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_gib(device: torch.device) -> float | None:
    """The most that tensors took since then; None on the CPU, where nobody counts."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None


def release(device: torch.device) -> None:
    """Give back the device's memory that dropped objects held."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


class Marks:
    """The moments at which the forwards of a network began, and the end, on the device's own clock.

    The host may run far ahead of the device, so its clock does not tell when a forward began.
    """

    def __init__(self, network: torch.nn.Module, device: torch.device) -> None:
        self.device = device
        self._marks: list[Any] = []
        self._hook = network.register_forward_pre_hook(lambda *_: self._mark())

    def _mark(self) -> None:
        if self.device.type == "cuda":
            self._marks.append(torch.cuda.Event(enable_timing=True))
            self._marks[-1].record()
        else:
            self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """How long each forward took, with all that follows until the next one; ends the counting."""
        self._hook.remove()
        self._mark()
        wait(self.device)
        pairs = zip(self._marks[:-1], self._marks[1:], strict=True)
        if self.device.type == "cuda":
            return [begin.elapsed_time(end) / 1000 for begin, end in pairs]
        return [end - begin for begin, end in pairs]


# --- cases -------------------------------------------------------------------------------------------------------


@dataclass
class Bench:
    """Where and how the cases run, and what they found.

    Attributes:
        dtype: of the weights.
        sizes: the shapes by name.
        quick: a test of the script itself: toy shapes, one round.
        compiles: whether cases that compile run.
        deadline: when no further case begins, on the clock of `time.monotonic`.
        record: the results; a dictionary of dictionaries.
        file: where it is written after every case.
    """

    device: torch.device
    dtype: torch.dtype
    sizes: dict[str, Shape]
    quick: bool
    compiles: bool
    deadline: float
    record: dict[str, Any]
    file: Path | None
    failed: list[str] = field(default_factory=list)

    def case(self, *path: str, job: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """Run one case and put what it returns at `path` of the record; None if it did not run to its end."""
        began = time.monotonic()
        result: dict[str, Any]
        error_text = None
        if began > self.deadline:
            result = {"skipped": "no time is left"}
        else:
            try:
                result = job()
            except torch.OutOfMemoryError as error:
                result = {"skipped": f"memory is short: {_first_line(error)}"}
            except Skipped as reason:
                result = {"skipped": str(reason)}
            except ERRORS as error:
                result, error_text = {"failed": f"{type(error).__name__}: {_first_line(error)}"}, traceback.format_exc()
        release(self.device)
        name = ", ".join(path)
        if error_text is not None:
            self.failed.append(name)
            print(error_text, flush=True)
        for outcome in ("skipped", "failed"):
            if outcome in result:
                print(f"{name}: {outcome}: {result[outcome]}", flush=True)
        ran = "skipped" not in result and "failed" not in result
        self.put(*path, value=result | {"case_seconds": time.monotonic() - began})
        return result if ran else None

    def put(self, *path: str, value: object) -> None:
        """Set a value of the record and write it."""
        *outer, last = path
        inside = self.record
        for name in outer:
            inside = inside.setdefault(name, {})
        inside[last] = value
        measure.written(self.record, self.file)

    def rounds(self, full: int) -> int:
        return 1 if self.quick else full


def toy_sizes() -> dict[str, Shape]:
    return {"tiny": QUICK}


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
