"""How models are compared."""

from __future__ import annotations

from unmask.settings.checks import at_least, at_most, in_range
from unmask.settings.limits import MOST_ROWS
from unmask.settings.typed import settings

_MOST_THREADS = 1024
"""PyTorch ends the process where there are far more."""


@settings
class ComparisonSettings:
    """What every model is measured on, and how precisely."""

    max_batches: int | None = 8
    """Batches of pieces to score, from documents in a seeded order; null scores the whole text."""
    batch_size: int = 32
    """Pieces per batch; rows per forward."""
    masks_per_sequence: int = 16
    """Masked versions of each piece that a diffusion bound averages over (stratified mask counts)."""
    context_length: int | None = None
    """Tokens of a piece, at most, with the token in front; default: the shortest of the runs' rows and 512."""
    confidence: float = 0.95
    """With which all intervals of the pairs hold together, and each model's own by itself."""
    chain_rule_bytes: int = 4096
    """Text to score with diffusion models from left to right as well, a forward for each token; 0 leaves it out."""
    texts: int = 32
    """Documents whose beginnings are continued; 0 generates nothing."""
    prompt_words: int = 8
    """Words of a beginning."""
    new_tokens: int = 64
    """Tokens of a continuation, at most."""
    temperature: float = 1.0
    """Of the continuations."""
    threads: int = 1
    """CPU threads, for all figures of speed alike."""
    seed: int = 0
    """Seed of the documents' order, the masks, the continuations and the resampling."""

    def __post_init__(self) -> None:
        at_least(1, max_batches=self.max_batches, batch_size=self.batch_size, prompt_words=self.prompt_words)
        at_least(1, new_tokens=self.new_tokens, threads=self.threads)
        at_most(MOST_ROWS, batch_size=self.batch_size, masks_per_sequence=self.masks_per_sequence)
        at_most(_MOST_THREADS, threads=self.threads)
        at_least(2, masks_per_sequence=self.masks_per_sequence, context_length=self.context_length)
        at_least(0, chain_rule_bytes=self.chain_rule_bytes, texts=self.texts, temperature=self.temperature)
        in_range(0.5, 0.999, confidence=self.confidence)
