"""Training an adapter: only it moves, resumes are bit-exact, and the whole library works on what a run leaves."""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from tests import tiny
from tests.training import recipes
from unmask import config
from unmask.cli.main import main
from unmask.data.batch import Batch
from unmask.errors import SettingsError
from unmask.lm import DiffusionLM
from unmask.models import adapters
from unmask.models.adapters import WEIGHTS_FILE
from unmask.models.backbone import Backbone
from unmask.models.loading import Checkpoint, create, save
from unmask.models.tokenizers import byte_tokenizer
from unmask.objectives.methods import objective
from unmask.runs import RunFolder
from unmask.settings.adapter import AdapterSettings
from unmask.settings.decoding import SamplingParams
from unmask.settings.objective import ObjectiveSettings
from unmask.settings.recipe import Recipe
from unmask.settings.training import TrainingSettings
from unmask.training.dropout import AdapterDropout
from unmask.training.module import TrainingModule
from unmask.training.optim import optimizer
from unmask.training.recomputation import recompute
from unmask.training.run import dry_run, memory_estimate, train

ROOT = Path(__file__).parents[2]
ROW = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"


def write_base(folder: Path, *, tied: bool = False) -> Path:
    """A plain autoregressive checkpoint of bytes, in float64."""
    shape = dataclasses.replace(
        config.from_tree(Recipe, recipes.tree(folder)).model, family="llama", tie_word_embeddings=tied
    )
    save(create(shape, byte_tokenizer(), seed=3), folder / "base")
    return folder / "base"


def tree(folder: Path, *, adapter: dict[str, Any] | None = None, **training: Any) -> dict[str, Any]:
    """A recipe that adapts the base."""
    whole = recipes.tree(folder, **training)
    whole["model"] = {"from_pretrained": str(folder / "base"), "dtype": "float64"}
    del whole["data"]["tokenizer"]
    return whole | {"adapter": {"rank": 2, **(adapter or {})}}


def recipe(folder: Path, **options: Any) -> Recipe:
    return config.from_tree(Recipe, tree(folder, **options))


def tensors(run: RunFolder, step: int) -> dict[str, Tensor]:
    return load_file(run.checkpoints / f"step-{step}" / WEIGHTS_FILE)


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    recipes.write_text(tmp_path)
    write_base(tmp_path)
    return tmp_path


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_the_adapter_and_the_mask_row_move_and_the_base_does_not(tmp_path: Path, tied: bool) -> None:
    recipes.write_text(tmp_path)
    base = write_base(tmp_path, tied=tied)
    run = train(recipe(tmp_path)).run
    first, last = tensors(run, 3), tensors(run, 6)
    assert all(not first[name].equal(last[name]) for name in last)
    lm = DiffusionLM.from_pretrained(run.root, device="cpu")
    state = {name.replace(".base_layer", ""): one for name, one in lm.backbone.network.state_dict().items()}
    for name, wanted in load_file(base / "model.safetensors").items():
        assert state[name][: len(wanted)].equal(wanted), name
    row = lm.backbone.network.get_input_embeddings().mask_row  # type: ignore[union-attr]
    assert row.equal(last[ROW][0]) and not row.equal(state["model.embed_tokens.weight"][258])  # type: ignore[operator]
    files = {file.name for file in run.final.iterdir()}
    assert {"adapter_config.json", WEIGHTS_FILE, "diffusion.json", "tokenizer.json", "README.md"} <= files
    assert not {"config.json", "model.safetensors"} & files
    assert "LoRA adapter of rank 2" in (run.final / "README.md").read_text()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"adapter": {"dropout": 0.2}, "dropout": 0.1, "gradient_checkpointing": True, "micro_batch_size": 3},
        {"ema_decay": 0.9, "recompute_elementwise": True, "adapter": {"targets": ["q_proj", "lm_head"]}},
        {"precision": "bf16", "adapter": {"dropout": 0.1}},
    ],
    ids=["plain", "dropout and recomputation", "average and head", "bf16"],
)
def test_n_and_n_steps_resumed_equal_2n_steps_bit_for_bit(folder: Path, options: dict[str, Any]) -> None:
    whole, resumed = recipes.whole_and_resumed(recipe(folder, **options))
    recipes.assert_same(resumed, whole, "train/loss", "train/grad_norm", "eval/bits_per_byte", file=WEIGHTS_FILE)
    recipes.assert_same(resumed, whole, file="training/optimizer.safetensors")
    saved = [load_file(file) for file in (whole.checkpoints / "step-6" / "training").glob("*.safetensors")]
    assert all("lora_" in name or "mask_row" in name for tensors in saved for name in tensors)


def test_four_micro_batches_of_two_equal_one_batch_of_eight(folder: Path) -> None:
    """Also with dropout, whose draws must not depend on the rows that the last MLP leaves out."""
    base = recipe(folder, adapter={"dropout": 0.2})
    split = dataclasses.replace(base, name="split", training=dataclasses.replace(base.training, micro_batch_size=2))
    whole, parts = tensors(train(base).run, 6), tensors(train(split).run, 6)
    for name, wanted in whole.items():
        # float64: only the order of sums differs.
        torch.testing.assert_close(parts[name], wanted, rtol=1e-9, atol=1e-9)


# --- gradients --------------------------------------------------------------------------------------------------------


def adapted_backbone(*targets: str, rank: int = 2) -> Backbone:
    """A tiny backbone whose update is not zero."""
    model = tiny.backbone("masked_diffusion")
    adapters.attach(model, AdapterSettings(rank=rank, targets=targets), base="nowhere", seed=0)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.network.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


def example(model: Backbone) -> Any:
    batch = Batch.of_rows([tiny.random_ids(20, seed=row).tolist() for row in range(3)])
    return objective(ObjectiveSettings(), model.diffusion, seed=1)(batch)


def gradients(model: Backbone) -> dict[str, Tensor]:
    found = {name: one.grad for name, one in model.network.named_parameters() if one.grad is not None}
    model.network.zero_grad()
    return found


@pytest.mark.parametrize("targets", [(), ("o_proj", "down_proj", "lm_head")], ids=["body", "with head"])
def test_the_chunked_loss_reaches_every_trained_parameter_as_the_plain_loss_does(targets: tuple[str, ...]) -> None:
    model = adapted_backbone(*targets)
    made = example(model)
    TrainingModule(model, chunk_rows=7).train()(made, torch.ones(1)).total.backward()  # type: ignore[union-attr]
    found = gradients(model)
    assert found.keys() == {name for name, one in model.network.named_parameters() if one.requires_grad}
    assert all(one.abs().max() > 0 for one in found.values())

    mask = model.render(made.layout, made.layout)
    hidden_BLD = model(made.ids_BL, made.layout.position_ids.expand_as(made.ids_BL), mask)
    losses_R = F.cross_entropy(model.logits(hidden_BLD.flatten(0, 1)[made.row_R]), made.target_R, reduction="none")
    (losses_R * made.weight_R).sum().backward()
    for name, wanted in gradients(model).items():
        torch.testing.assert_close(found[name], wanted, rtol=1e-9, atol=1e-9)


def test_the_mask_row_learns_from_masked_places_only() -> None:
    """Against the gradient of a plain embedding, whose rows all learn."""
    model, plain = adapted_backbone(), tiny.backbone("masked_diffusion")
    copied = adapters.merged(Checkpoint(adapted_backbone(), None)).backbone.network.state_dict()
    plain.network.load_state_dict(copied)
    for one in (model, plain):
        TrainingModule(one, chunk_rows=64).train()(example(one), torch.ones(1)).total.backward()  # type: ignore[union-attr]
    mask = model.diffusion.mask_token_id
    assert mask is not None
    wanted = gradients(plain)["model.embed_tokens.weight"][mask]
    torch.testing.assert_close(gradients(model)["model.embed_tokens.mask_row"], wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("keep_products", [False, True])
def test_recomputation_changes_no_gradient_by_a_bit(keep_products: bool) -> None:
    def run(model: Backbone) -> dict[str, Tensor]:
        dropout = AdapterDropout(model.decoder, 0.3, seed=1)
        dropout.begin(0, torch.arange(3), 20)
        TrainingModule(model, chunk_rows=64).train()(example(model), torch.ones(1)).total.backward()  # type: ignore[union-attr]
        return gradients(model)

    wanted, model = run(adapted_backbone()), adapted_backbone()
    recompute(model.network, keep_products=keep_products)
    assert equal(run(model), wanted)


def test_dropout_drops_the_share_that_was_asked_for_and_only_in_training() -> None:
    model = adapted_backbone()
    dropout = AdapterDropout(model.decoder, 0.25, seed=1)
    dropout.begin(4, torch.arange(6), 50)
    layer = model.decoder.layers[0].self_attn  # type: ignore[index,union-attr]
    ones_BLD = torch.ones(6, 50, 32, dtype=torch.float64)
    dropped = layer.q_proj.lora_dropout["default"].train()(ones_BLD)
    assert set(dropped.unique().tolist()) == {0.0, 4 / 3}
    assert abs(float((dropped == 0).double().mean()) - 0.25) < 0.02
    assert not dropped.equal(layer.k_proj.lora_dropout["default"].train()(ones_BLD))
    assert layer.q_proj.lora_dropout["default"].eval()(ones_BLD).equal(ones_BLD)


def test_only_the_matrices_of_the_update_decay() -> None:
    model = adapted_backbone("q_proj", "lm_head")
    decayed, spared = optimizer(TrainingModule(model, chunk_rows=1), TrainingSettings()).param_groups
    assert {one.shape[0] == 2 or one.shape[1] == 2 for one in decayed["params"]} == {True}
    assert [one.shape for one in spared["params"]] == [(32,)] and spared["weight_decay"] == 0


# --- what a run leaves, and what starts one ---------------------------------------------------------------------------


def test_a_run_is_evaluated_decoded_and_merged_by_the_command_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = train(recipe(folder)).run, folder / "merged"
    assert main(["merge", str(run.root), str(out)]) == 0
    captured = capsys.readouterr()
    assert captured.out.strip() == str(out) and "whole weights" not in captured.err
    records, texts = [], []
    for model in (run.root, run.final, out):
        words = ["--data", str(folder / "text.jsonl"), "--context-length", "24", "--max-rows", "5", "--json"]
        assert main(["evaluate", str(model), *words]) == 0
        records.append(json.loads(capsys.readouterr().out)["bits_per_byte"])
        assert main(["generate", str(model), "the cat", "--max-new-tokens", "9", "--temperature", "1"]) == 0
        texts.append(capsys.readouterr().out)
    assert records[0] == records[1] == pytest.approx(records[2], rel=1e-10)
    assert texts[0] == texts[1] == texts[2]
    assert main(["merge", str(run.root), str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["merge", str(out), str(folder / "again")]) == 2
    assert "nothing to merge" in capsys.readouterr().err
    assert main(["merge", str(run.root), str(folder / "half"), "--dtype", "bfloat16"]) == 0
    assert DiffusionLM.from_pretrained(folder / "half").backbone.network.dtype == torch.bfloat16


def test_training_goes_on_with_an_adapter_of_an_earlier_run(folder: Path) -> None:
    first = train(recipe(folder)).run
    again = tree(folder, learning_rate=0.0) | {"name": "again"}
    again["model"]["from_pretrained"] = str(first.root)
    second = train(config.from_tree(Recipe, again)).run
    assert equal(tensors(second, 6), load_file(first.final / WEIGHTS_FILE))

    def refusal(**adapter: Any) -> str:
        with pytest.raises(SettingsError) as caught:
            train(config.from_tree(Recipe, again | {"name": "other", "adapter": adapter}))
        assert not (folder / "other").exists()
        return str(caught.value)

    assert "adapter.rank=2" in refusal() and "unmask merge" in refusal()
    assert "adapter.rank 2, and the recipe 3" in refusal(rank=3)
    assert "adapter.alpha 4, and the recipe 5" in refusal(rank=2, alpha=5)
    assert "adapter.targets" in refusal(rank=2, targets=["q_proj"])


def test_a_resume_with_other_settings_is_refused(folder: Path) -> None:
    run = train(recipe(folder)).run
    with pytest.raises(SettingsError, match=r"adapter\.rank: 2 -> 4"):
        train(recipe(folder, adapter={"rank": 4}), resume="auto")
    with pytest.raises(SettingsError, match=r"adapter\.rank: 2 -> None"):
        train(config.from_tree(Recipe, {**tree(folder), "adapter": {}}), resume="auto")
    assert run.saved_steps() == [3, 6]


def test_settings_that_contradict_each_other_are_refused(folder: Path) -> None:
    for name, value in (("alpha", 8), ("dropout", 0.1), ("targets", ("q_proj",)), ("quantization", "nf4")):
        with pytest.raises(SettingsError, match=rf"adapter\.{name} is set and adapter\.rank is not"):
            AdapterSettings(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="rank must be at least 1, got 0"):
        AdapterSettings(rank=0)
    with pytest.raises(SettingsError, match=r"adapter\.rank needs a checkpoint below the adapter"):
        train(config.from_tree(Recipe, recipes.tree(folder) | {"adapter": {"rank": 2}}))


def test_a_dry_run_counts_what_is_trained(folder: Path) -> None:
    lines = list(dry_run(recipe(folder)))
    # 3 matrices in and 4 out of 16 channels, and three of 24 and 16 in the MLP; 2 for each of them, and the row.
    wanted = 2 * (2 * (16 + 16) + 2 * (16 + 8) + 3 * (16 + 24)) + 16
    assert any(f"adapter of rank 2: {wanted} parameters are trained" in line for line in lines)
    assert any(str(folder / "base") in line for line in lines)


def test_the_memory_estimate_counts_gradients_and_moments_of_what_is_trained(folder: Path) -> None:
    def estimate(model: Backbone) -> float:
        return memory_estimate(recipe(folder), Checkpoint(model, None))

    whole, adapted = tiny.backbone("masked_diffusion"), adapted_backbone()
    weights = sum(one.numel() for one in whole.network.parameters())
    added = sum(one.numel() for one in adapted.network.parameters() if one.requires_grad)
    assert estimate(whole) - estimate(adapted) == 8 * (3 * weights - 4 * added)


def test_the_memory_estimate_counts_every_copy_of_a_text(folder: Path) -> None:
    checkpoint = Checkpoint(tiny.backbone("block_diffusion"), None)

    def activations(**objective: Any) -> float:
        made = dataclasses.replace(recipe(folder), objective=ObjectiveSettings(**objective))
        settings = dataclasses.replace(made.training, loss_chunk_rows=1)
        fixed = 32 * sum(one.numel() for one in checkpoint.backbone.network.parameters())
        logits = 12 * checkpoint.backbone.network.config.vocab_size
        return memory_estimate(dataclasses.replace(made, training=settings), checkpoint) - fixed - logits

    once = activations(method="masked_diffusion")
    assert activations(method="block_diffusion") == pytest.approx(2 * once)
    assert activations(method="block_diffusion", complementary_masks=True) == pytest.approx(3 * once)


def test_a_trained_autoregressive_model_becomes_a_diffusion_model_by_its_adapter(
    shared_data: Path, tmp_path: Path
) -> None:
    base = shared_data / "checkpoints" / "stories260k"
    with gzip.open(shared_data / "text" / "tinystories_sample.jsonl.gz", "rt", encoding="utf-8") as lines:
        (tmp_path / "stories.jsonl").write_text("".join(itertools.islice(lines, 100)), encoding="utf-8")
    whole = tree(tmp_path, steps=20, learning_rate=1e-3, eval_steps=20, adapter={"rank": 8})
    whole["model"] = {"from_pretrained": str(base)}
    whole["data"] |= {"train": [str(tmp_path / "stories.jsonl")], "context_length": 64}
    run = train(config.from_tree(Recipe, whole)).run
    losses = [loss for _, loss in recipes.records(run, "train/loss")]
    assert losses[0] > 7 and sum(losses[-5:]) / 5 < 5.5
    lm = DiffusionLM.from_pretrained(run.root, device="cpu")
    state = {name.replace(".base_layer", ""): one for name, one in lm.backbone.network.state_dict().items()}
    for name, wanted in load_file(base / "model.safetensors").items():
        assert state[name][: len(wanted)].equal(wanted), name
    assert lm.generate("Once upon a time", SamplingParams(max_new_tokens=8))[0].text
    ids_BL = torch.tensor([[1, 512, 512, 300, 512, 410, 9, 512]])
    wanted = lm.logits(ids_BL)
    found = DiffusionLM(adapters.merged(lm.checkpoint)).logits(ids_BL)
    # Logits of order 15 in float32.
    assert (found - wanted)[..., :512].abs().max() < 1e-4


def test_the_page_explains_every_key_and_its_recipe_is_one() -> None:
    page = (ROOT / "docs" / "adapters.md").read_text(encoding="utf-8")
    keys = [f"`adapter.{one.name}`" for one in dataclasses.fields(AdapterSettings)]
    assert [key for key in keys if key not in page] == []
    assert config.load(Recipe, file=ROOT / "recipes" / "lora.yaml").adapter.rank == 16
