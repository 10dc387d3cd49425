"""Linear layers on the CPU: the order of a weight and oneDNN's packed copy, by width, rows and type.

    python benchmarks/linear.py [--rounds N] [--json FILE] [--quick]

A contender runs the linear layers of a network one after another, as a forward does, so that weights come from where
they lie then: from the caches at the small widths, from memory at 1024. `row by row` is how `nn.Linear` keeps a weight,
`input by input` and `packed` are the two ways of `unmask.models.cpu_linear`, and `unmask` is what it chooses.
CPU time, on one thread; the numbers are checked against float64 first. Last line: one record.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import measure
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.models.cpu_linear import optimize_for_inference

# Width of the network -> width of its MLP, layers.
NETWORKS = {128: (384, 4), 256: (768, 4), 1024: (3072, 1)}
ROWS = (1, 2, 4, 8, 32, 128, 320, 1280)
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
STOCK = "row by row"
# What a job is repeated for until it takes a while, in products: short times are all noise.
LEAST_PRODUCTS = 2**27


def weights(width: int, dtype: torch.dtype) -> list[Tensor]:
    """Queries, keys, values, output, gate, up and down of each layer, as [outputs, inputs]."""
    inner, layers = NETWORKS[width]
    shapes = [(width, width), (width // 2, width), (width // 2, width), (width, width)]
    shapes += [(inner, width), (inner, width), (width, inner)]
    generator = torch.Generator().manual_seed(width)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(layers) for shape in shapes]


class Packed(nn.Linear):
    """oneDNN's product with a weight that is packed for it, whatever the input."""

    def forward(self, values: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(values, self.packed, self.bias, "none", [], "")


def linear(weight: Tensor, kind: type[nn.Linear] = nn.Linear) -> nn.Linear:
    layer = kind(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def contenders(width: int, dtype: torch.dtype) -> dict[str, list[nn.Linear]]:
    """Each way's layers; all have the same weights."""
    made = weights(width, dtype)
    packed, ready = [linear(one, Packed) for one in made], [linear(one.clone()) for one in made]
    for layer in packed:
        layer.packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), 32)
    optimize_for_inference(nn.ModuleList(ready))
    return {
        STOCK: [linear(one) for one in made],
        "input by input": [linear(one.t().contiguous().t()) for one in made],
        "packed": packed,
        "unmask": ready,
    }


def check(layers: dict[str, list[nn.Linear]], made: list[Tensor], inputs: dict[int, Tensor]) -> None:
    """Raise AssertionError unless every way gives the products of float64, up to rounding."""
    for number, weight in enumerate(made):
        values = inputs[weight.shape[1]]
        wanted = F.linear(values.double(), weight.double())
        tolerance = 1e-5 if weight.dtype == torch.float32 else 2**-7
        for name, own in layers.items():
            worst = float((own[number](values).double() - wanted).abs().max() / wanted.abs().max())
            assert worst < tolerance, f"{name} differs from float64 by {worst:.1e} of the largest product"


def measured(width: int, rows: int, dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """Milliseconds of a pass over the layers, and how many times as fast as stock layers each way is."""
    layers, made = contenders(width, dtype), weights(width, dtype)
    generator = torch.Generator().manual_seed(rows)
    inputs = {size: torch.randn(1, rows, size, generator=generator).to(dtype) for size in (width, NETWORKS[width][0])}
    with torch.inference_mode():
        check(layers, made, inputs)
    values = [inputs[one.shape[1]] for one in made]
    repeats = max(1, LEAST_PRODUCTS // (rows * sum(one.numel() for one in made)))

    def job(own: list[nn.Linear]) -> Callable[[int], None]:
        @torch.inference_mode()
        def run(_: int) -> None:
            for _ in range(repeats):
                for layer, value in zip(own, values, strict=True):
                    layer(value)

        return run

    times = measure.interleaved({name: job(own) for name, own in layers.items()}, rounds=rounds)
    return {
        "repeats": repeats,
        "cpu_milliseconds": {name: 1000 * statistics.median(own.cpu) / repeats for name, own in times.items()},
        "speed_over_stock": {name: measure.ratio(times[STOCK].cpu, own.cpu) for name, own in times.items()},
    }


def main() -> None:
    measure.one_thread()
    given = measure.arguments("Time linear layers on the CPU.")
    rounds = given.rounds or (1 if given.quick else 9)
    widths, counts = ((128,), (1, 8)) if given.quick else (tuple(NETWORKS), ROWS)
    record: dict[str, Any] = {"benchmark": "linear", "rounds": rounds, "types": {}}
    for name, dtype in TYPES.items():
        found = {width: {rows: measured(width, rows, dtype, rounds) for rows in counts} for width in widths}
        record["types"][name] = {str(one): {str(rows): own[rows] for rows in own} for one, own in found.items()}
        lines = [
            [width, rows, own["cpu_milliseconds"][STOCK], *[*own["speed_over_stock"].values()][1:]]
            for width, cases in found.items()
            for rows, own in cases.items()
        ]
        ways = [*found[widths[0]][counts[0]]["speed_over_stock"]][1:]
        print(f"{name}: CPU ms of stock layers, and how many times as fast the other ways are.\n")
        print(measure.table(["width", "rows", STOCK, *ways], lines), end="\n\n", flush=True)
    measure.publish(record, shape=None, file=given.json)


if __name__ == "__main__":
    main()
