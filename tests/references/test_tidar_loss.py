"""The losses of TiDAR's reference against hand-made numbers."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.references import block_loss, tidar_loss
from tests.references.stock import IDS, MASK, stock


def counting(input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any) -> Any:
    """Three tokens, the mask is 2: a row that sees v tokens of the text gives token 0 the probability 1 / (2 + v)."""
    length = input_ids.shape[1]
    sees = torch.ones(length, length).tril().bool() if attention_mask is None else attention_mask[0, 0]
    visible = (sees & (input_ids[0] != 2)).sum(dim=1).tolist()
    rows = [[math.log(1 / (2 + seen)), math.log(1 - 1 / (2 + seen)), -math.inf] for seen in visible]
    return SimpleNamespace(logits=torch.tensor([rows], dtype=torch.float64))


def test_each_row_sees_what_the_figure_shows() -> None:
    assert tidar_loss.next_token(counting, [0] * 4) == pytest.approx({1: math.log(3), 2: math.log(4), 3: math.log(5)})
    options: dict[str, Any] = {"block_length": 2, "mask_token_id": 2}
    found = tidar_loss.drafts(counting, [0] * 5, range(5), **options)
    assert found == pytest.approx({place: math.log(2 + place // 2 * 2) for place in range(5)})
    found = tidar_loss.drafts(counting, [0] * 4, {0, 3}, **options)
    assert found == pytest.approx({0: math.log(3), 3: math.log(5)})  # the other token of the block is seen
    found = tidar_loss.drafts(counting, [0] * 6, range(6), head=1, **options)
    assert found == pytest.approx({place: math.log(3) for place in range(1, 6)})


def test_positions_and_completed_blocks() -> None:
    seen: list[tuple[list[int], list[int]]] = []

    def network(input_ids: torch.Tensor, position_ids: torch.Tensor, **_: Any) -> Any:
        seen.append((input_ids[0].tolist(), position_ids[0].tolist()))
        return SimpleNamespace(logits=torch.zeros(1, input_ids.shape[1], 2, dtype=torch.float64))

    tidar_loss.drafts(network, [0, 1, 1, 0, 1], {4}, block_length=2, mask_token_id=2, head=1, room=3)
    assert seen == [([0, 1, 1], [0, 1, 2]), ([0, 0, 2], [0, 3, 4])]
    seen.clear()
    tidar_loss.drafts(network, [0, 1, 1, 0, 1], {4}, block_length=4, mask_token_id=2, room=2)
    assert seen[1] == ([0, 1, 1, 0, 2, 2, 2], [0, 1, 2, 3, 4, 5, 6])


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_blocks_of_one_are_those_of_block_diffusion(family: str) -> None:
    """At block length 1 the clean tokens of block diffusion are causal as well."""
    network = stock(family)
    found = tidar_loss.drafts(network, IDS, range(len(IDS)), block_length=1, mask_token_id=MASK)
    assert math.fsum(found.values()) == pytest.approx(
        block_loss.chain_rule(network, IDS, range(len(IDS)), MASK), abs=1e-9
    )
