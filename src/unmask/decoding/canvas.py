"""Canvas decoding of bidirectional models: masked places, revealed over some steps in any order (LLaDA, Dream).

In: rows with prompts of any length, or texts with gaps. A row's generated places are cut into blocks, revealed one
after another; in each step the network sees the canvas, the head runs on the block's masked places only, and a policy
reveals some of them. Given places are never written, and finished rows leave the batch. Rows are padded on the left,
so that the places of all rows stand in the same columns. Sources: LLaDA (arXiv 2502.09992, appendix A), Fast-dLLM
(2505.22618), Dream (2508.15487), ReMDM (2503.00307).
Shapes: B unfinished rows, W canvas columns, R masked places of all rows.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from unmask import attention, noise
from unmask.decoding import unmasking
from unmask.decoding.candidates import Candidates, Keys, Surprise, candidates, gumbel_maximum, surprise
from unmask.decoding.canvas_forward import CachedCanvas, WholeCanvas
from unmask.decoding.remasking import Chances, by_confidence, chances
from unmask.decoding.step import Generated, Row, Step, StopRule, finite
from unmask.models.backbone import Backbone
from unmask.noise import Purpose
from unmask.settings.decoding import SamplingParams
from unmask.settings.decoding_options import DYNAMIC


@dataclasses.dataclass
class _Progress:
    """Where a row is.

    Attributes:
        number: of the row, as it was given.
        columns: of its generated places.
        sizes: places of each block.
        block: the block that is being revealed.
        step: steps taken in this block.
        steps: steps taken in all.
        complete: whether the block is revealed.
    """

    number: int
    columns: list[int]
    sizes: list[int]
    block: int = 0
    step: int = 0
    steps: int = 0
    complete: bool = False

    @property
    def done(self) -> bool:
        return self.complete and self.block == len(self.sizes) - 1


class CanvasRun:
    """Rows whose canvases are revealed together; see `Run`.

    Args:
        backbone: a model with a mask token.
        rows: what to generate; with caches their places stand in the same columns.
        params: resolved for canvas decoding.
        stop: what ends an output early; without it a row takes all its steps.
    """

    def __init__(self, backbone: Backbone, rows: Sequence[Row], params: SamplingParams, stop: StopRule) -> None:
        self.backbone, self.params, self.stop = backbone, params, stop
        self._device = backbone.device
        templates = [row.template(params.max_new_tokens) for row in rows]
        width = max(map(len, templates))
        self._progress = [
            _Progress(number, columns := _gaps(template, width), _sizes(len(columns), params))
            for number, template in enumerate(templates)
        ]
        self._num_rows = len(rows)
        self._totals = [len(one.columns) for one in self._progress]
        self._results: dict[int, Generated] = {}
        self._endings = [stop.of(row) for row in rows]
        self._newest: set[int] = set()
        self._pace = _Pace(params)
        self._build(rows, templates, width)

    @property
    def done(self) -> bool:
        return len(self._results) == self._num_rows

    @torch.inference_mode()
    def advance(self) -> None:
        """One step: candidates for the masked places of each row's block, of which the policy reveals some."""
        self._newest = {one.number for one in self._progress if not one.complete}
        open_BW = self._masked_BW & self._in_block_BW
        row_R, column_R = open_BW.nonzero(as_tuple=True)
        logits_RV = self._without_eos(self._forward.logits(self._canvas_BW, row_R, column_R))
        found = self._candidates(logits_RV, row_R, column_R)
        token_BW = self._canvas_BW.index_put((row_R, column_R), found.token_R)
        confidence_BW = self._confidence_BW.index_put((row_R, column_R), found.confidence_R.double())
        if self.params.trace:
            self._record(surprise(logits_RV, found.token_R, self.params.temperature), row_R, column_R)
        certainty_BW = torch.full_like(confidence_BW, -torch.inf).index_put_(
            (row_R, column_R), found.certainty_R.double()
        )
        reveal_BW = self._chosen(certainty_BW, open_BW)
        reopen_BW = None
        if self.params.remask is not None:
            reopen_BW = self._reopened(self._in_block_BW & ~open_BW)
        self._canvas_BW = torch.where(reveal_BW, token_BW, self._canvas_BW)
        self._confidence_BW = torch.where(reveal_BW, confidence_BW, self._confidence_BW)
        self._revealed_at_BW = torch.where(reveal_BW, self._step_B[:, None] + 1, self._revealed_at_BW)
        self._masked_BW = self._masked_BW & ~reveal_BW
        if reopen_BW is not None:
            self._canvas_BW = self._canvas_BW.masked_fill(reopen_BW, self._mask_id)
            self._masked_BW = self._masked_BW | reopen_BW
        self._count_step()
        self._collect()
        self._next_blocks()

    def observe(self, row: int) -> Step:
        if row in self._results:
            return self._finished_step(row)
        at, progress = next((at, one) for at, one in enumerate(self._progress) if one.number == row)
        columns = progress.columns
        masked = self._masked_BW[at, columns].tolist()
        tokens = self._canvas_BW[at, columns].tolist()
        confidence = self._confidence_BW[at, columns].tolist()
        finite(value for value, hidden in zip(confidence, masked, strict=True) if not hidden)
        is_new = (self._revealed_at_BW[at, columns] == progress.steps) & ~self._masked_BW[at, columns]
        first_mask = masked.index(True) if True in masked else len(masked)
        return Step(
            canvas=tuple(None if hidden else token for token, hidden in zip(tokens, masked, strict=True)),
            revealed=tuple(is_new.nonzero()[:, 0].tolist()) if row in self._newest else (),
            confidence=tuple(torch.nan if hidden else one for one, hidden in zip(confidence, masked, strict=True)),
            forwards=progress.steps * self._forward.evaluations,
            settled=first_mask if self.params.remask is None else 0,
            total=len(columns),
        )

    def results(self) -> list[Generated]:
        return [self._results[row] for row in range(self._num_rows)]

    # --- one step -----------------------------------------------------------------------------------------------------

    def _without_eos(self, logits_RV: Tensor) -> Tensor:
        """The distribution that tokens, confidences and log-probabilities come from."""
        eos_ids = self.stop.eos_ids[:1]
        if not self.params.suppress_eos or not eos_ids:
            return logits_RV
        return logits_RV.index_fill(-1, logits_RV.new_tensor(eos_ids, dtype=torch.int64), -torch.inf)

    def _candidates(self, logits_RV: Tensor, row_R: Tensor, column_R: Tensor) -> Candidates:
        keys = Keys(0, 0, 0, 0)  # nothing is drawn at temperature 0
        if self.params.temperature > 0:
            places_R = self._place_BW[row_R, column_R]
            keys = Keys(self._seed_B[row_R], self._sample_B[row_R], places_R, self._step_B[row_R])
        late = self.stop.eos_ids if self.params.defer_eos else ()
        return candidates(logits_RV, self.params, keys, draw=gumbel_maximum, late=late)

    def _chosen(self, certainty_BW: Tensor, open_BW: Tensor) -> Tensor:
        """The policy's choice among the masked places of the blocks."""
        if self.params.unmasking == "ancestral":
            return unmasking.ancestral(self._uniform(), open_BW, self._rates(0))
        quota: int | Tensor = 1
        if self.params.unmasking not in DYNAMIC:
            quotas = [self._pace.quota(one) for one in self._progress]
            quota = quotas[0] if len(set(quotas)) == 1 else torch.tensor(quotas, device=open_BW.device)
        return unmasking.chosen(self.params, certainty_BW, open_BW, quota, self._uniform)

    def _reopened(self, revealed_BW: Tensor) -> Tensor:
        """The revealed places of the blocks that ReMDM masks again."""
        sigma_BW = self._rates(1)[:, None].expand_as(self._confidence_BW)
        if self.params.remask == "conf":
            sigma_BW = sigma_BW * by_confidence(self._confidence_BW, revealed_BW)
        return revealed_BW & (self._uniform() < sigma_BW)

    def _rates(self, which: int) -> Tensor:
        """One of the two chances of each row's step."""
        rates = [self._pace.chances(one)[which] for one in self._progress]
        return torch.tensor(rates, dtype=torch.float64, device=self._canvas_BW.device)

    def _uniform(self) -> Tensor:
        """One draw for each place: to be revealed where it is masked, to be masked again where it is not."""
        keys = (self._seed_B[:, None], self._sample_B[:, None], self._place_BW, self._step_B[:, None])
        return noise.uniform(Purpose.REVEAL, *keys)

    def _record(self, surprise: Surprise, row_R: Tensor, column_R: Tensor) -> None:
        """What the model says of the candidates; a place keeps the words of the step that revealed it."""
        for kept_BW, said_R in zip((self._log_probability_BW, self._entropy_BW), surprise, strict=True):
            kept_BW[row_R, column_R] = said_R

    # --- progress -----------------------------------------------------------------------------------------------------

    def _count_step(self) -> None:
        """Count the step of each row, and see whether its block is revealed."""
        left = None
        if self._pace.is_dynamic:
            left = (self._masked_BW & self._in_block_BW).any(dim=1).tolist()
        for at, one in enumerate(self._progress):
            if not one.complete:
                one.step, one.steps = one.step + 1, one.steps + 1
                one.complete = self._pace.is_last(one) if left is None else not left[at]

    def _next_blocks(self) -> None:
        """Let rows whose block is revealed begin the next one; behind a cache all rows begin together."""
        if self.done:
            return
        self._step_B = self._host_tensor([one.steps for one in self._progress])
        ready = [one for one in self._progress if one.complete]
        if ready and (self.params.cache == "none" or len(ready) == len(self._progress)):
            for one in ready:
                one.block, one.step, one.complete = one.block + 1, 0, False
            self._begin_blocks()

    def _begin_blocks(self) -> None:
        block_B1 = self._host_tensor([one.block for one in self._progress])[:, None]
        self._in_block_BW = self._block_BW == block_B1
        if self.params.canvas_mode == "semi_autoregressive_origin":
            self._forward.show(self._block_BW <= block_B1)
        if isinstance(self._forward, CachedCanvas):
            one = self._progress[0]
            start = sum(one.sizes[: one.block])
            columns = one.columns[start : start + one.sizes[one.block]]
            self._forward.begin_block(columns[0], columns[-1] + 1)

    def _collect(self) -> None:
        """Take finished rows out of the batch. Reads from the device only where a row may have finished."""
        may_stop = self.stop.is_active and self.params.remask is None
        if not may_stop and not any(one.done for one in self._progress):
            return
        going = [at for at, one in enumerate(self._progress) if not self._finish(at, one, may_stop=may_stop)]
        if going and len(going) < len(self._progress):
            self._select(going)

    def _finish(self, at: int, progress: _Progress, *, may_stop: bool) -> bool:
        """Record the row's result if nothing can change it any more."""
        tokens = self._canvas_BW[at, progress.columns].tolist()
        first_mask = len(tokens)
        if not progress.done:
            masked = self._masked_BW[at, progress.columns].tolist()
            first_mask = masked.index(True) if True in masked else len(tokens)
        end = self._endings[progress.number].end(tokens[:first_mask]) if may_stop or progress.done else None
        if end is None and not progress.done:
            return False
        length = len(tokens) if end is None else end
        columns = progress.columns[:length]
        self._results[progress.number] = Generated(
            token_ids=tuple(tokens[:length]),
            finish_reason="length" if end is None else "stop",
            forwards=progress.steps * self._forward.evaluations,
            commits=0,
            revealed_at=tuple(self._revealed_at_BW[at, columns].tolist()),
            confidence=finite(self._confidence_BW[at, columns].tolist()),
            log_probability=tuple(self._log_probability_BW[at, columns].tolist()) if self.params.trace else (),
            entropy=tuple(self._entropy_BW[at, columns].tolist()) if self.params.trace else (),
        )
        return True

    def _finished_step(self, row: int) -> Step:
        """A finished row; others may have gone on since."""
        result = self._results[row]
        last = result.forwards // self._forward.evaluations if row in self._newest else None
        return Step(
            canvas=result.token_ids,
            revealed=tuple(place for place, step in enumerate(result.revealed_at) if step == last),
            confidence=result.confidence,
            forwards=result.forwards,
            settled=len(result.token_ids),
            total=self._totals[row],
        )

    def _select(self, going: list[int]) -> None:
        index_B = self._host_tensor(going)
        for name in list(vars(self)):
            if name.endswith(("_BW", "_B")):
                setattr(self, name, getattr(self, name)[index_B])
        self._progress = [self._progress[at] for at in going]
        self._forward.select(index_B)

    # --- set-up -------------------------------------------------------------------------------------------------------

    def _build(self, rows: Sequence[Row], templates: Sequence[Sequence[int | None]], width: int) -> None:
        """The tensors of the canvases and the network's view of them."""
        device, mask_id = self._device, self.backbone.diffusion.mask_token_id
        assert mask_id is not None, "a canvas needs a mask token; the caller checks it"
        self._mask_id = mask_id
        pads = [[0] * (width - len(template)) for template in templates]
        lines = [[mask_id if one is None else one for one in template] for template in templates]
        self._canvas_BW = self._host_tensor([pad + line for pad, line in zip(pads, lines, strict=True)])
        blocks = [_blocks(one, width) for one in self._progress]
        self._block_BW = self._host_tensor(blocks)
        self._masked_BW = self._block_BW >= 0
        self._confidence_BW = torch.full(self._canvas_BW.shape, torch.nan, dtype=torch.float64, device=device)
        self._log_probability_BW = torch.full_like(self._confidence_BW, torch.nan)
        self._entropy_BW = torch.full_like(self._confidence_BW, torch.nan)
        self._revealed_at_BW = torch.zeros_like(self._canvas_BW)
        self._seed_B = self._host_tensor([row.seed for row in rows])
        self._sample_B = self._host_tensor([row.sample for row in rows])
        self._step_B = torch.zeros_like(self._seed_B)
        lengths_B = self._host_tensor([len(template) for template in templates])
        document_BW = attention.documents(lengths_B, width, left=True)
        self._place_BW = torch.arange(width, device=device) - (width - lengths_B)[:, None]
        given_BW = (document_BW == 0) & ~self._masked_BW
        scale, kind = self.params.cfg_scale or 0.0, self.params.cache
        self._forward: WholeCanvas = (
            CachedCanvas(self.backbone, document_BW, given_BW, cfg_scale=scale, kind=kind)
            if kind == "prefix" or kind == "dual"
            else WholeCanvas(self.backbone, document_BW, given_BW, cfg_scale=scale)
        )
        self._begin_blocks()

    def _host_tensor(self, values: Sequence[object]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)


class _Pace:
    """How many steps a row's block takes, and what each of them may do; known beforehand unless confidence decides."""

    def __init__(self, params: SamplingParams) -> None:
        self.params = params
        self.is_dynamic = params.unmasking in (*DYNAMIC, "low_confidence_dynamic") or (
            params.unmasking == "ancestral" and params.remask is None
        )
        self._counts = functools.cache(self._counts_of)
        self._chances = functools.cache(functools.partial(chances, params))

    def is_last(self, progress: _Progress) -> bool:
        """Whether the steps of the row's block are all taken."""
        if self.params.unmasking == "ancestral":
            return progress.step == self._steps(progress)
        return progress.step == len(self._counts(self._places(progress)))

    def quota(self, progress: _Progress) -> int:
        """Places to reveal in the row's step; 0 while it waits."""
        return 0 if progress.complete else self._counts(self._places(progress))[progress.step]

    def chances(self, progress: _Progress) -> Chances:
        """Chances to be revealed and to be masked again in the row's step."""
        return Chances(0.0, 0.0) if progress.complete else self._chances(self._steps(progress))[progress.step]

    def _steps(self, progress: _Progress) -> int:
        return self.params.denoising_steps or self._places(progress)

    def _places(self, progress: _Progress) -> int:
        return progress.sizes[progress.block]

    def _counts_of(self, places: int) -> list[int]:
        return unmasking.reveal_counts(
            self.params.reveal_schedule or "linear", places, self.params.denoising_steps or places
        )


def _gaps(template: Sequence[int | None], width: int) -> list[int]:
    """Columns of the places to fill, in a canvas padded on the left."""
    pad = width - len(template)
    return [pad + place for place, token in enumerate(template) if token is None]


def _sizes(places: int, params: SamplingParams) -> list[int]:
    """Places of each block; the last one may be shorter."""
    length = params.block_length or places
    return [min(length, places - start) for start in range(0, places, length)]


def _blocks(progress: _Progress, width: int) -> list[int]:
    """Block of each column, -1 where nothing is generated."""
    blocks = [-1] * width
    numbers = [block for block, size in enumerate(progress.sizes) for _ in range(size)]
    for column, block in zip(progress.columns, numbers, strict=True):
        blocks[column] = block
    return blocks
