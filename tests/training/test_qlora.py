"""QLoRA runs: an adapter learns over 4-bit weights, resumes bit for bit, and is used and merged like any other."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training import recipes
from unmask import config
from unmask.cli.main import main
from unmask.errors import SettingsError
from unmask.lm import DiffusionLM
from unmask.models.loading import create, save
from unmask.models.quantization import is_quantized
from unmask.models.tokenizers import byte_tokenizer
from unmask.settings.recipe import Recipe
from unmask.training.run import dry_run, train


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A text, and a checkpoint with matrices of at least one block of 64."""
    recipes.write_text(tmp_path)
    shape = config.from_tree(Recipe, recipes.tree(tmp_path)).model
    shape = dataclasses.replace(shape, hidden_size=64, intermediate_size=128, dtype="bfloat16")
    save(create(shape, byte_tokenizer(), seed=3), tmp_path / "base")
    return tmp_path


def recipe(folder: Path, *, dtype: str = "float32", **training: Any) -> Recipe:
    whole = recipes.tree(folder, **training)
    whole["model"] = {"from_pretrained": str(folder / "base"), "dtype": dtype}
    del whole["data"]["tokenizer"]
    return config.from_tree(Recipe, whole | {"adapter": {"rank": 4, "quantization": "nf4", "dropout": 0.1}})


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        ("float32", {"gradient_checkpointing": True, "ema_decay": 0.9}),
        ("bfloat16", {"precision": "bf16", "recompute_elementwise": True}),
    ],
)
def test_n_and_n_steps_resumed_equal_2n_steps_bit_for_bit(folder: Path, dtype: str, options: dict[str, Any]) -> None:
    whole, resumed = recipes.whole_and_resumed(recipe(folder, dtype=dtype, **options))
    keys = ("train/loss", "train/grad_norm", "eval/bits_per_byte")
    for file in ("adapter_model.safetensors", "training/optimizer.safetensors"):
        recipes.assert_same(resumed, whole, *keys, file=file)
    scores = recipes.records(whole, "eval/bits_per_byte")
    assert scores[1][1] < scores[0][1]


def test_a_run_is_evaluated_decoded_and_merged_by_the_command_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = train(recipe(folder)).run, folder / "merged"
    lm = DiffusionLM.from_pretrained(run.root)
    assert is_quantized(lm.backbone.network) and lm.backbone.network.dtype == torch.float32
    assert main(["evaluate", str(run.root)]) == 0
    assert main(["generate", str(run.root), "the cat", "--max-new-tokens", "5"]) == 0
    capsys.readouterr()
    assert main(["merge", str(run.root), str(out)]) == 0
    captured = capsys.readouterr()
    assert captured.out.strip() == str(out)
    assert f"merged into the whole weights of {folder / 'base'}" in captured.err
    merged = DiffusionLM.from_pretrained(out)
    assert not is_quantized(merged.backbone.network) and merged.backbone.network.dtype == torch.bfloat16
    assert merged.backbone.diffusion == lm.backbone.diffusion


def test_a_dry_run_tells_the_bits_and_the_memory(folder: Path) -> None:
    lines = list(dry_run(recipe(folder)))
    assert any("the others are frozen" in line and "in 4 bits" in line for line in lines)
    plain = recipe(folder)
    plain = dataclasses.replace(plain, adapter=dataclasses.replace(plain.adapter, quantization=None))
    counts = [line.partition(" parameters")[0] for line in lines if "without embeddings" in line]
    assert counts == [line.partition(" parameters")[0] for line in dry_run(plain) if "without embeddings" in line]


def test_a_resume_without_the_four_bits_is_refused(folder: Path) -> None:
    train(recipe(folder))
    plain = recipe(folder)
    plain = dataclasses.replace(plain, adapter=dataclasses.replace(plain.adapter, quantization=None))
    with pytest.raises(SettingsError, match=r"adapter\.quantization: nf4 -> None"):
        train(plain, resume="auto")
