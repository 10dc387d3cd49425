"""TiDAR decoding: autoregression that verifies what the same network has drafted by diffusion (arXiv 2511.08923).

In: rows with prompts of any length. A draft's first token is always the law's own; the others are guesses of masks.
`parallel`: one forward of [d_0 .. d_k-1 | k blocks of k masks] verifies the drafts causally, and each block j drafts on
for the case that exactly d_0 .. d_j stay; the first one reads the prompt with a block of masks behind it. `linear`: a
forward of [d_0 | masks x (k-1)] drafts, and verifies d_1; where that stays, a causal forward of d_1 .. d_k-1 verifies
the others, and a prompt is read alone. Keys of what stays are a prefix of a forward's tokens and are kept; those of
rejected drafts and of masks are never seen again, and nothing is computed twice.

The text follows the law of the network's causal logits (`trust` 1) or their mix with the logits of each block's first
mask, which stands for the same token: both are functions of the text before it, so either is a proper law, and every
verification rule (`verification`) keeps to it, whatever the drafts. A row's draft is its own, so rows accept different
numbers of tokens, and finished rows leave the batch.
Shapes: B unfinished rows, Q new columns of a forward, T rows of logits that verify, J blocks of masks, K masks of a
block, S drafts behind the first token, D width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from unmask import attention
from unmask.attention import Layout
from unmask.decoding.candidates import given, penalised, surprise
from unmask.decoding.step import Generated, Row, Step, StopRule, finite
from unmask.decoding.verification import Draft, Places, Verdict, drafted, verified
from unmask.models.backbone import Backbone
from unmask.settings.decoding import SamplingParams


@dataclasses.dataclass
class _Text:
    """What a row has so far.

    Attributes:
        number: of the row, as it was given.
        forwards: evaluations that it took part in.
        is_waiting: in the linear mode, whether its first draft was rejected, so that others' second forward is not its.
        last: number of the run's evaluation that it took part in last.
        newest: the place of the first token that this one decided.
        tokens: generated, all of them for good; the lists below have an entry for each.
    """

    number: int
    forwards: int = 0
    is_waiting: bool = False
    last: int = 0
    newest: int = 0
    tokens: list[int] = dataclasses.field(default_factory=list)
    revealed_at: list[int] = dataclasses.field(default_factory=list)
    confidence: list[float] = dataclasses.field(default_factory=list)
    log_probability: list[float] = dataclasses.field(default_factory=list)
    entropy: list[float] = dataclasses.field(default_factory=list)

    @property
    def lists(self) -> tuple[list[int], list[int], list[float], list[float], list[float]]:
        return self.tokens, self.revealed_at, self.confidence, self.log_probability, self.entropy


@dataclasses.dataclass(frozen=True)
class _Told:
    """What the host knows of a forward.

    Attributes:
        accepted: drafts that stay, of each row.
        counts: tokens that are decided, of each row.
        values: for each row, T tokens, their confidence and, with a trace, log-probability and entropy; what stands
            behind the decided ones means nothing.
    """

    accepted: list[int]
    counts: list[int]
    values: list[list[list[float]]]


class TidarRun:
    """Rows that grow by what each forward decides; see `Run`. The first forward reads the prompts.

    Args:
        backbone: a TiDAR model, or any with a mask token.
        rows: what to generate.
        params: resolved for TiDAR decoding.
        stop: what ends an output early.

    The newest token of a row stands at `_place_B`; its keys are not written yet.
    """

    def __init__(self, backbone: Backbone, rows: Sequence[Row], params: SamplingParams, stop: StopRule) -> None:
        self.backbone, self.params, self.stop = backbone, params, stop
        self._rows = list(rows)
        self._length = params.draft_length or 1
        self._trust = 1.0 if params.trust is None else params.trust
        self._is_parallel = params.mode == "parallel"
        self._steps = self._forwards = 0
        self._is_verifying = False
        self._results: dict[int, Generated] = {}
        self._texts = [_Text(number) for number in range(len(rows))]
        self._going = list(self._texts)
        self._endings = [stop.of(row) for row in rows]
        self._build()

    @property
    def done(self) -> bool:
        return not self._going

    @torch.inference_mode()
    def advance(self) -> None:
        """One forward: the prompts; then, in the linear mode, drafts and their verification in turn."""
        self._forwards += 1
        self._steps += not self._is_verifying
        if self._newest_B is None:
            self._prefill()
        elif self._is_parallel:
            self._verify_and_draft()
        elif self._is_verifying:
            self._verify()
        else:
            self._draft_ahead()

    def observe(self, row: int) -> Step:
        text = self._texts[row]
        count = len(text.tokens)
        return Step(
            canvas=tuple(text.tokens),
            revealed=tuple(range(text.newest, count)) if text.last == self._forwards else (),
            confidence=tuple(text.confidence),
            forwards=text.forwards,
            settled=count,
            total=self.params.max_new_tokens,
        )

    def results(self) -> list[Generated]:
        return [self._results[row] for row in range(len(self._rows))]

    # --- the forwards -------------------------------------------------------------------------------------------------

    def _prefill(self) -> None:
        """[prompt | masks]: the first token and its drafts; in the linear mode the first token alone."""
        lengths = [len(row.prompt) for row in self._rows]
        width, num_masks = max(lengths), self._length if self._is_parallel else 0
        padded = [[*row.prompt, *[0] * (width - len(row.prompt)), *[self._mask_id] * num_masks] for row in self._rows]
        lengths_B = self._tensor(lengths)
        layout = attention.tidar_prefill(lengths_B, width, num_masks)
        masks_C = self._tensor(range(width + self._first_read, width + num_masks))
        columns_BC = torch.cat([lengths_B[:, None] - 1, masks_C.expand(len(lengths), -1)], dim=1)
        hidden_BQD = self._forward(self._tensor(padded), layout, columns_BC)
        self._keep(lengths)
        row_B = torch.arange(len(lengths), device=lengths_B.device)
        self._decide_and_draft(hidden_BQD[row_B, lengths_B - 1][:, None], hidden_BQD[:, None, width:])

    def _verify_and_draft(self) -> None:
        """[d_0 .. d_k-1 | k blocks of k masks]."""
        assert self._newest_B is not None
        ids_BQ = torch.full((len(self._going), len(self._layout)), self._mask_id, device=self._place_B.device)
        ids_BQ[:, 0] = self._newest_B
        ids_BQ[:, 1 : self._length] = self._draft.token_BS
        hidden_BQD = self._forward(ids_BQ, self._layout.moved(self._place_B), self._columns_C.expand(len(ids_BQ), -1))
        blocks_BJKD = hidden_BQD[:, self._length :].unflatten(1, (self._length, self._length))
        self._decide_and_draft(hidden_BQD[:, : self._length], blocks_BJKD)

    def _decide_and_draft(self, hidden_BTD: Tensor, blocks_BJKD: Tensor) -> None:
        """Verify the drafts, then draft on from the block of the case that came true."""
        if self._trust < 1:
            # The head is linear: a mix of hidden states is the mix of their logits, at half the cost.
            hidden_BTD = torch.lerp(blocks_BJKD[:, :, 0], hidden_BTD, self._trust)
        logits_BTV = self._logits(hidden_BTD, self._draft)
        verdict = verified(logits_BTV, self._draft, self.params, self._places(logits_BTV.shape[1]))
        told = self._read(logits_BTV, verdict)
        counts = told.counts
        row_B = torch.arange(len(counts), device=hidden_BTD.device)
        if self._steps > 1:
            self._keep(counts)
        hidden_BSD = blocks_BJKD[row_B, verdict.accepted_B, 1:] if self._is_parallel else None
        going_B = self._decide(verdict, told)
        if hidden_BSD is not None and self._going:
            hidden_BSD = hidden_BSD if going_B is None else hidden_BSD[going_B]
            self._draft = self._drafted(self._logits(hidden_BSD, None))

    def _draft_ahead(self) -> None:
        """[d_0 | masks x (k-1)]: d_1 and the verdict on it, which d_0 gives; further drafts only where it stays."""
        assert self._newest_B is not None
        ids_BQ = torch.full((len(self._going), self._length), self._mask_id, device=self._place_B.device)
        ids_BQ[:, 0] = self._newest_B
        hidden_BQD = self._forward(ids_BQ, self._layout.moved(self._place_B))
        self._keep([1] * len(self._going))
        logits_BQV = self._logits(hidden_BQD[:, :2], None)
        first = self._drafted(logits_BQV[:, 1:])
        verdict = verified(logits_BQV[:, :1], first, self.params, self._places(1))
        told = self._read(logits_BQV[:, :1], verdict)
        for text, accepted in zip(self._going, told.accepted, strict=True):
            text.is_waiting = accepted == 0
        going_B = self._decide(verdict, told)
        if going_B is not None:
            first, hidden_BQD = first.rows(going_B), hidden_BQD[going_B]
        self._is_verifying = any(not text.is_waiting for text in self._going)
        if self._is_verifying:
            self._draft = first.followed_by(self._drafted(self._logits(hidden_BQD[:, 2:], None)))

    def _verify(self) -> None:
        """d_1 .. d_k-1, causally, in the rows where d_1 stays."""
        layout = attention.causal_step(self._place_B, self._length - 1)
        later = self._draft.behind_first()
        logits_BTV = self._logits(self._forward(self._draft.token_BS, layout), later)
        verdict = verified(logits_BTV, later, self.params, self._places(self._length - 1))
        told = self._read(logits_BTV, verdict)
        counts = [0 if text.is_waiting else count for text, count in zip(self._going, told.counts, strict=True)]
        self._keep(counts)
        self._decide(verdict, dataclasses.replace(told, counts=counts))
        for text in self._going:
            text.is_waiting = False
        self._is_verifying = False

    def _forward(self, ids_BQ: Tensor, layout: Layout, columns_BC: Tensor | None = None) -> Tensor:
        """Hidden states [B, Q, D] behind the cache, right in the given columns (None: all)."""
        mask = self.backbone.render(layout, self._cache.begin(layout))
        read_R = None
        if columns_BC is not None:
            first_B1 = torch.arange(len(ids_BQ), device=ids_BQ.device)[:, None] * ids_BQ.shape[1]
            read_R = (first_B1 + columns_BC).flatten()
        position_ids = layout.position_ids.expand_as(ids_BQ)
        return self.backbone(ids_BQ, position_ids, mask, cache=self._cache, read_R=read_R)

    def _keep(self, counts: Sequence[int]) -> None:
        """Let the first new tokens of each row stay in the cache; the others were never there."""
        self._cache.keep(counts[0] if len(set(counts)) == 1 else self._tensor(counts))

    # --- laws and draws -----------------------------------------------------------------------------------------------

    def _logits(self, hidden_BTD: Tensor, draft: Draft | None) -> Tensor:
        """Logits [B, T, V], penalised for what the text holds and, with a draft, for its tokens before each row."""
        logits_BTV = self.backbone.logits(hidden_BTD)
        if self._seen_BV is None:
            return logits_BTV
        seen_BTV = self._seen_BV[:, None].expand_as(logits_BTV)
        if draft is not None and logits_BTV.shape[1] > 1:
            before_BT1 = draft.token_BS[:, : logits_BTV.shape[1] - 1, None]
            new_BTV = torch.zeros_like(logits_BTV, dtype=torch.int32)
            new_BTV[:, 1:].scatter_(2, before_BT1, 1)
            seen_BTV = seen_BTV | (new_BTV.cumsum(dim=1) > 0)
        return penalised(logits_BTV, seen_BTV, self.params.repetition_penalty or 1.0)

    def _drafted(self, logits_BSV: Tensor) -> Draft:
        """Drafts behind the newest token; a place that is drafted again is drawn again."""
        places = self._places(logits_BSV.shape[1])
        return drafted(logits_BSV, self.params, places._replace(step_BT=torch.full_like(places.step_BT, self._steps)))

    def _places(self, count: int) -> Places:
        """The next `count` places behind the newest token, numbered as the tokens of the text."""
        place_BT = self._place_B[:, None] + torch.arange(1, count + 1, device=self._place_B.device)
        seed_BT, sample_BT = (key_B[:, None].expand_as(place_BT) for key_B in (self._seed_B, self._sample_B))
        return Places(seed_BT, sample_BT, place_BT, place_BT - self._prompt_B[:, None])

    # --- progress -----------------------------------------------------------------------------------------------------

    def _read(self, logits_BTV: Tensor, verdict: Verdict) -> _Told:
        """What the host learns from a forward, in one read from the device."""
        flat = logits_BTV.flatten(0, 1), verdict.token_BT.flatten()
        said = [given(*flat).confidence_R, *(surprise(*flat, self.params.temperature) if self.params.trace else ())]
        lists = [verdict.token_BT, *(values_R.view_as(verdict.token_BT) for values_R in said)]
        head_B2 = torch.stack([verdict.accepted_B, verdict.count_B], dim=1)
        rows = torch.cat([head_B2.double(), *(values_BT.double() for values_BT in lists)], dim=1).tolist()
        width = verdict.token_BT.shape[1]
        values = [[row[start : start + width] for start in range(2, len(row), width)] for row in rows]
        return _Told([int(row[0]) for row in rows], [int(row[1]) for row in rows], values)

    def _decide(self, verdict: Verdict, told: _Told) -> Tensor | None:
        """Write the tokens that are decided, finish rows; the index of those that go on, None if all do."""
        self._record(told)
        count_B1 = self._tensor(told.counts)[:, None]
        newest_B = verdict.token_BT.gather(1, (count_B1 - 1).clamp(min=0))[:, 0]
        self._newest_B = (
            newest_B if self._newest_B is None else torch.where(count_B1[:, 0] > 0, newest_B, self._newest_B)
        )
        self._place_B = self._place_B + count_B1[:, 0]
        if self._seen_BV is not None:
            is_new_BT = torch.arange(verdict.token_BT.shape[1], device=count_B1.device) < count_B1
            self._seen_BV.scatter_(1, torch.where(is_new_BT, verdict.token_BT, self._newest_B[:, None]), True)
        going = [at for at, text in enumerate(self._going) if not self._finish(text)]
        if len(going) == len(self._going):
            return None
        index_B = self._tensor(going)
        self._going = [self._going[at] for at in going]
        for name, value in list(vars(self).items()):
            if name.endswith(("_B", "_BV")) and value is not None:
                setattr(self, name, value[index_B])
        if going:
            self._cache.select(index_B)
        return index_B

    def _record(self, told: _Told) -> None:
        """Add what is decided to the texts."""
        for text, count, (tokens, *said) in zip(self._going, told.counts, told.values, strict=True):
            if count == 0:
                continue
            text.forwards, text.last, text.newest = text.forwards + 1, self._forwards, len(text.tokens)
            text.tokens += map(int, tokens[:count])
            text.revealed_at += [self._steps] * count
            finite(said[0][:count])
            for kept, values in zip(text.lists[2:], said, strict=False):
                kept += values[:count]

    def _finish(self, text: _Text) -> bool:
        """Cut the text and record its result if it ends within what is decided."""
        limit = self.params.max_new_tokens
        end = self._endings[text.number].end(text.tokens[:limit]) if self.stop.is_active else None
        if end is None and len(text.tokens) < limit:
            return False
        for values in text.lists:
            del values[limit if end is None else end :]
        self._results[text.number] = Generated(
            token_ids=tuple(text.tokens),
            finish_reason="length" if end is None else "stop",
            forwards=text.forwards,
            commits=0,
            revealed_at=tuple(text.revealed_at),
            confidence=tuple(text.confidence),
            log_probability=tuple(text.log_probability),
            entropy=tuple(text.entropy),
            acceptance=_histogram(text.revealed_at, self._length),
        )
        return True

    # --- set-up -------------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        mask_id, rows, length = self.backbone.diffusion.mask_token_id, self._rows, self._length
        assert mask_id is not None, "drafts need a mask token; the caller checks it"
        self._mask_id = mask_id
        self._seed_B = self._tensor([row.seed for row in rows])
        self._sample_B = self._tensor([row.sample for row in rows])
        self._prompt_B = self._tensor([len(row.prompt) for row in rows])
        self._place_B = self._prompt_B - 1
        self._newest_B: Tensor | None = None
        self._draft = Draft(self._seed_B.new_zeros(len(rows), 0), None)
        self._seen_BV = self._prompts_seen() if self.params.repetition_penalty not in (None, 1) else None
        start_B = self._seed_B.new_zeros(1)
        self._layout = (attention.tidar_step if self._is_parallel else attention.tidar_linear)(start_B, length)
        # A block's first mask stands for the token that the law has drawn already: only a mix reads it.
        self._first_read = 0 if self._trust < 1 else 1
        masks = [length * (block + 1) + mask for block in range(length) for mask in range(self._first_read, length)]
        self._columns_C = self._tensor([*range(length), *masks])
        longest = int(self._prompt_B.max()) + self.params.max_new_tokens
        self._cache = self.backbone.new_cache(len(rows), capacity=longest + length + len(self._layout))

    def _prompts_seen(self) -> Tensor:
        """The ids of each prompt, bool [B, V]."""
        shape = len(self._rows), self.backbone.head_weight.shape[0]
        seen_BV = torch.zeros(shape, dtype=torch.bool, device=self.backbone.device)
        for at, row in enumerate(self._rows):
            seen_BV[at, list(row.prompt)] = True
        return seen_BV

    def _tensor(self, values: Sequence[object]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.backbone.device)


def _histogram(revealed_at: Sequence[int], length: int) -> tuple[int, ...]:
    """How many steps behind the prefill gave 1, 2, .. `length` tokens of the text."""
    sizes = Counter(Counter(step for step in revealed_at if step > 1).values())
    return tuple(sizes[size] for size in range(1, length + 1))
