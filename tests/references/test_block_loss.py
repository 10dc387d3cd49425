"""The block loss and its bound against hand-made numbers, and against one another where they must meet."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.references import block_loss, likelihood, masks
from tests.references.llada import softmax
from tests.references.stock import IDS, MASK, stock


def counting(input_ids: torch.Tensor, **_: Any) -> Any:
    """Three tokens, the mask is 2: where v tokens of the text are visible, token 0 has the probability 1 / (2 + v)."""
    visible = int((input_ids[0] != 2).sum())
    row = [math.log(1 / (2 + visible)), math.log(1 - 1 / (2 + visible)), -math.inf]
    return SimpleNamespace(logits=torch.tensor([[row] * input_ids.shape[1]], dtype=torch.float64))


def test_each_block_sees_clean_blocks_before_it_and_none_behind() -> None:
    found = block_loss.masked_cross_entropy(counting, [0] * 5, {0, 1, 3, 4}, block_length=2, mask_token_id=2)
    # block 0 sees nothing; block 1 its prefix and place 2; block 2, partial, the four tokens before it
    assert found == pytest.approx({0: math.log(2), 1: math.log(2), 3: math.log(5), 4: math.log(6)})
    assert block_loss.masked_cross_entropy(counting, [0] * 5, set(), block_length=2, mask_token_id=2) == {}


def test_the_bound_by_hand() -> None:
    # block 0: {0} and {1} cost log 3 each, weight 1/2; both together 2 log 2, weight 1/2. Block 1: log 4.
    options: dict[str, Any] = {"block_length": 2, "mask_token_id": 2}
    totals = block_loss.exact_block_elbos(counting, [0] * 3, {0, 1, 2}, **options)
    assert totals == pytest.approx([math.log(3) + math.log(2), math.log(4)])
    assert block_loss.exact_block_elbo(counting, [0] * 3, {0, 1, 2}, **options) == pytest.approx(math.log(24))
    # what is not supervised stays clean
    assert block_loss.exact_block_elbos(counting, [0] * 3, {1}, **options) == pytest.approx([math.log(3), 0.0])


def test_excluded_ids_have_no_probability() -> None:
    def even(input_ids: torch.Tensor, **_: Any) -> Any:
        return SimpleNamespace(logits=torch.zeros(1, input_ids.shape[1], 4, dtype=torch.float64))

    for excluded, share in (((), 4), ((3,), 3), ((3, 1), 2)):
        bound = block_loss.exact_block_elbo(even, [0, 2, 0], {0, 1, 2}, 2, 3, excluded)
        assert bound == pytest.approx(3 * math.log(share))
        assert block_loss.chain_rule(even, [0, 2, 0], {1, 2}, 3, excluded) == pytest.approx(2 * math.log(share))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_block_length_one_is_the_chain_rule(family: str) -> None:
    model = stock(family)
    for supervised in (set(range(9)), {0, 4, 8}):
        bound = block_loss.exact_block_elbo(model, IDS, supervised, 1, MASK)
        assert bound == pytest.approx(block_loss.chain_rule(model, IDS, supervised, MASK), abs=1e-9)
    loss = block_loss.masked_cross_entropy(model, IDS, set(range(9)), block_length=1, mask_token_id=MASK)
    assert math.fsum(loss.values()) == pytest.approx(block_loss.chain_rule(model, IDS, set(range(9)), MASK), abs=1e-9)


def test_one_block_over_everything_is_masked_diffusion() -> None:
    model, ids = stock("qwen3"), IDS[:5]

    def cross_entropy(hidden: tuple[bool, ...]) -> list[float]:
        noisy = [MASK if masked else token for token, masked in zip(ids, hidden, strict=True)]
        everything = torch.ones(1, 1, 5, 5, dtype=torch.bool)
        with torch.no_grad():
            rows = model(torch.tensor([noisy]), attention_mask=everything, use_cache=False).logits[0].tolist()
        return [-math.log(softmax(row)[token]) for row, token in zip(rows, ids, strict=True)]

    for block_length in (5, 8):
        bound = block_loss.exact_block_elbo(model, ids, set(range(5)), block_length, MASK)
        assert bound == pytest.approx(likelihood.exact_elbo(ids, cross_entropy), abs=1e-9)
        assert bound == pytest.approx(likelihood.any_order_nll(ids, cross_entropy), abs=1e-9)


def test_the_doubled_layout_gives_the_same_loss() -> None:
    model, hidden = stock("llama"), {1, 4, 5, 7, 8}
    noisy = [MASK if place in hidden else token for place, token in enumerate(IDS)]
    sees = masks.block_diffusion_doubled([0] * 9, 4)
    with torch.no_grad():
        rows = (
            model(
                torch.tensor([noisy + IDS]),
                attention_mask=torch.tensor([[sees]]),
                position_ids=torch.tensor([masks.doubled_position_ids([0] * 9)]),
                use_cache=False,
            )
            .logits[0]
            .tolist()
        )
    found = block_loss.masked_cross_entropy(model, IDS, hidden, block_length=4, mask_token_id=MASK)
    assert found == pytest.approx({i: -math.log(softmax(rows[i])[IDS[i]]) for i in hidden}, abs=1e-9)
