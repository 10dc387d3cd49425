"""Models trained here, written for the engines that serve SDAR: keys, tensors, tokenizer, stop ids and their code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.models.published import tiny
from tests.models.tiny import stock
from unmask.errors import CheckpointError
from unmask.models.backbone import Backbone
from unmask.models.loading import Checkpoint, adapted, load
from unmask.models.published.registry import FORMATS, TARGETS, target_format
from unmask.models.published.remote_code import code_files
from unmask.models.published.writing import save_published
from unmask.models.tokenizers import load_tokenizer
from unmask.settings.model import DiffusionConfig
from unmask.settings.objective import ObjectiveSettings

WIDE = {key: tiny.SDAR_IDS[key] for key in ("head_dim", "hidden_size", "num_attention_heads", "num_key_value_heads")}
OBJECTIVE = ObjectiveSettings(method="block_diffusion", block_length=8)


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def trained(family: str, tokenizer: Path) -> Checkpoint:
    """A Qwen3 of the real vocabulary, made ready for block diffusion with a tokenizer, as a recipe does it."""
    network = stock(family, vocab_size=151936, eos_token_id=151645, bos_token_id=151643, **WIDE)
    network.generation_config.eos_token_id = [151645, 151643]
    loaded = load_tokenizer(tokenizer)
    used = max(loaded.get_vocab().values()) + 1
    entry = DiffusionConfig(method="autoregressive", vocabulary_size=used)
    return adapted(Checkpoint(Backbone(network, entry), loaded), OBJECTIVE)


@pytest.mark.parametrize(
    ("family", "tokenizer", "published"),
    [("qwen3", "qwen3", tiny.SDAR_4B), ("qwen3_moe", "sdar", tiny.SDAR_30B_A3B)],
)
def test_a_qwen3_trained_here_has_the_mask_151669_and_is_written_as_sdar(
    shared_data: Path, tmp_path: Path, family: str, tokenizer: str, published: dict[str, Any]
) -> None:
    checkpoint = trained(family, shared_data / "tokenizers" / tokenizer)
    assert checkpoint.backbone.diffusion.mask_token_id == 151669
    save_published(checkpoint, tmp_path, target_format("sdar", family))
    written = read(tmp_path / "config.json")
    assert written.keys() == published.keys() and written["block_size"] == 8
    for key in ("architectures", "model_type", "mask_token_id", "attn_implementation", "vocab_size"):
        assert written[key] == published[key]
    expected = tiny.random_tensors({**published, **written})
    tensors = load_file(tmp_path / "model.safetensors")
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }
    assert read(tmp_path / "generation_config.json") == {"eos_token_id": [151645, 151643], "pad_token_id": 151643}
    assert read(tmp_path / "tokenizer_config.json")["tokenizer_class"] == "Qwen2Tokenizer"
    loaded = load(tmp_path, device="cpu")
    again, tokenizer_again = loaded.backbone, loaded.tokenizer
    assert tokenizer_again is not None and tokenizer_again.mask_token_id == 151669
    assert again.diffusion.to_dict() | {"schedule_power": 2.0} == checkpoint.backbone.diffusion.to_dict()
    assert all(
        one.equal(other)
        for one, other in zip(again.network.parameters(), checkpoint.backbone.network.parameters(), strict=True)
    )


def test_another_mask_token_is_refused_with_the_way_to_the_right_one(shared_data: Path, tmp_path: Path) -> None:
    checkpoint = trained("qwen3", shared_data / "tokenizers" / "qwen2.5")
    with pytest.raises(CheckpointError, match=r"151669, and this model's is 151665\. .* data\.tokenizer=JetLM/SDAR-4B"):
        save_published(checkpoint, tmp_path, FORMATS["sdar"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("family", "name"), [("qwen3", "sdar"), ("qwen3_moe", "sdar_moe")])
def test_the_network_chooses_the_format(family: str, name: str) -> None:
    assert target_format("sdar", family) is FORMATS[name] and FORMATS[name] in TARGETS["sdar"]


# --- the original's code ----------------------------------------------------------------------------------------------


def code(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


# As in the two published versions, which import from beside them with and without a dot.
MODELLING = {
    "dotted": "from .configuration_sdar import SDARConfig\nfrom .fused_loss import Loss\n",
    "plain": "import torch\nfrom configuration_sdar import SDARConfig\nif True:\n    from fused_loss import Loss\n",
}


@pytest.mark.parametrize("imports", MODELLING)
def test_the_code_is_copied_unrun_and_the_configuration_is_the_published_one(tmp_path: Path, imports: str) -> None:
    config = tiny.sdar(**tiny.SDAR_IDS)
    tiny.write(tmp_path / "theirs", config, tiny.random_tensors(config))
    files = {
        "configuration_sdar.py": "raise RuntimeError('run')",
        "modeling_sdar.py": MODELLING[imports] + "raise RuntimeError('run')",
        "fused_loss.py": "from .kernels import fused",
        "kernels.py": "",
    }
    given = code(tmp_path / "code", {**files, "tests.py": "from modeling_sdar import SDARModel"})
    (tmp_path / "out").mkdir()
    save_published(load(tmp_path / "theirs", device="cpu"), tmp_path / "out", FORMATS["sdar"], remote_code=given)
    assert {file.name: file.read_text() for file in (tmp_path / "out").glob("*.py")} == files
    assert read(tmp_path / "out" / "config.json") == config, "auto_map included"


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"configuration_sdar.py": ""}, "has no modeling_sdar.py, which `auto_map` names"),
        ({"modeling_sdar.py": ""}, "has no configuration_sdar.py, which `auto_map` names"),
        (
            {"configuration_sdar.py": "", "modeling_sdar.py": "from .fused_loss import Loss"},
            "has no fused_loss.py, which modeling_sdar.py names",
        ),
    ],
)
def test_code_that_is_not_all_there_is_refused(tmp_path: Path, files: dict[str, str], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        code_files(code(tmp_path / "code", files), FORMATS["sdar"])


@pytest.mark.parametrize(("name", "suffix"), [("sdar_moe", "sdar_moe"), ("llada", "llada"), ("dream", "dream")])
def test_every_format_knows_its_code(tmp_path: Path, name: str, suffix: str) -> None:
    names = [f"configuration_{suffix}.py", f"modeling_{suffix}.py"]
    given = code(tmp_path / "code", dict.fromkeys(names, ""))
    assert [file.name for file in code_files(given, FORMATS[name])] == names
