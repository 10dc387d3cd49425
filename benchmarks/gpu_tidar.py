"""The TiDAR part of the GPU script: what a step of drafting and verifying costs against a token of autoregression.

Random bfloat16 weights of Qwen2.5-1.5B's and Qwen3-8B's sizes, in Qwen3's class. A parallel step evaluates k drafts and
a block of k masks for each number of accepted ones, k (k + 1) tokens in one forward; a linear step k tokens twice.
The speed-up over autoregression is the tokens that a step accepts, which a trained model decides, over the ratio that
is measured here: so the table says from how many accepted tokens on a step pays.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import measure
import torch
from device import Bench, backbone, milliseconds, random_ids
from gpu_decode import filled_cache
from shape import Shape
from torch import Tensor

from unmask import attention
from unmask.models.backbone import Backbone

TIDAR_SIZES = {
    "qwen2.5-1.5b": Shape(1536, 8960, 28, heads=12, key_value_heads=2, head_width=128, vocabulary=151_936),
    "qwen3-8b": Shape(4096, 12_288, 36, heads=32, key_value_heads=8, head_width=128, vocabulary=151_936),
}
DRAFTS = (4, 8, 16)
PREFIXES, QUICK_PREFIXES = (128, 1024, 4096), (16,)


def tidar(bench: Bench, _: object) -> None:
    """All sizes, prefixes and draft lengths, at batch 1."""
    sizes = bench.sizes if bench.quick else TIDAR_SIZES
    bench.put("tidar shapes", value={name: dataclasses.asdict(shape) for name, shape in sizes.items()})
    for name, shape in sizes.items():
        made: list[Backbone] = []
        bench.case("tidar", name, "model", job=lambda shape=shape, made=made: _model(bench, shape, made))
        for prefix in (QUICK_PREFIXES if bench.quick else PREFIXES) if made else ():
            _steps(bench, made[0], shape, name, prefix)


def _model(bench: Bench, shape: Shape, made: list[Backbone]) -> dict[str, Any]:
    made.append(backbone(shape, bench.device, bench.dtype, method="autoregressive"))
    return {"parameters": sum(one.numel() for one in made[0].network.parameters())}


class Step:
    """Forwards behind a cache whose new keys are given up, with the logits that verification and drafting read.

    Args:
        layouts: of each forward, made for a row without prefix.
        reads: how many rows get logits after each forward.
    """

    def __init__(
        self, network: Backbone, shape: Shape, prefix: int, layouts: list[attention.Layout], reads: list[int]
    ) -> None:
        self.network, self.reads = network, reads
        widest = max(map(len, layouts))
        self.cache = filled_cache(network, shape, 1, prefix, capacity=prefix + widest)
        self.layouts = [layout.moved(self.cache.length_B) for layout in layouts]
        self.ids = [random_ids(shape, 1, len(layout)).to(network.device) for layout in layouts]
        self.masks = []
        for layout in self.layouts:  # the integers of a step are known ahead; only the slots of its keys change
            self.masks.append(network.render(layout, self.cache.begin(layout)))
            self.cache.keep(0)

    @torch.inference_mode()
    def __call__(self) -> Tensor:
        for ids_1Q, layout, mask, read in zip(self.ids, self.layouts, self.masks, self.reads, strict=True):
            self.cache.begin(layout)
            hidden_1QD = self.network(ids_1Q, layout.position_ids, mask, cache=self.cache)
            self.cache.keep(0)
            logits_RV = self.network.logits(hidden_1QD[0, :read])
        return logits_RV


def _steps(bench: Bench, network: Backbone, shape: Shape, size: str, prefix: int) -> None:
    start_B = torch.zeros(1, dtype=torch.int64, device=network.device)

    def cost(layouts: list[attention.Layout], reads: list[int]) -> dict[str, Any]:
        job = Step(network, shape, prefix, layouts, reads)
        return {"milliseconds": milliseconds(job, bench.device, rounds=bench.rounds(20))}

    def case(name: str, layouts: list[attention.Layout], reads: list[int]) -> float | None:
        found = bench.case("tidar", size, str(prefix), name, job=lambda: cost(layouts, reads))
        return None if found is None else found["milliseconds"]

    token = case("one token", [attention.causal_step(start_B, 1)], [1])
    lines = []
    for draft in DRAFTS:
        # The verified rows and those of the block that goes on: 2k - 1 rows of logits.
        parallel = case(f"parallel {draft}", [attention.tidar_step(start_B, draft)], [2 * draft - 1])
        linear = case(
            f"linear {draft}",
            [attention.tidar_linear(start_B, draft), attention.causal_step(start_B, draft)],
            [draft, draft],
        )
        lines.append([draft, draft * (draft + 1), parallel, _over(parallel, token), linear, _over(linear, token)])
    print(f"\nTiDAR, {size}, {prefix} tokens before it; one token of autoregression: {token} ms.\n")
    header = ["draft", "tokens", "parallel, ms", "pays from tokens/step", "linear, ms", "pays from tokens/step"]
    print(measure.table(header, lines), flush=True)


def _over(spent: float | None, token: float | None) -> float | None:
    return None if spent is None or token is None else spent / token
