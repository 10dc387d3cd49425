"""SDAR's published checkpoints, dense and with experts, as stock Qwen3 networks seen in blocks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.published import tiny
from tests.references import masks
from tests.references import published as reference
from unmask import DiffusionLM, SamplingParams, attention
from unmask.errors import CheckpointError
from unmask.models.families import FAMILIES
from unmask.models.loading import load, outline, parameter_counts
from unmask.models.source import read_source
from unmask.reports.description import describe
from unmask.settings.model import DiffusionConfig

IDS = [3, 1, 4, 9, tiny.MASK, 11, tiny.MASK, 2, tiny.MASK, 5]
ALLOWED_V = torch.arange(tiny.ROWS) != tiny.MASK
STOCK = {"sdar": "Qwen3ForCausalLM", "sdar_moe": "Qwen3MoeForCausalLM"}
each_kind = pytest.mark.parametrize("make", [tiny.sdar, tiny.sdar_moe], ids=["dense", "experts"])


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(folder, device="cpu")
    return str(caught.value)


def opened(folder: Path) -> DiffusionLM:
    lm = DiffusionLM.from_pretrained(folder, device="cpu")
    lm.backbone.network.set_experts_implementation("eager")  # the stock grouped kernel takes no float64
    return lm


def in_blocks(length: int, block_length: int) -> masks.Mask:
    places = list(range(length))
    return masks.block_decode(places, places, block_length)


def our_logits(lm: DiffusionLM, block_length: int) -> Tensor:
    document_BL = torch.zeros(1, len(IDS), dtype=torch.long)
    return lm.logits([IDS], layout=attention.block_causal(document_BL, block_length))[0]


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 4, "block_size": 2},
        {"tie_word_embeddings": True, "block_size": 16},
        {"rope_theta": 10000.0, "rms_norm_eps": 1e-2, "head_dim": 8, "block_size": 1},
    ],
    ids=["grouped", "full heads", "tied", "other constants"],
)
@each_kind
def test_logits_equal_the_published_network(tmp_path: Path, make: Any, changes: dict[str, Any], shards: int) -> None:
    config = make(**changes)
    tensors = tiny.random_tensors(config)
    lm = opened(tiny.write(tmp_path, config, tensors, shards=shards))
    assert type(lm.backbone.network).__name__ == STOCK[config["model_type"]]
    block_length = lm.backbone.diffusion.block_length
    assert block_length == config["block_size"]
    found_LV = our_logits(lm, block_length)
    expected_LV = reference.sdar_logits(tensors, config, IDS, in_blocks(len(IDS), block_length))
    assert found_LV.dtype == torch.float64 and found_LV[:, tiny.MASK].isinf().all()
    assert (found_LV - expected_LV)[:, ALLOWED_V].abs().max() < 1e-10


@each_kind
def test_logits_equal_the_stock_class_with_the_same_tensors(tmp_path: Path, make: Any) -> None:
    config = make()
    tensors = tiny.random_tensors(config)
    said = {**config, "rope_parameters": {"rope_type": "default", "rope_theta": config["rope_theta"]}}
    for key in ("rope_theta", "rope_scaling", "auto_map", "architectures", "model_type", "attn_implementation"):
        del said[key]
    family = FAMILIES["qwen3" if make is tiny.sdar else "qwen3_moe"]
    stock = family.model().from_pretrained(
        None, config=family.config(**said), state_dict=dict(tensors), dtype=torch.float64, attn_implementation="sdpa"
    )
    stock.set_experts_implementation("eager")
    sees_LL = torch.tensor(in_blocks(len(IDS), 4))
    with torch.no_grad():
        expected_LV = stock(
            torch.tensor([IDS]), attention_mask=sees_LL[None, None], position_ids=torch.arange(len(IDS))[None]
        ).logits[0]
    found_LV = our_logits(opened(tiny.write(tmp_path, config, tensors)), 4)
    assert (found_LV - expected_LV)[:, ALLOWED_V].abs().max() < 1e-10


@each_kind
def test_the_entry_says_what_the_original_means(tmp_path: Path, make: Any) -> None:
    config = make(block_size=8, my_own_key=[1])
    tiny.write(tmp_path, config, tiny.random_tensors(config))
    assert load(tmp_path, device="cpu").backbone.diffusion == DiffusionConfig(
        method="block_diffusion",
        vocabulary_size=tiny.ROWS,
        mask_token_id=tiny.MASK,
        block_length=8,
        published={"my_own_key": [1]},
    )


@pytest.mark.parametrize("published", [tiny.SDAR_4B, tiny.SDAR_30B_A3B], ids=["4B", "30B"])
def test_absent_keys_mean_blocks_of_4_and_the_mask_151669(tmp_path: Path, published: dict[str, Any]) -> None:
    config = {key: value for key, value in published.items() if key not in ("block_size", "mask_token_id")}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    entry = read_source(tmp_path).entry
    assert entry == DiffusionConfig(
        method="block_diffusion", vocabulary_size=151936, mask_token_id=151669, block_length=4
    )


def test_absent_sizes_take_the_defaults_of_the_originals_class(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "sdar"}', encoding="utf-8")
    config = read_source(tmp_path).config
    expected = {
        "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": False,
        "max_position_embeddings": 32768, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    }  # fmt: skip
    assert {name: getattr(config, name) for name in expected} == expected


def test_the_published_4b_configuration_is_that_of_qwen3_4b_without_ties(shared_data: Path, tmp_path: Path) -> None:
    file = shared_data / "configs" / "sdar-4b-chat.config.json"
    assert json.loads(file.read_text(encoding="utf-8")) == tiny.SDAR_4B
    (tmp_path / "config.json").write_bytes(file.read_bytes())
    (tmp_path / "qwen3").mkdir()
    (tmp_path / "qwen3" / "config.json").write_bytes((shared_data / "configs" / "qwen3-4b.config.json").read_bytes())
    ours, qwen3 = outline(tmp_path).backbone.network, outline(tmp_path / "qwen3").backbone.network
    config, parent = ours.config.to_dict(), qwen3.config.to_dict()
    assert {key for key in parent if config.get(key) != parent[key]} == {
        "_name_or_path", "architectures", "eos_token_id", "max_position_embeddings", "tie_word_embeddings",
    }  # fmt: skip
    shapes = {name: tensor.shape for name, tensor in ours.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in qwen3.state_dict().items()}
    # Qwen3-4B's 4,022,468,096, and an output embedding of its own.
    assert parameter_counts(ours) == (4_022_468_096 + 151936 * 2560, 3_633_511_936)
    assert ours.config.dtype == torch.bfloat16 and ours.config.eos_token_id == [151643, 151645]


def test_the_mixture_has_the_sizes_of_qwen3_30b_a3b(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny.SDAR_30B_A3B), encoding="utf-8")
    total, _ = parameter_counts(outline(tmp_path).backbone.network)
    assert total == 30_532_122_624


@pytest.mark.parametrize("ends", [151643, [151645, 151643], [151643, 7]])
def test_it_stops_at_the_ends_of_both_files_and_of_a_chat_turn(tmp_path: Path, ends: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**tiny.SDAR_4B, "eos_token_id": None}), encoding="utf-8")
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}), encoding="utf-8")
    listed = ends if isinstance(ends, list) else [ends]
    assert set(DiffusionLM(outline(tmp_path)).codec.end_ids()) == {*listed, 151645}


# --- guards -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "key", "value"),
    [
        (tiny.sdar, "use_sliding_window", True),
        (tiny.sdar, "rope_scaling", {"rope_type": "yarn", "factor": 4.0}),
        (tiny.sdar, "rope_parameters", {"rope_theta": 1.0}),
        (tiny.sdar, "attention_bias", True),
        (tiny.sdar, "hidden_act", "gelu"),
        (tiny.sdar, "quantization_config", {"bits": 4}),
        (tiny.sdar, "num_experts", 8),
        (tiny.sdar_moe, "use_sliding_window", True),
        (tiny.sdar_moe, "decoder_sparse_step", 2),
        (tiny.sdar_moe, "mlp_only_layers", [0]),
        (tiny.sdar_moe, "quantization_config", {"bits": 4}),
    ],
)
def test_a_variant_that_the_table_does_not_cover_is_refused_by_name(
    tmp_path: Path, make: Any, key: str, value: Any
) -> None:
    config = make(**{key: value})
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    message = refusal(tmp_path)
    assert f"`{key}: {value}`" in message and str(tmp_path) in message and "only" in message


def test_a_window_that_is_not_used_is_no_window(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny.sdar(sliding_window=4096)), encoding="utf-8")
    source = read_source(tmp_path)
    assert source.config.sliding_window is None and source.entry is not None
    assert source.entry.published == {"sliding_window": 4096}


@pytest.mark.parametrize("value", [0, None, "4", 2.5])
def test_a_block_size_that_is_no_length_is_refused(tmp_path: Path, value: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny.sdar(block_size=value)), encoding="utf-8")
    assert f"`block_size: {value}`" in refusal(tmp_path)


@pytest.mark.parametrize("value", [None, tiny.END, "m"])
def test_a_mask_token_that_is_none_of_its_own_is_refused(tmp_path: Path, value: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny.sdar(mask_token_id=value)), encoding="utf-8")
    assert f"mask token id {value}" in refusal(tmp_path)


def test_a_class_of_another_kind_is_refused(tmp_path: Path) -> None:
    config = tiny.sdar(architectures=["SDARMoeForCausalLM"])
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert "SDARMoeForCausalLM" in refusal(tmp_path)


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (tiny.sdar, "model.layers.1.self_attn.q_norm.weight"),
        (tiny.sdar, "lm_head.weight"),
        (tiny.sdar_moe, "model.layers.0.mlp.gate.weight"),
        (tiny.sdar_moe, "model.layers.1.mlp.experts.2.up_proj.weight"),
        (tiny.sdar_moe, "model.layers.0.mlp.experts.3.down_proj.weight"),
    ],
)
def test_a_missing_tensor_is_named(tmp_path: Path, make: Any, name: str, shards: int) -> None:
    tensors = tiny.random_tensors(make())
    del tensors[name]
    assert f"missing_keys: {name}." in refusal(tiny.write(tmp_path, make(), tensors, shards=shards))


@pytest.mark.parametrize(
    ("make", "name", "shape"),
    [
        (tiny.sdar, "model.layers.1.self_attn.k_norm.weight", (12,)),
        (tiny.sdar_moe, "model.layers.1.mlp.experts.2.up_proj.weight", (24, 32)),
    ],
)
def test_a_tensor_of_another_shape_is_named_with_both_shapes(
    tmp_path: Path, make: Any, name: str, shape: tuple[int, ...]
) -> None:
    tensors = tiny.random_tensors(make()) | {name: torch.ones(7, 3)}
    assert f"{name} (file (7, 3), model {shape})" in refusal(tiny.write(tmp_path, make(), tensors))


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.q_proj.bias", "model.layers.1.mlp.experts.4.up_proj.weight"]
)
def test_a_tensor_that_is_left_over_is_named(tmp_path: Path, name: str) -> None:
    tensors = tiny.random_tensors(tiny.sdar_moe()) | {name: torch.ones(24, 32)}
    assert f"unexpected_keys: {name}." in refusal(tiny.write(tmp_path, tiny.sdar_moe(), tensors))


# --- what is told -----------------------------------------------------------------------------------------------------


@each_kind
def test_info_tells_its_blocks(tmp_path: Path, make: Any) -> None:
    config = make(block_size=8)
    record = describe(tiny.write(tmp_path, config, tiny.random_tensors(config), shards=2))
    assert record["format"] == {"sdar": "SDAR", "sdar_moe": "SDAR-MoE"}[config["model_type"]]
    assert (record["method"], record["block_length"], record["mask_token_id"]) == ("block_diffusion", 8, tiny.MASK)
    assert record["network"] == STOCK[config["model_type"]] and record["problems"] == []
    assert record["stop_token_ids"] == [tiny.END]


def test_no_remote_code_is_asked_for(tmp_path: Path) -> None:
    """The folder names classes that do not exist anywhere, and opens all the same."""
    (tmp_path / "modeling_sdar.py").write_text("raise RuntimeError('run')", encoding="utf-8")
    (tmp_path / "configuration_sdar.py").write_text("raise RuntimeError('run')", encoding="utf-8")
    tiny.write(tmp_path, tiny.sdar(), tiny.random_tensors(tiny.sdar()))
    lm = DiffusionLM.from_pretrained(tmp_path, device="cpu")
    assert lm.resolved(SamplingParams()).max_new_tokens == 128
