"""How it is learned: batches, optimiser, precision, evaluation, checkpoints, trackers."""

from __future__ import annotations

from typing import Literal

from unmask.settings.checks import at_least, in_range, is_true
from unmask.settings.typed import settings

Tracker = Literal["wandb", "tensorboard", "trackio", "swanlab", "mlflow"]
DEFAULT_WARMUP = 0.01
"""Share of a run in which the learning rate rises."""
TAGGED: tuple[Tracker, ...] = ("wandb", "swanlab")
"""Trackers whose runs have tags."""


@settings
class TrainingSettings:
    """The training loop."""

    steps: int | None = None
    """Optimiser steps; give this or `epochs` (default: 1000 steps)."""
    epochs: float | None = None
    """Passes over the training rows; give this or `steps`."""
    batch_size: int = 32
    """Rows per optimiser step, over all processes and micro-batches."""
    micro_batch_size: int | None = None
    """Rows per forward in each process; default: all rows of the process at once."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    lr_schedule: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    """Course after the warm-up: to the floor by cosine or line, flat then down (wsd), or flat."""
    warmup_steps: int | None = None
    """Steps of linear warm-up; default: `warmup_ratio` of them."""
    warmup_ratio: float = DEFAULT_WARMUP
    """Share of the steps that is warm-up, rounded down and at least one, where `warmup_steps` is not given."""
    min_lr_ratio: float = 0.1
    """Floor of the learning rate as a share of its peak."""
    decay_fraction: float = 0.2
    """Share of the steps in which wsd decays, at the end."""
    weight_decay: float = 0.1
    """Decoupled weight decay, on matrices only (no norms, biases or embeddings)."""
    adam_betas: tuple[float, float] = (0.9, 0.95)
    """Momentum terms of AdamW."""
    adam_epsilon: float = 1e-8
    """Denominator term of AdamW."""
    max_grad_norm: float = 1.0
    """Largest gradient norm; 0 turns clipping off."""
    dropout: float = 0.0
    """Residual dropout on the outputs of attention and MLP."""
    ema_decay: float | None = None
    """Decay of an exponential moving average of the weights, which is then evaluated and saved as the result."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the forward and backward passes; the weights keep `model.dtype`."""
    gradient_checkpointing: bool = False
    """Keep only the inputs of the layers for the backward pass and recompute the rest, to save memory."""
    recompute_elementwise: bool = False
    """Keep matrix products and attention, recompute norms, gates and rotations: less memory, a little slower."""
    compile: bool = False
    """Compile the network with torch.compile."""
    attention_backend: Literal["dense", "flex"] = "dense"
    """Dense masks with SDPA, or FlexAttention (needs a GPU to train)."""
    loss_chunk_rows: int = 512
    """Supervised rows whose logits exist at the same time."""
    logging_steps: int = 10
    """Steps between two records of metrics."""
    probe_rows: int | None = None
    """How many rows of held-out (else training) text, at most, are masked once and measured on at every logging step of
    a diffusion model; default: batch_size, at most 64 (about a third of a step). 0 turns all such metrics off."""
    detailed_metrics_steps: int | None = None
    """Steps between two measurements of confidence, attention and gradients on those rows; default: never."""
    attention_analysis_steps: int | None = None
    """Steps between two measurements of token-frequency bias, of what reveal schedules cost and of how generated texts
    converge; default: never."""
    eval_steps: int | None = None
    """Steps between two evaluations on the held-out text; default: a tenth of the run."""
    save_steps: int | None = None
    """Steps between two checkpoints; default: eval_steps."""
    save_epochs: int | None = None
    """Epochs between two checkpoints, besides save_steps."""
    keep_checkpoints: int | None = 1
    """How many of the newest checkpoints to keep beside the best one; null keeps all."""
    report_to: tuple[Tracker, ...] = ()
    """Trackers to log to besides metrics.jsonl."""
    tracker_tags: Literal["unmask", "tidar_port"] = "unmask"
    """Names of metrics at the trackers: those of metrics.jsonl, or those of the first TiDAR port (train/batch_loss)."""
    project: str = "unmask"
    """Project name at the trackers."""
    run_tags: tuple[str, ...] = ()
    """Tags of the run at the trackers that have them: wandb and swanlab."""
    deepspeed_config: str | None = None
    """JSON file of DeepSpeed, for ZeRO; batch, optimiser, learning rate, clipping and precision are those above.
    `unmask train --deepspeed FILE` also takes these from the file."""

    def __post_init__(self) -> None:
        is_true(
            self.steps is None or self.epochs is None,
            f"Set either steps or epochs, got steps={self.steps} and epochs={self.epochs}.",
        )
        at_least(1, steps=self.steps, batch_size=self.batch_size, micro_batch_size=self.micro_batch_size)
        at_least(1, logging_steps=self.logging_steps, eval_steps=self.eval_steps, save_steps=self.save_steps)
        at_least(1, detailed_metrics_steps=self.detailed_metrics_steps)
        at_least(1, attention_analysis_steps=self.attention_analysis_steps)
        at_least(0, probe_rows=self.probe_rows)
        is_true(
            self.probe_rows != 0 or not (self.detailed_metrics_steps or self.attention_analysis_steps),
            "training.detailed_metrics_steps and attention_analysis_steps measure on the rows of probe_rows, which is "
            "0. Leave probe_rows out.",
        )
        at_least(1, keep_checkpoints=self.keep_checkpoints, save_epochs=self.save_epochs)
        at_least(1, loss_chunk_rows=self.loss_chunk_rows)
        at_least(0, learning_rate=self.learning_rate, warmup_steps=self.warmup_steps, max_grad_norm=self.max_grad_norm)
        at_least(0, weight_decay=self.weight_decay)
        is_true(
            all(0 <= beta < 1 for beta in self.adam_betas),
            f"adam_betas must be two shares from 0 to below 1, got {list(self.adam_betas)}. Example: [0.9, 0.95]",
        )
        is_true(self.adam_epsilon > 0, f"adam_epsilon must be above 0, got {self.adam_epsilon}.")
        in_range(0, 1, min_lr_ratio=self.min_lr_ratio, decay_fraction=self.decay_fraction)
        in_range(0, 1, warmup_ratio=self.warmup_ratio)
        is_true(
            self.warmup_steps is None or self.warmup_ratio == DEFAULT_WARMUP,
            f"Set either warmup_steps or warmup_ratio, got {self.warmup_steps} and {self.warmup_ratio}.",
        )
        in_range(0, 0.99, dropout=self.dropout)
        in_range(0, 0.99999, ema_decay=self.ema_decay)
        is_true(self.epochs is None or self.epochs > 0, f"epochs must be positive, got {self.epochs}.")
        is_true(
            not self.run_tags or not self.report_to or bool({*TAGGED} & {*self.report_to}),
            f"run_tags belong to the trackers {' and '.join(TAGGED)}, got report_to {', '.join(self.report_to)}. Leave "
            "them out, or report to one of these.",
        )
