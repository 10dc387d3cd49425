"""What is read of a checkpoint's files, and what is not."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.utils import SafetensorsFileMetadata, SafetensorsRepoMetadata, TensorInfo
from safetensors.torch import save_file

from tests.models.published import tiny
from unmask import DiffusionLM
from unmask.data.hub import HubSource
from unmask.errors import CheckpointError, DataError
from unmask.models import files, reach
from unmask.models.files import StoredWeights, fetched, opened_tensors, stored_weights, weight_files
from unmask.models.loading import load


@pytest.fixture(params=[1, 3])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    config = tiny.llada()
    return tiny.write(tmp_path / "checkpoint", config, tiny.random_tensors(config), shards=request.param)


def truncate_after_headers(folder: Path) -> None:
    """Cut every file right behind its header: no value is left to be read."""
    for file in weight_files(folder):
        whole = file.read_bytes()
        file.write_bytes(whole[: 8 + int.from_bytes(whole[:8], "little")])


def test_types_sizes_and_files_come_from_the_headers_alone(folder: Path) -> None:
    tensors = tiny.random_tensors(tiny.llada())
    numbers = sum(tensor.numel() for tensor in tensors.values())
    count = len(weight_files(folder))
    assert stored_weights(folder) == StoredWeights({"F64": numbers}, 8 * numbers, count, ())
    truncate_after_headers(folder)
    names = tuple(file.name for file in weight_files(folder))
    assert stored_weights(folder) == StoredWeights({"F64": numbers}, 8 * numbers, count, names)


def test_types_are_counted_apart(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(2, 3), "b": torch.zeros(5, dtype=torch.bfloat16), "c": torch.zeros(())}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert stored_weights(tmp_path) == StoredWeights({"F32": 7, "BF16": 5}, 38, 1, ())


@pytest.mark.parametrize("content", [b"", b"1234567", b"\xff" * 8, b"\x02" + b"\0" * 7 + b"[]", b"\x02" + b"\0" * 9])
def test_a_damaged_header_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"The header of .*model\.safetensors is damaged"):
        stored_weights(tmp_path)


def test_opened_tensors_are_read_when_they_are_used(folder: Path) -> None:
    expected = tiny.random_tensors(tiny.llada())
    with opened_tensors(folder) as tensors:
        assert tensors.keys() == expected.keys()
        for name, value in tensors.items():
            assert not isinstance(value, torch.Tensor) and value.get_shape() == list(expected[name].shape)
        assert all(tensors[name][...].equal(value) for name, value in expected.items())


@pytest.mark.parametrize("text", ["{", "[]", "\x00"])
def test_json_that_is_no_object_is_named(folder: Path, text: str) -> None:
    (folder / "generation_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        load(folder, device="cpu")


# --- hub ids ----------------------------------------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A hub id whose files are in the cache of `huggingface_hub`, as a download leaves them."""
    repository = tmp_path / "hub" / "models--someone--llada"
    shutil.copytree(folder, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT, encoding="utf-8")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return "someone/llada"


def test_a_hub_id_opens_from_the_cache_as_the_folder_does(hub: str, folder: Path) -> None:
    ids = [[3, tiny.MASK, 5]]
    found, expected = (DiffusionLM.from_pretrained(name, device="cpu") for name in (hub, folder))
    assert found.logits(ids).equal(expected.logits(ids)) and set(found.codec.end_ids()) == {tiny.END}


def test_of_a_hub_id_only_what_is_asked_for_is_fetched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def snapshot(name: str, *, allow_patterns: list[str], local_files_only: bool = False) -> str:
        assert name == "someone/llada"
        asked.append(allow_patterns)
        return str(folder)

    monkeypatch.setattr(files, "snapshot_download", snapshot)
    fetched("someone/llada")
    assert not any("safetensors" in pattern.removesuffix(".json") for pattern in asked[0])
    assert not any(pattern.endswith((".py", ".bin")) for pattern in asked[0])
    fetched("someone/llada", weights=True)
    weights = {file.name for file in weight_files(folder)} | {"adapter_model.safetensors"}
    assert set(asked[2]) == {*asked[0], *weights}


def test_an_unknown_hub_id_is_an_error_that_says_what_to_do(hub: str) -> None:
    with pytest.raises(CheckpointError, match=r"no folder someone/else, .*hub id such as"):
        load("someone/else", device="cpu")


def test_headers_of_a_cached_hub_id_are_read_there(hub: str, folder: Path) -> None:
    assert stored_weights(hub) == stored_weights(folder)


def test_headers_of_a_hub_id_are_read_without_a_download(
    hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in (tmp_path / "hub").rglob("*.safetensors"):
        file.unlink()
    tensors = {"a": TensorInfo("BF16", [4, 2], (0, 16)), "b": TensorInfo("F32", [2], (16, 24))}
    shards = {"model.safetensors": SafetensorsFileMetadata({}, tensors)}
    metadata = SafetensorsRepoMetadata(None, False, dict.fromkeys(tensors, "model.safetensors"), shards)
    monkeypatch.setattr(files, "get_safetensors_metadata", {"someone/llada": metadata}.get)
    assert stored_weights("someone/llada") == StoredWeights({"BF16": 8, "F32": 2}, 24, 1, ())


def test_a_hub_without_headers_is_an_error(hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in (tmp_path / "hub").rglob("*.safetensors"):
        file.unlink()

    def refuse(name: str) -> Any:
        raise huggingface_hub.errors.NotASafetensorsRepoError(f"{name} has none")

    monkeypatch.setattr(files, "get_safetensors_metadata", refuse)
    with pytest.raises(CheckpointError, match="someone/llada has none"):
        stored_weights("someone/llada")


def test_an_index_without_weights_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {}}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="weights in its index"):
        weight_files(tmp_path)


# --- a hub that is out of reach ---------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub may be asked, without a proxy, and nobody has asked yet."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(reach, "getproxies", dict)
    monkeypatch.setattr(reach, "_silences", {})


def refused(name: str) -> tuple[str, float]:
    """The message about a hub id, and how many seconds it took."""
    began = time.perf_counter()
    with pytest.raises(CheckpointError) as caught:
        load(name, device="cpu")
    return str(caught.value), time.perf_counter() - began


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "https://localhost:9", "http://nowhere.invalid"])
def test_a_hub_that_does_not_answer_is_said_at_once(
    asked: None, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    message, seconds = refused("someone/llada")
    assert f"{endpoint} cannot be reached" in message and seconds < 5
    assert "hub id such as Qwen/Qwen3-0.6B" in message


def test_a_hub_that_keeps_silent_is_waited_for_once(asked: None, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[object] = []

    def connect(address: object, timeout: float) -> None:
        tried.append(address)
        time.sleep(8)
        raise TimeoutError

    monkeypatch.setattr(reach.socket, "create_connection", connect)
    monkeypatch.setattr(reach, "_HUB_SECONDS", 0.2)
    for _ in range(3):
        message, seconds = refused("someone/llada")
        assert "cannot be reached" in message and seconds < 5
    assert tried == [("huggingface.co", 443)]


def test_what_is_in_the_cache_opens_without_the_hub(
    hub: str, folder: Path, asked: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert load(hub, device="cpu").backbone.diffusion == load(folder, device="cpu").backbone.diffusion
    assert stored_weights(hub) == stored_weights(folder)


def test_where_the_hub_may_not_be_asked_it_is_not(hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "_connects", None)
    assert "HF_HUB_OFFLINE forbids" in refused("someone/else")[0]


@pytest.mark.parametrize("name", ["a b/c", "-a/b", "a/b..c", "a/" + "b" * 97, "a/b.git"])
def test_a_malformed_hub_id_is_not_asked_for(asked: None, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "_connects", None)
    assert "it is no hub id either" in refused(name)[0]


def test_a_dataset_of_a_hub_that_does_not_answer_is_said_at_once(
    asked: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    source = HubSource.parsed("hf:someone/stories", "train")
    began = time.perf_counter()
    with pytest.raises(DataError, match=r"not in the local cache, and http://127\.0\.0\.1:9 cannot be reached"):
        source.identity()
    assert time.perf_counter() - began < 5 and not huggingface_hub.constants.HF_HUB_OFFLINE
