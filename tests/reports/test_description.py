"""What `describe` tells of a checkpoint, and that it reads no value of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.models.published import tiny
from tests.models.test_files import truncate_after_headers
from tests.models.tiny import FAMILY_NAMES, stock
from unmask import DiffusionLM, SamplingParams
from unmask.errors import CheckpointError
from unmask.models.adapters import attach
from unmask.models.backbone import Backbone
from unmask.models.loading import Checkpoint, load, parameter_counts, save
from unmask.models.tokenizers import byte_tokenizer
from unmask.reports.description import LORA_RANK, describe
from unmask.settings.adapter import AdapterSettings
from unmask.settings.model import DiffusionConfig


@pytest.fixture(params=["llada", "dream"])
def published(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    config = tiny.llada() if request.param == "llada" else tiny.dream()
    return tiny.write(tmp_path / request.param, config, tiny.random_tensors(config), shards=2)


def test_it_says_what_loading_would_find(published: Path) -> None:
    record, lm = describe(published), DiffusionLM.from_pretrained(published, device="cpu")
    config, entry = lm.backbone.network.config, lm.backbone.diffusion
    total, body = parameter_counts(lm.backbone.network)
    assert (record["parameters"], record["parameters_without_embeddings"]) == (total, body)
    assert record["format"] == {"llama": "LLaDA", "qwen2": "Dream"}[config.model_type]
    assert record["network"] == type(lm.backbone.network).__name__
    for key in ("hidden_size", "intermediate_size"):
        assert record[key] == getattr(config, key)
    assert (record["layers"], record["attention_heads"], record["key_value_heads"], record["head_dim"]) == (2, 4, 2, 8)
    for key in ("method", "mask_token_id", "vocabulary_size", "block_length", "logit_shift", "schedule"):
        assert record[key] == getattr(entry, key)
    assert record["context_length"] == 64 and record["stop_token_ids"] == [tiny.END]
    resolved = dataclasses.asdict(lm.resolved(SamplingParams()))
    assert record["decoding"].items() <= resolved.items() and record["decoding"]["decoding"] == "canvas"
    assert record["decoding"]["temperature"] == 0.0
    assert record["stored"] == {"dtypes": {"float64": total}, "bytes": 8 * total, "files": 2}
    assert record["problems"] == [] and record["run"] is None and record["tokenizer"] is None


def test_no_value_is_read(published: Path) -> None:
    whole = describe(published)
    truncate_after_headers(published)
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load(published, device="cpu")
    cut = describe(published)
    assert [problem.split()[0] for problem in cut["problems"]] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    assert {**cut, "problems": []} == whole


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_every_family_is_described_whole(tmp_path: Path, family: str, tied: bool) -> None:
    network = stock(family, vocab_size=264, tie_word_embeddings=tied)
    entry = DiffusionConfig(method="masked_diffusion", vocabulary_size=259, mask_token_id=258, schedule="cosine")
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "<|mask|>"})
    save(Checkpoint(Backbone(network, entry), tokenizer), tmp_path)
    record = describe(tmp_path)
    total, body = parameter_counts(network)
    assert (record["parameters"], record["parameters_without_embeddings"], record["problems"]) == (total, body, [])
    assert record["format"] == "Unmask" and record["family"] == family and record["tied_embeddings"] is tied
    assert (record["mask_token"], record["vocabulary_size"], record["embedding_rows"]) == ("<|mask|>", 259, 264)
    assert record["stored"]["dtypes"] == {"float64": total}


def test_a_stock_checkpoint_and_its_generation_config_are_described(tmp_path: Path) -> None:
    network = stock("llama")
    network.generation_config.eos_token_id = [3, 4]
    network.save_pretrained(tmp_path)
    record = describe(tmp_path)
    assert record["format"] == "transformers" and record["method"] == "autoregressive"
    assert {3, 4} <= set(record["stop_token_ids"]) and record["mask_token_id"] is None
    assert record["decoding"]["decoding"] == "autoregressive"


def test_memory_follows_from_the_sizes(tmp_path: Path) -> None:
    config = tiny.llada()
    record = describe(tiny.write(tmp_path, config, tiny.random_tensors(config)))
    # Per layer: q and o 32 x 32, k and v 32 x 16, three 32 x 48; beside them two embeddings of 40 x 32 and five norms.
    linear = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)
    other = 2 * 40 * 32 + 5 * 32
    assert record["parameters"] == linear + other
    adapter = LORA_RANK * 2 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 48))
    total, nf4 = linear + other, round(linear * (0.5 + 1 / 64 + 1 / 4096)) + 2 * other
    assert record["weights_memory"] == {"float32": 4 * total, "bfloat16": 2 * total, "nf4": nf4}
    assert record["training_memory"] == {
        "adamw_float32": 16 * total,
        "adamw_bfloat16": 8 * total,
        "lora_bfloat16": 2 * total + 16 * adapter,
        "lora_nf4": nf4 + 16 * adapter,
    }


def test_files_that_do_not_hold_the_network_are_a_problem(tmp_path: Path) -> None:
    config = tiny.llada()
    tiny.write(tmp_path, config, tiny.random_tensors(config))
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.transformer.ln_f.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    total = describe(tmp_path)["parameters"]
    assert describe(tmp_path)["problems"] == [f"the files hold {total - 32:,} numbers, and the network has {total:,}"]
    (tmp_path / "model.safetensors").unlink()
    record = describe(tmp_path)
    assert record["stored"] is None and "no model.safetensors" in record["problems"][0]


def test_a_tied_head_that_is_stored_as_well_is_no_problem(tmp_path: Path) -> None:
    network = stock("llama", tie_word_embeddings=True)
    network.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert describe(tmp_path)["problems"] == []


def test_an_adapter_is_described_with_its_base(published: Path, tmp_path: Path) -> None:
    checkpoint = load(published, device="cpu")
    attach(checkpoint.backbone, AdapterSettings(rank=4), base=str(published), seed=0)
    save(checkpoint, tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    record, base = describe(tmp_path / "adapter"), describe(published)
    assert record["adapter"]["rank"] == 4 and record["adapter"]["base"] == str(published)
    assert "q_proj" in record["adapter"]["targets"] and record["adapter"]["quantization"] is None
    assert {**record, "model": base["model"], "adapter": None} == base
