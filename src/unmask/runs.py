"""Run folders: where each thing lies in one, how it is written, and what RUN_OR_MODEL means.

runs/NAME/
  config.yaml  environment.json  metrics.jsonl  status.json  text.json  split.json  trackers.json
  checkpoints/step-N/   best, latest (links to one of them)
  plots/  samples/  final/ (opens with from_pretrained)
  branches/after-step-N/   what came after step N before the run went back to it
  lock.json   who works on it now
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

from unmask.errors import CheckpointError, ReportError
from unmask.writing import PARTIAL, remove_leftovers, temporary_beside

State = Literal["running", "finished", "interrupted", "failed"]
"""What a run says of itself in `status.json`."""
ADAPTER_FILE = "adapter_config.json"
STEP = re.compile(r"step-(0|[1-9][0-9]{0,14})")
"""Names of checkpoints. More digits are no step that a run can reach."""


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def status(self) -> Path:
        return self.root / "status.json"

    @property
    def split(self) -> Path:
        return self.root / "split.json"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def plots(self) -> Path:
        return self.root / "plots"

    @property
    def samples(self) -> Path:
        return self.root / "samples"

    @property
    def final(self) -> Path:
        return self.root / "final"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def branches(self) -> Path:
        return self.root / "branches"

    def exists(self) -> bool:
        """Whether a run has been started here."""
        return self.config.exists() or self.checkpoints.exists()

    def has_begun(self) -> bool:
        """Whether there is something to lose: a step that was recorded or saved, or a model."""
        has_records = self.metrics.is_file() and self.metrics.stat().st_size > 0
        return has_records or bool(self.saved_steps()) or self.final.exists()

    def checkpoint(self, name: str) -> Path | None:
        """The complete checkpoint that `best`, `latest` or `step-N` names, or None."""
        path = self.root / name if name in ("best", "latest") else self.checkpoints / name
        return path.resolve() if path.exists() else None

    def saved_steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        found = ((STEP.fullmatch(path.name), path) for path in self.checkpoints.glob("step-*"))
        return sorted(int(match[1]) for match, path in found if match and path.is_dir())

    def link(self, name: str, step: int) -> None:
        """Let `best` or `latest` mean the checkpoint of a step; atomic."""
        temporary = temporary_beside(self.root / name)
        temporary.symlink_to(Path("checkpoints") / f"step-{step}", target_is_directory=True)
        os.replace(temporary, self.root / name)

    def clean(self) -> None:
        """Remove what an interrupted process left behind; for the one that holds the run's lock."""
        for folder in (self.root, self.checkpoints, self.data, self.samples, self.plots):
            remove_leftovers(folder)
            # What another machine left looks alive, and cannot be: nobody else holds the lock.
            for leftover in folder.glob(f"{PARTIAL}*"):
                shutil.rmtree(leftover) if leftover.is_dir() and not leftover.is_symlink() else leftover.unlink()


def environment() -> dict[str, Any]:
    """What a run should record about where it ran."""
    packages = ("unmask", "torch", "transformers", "accelerate", "tokenizers", "safetensors", "numpy", "peft")
    versions = {name: metadata.version(name) for name in packages if _installed(name)}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "packages": versions,
        "command": sys.argv,
        "git": _git_state(),
    }


def locate(run_or_model: str | Path) -> str:
    """The model folder (or hub id) that RUN_OR_MODEL means: a run's final model, else its best, else its latest one.

    Raises:
        CheckpointError: it looks like a path and there is no model.
    """
    path = Path(run_or_model)
    if _is_model(path):
        return str(path)
    run = RunFolder(path)
    for candidate in (run.final, run.root / "best", run.root / "latest"):
        if _is_model(candidate):
            return str(candidate)
    text = str(run_or_model)
    if path.is_dir():
        raise CheckpointError(
            f"There is no model in {text}: it has neither config.json nor {ADAPTER_FILE} nor final/, best or latest. "
            f"It holds: {', '.join(sorted(one.name for one in path.iterdir())[:12]) or 'nothing'}."
        )
    if path.is_file():
        raise CheckpointError(f"{text} is a file, and a model is a folder. Give that.")
    if text.startswith((".", "/", "~", "runs/")) or text.count("/") != 1:
        there = path.parent if path.parent.is_dir() else Path(".")
        found = ", ".join(sorted(one.name for one in there.iterdir() if one.is_dir())[:12])
        raise CheckpointError(
            f"There is no folder {text if text.isprintable() else ascii(text)}. Folders in {there}: {found or 'none'}."
        )
    return text


def _is_model(path: Path) -> bool:
    """Whether a folder holds a model, or something in the place of its configuration, which loading says more about."""
    return any(os.path.lexists(path / name) for name in ("config.json", ADAPTER_FILE))


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git_state() -> dict[str, Any] | None:
    """Commit of the working folder and whether it has uncommitted changes; None outside a repository."""
    if shutil.which("git") is None:
        return None
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode != 0:
        return None
    status = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=False)
    return {"commit": head.stdout.strip(), "dirty": bool(status.stdout.strip())}


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON object as a line; what is not finite, which JSON does not have, becomes null: not known.

    A loss that is not finite stops a run before it is recorded. What remains is unknown (the error of a single mask) or
    of a step that fp16 left out (its gradients overflowed), and no reader may rank or draw it.
    """
    plain = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in record.items()
    }
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(plain, allow_nan=False) + "\n")


class MetricsLine(NamedTuple):
    """A line of a metrics file.

    Attributes:
        where: FILE:LINE.
        values: its record, with NaN for null and a `step`, a whole number of at least 0; empty where it is damaged.
        damage: what is wrong with it, or None.
        is_cut_off: whether a kill left it damaged: it is the last one and has no end.
    """

    where: str
    values: dict[str, Any]
    damage: str | None = None
    is_cut_off: bool = False


def metrics_lines(path: Path) -> Iterator[MetricsLine]:
    """The lines of a file that `append_record` wrote, but for blank ones. What damage means is for the reader to say.

    Raises:
        ReportError: the file cannot be read.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ReportError(f"`{path}` cannot be read: {error.strerror}. Give the `metrics.jsonl` of a run.") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            yield MetricsLine(where, _record(line))
        except (ValueError, RecursionError) as error:
            shown = line[:60].decode(errors="replace")
            yield MetricsLine(where, {}, f"{error}: {shown!r}", is_cut_off=number == len(lines))


def _record(line: bytes) -> dict[str, Any]:
    """The record on a line. Raises ValueError with the reason where it is none."""
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise ValueError("not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg}, column {error.colno})") from None
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    step = record.get("step")
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        raise ValueError(f"its `step` must be a whole number of at least 0 and is {step!r}")
    return {name: math.nan if value is None else value for name, value in record.items()}
