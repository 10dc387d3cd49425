"""One training run from recipe to finished run folder."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask import config
from unmask.data.rows import rows_of_step
from unmask.errors import CheckpointError, ReportError
from unmask.lm import DiffusionLM
from unmask.models.loading import Checkpoint, parameter_counts
from unmask.models.quantization import is_quantized
from unmask.runs import RunFolder, environment
from unmask.settings.recipe import Recipe
from unmask.training import checkpoint as checkpoints
from unmask.training import requirements
from unmask.training.distributed import parting, start
from unmask.training.model_card import model_card
from unmask.training.preparation import TrainingText, end_turns, prepare_model, prepare_text, prepare_tokenizer
from unmask.training.records import truncate_metrics
from unmask.training.samples import first_row, sample_page
from unmask.training.status import Status
from unmask.training.tracking import run_options
from unmask.training.trainer import Trainer, total_steps
from unmask.writing import write_text

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


def train(recipe: Recipe, *, resume: str | None = None, is_last: bool = True) -> Outcome:
    """Run a recipe.

    Args:
        recipe: what to train.
        resume: `auto` goes on from the run's latest checkpoint (or starts), a folder from that one; None starts anew.
        is_last: whether the processes part afterwards; a group that has parted cannot reliably meet again.

    Raises:
        CheckpointError: the run exists and `resume` is None, or there is nothing to resume.
    """
    run = RunFolder(Path(recipe.output_dir) / recipe.name)
    requirements.check_start(recipe)
    accelerator = start(recipe.training, run.root)
    if accelerator.is_main_process:
        _open_run(recipe, run, resume)
    accelerator.wait_for_everyone()
    status = Status(run, enabled=accelerator.is_main_process)
    with status.watching():
        ended_by = _trained(recipe, run, accelerator, status, resume=resume, is_last=is_last)
    status.ended("finished" if ended_by is None else "interrupted")
    return Outcome(run, ended_by, accelerator.is_main_process)


def _trained(
    recipe: Recipe, run: RunFolder, accelerator: Accelerator, status: Status, *, resume: str | None, is_last: bool
) -> int | None:
    """Train in a run folder that is ready; the signal that ended it early, or None."""
    source = None if resume is None else checkpoints.resumable(run, resume)
    with accelerator.main_process_first():
        text, checkpoint = prepare(recipe, run, source)
    requirements.check_end(recipe, checkpoint, text)
    with parting(accelerator, is_last=is_last):
        ended_by = _fitted(recipe, run, accelerator, status, checkpoint, text, source)
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
    source: Path | None,
) -> int | None:
    """Train a checkpoint; the signal that ended it early, or None. Nothing holds the network's wrapper afterwards."""
    trainer = Trainer(recipe, run, accelerator, checkpoint, text, resume=source)
    status.planned(trainer.total)
    try:
        if accelerator.is_main_process:
            for line in described(recipe, checkpoint, text):
                trainer.console.message(line)
            if source is not None:
                trainer.console.message(f"resumed from {source} at step {trainer.progress.step}")
        if recipe.training.report_to:
            accelerator.init_trackers(
                recipe.training.project,
                config=_flat(dataclasses.asdict(recipe)),
                init_kwargs=run_options(recipe.training, recipe.name),
            )
        return trainer.fit()
    finally:
        trainer.console.close()


def prepare(recipe: Recipe, run: RunFolder, source: Path | None) -> tuple[TrainingText, Checkpoint]:
    """Text and model of a recipe; what is made of the text is kept in the run folder (or data.cache_dir)."""
    folder = Path(recipe.data.cache_dir) if recipe.data.cache_dir else run.root / "data"
    tokenizer = prepare_tokenizer(recipe, folder)
    text = prepare_text(recipe, tokenizer, folder)
    checkpoint = prepare_model(recipe, tokenizer, source)
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
    if backbone.adapter is not None:
        trained = sum(one.numel() for one in backbone.network.parameters() if one.requires_grad)
        bits = ", in 4 bits" if is_quantized(backbone.network) else ""
        yield (
            f"adapter of rank {backbone.adapter.r}: {trained:,} parameters are trained, the others are frozen "
            f"({backbone.adapter.base_model_name_or_path}{bits})"
        )
    skipped = f", {text.skipped:,} malformed rows skipped" if text.skipped else ""
    yield f"{recipe.data.format}: {text.train.description} to train on, held out {held_out}{skipped}"
    epochs = steps * settings.batch_size / len(text.train)
    yield f"{steps:,} steps x {settings.batch_size} rows = {tokens:,} tokens ({epochs:.2f} epochs)"


def dry_run(recipe: Recipe) -> Iterator[str]:
    """What a run would do: sizes, memory and its first row, corrupted, without training."""
    from unmask.objectives.methods import objective

    run = RunFolder(Path(recipe.output_dir) / recipe.name)
    requirements.check_start(recipe)
    text, checkpoint = prepare(recipe, run, None)
    requirements.check_end(recipe, checkpoint, text)
    yield from described(recipe, checkpoint, text)
    yield f"memory: about {memory_estimate(recipe, checkpoint) / 2**30:.2f} GiB"
    steps = total_steps(recipe, text.train)
    made = objective(recipe.objective, checkpoint.backbone.diffusion, seed=recipe.seed, steps=steps)
    rows = rows_of_step(0, batch_size=recipe.training.batch_size, num_rows=len(text.train), seed=recipe.seed)
    batch = text.train.batch(rows, 0, 1, step=0)
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


def _open_run(recipe: Recipe, run: RunFolder, resume: str | None) -> None:
    """Make the run folder, or make it ready to go on."""
    if resume is None and run.exists():
        raise CheckpointError(
            f"The run folder {run.root} exists already. Go on with it: --resume auto. Start another one: "
            f"name=NEW_NAME. Or remove it: rm -r {run.root}"
        )
    source = None if resume is None else checkpoints.resumable(run, resume)
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    run.clean()
    write_text(run.config, config.to_yaml(recipe))
    write_text(run.root / "environment.json", json.dumps(environment(), indent=2))
    truncate_metrics(run, 0 if source is None else checkpoints.read_progress(source).step)


def _finish(recipe: Recipe, run: RunFolder, text: TrainingText) -> None:
    """Final model, samples and curves."""
    final = checkpoints.write_final(run, model_card(recipe, run))
    write_text(run.samples / "final.md", sample_page(recipe, DiffusionLM.from_pretrained(final), text))
    if importlib.util.find_spec("matplotlib") is None:
        print('The curves were not drawn: pip install "unmask[plots]" for that.', file=sys.stderr)
        return
    from unmask.reports.curves import loss_curves

    run.plots.mkdir(exist_ok=True)
    try:
        loss_curves({f"{recipe.objective.method} ({recipe.name})": run.metrics}, run.plots)
    except ReportError as error:
        print(f"The curves were not drawn: {error}", file=sys.stderr)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level of plain values, as trackers want them."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, int | float | str | bool) else str(value)
    return flat
