"""Checkpoints of the first public TiDAR port open as Qwen2 networks, and its arguments mean what they mean there."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.models import tiny
from unmask import DiffusionLM
from unmask.errors import CheckpointError, SettingsError
from unmask.models.loading import load, outline
from unmask.models.published import registry
from unmask.models.published.tidar import FORMAT
from unmask.models.tokenizers import byte_tokenizer
from unmask.reports.description import describe
from unmask.settings.port_aliases import from_port

# Of 264 rows the tokenizer uses 259: 256 bytes, two of its own, and `<|endoftext|>`, which every Qwen2 tokenizer has.
ROWS, MASK = 264, 259
# As transformers 4 saves a `TiDARQwen2Config`; `tidar_config` repeats the three keys above it.
PORT: dict[str, Any] = {
    "architectures": ["TiDARQwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "block_size": 4,
    "clean_ratio": 0.25,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "is_training": False,
    "max_position_embeddings": 128,
    "max_window_layers": 28,
    "model_type": "tidar_qwen2",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "sliding_window": None,
    "tidar_config": {"block_size": 4, "clean_ratio": 0.25, "use_tidar": True},
    "tie_word_embeddings": False,
    "torch_dtype": "float64",
    "transformers_version": "4.57.1",
    "use_cache": True,
    "use_sliding_window": False,
    "use_tidar": True,
    "vocab_size": ROWS,
}


def qwen2(folder: Path, *, tokenizer: bool = True, **config: Any) -> Path:
    """A tiny Qwen2 folder with spare embedding rows."""
    tiny.stock("qwen2", vocab_size=ROWS, **config).save_pretrained(folder)
    if tokenizer:
        byte_tokenizer().save_pretrained(folder)
    return folder


def port(folder: Path, **changes: Any) -> Path:
    """The same weights as the port saves them: its config.json, Qwen2's tensor names."""
    qwen2(folder)
    (folder / "generation_config.json").unlink()
    (folder / "config.json").write_text(json.dumps(PORT | changes), encoding="utf-8")
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(folder, device="cpu")
    return str(caught.value)


def test_a_saved_port_model_opens_as_qwen2(tmp_path: Path) -> None:
    lm = DiffusionLM.from_pretrained(port(tmp_path / "port"), device="cpu")
    assert type(lm.backbone.network).__name__ == "Qwen2ForCausalLM"
    entry = lm.backbone.diffusion
    assert (entry.method, entry.block_length, entry.clean_ratio) == ("tidar", 4, 0.25)
    assert (entry.mask_token_id, entry.vocabulary_size) == (MASK, MASK + 1), "a token of its own, on a spare row"
    ids = tiny.random_ids(1, 12)
    with torch.no_grad():
        expected_BLV = tiny.stock("qwen2", vocab_size=ROWS)(ids).logits
    assert (lm.logits(ids) - expected_BLV)[..., :MASK].abs().max() < 1e-10
    record = describe(tmp_path / "port")
    assert record["method"] == "tidar" and record["problems"] == []


def test_the_new_mask_token_starts_as_the_one_that_stood_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.FORMATS, "tidar_qwen2", dataclasses.replace(FORMAT, mask_copies=1))
    for name, changes in {"none": {}, "named": {"mask_token_id": 1, "eos_token_id": 1}}.items():
        network = load(port(tmp_path / name, **changes), device="cpu").backbone.network
        tensors = load_file(tmp_path / name / "model.safetensors")
        for end, tensor in ((network.get_input_embeddings(), "model.embed_tokens"), (network.lm_head, "lm_head")):
            assert end.weight[MASK].equal(end.weight[1]) and end.weight[1].equal(tensors[f"{tensor}.weight"][1])


def test_a_mask_token_of_its_own_is_kept(tmp_path: Path) -> None:
    checkpoint = load(port(tmp_path, mask_token_id=260), device="cpu")
    assert checkpoint.backbone.diffusion.mask_token_id == 260
    assert "mask token id 7, which must be an id of its own" in refusal(port(tmp_path, mask_token_id=7, eos_token_id=7))


def test_without_tidar_it_is_autoregressive(tmp_path: Path) -> None:
    entry = load(port(tmp_path, use_tidar=False), device="cpu").backbone.diffusion
    assert (entry.method, entry.block_length, entry.clean_ratio, entry.mask_token_id) == (
        "autoregressive", None, None, None
    )  # fmt: skip


def test_what_is_saved_opens_again_and_is_stock(tmp_path: Path) -> None:
    lm = DiffusionLM.from_pretrained(port(tmp_path / "port"), device="cpu")
    lm.save_pretrained(tmp_path / "ours")
    again = load(tmp_path / "ours", device="cpu")
    assert again.backbone.diffusion == lm.backbone.diffusion
    saved = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert saved["model_type"] == "qwen2" and saved["diffusion"]["clean_ratio"] == 0.25
    assert outline(tmp_path / "port").backbone.diffusion == lm.backbone.diffusion


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clean_ratio": 1.0}, "`clean_ratio: 1.0` in its config.json, which must lie between 0 and 1"),
        ({"block_size": 0}, "`block_size: 0`"),
        ({"use_sliding_window": True}, "attention within a window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "attention within a window"),
        ({"rope_scaling": {"type": "yarn"}}, "stretched rotary positions"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "stretched"),
        ({"architectures": ["TiDARModel"]}, "covers TiDARQwen2ForCausalLM only"),
    ],
)
def test_another_network_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    assert message in refusal(port(tmp_path, **changes))


def test_rotary_settings_of_transformers_5_are_read(tmp_path: Path) -> None:
    words = {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "layer_types": ["full_attention"] * 2}
    assert load(port(tmp_path, **words), device="cpu").backbone.network.config.rope_parameters["rope_theta"] == 5e5


# --- the arguments of its from_pretrained -----------------------------------------------------------------------------


def test_a_qwen2_checkpoint_becomes_a_tidar_model(tmp_path: Path) -> None:
    folder = qwen2(tmp_path, rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    lm = DiffusionLM.from_pretrained(
        folder, device="cpu", **from_port(block_size=8, clean_ratio=0.5, use_tidar=True, torch_dtype=torch.float32)
    )
    entry = lm.backbone.diffusion
    assert (entry.method, entry.block_length, entry.clean_ratio, entry.mask_token_id) == ("tidar", 8, 0.5, MASK)
    network = lm.backbone.network
    assert network.dtype == torch.float32 and network.config.vocab_size == ROWS
    assert network.config.rope_parameters["rope_theta"] == 1e6, "the whole configuration is carried over"
    tensors = load_file(folder / "model.safetensors")
    assert network.state_dict().keys() == tensors.keys(), "nothing is added"
    for name, tensor in network.state_dict().items():
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            assert torch.allclose(tensor[MASK], tensors[name][:MASK].float().mean(dim=0), atol=1e-6)
            tensor, tensors[name] = tensor[:MASK], tensors[name][:MASK]
        assert tensor.equal(tensors[name].float()), name


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("tidar", 4, None)),
        ({"block_size": 16}, ("tidar", 16, None)),
        ({"clean_ratio": 0.75}, ("tidar", 4, 0.75)),
        ({"use_tidar": False}, ("autoregressive", None, None)),
    ],
)
def test_arguments_go_over_what_the_checkpoint_says(
    tmp_path: Path, given: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    entry = DiffusionLM.from_pretrained(port(tmp_path), device="cpu", **from_port(**given)).backbone.diffusion
    assert (entry.method, entry.block_length, entry.clean_ratio) == expected


def test_the_names_of_both_transformers_versions_are_taken() -> None:
    assert (
        from_port(torch_dtype="float16", device_map="auto").items()
        >= {"dtype": "float16", "device_map": "auto"}.items()
    )
    assert from_port(dtype=torch.bfloat16)["dtype"] == torch.bfloat16
    assert from_port().keys() == {"objective"}
    for wrong, message in (
        ({"dtype": "float16", "torch_dtype": "float16"}, "are the same argument"),
        ({"clean_ratio": 1.0}, "must lie between 0 and 1"),
        ({"block_size": 0}, "must be at least 1"),
    ):
        with pytest.raises(SettingsError, match=message):
            from_port(**wrong)  # type: ignore[arg-type]
