"""TiDAR by hand: full forwards of a stock class under boolean masks written out cell by cell, nothing cached.

The law of the next token is that of the causal logits at the last token, mixed with the logits of the first mask of a
block behind the text. Decoding goes token by token, so it needs no drafts, no verification and no cache.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from tests.references.candidates import argmax, keep_top_k, keep_top_p, softmax
from unmask import noise
from unmask.models.backbone import Backbone
from unmask.noise import Purpose


class Law(NamedTuple):
    """What a token is drawn from: `draft_length` masks stand in the block whose first one is mixed in."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    trust: float = 1.0
    draft_length: int = 1


class Stock:
    """The weights of a backbone in a stock class under `sdpa`."""

    def __init__(self, backbone: Backbone) -> None:
        config = copy.deepcopy(backbone.network.config)
        config._attn_implementation = "sdpa"
        self.network: Any = type(backbone.network)(config)  # type: ignore[arg-type]
        self.network.to(next(backbone.network.parameters()).dtype).eval()
        self.network.load_state_dict(backbone.network.state_dict())
        entry = backbone.diffusion
        assert entry.mask_token_id is not None
        self.mask_id = entry.mask_token_id
        rows = self.network.get_output_embeddings().weight.shape[0]
        self.allowed = [token for token in range(min(rows, entry.vocabulary_size)) if token != self.mask_id]
        self.excluded = [token for token in range(rows) if token not in self.allowed]

    def causal(self, ids_NL: Sequence[Sequence[int]]) -> Tensor:
        """Logits [N, L, V]: each token has seen itself and those before it."""
        length = len(ids_NL[0])
        return self._forward(ids_NL, [[key <= query for key in range(length)] for query in range(length)])

    def block(self, ids_NL: Sequence[Sequence[int]], draft_length: int) -> Tensor:
        """Logits [N, K, V] of masks behind the ids: each mask has seen all ids and all masks."""
        length = len(ids_NL[0])
        rows = [[*ids, *[self.mask_id] * draft_length] for ids in ids_NL]
        total = length + draft_length
        visible = [[key <= query or query >= length for key in range(total)] for query in range(total)]
        return self._forward(rows, visible)[:, length:]

    def keys_values(self, ids: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Keys and values [H, L, D] of every layer in a causal pass."""
        with torch.no_grad():
            cache = DynamicCache(config=self.network.config)
            self.network(torch.tensor([list(ids)]), None, None, cache, use_cache=True)
        return [(layer.keys[0], layer.values[0]) for layer in cache.layers]

    def next_logits(self, ids_NL: Sequence[Sequence[int]], law: Law) -> Tensor:
        """Mixed and penalised logits [N, V] of the token behind each text."""
        logits_NV = self.causal(ids_NL)[:, -1]
        if law.trust < 1:
            first_NV = self.block(ids_NL, law.draft_length)[:, 0]
            mixed_NV = law.trust * logits_NV[:, self.allowed] + (1 - law.trust) * first_NV[:, self.allowed]
            logits_NV[:, self.allowed] = mixed_NV
        for row_V, ids in zip(logits_NV, ids_NL, strict=True):
            for token in set(ids) & set(self.allowed):
                scale = 1 / law.repetition_penalty if row_V[token] > 0 else law.repetition_penalty
                row_V[token] = row_V[token] * scale
        return logits_NV

    def _forward(self, ids_NL: Sequence[Sequence[int]], visible: list[list[bool]]) -> Tensor:
        ids = torch.tensor([list(row) for row in ids_NL])
        positions = torch.arange(ids.shape[1]).expand_as(ids)
        mask = torch.tensor(visible)[None, None].expand(len(ids), -1, -1, -1)
        with torch.no_grad():
            logits = self.network(ids, position_ids=positions, attention_mask=mask, use_cache=False).logits
        logits[..., self.excluded] = -math.inf
        return logits


def filtered(row: Sequence[float], law: Law) -> list[float]:
    """The logits that a token is drawn from."""
    return keep_top_p(keep_top_k([value / law.temperature for value in row], law.top_k), law.top_p)


def decoded(
    stock: Stock,
    prompt: Sequence[int],
    law: Law,
    *,
    length: int,
    stops: Collection[int] = (),
    seed: int = 0,
    sample: int = 0,
) -> list[int]:
    """Token by token: the likeliest at temperature 0, else by Gumbel noise that the place keys."""
    text = list(prompt)
    while len(text) < len(prompt) + length and not (len(text) > len(prompt) and text[-1] in stops):
        row = stock.next_logits([text], law)[0].tolist()
        if law.temperature == 0:
            text.append(argmax(row))
            continue
        uniforms = noise.uniform(Purpose.GUMBEL, seed, sample, len(text), 0, torch.arange(len(row))).tolist()
        noisy = [value - math.log(-math.log(u)) for value, u in zip(filtered(row, law), uniforms, strict=True)]
        text.append(argmax(noisy))
    return text[len(prompt) :]


def sequence_law(stock: Stock, prompt: Sequence[int], law: Law, *, length: int) -> dict[tuple[int, ...], float]:
    """The probability of every continuation of `length` tokens."""
    laws: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(length):
        texts = [[*prompt, *tokens] for tokens in laws]
        rows = stock.next_logits(texts, law).tolist()
        laws = {
            (*tokens, token): probability * share
            for (tokens, probability), row in zip(laws.items(), rows, strict=True)
            for token, share in enumerate(softmax(filtered(row, law)))
            if share > 0
        }
    return laws


def chi_square(counts: dict[tuple[int, ...], int], law: dict[tuple[int, ...], float]) -> float:
    """The p-value of the counts under the law; outcomes that are expected fewer than 5 times are pooled."""
    total = sum(counts.values())
    if any(law.get(outcome, 0.0) == 0 for outcome in counts):
        return 0.0
    groups: list[list[tuple[int, ...]]] = [[]]
    expected_last = 0.0
    for outcome, probability in sorted(law.items(), key=lambda item: item[1]):
        if expected_last >= 5:
            groups.append([])
            expected_last = 0.0
        groups[-1].append(outcome)
        expected_last += total * probability
    statistic = 0.0
    for group in groups:
        expected = total * sum(law[outcome] for outcome in group)
        statistic += (sum(counts.get(outcome, 0) for outcome in group) - expected) ** 2 / expected
    half_freedom = torch.tensor((len(groups) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(half_freedom, torch.tensor(statistic / 2, dtype=torch.float64)))
