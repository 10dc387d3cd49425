"""Likelihood of answers behind their contexts: what multiple choice and conditional perplexities are made of.

In: pairs of token ids. Out: nats of each answer given its context. The context is visible in every forward and never
masked. Masked diffusion has a bound with its standard error (`elbo`) or the exact value of one order, left to right
(`chain_rule`), see `masks`; autoregression and TiDAR are exact in one forward. With a logit shift a token is read in
the row before it, so that the first one needs a context, as in autoregression. Block diffusion is masked diffusion of
one block after the other, each behind the true text before it; short blocks get every mask, which is exact.

A pair that is too long loses tokens on the left of its context; an answer that is too long by itself is scored in full
windows, of which the last is filled up with what comes before (both as in lm-evaluation-harness).
Shapes: L input, N places of an answer, K masked versions.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from unmask import noise
from unmask.errors import PromptError, SettingsError
from unmask.evaluation.masks import Plan, plan, visible
from unmask.evaluation.queries import Query, read
from unmask.models.backbone import Backbone
from unmask.noise import Purpose
from unmask.settings.evaluation import AnswerSettings


class Pair(NamedTuple):
    """An answer and what stands before it.

    Attributes:
        context: token ids, visible.
        answer: token ids, scored.
        key: names the draws; pairs with equal keys share them, whatever their lengths. None: named by the context.
    """

    context: tuple[int, ...]
    answer: tuple[int, ...]
    key: int | None = None


@dataclass(frozen=True)
class AnswerNats:
    """Negative log-likelihood (or its bound) of an answer given its context.

    Attributes:
        nats: in total.
        stderr: standard error of `nats` from the draws of the masks; 0 where exact, NaN where it cannot be told.
        tokens: tokens of the answer.
        is_greedy: whether the answer is what the model itself writes; None if it was not asked.
        lost: tokens of the context that did not fit.
    """

    nats: float
    stderr: float
    tokens: int
    is_greedy: bool | None
    lost: int


@dataclass(frozen=True)
class _Piece:
    """What is evaluated of a pair at once: all of it, or a window."""

    pair: int
    context: tuple[int, ...]
    answer: tuple[int, ...]
    key: int
    lost: int


def score(
    backbone: Backbone, pairs: Sequence[Pair], settings: AnswerSettings, *, greedy: Sequence[bool] | None = None
) -> list[AnswerNats]:
    """Nats of every pair's answer, in the order of the pairs; arguments as in `scored`."""
    results = dict(scored(backbone, pairs, settings, greedy=greedy))
    return [results[number] for number in range(len(pairs))]


def scored(
    backbone: Backbone, pairs: Sequence[Pair], settings: AnswerSettings, *, greedy: Sequence[bool] | None = None
) -> Iterator[tuple[int, AnswerNats]]:
    """Each pair's number and nats as soon as they are known; they depend on nothing but the pair.

    Args:
        backbone: in evaluation mode, of any method.
        pairs: of any lengths, in any order; the longest are evaluated first.
        settings: estimator, masks, guidance, batch size.
        greedy: for each pair, whether to find out if its answer is the greedy one: what the model writes in as many
            places at temperature 0, from left to right (autoregression, `chain_rule`) or the most confident place first
            (`elbo`: a forward per token, until the first that differs). Default: for none.

    Raises:
        PromptError: a pair holds the mask token, or lacks a context that the model needs.
        SettingsError: `max_length` is beyond the model's context, or an autoregressive model is to be guided.
    """
    asked = [False] * len(pairs) if greedy is None else greedy
    limit = _limit(backbone, settings)
    windows = (window for number, pair in enumerate(pairs) for window in _pieces(backbone, number, pair, limit))
    pieces = [piece for window in windows for piece in _in_blocks(window, _block_length(backbone))]
    pieces.sort(key=lambda piece: (-len(piece.context) - len(piece.answer), piece.context, piece.answer))
    matches = _greedy_matches(backbone, pieces, asked, settings)
    missing = Counter(piece.pair for piece in pieces)
    yield from ((number, AnswerNats(0.0, 0.0, 0, True, 0)) for number in range(len(pairs)) if not missing[number])
    parts: defaultdict[int, list[AnswerNats]] = defaultdict(list)
    for number, (piece, part) in enumerate(_measured(backbone, pieces, settings)):
        is_greedy = matches.get(number, part.is_greedy) if asked[piece.pair] else None
        parts[piece.pair].append(dataclasses.replace(part, is_greedy=is_greedy))
        if len(parts[piece.pair]) == missing[piece.pair]:
            yield piece.pair, _joined(parts.pop(piece.pair))


def _limit(backbone: Backbone, settings: AnswerSettings) -> int:
    """Tokens of a context and an answer together; autoregression does not need the last one as input."""
    longest = backbone.context_length
    if settings.max_length is not None and settings.max_length > longest:
        raise SettingsError(f"max_length must be at most the model's context, {longest}, got {settings.max_length}.")
    limit = settings.max_length or longest
    if backbone.diffusion.method == "block_diffusion":
        limit -= limit % _block_length(backbone)
        if limit == 0:
            raise SettingsError(
                f"max_length must hold a block ({_block_length(backbone)} tokens), got {settings.max_length}. Raise it."
            )
    return limit + _is_causal(backbone)


def _is_causal(backbone: Backbone) -> bool:
    return backbone.diffusion.is_causal


def _block_length(backbone: Backbone) -> int:
    """Tokens that are predicted together; 0 is all."""
    entry = backbone.diffusion
    return entry.block_length or 0 if entry.method == "block_diffusion" else 0


def _pieces(backbone: Backbone, number: int, pair: Pair, limit: int) -> Iterator[_Piece]:
    """Windows of at most `limit` tokens that score each token of the answer once, behind a token at least."""
    tokens, start = pair.context + pair.answer, len(pair.context)
    _check(backbone, tokens, has_context=start > 0 or not pair.answer)
    key = _named_by(pair.context) if pair.key is None else pair.key
    while start < len(tokens):
        length = min(limit - min(start, 1), len(tokens) - start)
        left = max(0, start + length - limit)
        is_first = start == len(pair.context)
        yield _Piece(number, tokens[left:start], tokens[start : start + length], key, left if is_first else 0)
        start, key = start + length, int(noise.hashed(Purpose.MASK, key))


def _in_blocks(window: _Piece, block_length: int) -> Iterator[_Piece]:
    """The parts of a window's answer that are predicted together; with 0 the window itself."""
    tokens, start = window.context + window.answer, len(window.context)
    key, lost = window.key, window.lost
    while start < len(tokens):
        stop = min((start // block_length + 1) * block_length, len(tokens)) if block_length else len(tokens)
        yield _Piece(window.pair, tokens[:start], tokens[start:stop], key, lost)
        start, key, lost = stop, int(noise.hashed(Purpose.MASK, key)), 0


def _check(backbone: Backbone, tokens: Sequence[int], *, has_context: bool) -> None:
    entry = backbone.diffusion
    rows = int(backbone.network.config.vocab_size)
    if tokens and not 0 <= min(tokens) <= max(tokens) < rows:
        raise PromptError(f"Token ids must lie between 0 and {rows - 1}, got {min(tokens)} to {max(tokens)}.")
    if entry.mask_token_id is not None and entry.mask_token_id in tokens:
        raise PromptError("A text to score holds the mask token, which would be read as a hidden token. Remove it.")
    if not has_context and (entry.logit_shift or _is_causal(backbone)):
        raise PromptError(
            "An answer without context cannot be scored by this model, which reads each token in the row before it. "
            "Put BOS or another token in front."
        )


def _named_by(tokens: Sequence[int]) -> int:
    """64 bits that name these token ids."""
    digest = hashlib.blake2b(np.array(tokens, dtype=np.int64).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _measured(
    backbone: Backbone, pieces: Sequence[_Piece], settings: AnswerSettings
) -> Iterator[tuple[_Piece, AnswerNats]]:
    """Each piece with its nats, in order; `is_greedy` where each token was read behind the true ones before it."""
    plans: dict[int, Plan] = {}

    def asked() -> Iterator[Query]:
        for number, piece in enumerate(pieces):
            plans[number] = _plan(backbone, piece, settings)
            yield from _queries(backbone, piece, plans[number].masked_KN, plans[number].read_KN, number)

    is_greedy, nats = True, list[float]()
    for query, reading in read(backbone, asked(), batch_size=settings.batch_size, cfg_scale=settings.cfg_scale):
        nats.append(float(reading.nats_R.sum()))
        is_greedy = is_greedy and bool((reading.best_R == query.target_R).all())
        piece, masks = pieces[query.owner], plans[query.owner]
        if len(nats) == len(masks.weight_K):
            nats_K = torch.tensor(nats, dtype=torch.float64)
            total, error = float((nats_K * masks.weight_K).sum()), masks.stderr(nats_K)
            shown = is_greedy if _reads_left_to_right(backbone, piece, settings) else None
            yield piece, AnswerNats(total, error, len(piece.answer), shown, piece.lost)
            del plans[query.owner]
            is_greedy, nats = True, []


def _plan(backbone: Backbone, piece: _Piece, settings: AnswerSettings) -> Plan:
    return plan(len(piece.answer), settings, piece.key) if not _is_causal(backbone) else visible(len(piece.answer))


def _reads_left_to_right(backbone: Backbone, piece: _Piece, settings: AnswerSettings) -> bool:
    return settings.likelihood == "chain_rule" or _is_causal(backbone) or len(piece.answer) == 1


def _queries(backbone: Backbone, piece: _Piece, masked_KN: Tensor, read_KN: Tensor, owner: int) -> Iterator[Query]:
    """The versions of a piece as inputs, with the rows that predict the places to read."""
    start, entry = len(piece.context), backbone.diffusion
    ids_KL = torch.tensor(piece.context + piece.answer).repeat(len(masked_KN), 1)
    target_N = ids_KL[0, start:].clone()
    behind = -ids_KL.shape[1] % (_block_length(backbone) or 1)
    if not _is_causal(backbone):
        assert entry.mask_token_id is not None, "a diffusion model has a mask token"
        ids_KL[:, start:].masked_fill_(masked_KN, entry.mask_token_id)
        # The rest of a block stays masked, as in decoding.
        ids_KL = nn.functional.pad(ids_KL, (0, behind), value=entry.mask_token_id)
        shift = int(entry.logit_shift)
    else:
        ids_KL, shift = ids_KL[:, :-1].contiguous(), 1
    for ids_L, read_N in zip(ids_KL, read_KN, strict=True):
        place_R = read_N.nonzero()[:, 0]
        yield Query(ids_L, start + place_R - shift, target_N[place_R], start, owner)


def _greedy_matches(
    backbone: Backbone, pieces: Sequence[_Piece], asked: Sequence[bool], settings: AnswerSettings
) -> dict[int, bool]:
    """Which pieces are what the model writes when it reveals its most confident place first, one per forward.

    It starts from masks only, so as long as each revealed token is the answer's, the canvas is the answer with the
    other places masked (LLaDA's `suffix_greedy_prediction`, which goes on behind the first difference).
    """
    masked = {
        number: torch.ones(1, len(piece.answer), dtype=torch.bool)
        for number, piece in enumerate(pieces)
        if asked[piece.pair] and not _reads_left_to_right(backbone, piece, settings)
    }
    matches = dict.fromkeys(masked, True)
    while masked:
        questions = (
            query
            for number, masked_1N in list(masked.items())
            for query in _queries(backbone, pieces[number], masked_1N, masked_1N, number)
        )
        for query, reading in read(backbone, questions, batch_size=settings.batch_size, cfg_scale=settings.cfg_scale):
            surest = int(reading.best_nats_R.argmin())
            masked_N = masked[query.owner][0]
            masked_N[int(masked_N.nonzero()[surest, 0])] = False
            matches[query.owner] = bool(reading.best_R[surest] == query.target_R[surest])
            if not matches[query.owner] or not masked_N.any():
                del masked[query.owner]
    return matches


def _joined(parts: Sequence[AnswerNats]) -> AnswerNats:
    """The windows of one answer together; their masks are drawn independently."""
    checked = all(part.is_greedy is not None for part in parts)
    return AnswerNats(
        nats=math.fsum(part.nats for part in parts),
        stderr=math.hypot(*(part.stderr for part in parts)),
        tokens=sum(part.tokens for part in parts),
        is_greedy=all(part.is_greedy for part in parts) if checked else None,
        lost=sum(part.lost for part in parts),
    )
