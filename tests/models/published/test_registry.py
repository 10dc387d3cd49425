"""What is refused by name: published formats without a table, and other networks under a stock model type."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from tests.models.tiny import stock
from unmask.errors import CheckpointError
from unmask.models.loading import load
from unmask.models.published.registry import FORMATS, NOT_COVERED, NotCovered, published_format


@pytest.mark.parametrize("one", NOT_COVERED, ids=[one.title for one in NOT_COVERED])
def test_a_format_without_a_table_is_known_by_its_class_or_its_type(one: NotCovered) -> None:
    for architecture in one.architectures:
        for model_type in (*one.model_types, "llama", "qwen2", "llada", None):
            with pytest.raises(CheckpointError, match=f"is a {one.title} model"):
                published_format({"model_type": model_type, "architectures": ["X", architecture]}, "it")
    for model_type in one.model_types:
        with pytest.raises(CheckpointError, match="does not open yet"):
            published_format({"model_type": model_type}, "it")


def test_the_named_stock_classes_exist() -> None:
    for one in NOT_COVERED:
        named = [word for word in one.stock.split() if word.endswith("ForCausalLM")]
        assert all(hasattr(transformers, name) for name in named), one.stock
        assert named or one.stock.startswith("The class of the same family")


def test_the_stock_class_of_llada2_has_its_parts() -> None:
    """Sigmoid routing in groups with a bias for each expert, a shared one, a dense first layer, half-rotary heads."""
    config = transformers.Glm4MoeConfig(
        hidden_size=16,
        intermediate_size=24,
        moe_intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        n_routed_experts=4,
        n_shared_experts=1,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        first_k_dense_replace=1,
        routed_scaling_factor=2.5,
        use_qk_norm=True,
        vocab_size=32,
        rope_parameters={"rope_type": "default", "rope_theta": 600000.0, "partial_rotary_factor": 0.5},
    )
    with torch.device("meta"):
        names = set(transformers.Glm4MoeForCausalLM(config).state_dict())
    assert "model.layers.0.mlp.gate_proj.weight" in names  # the dense layer
    for part in ("mlp.gate.e_score_correction_bias", "mlp.shared_experts.up_proj.weight", "self_attn.q_norm.weight"):
        assert f"model.layers.1.{part}" in names


def test_what_opens_is_refused_by_no_entry() -> None:
    for form in FORMATS.values():
        raw = {"model_type": form.model_type, "architectures": list(form.architectures)}
        assert published_format(raw, "it") is form


def edit(folder: Path, **fields: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | fields), "utf-8")


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "qwen3_moe"])
def test_the_stock_class_or_none_opens(tmp_path: Path, family: str) -> None:
    network = stock(family, dtype=torch.float32)
    network.save_pretrained(tmp_path)
    for architectures in ([type(network).__name__], [], None):
        edit(tmp_path, architectures=architectures, auto_map={"AutoTokenizer": ["tokenization_x.X", None]})
        assert load(tmp_path, device="cpu").backbone.diffusion.method == "autoregressive"
    edit(tmp_path, architectures=[type(network).__name__, "Other"])
    with pytest.raises(CheckpointError, match="is a Other under the model type"):
        load(tmp_path, device="cpu")


def test_pickled_weights_are_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stock("llama", dtype=torch.float32).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    monkeypatch.setattr(torch, "load", None)
    load(tmp_path, device="cpu")  # the safetensors file beside it is opened
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="which Unmask does not open"):
        load(tmp_path, device="cpu")


def test_the_command_that_converts_pickled_weights_does(tmp_path: Path) -> None:
    stock("llama", dtype=torch.float32).save_pretrained(tmp_path / "in")
    wanted = load_file(tmp_path / "in" / "model.safetensors")
    torch.save(wanted, tmp_path / "in" / "pytorch_model.bin")
    (tmp_path / "in" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "in", device="cpu")
    code = str(caught.value).partition('python -c "')[2].removesuffix('"').replace("'OUT'", repr(str(tmp_path / "out")))
    exec(code.partition("; T.from")[0].replace(", AutoTokenizer as T", ""))  # this model has no tokenizer
    found = load(tmp_path / "out", device="cpu").backbone.network.state_dict()
    assert all(found[name].equal(one) for name, one in wanted.items())


def test_the_command_that_converts_an_adapters_pickle_does(tmp_path: Path) -> None:
    from unmask.models.headers import WEIGHTS_FILE, refuse_missing

    tensors = {"a": torch.arange(6.0).view(2, 3).t()}
    torch.save(tensors, tmp_path / "adapter_model.bin")
    with pytest.raises(CheckpointError) as caught:
        refuse_missing(tmp_path, WEIGHTS_FILE)
    exec(str(caught.value).partition('python -c "')[2].removesuffix('"'))
    assert load_file(tmp_path / WEIGHTS_FILE)["a"].equal(tensors["a"])
