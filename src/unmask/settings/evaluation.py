"""How models are measured: the likelihood of text, the likelihood of answers, downstream tasks."""

from __future__ import annotations

from typing import Literal

from unmask.settings.checks import at_least, at_most, is_true
from unmask.settings.limits import MOST_MASKS, MOST_ROWS, MOST_SAMPLES, MOST_VERSIONS
from unmask.settings.typed import settings

Likelihood = Literal["elbo", "chain_rule"]
MaskSampler = Literal["stratified", "llada_rounded"]


@settings
class EvaluationSettings:
    """The likelihood evaluator."""

    masks_per_sequence: int = 8
    """Masked versions of each row that a diffusion bound averages over (stratified mask counts)."""
    max_rows: int | None = 256
    """Rows of held-out text to score; null scores all."""
    batch_size: int = 32
    """Rows per forward."""
    seed: int = 0
    """Seed of the masks; the same seed draws the same masks for every model."""

    def __post_init__(self) -> None:
        at_least(2, masks_per_sequence=self.masks_per_sequence)
        at_least(1, max_rows=self.max_rows, batch_size=self.batch_size)
        at_most(MOST_MASKS, masks_per_sequence=self.masks_per_sequence)
        at_most(MOST_ROWS, batch_size=self.batch_size)
        is_true(
            self.masks_per_sequence * self.batch_size <= MOST_VERSIONS,
            f"batch_size rows with masks_per_sequence versions each are at most {MOST_VERSIONS:,}, got "
            f"{self.batch_size:,} and {self.masks_per_sequence:,}. Lower one of them.",
        )


@settings
class AnswerSettings:
    """The likelihood of an answer behind its context; autoregressive models are exact whatever is set here."""

    likelihood: Likelihood = "elbo"
    """elbo averages over masks, an upper bound; chain_rule is exact from left to right, n forwards for n tokens."""
    mc_num: int = 128
    """Masks that an answer's bound averages over; an answer that has no more of them gets every one. (elbo)"""
    sampler: MaskSampler = "stratified"
    """How many tokens each mask hides: stratified is unbiased; llada_rounded is the original's, biased, to compare."""
    mc_batch: int = 8
    """Masks that share one offset under llada_rounded (the original's batch size); it divides mc_num."""
    cfg_scale: float = 0.0
    """Guidance: logits = unconditional + (cfg_scale + 1) * (conditional - unconditional); 0 is off."""
    max_length: int | None = None
    """Tokens of context and answer together, at most; null is the model's context."""
    batch_size: int = 32
    """Rows per forward."""
    seed: int = 0
    """Seed of the masks; the same seed draws the same masks for every model."""

    def __post_init__(self) -> None:
        at_least(1, mc_num=self.mc_num, mc_batch=self.mc_batch, batch_size=self.batch_size)
        at_most(MOST_MASKS, mc_num=self.mc_num, mc_batch=self.mc_batch)
        at_most(MOST_ROWS, batch_size=self.batch_size)
        at_most(1000, cfg_scale=self.cfg_scale)
        at_least(2, max_length=self.max_length)
        at_least(0, cfg_scale=self.cfg_scale)
        is_true(
            self.sampler != "llada_rounded" or self.mc_num % self.mc_batch == 0,
            f"mc_num must be a multiple of mc_batch for the sampler llada_rounded, got {self.mc_num} and "
            f"{self.mc_batch}. LLaDA uses 128 and 8, and 1 and 1 for MMLU.",
        )


@settings
class TaskSettings:
    """How a task of lm-evaluation-harness is run."""

    num_fewshot: int | None = None
    """Examples before each question; null is the task's own number."""
    limit: int | None = None
    """Questions of each task, the first ones; null asks all."""
    apply_chat_template: bool = False
    """Put the tokenizer's chat template around each question."""
    fewshot_as_multiturn: bool = True
    """With a chat template: each example is a turn of its own."""
    system_instruction: str | None = None
    """Text before everything else, as the system's message under a chat template."""
    check_greedy: bool | None = None
    """Find out whether each answer is the greedy one; null: only for the tasks that ask for it."""
    seeds: int = 1
    """Repeat with the seeds seed, seed + 1, ... and report the spread and how many choices flip."""
    bootstrap_iters: int = 1000
    """Resamplings behind the standard error of metrics that have no formula for it; 0 is off."""

    def __post_init__(self) -> None:
        at_least(0, num_fewshot=self.num_fewshot, bootstrap_iters=self.bootstrap_iters)
        at_least(1, limit=self.limit, seeds=self.seeds)
        at_most(MOST_SAMPLES, num_fewshot=self.num_fewshot, seeds=self.seeds)
        at_most(1_000_000, bootstrap_iters=self.bootstrap_iters)
