"""Block decoding with an exact KV cache: a text grows block by block, each denoised over some steps (SDAR, BD3-LM).

In: rows with prompts of any length. Blocks are aligned to the start of the text, so a prompt's tail shares the first
block with what is generated; given places are never written. A block sees all blocks before it, whose keys are final,
so they are kept. The forward that first evaluates a block writes the keys of the one before it as well (fused commit),
or that takes a forward of its own; the prompt's whole blocks are written in the same way, and the last block never is.
Rows may be at different blocks and steps, and finished rows leave the batch. Sources: SDAR (arXiv 2510.06303), BD3-LM
(2503.09573), LLaDA2.1 for edits.
Shapes: B unfinished rows, W columns of the text, K places of a block, Q new columns of a forward, R read places,
C chosen ones of these.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from unmask import attention, noise
from unmask.decoding import unmasking
from unmask.decoding.candidates import Candidates, Keys, candidates, inverse_cdf, likeliest, penalised, surprise
from unmask.decoding.step import Generated, Row, Step, StopRule, finite
from unmask.models.backbone import Backbone, Mask
from unmask.noise import Purpose
from unmask.settings.decoding import SamplingParams
from unmask.settings.decoding_options import DYNAMIC


@dataclasses.dataclass
class _Progress:
    """Where a row is; a place is a column of its text.

    Attributes:
        number: of the row, as it was given.
        prompt: places that are given.
        end: the place behind the last one that is wanted.
        start: first place of the block that is being revealed.
        committed: places whose keys are written.
        step: steps taken in this block.
        steps: steps taken in all.
        edits: steps since the one that revealed the block's last place; -1 before it.
        is_read: whether the last forward was a step, not one that only wrote keys.
        commits: forwards that only wrote keys.
        tokens: what is generated for good: all finished blocks.
    """

    number: int
    prompt: int
    end: int
    start: int
    committed: int = 0
    step: int = 0
    steps: int = 0
    edits: int = -1
    commits: int = 0
    is_read: bool = False
    tokens: list[int] = dataclasses.field(default_factory=list)

    @property
    def forwards(self) -> int:
        return self.steps + self.commits


class BlockRun:
    """Rows that grow block by block; see `Run`. The first forward reads the prompts.

    Args:
        backbone: a block-diffusion model.
        rows: what to generate.
        params: resolved for block decoding.
        stop: what ends an output early.

    Where all rows are at one block its keys are stored from its first step on and replaced at each; `_stored` says
    which places these are, and `_seen` what its tokens see.
    """

    def __init__(self, backbone: Backbone, rows: Sequence[Row], params: SamplingParams, stop: StopRule) -> None:
        self.backbone, self.params, self.stop = backbone, params, stop
        self._length = params.block_length or 1
        steps = params.denoising_steps or self._length
        self._quotas = unmasking.reveal_counts(params.reveal_schedule or "linear", self._length, steps)
        self._steps = steps if params.unmasking in DYNAMIC else len(self._quotas)
        self._num_rows = len(rows)
        self._is_cached = params.cache == "exact"
        self._results: dict[int, Generated] = {}
        self._newest: set[int] = set()
        self._endings = [stop.of(row) for row in rows]
        self._build(rows)

    @property
    def done(self) -> bool:
        return len(self._results) == self._num_rows

    @torch.inference_mode()
    def advance(self) -> None:
        """One forward: a step of each row's block, or, without fused commit, the keys of the one before it."""
        commits_apart = self._is_cached and not self.params.fused_commit
        self._newest = {one.number for one in self._progress}
        reads = [one.committed == one.start or not commits_apart for one in self._progress]
        row_R, place_R = self._open(reads)
        column_R = self._block_BK[row_R, place_R]
        hidden_RD = self._forward(reads, row_R, column_R)
        for one, is_read in zip(self._progress, reads, strict=True):
            one.committed, one.is_read = one.start, is_read
            one.steps, one.step, one.commits = one.steps + is_read, one.step + is_read, one.commits + (not is_read)
        if any(reads):
            self._reveal(hidden_RD, row_R, place_R, column_R)
            self._collect(reads)

    def observe(self, row: int) -> Step:
        if row in self._results:
            return self._step_of(row)
        at, one = next((at, one) for at, one in enumerate(self._progress) if one.number == row)
        # A block that is still to be evaluated is not shown.
        columns = slice(one.prompt, min(one.start + (self._length if one.step else 0), one.end))
        hidden = self._masked_BW[at, columns].tolist()
        newest = (self._revealed_at_BW[at, columns] == one.steps).nonzero()[:, 0].tolist() if one.is_read else []
        tokens, confidence = self._text_BW[at, columns].tolist(), self._confidence_BW[at, columns].tolist()
        finite(value for value, masked in zip(confidence, hidden, strict=True) if not masked)
        return Step(
            canvas=tuple(None if masked else token for token, masked in zip(tokens, hidden, strict=True)),
            revealed=tuple(newest),
            confidence=tuple(torch.nan if masked else c for c, masked in zip(confidence, hidden, strict=True)),
            forwards=one.forwards,
            settled=hidden.index(True) if True in hidden and self.params.edit_threshold is None else len(one.tokens),
            total=one.end - one.prompt,
        )

    def results(self) -> list[Generated]:
        return [self._results[row] for row in range(self._num_rows)]

    # --- one forward --------------------------------------------------------------------------------------------------

    def _open(self, reads: Sequence[bool]) -> tuple[Tensor, Tensor]:
        """Where predictions count, as rows and places of their blocks: masked ones and, to edit them, revealed ones."""
        open_BK = self._masked_BW.gather(1, self._block_BK)
        if self.params.edit_threshold is not None:
            open_BK = self._block_BK >= self._prompt_B[:, None]
        if not all(reads):
            open_BK = open_BK & torch.tensor(reads, device=open_BK.device)[:, None]
        row_R, place_R = open_BK.nonzero(as_tuple=True)
        return row_R, place_R

    def _forward(self, reads: Sequence[bool], row_R: Tensor, column_R: Tensor) -> Tensor:
        """Hidden states [R, D] of the given places.

        A row evaluates what is to be committed and, if it is read, its block behind that.
        """
        begins = [one.committed if self._is_cached else 0 for one in self._progress]
        stops = [one.start + self._length * is_read for one, is_read in zip(self._progress, reads, strict=True)]
        spans = [slice(begin, stop) for begin, stop in zip(begins, stops, strict=True)]
        width = max(stop - begin for begin, stop in zip(begins, stops, strict=True))
        begin_B = self._host_tensor(begins)
        read_R = row_R * width + column_R - begin_B[row_R]
        if all(reads) and all(span == self._stored for span in spans):
            hidden_BQD = self._evaluate_again(begin_B, read_R)
        else:
            hidden_BQD = self._evaluate(spans, begin_B, width, read_R, are_read=all(reads))
        return hidden_BQD.flatten(0, 1)[read_R]

    def _evaluate(
        self, spans: Sequence[slice], begin_B: Tensor, width: int, read_R: Tensor, *, are_read: bool
    ) -> Tensor:
        """Hidden states [B, Q, D] of these places of each row, whose keys are written as far as they are final."""
        lengths = [span.stop - span.start for span in spans]
        lengths_B = None if min(lengths) == width else self._host_tensor(lengths)
        layout = attention.block_step(begin_B, width, self._length, lengths_B=lengths_B)
        ids_BQ = self._text_BW.gather(1, layout.position_ids.clamp(max=self._text_BW.shape[1] - 1))
        if not self._is_cached:
            mask = self.backbone.render(layout, layout)
            return self.backbone(ids_BQ, layout.position_ids, mask, read_R=read_R)
        if self._stored is not None:
            self._cache.drop(self._length)
            self._stored = None
        mask = self.backbone.render(layout, self._cache.begin(layout))
        hidden_BQD = self.backbone(ids_BQ, layout.position_ids, mask, cache=self._cache, read_R=read_R)
        if are_read and not self._cache.is_ragged and all(span == spans[0] for span in spans):
            self._stored = slice(spans[0].stop - self._length, spans[0].stop)
            self._cache.keep()
        else:
            kept = [one.start - span.start for one, span in zip(self._progress, spans, strict=True)]
            self._cache.keep(kept[0] if len(set(kept)) == 1 else self._host_tensor(kept))
        return hidden_BQD

    def _evaluate_again(self, begin_B: Tensor, read_R: Tensor) -> Tensor:
        """Hidden states of the block whose keys are stored, in every row; they are replaced by those of now."""
        assert self._stored is not None
        keys = self._cache.rewrite(self._stored.start, self._length)
        if self._seen is None:
            layout = attention.block_step(begin_B, self._length, self._length)
            self._seen = layout.position_ids, self.backbone.render(layout, keys)
        position_ids_BK, mask = self._seen
        ids_BK = self._text_BW[:, self._stored]
        return self.backbone(ids_BK, position_ids_BK, mask, cache=self._cache, read_R=read_R)

    def _reveal(self, hidden_RD: Tensor, row_R: Tensor, place_R: Tensor, column_R: Tensor) -> None:
        """Draw candidates for the open places and write those that the policy chooses."""
        logits_RV = self.backbone.logits(hidden_RD)
        if self.params.repetition_penalty not in (None, 1):
            # Masked places hold the mask token, which no penalty brings back.
            seen_BV = torch.zeros(len(self._text_BW), logits_RV.shape[1], dtype=torch.bool, device=row_R.device)
            seen_BV.scatter_(1, self._text_BW, True)
            logits_RV = penalised(logits_RV, seen_BV[row_R], self.params.repetition_penalty or 1.0)
        keys = Keys(0, 0, 0, 0)  # nothing is drawn at temperature 0
        if self.params.temperature > 0:
            keys = Keys(self._seed_B[row_R], self._sample_B[row_R], column_R, self._step_B[row_R])
        found = candidates(logits_RV, self.params, keys, draw=inverse_cdf)
        certainty_BK = torch.full(self._block_BK.shape, -torch.inf, dtype=torch.float64, device=row_R.device)
        certainty_BK[row_R, place_R] = found.certainty_R.double()
        masked_BK = torch.zeros_like(self._block_BK, dtype=torch.bool)
        masked_BK[row_R, place_R] = self._masked_BW[row_R, column_R]
        chosen_R = self._chosen(certainty_BK, masked_BK)[row_R, place_R]
        if self.params.edit_threshold is not None:
            found, chosen_R = self._with_edits(logits_RV, found, chosen_R, row_R, column_R)
        index_C = chosen_R.nonzero()[:, 0]
        found = Candidates(*(one_R[index_C] for one_R in found))
        self._write(logits_RV, found, index_C, row_R[index_C], column_R[index_C])

    def _chosen(self, certainty_BK: Tensor, masked_BK: Tensor) -> Tensor:
        """The policy's choice, and everything where a row's steps are used up."""
        quotas = [self._quotas[min(one.step, self._steps) - 1] for one in self._progress]
        quota = quotas[0] if len(set(quotas)) == 1 else self._host_tensor(quotas)
        reveal_BK = unmasking.chosen(self.params, certainty_BK, masked_BK, quota, self._uniform)
        if self.params.unmasking in DYNAMIC and any(one.step == self._steps for one in self._progress):
            ending_B = torch.tensor([one.step >= self._steps for one in self._progress], device=masked_BK.device)
            reveal_BK = reveal_BK | (masked_BK & ending_B[:, None])
        return reveal_BK

    def _uniform(self) -> Tensor:
        keys = (self._seed_B[:, None], self._sample_B[:, None], self._block_BK, self._step_B[:, None])
        return noise.uniform(Purpose.REVEAL, *keys)

    def _with_edits(
        self, logits_RV: Tensor, found: Candidates, chosen_R: Tensor, row_R: Tensor, column_R: Tensor
    ) -> tuple[Candidates, Tensor]:
        """The candidates with better tokens for revealed places, and the chosen places with these."""
        best = likeliest(logits_RV, self.params)
        is_other_R = ~self._masked_BW[row_R, column_R] & (best.token_R != self._text_BW[row_R, column_R])
        edit_R = is_other_R & (best.confidence_R > (self.params.edit_threshold or 0.0))
        self._edited_B = torch.zeros_like(self._edited_B)
        self._edited_B[row_R[edit_R]] = True
        merged = (torch.where(edit_R, new_R, old_R) for new_R, old_R in zip(best, found, strict=True))
        return Candidates(*merged), chosen_R | edit_R

    def _write(self, logits_RV: Tensor, found: Candidates, index_C: Tensor, row_C: Tensor, column_C: Tensor) -> None:
        """Write what was found for the chosen ones of the R places, which `index_C` names."""
        places = (row_C, column_C)
        self._text_BW[places] = found.token_R
        self._masked_BW[places] = False
        self._confidence_BW[places] = found.confidence_R.double()
        self._revealed_at_BW[places] = self._step_B[row_C] + 1
        if self.params.trace:
            said = surprise(logits_RV[index_C], found.token_R, self.params.temperature)
            self._log_probability_BW[places], self._entropy_BW[places] = said

    # --- progress -----------------------------------------------------------------------------------------------------

    def _collect(self, reads: Sequence[bool]) -> None:
        """Finish rows, begin the next blocks of others; one read from the device, and one for each row that ends."""
        blocks = (one_BW.gather(1, self._block_BK) for one_BW in (self._text_BW, self._masked_BW))
        told_BC = torch.cat([*blocks, self._edited_B[:, None]], dim=1).tolist()
        going: list[int] = []
        moved = False
        for at, (one, is_read) in enumerate(zip(self._progress, reads, strict=True)):
            tokens, masked = told_BC[at][: self._length], [flag == 1 for flag in told_BC[at][self._length : -1]]
            edited = told_BC[at][-1] == 1
            if is_read and self._finish(at, one, tokens, masked, edited=edited):
                continue
            going.append(at)
            if is_read and self._is_complete(one, masked, edited=edited):
                one.tokens += tokens[max(0, one.prompt - one.start) :]
                one.start, one.step, one.edits = one.start + self._length, 0, -1
                moved = True
        if len(going) < len(self._progress):
            self._select(going)
        if going and (moved or len(going) < len(reads)):
            self._place_blocks()
        self._step_B = self._host_tensor([one.steps for one in self._progress])

    def _is_complete(self, one: _Progress, masked: Sequence[bool], *, edited: bool) -> bool:
        """Whether the block changes no more; with edits, after a step behind the last reveal that made none."""
        if any(masked) or self.params.edit_steps is None:
            return not any(masked)
        return one.edits >= self.params.edit_steps or (one.edits > 0 and not edited)

    def _finish(self, at: int, one: _Progress, tokens: Sequence[int], masked: Sequence[bool], *, edited: bool) -> bool:
        """Record the row's result if nothing can change it any more."""
        given = max(0, one.prompt - one.start)
        first_mask = masked.index(True) if True in masked else self._length
        if self.params.edit_threshold is not None:
            one.edits += first_mask == self._length
            if not self._is_complete(one, masked, edited=edited):
                return False
        text = [*one.tokens, *tokens[given:first_mask]][: one.end - one.prompt]
        end = self._endings[one.number].end(text) if self.stop.is_active else None
        if end is None and len(text) < one.end - one.prompt:
            return False
        length = len(text) if end is None else end
        columns = slice(one.prompt, one.prompt + length)
        said_BW = [self._revealed_at_BW, self._confidence_BW]
        said_BW += [self._log_probability_BW, self._entropy_BW] if self.params.trace else []
        steps, confidence, *traced = torch.stack([one_BW[at, columns].double() for one_BW in said_BW]).tolist()
        log_probability, entropy = traced or ((), ())
        self._results[one.number] = Generated(
            token_ids=tuple(text[:length]),
            finish_reason="length" if end is None else "stop",
            forwards=one.forwards,
            commits=one.commits,
            revealed_at=tuple(map(int, steps)),
            confidence=finite(confidence),
            log_probability=tuple(log_probability),
            entropy=tuple(entropy),
        )
        return True

    def _step_of(self, row: int) -> Step:
        """A finished row; others may have gone on since."""
        result = self._results[row]
        last = result.forwards - result.commits if row in self._newest else None
        count = len(result.token_ids)
        return Step(
            canvas=result.token_ids,
            revealed=tuple(place for place, step in enumerate(result.revealed_at) if step == last),
            confidence=result.confidence,
            forwards=result.forwards,
            settled=count,
            total=self.params.max_new_tokens,
        )

    def _select(self, going: list[int]) -> None:
        index_B = self._host_tensor(going)
        for name, value in list(vars(self).items()):
            if name.endswith(("_BW", "_BK", "_B")):
                setattr(self, name, value[index_B])
        self._progress = [self._progress[at] for at in going]
        if going:
            self._cache.select(index_B)

    def _place_blocks(self) -> None:
        self._seen = None
        starts_B1 = self._host_tensor([one.start for one in self._progress])[:, None]
        self._block_BK = starts_B1 + torch.arange(self._length, device=starts_B1.device)

    # --- set-up -------------------------------------------------------------------------------------------------------

    def _build(self, rows: Sequence[Row]) -> None:
        mask_id, length = self.backbone.diffusion.mask_token_id, self._length
        assert mask_id is not None, "blocks need a mask token; the caller checks it"
        self._progress = [
            _Progress(number, len(row.prompt), len(row.prompt) + self.params.max_new_tokens, _floor(row.prompt, length))
            for number, row in enumerate(rows)
        ]
        width = max(one.end + length - 1 for one in self._progress) // length * length
        self._text_BW = self._host_tensor([[*row.prompt, *[mask_id] * (width - len(row.prompt))] for row in rows])
        self._prompt_B = self._host_tensor([one.prompt for one in self._progress])
        self._masked_BW = torch.arange(width, device=self._text_BW.device) >= self._prompt_B[:, None]
        self._confidence_BW = torch.full(
            self._text_BW.shape, torch.nan, dtype=torch.float64, device=self._text_BW.device
        )
        self._log_probability_BW = self._confidence_BW.clone()
        self._entropy_BW = self._confidence_BW.clone()
        self._revealed_at_BW = torch.zeros_like(self._text_BW)
        self._seed_B = self._host_tensor([row.seed for row in rows])
        self._sample_B = self._host_tensor([row.sample for row in rows])
        self._step_B = torch.zeros_like(self._seed_B)
        self._edited_B = torch.zeros_like(self._seed_B, dtype=torch.bool)
        self._cache = self.backbone.new_cache(len(rows), capacity=width + length)
        self._stored: slice | None = None
        self._seen: tuple[Tensor, Mask] | None = None
        self._place_blocks()

    def _host_tensor(self, values: Sequence[object]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.backbone.device)


def _floor(prompt: Sequence[int], block_length: int) -> int:
    """The first place of the block that a prompt's tail is in."""
    return len(prompt) // block_length * block_length
