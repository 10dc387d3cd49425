"""One training run from recipe to finished run folder."""

from __future__ import annotations

import contextlib
import importlib.util
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from unmask.errors import CheckpointError, ReportError
from unmask.lm import DiffusionLM
from unmask.models.loading import Checkpoint, parameter_counts
from unmask.models.quantization import is_quantized
from unmask.runs import RunFolder
from unmask.settings.recipe import Recipe
from unmask.training import checkpoint as checkpoints
from unmask.training import growth, kept_split, lineage, requirements
from unmask.training.branches import relink
from unmask.training.distributed import from_main, parting, start
from unmask.training.model_card import model_card
from unmask.training.opening import Opening, opened
from unmask.training.preparation import TrainingText, end_turns, prepare_model, prepare_text, prepare_tokenizer
from unmask.training.samples import first_row, sample_page
from unmask.training.status import Status
from unmask.training.tracking import report_to_trackers
from unmask.training.trainer import Trainer, total_steps
from unmask.writing import PARTIAL, write_text

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Outcome:
    """What a run left behind.

    Attributes:
        run: its folder.
        signal: the signal that ended it early, after saving; None when it is finished.
        is_main: whether this process speaks for all of them.
    """

    run: RunFolder
    signal: int | None
    is_main: bool


def train(
    recipe: Recipe, *, resume: str | None = None, is_last: bool = True, files: Mapping[str, str] | None = None
) -> Outcome:
    """Run a recipe.

    Args:
        recipe: what to train.
        resume: `auto` goes on from the run's latest checkpoint (or starts), a folder from that one; None starts anew.
        is_last: whether the processes part afterwards; a group that has parted cannot reliably meet again.
        files: texts to write into the run folder, by name, when it is made or goes on.

    Raises:
        CheckpointError: the run exists and `resume` is None, there is nothing to resume, or another process works on
            the run.
        SettingsError: the recipe changes what a resumed run keeps.
    """
    run = RunFolder(Path(recipe.output_dir) / recipe.name)
    resumes = resume is not None and (resume != "auto" or bool(run.saved_steps()))
    requirements.check_start(recipe, resumes=resumes)
    accelerator = start(recipe.training, run.root)
    with contextlib.ExitStack() as stack:
        opening = None
        if accelerator.is_main_process:
            stack.enter_context(_terminable())
            opening = stack.enter_context(opened(recipe, run, resume, files=files or {}))
        source = from_main(None if opening is None else opening.source, accelerator)
        status = Status(run, enabled=opening is not None)
        with status.watching():
            ended_by = _trained(recipe, run, accelerator, status, opening, source, is_last=is_last)
        status.ended("finished" if ended_by is None else "interrupted")
    return Outcome(run, ended_by, accelerator.is_main_process)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM leave as an exception does, so that a run that has not begun leaves nothing behind."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _trained(
    recipe: Recipe,
    run: RunFolder,
    accelerator: Accelerator,
    status: Status,
    opening: Opening | None,
    source: Path | None,
    *,
    is_last: bool,
) -> int | None:
    """Train in a run folder that is ready; the signal that ended it early, or None."""
    with accelerator.main_process_first():
        text, checkpoint = prepare(recipe, run, source)
    recipe = requirements.with_room(recipe, checkpoint)
    requirements.check_end(recipe, checkpoint, text)
    with parting(accelerator, is_last=is_last):
        ended_by = _fitted(recipe, run, accelerator, status, checkpoint, text, opening, source)
        if ended_by is None and accelerator.is_main_process:
            _finish(recipe, run, text)
    return ended_by


def _fitted(
    recipe: Recipe,
    run: RunFolder,
    accelerator: Accelerator,
    status: Status,
    checkpoint: Checkpoint,
    text: TrainingText,
    opening: Opening | None,
    source: Path | None,
) -> int | None:
    """Train a checkpoint; the signal that ended it early, or None. Nothing holds the network's wrapper afterwards."""
    trainer = Trainer(recipe, run, accelerator, checkpoint, text, resume=source)
    try:
        if recipe.training.report_to:
            report_to_trackers(recipe, run, accelerator, is_other_run=opening is not None and opening.goes_back)
        if opening is not None:
            lines = [*described(recipe, checkpoint, text), *opening.notes]
            if source is not None:
                lines += growth.noted(run, trainer.facts)
            lines += opening.begin()
            growth.write(run, trainer.facts)
            if text.split is not None:
                kept_split.write(run, text.split, is_start=source is None)
            if source is not None:
                lines.append(f"resumed from {source} at step {trainer.progress.step}")
            for line in lines:
                trainer.console.message(line)
        accelerator.wait_for_everyone()
        status.planned(trainer.total)
        return trainer.fit()
    finally:
        trainer.console.close()


def prepare(recipe: Recipe, run: RunFolder, source: Path | None) -> tuple[TrainingText, Checkpoint]:
    """Text and model of a recipe; what is made of the text is kept in the run folder (or data.cache_dir)."""
    folder = run.data if recipe.data.cache_dir is None else Path(recipe.data.cache_dir)
    return _prepared(recipe, run, folder, source)


def _prepared(recipe: Recipe, run: RunFolder, folder: Path, source: Path | None) -> tuple[TrainingText, Checkpoint]:
    """Text and model of a recipe, whose tokens are kept in `folder`; a resumed run's tokenizer is its checkpoint's, and
    its split is the run's."""
    if source is None:
        tokenizer = prepare_tokenizer(recipe, folder)
        text = prepare_text(recipe, tokenizer, folder)
        checkpoint = prepare_model(recipe, tokenizer, None)
    else:
        # Made again from text that has grown, a tokenizer would give the model's ids other meanings.
        checkpoint = prepare_model(recipe, None, source)
        tokenizer = checkpoint.tokenizer
        if tokenizer is None:
            raise CheckpointError(f"{source} has no tokenizer, which the text needs. Copy the checkpoint again.")
        lineage.check_model(recipe, checkpoint, source)
        block_length = checkpoint.backbone.diffusion.block_length
        kept = kept_split.of_run(run, recipe.data, tokenizer, purpose="resume")
        text = prepare_text(recipe, tokenizer, folder, block_length=block_length, kept=kept)
    if recipe.data.format == "chat" or (recipe.data.format == "ckpt" and tokenizer.chat_template):
        end_turns(checkpoint)
    return text, checkpoint


def described(recipe: Recipe, checkpoint: Checkpoint, text: TrainingText) -> Iterator[str]:
    """Lines that say what is about to be trained on what."""
    backbone, settings = checkpoint.backbone, recipe.training
    total, body = parameter_counts(backbone.network)
    steps = total_steps(recipe, text.train)
    tokens = round(steps * settings.batch_size * text.train.mean_length)
    held_out = "none" if text.held_out is None else f"{len(text.held_out):,} rows"
    yield (
        f"{recipe.objective.method}, {backbone.network.config.model_type}: {total:,} parameters "
        f"({body:,} without embeddings), {backbone.diffusion.vocabulary_size:,} ids, mask id "
        f"{backbone.diffusion.mask_token_id}"
    )
    if unused := lineage.unused_shape(recipe.model):
        yield f"not used: {', '.join(unused)}; the network has the shape of {recipe.model.from_pretrained}"
    if backbone.adapter is not None:
        trained = sum(one.numel() for one in backbone.network.parameters() if one.requires_grad)
        bits = ", in 4 bits" if is_quantized(backbone.network) else ""
        yield (
            f"adapter of rank {backbone.adapter.r}: {trained:,} parameters are trained, the others are frozen "
            f"({backbone.adapter.base_model_name_or_path}{bits})"
        )
    skipped = f", {text.skipped:,} malformed rows skipped" if text.skipped else ""
    if text.stream is not None:
        yield f"text: streamed in rows of {recipe.data.context_length} tokens, held out {held_out}{skipped}"
        yield f"{steps:,} steps x {settings.batch_size} rows = {tokens:,} tokens"
        return
    yield f"{recipe.data.format}: {text.train.description} to train on, held out {held_out}{skipped}"
    epochs = steps * settings.batch_size / len(text.train)
    yield f"{steps:,} steps x {settings.batch_size} rows = {tokens:,} tokens ({epochs:.2f} epochs)"


def dry_run(recipe: Recipe, *, resume: str | None = None) -> Iterator[str]:
    """What a run would do: sizes, memory and its first row, corrupted, without training or leaving anything behind."""
    run = RunFolder(Path(recipe.output_dir) / recipe.name)
    source = None if resume is None else checkpoints.resumable(run, resume)
    notes = [] if source is None else lineage.checked(recipe, run, source)
    with _borrowed(run.data if recipe.data.cache_dir is None else Path(recipe.data.cache_dir)) as folder:
        yield from notes
        yield from _planned(recipe, run, folder, source)


@contextlib.contextmanager
def _borrowed(cache: Path) -> Iterator[Path]:
    """A folder that holds what a cache holds, and goes with all that is added to it."""
    with tempfile.TemporaryDirectory(prefix="unmask-dry-run-") as name:
        for kept in cache.iterdir() if cache.is_dir() else ():
            if not kept.name.startswith(PARTIAL):
                (Path(name) / kept.name).symlink_to(kept.resolve())
        yield Path(name)


def _planned(recipe: Recipe, run: RunFolder, folder: Path, source: Path | None) -> Iterator[str]:
    """The lines of a dry run whose tokens are kept in `folder`."""
    from unmask.objectives.methods import objective

    requirements.check_start(recipe, resumes=source is not None)
    text, checkpoint = _prepared(recipe, run, folder, source)
    requirements.check_end(requirements.with_room(recipe, checkpoint), checkpoint, text)
    yield from described(recipe, checkpoint, text)
    yield f"memory: about {memory_estimate(recipe, checkpoint) / 2**30:.2f} GiB"
    steps = total_steps(recipe, text.train)
    made = objective(recipe.objective, checkpoint.backbone.diffusion, seed=recipe.seed, steps=steps)
    rows = text.rows_of_step(0, batch_size=recipe.training.batch_size, seed=recipe.seed)
    batch = text.batch(rows, 0, 1, step=0)
    tokenizer = checkpoint.tokenizer
    if tokenizer is not None:
        yield from first_row(tokenizer, batch, made(batch), marked=recipe.data.format != "text")


def memory_estimate(recipe: Recipe, checkpoint: Checkpoint) -> float:
    """Bytes for weights, and of those that are trained gradients and AdamW's two moments, and the activations of one
    micro-batch.

    Activations: the values that are kept for the backward pass per layer, token and channel; a rough figure, meant to
    tell 2 GiB from 20.
    """
    config_, settings = checkpoint.backbone.network.config, recipe.training
    weights = list(checkpoint.backbone.network.parameters())
    trained = [one for one in weights if one.requires_grad]
    rows = settings.micro_batch_size or settings.batch_size
    tokens = rows * recipe.data.context_length * recipe.objective.copies
    gate = config_.intermediate_size / config_.hidden_size
    kept = 1 if settings.gradient_checkpointing else 5 + 2 * gate if settings.recompute_elementwise else 12 + 4 * gate
    activation = 4 if settings.precision == "fp32" else 2
    activations = tokens * config_.hidden_size * config_.num_hidden_layers * kept * activation
    logits = settings.loss_chunk_rows * config_.vocab_size * 12
    averages = 4 * sum(one.numel() for one in trained) if settings.ema_decay is not None else 0
    return sum(one.nbytes for one in weights) + 3 * sum(one.nbytes for one in trained) + averages + activations + logits


def _finish(recipe: Recipe, run: RunFolder, text: TrainingText) -> None:
    """Final model, samples and curves."""
    relink(run)
    final = checkpoints.write_final(run, model_card(recipe, run))
    write_text(
        run.samples / "final.md", sample_page(recipe, DiffusionLM.from_pretrained(final).optimize_for_inference(), text)
    )
    if importlib.util.find_spec("matplotlib") is None:
        print('The curves were not drawn: pip install "unmask[plots]" for that.', file=sys.stderr)
        return
    from unmask.reports.curves import loss_curves

    run.plots.mkdir(exist_ok=True)
    try:
        loss_curves({f"{recipe.objective.method} ({recipe.name})": run.metrics}, run.plots)
    except ReportError as error:
        print(f"The curves were not drawn: {error}", file=sys.stderr)
