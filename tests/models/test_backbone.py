"""The seam to `transformers`: the stock networks' own numbers, our masks and nothing else, heads only where asked."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from tests.models.tiny import FAMILY_NAMES, VOCABULARY, backbone, random_ids, stock
from unmask import attention
from unmask.attention import Layout
from unmask.models.backbone import Backbone, unmask_attention
from unmask.settings.model import DiffusionConfig

every_family = pytest.mark.parametrize("family", FAMILY_NAMES)
eager_flex = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def one_document(length: int, rows: int = 1) -> Tensor:
    return torch.zeros(rows, length, dtype=torch.int64)


def logits_of(model: Backbone, ids_BL: Tensor, layout: Layout) -> Tensor:
    with torch.no_grad():
        hidden_BLD = model(ids_BL, layout.position_ids.expand_as(ids_BL), model.render(layout, layout))
        return model.logits(hidden_BLD)


# --- equal to the stock classes -------------------------------------------------------------------------------------


# float64: the same operations in the same order, so rounding at most; float32: logits of order 5 after two layers,
# a few units in the last place (2e-6) with room for another kernel's order of summation.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
@every_family
def test_causal_logits_are_those_of_the_stock_class(family: str, dtype: torch.dtype, tolerance: float) -> None:
    ids_BL = random_ids(3, 17)
    reference = stock(family, dtype=dtype, attn_implementation="sdpa")
    with torch.no_grad():
        expected = reference(ids_BL).logits
    given = logits_of(backbone(family, dtype=dtype), ids_BL, attention.causal(one_document(17)))
    assert reference.config._attn_implementation == "sdpa" and given.dtype == dtype
    assert (given - expected).abs().max() < tolerance


@every_family
def test_packed_and_padded_rows_give_the_logits_of_each_document_alone(family: str) -> None:
    ids_BL = random_ids(2, 12)
    document_BL = torch.tensor([[0] * 5 + [1] * 7, [-1] * 3 + [0] * 4 + [2] * 5])
    packed = logits_of(backbone(family), ids_BL, attention.causal(document_BL))
    reference = stock(family, attn_implementation="sdpa")
    for row, start, stop in ((0, 0, 5), (0, 5, 12), (1, 3, 7), (1, 7, 12)):
        with torch.no_grad():
            alone = reference(ids_BL[row : row + 1, start:stop]).logits[0]
        assert (packed[row, start:stop] - alone).abs().max() < 1e-10
    assert packed.isfinite().all(), "not even padding may be NaN"


@every_family
def test_the_parent_attention_is_full_when_there_is_no_mask(family: str) -> None:
    ids_BL = random_ids(2, 9)
    reference = stock(family, attn_implementation="eager")
    no_bias = torch.zeros(2, 1, 9, 9, dtype=torch.float64)  # an additive mask that hides nothing
    with torch.no_grad():
        expected = reference(ids_BL, attention_mask=no_bias).logits
    given = logits_of(backbone(family), ids_BL, attention.bidirectional(one_document(9)))
    # Eager attention takes its softmax in float32: logits of order 5 agree to some 1e-6.
    assert (given - expected).abs().max() < 1e-4


# --- masks ----------------------------------------------------------------------------------------------------------


@eager_flex
@every_family
def test_no_mask_equals_a_mask_of_ones_equals_a_block_mask(family: str) -> None:
    ids_BL, full = random_ids(2, 9), attention.bidirectional(one_document(9))
    model = backbone(family)
    position_ids_BL = full.position_ids.expand_as(ids_BL)
    with torch.no_grad():
        none = model(ids_BL, position_ids_BL, None)
        ones = model(ids_BL, position_ids_BL, torch.ones(1, 1, 9, 9, dtype=torch.bool))
        block = model(ids_BL, position_ids_BL, attention.block_mask(full, full))
        causal_layout = attention.causal(one_document(9))
        causal = model(ids_BL, position_ids_BL, attention.dense_mask(causal_layout, causal_layout))
    assert model.render(full, full) is None
    assert (none - ones).abs().max() < 1e-10 and (none - block).abs().max() < 1e-10
    assert (none - causal).abs().max() > 1e-2


@eager_flex
@every_family
def test_both_back_ends_give_the_same_hidden_states_for_packed_block_diffusion(family: str) -> None:
    document_BL = torch.tensor([[0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, -1, -1]])
    layout = attention.block_diffusion_training(document_BL, 2)
    ids_BL, real_BL = random_ids(2, 14), layout.document >= 0
    dense, flex = backbone(family), backbone(family, attention_backend="flex")
    with torch.no_grad():
        by_dense = dense(ids_BL, layout.position_ids, dense.render(layout, layout))
        by_flex = flex(ids_BL, layout.position_ids, flex.render(layout, layout))
    assert (by_dense - by_flex)[real_BL].abs().max() < 1e-10


@eager_flex
def test_both_back_ends_decode_the_same_behind_a_ragged_cache() -> None:
    prompt_BL, new_BL = random_ids(2, 6), random_ids(2, 4, seed=2)
    hidden = []
    for name in ("dense", "flex"):
        model = backbone(attention_backend=name)
        cache = model.new_cache(2, capacity=8)
        with torch.no_grad():
            model.extend(prompt_BL, attention.block_step(cache.length_B, 6, 2), cache, keep=torch.tensor([6, 4]))
            hidden.append(model.extend(new_BL, attention.block_step(cache.length_B, 4, 2), cache))
    assert (hidden[0] - hidden[1]).abs().max() < 1e-10


@every_family
def test_layers_get_no_argument_whose_name_transformers_changes(family: str) -> None:
    """Stock layers call their cache `past_key_values` before version 5.24 and `cache` from then on."""
    model, given = backbone(family), []
    for layer in model.decoder.layers:  # type: ignore[union-attr]
        layer.register_forward_pre_hook(lambda _, args, named: given.append(set(named)), with_kwargs=True)
    cache, ids_BL = model.new_cache(1), random_ids(1, 6)
    with torch.no_grad():
        model.extend(ids_BL[:, :4], attention.causal(one_document(4)), cache)
        model.extend(ids_BL[:, 4:], attention.block_step(cache.length_B, 2, 2), cache)
    assert given == 4 * [{"attention_mask", "position_ids", "position_embeddings", "unmask_cache"}]


def test_the_padding_row_of_the_embedding_is_trained_like_any_other() -> None:
    """Many checkpoints pad with their end-of-text token, whose row a stock embedding would freeze."""
    model = backbone("llama", pad_token_id=0)
    ids_BL, layout = torch.tensor([[1, 0, 2]]), attention.causal(one_document(3))
    model(ids_BL, layout.position_ids, model.render(layout, layout)).sum().backward()
    gradient_VD = model.network.get_input_embeddings().weight.grad  # type: ignore[union-attr]
    assert gradient_VD[0].abs().max() > 0 and gradient_VD[5].abs().max() == 0


def test_steps_that_share_positions_share_no_rotation_of_another_type() -> None:
    ids_BL, layout = random_ids(2, 9), attention.causal(one_document(9))
    position_ids_BL = layout.position_ids.expand_as(ids_BL)
    model = backbone(dtype=torch.float64)
    with torch.inference_mode():
        model(ids_BL, position_ids_BL, model.render(layout, layout))
        model.float()
        given = model(ids_BL, position_ids_BL, model.render(layout, layout))
        fresh = model(ids_BL, position_ids_BL.clone(), model.render(layout, layout))
    assert given.dtype == torch.float32
    assert torch.equal(given, fresh)


def test_attention_weights_are_dropped_when_asked() -> None:
    query, value = torch.zeros(1, 1, 40, 8), torch.ones(1, 1, 40, 8)
    torch.manual_seed(0)
    kept, _ = unmask_attention(torch.nn.Identity(), query, query, value, None)
    dropped, _ = unmask_attention(torch.nn.Identity(), query, query, value, None, dropout=0.5)
    torch.testing.assert_close(kept, torch.ones_like(kept))
    # The mean of forty weights that are doubled or dropped: off one, and around it.
    assert dropped.std() > 0.05 and dropped.mean().item() == pytest.approx(1, abs=0.2)


@eager_flex
def test_flex_attention_takes_queries_and_keys_that_a_norm_left_in_float32() -> None:
    layout = attention.causal(one_document(6))
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 6, 8, generator=generator) for _ in range(3))
    mask = attention.block_mask(layout, layout)
    out, _ = unmask_attention(torch.nn.Identity(), query, key, value.bfloat16(), mask)
    exact, _ = unmask_attention(torch.nn.Identity(), query, key, value, mask)
    assert out.dtype == torch.bfloat16
    assert (out.float() - exact).abs().max() < 0.05  # values of order 1 to eight bits


@pytest.mark.parametrize(
    ("mask", "named"),
    [
        (torch.ones(2, 5, dtype=torch.bool), "torch.bool (2, 5)"),
        (torch.ones(2, 5, dtype=torch.int64), "torch.int64 (2, 5)"),
        (torch.ones(2, 5, 5, dtype=torch.bool), "torch.bool (2, 5, 5)"),
        (torch.zeros(2, 1, 5, 5), "torch.float32 (2, 1, 5, 5)"),
        (torch.ones(2, 1, 5, 5, dtype=torch.int64), "torch.int64 (2, 1, 5, 5)"),
        ({"full_attention": None}, "dict"),
    ],
    ids=["2-D", "2-D int", "3-D", "float", "4-D int", "dict"],
)
def test_a_mask_that_a_stock_route_would_misread_is_refused_by_name(mask: object, named: str) -> None:
    model, ids_BL = backbone(), random_ids(2, 5)
    with pytest.raises(TypeError) as caught:
        model(ids_BL, torch.arange(5).expand(2, 5), mask)  # type: ignore[arg-type]
    assert named in str(caught.value)


def test_the_registered_function_refuses_masks_too_when_somebody_goes_round_the_backbone() -> None:
    query, key = torch.zeros(1, 4, 3, 8), torch.zeros(1, 2, 3, 8)
    with pytest.raises(TypeError, match="4-D bool"):
        unmask_attention(torch.nn.Identity(), query, key, key, torch.zeros(1, 1, 3, 3))  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", [1, 2])
def test_grouped_attention_equals_attention_over_repeated_keys(batch: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, heads, 5, 8, generator=generator, dtype=torch.float64) for heads in (6, 2, 2))
    mask = torch.rand(batch, 1, 5, 5, generator=generator) < 0.5
    mask |= torch.eye(5, dtype=torch.bool)
    given, weights = unmask_attention(torch.nn.Identity(), query, key, value, mask, scaling=0.3)
    scores = query @ key.repeat_interleave(3, dim=1).transpose(-1, -2) * 0.3
    expected = scores.masked_fill(~mask, -math.inf).softmax(-1) @ value.repeat_interleave(3, dim=1)
    assert weights is None and given.shape == (2, 5, 6, 8)
    assert (given - expected.transpose(1, 2)).abs().max() < 1e-12


# --- the head -------------------------------------------------------------------------------------------------------


def test_the_mask_and_the_ids_beyond_the_vocabulary_are_minus_infinity_and_no_other() -> None:
    model = backbone(mask_token_id=33, vocabulary_size=36)
    logits = logits_of(model, random_ids(2, 6), attention.bidirectional(one_document(6)))
    excluded = [33, 36, 37, 38, 39]
    allowed = [one for one in range(VOCABULARY) if one not in excluded]
    assert (logits[..., excluded] == -math.inf).all() and logits[..., allowed].isfinite().all()
    assert model.num_predictable == len(allowed)
    bare = logits_of(backbone(), random_ids(2, 6), attention.bidirectional(one_document(6)))
    assert logits[..., allowed].equal(bare[..., allowed])


def test_a_new_diffusion_entry_changes_what_is_predicted() -> None:
    model = backbone(mask_token_id=33, vocabulary_size=36)
    model.configure(DiffusionConfig(method="masked_diffusion", vocabulary_size=38, mask_token_id=37))
    logits = logits_of(model, random_ids(1, 3), attention.bidirectional(one_document(3)))
    assert (logits[0, 0] == -math.inf).nonzero()[:, 0].tolist() == [37, 38, 39]
    assert model.num_predictable == 37


@every_family
def test_the_head_on_chosen_rows_equals_those_rows_of_all_logits(family: str) -> None:
    model, ids_BL = backbone(family, mask_token_id=39), random_ids(3, 8)
    layout = attention.causal(one_document(8))
    with torch.no_grad():
        hidden_BLD = model(ids_BL, layout.position_ids.expand_as(ids_BL), model.render(layout, layout))
        all_BLV = model.logits(hidden_BLD)
        chosen_BL = torch.rand(3, 8, generator=torch.Generator().manual_seed(0)) < 0.4
        chosen_RV = model.logits(hidden_BLD[chosen_BL])
    finite_V = torch.arange(VOCABULARY) != 39
    assert chosen_RV.shape == (int(chosen_BL.sum()), VOCABULARY)
    # A product with fewer rows may sum in another order.
    assert (chosen_RV - all_BLV[chosen_BL])[:, finite_V].abs().max() < 1e-12


def test_the_head_takes_no_rows_at_all() -> None:
    assert backbone().logits(torch.zeros(0, 32, dtype=torch.float64)).shape == (0, VOCABULARY)


@every_family
def test_a_backbone_knows_its_parts(family: str) -> None:
    model = backbone(family)
    assert model.head_weight is model.network.get_output_embeddings().weight
    assert model.context_length == 128 and model.device == torch.device("cpu")
    assert "excluded_X" not in model.state_dict(), "a checkpoint holds the network's tensors and nothing else"


# --- training -------------------------------------------------------------------------------------------------------


@every_family
def test_gradient_checkpointing_gives_identical_gradients_under_a_dense_mask(family: str) -> None:
    document_BL = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 0, -1]])
    layout = attention.block_diffusion_training(document_BL, 2)
    ids_BL = random_ids(2, 10)
    gradients = []
    for checkpointing in (False, True):
        model = backbone(family).train()
        if checkpointing:
            network = model.network  # older versions of transformers have only the second name, newer ones warn at it
            enable = getattr(network, "activation_checkpointing_enable", None) or network.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        hidden_BLD = model(ids_BL, layout.position_ids, model.render(layout, layout))
        model.logits(hidden_BLD[layout.document >= 0]).logsumexp(-1).sum().backward()
        assert model.network.model.gradient_checkpointing is checkpointing
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert gradient is not None and gradient.equal(gradients[1][name]), name
    assert sum(float(gradient.abs().sum()) for gradient in gradients[0].values()) > 1


@pytest.mark.parametrize("tied", [False, True])
@every_family
def test_the_padding_row_of_the_embedding_is_trained(family: str, tied: bool) -> None:
    model = backbone(family, pad_token_id=3, tie_word_embeddings=tied)
    ids_BL, layout = torch.tensor([[5, 3, 7]]), attention.causal(one_document(3))
    hidden_BLD = model(ids_BL, layout.position_ids, model.render(layout, layout))
    hidden_BLD.square().sum().backward()  # the head stays out of it
    gradient = model.network.get_input_embeddings().weight.grad
    assert gradient is not None
    assert gradient.abs().sum(dim=1).nonzero()[:, 0].tolist() == [3, 5, 7]


# --- threads --------------------------------------------------------------------------------------------------------


def test_causal_and_bidirectional_forwards_mix_in_four_threads_on_one_model() -> None:
    model, ids_BL = backbone(), random_ids(2, 10)
    layouts = [attention.causal(one_document(10)), attention.bidirectional(one_document(10))]
    expected = [logits_of(model, ids_BL, layout) for layout in layouts]
    assert (expected[0] - expected[1]).abs().max() > 1e-2

    def work(index: int) -> float:
        torch.set_num_threads(1)
        kind = index % 2
        return float((logits_of(model, ids_BL, layouts[kind]) - expected[kind]).abs().max())

    with ThreadPoolExecutor(4) as pool:
        differences = list(pool.map(work, range(200)))
    assert len(differences) == 200 and max(differences) < 1e-10


def test_two_backbones_of_one_process_do_not_share_state() -> None:
    first, second = backbone(mask_token_id=1), backbone(mask_token_id=2, seed=5)
    layout, ids_BL = attention.causal(one_document(4)), random_ids(1, 4)
    before = logits_of(first, ids_BL, layout)
    other = logits_of(second, ids_BL, layout)
    assert logits_of(first, ids_BL, layout).equal(before)
    assert before[0, 0].isinf().nonzero().tolist() == [[1]] and other[0, 0].isinf().nonzero().tolist() == [[2]]
