"""Round trips between the published formats and ours, key for key, and what has no words in the other format."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from tests.models.published import tiny
from tests.models.tiny import stock
from unmask.errors import CheckpointError
from unmask.models.backbone import Backbone
from unmask.models.loading import Checkpoint, adapted, load, save
from unmask.models.published.registry import FORMATS, target_format
from unmask.models.published.writing import save_published
from unmask.models.tokenizers import byte_tokenizer
from unmask.settings.model import DiffusionConfig
from unmask.settings.objective import ObjectiveSettings

each_format = pytest.mark.parametrize(
    ("name", "config"),
    [
        ("llada", tiny.llada()),
        ("llada", tiny.llada(weight_tying=True, mlp_ratio=2, init_fn="normal", init_std=0.5, my_own_key=[1, {"a": 2}])),
        ("dream", tiny.dream()),
        ("dream", tiny.dream(rms_norm_eps=1e-3, attention_dropout=0.1, transformers_version="4.51.0")),
        ("sdar", tiny.sdar(**tiny.SDAR_IDS)),
        ("sdar", tiny.sdar(**tiny.SDAR_IDS, block_size=32, tie_word_embeddings=True, debug=True, pad_token_id=151643)),
        ("sdar_moe", tiny.sdar_moe(**tiny.SDAR_IDS)),
        ("sdar_moe", tiny.sdar_moe(**tiny.SDAR_IDS, block_size=8, norm_topk_prob=False, max_window_layers=48)),
    ],
    ids=[f"{name}{keys}" for name in ("llada", "dream", "sdar", "sdar-moe") for keys in ("", ", unusual keys")],
)


def all_tensors(folder: Path) -> dict[str, Tensor]:
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


@each_format
@pytest.mark.parametrize("shard_size", ["5GB", "40KB"])
def test_theirs_to_ours_and_back_is_the_same_key_for_key(
    tmp_path: Path, name: str, config: dict[str, Any], shard_size: str
) -> None:
    tensors = tiny.random_tensors(config)
    tiny.write(tmp_path / "theirs", config, tensors)
    save(load(tmp_path / "theirs", device="cpu"), tmp_path / "ours", max_shard_size=shard_size)
    (tmp_path / "back").mkdir()
    save_published(load(tmp_path / "ours", device="cpu"), tmp_path / "back", FORMATS[name], max_shard_size=shard_size)

    back = all_tensors(tmp_path / "back")
    assert back.keys() == tensors.keys()
    assert all(back[key].equal(value) and back[key].dtype == value.dtype for key, value in tensors.items())
    written = read(tmp_path / "back" / "config.json")
    # The code is not copied, so the map leads to its authors' repository.
    assert all("--" in place for place in written["auto_map"].values())
    assert written | {"auto_map": config["auto_map"]} == config
    sharded = (tmp_path / "back" / "model.safetensors.index.json").exists()
    assert sharded is (shard_size == "40KB") is (tmp_path / "ours" / "model.safetensors.index.json").exists()
    if sharded:
        index = read(tmp_path / "back" / "model.safetensors.index.json")
        assert index["weight_map"].keys() == tensors.keys()


@each_format
def test_ours_to_theirs_and_back_is_the_same_key_for_key(tmp_path: Path, name: str, config: dict[str, Any]) -> None:
    tiny.write(tmp_path / "theirs", config, tiny.random_tensors(config))
    save(load(tmp_path / "theirs", device="cpu"), tmp_path / "ours")
    (tmp_path / "theirs again").mkdir()
    save_published(load(tmp_path / "ours", device="cpu"), tmp_path / "theirs again", FORMATS[name])
    save(load(tmp_path / "theirs again", device="cpu"), tmp_path / "back")
    ours, back = all_tensors(tmp_path / "ours"), all_tensors(tmp_path / "back")
    assert ours.keys() == back.keys() and all(value.equal(back[key]) for key, value in ours.items())
    for file in ("config.json", "generation_config.json"):
        assert read(tmp_path / "ours" / file) == read(tmp_path / "back" / file)


@pytest.mark.parametrize(
    "config", [tiny.LLADA_8B, tiny.DREAM_7B, tiny.SDAR_4B, tiny.SDAR_30B_A3B], ids=lambda one: one["model_type"]
)
def test_the_published_configurations_come_back_key_for_key(config: dict[str, Any]) -> None:
    (written,) = (one for one in FORMATS.values() if one.model_type == config["model_type"])
    stock_config, entry = written.read(config, {}, "it")
    assert entry.published == {}, "the usual values need not be kept"
    back = written.write(stock_config, entry, vocabulary_size=config["vocab_size"], dtype="bfloat16")
    assert back | {"auto_map": config["auto_map"]} == config


@each_format
def test_plain_transformers_opens_what_is_written_for_ours(tmp_path: Path, name: str, config: dict[str, Any]) -> None:
    tiny.write(tmp_path / "theirs", config, tiny.random_tensors(config))
    checkpoint = load(tmp_path / "theirs", device="cpu")
    save(checkpoint, tmp_path / "ours")
    plain, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", dtype="auto", attn_implementation="sdpa", output_loading_info=True
    )
    assert plain.config.model_type == FORMATS[name].family and not any(report.values())
    assert plain.config.diffusion["mask_token_id"] == config["mask_token_id"]
    for network in (plain, checkpoint.backbone.network):
        network.set_experts_implementation("eager")  # the stock grouped kernel takes no float64
    ids_BL = torch.tensor([[3, config["mask_token_id"], 5, 9]])
    seen = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    with torch.no_grad():
        hidden = checkpoint.backbone(ids_BL, torch.arange(4)[None], None)
        expected = checkpoint.backbone.network.lm_head(hidden)
        assert (plain(ids_BL, attention_mask=seen).logits - expected).abs().max() < 1e-10


# --- vocabularies and tokenizers --------------------------------------------------------------------------------------


def with_bytes(tmp_path: Path, **changes: Any) -> Checkpoint:
    """A LLaDA of 264 rows with a byte tokenizer whose last id, 258, is the mask."""
    config = tiny.llada(embedding_size=264, vocab_size=264, mask_token_id=258, **changes)
    tiny.write(tmp_path, config, tiny.random_tensors(config))
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "<|mdm_mask|>", "extra_special_tokens": ["<|eot_id|>"]})
    tokenizer.chat_template = "{{ messages[0].content }}"
    tokenizer.save_pretrained(tmp_path)
    return load(tmp_path, device="cpu")


def test_the_tokenizer_decides_the_vocabulary_and_the_rows_come_back(tmp_path: Path) -> None:
    checkpoint = with_bytes(tmp_path / "theirs")
    assert checkpoint.backbone.diffusion.vocabulary_size == 260
    (tmp_path / "back").mkdir()
    save_published(checkpoint, tmp_path / "back", FORMATS["llada"])
    assert read(tmp_path / "back" / "config.json")["vocab_size"] == 264
    assert load(tmp_path / "back", device="cpu").backbone.diffusion == checkpoint.backbone.diffusion


def test_a_vocabulary_that_no_tokenizer_tells_is_written_down(tmp_path: Path) -> None:
    checkpoint = Checkpoint(with_bytes(tmp_path / "theirs").backbone, None)
    (tmp_path / "back").mkdir()
    save_published(checkpoint, tmp_path / "back", FORMATS["llada"])
    written = read(tmp_path / "back" / "config.json")
    assert (written["vocab_size"], written["embedding_size"]) == (260, 264)


def test_the_tokenizer_is_written_in_the_words_of_transformers_4(tmp_path: Path) -> None:
    checkpoint = with_bytes(tmp_path / "theirs")
    (tmp_path / "back").mkdir()
    save_published(checkpoint, tmp_path / "back", FORMATS["llada"])
    said = read(tmp_path / "back" / "tokenizer_config.json")
    assert said["tokenizer_class"] == "PreTrainedTokenizerFast" and said["chat_template"]
    assert said["additional_special_tokens"] == ["<|eot_id|>"] and "extra_special_tokens" not in said
    again = AutoTokenizer.from_pretrained(tmp_path / "back", trust_remote_code=False)
    assert isinstance(again, PreTrainedTokenizerFast) and again.mask_token_id == 258
    assert again("naïve <|eot_id|>")["input_ids"] == checkpoint.tokenizer("naïve <|eot_id|>")["input_ids"]  # type: ignore[misc]


# --- what has no words ------------------------------------------------------------------------------------------------


def refusal(checkpoint: Checkpoint, folder: Path, name: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        save_published(checkpoint, folder, target_format(name, checkpoint.backbone.network.config.model_type))
    assert list(folder.iterdir()) == [], "nothing is written"
    return str(caught.value)


def trained(family: str, entry: dict[str, Any], **network: Any) -> Checkpoint:
    fields = {"method": "masked_diffusion", "vocabulary_size": 40, "mask_token_id": 39, **entry}
    sizes = {"pad_token_id": 38, **network}
    return Checkpoint(Backbone(stock(family, **sizes), DiffusionConfig(**fields)), None)


WIDE = {"vocab_size": 151936, "hidden_size": 4, "head_dim": 4, "num_attention_heads": 2, "num_key_value_heads": 1}
BLOCKS = {"method": "block_diffusion", "block_length": 4, "mask_token_id": 151669, "vocabulary_size": 151936}


@pytest.mark.parametrize(
    ("family", "entry", "network", "name", "named"),
    [
        ("qwen3", {}, {}, "llada", "holds llama networks, and this one is a qwen3"),
        ("llama", {}, {}, "dream", "holds qwen2 networks, and this one is a llama"),
        ("llama", {"method": "autoregressive"}, {}, "llada", "this one is autoregressive"),
        ("llama", {"method": "block_diffusion", "block_length": 4}, {}, "llada", "this one is block_diffusion"),
        ("llama", {"logit_shift": True}, {}, "llada", "`diffusion.logit_shift: True` (it means False)"),
        ("qwen2", {}, {}, "dream", "`diffusion.logit_shift: False` (it means True)"),
        ("llama", {"schedule": "cosine"}, {}, "llada", "`diffusion.schedule: cosine` (it means linear)"),
        ("llama", {"block_length": 8}, {}, "llada", "`diffusion.block_length: 8` (it means None)"),
        ("llama", {"decoding": {"denoising_steps": 4}}, {}, "llada", "`diffusion.decoding: {'denoising_steps': 4}`"),
        ("llama", {}, {"attention_bias": True}, "llada", "`attention_bias: True` (it means False)"),
        ("llama", {}, {"mlp_bias": True}, "llada", "`mlp_bias: True`"),
        ("llama", {}, {"head_dim": 16}, "llada", "`head_dim: 16` (it means 8)"),
        ("llama", {}, {"hidden_act": "gelu"}, "llada", "`hidden_act: gelu` (it means silu)"),
        (
            "llama",
            {},
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "llada",
            "`rope_parameters: ",
        ),
        ("llama", {}, {}, "sdar", "SDAR's format holds qwen3 and qwen3_moe networks, and this one is a llama"),
        ("qwen3", {}, {}, "sdar", "SDAR's format holds block_diffusion models, and this one is masked_diffusion"),
        ("qwen3_moe", {"method": "autoregressive"}, {}, "sdar", "SDAR-MoE's format holds block_diffusion models"),
        ("qwen3", {"method": "block_diffusion", "block_length": 4}, {}, "sdar",
         "by its id, 151669, and this model's is 39. Train it with a tokenizer whose mask token has that id, as "
         "data.tokenizer=JetLM/SDAR-4B-Chat"),
        ("qwen3", BLOCKS | {"block_length": None}, WIDE, "sdar", "`block_size: None`"),
        ("qwen3", BLOCKS | {"logit_shift": True}, WIDE, "sdar", "`diffusion.logit_shift: True` (it means False)"),
        ("qwen3", BLOCKS, {**WIDE, "attention_bias": True}, "sdar", "`attention_bias: True` (it means False)"),
        ("qwen3", BLOCKS, {**WIDE, "hidden_act": "gelu"}, "sdar", "`hidden_act: gelu`"),
        ("qwen3_moe", BLOCKS, {**WIDE, "mlp_only_layers": [1]}, "sdar", "`mlp_only_layers: [1]`"),
        ("qwen2", {"logit_shift": True, "vocabulary_size": 39, "mask_token_id": 38}, {"pad_token_id": 5}, "dream",
         "`diffusion.vocabulary_size: 39`"),
    ],
)  # fmt: skip
def test_what_the_format_cannot_say_is_refused_by_name(
    tmp_path: Path, family: str, entry: dict[str, Any], network: dict[str, Any], name: str, named: str
) -> None:
    assert named in refusal(trained(family, entry, **network), tmp_path, name)


def test_a_model_trained_here_is_written_and_read_back(tmp_path: Path) -> None:
    backbone = Backbone(stock("llama"), DiffusionConfig(method="autoregressive", vocabulary_size=40))
    checkpoint = adapted(Checkpoint(backbone, None), ObjectiveSettings(method="masked_diffusion"))
    network = checkpoint.backbone.network
    network.config.eos_token_id, network.config.pad_token_id = [2, 3], 2
    save_published(checkpoint, tmp_path, FORMATS["llada"])
    again = load(tmp_path, device="cpu")
    assert dataclasses.replace(again.backbone.diffusion, schedule_power=2.0) == checkpoint.backbone.diffusion
    assert again.backbone.network.config.eos_token_id == [2, 3]
    pairs = zip(again.backbone.network.parameters(), network.parameters(), strict=True)
    assert all(one.equal(other) for one, other in pairs)


def test_the_docs_name_every_key_that_is_refused() -> None:
    page = (Path(__file__).parents[3] / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    for one in FORMATS.values():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| {one.title} |")]
        assert set(row.split("`")[1::2]) == set(one.refused)
