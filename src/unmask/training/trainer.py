"""The training loop, for every objective.

In: a recipe. Out: a run folder. One optimiser step is: the rows of the step -> examples -> the denominators of the
whole step -> forward and backward of each micro-batch -> checks -> clip -> update. Every draw and the order of the data
are functions of the step, so a resumed run, another split into micro-batches and another number of processes all take
the same steps.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from unmask.data.batch import Batch
from unmask.data.rows import Rows
from unmask.errors import NonFiniteError
from unmask.evaluation.likelihood import Likelihood, evaluate
from unmask.models import loading
from unmask.models.loading import Checkpoint
from unmask.models.tied import named_once
from unmask.objectives.distillation import Lesson
from unmask.objectives.example import Example
from unmask.objectives.methods import objective
from unmask.runs import RunFolder, append_record
from unmask.settings.recipe import Recipe
from unmask.training import checkpoint as checkpoints
from unmask.training.branches import going_on
from unmask.training.checkpoint import Progress, read_progress
from unmask.training.console import TrainingConsole
from unmask.training.distributed import is_sharded, summed
from unmask.training.dropout import AdapterDropout, ResidualDropout
from unmask.training.growth import facts_of
from unmask.training.measurements import Measurements
from unmask.training.module import TrainingModule
from unmask.training.optim import WeightAverage, learning_rate, optimizer
from unmask.training.preparation import TrainingText
from unmask.training.recomputation import recompute
from unmask.training.records import StepResult, TermResult, added, term_records
from unmask.training.teacher import Teacher
from unmask.training.throughput import flops_per_token, measured_peak, memory_bytes
from unmask.training.tracking import tags_of
from unmask.writing import written_folder

if TYPE_CHECKING:
    from accelerate import Accelerator

_HEAD_ROWS = {"autoregressive": 1.0, "masked_diffusion": 0.5, "block_diffusion": 0.5, "tidar": 2.0}
"""Rows that reach the head for each supervised token."""
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Trainer:
    """One run: what is trained, on what, and how far it is.

    Args:
        recipe: of the run.
        run: its folder.
        accelerator: its processes.
        checkpoint: the model, on the CPU.
        text: what to learn from and to score.
        resume: checkpoint folder whose training state goes on, or None.
    """

    def __init__(
        self,
        recipe: Recipe,
        run: RunFolder,
        accelerator: Accelerator,
        checkpoint: Checkpoint,
        text: TrainingText,
        *,
        resume: Path | None,
    ) -> None:
        self.recipe, self.run, self.accelerator = recipe, run, accelerator
        self.checkpoint, self.text = checkpoint, text
        self.settings, self.backbone = recipe.training, checkpoint.backbone
        self.total = total_steps(recipe, text.train)
        self.facts = facts_of(text)
        done = Progress() if resume is None else read_progress(resume)
        self.progress = going_on(run, done, self.facts.held_out)
        text.seek(self.progress.stream)
        self.objective = objective(recipe.objective, self.backbone.diffusion, seed=recipe.seed, steps=self.total)
        self.tags = tags_of(self.settings, rows=len(text.train), start=self.progress.step)
        self.teacher = None
        if recipe.objective.teacher is not None:
            placement = {"device": accelerator.device, "attention_backend": self.settings.attention_backend}
            self.teacher = Teacher(recipe.objective, checkpoint, **placement)
        self._signal: int | None = None
        self._prepare_network(resume)
        self._prepare_optimizer(resume)
        self.measurements = None
        if recipe.objective.method != "autoregressive" and self.settings.probe_rows != 0:
            self.measurements = Measurements(recipe, checkpoint, text, self.module, accelerator)
        self.console = TrainingConsole(self.total, start=self.progress.step, enabled=accelerator.is_main_process)
        self._peak = measured_peak(accelerator.device, _DTYPES[self.settings.precision])
        self._clock = time.perf_counter()

    def fit(self) -> int | None:
        """Train to the end; the signal that ended it early (after saving), or None."""
        with self._signals():
            for step in range(self.progress.step, self.total):
                result = self._step(step)
                self._count(step, result)
                self._log(step, result)
                self._measure(step + 1)
                self._evaluate_and_save(step + 1, stop=result.stop)
                if result.stop:
                    break
        self.console.close()
        return self._signal if self.progress.step < self.total else None

    # --- one optimiser step ---------------------------------------------------------------------------------------

    def _step(self, step: int) -> StepResult:
        batches = list(self._batches(step))
        examples = [self.objective(batch) for batch in batches]
        device, world = self.accelerator.device, self.accelerator.num_processes
        terms = examples[0].terms
        denominator_T = torch.stack([example.denominator_T for example in examples]).sum(dim=0)
        denominator_T = summed(denominator_T.to(device), self.accelerator).clamp(min=1)
        # Data parallelism averages gradients over processes, so each one's share is scaled up by their number.
        share_T = torch.tensor(examples[0].shares, dtype=torch.float64, device=device)
        scale_T = world * share_T / denominator_T
        sum_XT = torch.zeros(len(TermResult._fields), len(terms), dtype=torch.float64, device=device)
        for group in self.optimizer.param_groups:  # before the backward pass, in which DeepSpeed takes the step
            group["lr"] = learning_rate(step, self.total, self.settings)
        for number, (batch, example) in enumerate(zip(batches, examples, strict=True)):
            sum_XT += self._backward(batch, example, scale_T, last=number == len(batches) - 1)
        norm = self._clipped_norm()
        tokens = sum(int((batch.document_BL >= 0).sum()) for batch in batches)
        counts = torch.tensor([tokens, self._signal is not None], dtype=torch.float64, device=device)
        shared = summed(torch.cat([sum_XT.flatten(), counts]), self.accelerator)
        sum_XT = shared[:-2].view_as(sum_XT)
        sum_XT[:2] /= denominator_T
        loss = float((sum_XT[:2].sum(dim=0) * share_T).sum())
        each = {name: TermResult(*values) for name, values in zip(terms, sum_XT.T.tolist(), strict=True)}
        result = StepResult(loss, float(norm), int(shared[-2]), bool(shared[-1] > 0), each if len(terms) > 1 else {})
        self._check_finite(step, result)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(self._named_parameters(), step)
        return result

    def _batches(self, step: int) -> Iterator[Batch]:
        """This process's micro-batches of the step's rows."""
        settings = self.settings
        rows = self.text.rows_of_step(step, batch_size=settings.batch_size, seed=self.recipe.seed)
        share = settings.batch_size // self.accelerator.num_processes
        begin, size = share * self.accelerator.process_index, settings.micro_batch_size or share
        for start in range(begin, begin + share, size):
            yield self.text.batch(rows, start, min(start + size, begin + share), step=step)

    def _backward(self, batch: Batch, example: Example, scale_T: Tensor, *, last: bool) -> Tensor:
        for dropout in self.dropouts:
            dropout.begin(batch.step, batch.global_row_B, len(example.layout), starts=example.starts)
        self.accelerator.sync_gradients = last  # DeepSpeed takes the step where this is set
        synchronised = contextlib.nullcontext() if last else self.accelerator.no_sync(self.module)
        with synchronised:
            example = example.to(self.accelerator.device)
            loss = self.module(example, scale_T, self._lesson(batch, example))
            self.accelerator.backward(loss.total)
        rows_T = torch.bincount(example.term_R, minlength=len(example.terms))
        return torch.stack([one.double() for one in (loss.sum_T, loss.divergence_T, rows_T, loss.correct_T)])

    def _lesson(self, batch: Batch, example: Example) -> Lesson | None:
        if self.teacher is None:
            return None
        with self.accelerator.autocast():
            return self.teacher.lesson(batch, example)

    def _clipped_norm(self) -> Tensor:
        largest = self.settings.max_grad_norm or math.inf
        norm = self.accelerator.clip_grad_norm_(self.module.parameters(), largest)
        return torch.as_tensor(math.nan if norm is None else norm)

    def _check_finite(self, step: int, result: StepResult) -> None:
        """Stop before the update; under fp16 the loss scaler handles gradients that overflow."""
        scaled = self.settings.precision == "fp16"
        if math.isfinite(result.loss) and (scaled or math.isfinite(result.grad_norm)):
            return
        kept = self.run.checkpoint("latest")
        raise NonFiniteError(
            f"Step {step + 1} has loss {result.loss} and gradient norm {result.grad_norm}; the weights were not "
            f"updated. Saved so far: {kept or 'nothing'}. Lower training.learning_rate, raise training.warmup_steps or "
            "check the data, and resume with --resume auto."
        )

    # --- records --------------------------------------------------------------------------------------------------

    def _count(self, step: int, result: StepResult) -> None:
        total, count = self.progress.window
        self.progress = dataclasses.replace(
            self.progress,
            step=step + 1,
            tokens=self.progress.tokens + result.tokens,
            window=(total + result.loss, count + 1),
            terms=added(self.progress.terms, result.terms),
        )

    def _log(self, step: int, result: StepResult) -> None:
        if (step + 1) % self.settings.logging_steps and step + 1 != self.total:
            return
        now, (total, count) = time.perf_counter(), self.progress.window
        rate = result.tokens * count / (now - self._clock)
        train = self.text.train
        head_share = train.supervised_share * _HEAD_ROWS[self.recipe.objective.method]
        flops = flops_per_token(self.backbone, round(train.mean_length), head_share=head_share)
        record = {
            "step": step + 1,
            "tokens": self.progress.tokens,
            "train/loss": total / count,
            **term_records(self.progress.terms, count, taught=self.teacher is not None),
            "train/learning_rate": learning_rate(step, self.total, self.settings),
            "train/grad_norm": result.grad_norm,
            "throughput/tokens_per_second": rate,
            "throughput/mfu": rate * flops / (self._peak * self.accelerator.num_processes),
            "throughput/memory_bytes": memory_bytes(self.accelerator.device),
        }
        self.progress = dataclasses.replace(self.progress, window=(0.0, 0), terms={})
        self._clock = now
        self.console.record(record)
        self._write(record)

    def _write(self, record: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            append_record(self.run.metrics, record)
        for step, values in self.tags(record):
            self.accelerator.log(values, step=step)

    def _measure(self, step: int) -> None:
        """The metrics that are due, as a record of their own."""
        if self.measurements is None:
            return
        began = time.perf_counter()
        found = self.measurements.due(step, last=step == self.total)
        if found:
            self._write({"step": step, "tokens": self.progress.tokens, **found})
            self._clock += time.perf_counter() - began

    # --- evaluation and checkpoints -------------------------------------------------------------------------------

    def _evaluate_and_save(self, step: int, *, stop: bool) -> None:
        ending = stop or step == self.total
        every = self.settings.eval_steps or max(1, self.total // 10)
        improved = False
        if self.text.held_out is not None and (step % every == 0 or step == self.total):
            improved = self._evaluate(self.text.held_out, step)
        if improved or ending or step % (self.settings.save_steps or every) == 0 or self._epoch_ends(step):
            self._save(step)

    def _evaluate(self, held_out: Rows, step: int) -> bool:
        """Score the held-out text with fixed masks; whether it is the best so far."""
        began = time.perf_counter()
        likelihood = self.held_out_likelihood(held_out)
        score = likelihood.bits_per_byte
        record = {
            "step": step,
            "tokens": self.progress.tokens,
            "eval/bits_per_byte": score,
            "eval/stderr": likelihood.bits_per_byte_stderr,
            "eval/nats_per_token": likelihood.nats_per_token,
        }
        self._write(record)
        label = "bound" if likelihood.is_bound else "exact"
        self.console.message(
            f"step {step}: held-out {score:.4f} +- {likelihood.bits_per_byte_stderr:.4f} bits per byte ({label}), "
            f"{likelihood.nats_per_token:.4f} nats per token"
        )
        self._clock += time.perf_counter() - began
        if not score < (math.inf if self.progress.best_score is None else self.progress.best_score):
            return False
        self.progress = dataclasses.replace(self.progress, best_score=score, best_step=step)
        return True

    def held_out_likelihood(self, text: Rows) -> Likelihood:
        """Likelihood of the weights that a checkpoint would hold, the averaged ones where there are any, in their own
        type, as whoever opens it computes it; every process computes it."""
        # Sharded weights need their wrapper, with its precision; else that is for training alone.
        bare = TrainingModule(self.backbone, chunk_rows=self.settings.loss_chunk_rows)
        losses = self.module if is_sharded(self.accelerator) else bare
        averaged = contextlib.nullcontext()
        if self.average is not None:
            averaged = self.average.in_place(self._named_parameters())
        self.module.eval()
        try:
            with averaged:
                return evaluate(self.backbone, text, self.recipe.evaluation, losses=losses)
        finally:
            self.module.train()

    def _epoch_ends(self, step: int) -> bool:
        if self.settings.save_epochs is None:
            return False
        rows = len(self.text.train) * self.settings.save_epochs
        return step * self.settings.batch_size // rows > (step - 1) * self.settings.batch_size // rows

    def _save(self, step: int) -> None:
        """Write a checkpoint; it appears whole or not at all, and nothing saved before is touched until it is there."""
        began = time.perf_counter()
        state = checkpoints.optimizer_tensors(self.module, self.optimizer.optimizer)
        prefix = "backbone.network."
        gathered = cast("dict[str, Tensor]", self.accelerator.get_state_dict(self.module))
        weights = {name.partition(prefix)[2]: value for name, value in gathered.items()}
        weights = named_once(self.backbone.network, weights)
        tensors = {"optimizer": state}
        if self.average is not None:
            tensors |= {"weights": {name: weights[name] for name in self.average.weights}}
            tensors |= {"average": self.average.weights}
            weights |= {name: value.to(weights[name].dtype) for name, value in self.average.weights.items()}
        self.progress = dataclasses.replace(self.progress, stream=self.text.position(step * self.settings.batch_size))
        if self.accelerator.scaler is not None:
            self.progress = dataclasses.replace(self.progress, scaler=self.accelerator.scaler.state_dict())
        if self.accelerator.is_main_process:
            with written_folder(self.run.checkpoints / f"step-{step}") as folder:
                loading.save(self.checkpoint, folder, weights=weights)
                checkpoints.write_state(folder, self.progress, tensors)
            self.run.link("latest", step)
            if self.progress.best_step == step:
                self.run.link("best", step)
            best, keep = self.progress.best_step, self.settings.keep_checkpoints
            checkpoints.remove_old(self.run, keep=keep, best=best, written=step)
        self.accelerator.wait_for_everyone()
        self._clock += time.perf_counter() - began

    # --- set-up ---------------------------------------------------------------------------------------------------

    def _prepare_network(self, resume: Path | None) -> None:
        settings, network = self.settings, self.backbone.network
        network.train()
        for parameter in network.parameters():
            if parameter.device.type == "cpu" and parameter.is_floating_point():
                # Weights lie in a mapped file as its header leaves them, and matrix products round by their address.
                parameter.data = parameter.data.clone()
        self.average = None
        if resume is not None and settings.ema_decay is not None:
            network.load_state_dict(checkpoints.read_tensors(resume, "weights"), strict=False)
        if settings.gradient_checkpointing or settings.recompute_elementwise:
            recompute(network, keep_products=not settings.gradient_checkpointing)
        self.dropouts: list[ResidualDropout | AdapterDropout] = []
        for kind, probability in ((ResidualDropout, settings.dropout), (AdapterDropout, self.recipe.adapter.dropout)):
            if probability > 0:
                self.dropouts.append(kind(self.backbone.decoder, probability, seed=self.recipe.seed))
        if settings.compile:
            self.backbone.compile_network()

    def _prepare_optimizer(self, resume: Path | None) -> None:
        module = TrainingModule(self.backbone, chunk_rows=self.settings.loss_chunk_rows).train()
        module.to(self.accelerator.device)
        self.module, self.optimizer = self.accelerator.prepare(module, optimizer(module, self.settings))
        if self.settings.ema_decay is not None:
            self.average = WeightAverage(self._named_parameters(), self.settings.ema_decay)
        if resume is None:
            return
        tensors = checkpoints.read_tensors(resume, "optimizer")
        checkpoints.restore_optimizer(self.module, self.optimizer.optimizer, tensors)
        if self.average is not None:
            saved = checkpoints.read_tensors(resume, "average")
            self.average.weights = {name: saved[name].to(value) for name, value in self.average.weights.items()}
        if self.accelerator.scaler is not None and self.progress.scaler is not None:
            self.accelerator.scaler.load_state_dict(self.progress.scaler)

    def _named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """What is trained."""
        return ((name, one) for name, one in self.backbone.network.named_parameters() if one.requires_grad)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C end the run after the current step; a second Ctrl-C ends it at once."""

        def request(number: int, frame: FrameType | None) -> None:
            if self._signal is not None:
                raise KeyboardInterrupt
            self._signal = number
            self.console.message("Stopping after this step; the checkpoint is being saved.")

        before = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def total_steps(recipe: Recipe, text: Rows) -> int:
    """Optimiser steps of a run."""
    settings = recipe.training
    if settings.epochs is not None:
        return max(1, math.ceil(settings.epochs * len(text) / settings.batch_size))
    return settings.steps or 1000
