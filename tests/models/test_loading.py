"""Checkpoints: strict on the way in, plain `transformers` on the way out, and mask tokens that disturb nothing."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

from tests.models.tiny import FAMILY_NAMES, VOCABULARY, random_ids, stock
from unmask import attention
from unmask.errors import CheckpointError
from unmask.models.backbone import Backbone
from unmask.models.loading import Checkpoint, adapted, load, save
from unmask.models.tokenizers import byte_tokenizer
from unmask.settings.model import DiffusionConfig
from unmask.settings.objective import ObjectiveSettings

every_family = pytest.mark.parametrize("family", FAMILY_NAMES)
either_tie = pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
DIFFUSION = ObjectiveSettings(method="masked_diffusion", schedule="cosine")
TENSOR = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound checkpoint without tokenizer."""
    stock("qwen3", dtype=torch.float32).save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **fields}), encoding="utf-8")


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(folder, device="cpu")
    assert str(folder) in str(caught.value), "a message says which checkpoint"
    return str(caught.value)


def causal_logits(backbone: Backbone, ids_BL: Tensor) -> Tensor:
    layout = attention.causal(torch.zeros_like(ids_BL))
    with torch.no_grad():
        return backbone.logits(backbone(ids_BL, layout.position_ids, backbone.render(layout, layout)))


# --- strict on the way in ---------------------------------------------------------------------------------------------


def test_a_sound_checkpoint_loads(folder: Path) -> None:
    checkpoint = load(folder, device="cpu")
    expected = DiffusionConfig(method="autoregressive", vocabulary_size=VOCABULARY)
    assert checkpoint.tokenizer is None and checkpoint.backbone.diffusion == expected
    assert not checkpoint.backbone.training and checkpoint.backbone.network.dtype == torch.float32


@pytest.mark.parametrize("name", [TENSOR, "lm_head.weight", "model.layers.0.self_attn.q_norm.weight"])
def test_a_missing_tensor_is_named(folder: Path, name: str) -> None:
    edit_tensors(folder, lambda tensors: tensors.pop(name))
    assert f"missing_keys: {name}." in refusal(folder)


@pytest.mark.parametrize("name", ["model.layers.2.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.bias"])
def test_an_unexpected_tensor_is_named(folder: Path, name: str) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({name: torch.ones(32)}))
    assert f"unexpected_keys: {name}." in refusal(folder)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({TENSOR: torch.ones(7, 32)}))
    message = refusal(folder)
    assert TENSOR in message and "(7, 32)" in message and "(48, 32)" in message


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_a_missing_or_unexpected_expert_is_refused(tmp_path: Path, change: str) -> None:
    stock("qwen3_moe", dtype=torch.float32).save_pretrained(tmp_path)
    if change == "missing":
        edit_tensors(tmp_path, lambda tensors: tensors.pop("model.layers.0.mlp.experts.1.up_proj.weight"))
    else:
        extra = {"model.layers.0.mlp.experts.4.up_proj.weight": torch.ones(24, 32)}
        edit_tensors(tmp_path, lambda tensors: tensors.update(extra))
    refusal(tmp_path)


@pytest.mark.parametrize("left", [0, 4, 3000])
def test_a_truncated_file_is_refused(folder: Path, left: int) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    assert len(whole) > 3000
    path.write_bytes(whole[:left])
    assert "cannot be loaded" in refusal(folder)


def test_missing_weights_are_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "model.safetensors" in refusal(folder)


def test_a_missing_configuration_is_named(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "config.json" in refusal(folder)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    assert "config.json" in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_damaged_configuration_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text, encoding="utf-8")
    refusal(folder)


@pytest.mark.parametrize("fields", [{"num_hidden_layers": 1}, {"hidden_size": "32"}], ids=["layers", "type"])
def test_a_contradictory_configuration_names_the_field(folder: Path, fields: dict[str, Any]) -> None:
    edit_config(folder, **fields)
    assert next(iter(fields)) in refusal(folder)


@pytest.mark.parametrize("model_type", ["gpt2", "gemma2", "llada2_moe"])
def test_an_unsupported_model_type_is_named(folder: Path, model_type: str) -> None:
    edit_config(folder, model_type=model_type)
    assert f"`{model_type}`" in refusal(folder)


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_sliding_window_layers_are_refused_by_name(tmp_path: Path, family: str) -> None:
    stock(family, dtype=torch.float32).save_pretrained(tmp_path)
    edit_config(tmp_path, use_sliding_window=True, sliding_window=4, max_window_layers=1, layer_types=None)
    assert "sliding_attention" in refusal(tmp_path)


def test_a_sliding_window_without_layer_types_is_refused_by_name(tmp_path: Path) -> None:
    stock("qwen3_moe", dtype=torch.float32).save_pretrained(tmp_path)
    edit_config(tmp_path, use_sliding_window=True, sliding_window=4)
    assert "sliding window of 4 tokens" in refusal(tmp_path)
    edit_config(tmp_path, use_sliding_window=False)
    load(tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ({"method": "masked_diffusion", "vocabulary_size": 40, "mask_id": 3}, "unknown key `mask_id`"),
        ({"method": "masked_diffusion"}, "lacks vocabulary_size"),
        ({"method": "masked", "vocabulary_size": 40}, "unknown method `masked`"),
        ({"method": "masked_diffusion", "vocabulary_size": 41, "mask_token_id": 3}, "vocabulary_size 41"),
        ({"method": "masked_diffusion", "vocabulary_size": 40, "mask_token_id": 40}, "mask_token_id: 40"),
        ({"method": "masked_diffusion", "vocabulary_size": 40, "mask_token_id": -1}, "mask_token_id: -1"),
    ],
    ids=["unknown key", "missing key", "method", "vocabulary", "mask beyond", "negative mask"],
)
def test_a_diffusion_entry_that_does_not_fit_is_refused(folder: Path, entry: dict[str, Any], named: str) -> None:
    edit_config(folder, diffusion=entry)
    assert named in refusal(folder)


# --- plain on the way out ---------------------------------------------------------------------------------------------


@either_tie
@every_family
def test_plain_transformers_opens_what_was_saved_with_equal_logits(tmp_path: Path, family: str, tied: bool) -> None:
    network = stock(family, dtype=torch.float32, tie_word_embeddings=tied)
    backbone = Backbone(network, DiffusionConfig(method="autoregressive", vocabulary_size=VOCABULARY))
    checkpoint = adapted(Checkpoint(backbone, None), DIFFUSION)
    save(checkpoint, tmp_path)
    ids_BL, allowed_V = random_ids(2, 9), torch.arange(VOCABULARY + 1) < VOCABULARY
    expected = causal_logits(checkpoint.backbone, ids_BL)

    plain = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa")
    assert type(plain) is type(network) and plain.config.model_type == family
    with torch.no_grad():
        # Logits of order 5 in float32: a few units in the last place.
        assert (plain(ids_BL).logits - expected)[..., allowed_V].abs().max() < 2e-5
    assert causal_logits(load(tmp_path, device="cpu").backbone, ids_BL).equal(expected)
    assert "unmask" not in (tmp_path / "config.json").read_text(encoding="utf-8")


def test_the_diffusion_entry_survives_saving_loading_and_auto_config(tmp_path: Path) -> None:
    entry = DiffusionConfig(
        method="block_diffusion",
        vocabulary_size=38,
        mask_token_id=37,
        block_length=4,
        logit_shift=True,
        schedule="polynomial",
        schedule_power=1.5,
        decoding={"denoising_steps": 2},
    )
    save(Checkpoint(Backbone(stock("llama", dtype=torch.float32), entry), None), tmp_path)
    assert load(tmp_path, device="cpu").backbone.diffusion == entry
    assert AutoConfig.from_pretrained(tmp_path).diffusion == dataclasses.asdict(entry)


def test_given_weights_are_saved_in_place_of_the_networks_own(tmp_path: Path) -> None:
    checkpoint = Checkpoint(
        Backbone(stock("llama", dtype=torch.float32), DiffusionConfig(method="autoregressive", vocabulary_size=40)),
        None,
    )
    average = {name: torch.full_like(value, 0.5) for name, value in checkpoint.backbone.network.state_dict().items()}
    save(checkpoint, tmp_path, weights=average)
    assert all((value == 0.5).all() for value in load_file(tmp_path / "model.safetensors").values())
    assert not (checkpoint.backbone.head_weight == 0.5).any()


def test_the_type_of_the_weights_is_kept_or_chosen(tmp_path: Path) -> None:
    stock("llama", dtype=torch.bfloat16).save_pretrained(tmp_path)
    assert load(tmp_path, device="cpu").backbone.network.dtype == torch.bfloat16
    assert load(tmp_path, device="cpu", dtype=torch.float64).backbone.network.dtype == torch.float64


# --- mask tokens ------------------------------------------------------------------------------------------------------


def tiny_checkpoint(tokenizer: PreTrainedTokenizerBase | None, *, rows: int, tied: bool) -> Checkpoint:
    ids = rows if tokenizer is None else 258
    network = stock("qwen3", dtype=torch.float32, vocab_size=rows, tie_word_embeddings=tied, pad_token_id=5)
    return Checkpoint(Backbone(network, DiffusionConfig(method="autoregressive", vocabulary_size=ids)), tokenizer)


@pytest.mark.parametrize(("rows", "rows_after"), [(264, 264), (259, 259), (258, 259)], ids=["spare", "last", "grown"])
@either_tie
def test_the_mask_token_takes_a_spare_row_or_a_new_one(rows: int, rows_after: int, tied: bool) -> None:
    tokenizer = byte_tokenizer()
    checkpoint = tiny_checkpoint(tokenizer, rows=rows, tied=tied)
    network = checkpoint.backbone.network
    before = [end.weight.detach().clone() for end in _ends(checkpoint)]
    old_logits = causal_logits(checkpoint.backbone, random_ids(2, 9))

    entry = adapted(checkpoint, DIFFUSION).backbone.diffusion
    assert (entry.method, entry.schedule, entry.mask_token_id, entry.vocabulary_size) == (
        "masked_diffusion", "cosine", 258, 259,
    )  # fmt: skip
    assert tokenizer.mask_token_id == 258 and tokenizer.convert_tokens_to_ids("<|mask|>") == 258
    for end, old in zip(_ends(checkpoint), before, strict=True):
        assert end.weight.shape[0] == rows_after == network.config.vocab_size
        assert end.weight[:258].equal(old[:258])
        # A mean over 258 rows of order 0.3 in float32.
        assert (end.weight[258] - old[:258].mean(dim=0)).abs().max() < 1e-6
    assert (_ends(checkpoint)[0].weight is _ends(checkpoint)[1].weight) is tied
    assert network.get_input_embeddings().padding_idx is None
    new_logits = causal_logits(checkpoint.backbone, random_ids(2, 9))
    assert (new_logits[..., :258] - old_logits[..., :258]).abs().max() < 2e-5, "old ids keep their logits"
    assert new_logits[..., 258:].isinf().all() and checkpoint.backbone.num_predictable == 258


def _ends(checkpoint: Checkpoint) -> list[Any]:
    network = checkpoint.backbone.network
    return [network.get_input_embeddings(), network.get_output_embeddings()]


@either_tie
def test_a_checkpoint_without_tokenizer_gets_a_mask_id_behind_its_vocabulary(tied: bool) -> None:
    checkpoint = adapted(tiny_checkpoint(None, rows=40, tied=tied), DIFFUSION)
    assert checkpoint.backbone.diffusion.mask_token_id == 40 and checkpoint.backbone.diffusion.vocabulary_size == 41
    assert checkpoint.backbone.head_weight.shape[0] == 41


def test_a_mask_token_is_added_once_and_kept_by_a_return_to_autoregression() -> None:
    checkpoint = tiny_checkpoint(byte_tokenizer(), rows=258, tied=False)
    first = adapted(checkpoint, DIFFUSION).backbone.head_weight.detach().clone()
    again = adapted(checkpoint, DIFFUSION)
    assert again.backbone.head_weight.equal(first) and again.backbone.diffusion.mask_token_id == 258
    back = adapted(checkpoint, ObjectiveSettings(method="autoregressive", logit_shift=True)).backbone.diffusion
    assert back.mask_token_id == 258 and back.method == "autoregressive" and not back.logit_shift


def test_autoregression_adds_no_mask_token() -> None:
    checkpoint = adapted(
        tiny_checkpoint(byte_tokenizer(), rows=258, tied=False), ObjectiveSettings(method="autoregressive")
    )
    assert checkpoint.backbone.diffusion.mask_token_id is None and checkpoint.backbone.head_weight.shape[0] == 258
    assert checkpoint.tokenizer is not None and checkpoint.tokenizer.mask_token is None


def test_the_tokenizers_own_mask_token_is_used() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    checkpoint = adapted(tiny_checkpoint(tokenizer, rows=264, tied=False), DIFFUSION)
    assert checkpoint.backbone.diffusion.mask_token_id == 258 and tokenizer.mask_token == "[MASK]"


@pytest.mark.parametrize("role", ["pad_token", "eos_token", "bos_token"])
def test_a_mask_token_with_another_role_is_refused(role: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "[M]"})
    setattr(tokenizer, role, "[M]")
    with pytest.raises(CheckpointError, match=r"'\[M\]' \(id 258\)"):
        adapted(tiny_checkpoint(tokenizer, rows=264, tied=False), DIFFUSION)
