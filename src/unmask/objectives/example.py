"""The record that the objectives make: one corrupted training input and what its outputs are worth."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unmask.attention import Layout


@dataclass(frozen=True)
class Example:
    """Inputs of one forward and the rows of its output that are supervised.

    The loss is the sum over terms of the term's share times (sum of weight * cross-entropy over the term's rows) / (the
    term's denominator, summed over the micro-batches and processes of the step).

    Attributes:
        ids_BL: input ids, int64 [B, L].
        layout: RoPE positions and the four attention integers.
        row_R: supervised output rows, as indices into the flattened [B * L] hidden states.
        target_R: the token that each row is to predict.
        weight_R: float32; factor on each row's cross-entropy.
        term_R: which of `terms` each row belongs to.
        group_R: the sequence (row of the batch) of each row.
        ratio_R: float32; realised share of masked tokens where the row's token was masked (1 for autoregression).
        source_R: the output row of a clean causal input that predicts the same token, for a teacher; -1: none does.
        terms: names of the loss terms.
        denominator_T: float64; what each term is divided by, of this micro-batch alone.
        shares: what each term counts for in the loss.
        starts: the columns at which a copy of the text begins.
    """

    ids_BL: Tensor
    layout: Layout
    row_R: Tensor
    target_R: Tensor
    weight_R: Tensor
    term_R: Tensor
    group_R: Tensor
    ratio_R: Tensor
    source_R: Tensor
    terms: tuple[str, ...]
    denominator_T: Tensor
    shares: tuple[float, ...] = (1.0,)
    starts: tuple[int, ...] = (0,)

    def to(self, device: torch.device) -> Example:
        """The same example on another device."""
        moved = {
            field.name: value.to(device, non_blocking=True)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, layout=self.layout.to(device), **moved)

    def only(self, chosen_R: Tensor) -> Example:
        """The same input with some of its supervised rows (bool [R]); what they are divided by stays."""
        fields = {
            field.name: value[chosen_R]
            for field in dataclasses.fields(self)
            if field.name.endswith("_R") and isinstance(value := getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **fields)


def normalized(example: Example, size_TB: Tensor, normalize: Literal["tokens", "answers"]) -> Example:
    """The example with each term divided by its tokens or, answer by answer, by each one's own tokens.

    An answer is all that is supervised in a row: with several replies, all of them together. The mean over answers of
    their loss per token is the loss of LLaDA's SFT guidelines.

    Args:
        example: with weights that are not divided by anything yet.
        size_TB: tokens that count in each row of the batch, for each term, int64.
        normalize: `tokens` gives each of them the same weight, `answers` each row that has any.
    """
    if normalize == "tokens":
        return dataclasses.replace(example, denominator_T=size_TB.sum(dim=1, dtype=torch.float64))
    return dataclasses.replace(
        example,
        weight_R=example.weight_R / size_TB[example.term_R, example.group_R],
        denominator_T=(size_TB > 0).sum(dim=1, dtype=torch.float64),
    )
