"""What is saved is what was measured: a run's checkpoints, opened again, score what its metrics say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from tests.training import recipes
from unmask import DiffusionLM, config
from unmask.cli.evaluate_text import evaluated
from unmask.cli.main import main
from unmask.models import loading
from unmask.models.adapters import merged
from unmask.models.loading import Checkpoint
from unmask.models.tokenizers import byte_tokenizer
from unmask.runs import RunFolder
from unmask.settings.model import ModelSettings
from unmask.settings.recipe import Recipe
from unmask.training.optim import WeightAverage

METHODS = ("autoregressive", "masked_diffusion", "block_diffusion", "tidar")
EMA = {"ema_decay": 0.5}
# model.dtype, training keys, whether it trains an adapter
KINDS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "plain": ("float32", {}, False),
    "ema": ("float32", EMA, False),
    "ema in float64": ("float64", EMA, False),
    "bf16 weights": ("bfloat16", EMA, False),
    "bf16 products": ("float32", {**EMA, "precision": "bf16"}, False),
    "lora": ("float32", {}, True),
    "lora in bf16 with ema": ("bfloat16", EMA, True),
}


def trained(folder: Path, method: str, kind: str, *, tied: bool) -> tuple[Recipe, RunFolder]:
    dtype, training, is_adapter = KINDS[kind]
    made = recipes.tree_of(folder, {"method": method}, steps=4, eval_steps=2, **training)
    if method in ("block_diffusion", "tidar"):
        made["objective"]["block_length"] = 4
    made["model"] |= {"dtype": dtype, "tie_word_embeddings": tied}
    if is_adapter:
        base = loading.create(config.from_tree(ModelSettings, made["model"]), byte_tokenizer(), seed=0)
        loading.save(base, folder / "base")
        made["model"] = {"from_pretrained": str(folder / "base"), "dtype": dtype}
        made["adapter"] = {"rank": 2}
    run = recipes.run_of(made, "tiny")
    return config.load(Recipe, file=run.config), run


def score(lm: DiffusionLM, made: Recipe) -> float:
    source = str(Path(made.output_dir) / made.name)
    return evaluated(lm, made, made.evaluation, own=True, source=source)["bits_per_byte"]


# Every kind for one method, and for the others one of each sort.
CASES = [("masked_diffusion", kind, tied) for kind in KINDS for tied in (True, False)] + [
    (method, kind, tied)
    for method in METHODS
    if method != "masked_diffusion"
    for kind, tied in (("ema", True), ("bf16 products", False), ("lora in bf16 with ema", True))
]


@pytest.mark.parametrize(("method", "kind", "tied"), CASES)
def test_checkpoints_score_what_was_logged(
    tmp_path: Path, method: str, kind: str, tied: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    made, run = trained(tmp_path, method, kind, tied=tied)
    logged = dict(recipes.records(run, "eval/bits_per_byte"))
    assert set(logged) == {2, 4}
    best = min(logged, key=lambda step: logged[step])
    for folder, step in [(run.checkpoints / "step-4", 4), (run.root / "best", best), (run.final, best)]:
        lm = DiffusionLM.from_pretrained(folder, device="cpu")
        assert score(lm, made) == logged[step], folder.name
        lm.save_pretrained(tmp_path / "again")
        assert score(DiffusionLM.from_pretrained(tmp_path / "again", device="cpu"), made) == logged[step]
        network = lm.backbone.network
        assert (network.lm_head.weight is network.model.embed_tokens.weight) == tied
    if not KINDS[kind][2]:
        with safe_open(run.final / "model.safetensors", framework="pt") as file:
            assert ("lm_head.weight" in file.keys()) != tied  # noqa: SIM118 - no mapping
    elif made.model.dtype == "float32":
        whole = DiffusionLM(merged(loading.load(run.final, device="cpu")))
        assert score(whole, made) == pytest.approx(logged[best], rel=1e-6)  # rounded once more
    assert main(["info", str(run.final)]) == 0
    assert "PROBLEM" not in capsys.readouterr().out


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", ["ema", "ema in float64", "bf16 weights", "lora in bf16 with ema"])
def test_a_run_with_an_average_goes_on_bit_for_bit(tmp_path: Path, kind: str, tied: bool) -> None:
    dtype, training, is_adapter = KINDS[kind]
    made = recipes.tree_of(tmp_path, {"method": "masked_diffusion"}, **training)
    made["model"] |= {"dtype": dtype, "tie_word_embeddings": tied}
    file = "model.safetensors"
    if is_adapter:
        base = loading.create(config.from_tree(ModelSettings, made["model"]), byte_tokenizer(), seed=0)
        loading.save(base, tmp_path / "base")
        made |= {"model": {"from_pretrained": str(tmp_path / "base"), "dtype": dtype}, "adapter": {"rank": 2}}
        file = "adapter_model.safetensors"
    whole, resumed = recipes.whole_and_resumed(config.from_tree(Recipe, made))
    recipes.assert_same(whole, resumed, "train/loss", "eval/bits_per_byte", file=file)
    for name in ("average", "weights", "optimizer"):
        recipes.assert_same(whole, resumed, "train/loss", file=f"training/{name}.safetensors")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_scoring_the_average_changes_neither_it_nor_the_weights(dtype: torch.dtype) -> None:
    weight = torch.nn.Parameter(torch.rand(64, dtype=torch.float64).to(dtype))
    average = WeightAverage([("w", weight)], 0.9)
    with torch.no_grad():
        weight.add_(1)
    average.update([("w", weight)], 5)
    kept, mean = weight.detach().clone(), average.weights["w"].clone()
    assert not mean.to(dtype).equal(kept)
    with average.in_place([("w", weight)]):
        assert weight.equal(mean.to(dtype))
    assert weight.equal(kept) and average.weights["w"].equal(mean)


def test_weights_under_both_names_of_a_tied_one_are_saved_under_the_first(tmp_path: Path) -> None:
    settings = ModelSettings(hidden_size=8, intermediate_size=8, num_hidden_layers=1, tie_word_embeddings=True)
    made = loading.create(settings, None, seed=0, size=11)
    first, second = "model.embed_tokens.weight", "lm_head.weight"
    weights = {name: one.detach().clone() for name, one in made.backbone.network.state_dict().items()}
    weights[first] = torch.ones_like(weights[first])  # as an average under the first name alone
    loading.save(Checkpoint(made.backbone, None), tmp_path, weights=weights)
    network = loading.load(tmp_path, device="cpu").backbone.network
    assert network.state_dict()[first].equal(weights[first]) and network.state_dict()[second].equal(weights[first])
