"""The six tests of the first public TiDAR port, which print there, made to assert here.

Model and inputs are the port's own: a Qwen2 of 1,000 ids, 16 tokens, a clean ratio of 0.5, blocks of 4. What it calls
"TiDAR mode" is a choice of the layout here, so a plain input is always read as Qwen2 reads it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.references import masks
from unmask import DiffusionLM, SamplingParams, attention
from unmask.models.loading import Checkpoint, adapted, create, parameter_counts
from unmask.settings.model import ModelSettings
from unmask.settings.objective import ObjectiveSettings
from unmask.settings.port_aliases import from_port

LENGTH, CLEAN, BLOCK, VOCABULARY = 16, 8, 4, 1000
SHAPE = ModelSettings(
    family="qwen2",
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    initializer_range=0.1,
    dtype="float64",
)


@pytest.fixture(scope="module")
def lm() -> DiffusionLM:
    """`TiDARQwen2ForCausalLM(TiDARQwen2Config(..., block_size=4, clean_ratio=0.5))`."""
    checkpoint = create(SHAPE, None, seed=0, size=VOCABULARY)
    objective = ObjectiveSettings(method="tidar", tidar_layout="split", block_length=BLOCK, clean_ratio=CLEAN / LENGTH)
    return DiffusionLM(Checkpoint(adapted(checkpoint, objective).backbone.eval(), None))


@pytest.fixture(scope="module")
def qwen2(lm: DiffusionLM) -> Qwen2ForCausalLM:
    """The stock network with the same weights, under its own attention."""
    config = Qwen2Config.from_dict(lm.backbone.network.config.to_dict() | {"dtype": "float64"})
    config._attn_implementation = "sdpa"
    network = Qwen2ForCausalLM(config).double().eval()
    network.load_state_dict(lm.backbone.network.state_dict())
    return network


@pytest.fixture
def ids() -> Tensor:
    """Two rows of ordinary tokens."""
    return torch.randint(0, VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(1))


def masked(ids: Tensor, lm: DiffusionLM) -> Tensor:
    """[clean tokens, mask tokens]."""
    mask = lm.backbone.diffusion.mask_token_id
    assert mask is not None
    return torch.cat([ids[:, :CLEAN], torch.full((len(ids), LENGTH - CLEAN), mask)], dim=1)


def split() -> attention.Layout:
    return attention.tidar_split(torch.zeros(1, LENGTH, dtype=torch.long), CLEAN, BLOCK)


def stock_logits(network: Qwen2ForCausalLM, ids: Tensor, **inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return network(ids, use_cache=False, **inputs).logits


def assert_equal(found_BLV: Tensor, expected_BLV: Tensor) -> None:
    """Equal logits of the ordinary ids; the mask token is never predicted here."""
    assert found_BLV.shape == expected_BLV.shape
    assert (found_BLV - expected_BLV)[..., :VOCABULARY].abs().max() < 1e-9
    assert found_BLV[..., VOCABULARY].eq(float("-inf")).all()


def test_1_creation(lm: DiffusionLM) -> None:
    """One shared head and nothing beside Qwen2's tensors but the mask token's two rows."""
    width, mlp, layers, keys = 256, 512, 4, 2 * 64
    attention_size = 2 * width * width + width + 2 * (width * keys + keys)
    layer = attention_size + 3 * width * mlp + 2 * width
    qwen2_size = 2 * VOCABULARY * width + layers * layer + width
    total, _ = parameter_counts(lm.backbone.network)
    assert total == qwen2_size + 2 * width
    stock = Qwen2ForCausalLM(Qwen2Config(**{**lm.backbone.network.config.to_dict(), "vocab_size": VOCABULARY}))
    assert sum(one.numel() for one in stock.parameters()) == qwen2_size
    assert stock.state_dict().keys() == lm.backbone.network.state_dict().keys()
    entry = lm.backbone.diffusion
    assert (entry.method, entry.block_length, entry.clean_ratio, entry.mask_token_id) == ("tidar", 4, 0.5, VOCABULARY)


def test_2_standard_input(lm: DiffusionLM, qwen2: Qwen2ForCausalLM, ids: Tensor) -> None:
    """Plain tokens are read as Qwen2 reads them, where the port read the second half of every input in blocks."""
    assert_equal(lm.logits(ids), stock_logits(qwen2, ids))


@pytest.mark.parametrize("left", [False, True])
def test_2_standard_input_with_a_2_d_mask(lm: DiffusionLM, qwen2: Qwen2ForCausalLM, ids: Tensor, left: bool) -> None:
    """The port's mask leaves the last four tokens out; here a layout says where rows end. Padding is unlike in rows."""
    lengths_B = torch.tensor([LENGTH - 4, LENGTH - 1])
    document_BL = attention.documents(lengths_B, LENGTH, left=left)
    present_BL = (document_BL >= 0).long()
    position_BL = (present_BL.cumsum(dim=1) - 1).clamp(min=0)
    expected = stock_logits(qwen2, ids, attention_mask=present_BL, position_ids=position_BL)
    found = lm.logits(ids, layout=attention.causal(document_BL))
    for row in range(2):
        inside = present_BL[row].bool()
        assert_equal(found[row, inside], expected[row, inside])
        alone = lm.logits(ids[row : row + 1, inside])
        assert (found[row, inside] - alone[0])[:, :VOCABULARY].abs().max() < 1e-9


def test_3_tidar_input(lm: DiffusionLM, qwen2: Qwen2ForCausalLM, ids: Tensor) -> None:
    """[clean | masks]: Qwen2 under the mask of an independent reference, and plain Qwen2 in the clean part."""
    both = masked(ids, lm)
    found = lm.logits(both, layout=split())
    sees_LL = torch.tensor(masks.tidar_split(LENGTH, CLEAN, BLOCK))
    expected = stock_logits(
        qwen2,
        both,
        attention_mask=sees_LL.expand(2, 1, LENGTH, LENGTH),
        position_ids=torch.arange(LENGTH).expand(2, LENGTH),
    )
    assert_equal(found, expected)
    assert_equal(found[:, :CLEAN], stock_logits(qwen2, ids[:, :CLEAN]))


def test_3_masks_do_not_see_what_they_stand_for(lm: DiffusionLM, ids: Tensor) -> None:
    """Tokens behind the clean part play no role; a token of the clean part reaches every mask."""
    other = ids.clone()
    other[:, CLEAN - 1] = (other[:, CLEAN - 1] + 1) % VOCABULARY
    before, after = (lm.logits(masked(one, lm), layout=split())[..., :VOCABULARY] for one in (ids, other))
    assert before[:, : CLEAN - 1].equal(after[:, : CLEAN - 1])
    assert ((before - after)[:, CLEAN:].abs().amax(dim=-1) > 1e-6).all()


def test_4_mask_structure() -> None:
    """The port's four quadrants, cell by cell: causal, nothing, everything, blocks of both directions."""
    assert attention.picture(split(), split()) == "\n".join(
        [
            *("#" * (row + 1) + "." * (LENGTH - row - 1) for row in range(CLEAN)),
            *["########" + "####...."] * BLOCK,
            *["########" + "....####"] * BLOCK,
        ]
    )


def test_5_modes(lm: DiffusionLM, ids: Tensor, tmp_path: Path) -> None:
    """With `use_tidar=False` the same checkpoint is Qwen2; plain text is predicted alike in both modes."""
    lm.save_pretrained(tmp_path / "tidar")
    on = DiffusionLM.from_pretrained(tmp_path / "tidar", device="cpu", **from_port(block_size=4, use_tidar=True))
    off = DiffusionLM.from_pretrained(tmp_path / "tidar", device="cpu", **from_port(use_tidar=False))
    assert (on.backbone.diffusion.method, off.backbone.diffusion.method) == ("tidar", "autoregressive")
    assert_equal(on.logits(ids), off.logits(ids))
    params = SamplingParams(decoding="autoregressive", max_new_tokens=6, ignore_eos=True)
    texts = [[one.token_ids for one in each.generate(ids.tolist(), params)] for each in (on, off)]
    assert texts[0] == texts[1] and all(len(one) == 6 for one in texts[0])


def test_6_positions(lm: DiffusionLM, ids: Tensor) -> None:
    """0..L-1 where the masks follow the text (split), 0..S-1 twice where they repeat it (doubled)."""
    document_BL = torch.zeros(1, CLEAN, dtype=torch.long)
    assert split().position_ids.tolist() == [list(range(LENGTH))]
    assert attention.tidar_training(document_BL, BLOCK).position_ids.tolist() == [[*range(CLEAN), *range(CLEAN)]]
    layout, both = split(), masked(ids, lm)
    moved = attention.Layout(layout.position_ids + 3 * (layout.position_ids >= CLEAN), *layout.fields[1:])
    here, there = lm.logits(both, layout=layout), lm.logits(both, layout=moved)
    assert here[:, :CLEAN].equal(there[:, :CLEAN])
    assert ((here - there)[:, CLEAN:, :VOCABULARY].abs().amax(dim=-1) > 1e-6).all(), "the rotation is that of the place"
