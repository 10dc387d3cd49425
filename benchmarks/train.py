"""Training speed and memory: masked diffusion with Unmask against the plain baseline and the bare products.

    python benchmarks/train.py [--rounds N] [--json FILE] [--quick]

Both contenders start from the same weights and learn from the same masked batches, and their losses must agree. Ours
draws the masks inside the timed step, as the trainer does; the baseline gets them ready-made. Judged: ours with a step
split in two micro-batches (`training.micro_batch_size`), which takes the same step. Last line: one record.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, Protocol

import baseline
import measure
import torch
from floor import Floor
from shape import QUICK, REFERENCE, Shape
from torch import Tensor

from unmask.data.batch import Batch
from unmask.models.backbone import Backbone
from unmask.objectives.methods import objective
from unmask.settings.model import DiffusionConfig
from unmask.settings.objective import ObjectiveSettings
from unmask.settings.training import TrainingSettings
from unmask.training.module import TrainingModule
from unmask.training.optim import optimizer
from unmask.training.recomputation import recompute

SETTINGS = TrainingSettings(learning_rate=1e-3, weight_decay=0.0)
JUDGED = "unmask, micro_batch_size"
BOUNDS = {"speed": 1.25, "memory": 0.6}
# The baseline may predict the mask token, ours never does: one class in thousands, relatively 3e-5 at the first step.
LOSS_TOLERANCE = 1e-4


class Contender(Protocol):
    """Something that trains."""

    def step(self, number: int) -> float:
        """Optimiser step `number`, from 0; the loss."""
        ...


class Ours:
    """Unmask's training step, put together as its trainer does."""

    def __init__(
        self,
        shape: Shape,
        method: str = "masked_diffusion",
        *,
        recompute_elementwise: bool = False,
        micro_batches: int = 1,
    ) -> None:
        entry = diffusion(shape)
        self.micro_batches = micro_batches
        self.shape = shape
        network = shape.network()
        if recompute_elementwise:
            recompute(network, keep_products=True)
        self.module = TrainingModule(Backbone(network, entry), chunk_rows=SETTINGS.loss_chunk_rows).train()
        self.optimizer = optimizer(self.module, SETTINGS)
        self.objective = objective(ObjectiveSettings(method=method), entry, seed=0)  # type: ignore[arg-type]

    def step(self, number: int) -> float:
        clean = batch(self.shape, number)
        rows = clean.global_rows // self.micro_batches
        examples = [self.objective(clean.rows(start, start + rows)) for start in range(0, clean.global_rows, rows)]
        scale_T = 1 / torch.stack([example.denominator_T for example in examples]).sum(dim=0)
        total = 0.0
        for example in examples:
            loss = self.module(example, scale_T)
            loss.total.backward()
            total += loss.total.item()
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), SETTINGS.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total


class Baseline:
    """The baseline's training step on the masks that Unmask draws."""

    def __init__(self, shape: Shape, *, gathers: bool = False) -> None:
        self.shape = shape
        self.trainer = baseline.Trainer(shape.network(), learning_rate=SETTINGS.learning_rate, gathers=gathers)

    def step(self, number: int) -> float:
        return self.trainer.step(*masked(self.shape, number))


CONTENDERS: dict[str, Any] = {
    "unmask": Ours,
    JUDGED: functools.partial(Ours, micro_batches=2),
    "unmask, recompute_elementwise": functools.partial(Ours, recompute_elementwise=True),
    "baseline": Baseline,
    "LLaDA's gather": functools.partial(Baseline, gathers=True),
    "unmask, autoregressive": functools.partial(Ours, method="autoregressive"),
}


class Masked(NamedTuple):
    """A step's batch as the baseline takes it: [B, L] each, and the share of masked tokens of each row."""

    clean_BL: Tensor
    noisy_BL: Tensor
    masked_BL: Tensor
    share_B1: Tensor


def diffusion(shape: Shape) -> DiffusionConfig:
    return DiffusionConfig(
        method="masked_diffusion", vocabulary_size=shape.vocabulary, mask_token_id=shape.mask_token_id
    )


def batch(shape: Shape, number: int) -> Batch:
    """The clean batch of a step; every token is supervised."""
    ids_BL, row_B = shape.clean_ids(number), torch.arange(shape.batch)
    return Batch(
        ids_BL=ids_BL,
        document_BL=torch.zeros_like(ids_BL),
        supervised_BL=torch.ones_like(ids_BL, dtype=torch.bool),
        uid_B=row_B,
        global_row_B=row_B,
        global_rows=shape.batch,
        step=number,
    )


@functools.cache
def masked(shape: Shape, number: int) -> Masked:
    """The same batch with the masks of the objective."""
    noisy_BL = objective(ObjectiveSettings(), diffusion(shape), seed=0)(batch(shape, number)).ids_BL
    masked_BL = noisy_BL == shape.mask_token_id
    return Masked(shape.clean_ids(number), noisy_BL, masked_BL, masked_BL.float().mean(dim=1, keepdim=True))


def checked_losses(shape: Shape, *, steps: int = 3) -> dict[str, list[float]]:
    """The losses of the first steps, which must agree."""
    losses: dict[str, list[float]] = {}
    for name in ("unmask", JUDGED, "baseline", "LLaDA's gather"):
        contender: Contender = CONTENDERS[name](shape)
        losses[name] = [contender.step(number) for number in range(steps)]
        for number, (our, their) in enumerate(zip(losses["unmask"], losses[name], strict=True)):
            assert abs(our - their) <= LOSS_TOLERANCE * their, f"step {number}: unmask loses {our}, the {name} {their}"
    return losses


def timed(shape: Shape, rounds: int) -> dict[str, measure.Times]:
    """Interleaved times of the contenders and of the floor."""
    num_read = [int(masked(shape, number).masked_BL.sum()) for number in range(rounds + 1)]
    floor = Floor(shape, shape.batch, shape.length)
    jobs = {name: make(shape).step for name, make in CONTENDERS.items()}
    jobs["floor: linear layers"] = lambda number: floor.linears(num_read[number], backward=True)
    jobs["floor: with attention"] = lambda number: floor.everything(num_read[number], backward=True)
    return measure.interleaved(jobs, rounds=rounds)


def memory(shape: Shape, name: str) -> float:
    """Peak memory of two steps of a contender, from before its weights exist, MiB."""

    def job() -> None:
        contender: Contender = CONTENDERS[name](shape)
        for number in range(2):
            contender.step(number)

    return measure.peak_memory(job)


def where_time_goes(shape: Shape) -> dict[str, dict[str, float]]:
    """One profiled step of ours and of the baseline, after one that warms up."""
    parts = {}
    for name in ("unmask", JUDGED, "baseline"):
        contender: Contender = CONTENDERS[name](shape)
        contender.step(0)
        parts[name] = measure.breakdown(lambda contender=contender: contender.step(1))
    return parts


def main() -> None:
    measure.one_thread()
    given = measure.arguments("Time masked-diffusion training.")
    shape = QUICK if given.quick else REFERENCE
    if given.memory_of:
        print(memory(shape, given.memory_of))
        return
    losses = checked_losses(shape)
    times = timed(shape, given.rounds or (1 if given.quick else 9))
    against = ("baseline", "LLaDA's gather", "floor: linear layers", "floor: with attention")
    results = measure.results(times, tokens=shape.batch * shape.length, against=against)
    for name in CONTENDERS:
        results[name] |= measure.memory_in_children(name)
    parts = where_time_goes(shape)
    print(f"Training on {shape.batch} x {shape.length} clean tokens per step.\n")
    print(measure.results_table(results, against=against))
    print("\nWhere the time of a step goes:\n")
    print(measure.breakdown_table(parts))
    verdict = measure.verdict(
        shape,
        BOUNDS,
        speed=results[JUDGED]["speed_over"]["baseline"],
        memory=results[JUDGED]["memory_mib"] / results["baseline"]["memory_mib"],
    )
    print()
    measure.publish(
        {"benchmark": "train", "losses": losses, "results": results, "verdict": verdict, "breakdown": parts},
        shape=shape,
        file=given.json,
    )


if __name__ == "__main__":
    main()
