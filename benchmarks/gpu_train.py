"""The training part of the GPU script: block diffusion on packed documents, under FlexAttention and dense SDPA.

A step is the trainer's: draw the masks on the CPU, move the example over, forward and backward through the doubled
layout [noisy | clean], clip, AdamW. The layers are recomputed in the backward pass. Tokens are clean ones; model FLOPs
are those of all 2 L positions, with attention counted where a query sees a key and without the recomputation.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
from dataclasses import dataclass
from typing import Any

import measure
import torch
from device import BLOCK, Bench, Skipped, backbone, entry, forget_peak, peak_gib, random_ids, release, timed
from roofline import Peaks
from shape import Shape
from torch import Tensor

from unmask import attention
from unmask.data.batch import Batch
from unmask.models.backbone import AttentionBackend
from unmask.objectives.example import Example
from unmask.objectives.methods import objective
from unmask.settings.objective import ObjectiveSettings
from unmask.settings.training import TrainingSettings
from unmask.training.module import TrainingModule
from unmask.training.optim import optimizer
from unmask.training.recomputation import recompute
from unmask.training.throughput import flops_per_token

SETTINGS = TrainingSettings(learning_rate=1e-5, weight_decay=0.0)
POSITIONS = 16_384  # clean tokens of a step, halved until it fits
LONG, SHORT = 4096, 1024
QUICK_LONG, QUICK_SHORT, QUICK_POSITIONS = 64, 32, 128
# Rounding decides little in a mean over thousands of tokens.
LOSS_TOLERANCE = 0.01


@dataclass(frozen=True)
class Case:
    """One way to train; with `master_weights` they are float32 and the products bfloat16 by autocast."""

    length: int
    attention_backend: AttentionBackend
    compiled: bool = False
    master_weights: bool = False

    @property
    def name(self) -> str:
        extras = [", compiled"] * self.compiled + [", float32 weights"] * self.master_weights
        return f"{self.attention_backend} {self.length}{''.join(extras)}"


def cases(quick: bool) -> list[Case]:
    """The most important first: a script that runs out of time skips the last ones."""
    long, short = (QUICK_LONG, QUICK_SHORT) if quick else (LONG, SHORT)
    return [
        Case(long, "flex"),
        Case(long, "flex", compiled=True),
        Case(long, "flex", master_weights=True),
        Case(short, "dense"),
        Case(short, "flex"),
        Case(short, "dense", compiled=True),
        Case(long, "dense"),
    ]


def training(bench: Bench, peaks: dict[str, Peaks]) -> None:
    """All sizes; after the smallest one only what the others cannot tell: the speed of FlexAttention."""
    for number, (name, shape) in enumerate(bench.sizes.items()):
        chosen = cases(bench.quick) if number == 0 else cases(bench.quick)[:2]
        found = {}
        for case in chosen:
            result = bench.case(
                "train", name, case.name, job=lambda case=case, shape=shape: trained(bench, shape, case, peaks)
            )
            if result is not None:
                found[case.name] = result
        if found:
            print(f"\nTraining, {name}.\n")
            print(_table(found, peaks), flush=True)
        bench.put("train", name, "equal_losses", value=compared(found, chosen))


def compared(found: dict[str, dict[str, Any]], chosen: list[Case]) -> dict[str, Any]:
    """Whether the first losses on the same rows agree, whatever computed them."""
    apart = {}
    for length in sorted({case.length for case in chosen}):
        # Other weights are drawn in float32, and other rows have other masks.
        alike = [case.name for case in chosen if case.length == length and not case.master_weights]
        ran = [found[name] for name in alike if name in found]
        losses = [one["first_loss"] for one in ran]
        if len(losses) > 1 and len({one["rows"] for one in ran}) == 1:
            apart[str(length)] = max(losses) / min(losses) - 1
    return {
        "relative_difference": apart,
        "tolerance": LOSS_TOLERANCE,
        "verdict": all(one <= LOSS_TOLERANCE for one in apart.values()) if apart else None,
    }


def trained(bench: Bench, shape: Shape, case: Case, peaks: dict[str, Peaks]) -> dict[str, Any]:
    """Tokens per second of one case, with as many rows as fit."""
    if bench.device.type == "cpu" and case.attention_backend == "flex":
        raise Skipped("FlexAttention has no backward pass on a CPU")
    if case.compiled and not bench.compiles:
        raise Skipped("compiled training is for accelerators")
    rows = (QUICK_POSITIONS if bench.quick else POSITIONS) // case.length
    while True:
        try:
            return Trainer(bench, shape, case, rows).measured(peaks)
        except torch.OutOfMemoryError:
            if rows == 1:
                raise
        rows //= 2
        release(bench.device)


class Trainer:
    """A model and its optimiser."""

    def __init__(self, bench: Bench, shape: Shape, case: Case, rows: int) -> None:
        self.bench, self.shape, self.case, self.rows = bench, shape, case, rows
        self.network = backbone(
            shape,
            bench.device,
            torch.float32 if case.master_weights else bench.dtype,
            attention_backend=case.attention_backend,
        )
        recompute(self.network.network, keep_products=False)
        if case.compiled:
            torch.compiler.reset()
            self.network.compile_network()
        self.module = TrainingModule(self.network, chunk_rows=SETTINGS.loss_chunk_rows).train()
        self.optimizer = optimizer(self.module, SETTINGS)
        self.objective = objective(ObjectiveSettings(method="block_diffusion"), entry(shape, "block_diffusion"), seed=0)

    def example(self, number: int) -> Example:
        return self.objective(packed(self.shape, self.rows, self.case.length, step=number))

    def step(self, number: int) -> float:
        example = self.example(number).to(self.bench.device)
        mixed = contextlib.nullcontext()
        if self.case.master_weights:
            mixed = torch.autocast(self.bench.device.type, torch.bfloat16)
        with mixed:
            loss = self.module(example, 1 / example.denominator_T)
        loss.total.backward()
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), SETTINGS.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.total.item()

    def measured(self, peaks: dict[str, Peaks]) -> dict[str, Any]:
        """The first step, which compiles, a second one, and timed ones."""
        numbers = itertools.count()
        losses: list[float] = []

        def job() -> None:
            losses.append(self.step(next(numbers)))

        forget_peak(self.bench.device)
        warm_up = timed(job, self.bench.device, rounds=self.bench.rounds(2), warm_up=0)
        seconds = statistics.median(timed(job, self.bench.device, rounds=self.bench.rounds(4), warm_up=0))
        example = self.example(0)
        tokens, positions = self.rows * self.case.length, example.ids_BL.numel()
        keys = mean_keys(example.to(self.bench.device))
        head_share = len(example.row_R) / positions
        flops = positions * flops_per_token(self.network, round(keys), head_share=head_share)
        return {
            "rows": self.rows,
            "first_loss": losses[0],
            "losses": losses,
            "warm_up_seconds": warm_up,
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
            "mean_keys": keys,
            "model_flops": flops,
            "mfu": {name: flops / seconds / one.flops for name, one in peaks.items()},
            "peak_gib": peak_gib(self.bench.device),
        }


def packed(shape: Shape, rows: int, length: int, *, step: int) -> Batch:
    """Rows of packed documents of 16 to 1024 tokens, in whole blocks, every token supervised."""
    document_BL = torch.stack([documents(length, seed=step * rows + row) for row in range(rows)])
    row_B = torch.arange(rows)
    return Batch(
        ids_BL=random_ids(shape, rows, length, seed=step),
        document_BL=document_BL,
        supervised_BL=torch.ones_like(document_BL, dtype=torch.bool),
        uid_B=row_B,
        global_row_B=row_B,
        global_rows=rows,
        step=step,
    )


def documents(length: int, *, seed: int) -> Tensor:
    """Document ids of a row that is filled with documents of random lengths, int64 [length]."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(16 // BLOCK, 1024 // BLOCK, (length // 16,), generator=generator) * BLOCK
    return torch.arange(len(lengths)).repeat_interleave(lengths)[:length]


def mean_keys(example: Example) -> float:
    """Keys that a position sees, on average."""
    layout = example.layout
    seen = [
        attention.sees(one, one).sum().item()
        for row in range(len(example.ids_BL))
        for one in [layout.rows(torch.tensor([row], device=layout.position.device))]
    ]
    return sum(seen) / example.ids_BL.numel()


def _table(found: dict[str, dict[str, Any]], peaks: dict[str, Peaks]) -> str:
    header = ["attention, length", "rows", "ms/step", "clean tokens/s", *(f"MFU, {name}" for name in peaks)]
    header += ["peak GiB", "first step s"]
    return measure.table(
        header,
        [
            [
                name,
                one["rows"],
                1000 * one["seconds"],
                one["tokens_per_second"],
                *(f"{one['mfu'][peak]:.1%}" for peak in peaks),
                one["peak_gib"],
                one["warm_up_seconds"][0],
            ]
            for name, one in found.items()
        ],
    )
