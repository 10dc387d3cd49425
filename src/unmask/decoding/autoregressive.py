"""Autoregressive decoding with the exact KV cache: one token per forward, left to right.

In: rows with prompts of any length. The prompts are padded on the right, and each row keeps only its own tokens in the
cache, so rows never see padding; finished rows leave the batch.
Shapes: B unfinished rows, Q new tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unmask import attention
from unmask.decoding.candidates import (
    Candidates,
    Keys,
    Surprise,
    given,
    gumbel_drawn,
    most_likely,
    penalised,
    sampled,
    surprise,
)
from unmask.decoding.step import FinishReason, Generated, Row, Step, StopRule, finite
from unmask.models.backbone import Backbone
from unmask.settings.decoding import SamplingParams


class AutoregressiveRun:
    """Rows that grow by one token per forward; see `Run`. The first forward reads the prompts."""

    def __init__(self, backbone: Backbone, rows: Sequence[Row], params: SamplingParams, stop: StopRule) -> None:
        self.backbone, self.params, self.stop = backbone, params, stop
        self.forwards = 0
        self._rows = list(rows)
        device = backbone.device
        self._number_B = list(range(len(rows)))
        self._seed_B = torch.tensor([row.seed for row in rows], device=device)
        self._sample_B = torch.tensor([row.sample for row in rows], device=device)
        longest = max(len(row.prompt) for row in rows) + params.max_new_tokens
        self._cache = backbone.new_cache(len(rows), capacity=longest)
        self._newest: Candidates | None = None
        self._pending: list[Candidates] = []
        self._surprises: list[Surprise] = []
        self._said: list[tuple[list[float], list[float]]] = [([], []) for _ in rows]
        self._penalises = params.repetition_penalty not in (None, 1)
        self._tokens: list[list[int]] = [[] for _ in rows]
        self._confidence: list[list[float]] = [[] for _ in rows]
        self._results: dict[int, Generated] = {}
        self._endings = [stop.of(row) for row in rows]

    @property
    def done(self) -> bool:
        return len(self._results) == len(self._rows)

    @torch.inference_mode()
    def advance(self) -> None:
        """One forward: the prompts, then the newest token of each row."""
        hidden_BD = self._prefill() if self._newest is None else self._extend(self._newest.token_R[:, None])
        logits_BV = self.backbone.logits(hidden_BD)
        if self._penalises:
            logits_BV = penalised(logits_BV, self._seen(logits_BV), self.params.repetition_penalty or 1.0)
        self._newest = self._candidates(logits_BV)
        self._pending.append(self._newest)
        if self.params.trace:
            self._surprises.append(surprise(logits_BV, self._newest.token_R, self.params.temperature))
        self.forwards += 1
        if self.stop.is_active or self.forwards == self.params.max_new_tokens:
            self._collect()

    def observe(self, row: int) -> Step:
        self._flush()
        tokens = self._tokens[row]
        newest = () if row in self._results and len(tokens) < self.forwards else (len(tokens) - 1,)
        return Step(
            canvas=tuple(tokens),
            revealed=newest,
            confidence=tuple(self._confidence[row]),
            forwards=len(tokens),
            settled=len(tokens),
            total=self.params.max_new_tokens,
        )

    def results(self) -> list[Generated]:
        return [self._results[row] for row in range(len(self._rows))]

    def _prefill(self) -> Tensor:
        """Read the prompts; the hidden state of each one's last token."""
        lengths = [len(row.prompt) for row in self._rows]
        width = max(lengths)
        padded = [[*row.prompt, *([0] * (width - len(row.prompt)))] for row in self._rows]
        ids_BQ = torch.tensor(padded, device=self.backbone.device)
        lengths_B = torch.tensor(lengths, device=self.backbone.device)
        layout = attention.causal(attention.documents(lengths_B, width))
        keep = width if min(lengths) == width else lengths_B
        hidden_BQD = self.backbone.extend(ids_BQ, layout, self._cache, keep=keep)
        return hidden_BQD[torch.arange(len(lengths), device=ids_BQ.device), lengths_B - 1]

    def _extend(self, ids_B1: Tensor) -> Tensor:
        layout = attention.causal_step(self._cache.length_B, 1)
        return self.backbone.extend(ids_B1, layout, self._cache)[:, 0]

    def _seen(self, logits_BV: Tensor) -> Tensor:
        """The ids of each row's text so far, bool [B, V]."""
        self._flush()
        seen_BV = torch.zeros_like(logits_BV, dtype=torch.bool)
        for at, number in enumerate(self._number_B):
            seen_BV[at, [*self._rows[number].prompt, *self._tokens[number]]] = True
        return seen_BV

    def _candidates(self, logits_BV: Tensor) -> Candidates:
        if self.params.temperature == 0:
            return most_likely(logits_BV)
        keys = Keys(self._seed_B, self._sample_B, self._cache.length_B, self.forwards)
        if self.params.verification == "gumbel":
            return given(logits_BV, gumbel_drawn(logits_BV, self.params, keys))
        return sampled(
            logits_BV,
            temperature=self.params.temperature,
            top_k=self.params.top_k or 0,
            top_p=self.params.top_p or 1.0,
            keys=keys,
        )

    def _flush(self) -> None:
        """Bring the tokens of the last forwards to the host, in one read."""
        if not self._pending:
            return
        tokens_BS = torch.stack([found.token_R for found in self._pending], dim=1).tolist()
        confidence_BS = torch.stack([found.confidence_R for found in self._pending], dim=1).tolist()
        for number, tokens, confidence in zip(self._number_B, tokens_BS, confidence_BS, strict=True):
            self._tokens[number] += tokens
            self._confidence[number] += finite(confidence)
        for found in self._surprises:
            for number, *said in zip(self._number_B, *(field.tolist() for field in found), strict=True):
                for kept, one in zip(self._said[number], said, strict=True):
                    kept.append(one)
        self._pending, self._surprises = [], []

    def _collect(self) -> None:
        self._flush()
        going = [at for at, number in enumerate(self._number_B) if not self._finish(number)]
        if going and len(going) < len(self._number_B):
            index_B = torch.tensor(going, device=self._seed_B.device)
            self._number_B = [self._number_B[at] for at in going]
            self._seed_B, self._sample_B = self._seed_B[index_B], self._sample_B[index_B]
            if self._newest is not None:
                self._newest = Candidates(*(field[index_B] for field in self._newest))
            self._cache.select(index_B)

    def _finish(self, number: int) -> bool:
        tokens = self._tokens[number]
        end = self._endings[number].end(tokens) if self.stop.is_active else None
        if end is None and len(tokens) < self.params.max_new_tokens:
            return False
        reason: FinishReason = "length" if end is None else "stop"
        self._results[number] = Generated(
            token_ids=tuple(tokens),
            finish_reason=reason,
            forwards=len(tokens),
            commits=0,
            revealed_at=tuple(range(1, len(tokens) + 1)),
            confidence=tuple(self._confidence[number]),
            log_probability=tuple(self._said[number][0]),
            entropy=tuple(self._said[number][1]),
        )
        return True
