"""Adapters: saved, loaded and merged they are one function; plain PEFT reads them; what does not fit is named."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from peft import AutoPeftModelForCausalLM, IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.models.tiny import random_ids, stock
from unmask import DiffusionLM, attention
from unmask.errors import CheckpointError, MissingExtraError, SettingsError
from unmask.models import adapters
from unmask.models.adapters import FACTS_FILE, WEIGHTS_FILE
from unmask.models.backbone import Backbone
from unmask.models.loading import Checkpoint, adapted, load, parameter_counts, save
from unmask.models.tokenizers import byte_tokenizer
from unmask.runs import ADAPTER_FILE, locate
from unmask.settings.adapter import AdapterSettings
from unmask.settings.model import DiffusionConfig
from unmask.settings.objective import ObjectiveSettings

DENSE_FAMILIES = pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
EITHER_TIE = pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
DIFFUSION = ObjectiveSettings(method="masked_diffusion")
RANK_3 = AdapterSettings(rank=3, alpha=5)
# PEFT's own wrapper asks the stock class under an old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
USED = 38  # of the 40 rows; the mask token takes row 38


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_base(tmp_path / "base")


def make_base(
    folder: Path, family: str = "llama", *, tied: bool = False, used: int = USED, dtype: torch.dtype = torch.float64
) -> Path:
    """A plain autoregressive checkpoint."""
    network = stock(family, dtype=dtype, tie_word_embeddings=tied)
    entry = DiffusionConfig(method="autoregressive", vocabulary_size=used)
    save(Checkpoint(Backbone(network, entry), None), folder)
    return folder


def adapter_on(base: Path, settings: AdapterSettings = RANK_3, *, seed: int = 0, **options: Any) -> Checkpoint:
    """An adapter whose update and mask row are not what they begin with."""
    checkpoint = adapted(load(base, device="cpu", **options), DIFFUSION)
    adapters.attach(checkpoint.backbone, settings, base=str(base), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in checkpoint.backbone.network.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter += 0.2 * noise.to(parameter.dtype)
    return checkpoint


def logits(checkpoint: Checkpoint, ids_BL: Tensor) -> Tensor:
    """Under the causal rule, which plain classes know as well; excluded ids as 0."""
    layout = attention.causal(torch.zeros_like(ids_BL))
    found = DiffusionLM(checkpoint).logits(ids_BL, layout=layout)
    return found.masked_fill(found.isinf(), 0.0)


def plain_logits(network: Any, ids_BL: Tensor, checkpoint: Checkpoint) -> Tensor:
    with torch.inference_mode():
        found = network(input_ids=ids_BL).logits
    return found.index_fill(-1, checkpoint.backbone.excluded_X, 0.0)


def masked_ids(mask: int = USED) -> Tensor:
    ids_BL = random_ids(2, 11) % USED
    ids_BL[0, 3:6] = ids_BL[1, 0] = mask
    return ids_BL


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises((CheckpointError, SettingsError)) as caught:
        call()
    return str(caught.value)


# --- one function, however it is stored -------------------------------------------------------------------------------


@EITHER_TIE
@DENSE_FAMILIES
def test_saved_loaded_and_merged_adapters_give_equal_logits(tmp_path: Path, family: str, tied: bool) -> None:
    base = make_base(tmp_path / "base", family, tied=tied)
    trained, ids_BL = adapter_on(base), masked_ids()
    wanted = logits(trained, ids_BL)
    assert (logits(adapted(load(base, device="cpu"), DIFFUSION), ids_BL) - wanted).abs().max() > 1e-2

    save(trained, tmp_path / "adapter")
    state = torch.get_rng_state()
    loaded = load(tmp_path / "adapter", device="cpu")
    assert torch.get_rng_state().equal(state)
    assert logits(loaded, ids_BL).equal(wanted)
    assert loaded.backbone.diffusion == trained.backbone.diffusion
    assert not loaded.backbone.training

    whole = adapters.merged(loaded)
    assert (logits(whole, ids_BL) - wanted).abs().max() < 1e-10
    assert type(whole.backbone.network) is type(stock(family))
    save(whole, tmp_path / "merged")
    again = DiffusionLM.from_pretrained(tmp_path / "merged", device="cpu")
    assert (logits(again.checkpoint, ids_BL) - wanted).abs().max() < 1e-10
    assert again.backbone.diffusion == trained.backbone.diffusion
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert (plain_logits(plain, ids_BL, trained) - wanted).abs().max() < 1e-10
    assert {"lora", "mask_row"} & {part for name in plain.state_dict() for part in name.split(".")} == set()


@EITHER_TIE
def test_the_update_is_alpha_over_rank_times_b_a_and_the_row_is_replaced(tmp_path: Path, tied: bool) -> None:
    """The merged weights, computed by hand from the two folders."""
    base = make_base(tmp_path / "base", tied=tied)
    save(adapter_on(base), tmp_path / "adapter")
    tensors = load_file(tmp_path / "adapter" / WEIGHTS_FILE)
    weights = load_file(base / "model.safetensors")
    row = tensors.pop("base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta")
    weights["model.embed_tokens.weight"][USED] = row[0]
    for name in [name for name in tensors if name.endswith(".lora_A.weight")]:
        below, above = tensors[name], tensors[name.replace("lora_A", "lora_B")]
        target = name.removeprefix("base_model.model.").replace("lora_A.", "")
        weights[target] += 5 / 3 * above @ below
    whole = adapters.merged(load(tmp_path / "adapter", device="cpu")).backbone.network.state_dict()
    for name, wanted in weights.items():
        # The untied head has a row for the mask that is never read: the mean of the others.
        rows = slice(None) if name != "lm_head.weight" else slice(0, USED)
        torch.testing.assert_close(whole[name][rows], wanted[rows], rtol=1e-12, atol=1e-12)


def test_a_mixture_of_experts_adapts_its_attention(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "qwen3_moe", dtype=torch.float32)
    trained, ids_BL = adapter_on(base), masked_ids()
    wanted = logits(trained, ids_BL)
    assert sorted(trained.backbone.adapter.target_modules) == ["k_proj", "o_proj", "q_proj", "v_proj"]  # type: ignore[union-attr,arg-type]
    save(trained, tmp_path / "adapter")
    loaded = load(tmp_path / "adapter", device="cpu")
    assert logits(loaded, ids_BL).equal(wanted)
    # Logits of order 5 in float32.
    assert (logits(adapters.merged(loaded), ids_BL) - wanted).abs().max() < 2e-5


@EITHER_TIE
def test_a_vocabulary_that_grew_is_restored_without_being_stored(tmp_path: Path, tied: bool) -> None:
    base = make_base(tmp_path / "base", tied=tied, used=40)
    trained, ids_BL = adapter_on(base), masked_ids(40)
    assert trained.backbone.diffusion.mask_token_id == 40
    save(trained, tmp_path / "adapter")
    loaded = load(tmp_path / "adapter", device="cpu")
    assert logits(loaded, ids_BL).equal(logits(trained, ids_BL))
    for name, value in trained.backbone.network.state_dict().items():
        assert loaded.backbone.network.state_dict()[name].equal(value), name
    assert sum(value.numel() for value in load_file(tmp_path / "adapter" / WEIGHTS_FILE).values()) < 5000


def test_the_tokenizer_comes_from_the_adapter(tmp_path: Path) -> None:
    network = stock("llama", vocab_size=258)
    entry = DiffusionConfig(method="autoregressive", vocabulary_size=258)
    save(Checkpoint(Backbone(network, entry), byte_tokenizer()), tmp_path / "base")
    save(adapter_on(tmp_path / "base"), tmp_path / "adapter")
    tokenizer = load(tmp_path / "adapter", device="cpu").tokenizer
    assert tokenizer is not None and tokenizer.mask_token_id == 258
    assert locate(tmp_path / "adapter") == str(tmp_path / "adapter")


@EITHER_TIE
def test_plain_peft_and_transformers_open_the_folder(tmp_path: Path, tied: bool) -> None:
    base = make_base(tmp_path / "base", tied=tied)
    trained, ids_BL = adapter_on(base), masked_ids()
    save(trained, tmp_path / "adapter")
    wanted = logits(trained, ids_BL)
    opened = [
        AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype=torch.float64),
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(tmp_path / "adapter")),
    ]
    if Version(transformers.__version__) >= Version("5.23"):  # 5.17 does not load `trainable_token_indices`
        opened.append(AutoModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype=torch.float64))
    for network in opened:
        assert (plain_logits(network.eval(), ids_BL, trained) - wanted).abs().max() < 1e-10


def test_an_adapter_that_plain_peft_made_loads(tmp_path: Path, base: Path) -> None:
    network = AutoModelForCausalLM.from_pretrained(base)
    model = get_peft_model(
        network, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], use_rslora=True, init_lora_weights=False)
    )
    model.save_pretrained(str(tmp_path / "adapter"))
    loaded = load(tmp_path / "adapter", device="cpu")
    ids_BL = random_ids(2, 9) % USED
    assert loaded.backbone.diffusion.method == "autoregressive"
    assert (logits(loaded, ids_BL) - plain_logits(model.eval(), ids_BL, loaded)).abs().max() < 1e-10


# --- what is trained --------------------------------------------------------------------------------------------------


@EITHER_TIE
def test_a_new_adapter_changes_nothing_and_freezes_all_but_itself(base: Path, tmp_path: Path, tied: bool) -> None:
    base = make_base(tmp_path / "other", tied=tied)
    checkpoint = adapted(load(base, device="cpu"), DIFFUSION)
    before, ids_BL = logits(checkpoint, masked_ids()), masked_ids()
    total, body = parameter_counts(checkpoint.backbone.network)
    state = torch.get_rng_state()
    adapters.attach(checkpoint.backbone, RANK_3, base=str(base), seed=1)
    assert torch.get_rng_state().equal(state)
    assert logits(checkpoint, ids_BL).equal(before)
    trained = {name: one for name, one in checkpoint.backbone.network.named_parameters() if one.requires_grad}
    assert all("lora_" in name or name == "model.embed_tokens.mask_row" for name in trained)
    added = sum(one.numel() for one in trained.values())
    # The row counts as embedding.
    assert parameter_counts(checkpoint.backbone.network) == (total + added, body + added - 32)


def test_the_seed_decides_the_weights(base: Path) -> None:
    def weights(seed: int) -> list[Tensor]:
        checkpoint = adapted(load(base, device="cpu"), DIFFUSION)
        adapters.attach(checkpoint.backbone, RANK_3, base=str(base), seed=seed)
        return [one for name, one in checkpoint.backbone.network.named_parameters() if "lora_A" in name]

    assert all(one.equal(other) for one, other in zip(weights(1), weights(1), strict=True))
    assert not any(one.equal(other) for one, other in zip(weights(1), weights(2), strict=True))


def test_an_adapter_on_half_precision_weights_is_kept_in_float32(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", dtype=torch.bfloat16)
    trained, ids_BL = adapter_on(base), masked_ids()
    kinds = {one.dtype for one in trained.backbone.network.parameters() if one.requires_grad}
    assert kinds == {torch.float32} and trained.backbone.network.dtype == torch.bfloat16
    save(trained, tmp_path / "adapter")
    assert logits(load(tmp_path / "adapter", device="cpu"), ids_BL).equal(logits(trained, ids_BL))
    whole = adapters.merged(load(tmp_path / "adapter", device="cpu"))
    assert {one.dtype for one in whole.backbone.network.parameters()} == {torch.bfloat16}
    wide = load(tmp_path / "adapter", device="cpu", dtype=torch.float64)
    assert {one.dtype for one in wide.backbone.network.parameters()} == {torch.float64}


def test_an_adapter_is_loaded_in_the_type_of_its_training(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", dtype=torch.bfloat16)
    save(adapter_on(base, dtype="float32"), tmp_path / "adapter")
    assert load(tmp_path / "adapter", device="cpu").backbone.network.dtype == torch.float32


def test_copies_are_independent(base: Path) -> None:
    trained, ids_BL = adapter_on(base), masked_ids()
    wanted = logits(trained, ids_BL)
    twin = adapters.merged(Checkpoint(copy.deepcopy(trained.backbone), None))
    assert (logits(twin, ids_BL) - wanted).abs().max() < 1e-10
    assert logits(trained, ids_BL).equal(wanted)
    assert trained.backbone.adapter is not None and twin.backbone.adapter is None
    assert all(one.requires_grad for one in twin.backbone.network.parameters())


@pytest.mark.parametrize(
    ("settings", "tied", "named"),
    [
        (AdapterSettings(rank=2, targets=("q_porj",)), False, "Did you mean `q_proj`"),
        (AdapterSettings(rank=2, targets=("embed_tokens",)), False, "no linear layer of that name"),
        (AdapterSettings(rank=2, targets=("q_proj", "lm_head")), True, "lm_head cannot be a target"),
        (AdapterSettings(rank=2, targets=("lm_head",), dropout=0.1), False, "adapter.dropout does not work"),
    ],
    ids=["typo", "embedding", "tied head", "dropout at the head"],
)
def test_targets_that_cannot_be_adapted_are_refused(
    tmp_path: Path, settings: AdapterSettings, tied: bool, named: str
) -> None:
    base = make_base(tmp_path / "base", tied=tied)
    checkpoint = load(base, device="cpu")
    assert named in refusal(lambda: adapters.attach(checkpoint.backbone, settings, base=str(base), seed=0))


def test_an_adapted_head_is_saved_and_merged_too(tmp_path: Path, base: Path) -> None:
    trained, ids_BL = adapter_on(base, AdapterSettings(rank=2, targets=("o_proj", "lm_head"))), masked_ids()
    wanted = logits(trained, ids_BL)
    save(trained, tmp_path / "adapter")
    loaded = load(tmp_path / "adapter", device="cpu")
    assert logits(loaded, ids_BL).equal(wanted)
    assert (logits(adapters.merged(loaded), ids_BL) - wanted).abs().max() < 1e-10


# --- what does not fit ------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, base: Path) -> Path:
    save(adapter_on(base), tmp_path / "adapter")
    return tmp_path / "adapter"


def edit(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_FILE)


def test_a_base_that_moved_is_named_with_the_remedy(folder: Path, base: Path) -> None:
    moved = base.rename(base.parent / "elsewhere")
    message = refusal(lambda: load(folder, device="cpu"))
    assert str(base) in message and str(folder / ADAPTER_FILE) in message and "base_model_name_or_path" in message
    edit(folder / ADAPTER_FILE, base_model_name_or_path=str(moved))
    load(folder, device="cpu")


def test_another_base_is_refused_by_its_tensors(folder: Path, base: Path) -> None:
    network = stock("llama", hidden_size=16, head_dim=4)
    save(
        Checkpoint(Backbone(network, DiffusionConfig(method="autoregressive", vocabulary_size=USED)), None),
        base.parent / "other",
    )
    edit(folder / ADAPTER_FILE, base_model_name_or_path=str(base.parent / "other"))
    message = refusal(lambda: load(folder, device="cpu"))
    assert (
        "of another shape" in message and "down_proj.lora_B" in message and "(file (32, 3), model (16, 3))" in message
    )


NAME = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda tensors: tensors.pop(NAME), "missing: model.layers.1.mlp.up_proj.lora_B.weight"),
        (lambda tensors: tensors.update({NAME.replace("1.mlp", "7.mlp"): torch.ones(2)}), "unexpected: model.layers.7"),
        (lambda tensors: tensors.update({NAME: torch.ones(2, 2)}), "(file (2, 2), model (48, 3))"),
        (lambda tensors: tensors.pop(next(name for name in tensors if "embed" in name)), "missing: model.embed_tokens"),
    ],
    ids=["missing", "unexpected", "shape", "row"],
)
def test_wrong_tensors_are_named(folder: Path, change: Callable[[dict[str, Tensor]], object], named: str) -> None:
    edit_tensors(folder, change)
    assert named in refusal(lambda: load(folder, device="cpu"))


def test_damaged_folders_are_named(folder: Path) -> None:
    whole = (folder / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes(whole[:99])
    assert "cannot be loaded" in refusal(lambda: load(folder, device="cpu"))
    (folder / WEIGHTS_FILE).unlink()
    assert f"has no {WEIGHTS_FILE}" in refusal(lambda: load(folder, device="cpu"))
    for file in (FACTS_FILE, ADAPTER_FILE):
        (folder / file).write_text("{")
        assert "damaged" in refusal(lambda: load(folder, device="cpu"))
        (folder / file).write_text("[]")
        assert "damaged" in refusal(lambda: load(folder, device="cpu"))


def test_other_kinds_of_adapters_are_refused(tmp_path: Path, base: Path, folder: Path) -> None:
    def foreign(config: Any) -> str:
        network: PreTrainedModel = AutoModelForCausalLM.from_pretrained(base)
        get_peft_model(network, config).save_pretrained(str(tmp_path / "foreign"))
        return refusal(lambda: load(tmp_path / "foreign", device="cpu"))

    assert "peft_type IA3" in foreign(IA3Config(target_modules=["q_proj"], feedforward_modules=[]))
    assert "'lm_head'" in foreign(LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]))
    assert "[3, 4]" in foreign(LoraConfig(target_modules=["q_proj"], trainable_token_indices=[3, 4]))
    edit(folder / ADAPTER_FILE, target_modules=["nothing"])
    assert "does not fit its base" in refusal(lambda: load(folder, device="cpu"))
    edit(folder / ADAPTER_FILE, base_model_name_or_path=str(folder))
    assert "is an adapter itself" in refusal(lambda: load(folder, device="cpu"))
    tied = make_base(tmp_path / "tied", tied=True)
    edit(folder / ADAPTER_FILE, base_model_name_or_path=str(tied), target_modules=["lm_head"])
    assert "shares its weight with the embedding" in refusal(lambda: load(folder, device="cpu"))


def test_what_is_no_adapter_is_found_to_be_none(base: Path, tmp_path: Path) -> None:
    assert adapters.find(base) is None
    assert adapters.find(tmp_path / "nowhere") is None
    assert adapters.find("nobody/nothing") is None
    assert "a whole model already" in refusal(lambda: adapters.merged(load(base, device="cpu")))


def test_without_peft_the_install_command_is_given(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'pip install "unmask\[peft\]"'):
        load(folder, device="cpu")


def test_an_adapter_without_mask_token_does_not_become_diffusion(tmp_path: Path, base: Path) -> None:
    checkpoint = load(base, device="cpu")
    adapters.attach(checkpoint.backbone, RANK_3, base=str(base), seed=0)
    save(checkpoint, tmp_path / "adapter")
    loaded = load(tmp_path / "adapter", device="cpu")
    assert loaded.backbone.diffusion.mask_token_id is None
    assert "Merge it first" in refusal(lambda: adapted(loaded, DIFFUSION))
