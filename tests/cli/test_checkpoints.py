"""`unmask convert` and `unmask info`, as their users run them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.models.published import tiny
from tests.models.tiny import BORDER, VOCABULARY, random_ids, stock
from tests.training import recipes
from unmask import DiffusionLM
from unmask.cli.main import main
from unmask.models.adapters import attach
from unmask.models.loading import load, save
from unmask.models.tokenizers import byte_tokenizer
from unmask.settings.adapter import AdapterSettings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = tiny.llada()
    return tiny.write(tmp_path / "llada", config, tiny.random_tensors(config), shards=2)


def failed(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main([str(word) for word in words]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "Traceback" not in captured.err
    (line,) = [line for line in captured.err.splitlines() if line.startswith("unmask")]
    return line


def test_there_and_back(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours, back = tmp_path / "new" / "ours", tmp_path / "back"
    assert main(["convert", str(folder), str(ours), "--max-shard-size", "50KB"]) == 0
    assert main(["convert", str(ours), str(back), "--to", "llada"]) == 0
    assert capsys.readouterr().out.split() == [str(ours), str(back)], "stdout is for data"
    assert json.loads((ours / "config.json").read_text())["model_type"] == "llama"
    assert len(list(ours.glob("*.safetensors"))) > 2
    tensors = tiny.random_tensors(tiny.llada())
    written = load_file(back / "model.safetensors")
    assert written.keys() == tensors.keys() and all(written[name].equal(value) for name, value in tensors.items())
    assert not list(tmp_path.glob(".partial-*")) and not list((tmp_path / "new").glob(".partial-*"))


@pytest.mark.parametrize("make", [tiny.sdar, tiny.sdar_moe], ids=["dense", "experts"])
def test_to_sdar_chooses_by_the_network_and_brings_the_code(
    tmp_path: Path, make: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make(**tiny.SDAR_IDS)
    theirs = tiny.write(tmp_path / "theirs", config, tiny.random_tensors(config))
    code = tmp_path / "code"
    code.mkdir()
    kind = config["model_type"]
    for name in (f"configuration_{kind}.py", f"modeling_{kind}.py"):
        (code / name).write_text(f"# {name}", encoding="utf-8")
    ours, back = tmp_path / "ours", tmp_path / "back"
    assert main(["convert", str(theirs), str(ours)]) == 0
    assert main(["convert", str(ours), str(back), "--to", "sdar", "--remote-code", str(code)]) == 0
    capsys.readouterr()
    assert json.loads((back / "config.json").read_text()) == config
    assert {file.name for file in back.glob("*.py")} == {file.name for file in code.iterdir()}
    written, tensors = load_file(back / "model.safetensors"), tiny.random_tensors(config)
    assert written.keys() == tensors.keys() and all(written[name].equal(value) for name, value in tensors.items())
    assert main(["info", str(back)]) == 0
    table = capsys.readouterr().out
    assert "block_diffusion, schedule linear, mask 151669, blocks of 4" in table and "PROBLEM" not in table
    assert f"{'SDAR' if kind == 'sdar' else 'SDAR-MoE'}, opens as " in table


def test_a_type_is_chosen(folder: Path, tmp_path: Path) -> None:
    assert main(["convert", str(folder), str(tmp_path / "out"), "--dtype", "bfloat16"]) == 0
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {value.dtype for value in tensors.values()} == {torch.bfloat16}
    expected = tiny.random_tensors(tiny.llada())["model.transformer.wte.weight"].bfloat16()
    assert tensors["model.embed_tokens.weight"].equal(expected)
    assert load(tmp_path / "out", device="cpu").backbone.network.dtype == torch.bfloat16


def test_mistakes_are_one_clear_line_and_leave_nothing_behind(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    cases = [
        (["convert", folder, out, "--to", "dream"], "holds qwen2 networks, and this one is a llama"),
        (
            ["convert", folder, out, "--to", "laada"],
            "unmask, tidar, llada, dream, sdar, got `laada`. Did you mean",
        ),
        (["convert", folder, out, "--to", "sdar"], "holds qwen3 and qwen3_moe networks, and this one is a llama"),
        (["convert", folder, out, "--to", "llada", "--remote-code", tmp_path / "gone"], "must be a folder"),
        (["convert", folder, out, "--to", "llada", "--remote-code", folder], "has no modeling_llada.py"),
        (["convert", folder, out, "--remote-code", folder], "goes with --to llada, dream, sdar"),
        (["convert", folder, out, "--dtype", "half"], "got `half`"),
        (["convert", folder, out, "--max-shard-size", "big"], "got `big`"),
        (["convert", folder, folder], "exists already"),
        (["convert", tmp_path / "gone", out], "There is no folder"),
        (["convert", folder], "the following arguments are required: OUT"),
        (["info", tmp_path / "gone"], "There is no folder"),
        (["info", tmp_path], "There is no model in"),
    ]
    for words, message in cases:
        assert message in failed(capsys, *words), words
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:4000])
    assert shard.name in failed(capsys, "convert", folder, out)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["llada"]


def test_info_is_a_table_or_one_json_object(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(folder)]) == 0
    table = capsys.readouterr().out
    for text in (
        "LLaDA, opens as LlamaForCausalLM",
        "masked_diffusion, schedule linear, mask 37",
        "18,080 (15,520 without embeddings)",
        "2 layers of 32, MLP 48, 4 heads of 8 over 2 for keys and values",
        "64 tokens, rotary base 500,000",
        "40 ids in 40 rows, untied",
        "141.2 KiB in 2 files, float64",
        "full AdamW  282.5 KiB in fp32",
        "canvas, temperature 0.0, top_p 1.0",
        "canvas_mode fixed_length, unmasking low_confidence_static",
    ):
        assert text in table
    assert "PROBLEM" not in table
    assert main(["info", str(folder), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["parameters"] == 18_080 and record["stored"]["files"] == 2
    (folder / "model-00001-of-00002.safetensors").unlink()
    assert main(["info", str(folder)]) == 0
    assert "PROBLEM     " in capsys.readouterr().out


def test_info_of_a_run_tells_its_checkpoints(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    for step in (2, 10):
        shutil.copytree(folder, run / "checkpoints" / f"step-{step}")
    (run / "config.yaml").touch()
    (run / "best").symlink_to("checkpoints/step-2")
    (run / "latest").symlink_to("checkpoints/step-10")
    assert main(["info", str(run)]) == 0
    table = capsys.readouterr().out
    assert table.splitlines()[0] == str(run / "best")
    assert "step-2, step-10; best step-2, latest step-10" in table


def test_a_published_checkpoint_is_trained_on_and_goes_back(tmp_path: Path) -> None:
    config = tiny.llada(embedding_size=264, vocab_size=264, mask_token_id=258)
    theirs = tiny.write(tmp_path / "theirs", config, tiny.random_tensors(config))
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "<|mdm_mask|>"})
    tokenizer.save_pretrained(theirs)
    recipes.write_text(tmp_path)
    recipe = recipes.tree(tmp_path, steps=2) | {"model": {"from_pretrained": str(theirs), "dtype": "float64"}}
    del recipe["data"]["tokenizer"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert main(["train", str(tmp_path / "recipe.yaml")]) == 0
    assert main(["convert", str(tmp_path / "tiny"), str(tmp_path / "back"), "--to", "llada"]) == 0
    before, after = (load_file(one / "model.safetensors") for one in (theirs, tmp_path / "back"))
    assert before.keys() == after.keys() and not any(value.equal(after[name]) for name, value in before.items())
    written = json.loads((tmp_path / "back" / "config.json").read_text(encoding="utf-8"))
    assert written | {"auto_map": config["auto_map"]} == config


def test_an_adapter_is_merged_before_it_is_converted(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = load(folder, device="cpu")
    attach(checkpoint.backbone, AdapterSettings(rank=4), base=str(folder), seed=0)
    save(checkpoint, tmp_path / "adapter")
    assert "unmask merge" in failed(capsys, "convert", tmp_path / "adapter", tmp_path / "out", "--to", "llada")
    assert main(["info", str(tmp_path / "adapter")]) == 0
    assert "LoRA of rank 4 on down_proj, gate_proj, k_proj" in capsys.readouterr().out


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
def test_to_tidar_keeps_every_prediction_and_adds_a_mask_token(
    tmp_path: Path, family: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stock(family, tie_word_embeddings=family == "qwen3").save_pretrained(tmp_path / "ar")
    assert main(["convert", str(tmp_path / "ar"), str(tmp_path / "tidar"), "--to", "tidar"]) == 0
    assert main(["convert", str(tmp_path / "tidar"), str(tmp_path / "b4"), "--to", "tidar", "--block-length", "4"]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "tidar"), str(tmp_path / "b4")]
    entries = [load(tmp_path / name, device="cpu").backbone.diffusion for name in ("tidar", "b4")]
    assert [(one.method, one.block_length, one.mask_token_id) for one in entries] == [
        ("tidar", 8, VOCABULARY),
        ("tidar", 4, VOCABULARY),
    ]
    ids = random_ids(2, 9)
    with torch.no_grad():
        expected_BLV = stock(family, tie_word_embeddings=family == "qwen3")(ids).logits
    found_BLV = DiffusionLM.from_pretrained(tmp_path / "b4", device="cpu").logits(ids)
    assert (found_BLV[..., :VOCABULARY] - expected_BLV).abs().max() < BORDER
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "b4", dtype=torch.float64)
    with torch.no_grad():
        assert (opened(ids).logits[..., :VOCABULARY] - expected_BLV).abs().max() < BORDER


def test_only_what_predicts_next_tokens_becomes_tidar(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("convert", folder, tmp_path / "out")
    assert "was trained by masked_diffusion and does not predict" in failed(capsys, *words, "--to", "tidar")
    assert "--block-length goes with --to tidar" in failed(capsys, *words, "--block-length", 4)
    assert "block_length must be at least 1, got 0" in failed(capsys, *words, "--to", "tidar", "--block-length", 0)
    assert "--remote-code goes with" in failed(capsys, *words, "--to", "tidar", "--remote-code", tmp_path)
    assert not (tmp_path / "out").exists()
