"""LLaDA's published checkpoints as stock Llama networks: equal to its network written out, and guarded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.published import tiny
from tests.references import published as reference
from tests.references.llada import fixed_length
from unmask import DiffusionLM, SamplingParams
from unmask.errors import CheckpointError
from unmask.models.loading import load, outline, parameter_counts
from unmask.models.source import read_source
from unmask.settings.model import DiffusionConfig

IDS = [3, tiny.MASK, 5, tiny.MASK, 9, 11, 2]


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(folder, device="cpu")
    return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = tiny.llada()
    return tiny.write(tmp_path / "llada", config, tiny.random_tensors(config))


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_kv_heads": 4},
        {"n_kv_heads": None},
        {"weight_tying": True},
        {"mlp_hidden_size": None, "mlp_ratio": 2},
        {"rope_theta": 10000.0, "rms_norm_eps": 1e-2},
    ],
    ids=["grouped", "full heads", "heads by default", "tied", "ratio", "other constants"],
)
def test_logits_equal_the_published_network(tmp_path: Path, changes: dict[str, Any], shards: int) -> None:
    config = tiny.llada(**changes)
    said = {**config, "n_kv_heads": config["n_kv_heads"] or 4, "mlp_hidden_size": config["mlp_hidden_size"] or 64}
    tensors = tiny.random_tensors(said)
    lm = DiffusionLM.from_pretrained(tiny.write(tmp_path, config, tensors, shards=shards), device="cpu")
    logits_LV = lm.logits([IDS])[0]
    assert type(lm.backbone.network).__name__ == "LlamaForCausalLM" and logits_LV.dtype == torch.float64
    allowed_V = torch.arange(tiny.ROWS) != tiny.MASK
    expected_LV = reference.llada_logits(tensors, said, IDS)
    assert (logits_LV - expected_LV)[:, allowed_V].abs().max() < 1e-10
    assert logits_LV[:, tiny.MASK].isinf().all()


def test_the_entry_says_what_the_original_means(folder: Path) -> None:
    lm = DiffusionLM.from_pretrained(folder, device="cpu")
    assert lm.backbone.diffusion == DiffusionConfig(
        method="masked_diffusion", vocabulary_size=tiny.ROWS, mask_token_id=tiny.MASK
    )
    assert set(lm.codec.end_ids()) == {tiny.END} and lm.resolved(SamplingParams()).decoding == "canvas"


def test_generation_equals_the_published_sampler_on_the_published_network(folder: Path) -> None:
    config, tensors = tiny.llada(), tiny.random_tensors(tiny.llada())
    prompt = [3, 1, 4]
    params = SamplingParams(max_new_tokens=6, denoising_steps=3, ignore_eos=True)
    (found,) = DiffusionLM.from_pretrained(folder, device="cpu").generate(prompt, params)
    expected = fixed_length(
        lambda canvas: reference.llada_logits(tensors, config, canvas), prompt, 6, 3, 6, tiny.MASK, excluded=[tiny.MASK]
    )
    assert list(found.token_ids) == expected.canvas[3:] and found.forwards == expected.forwards


def test_the_published_8b_configuration_is_the_table_of_its_stock_network(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny.LLADA_8B), encoding="utf-8")
    config = read_source(tmp_path).config
    expected = {
        "model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 32,
        "num_hidden_layers": 32, "intermediate_size": 12288, "vocab_size": 126464, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096, "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False,
        "hidden_act": "silu", "head_dim": 128, "dtype": torch.bfloat16, "eos_token_id": [126081, 126348],
        "pad_token_id": 126081, "bos_token_id": None, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
    }  # fmt: skip
    assert {name: getattr(config, name) for name in expected} == expected
    checkpoint = outline(tmp_path)
    # The paper's 8.02 billion, 6.98 of them without embeddings.
    assert parameter_counts(checkpoint.backbone.network) == (8_015_581_184, 6_979_588_096)
    assert checkpoint.backbone.diffusion == DiffusionConfig(
        method="masked_diffusion", vocabulary_size=126464, mask_token_id=126336
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block_type", "sequential"),
        ("block_type", "parallel"),
        ("alibi", True),
        ("include_bias", True),
        ("include_qkv_bias", True),
        ("bias_for_layer_norm", True),
        ("layer_norm_type", "default"),
        ("layer_norm_type", "gemma_rms"),
        ("layer_norm_with_affine", False),
        ("input_emb_norm", True),
        ("scale_logits", True),
        ("attention_layer_norm", True),
        ("multi_query_attention", True),
        ("activation_type", "swiglu"),
        ("activation_type", "gelu"),
        ("block_group_size", 4),
        ("rope", False),
        ("clip_qkv", 8.0),
        ("num_experts", 64),
        ("quantization_config", {"quant_method": "bitsandbytes"}),
        ("rope_parameters", {"rope_theta": 1.0}),
    ],
)
def test_a_variant_that_the_table_does_not_cover_is_refused_by_name(folder: Path, key: str, value: Any) -> None:
    (folder / "config.json").write_text(json.dumps(tiny.llada(**{key: value})), encoding="utf-8")
    message = refusal(folder)
    assert f"`{key}: {value}`" in message and str(folder) in message and "only" in message


@pytest.mark.parametrize("key", ["block_type", "layer_norm_type", "rope", "activation_type"])
def test_an_absent_key_means_the_default_of_the_originals_class(folder: Path, key: str) -> None:
    config = tiny.llada()
    del config[key]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert f"`{key}: " in refusal(folder)


def test_absent_sizes_take_the_defaults_of_the_originals_class(tmp_path: Path) -> None:
    kept = ("block_type", "layer_norm_type", "rope", "activation_type", "model_type", "mask_token_id")
    config = {key: tiny.LLADA_8B[key] for key in kept} | {"mask_token_id": 50000}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    config = read_source(tmp_path).config
    expected = (768, 12, 12, 12, 3072, 50304, 1024, True)
    names = ("hidden_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers", "intermediate_size",
             "vocab_size", "max_position_embeddings", "tie_word_embeddings")  # fmt: skip
    assert tuple(getattr(config, name) for name in names) == expected
    assert config.rope_parameters["rope_theta"] == 10000.0 and config.rms_norm_eps == 1e-5


@pytest.mark.parametrize("changes", [{"mask_token_id": None}, {"mask_token_id": tiny.END}, {"mask_token_id": "m"}])
def test_a_mask_token_that_is_none_of_its_own_is_refused(folder: Path, changes: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(tiny.llada(**changes)), encoding="utf-8")
    assert f"mask token id {changes['mask_token_id']}" in refusal(folder)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "llada2_moe", "architectures": ["LLaDA2MoeModelLM"]}, "LLaDA2.x model (LLaDA2MoeModelLM"),
        ({"model_type": "llada2_moe", "architectures": None}, "Glm4MoeForCausalLM of transformers has its network"),
        ({"architectures": ["LLaDAMoEModelLM"]}, "LLaDA-MoE model (LLaDAMoEModelLM, model type `llada`)"),
        ({"architectures": ["LLaDAMoEModelLM"]}, "Qwen3MoeForCausalLM of transformers has its network"),
    ],
)
def test_relatives_with_other_networks_are_refused_by_name(folder: Path, changes: dict[str, Any], named: str) -> None:
    (folder / "config.json").write_text(json.dumps(tiny.llada(**changes)), encoding="utf-8")
    assert named in refusal(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"d_model": "32"},
        {"d_model": 30},
        {"n_heads": 0},
        {"vocab_size": None},
        {"rope_theta": None},
        {"mlp_hidden_size": None, "mlp_ratio": None},
    ],
)
def test_a_contradictory_configuration_is_refused(folder: Path, changes: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(tiny.llada(**changes)), encoding="utf-8")
    assert "contradicts itself" in refusal(folder)


def test_rows_beyond_the_vocabulary_are_never_predicted(tmp_path: Path) -> None:
    config = tiny.llada(vocab_size=38)
    lm = DiffusionLM.from_pretrained(tiny.write(tmp_path, config, tiny.random_tensors(config)), device="cpu")
    assert lm.logits([IDS])[0, 0].isinf().nonzero()[:, 0].tolist() == [37, 38, 39]
    assert lm.backbone.num_predictable == 37


def test_a_mask_token_beyond_the_vocabulary_belongs_to_it(tmp_path: Path) -> None:
    config = tiny.llada(vocab_size=36)
    lm = DiffusionLM.from_pretrained(tiny.write(tmp_path, config, tiny.random_tensors(config)), device="cpu")
    assert lm.backbone.diffusion.vocabulary_size == 38 and lm.backbone.num_predictable == 37


def test_stop_ids_of_the_generation_config_count_too(folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, tiny.END]}), encoding="utf-8")
    assert set(DiffusionLM.from_pretrained(folder, device="cpu").codec.end_ids()) == {7, tiny.END}


# --- strict on the way in ---------------------------------------------------------------------------------------------

TENSOR = "model.transformer.blocks.1.ff_proj.weight"


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("name", [TENSOR, "model.transformer.ff_out.weight", "model.transformer.ln_f.weight"])
def test_a_missing_tensor_is_named_as_the_files_name_it(tmp_path: Path, name: str, shards: int) -> None:
    tensors = tiny.random_tensors(tiny.llada())
    del tensors[name]
    assert f"missing_keys: {name}." in refusal(tiny.write(tmp_path, tiny.llada(), tensors, shards=shards))


@pytest.mark.parametrize(
    "name", ["model.transformer.blocks.0.q_proj.bias", "model.transformer.blocks.2.up_proj.weight"]
)
def test_an_unexpected_tensor_is_named(tmp_path: Path, name: str) -> None:
    tensors = tiny.random_tensors(tiny.llada()) | {name: torch.ones(32)}
    assert "unexpected_keys: " in (message := refusal(tiny.write(tmp_path, tiny.llada(), tensors)))
    assert name in message


def test_a_tensor_of_another_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    tensors = tiny.random_tensors(tiny.llada()) | {TENSOR: torch.ones(7, 32)}
    message = refusal(tiny.write(tmp_path, tiny.llada(), tensors))
    assert TENSOR in message and "(7, 32)" in message and "(48, 32)" in message


@pytest.mark.parametrize("left", [0, 4, 1000, 30000])
def test_a_truncated_shard_is_named(tmp_path: Path, left: int) -> None:
    folder = tiny.write(tmp_path, tiny.llada(), tiny.random_tensors(tiny.llada()), shards=2)
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:left])
    assert shard.name in refusal(folder)


def test_a_missing_shard_and_a_broken_promise_of_the_index_are_named(tmp_path: Path) -> None:
    folder = tiny.write(tmp_path, tiny.llada(), tiny.random_tensors(tiny.llada()), shards=2)
    index = folder / "model.safetensors.index.json"
    said = json.loads(index.read_text(encoding="utf-8"))
    said["weight_map"]["model.transformer.extra"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(said), encoding="utf-8")
    assert "model.transformer.extra (model-00001-of-00002.safetensors)" in refusal(folder)
    (folder / "model-00001-of-00002.safetensors").unlink()
    assert "model-00001-of-00002.safetensors" in refusal(folder)


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").touch()
    assert "pickled weights (pytorch_model.bin)" in refusal(folder)


# --- how it is read ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["auto", "float32", torch.bfloat16])
def test_the_type_is_the_files_or_the_one_asked_for(folder: Path, dtype: Any) -> None:
    network = load(folder, device="cpu", dtype=dtype).backbone.network
    expected = {"auto": torch.float64, "float32": torch.float32}.get(dtype, dtype)
    assert {parameter.dtype for parameter in network.parameters()} == {expected} and network.config.dtype == expected


def test_without_a_type_in_the_configuration_the_files_headers_decide(folder: Path) -> None:
    config = tiny.llada()
    del config["torch_dtype"]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert load(folder, device="cpu").backbone.network.dtype == torch.float64


@pytest.mark.parametrize("placed", ["cpu", {"": "cpu"}, "auto"])
def test_a_device_map_is_obeyed(folder: Path, placed: Any) -> None:
    mapped, plain = load(folder, device_map=placed), load(folder, device="cpu")
    pairs = zip(mapped.backbone.network.parameters(), plain.backbone.network.parameters(), strict=True)
    assert all(one.device.type == "cpu" and one.equal(other) for one, other in pairs)


def test_tensors_are_handed_over_unread(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`from_pretrained` gets slices of the files: no second copy of the weights ever exists."""
    from transformers import LlamaForCausalLM

    given: dict[str, Any] = {}
    plain = LlamaForCausalLM.from_pretrained.__func__  # type: ignore[attr-defined]

    def spy(cls: type, *args: Any, **kwargs: Any) -> Any:
        given.update(kwargs["state_dict"])
        return plain(cls, *args, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", classmethod(spy))
    load(folder, device="cpu")
    assert len(given) == len(tiny.random_tensors(tiny.llada()))
    assert not any(isinstance(value, torch.Tensor) for value in given.values())
