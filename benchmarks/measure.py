"""Timing, memory and reports that the benchmarks share.

Contenders run in turn, A B C, B C A, ..., in one process and on one thread, and a ratio is the median over rounds of
the ratio within a round, so that a machine that others use as well disturbs all of them alike. CPU time is the time
that the process really ran; wall time adds what others took.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import dataclasses
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from shape import REFERENCE, Shape
from torch.profiler import ProfilerActivity, profile

RESULTS = Path(__file__).parent / "results"


class Times(NamedTuple):
    """Seconds of each round."""

    wall: list[float]
    cpu: list[float]


def one_thread() -> None:
    """Keep PyTorch, OpenMP and MKL on one thread."""
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)


def arguments(description: str) -> argparse.Namespace:
    """What both benchmarks take on the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, help="timed rounds (default: enough for steady medians)")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the record; a bare name lands in results/"
    )
    parser.add_argument("--quick", action="store_true", help="a toy shape and one round, to test the script itself")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    return parser.parse_args()


# --- time --------------------------------------------------------------------------------------------------------


def interleaved(contenders: Mapping[str, Callable[[int], object]], *, rounds: int) -> dict[str, Times]:
    """Time every contender once per round, after one round that is not counted; each gets the round's number."""
    times = {name: Times([], []) for name in contenders}
    names = list(contenders)
    for number in range(rounds + 1):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            wall, cpu = time.perf_counter(), time.process_time()
            contenders[name](number)
            spent = time.perf_counter() - wall, time.process_time() - cpu
            if number > 0:
                times[name].wall.append(spent[0])
                times[name].cpu.append(spent[1])
    return times


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """How many times longer `slow` takes: the median over rounds."""
    return statistics.median(one / other for one, other in zip(slow, fast, strict=True))


def results(times: Mapping[str, Times], *, tokens: int, against: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Throughput of every contender, and its speed relative to some of them."""
    return {
        name: {
            "tokens_per_second": tokens / statistics.median(own.wall),
            "tokens_per_cpu_second": tokens / statistics.median(own.cpu),
            "wall_seconds": statistics.median(own.wall),
            "cpu_seconds": statistics.median(own.cpu),
            "speed_over": {other: ratio(times[other].cpu, own.cpu) for other in against},
            "wall_speed_over": {other: ratio(times[other].wall, own.wall) for other in against},
        }
        for name, own in times.items()
    }


def verdict(shape: Shape, bounds: Mapping[str, float], *, speed: float, memory: float | None = None) -> dict[str, Any]:
    """Ours over the baseline against the bounds, printed: the speed is to reach its own, the memory to stay within.

    The bounds hold for the reference shape; a toy tells nothing.
    """
    if shape != REFERENCE:
        return {}
    met = speed >= bounds["speed"]
    print(f"\nSpeed over the baseline: {speed:.2f} (at least {bounds['speed']}: {'met' if met else 'missed'})")
    judged: dict[str, Any] = {"speed": speed, "speed_bound": bounds["speed"], "speed_met": met}
    if memory is not None:
        met = memory <= bounds["memory"]
        print(f"Memory over the baseline: {memory:.0%} (at most {bounds['memory']:.0%}: {'met' if met else 'missed'})")
        judged |= {"memory": memory, "memory_bound": bounds["memory"], "memory_met": met}
    return judged


# --- memory ------------------------------------------------------------------------------------------------------


def memory_in_children(name: str) -> dict[str, float]:
    """Peak memory of a contender in fresh processes, MiB: the same script with the same flags measures itself.

    `memory_mib` gives every freed tensor back to the system at once, so that it is what tensors and kernels need;
    `heap_mib` is under malloc as it comes, whose heap also holds what the order of allocations leaves unused; a toy
    leaves it out.
    """
    found = {"memory_mib": _memory_in_child(name, {"MALLOC_MMAP_THRESHOLD_": "65536"})}
    return found if "--quick" in sys.argv else found | {"heap_mib": _memory_in_child(name, {})}


def _memory_in_child(name: str, environment: Mapping[str, str]) -> float:
    flags = ["--quick"] if "--quick" in sys.argv else []
    child = [sys.executable, sys.argv[0], *flags, "--memory-of", name]
    done = subprocess.run(child, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    if done.returncode:
        raise RuntimeError(f"Measuring the memory of {name} failed:\n{done.stderr}")
    return float(done.stdout.split()[-1])


def peak_memory(job: Callable[[], object]) -> float:
    """How far the resident memory of this process rises above its present level while `job` runs, MiB.

    Linux only: `VmHWM` of /proc/self/status, reset through /proc/self/clear_refs. What libraries load at their first
    use is loaded before, so that only tensors and kernels' workspaces count.
    """
    _load_lazy_parts()
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    job()
    return (_status("VmHWM") - before) / 1024


def _load_lazy_parts() -> None:
    """Run a tiny training step, and give the freed memory back."""
    weight = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(weight.parameters())
    weight(torch.ones(1, 2)).sum().backward()
    torch.nn.utils.clip_grad_norm_(weight.parameters(), 1.0)
    optimizer.step()
    ctypes.CDLL(None).malloc_trim(0)


def _status(field: str) -> int:
    """A size of this process, KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field + ":")).split()[1])


# --- where the time goes -----------------------------------------------------------------------------------------

# Operators by parts of their names; the first kind that fits counts.
_KINDS = {
    "matrix products": ("::mm", "::addmm", "::bmm"),
    "attention": ("scaled_dot_product",),
    "loss, choice of tokens": ("softmax", "nll_loss", "logsumexp", "::max", "argmax", "sort", "topk"),
    "optimiser, clipping": ("adam", "norm", "lerp", "addcmul", "addcdiv", "sqrt"),
    "copies, gathers, fills": ("copy", "fill", "zero_", "::cat", "index", "gather", "scatter", "embedding", "nonzero"),
    "norms, gates, rotations": (
        "::mul",
        "::add",
        "silu",
        "::pow",
        "::mean",
        "::neg",
        "::sum",
        "::div",
        "::cos",
        "::sin",
    ),
}
_REST = "views, small operators, Python"


def breakdown(job: Callable[[], object]) -> dict[str, float]:
    """CPU milliseconds of a job by kind of work, as the profiler sees it; it slows small operators down."""
    spent = dict.fromkeys(_KINDS, 0.0)
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        began = time.process_time()
        job()
        total = 1000 * (time.process_time() - began)
    for event in profiler.key_averages():
        kind = next((kind for kind, parts in _KINDS.items() if any(part in event.key for part in parts)), None)
        if kind is not None and event.key.startswith("aten::"):
            spent[kind] += event.self_cpu_time_total / 1000
    return spent | {_REST: max(0.0, total - sum(spent.values())), "total": total}


# --- reports -----------------------------------------------------------------------------------------------------


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; floats with the digits that matter."""
    lines = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    padded = [
        [
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
    rule = ["-" * width for width in widths]
    return "\n".join(f"| {' | '.join(line)} |" for line in [padded[0], rule, *padded[1:]])


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
    return str(value)


def results_table(results: Mapping[str, Mapping[str, Any]], *, against: Sequence[str]) -> str:
    """Throughput, memory, and speed relative to each of `against`, by CPU time and (in brackets) by wall time."""
    header = ["", "tokens/s", "tokens/CPU s", "peak MiB", "with heap", *(f"x {name}" for name in against)]
    rows = []
    for name, own in results.items():
        row = [name, own["tokens_per_second"], own["tokens_per_cpu_second"], own.get("memory_mib"), own.get("heap_mib")]
        row += [f"{own['speed_over'][other]:.2f} ({own['wall_speed_over'][other]:.2f})" for other in against]
        rows.append(row)
    return table(header, rows)


def breakdown_table(parts: Mapping[str, Mapping[str, float]]) -> str:
    """Milliseconds of each contender by kind of work, and their share."""
    kinds = next(iter(parts.values()))
    header = ["CPU ms, profiled", *(column for name in parts for column in (name, "%"))]
    rows = []
    for kind in kinds:
        row: list[object] = [kind]
        for spent in parts.values():
            row += [f"{spent[kind]:,.0f}", f"{100 * spent[kind] / spent['total']:.0f}"]
        rows.append(row)
    return table(header, rows)


def machine() -> dict[str, Any]:
    """Where and with what the figures were measured."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.executable).name, *sys.argv]),
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def publish(record: Mapping[str, Any], *, shape: Shape | None, file: Path | None) -> None:
    """Print the record, with its shape, if it has one, and the machine, as the last line, and write it to a file."""
    sizes = {} if shape is None else {"shape": dataclasses.asdict(shape)}
    print(json.dumps(written({**record, **sizes, "machine": machine()}, file)))


def report(
    record: Mapping[str, Any],
    text: str,
    *,
    draw: Callable[[Sequence[Mapping[str, Any]], Path], None],
    png: Path | None,
    file: Path | None,
    first: Sequence[str] = (),
) -> None:
    """Print the tables and the record of a study; draw its results; write them as JSON and CSV."""
    print(text)
    if png is not None:
        draw(record["results"], png)
    if file is not None:
        write_csv(record["results"], target(file).with_suffix(".csv"), first=first)
    publish(record, shape=None, file=file)


def write_csv(results: Sequence[Mapping[str, Any]], file: Path, *, first: Sequence[str] = ()) -> None:
    """One line for each result, the `first` columns first; what a line has no value for is empty."""
    columns = dict.fromkeys([*first, *(name for one in results for name in one)])
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.DictWriter(opened, [*columns], lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows({name: _plain(value) for name, value in one.items()} for one in results)


def _plain(value: object) -> object:
    """Floats of six digits, and the numbers of a list with spaces between them."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return " ".join(map(str, value)) if isinstance(value, list) else value


def written(record: Mapping[str, Any], file: Path | None) -> dict[str, Any]:
    """The record with floats of six significant digits, also written to a file; a bare name lands in results/."""
    whole = _rounded(dict(record))
    if file is not None:
        target(file).write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    return whole


def target(file: Path) -> Path:
    """Where a result goes, in a folder that exists: a bare name lands in results/."""
    found = file if file.parent != Path() else RESULTS / file
    found.parent.mkdir(parents=True, exist_ok=True)
    return found


def _rounded(value: Any) -> Any:
    """Six significant digits for every float."""
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
