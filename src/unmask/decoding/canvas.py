"""Canvas decoding of bidirectional models: all places at once, revealed over some steps (LLaDA's fixed-length sampler).

In: rows with prompts of any length. Each forward sees the whole canvas [prompt | masks], but the head runs on masked
places only. Prompt places are never written, every step reveals at least one place and at most those that remain, and
finished rows leave the batch. Source: LLaDA (arXiv 2502.09992, appendix A); thresholds: Fast-dLLM (arXiv 2505.22618).
Shapes: B unfinished rows, W canvas width (padded on the right), N generated places, R masked places of all rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unmask import attention, noise
from unmask.decoding.candidates import Candidates, Keys, gumbel, most_likely
from unmask.decoding.step import Generated, Row, Step, StopRule
from unmask.decoding.unmasking import above_threshold, most_confident, reveal_counts
from unmask.models.backbone import Backbone
from unmask.noise import Purpose
from unmask.settings.decoding import SamplingParams


class CanvasRun:
    """Rows whose canvases are revealed together; see `Run`.

    Args:
        backbone: a model with a mask token.
        rows: what to generate.
        params: resolved for canvas decoding.
        stop: what ends an output early; without it a row takes exactly `denoising_steps` forwards.
    """

    def __init__(self, backbone: Backbone, rows: Sequence[Row], params: SamplingParams, stop: StopRule) -> None:
        self.backbone, self.params, self.stop = backbone, params, stop
        self.forwards = 0
        self._quota = reveal_counts(
            params.reveal_schedule or "linear",
            params.max_new_tokens,
            params.denoising_steps or params.max_new_tokens,
        )
        self._results: dict[int, Generated] = {}
        device = backbone.device
        lengths_B = torch.tensor([len(row.prompt) for row in rows], device=device)
        places_N = torch.arange(params.max_new_tokens, device=device)
        self._index_BN = lengths_B[:, None] + places_N
        self._canvas_BW = _canvases(rows, params.max_new_tokens, backbone)
        self._masked_BN = torch.ones_like(self._index_BN, dtype=torch.bool)
        self._confidence_BN = torch.full(self._index_BN.shape, torch.nan, dtype=torch.float64, device=device)
        self._revealed_at_BN = torch.zeros_like(self._index_BN)
        self._number_B = torch.arange(len(rows), device=device)
        self._seed_B = torch.tensor([row.seed for row in rows], device=device)
        self._sample_B = torch.tensor([row.sample for row in rows], device=device)
        self._num_rows = len(rows)
        documents = attention.documents(lengths_B + params.max_new_tokens, self._canvas_BW.shape[1])
        self._layout = attention.bidirectional(documents)
        self._mask = backbone.render(self._layout, self._layout)

    @property
    def done(self) -> bool:
        return len(self._results) == self._num_rows

    @torch.inference_mode()
    def advance(self) -> None:
        """One forward: candidates for every masked place, of which the policy reveals some."""
        row_R, place_R = self._masked_BN.nonzero(as_tuple=True)
        column_R = self._index_BN[row_R, place_R] - int(self.backbone.diffusion.logit_shift)
        read_R = row_R * self._canvas_BW.shape[1] + column_R
        hidden_BWD = self.backbone(self._canvas_BW, self._layout.position_ids, self._mask, read_R=read_R)
        self.forwards += 1
        found = self._candidates(self.backbone.logits(hidden_BWD.flatten(0, 1)[read_R]), row_R, place_R)
        confidence_BN = torch.full_like(self._confidence_BN, -torch.inf)
        confidence_BN[row_R, place_R] = found.confidence_R.double()
        token_BN = torch.zeros_like(self._index_BN)
        token_BN[row_R, place_R] = found.token_R
        self._reveal(self._chosen(confidence_BN), token_BN, confidence_BN)
        self._collect()

    def observe(self, row: int) -> Step:
        if row in self._results:
            return _finished_step(self._results[row], self.forwards)
        at = self._number_B.tolist().index(row)
        tokens = self._generated_BN()[at].tolist()
        masked = self._masked_BN[at].tolist()
        return Step(
            canvas=tuple(None if hidden else token for token, hidden in zip(tokens, masked, strict=True)),
            revealed=tuple((self._revealed_at_BN[at] == self.forwards).nonzero()[:, 0].tolist()),
            confidence=tuple(self._confidence_BN[at].tolist()),
            forwards=self.forwards,
        )

    def results(self) -> list[Generated]:
        return [self._results[row] for row in range(self._num_rows)]

    def _candidates(self, logits_RV: Tensor, row_R: Tensor, place_R: Tensor) -> Candidates:
        if self.params.temperature == 0:
            return most_likely(logits_RV)
        keys = Keys(self._seed_B[row_R], self._sample_B[row_R], self._index_BN[row_R, place_R], self.forwards - 1)
        return gumbel(logits_RV, temperature=self.params.temperature, keys=keys)

    def _chosen(self, confidence_BN: Tensor) -> Tensor:
        """The policy's choice among the masked places."""
        if self.params.unmasking == "threshold":
            return above_threshold(confidence_BN, self._masked_BN, self.params.confidence_threshold or 0.0)
        if self.params.unmasking == "random":
            keys = (self._seed_B[:, None], self._sample_B[:, None], self._index_BN, self.forwards - 1)
            confidence_BN = noise.uniform(Purpose.REVEAL, *keys)
        return most_confident(confidence_BN, self._masked_BN, self._quota[self.forwards - 1])

    def _reveal(self, reveal_BN: Tensor, token_BN: Tensor, confidence_BN: Tensor) -> None:
        kept_BN = self._generated_BN()
        self._canvas_BW.scatter_(1, self._index_BN, torch.where(reveal_BN, token_BN, kept_BN))
        self._masked_BN = self._masked_BN & ~reveal_BN
        self._confidence_BN = torch.where(reveal_BN, confidence_BN, self._confidence_BN)
        self._revealed_at_BN = torch.where(reveal_BN, self.forwards, self._revealed_at_BN)

    def _collect(self) -> None:
        """Take finished rows out of the batch. Reads from the device only where a row may have finished."""
        by_count = self.params.unmasking != "threshold"
        if by_count and self.forwards < len(self._quota) and not self.stop.is_active:
            return
        complete = (~self._masked_BN.any(dim=1)).tolist()
        tokens, first_mask = self._generated_BN().tolist(), _first_true(self._masked_BN).tolist()
        going = []
        for at, number in enumerate(self._number_B.tolist()):
            end = self.stop.end(tokens[at][: first_mask[at]]) if self.stop.is_active else None
            if end is None and not complete[at]:
                going.append(at)
                continue
            length = len(tokens[at]) if end is None else end
            self._results[number] = Generated(
                token_ids=tuple(tokens[at][:length]),
                finish_reason="length" if end is None else "stop",
                forwards=self.forwards,
                commits=0,
                revealed_at=tuple(self._revealed_at_BN[at, :length].tolist()),
                confidence=tuple(self._confidence_BN[at, :length].tolist()),
            )
        if going and len(going) < len(complete):
            self._select(torch.tensor(going, device=self._number_B.device))

    def _select(self, index_B: Tensor) -> None:
        for name in ("_index_BN", "_canvas_BW", "_masked_BN", "_confidence_BN", "_revealed_at_BN"):
            setattr(self, name, getattr(self, name)[index_B])
        for name in ("_number_B", "_seed_B", "_sample_B"):
            setattr(self, name, getattr(self, name)[index_B])
        self._layout = self._layout.rows(index_B)
        self._mask = self.backbone.render(self._layout, self._layout)

    def _generated_BN(self) -> Tensor:
        return self._canvas_BW.gather(1, self._index_BN)


def _canvases(rows: Sequence[Row], places: int, backbone: Backbone) -> Tensor:
    """[prompt | masks | padding] of each row."""
    mask = backbone.diffusion.mask_token_id
    assert mask is not None, "a canvas needs a mask token; the caller checks it"
    width = max(len(row.prompt) for row in rows) + places
    lines = [[*row.prompt, *([mask] * places), *([0] * (width - len(row.prompt) - places))] for row in rows]
    return torch.tensor(lines, device=backbone.device)


def _first_true(flags_BN: Tensor) -> Tensor:
    """Index of the first True of each row, or its length."""
    padded = torch.cat([flags_BN, torch.ones_like(flags_BN[:, :1])], dim=1)
    return padded.int().argmax(dim=1)


def _finished_step(result: Generated, forwards: int) -> Step:
    newest = tuple(place for place, step in enumerate(result.revealed_at) if step == forwards)
    return Step(result.token_ids, newest, result.confidence, result.forwards)
