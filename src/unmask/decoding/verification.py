"""Verification of drafts: how many of them stay, and which token follows.

In: logits of the law that the text must follow, at the rows that predict the drafts and the token behind them, and the
drafts. Out: a `Verdict`. Row i's law has seen all drafts before it, so it counts only if these stay.

    greedy   stays if it is the likeliest token                     temperature 0
    match    stays if the law's own draw is the same token          any drafts; ours are the likeliest ones
    gumbel   the same, where one Gumbel noise draws both            drafts mostly agree, text equals autoregression's
    reject   stays with probability p/q, else a token of max(0, p - q)      the most that any rule keeps: 1 - TV(p, q)

Each gives text of exactly the given law p. Sources: TiDAR (arXiv 2511.08923), Leviathan et al. (arXiv 2211.17192) for
`reject`. Draws of the law are keyed as in autoregression, so under `match` and `gumbel` the text is the same, token for
token, that decoding `autoregressive` draws with this seed; drafts and acceptance have purposes of their own.
Shapes: B rows, T verified rows of logits in each, S drafts (T or T-1), V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from unmask import noise
from unmask.decoding.candidates import Keys, drawn, gumbel_drawn, inverse_cdf, log_law
from unmask.noise import Purpose
from unmask.settings.decoding import SamplingParams


class Places(NamedTuple):
    """What names the draws of each place; int64 [B, T]."""

    seed_BT: Tensor
    sample_BT: Tensor
    position_BT: Tensor
    step_BT: Tensor

    def keys(self) -> Keys:
        """Of all places, row by row."""
        return Keys(*(field_BT.flatten() for field_BT in self))

    def keys_at(self, column_B: Tensor) -> Keys:
        """Of one place of each row."""
        return Keys(*(field_BT.gather(1, column_B[:, None])[:, 0] for field_BT in self))


class Draft(NamedTuple):
    """Drafted tokens.

    Attributes:
        token_BS: int64.
        log_BSV: log of the law that each was drawn from, float64; None where the rule does not ask.
    """

    token_BS: Tensor
    log_BSV: Tensor | None

    def rows(self, index_B: Tensor) -> Draft:
        """The chosen rows."""
        return Draft(self.token_BS[index_B], None if self.log_BSV is None else self.log_BSV[index_B])

    def behind_first(self) -> Draft:
        """The drafts of every row but its first one."""
        return Draft(self.token_BS[:, 1:], None if self.log_BSV is None else self.log_BSV[:, 1:])

    def followed_by(self, other: Draft) -> Draft:
        """The drafts of both, side by side."""
        token_BS = torch.cat([self.token_BS, other.token_BS], dim=1)
        if self.log_BSV is None or other.log_BSV is None:
            return Draft(token_BS, None)
        return Draft(token_BS, torch.cat([self.log_BSV, other.log_BSV], dim=1))


class Verdict(NamedTuple):
    """What verification decided.

    Attributes:
        accepted_B: int64; how many of the first drafts stay, 0..S.
        token_BT: int64; the text behind the verified row: accepted drafts, then the law's own token. What stands
            behind that one means nothing.
    """

    accepted_B: Tensor
    token_BT: Tensor

    @property
    def count_B(self) -> Tensor:
        """How many tokens of the text are decided, 1..T."""
        return (self.accepted_B + 1).clamp(max=self.token_BT.shape[1])


def drafted(logits_BSV: Tensor, params: SamplingParams, places_BS: Places) -> Draft:
    """Drafts for the verification rule: likeliest tokens, or draws where these stay more often.

    Args:
        logits_BSV: of the diffusion, with excluded ids at -inf.
        params: with the rule, temperature and filters, which hold for drafts as well.
        places_BS: of the drafts; the step must tell repeated drafts of a place apart.
    """
    if params.verification in ("greedy", "match"):
        return Draft(logits_BSV.argmax(dim=-1), None)
    shape, flat_RV, keys = logits_BSV.shape[:2], logits_BSV.flatten(0, 1), places_BS.keys()
    if params.verification == "gumbel":
        return Draft(gumbel_drawn(flat_RV, params, keys).view(shape), None)
    log_RV = log_law(flat_RV, params)
    return Draft(inverse_cdf(log_RV, keys, purpose=Purpose.DRAFT).view(shape), log_RV.view_as(logits_BSV))


def verified(logits_BTV: Tensor, draft: Draft, params: SamplingParams, places_BT: Places) -> Verdict:
    """Accept the longest run of drafts that the rule lets stand.

    Args:
        logits_BTV: of the law; row i predicts draft i, and the last of T > S rows the token behind all drafts.
        draft: made by `drafted` under the same parameters.
        params: with the rule, temperature and filters.
        places_BT: of the predicted tokens; the step is the token's number in its text.
    """
    if params.verification == "reject":
        return _rejecting(log_law(logits_BTV.flatten(0, 1), params).view(logits_BTV.shape), draft, places_BT)
    if params.verification == "greedy":
        token_BT = logits_BTV.argmax(dim=-1)
    else:
        token_BT = _drawn(logits_BTV.flatten(0, 1), params, places_BT.keys()).view(logits_BTV.shape[:2])
    agrees_BS = token_BT[:, : draft.token_BS.shape[1]] == draft.token_BS
    return Verdict(_leading(agrees_BS), token_BT)


def _drawn(logits_RV: Tensor, params: SamplingParams, keys: Keys) -> Tensor:
    """What autoregression draws at these places."""
    if params.verification == "gumbel":
        return gumbel_drawn(logits_RV, params, keys)
    top_k, top_p = params.top_k or 0, params.top_p or 1.0
    return drawn(logits_RV, temperature=params.temperature, top_k=top_k, top_p=top_p, keys=keys)


def _rejecting(log_p_BTV: Tensor, draft: Draft, places_BT: Places) -> Verdict:
    """Speculative sampling: accept with probability p/q, else draw from what p has more than q."""
    num_rows, num_drafts = draft.token_BS.shape
    row_B = torch.arange(num_rows, device=log_p_BTV.device)
    if num_drafts == 0:
        token_B = inverse_cdf(log_p_BTV[:, 0], places_BT.keys_at(torch.zeros_like(row_B)))
        return Verdict(torch.zeros_like(row_B), token_B[:, None])
    assert draft.log_BSV is not None, "this rule needs the law of the drafts"
    token_BS1 = draft.token_BS[:, :, None]
    odds_BS = log_p_BTV[:, :num_drafts].gather(2, token_BS1) - draft.log_BSV.gather(2, token_BS1)
    uniform_BS = noise.uniform(Purpose.ACCEPT, *(field_BT[:, :num_drafts] for field_BT in places_BT))
    accepted_B = _leading(uniform_BS.log() < odds_BS[:, :, 0])
    last_B = accepted_B.clamp(max=log_p_BTV.shape[1] - 1)
    p_BV = log_p_BTV[row_B, last_B].exp()
    excess_BV = (p_BV - draft.log_BSV[row_B, accepted_B.clamp(max=num_drafts - 1)].exp()).clamp(min=0)
    # Where p equals q up to rounding, nothing is left over, and p itself is what a rejection draws from.
    is_rejected_B = (accepted_B < num_drafts) & (excess_BV.sum(dim=-1) > 0)
    share_BV = torch.where(is_rejected_B[:, None], excess_BV, p_BV)
    token_B = inverse_cdf(share_BV.log(), places_BT.keys_at(last_B))
    column_T = torch.arange(log_p_BTV.shape[1], device=row_B.device)
    token_BT = torch.nn.functional.pad(draft.token_BS, (0, len(column_T) - num_drafts))
    return Verdict(accepted_B, torch.where(column_T == accepted_B[:, None], token_B[:, None], token_BT))


def _leading(stays_BS: Tensor) -> Tensor:
    """How many of each row's first entries are true, int64."""
    return stays_BS.to(torch.int64).cumprod(dim=1).sum(dim=1)
