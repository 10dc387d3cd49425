"""Kills at chosen file operations of a run, and what a run must be in the end that was killed and resumed.

In: a recipe and the number of an operation. Out: the run folder. A run is a child of this process, forked, so that it
needs no second import; it counts what it does to the files below a folder (by Python's audit events, and flushes), and
kills itself at one of them. A record that is being appended is torn first.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from unmask.runs import RunFolder, metrics_lines
from unmask.settings.recipe import Recipe
from unmask.training.lock import LOCK
from unmask.training.run import train
from unmask.writing import PARTIAL

_CHANGES = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.symlink", "os.truncate", "fsync"}
_PHASES = (  # what an operation belongs to, by its path; the first that fits
    ("linking", r"/(\.partial-)?(best|latest)[^/]*$"),
    ("saving", r"/checkpoints"),
    ("tokenising", r"/data"),
    ("finishing", r"/(\.partial-)?(final|samples|plots)"),
    ("recording", r"metrics\.jsonl"),
    ("opening", r""),
)


class Operation(NamedTuple):
    """One change of a file.

    Attributes:
        event: what is done.
        path: to what.
        phase: of a run.
    """

    event: str
    path: str
    phase: str


def operations(recipe: Recipe) -> list[Operation]:
    """What a whole run does to the files below its `output_dir`, in order."""
    log = Path(recipe.output_dir).parent / "operations.jsonl"
    status = _forked(lambda: _watched(recipe, lambda event, path: _append(log, (event, path))))
    assert status == 0, f"the uninterrupted run ended with {status}: {_tail(recipe)}"
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    log.unlink()
    return [Operation(event, path, _phase(path)) for event, path in lines]


def killed_at(recipe: Recipe, number: int) -> bool:
    """Run or resume a recipe until its operation `number`; whether it got that far before its end."""
    left = [number]

    def count(event: str, path: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            if event == "open" and path.endswith("metrics.jsonl"):
                _append_torn(path)
            os.kill(os.getpid(), signal.SIGKILL)

    status = _forked(lambda: _watched(recipe, count))
    assert status in (0, -signal.SIGKILL), f"ended with {status}: {_tail(recipe)}"
    return status != 0


def resumed(recipe: Recipe) -> RunFolder:
    """The run, gone on with to its end."""
    status = _forked(lambda: train(recipe, resume="auto"))
    assert status == 0, f"the resumed run ended with {status}: {_tail(recipe)}"
    return RunFolder(Path(recipe.output_dir) / recipe.name)


def points(found: Sequence[Operation], number: int, *, seed: int) -> list[int]:
    """So many operations, drawn so that every phase has its share and every kind of event of a phase comes first."""
    draw = random.Random(seed)
    by_phase: dict[str, list[int]] = {}
    for at, operation in enumerate(found):
        by_phase.setdefault(operation.phase, []).append(at)
    queues = []
    for phase in sorted(by_phase):
        at_random = draw.sample(by_phase[phase], len(by_phase[phase]))
        firsts = {found[at].event: at for at in reversed(at_random)}
        queues.append([*firsts.values(), *(at for at in at_random if at not in firsts.values())])
    draw.shuffle(queues)
    chosen: list[int] = []
    while len(chosen) < min(number, len(found)):
        for queue in queues:
            if queue and len(chosen) < number:
                chosen.append(queue.pop(0))
    return chosen


def state(run: RunFolder) -> dict[str, Any]:
    """All that a resume must give back bit for bit: tensors, records, links, the final model; and what is left over."""
    files = sorted([*run.checkpoints.rglob("*"), *run.final.rglob("*"), *run.samples.rglob("*")])
    kept = {
        str(path.relative_to(run.root)): path.read_bytes().replace(str(run.root).encode(), b"RUN")
        for path in files
        # A tokenizer that was loaded is written with other notes about its loading; its vocabulary is compared.
        if path.is_file() and path.name not in ("tokenizer_config.json",)
    }
    records = [
        {key: value for key, value in line.values.items() if not key.startswith("throughput/")}
        for line in metrics_lines(run.metrics)
    ]
    left = [str(path.relative_to(run.root.parent)) for path in run.root.parent.rglob(f"{PARTIAL}*")]
    return {
        "files": kept,
        "records": json.dumps(records),
        "links": [os.readlink(run.root / name) for name in ("best", "latest")],
        "entries": sorted(path.name for path in run.root.iterdir()),
        "left": [*left, *(str(path) for path in run.root.parent.rglob(LOCK))],
        "status": json.loads(run.status.read_text(encoding="utf-8")),
    }


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Where two states differ, by name."""
    names = one["files"].keys() | other["files"].keys()
    files = [name for name in sorted(names) if one["files"].get(name) != other["files"].get(name)]
    return [*files, *(name for name in one if name != "files" and one[name] != other[name])]


def _phase(path: str) -> str:
    return next(name for name, pattern in _PHASES if re.search(pattern, path))


def _forked(work: Callable[[], object]) -> int:
    """Do something in a forked child without a word; its exit status, negative for a signal."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            log = os.open(os.environ.get("UNMASK_STORM_LOG", os.devnull), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            work()
            code = 0
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode(errors="replace"))
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _watched(recipe: Recipe, seen: Callable[[str, str], None]) -> None:
    """Train, and call `seen` before every change below the recipe's `output_dir`; only for a child that ends then."""
    root = os.path.realpath(recipe.output_dir)
    is_busy = [False]

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if is_busy[0] or event not in _CHANGES or (event == "open" and not _writes(arguments)):
            return
        is_busy[0] = True
        try:
            path = _path(event, arguments)
            if path.startswith(root):
                seen(event, path)
        finally:
            is_busy[0] = False

    flush = os.fsync

    def flushed(descriptor: int) -> None:
        note("fsync", (descriptor,))
        flush(descriptor)

    os.fsync = flushed
    sys.addaudithook(note)
    train(recipe, resume="auto")


def _writes(arguments: tuple[Any, ...]) -> bool:
    flags = arguments[2] if len(arguments) > 2 and isinstance(arguments[2], int) else 0
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND))


def _path(event: str, arguments: tuple[Any, ...]) -> str:
    """What an event is about; the new path of those that have two, and the folder of one that is open."""
    name = arguments[1] if event in ("os.rename", "os.symlink") else arguments[0]
    folders = [] if event == "open" else [one for one in arguments[1:] if type(one) is int and one > 2]
    if isinstance(name, int):
        return _of(name)
    text = os.fsdecode(name)
    if not os.path.isabs(text) and folders and os.path.isdir(_of(folders[-1])):
        return os.path.join(_of(folders[-1]), text)
    return os.path.abspath(text)


def _of(descriptor: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return ""


def _append(log: Path, entry: tuple[str, str]) -> None:
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def _append_torn(path: str) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write('{"step": 2, "train/lo')


def _tail(recipe: Recipe) -> str:
    log = Path(os.environ.get("UNMASK_STORM_LOG", os.devnull))
    return f"{Path(recipe.output_dir)}; {log.read_text(errors='replace')[-2000:] if log.is_file() else 'no log'}"
