"""The most that a device allows a forward: its bytes over the bandwidth, or its operations over the peak.

In: the shape of a network, and what a forward evaluates. Out: bytes, floating-point operations and the seconds that
they take at least, at the speed that large copies and matrix products reach here, or that the maker states. The forward
is counted as its plainest implementation in 16 bits would run: every weight is read once, the keys and values of the
context once, and logits are written and read once.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import NamedTuple

import torch
from device import timed
from shape import Shape

BYTES = 2  # of a weight, a key or a logit
COPIED = 2**31  # bytes that are copied to measure the bandwidth; caches hold a small part of them
SIDE = 8192  # of the matrices that are multiplied to measure the peak


class Work(NamedTuple):
    """What something takes: bytes moved and floating-point operations."""

    bytes: float
    flops: float


@dataclass(frozen=True)
class Peaks:
    """What a device does in a second: bytes moved and floating-point operations."""

    bandwidth: float
    flops: float

    def seconds(self, work: Work) -> float:
        """The least time of the work."""
        return max(work.bytes / self.bandwidth, work.flops / self.flops)


# From the makers' data sheets: HBM bandwidth, and dense (not sparse) bfloat16 with float32 accumulation. The first name
# that occurs in the device's fits.
DATA_SHEETS = {
    "H200": Peaks(4.8e12, 989.4e12),
    "H100 NVL": Peaks(3.9e12, 835.5e12),
    "H100 PCIe": Peaks(2.0e12, 756.5e12),
    "H100": Peaks(3.35e12, 989.4e12),
    "A100": Peaks(2.039e12, 312e12),
}


def data_sheet(name: str) -> Peaks | None:
    """What the maker states for a device of this name; nothing for others and for slices of one (MIG)."""
    if "MIG" in name:
        return None
    return next((peaks for known, peaks in DATA_SHEETS.items() if known in name), None)


def measured(device: torch.device, dtype: torch.dtype, *, quick: bool) -> Peaks:
    """Bandwidth of large copies, which read and write, and the peak of large matrix products, as medians."""
    copied, side, rounds = (2**20, 128, 3) if quick else (COPIED, SIDE, 20)
    source, target = (torch.zeros(copied, dtype=torch.uint8, device=device) for _ in range(2))
    copying = statistics.median(timed(lambda: target.copy_(source), device, rounds=rounds))
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(left)
    multiplying = statistics.median(timed(lambda: torch.mm(left, right, out=product), device, rounds=rounds))
    return Peaks(2 * copied / copying, 2 * side**3 / multiplying)


@dataclass(frozen=True)
class Forward:
    """One forward: columns of each row, tokens before them in the cache, and how many columns of a row are read."""

    columns: int
    context: int
    read: int


def work(shape: Shape, rows: int, forward: Forward) -> Work:
    """What a forward of `rows` rows takes; one that nobody reads has no head."""
    body = shape.layers * sum(inputs * outputs for inputs, outputs in shape.linears.values())
    head = shape.hidden * shape.vocabulary
    computed, read, seen = rows * forward.columns, rows * forward.read, forward.context + forward.columns
    key_values = 2 * shape.layers * shape.key_value_heads * shape.head_width
    moved = body + rows * seen * key_values + (head + 2 * read * shape.vocabulary if read else 0)
    attention = 2 * shape.layers * shape.heads * shape.head_width * computed * seen
    return Work(BYTES * moved, 2 * (body * computed + head * read + attention))
