"""Questions to a network: an input, the places to read, the tokens that should stand there.

In: a stream of queries of any lengths. Out: for each, in the same order, the nats of its tokens and the likeliest
tokens there. Queries are evaluated `batch_size` inputs at a time; an input that several queries of a batch share (the
letters of a multiple choice, equal masks) is evaluated once. Nothing depends on what else is in a batch.
Shapes: Q queries of a batch, B their distinct inputs, L length, D width, V vocabulary, R rows that a query (or all of a
batch) reads, U the distinct ones among them, C a chunk of these.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unmask import attention
from unmask.decoding.canvas_forward import guided
from unmask.errors import PromptError, SettingsError
from unmask.evaluation.figures import finite
from unmask.models.backbone import Backbone

_CHUNK_ROWS = 512


@dataclass(frozen=True, eq=False)
class Query:
    """One input and what is read in its output; int64 tensors on the CPU.

    Attributes:
        ids_L: the input.
        row_R: output rows to read (with a logit shift: the row before the token's place).
        target_R: the token that each row should predict.
        context: leading tokens that guidance masks in the unconditional input.
        owner: a number that the caller knows the query by.
    """

    ids_L: Tensor
    row_R: Tensor
    target_R: Tensor
    context: int
    owner: int


class Reading(NamedTuple):
    """What a query found; on the CPU.

    Attributes:
        nats_R: float64; cross-entropy of each target.
        best_R: int64; the likeliest token of each row.
        best_nats_R: float64; its cross-entropy.
    """

    nats_R: Tensor
    best_R: Tensor
    best_nats_R: Tensor


def read(
    backbone: Backbone, queries: Iterable[Query], *, batch_size: int, cfg_scale: float = 0.0
) -> Iterator[tuple[Query, Reading]]:
    """Evaluate queries in their order; neighbours of similar length pad least.

    Args:
        backbone: in evaluation mode; it sees causally if it is autoregressive, block-causally for block diffusion, else
            in both directions.
        queries: taken one batch ahead of what is yielded.
        batch_size: distinct inputs per forward.
        cfg_scale: guidance; logits = unconditional + (cfg_scale + 1) * (conditional - unconditional).

    Raises:
        NonFiniteError: a cross-entropy is NaN or infinite.
        PromptError: the model is in training mode.
        SettingsError: guidance for another model than one of masked diffusion.
    """
    if backbone.training:
        raise PromptError("The model is in training mode, where dropout would blur its likelihood. Call .eval() first.")
    if cfg_scale and backbone.diffusion.method != "masked_diffusion":
        raise SettingsError(
            f"cfg_scale guides masked-diffusion models, which see a masked prompt; this one is "
            f"{backbone.diffusion.method} (got {cfg_scale}). Leave it at 0."
        )
    for group, input_Q in _batches(queries, batch_size, guided_by_context=cfg_scale > 0):
        yield from zip(group, _evaluated(backbone, group, input_Q, cfg_scale), strict=True)


def _batches(
    queries: Iterable[Query], batch_size: int, *, guided_by_context: bool
) -> Iterator[tuple[list[Query], list[int]]]:
    """Queries that share at most `batch_size` inputs, and which of these each one has, numbered as they appear."""
    group: list[Query] = []
    input_Q: list[int] = []
    numbers: dict[tuple[bytes, int], int] = {}
    for query in queries:
        name = (query.ids_L.numpy().tobytes(), query.context if guided_by_context else 0)
        if name not in numbers and len(numbers) == batch_size:
            yield group, input_Q
            group, input_Q, numbers = [], [], {}
        group.append(query)
        input_Q.append(numbers.setdefault(name, len(numbers)))
    if group:
        yield group, input_Q


@torch.inference_mode()
def _evaluated(backbone: Backbone, group: Sequence[Query], input_Q: Sequence[int], cfg_scale: float) -> list[Reading]:
    """One forward (two under guidance) over the distinct inputs of some queries."""
    inputs = list(dict(zip(input_Q, group, strict=True)).values())
    length_B = torch.tensor([len(query.ids_L) for query in inputs])
    ids_BL = nn.utils.rnn.pad_sequence([query.ids_L for query in inputs], batch_first=True)
    layout = backbone.clean_layout(attention.documents(length_B, ids_BL.shape[1])).to(backbone.device)
    mask = backbone.render(layout, layout)
    flat_R = torch.cat([number * ids_BL.shape[1] + query.row_R for query, number in zip(group, input_Q, strict=True)])
    flat_U, place_R = flat_R.unique(return_inverse=True)
    flat_U = flat_U.to(backbone.device)

    def hidden_UD(ids_BL: Tensor) -> Tensor:
        ids_BL = ids_BL.to(backbone.device)
        return backbone(ids_BL, layout.position_ids, mask, read_R=flat_U).flatten(0, 1)[flat_U]

    found_UD = hidden_UD(ids_BL)
    if cfg_scale:
        found_UD = guided(torch.cat([found_UD, hidden_UD(_without_context(ids_BL, inputs, backbone))]), cfg_scale)
    targets_R = torch.cat([query.target_R for query in group])
    found = _read_rows(backbone, found_UD, place_R, targets_R)
    finite(found.nats_R, lambda row: f"a token of an answer (token id {int(targets_R[row])})")
    finite(found.best_nats_R, lambda _: "the most likely token of an answer")
    sizes = [len(query.row_R) for query in group]
    return [Reading(*fields) for fields in zip(*(field.split(sizes) for field in found), strict=True)]


def _without_context(ids_BL: Tensor, inputs: Sequence[Query], backbone: Backbone) -> Tensor:
    """The unconditional inputs: every token of the context is masked."""
    mask_token_id = backbone.diffusion.mask_token_id
    assert mask_token_id is not None, "a model without a mask token is not guided"
    context_B1 = torch.tensor([query.context for query in inputs])[:, None]
    return ids_BL.masked_fill(torch.arange(ids_BL.shape[1]) < context_B1, mask_token_id)


def _read_rows(backbone: Backbone, hidden_UD: Tensor, place_R: Tensor, target_R: Tensor) -> Reading:
    """Targets and likeliest tokens at hidden states; the logits of one chunk exist at a time."""
    nats_R = torch.empty(len(target_R), dtype=torch.float64)
    best_U, best_nats_U = [], []
    for start in range(0, len(hidden_UD), _CHUNK_ROWS):
        logits_CV = _wide(backbone.logits(hidden_UD[start : start + _CHUNK_ROWS]))
        total_C = logits_CV.logsumexp(dim=-1)
        highest_C, best_C = logits_CV.max(dim=-1)
        best_U.append(best_C.cpu())
        best_nats_U.append((total_C - highest_C).double().cpu())
        own_R = ((place_R >= start) & (place_R < start + len(total_C))).nonzero()[:, 0]
        row_R, token_R = (place_R[own_R] - start).to(total_C.device), target_R[own_R].to(total_C.device)
        nats_R[own_R] = (total_C[row_R] - logits_CV[row_R, token_R]).double().cpu()
    return Reading(nats_R, torch.cat(best_U)[place_R], torch.cat(best_nats_U)[place_R])


def _wide(logits_RV: Tensor) -> Tensor:
    """At least float32."""
    return logits_RV if logits_RV.dtype == torch.float64 else logits_RV.float()
