"""Training speed and memory: Unmask against the plain baseline and the bare products.

    python benchmarks/train.py [--rounds N] [--json FILE] [--quick]

Masked diffusion, then block diffusion on [noisy | clean]. Contenders start from the same weights and learn from the
same masked batches, and their losses must agree. Ours draws the masks inside the timed step, as the trainer does; the
baseline gets them ready-made. Judged: ours with a step split into micro-batches (`training.micro_batch_size`), which
takes the same step. Last line: one record.
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
BLOCKS = "block_diffusion"
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
        entry = diffusion(shape, method)
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

    def __init__(self, shape: Shape, method: str = "masked_diffusion", *, gathers: bool = False) -> None:
        self.shape, self.method = shape, method
        self.trainer = baseline.Trainer(
            shape.network(),
            learning_rate=SETTINGS.learning_rate,
            gathers=gathers,
            block_length=shape.block_length if method == BLOCKS else None,
        )

    def step(self, number: int) -> float:
        return self.trainer.step(*masked(self.shape, number, self.method))


class Section(NamedTuple):
    """Contenders that are compared, by name: ours first, then the judged one; and what is asked of that."""

    contenders: dict[str, Any]
    judged: str
    baseline: str
    bounds: dict[str, float]

    @property
    def checked(self) -> list[str]:
        """The contenders whose losses must agree."""
        return [name for name in self.contenders if "autoregressive" not in name and "recompute" not in name]


SECTIONS = {
    "masked_diffusion": Section(
        {
            "unmask": Ours,
            "unmask, micro_batch_size": functools.partial(Ours, micro_batches=2),
            "unmask, recompute_elementwise": functools.partial(Ours, recompute_elementwise=True),
            "baseline": Baseline,
            "LLaDA's gather": functools.partial(Baseline, gathers=True),
            "unmask, autoregressive": functools.partial(Ours, method="autoregressive"),
        },
        judged="unmask, micro_batch_size",
        baseline="baseline",
        bounds={"speed": 1.25, "memory": 0.6},
    ),
    BLOCKS: Section(
        {
            "unmask, blocks": functools.partial(Ours, method=BLOCKS),
            "unmask, blocks, micro_batch_size": functools.partial(Ours, method=BLOCKS, micro_batches=4),
            "baseline, blocks": functools.partial(Baseline, method=BLOCKS),
        },
        judged="unmask, blocks, micro_batch_size",
        baseline="baseline, blocks",
        bounds={"speed": 1.2, "memory": 0.6},
    ),
}
CONTENDERS = {name: make for section in SECTIONS.values() for name, make in section.contenders.items()}


class Masked(NamedTuple):
    """A step's batch as the baseline takes it, and the share of masked tokens in each one's row or block; [B, L]."""

    clean_BL: Tensor
    noisy_BL: Tensor
    masked_BL: Tensor
    share_BL: Tensor


def diffusion(shape: Shape, method: str) -> DiffusionConfig:
    return DiffusionConfig(
        method=method,  # type: ignore[arg-type]
        vocabulary_size=shape.vocabulary,
        mask_token_id=shape.mask_token_id,
        block_length=shape.block_length if method == BLOCKS else None,
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
def masked(shape: Shape, number: int, method: str) -> Masked:
    """The same batch with the masks of the objective."""
    settings = ObjectiveSettings(method=method)  # type: ignore[arg-type]
    noisy_BL = objective(settings, diffusion(shape, method), seed=0)(batch(shape, number)).ids_BL[:, : shape.length]
    masked_BL = noisy_BL == shape.mask_token_id
    length = shape.block_length if method == BLOCKS else shape.length
    share_BG = masked_BL.float().view(shape.batch, -1, length).mean(dim=2)
    return Masked(shape.clean_ids(number), noisy_BL, masked_BL, share_BG.repeat_interleave(length, dim=1))


def checked_losses(shape: Shape, section: Section, *, steps: int = 3) -> dict[str, list[float]]:
    """The losses of the first steps, which must agree."""
    losses: dict[str, list[float]] = {}
    for name in section.checked:
        contender: Contender = CONTENDERS[name](shape)
        losses[name] = [contender.step(number) for number in range(steps)]
        for number, (our, their) in enumerate(zip(losses[section.checked[0]], losses[name], strict=True)):
            assert abs(our - their) <= LOSS_TOLERANCE * their, f"step {number}: unmask loses {our}, the {name} {their}"
    return losses


def timed(shape: Shape, method: str, rounds: int) -> dict[str, measure.Times]:
    """Interleaved times of the contenders and of the floor."""
    num_read = [int(masked(shape, number, method).masked_BL.sum()) for number in range(rounds + 1)]
    floor = Floor(shape, shape.batch, shape.length * (2 if method == BLOCKS else 1))
    jobs = {name: make(shape).step for name, make in SECTIONS[method].contenders.items()}
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


def where_time_goes(shape: Shape, section: Section) -> dict[str, dict[str, float]]:
    """One profiled step of ours and of the baseline, after one that warms up."""
    parts = {}
    for name in (next(iter(section.contenders)), section.judged, section.baseline):
        contender: Contender = CONTENDERS[name](shape)
        contender.step(0)
        parts[name] = measure.breakdown(lambda contender=contender: contender.step(1))
    return parts


def measured(shape: Shape, method: str, rounds: int) -> dict[str, Any]:
    """Everything about one method, printed on the way."""
    section = SECTIONS[method]
    losses = checked_losses(shape, section)
    against = tuple(name for name in (section.baseline, "LLaDA's gather") if name in section.contenders)
    against += ("floor: linear layers", "floor: with attention")
    results = measure.results(timed(shape, method, rounds), tokens=shape.batch * shape.length, against=against)
    # Each contender's memory takes two processes; a toy's is asked of those alone that are judged, in one section.
    judged = (section.judged, section.baseline)
    for name in section.contenders if shape == REFERENCE else () if method == BLOCKS else judged:
        results[name] |= measure.memory_in_children(name)
    parts = where_time_goes(shape, section)
    print(f"{method} training on {shape.batch} x {shape.length} clean tokens per step.\n")
    print(measure.results_table(results, against=against))
    print("\nWhere the time of a step goes:\n")
    print(measure.breakdown_table(parts))
    verdict = measure.verdict(
        shape,
        section.bounds,
        speed=results[section.judged]["speed_over"][section.baseline],
        memory=None if shape != REFERENCE else results[judged[0]]["memory_mib"] / results[judged[1]]["memory_mib"],
    )
    print(flush=True)
    return {"losses": losses, "results": results, "verdict": verdict, "breakdown": parts}


def main() -> None:
    measure.one_thread()
    given = measure.arguments("Time diffusion training.")
    shape = QUICK if given.quick else REFERENCE
    if given.memory_of:
        print(memory(shape, given.memory_of))
        return
    rounds = given.rounds or (1 if given.quick else 9)
    methods = {method: measured(shape, method, rounds) for method in SECTIONS}
    measure.publish({"benchmark": "train", "methods": methods}, shape=shape, file=given.json)


if __name__ == "__main__":
    main()
