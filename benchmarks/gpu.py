"""Block diffusion and TiDAR on a GPU: the speed of decoding and training, and checks that need a GPU.

    python benchmarks/gpu.py [--json FILE] [--parts decode,checks,train,tidar] [--sizes 1.7b,4b] [--minutes M] [--quick]

Random bfloat16 weights, made on the device; nothing is downloaded. The record is written after every case, so a run
that is cut off leaves what it found, and a case that lacks memory or time is skipped, which it says. Without a GPU only
`--quick` runs, with toy shapes, to test the script itself. Last line: one record.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import roofline
import torch
from device import SIZES, Bench, toy_sizes
from gpu_checks import checks
from gpu_decode import decoding
from gpu_tidar import tidar
from gpu_train import training
from roofline import Peaks

PARTS: dict[str, Callable[[Bench, dict[str, Peaks]], None]] = {
    "decode": decoding,
    "checks": checks,
    "train": training,
    "tidar": tidar,
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time block diffusion on a GPU, and check what only a GPU can.")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write the record after every case; a bare name lands in results/",
    )
    parser.add_argument("--parts", type=_names(PARTS), default=list(PARTS), help=f"of {','.join(PARTS)} (default: all)")
    parser.add_argument("--sizes", type=_names(SIZES), default=list(SIZES), help=f"of {','.join(SIZES)} (default: all)")
    parser.add_argument("--minutes", type=float, default=9.0, help="begin no case after this time (default: 9)")
    parser.add_argument("--quick", action="store_true", help="toy shapes and one round, to test the script itself")
    return parser.parse_args()


def _names(known: dict[str, Any]) -> Callable[[str], list[str]]:
    """A parser of names with commas between them, which returns them in the order of `known`."""

    def parse(text: str) -> list[str]:
        given = text.split(",")
        unknown = [name for name in given if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(known)}")
        return [name for name in known if name in given]

    return parse


def measured_peaks(bench: Bench) -> dict[str, Peaks]:
    """What this device reaches, and what its maker states, by source; printed."""
    peaks = {"measured": roofline.measured(bench.device, bench.dtype, quick=bench.quick)}
    stated = roofline.data_sheet(bench.record["device"]["name"])
    if stated is not None:
        peaks["data sheet"] = stated
    lines = [[name, one.bandwidth / 1e12, one.flops / 1e12] for name, one in peaks.items()]
    print(measure.table([bench.record["device"]["name"], "TB/s", "TFLOP/s"], lines), flush=True)
    bench.put("peaks", value={name: dataclasses.asdict(one) for name, one in peaks.items()})
    return peaks


def device_description(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {"name": device.type}
    properties = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "gib": total / 2**30,
        "free_gib": free / 2**30,
        "cuda": torch.version.cuda,
    }


def main() -> None:
    began = time.monotonic()
    given = arguments()
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    if device.type == "cpu" and not given.quick:
        sys.exit("No GPU is here. --quick tests the script itself on toy shapes.")
    if device.type == "cpu":
        measure.one_thread()
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
    bench = Bench(
        device=device,
        dtype=torch.bfloat16,
        sizes=toy_sizes() if given.quick else {name: SIZES[name] for name in given.sizes},
        quick=given.quick,
        compiles=device.type != "cpu",
        deadline=began + 60 * given.minutes,
        record={"benchmark": "gpu", "machine": measure.machine(), "device": device_description(device)},
        file=given.json,
    )
    bench.put("shapes", value={name: dataclasses.asdict(shape) for name, shape in bench.sizes.items()})
    peaks = measured_peaks(bench)
    for part in given.parts:
        PARTS[part](bench, peaks)
    bench.put("failed", value=bench.failed)
    bench.put("seconds", value=time.monotonic() - began)
    print(json.dumps(measure.written(bench.record, bench.file)))
    if bench.failed:
        sys.exit(f"{len(bench.failed)} cases failed: {'; '.join(bench.failed)}.")


if __name__ == "__main__":
    main()
