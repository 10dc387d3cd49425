"""Entropy and self-attention against the stock network's own eager attention, head by head and query by query."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import tiny
from unmask.analysis.attention_maps import attention_weights
from unmask.analysis.attention_metrics import attention_figures, attention_sums
from unmask.data.batch import Batch
from unmask.models.backbone import ATTENTION_NAME, Backbone
from unmask.objectives.example import Example
from unmask.objectives.methods import objective
from unmask.settings.objective import ObjectiveSettings

BLOCK = 4
# Packed documents, of which one stands alone and one ends in the middle of a block; padding in all rows but the last.
ROWS = [[0] * 5 + [1] * 6 + [-1] * 3, [0] * 1 + [1] * 4 + [-1] * 9, [0] * 14]
METHODS = ["masked_diffusion", "block_diffusion", "tidar", "split"]
Token = tuple[str, int, int]
"""Half of the input (clean or noisy), document, place in it."""


def model_of(method: str, **options: Any) -> Backbone:
    return tiny.backbone("tidar" if method == "split" else method, **options)


def settings_of(method: str) -> ObjectiveSettings:
    options: dict[str, Any] = {"tidar": {"masking": "random"}, "split": {"tidar_layout": "split", "clean_ratio": 0.4}}
    named = "tidar" if method == "split" else method
    length = None if method == "masked_diffusion" else BLOCK
    return ObjectiveSettings(method=named, block_length=length, **options.get(method, {}))  # type: ignore[arg-type]


def batch_of(rows: list[list[int]]) -> Batch:
    document_BL = torch.tensor(rows)
    numbers = torch.arange(len(rows))
    ids_BL = tiny.random_ids(*document_BL.shape)
    return Batch(ids_BL, document_BL, document_BL >= 0, numbers, numbers, len(rows), step=0)


def example_of(method: str, model: Backbone, rows: list[list[int]], *, seed: int = 2) -> Example:
    model.configure(dataclasses.replace(model.diffusion, block_length=settings_of(method).block_length))
    return objective(settings_of(method), model.diffusion, seed=seed)(batch_of(rows))


def places(documents: list[int]) -> list[int]:
    return [documents[: place + 1].count(one) - 1 for place, one in enumerate(documents)]


def completed(documents: list[int], *, head: float = 0.0, extra: int = BLOCK) -> list[int]:
    """The last block of the last document filled up behind it, in the padding or in `extra` columns more."""
    last = max(documents)
    size = documents.count(last)
    start = max(1, math.floor(size * head)) if head else 0
    wanted = -(-(size - start) // BLOCK) * BLOCK - (size - start)
    text = [one for one in documents if one >= 0]
    width = len(documents) + extra
    return (text + [last] * wanted + [-1] * width)[:width]


def tokens_of(method: str, documents: list[int]) -> list[Token | None]:
    """What stands in each column of the input; None is padding."""

    def half(name: str, row: list[int]) -> list[Token | None]:
        return [None if one < 0 else (name, one, place) for one, place in zip(row, places(row), strict=True)]

    if method == "masked_diffusion":
        return half("clean", documents)
    if method == "block_diffusion":
        row = completed(documents, extra=0)
        return half("noisy", row) + half("clean", row)
    if method == "tidar":
        return half("clean", documents) + half("noisy", completed(documents))
    row = completed(documents, head=0.4)
    heads = {one: max(1, math.floor(0.4 * documents.count(one))) for one in documents}
    return [
        None if one < 0 else ("clean" if place < heads[one] else "noisy", one, place)
        for one, place in zip(row, places(row), strict=True)
    ]


def sees(method: str, query: Token | None, key: Token | None, head: int) -> bool:
    """The rule in words: every method's own, between two tokens of one document."""
    if query is None or key is None:
        return query is None and key is None
    (from_half, from_document, q), (to_half, to_document, k) = query, key
    if from_document != to_document:
        return False
    if method == "masked_diffusion":
        return True
    if from_half == "clean":
        return to_half == "clean" and (q // BLOCK >= k // BLOCK if method == "block_diffusion" else k <= q)
    if method == "split":
        return to_half == "clean" or (q - head) // BLOCK == (k - head) // BLOCK
    return k // BLOCK < q // BLOCK if to_half == "clean" else q // BLOCK == k // BLOCK


def eager(model: Backbone, ids_BL: Tensor, seen_BQK: Tensor, place_BL: Tensor) -> tuple[Tensor, ...]:
    """Attention weights [B, H, Q, K] of each layer, from the stock class under a mask of our own."""
    network: Any = copy.deepcopy(model.network)
    network.set_attn_implementation("eager")
    mask_BHQK = torch.zeros(seen_BQK.shape, dtype=network.dtype).masked_fill(~seen_BQK, -math.inf)[:, None]
    with torch.no_grad():
        return network(
            input_ids=ids_BL, attention_mask=mask_BHQK, position_ids=place_BL, output_attentions=True, use_cache=False
        ).attentions


def by_loops(method: str, model: Backbone, example: Example, rows: list[list[int]]) -> dict[str, float]:
    """Every figure from its definition."""
    width = example.ids_BL.shape[1]
    lines = [tokens_of(method, row) for row in rows]
    if method in ("tidar", "split"):
        # All rows are as wide as the widest needs.
        lines = [line[:width] for line in lines]
    heads = [{one: max(1, math.floor(0.4 * row.count(one))) for one in row} for row in rows]
    seen = [
        [[sees(method, q, k, own[q[1]] if q else 0) for k in line] for q in line]
        for line, own in zip(lines, heads, strict=True)
    ]
    place = [[0 if one is None else one[2] for one in line] for line in lines]
    attentions = eager(model, example.ids_BL, torch.tensor(seen), torch.tensor(place))
    values: dict[str, list[float]] = {}
    for layer, weight_BHQK in enumerate(attentions):
        for b, line in enumerate(lines):
            for q, query in enumerate(line):
                if query is None:
                    continue
                keys = [k for k, visible in enumerate(seen[b][q]) if visible]
                kind = "masked" if example.ids_BL[b, q] == model.diffusion.mask_token_id else "visible"
                for head in range(weight_BHQK.shape[1]):
                    row = weight_BHQK[b, head, q].tolist()
                    assert math.isclose(sum(row[k] for k in keys), 1, abs_tol=1e-5), "no weight elsewhere"
                    entropy = -sum(row[k] * math.log(row[k]) for k in keys if row[k] > 0)
                    for name in ("", f"{kind}_"):
                        values.setdefault(f"attention/{name}entropy", []).append(entropy)
                        values.setdefault(f"attention/{name}self", []).append(len(keys) * row[q])
                        if len(keys) > 1:
                            values.setdefault(f"attention/{name}entropy_share", []).append(
                                entropy / math.log(len(keys))
                            )
                    values.setdefault(f"attention/layer_{layer}_self", []).append(len(keys) * row[q])
    return {name: math.fsum(one) / len(one) for name, one in values.items()}


@pytest.mark.parametrize("method", METHODS)
def test_every_figure_against_the_stock_networks_eager_attention(method: str) -> None:
    model = model_of(method)
    example = example_of(method, model, ROWS)
    found = attention_figures(attention_sums(model, example))
    expected = by_loops(method, model, example, ROWS)
    assert found.keys() == expected.keys() and len(found) == 11
    assert found == pytest.approx(expected, abs=1e-6)
    assert model.network.config._attn_implementation == ATTENTION_NAME


def test_sums_of_rows_are_the_sums_of_the_batch() -> None:
    model = model_of("masked_diffusion")
    whole = attention_sums(model, example_of("masked_diffusion", model, ROWS))
    # Ids and masks hang on the row, so each row is cut out of the whole example.
    example = example_of("masked_diffusion", model, ROWS)
    one_by_one = [
        attention_sums(model, dataclasses.replace(example, ids_BL=example.ids_BL[[b]], layout=layout))
        for b, layout in enumerate(example.layout.rows(torch.tensor([b])) for b in range(len(ROWS)))
    ]
    assert torch.allclose(sum(one_by_one, torch.zeros_like(whole)), whole, atol=1e-6)


def test_a_row_without_padding_takes_no_mask() -> None:
    model = model_of("masked_diffusion")
    rows = [ROWS[2]]
    example = example_of("masked_diffusion", model, rows, seed=3)
    assert 0 < len(example.row_R) < len(ROWS[2])
    found = attention_figures(attention_sums(model, example))
    assert found == pytest.approx(by_loops("masked_diffusion", model, example, rows), abs=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_uniform_model_has_shares_of_one(method: str) -> None:
    model = model_of(method)
    for layer in model.decoder.layers:  # type: ignore[union-attr]
        torch.nn.init.zeros_(layer.self_attn.q_proj.weight)  # type: ignore[union-attr]
    found = attention_figures(attention_sums(model, example_of(method, model, ROWS)))
    shares = {name: value for name, value in found.items() if name.endswith(("_share", "self"))}
    assert shares == pytest.approx(dict.fromkeys(shares, 1.0))


def test_padding_changes_nothing() -> None:
    model = model_of("masked_diffusion")
    settings = settings_of("masked_diffusion")
    found = []
    for padding in (0, 7):
        batch = batch_of([[0] * 6 + [-1] * padding])
        batch.ids_BL[:, :6] = torch.arange(6)
        example = objective(settings, model.diffusion, seed=1)(batch)
        assert int((example.ids_BL[0, :6] == model.diffusion.mask_token_id).sum()) in range(1, 6)
        found.append(attention_figures(attention_sums(model, example)))
    assert found[0] == pytest.approx(found[1], abs=1e-9)


def test_no_queries_of_a_kind_are_nan() -> None:
    model = model_of("tidar")
    example = objective(ObjectiveSettings(method="masked_diffusion"), model.diffusion, seed=0)(batch_of([[0] * 5]))
    visible = dataclasses.replace(example, ids_BL=torch.arange(5)[None])
    found = attention_figures(attention_sums(model, visible))
    unknown = {name for name, value in found.items() if math.isnan(value)}
    assert unknown == {f"attention/masked_{name}" for name in ("entropy", "entropy_share", "self")}
    first = dataclasses.replace(visible, ids_BL=visible.ids_BL[:, :1], layout=visible.layout.columns(0, 1))
    alone = attention_figures(attention_sums(model, first))
    assert alone["attention/entropy"] == 0 and alone["attention/self"] == 1
    assert math.isnan(alone["attention/entropy_share"]), "a single key leaves no choice"


def test_weights_are_as_exact_under_autocast() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, heads, 8, 16, generator=generator).bfloat16() for heads in (2, 1))
    plain = attention_weights(3 * query, key, None, None)
    with torch.autocast("cpu", torch.bfloat16):
        found = attention_weights(3 * query, key, None, None)
    assert found.dtype == torch.float32 and torch.equal(found, plain)


def test_the_network_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("masked_diffusion")
    example = example_of("masked_diffusion", model, ROWS)

    def forward() -> Tensor:
        mask = model.render(example.layout, example.layout)
        return model(example.ids_BL, example.layout.position_ids, mask)

    before = forward()
    attention_sums(model, example)
    assert torch.equal(forward(), before)
    broken: Callable[..., Any] = lambda *_, **__: 1 / 0  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr("unmask.analysis.attention_metrics.attention_weights", broken)
        with pytest.raises(ZeroDivisionError):
            attention_sums(model, example)
    assert torch.equal(forward(), before)
