"""A small sound checkpoint of each kind, and ways to damage a copy of it."""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.malformed.case import Case
from unmask import DiffusionLM
from unmask.models import loading
from unmask.models.adapters import attach
from unmask.models.loading import Checkpoint
from unmask.models.tokenizers import byte_tokenizer
from unmask.settings.adapter import AdapterSettings
from unmask.settings.model import ModelSettings
from unmask.settings.objective import ObjectiveSettings

SHAPE = ModelSettings(
    hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1
)
INDEX = "model.safetensors.index.json"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32\nsize 12345\n"
Change = Callable[[Path], object]


@functools.cache
def _made() -> tempfile.TemporaryDirectory[str]:
    """A model in one file, the same in shards, and an adapter on it."""
    holder = tempfile.TemporaryDirectory()
    root = Path(holder.name)
    checkpoint = loading.adapted(
        loading.create(SHAPE, byte_tokenizer(), seed=0), ObjectiveSettings(method="masked_diffusion")
    )
    loading.save(checkpoint, root / "model")
    loading.save(checkpoint, root / "sharded", max_shard_size=5000)
    settings = AdapterSettings(rank=2)
    attach(checkpoint.backbone, settings, base=str(root / "model"), seed=0)
    loading.save(Checkpoint(checkpoint.backbone, checkpoint.tokenizer), root / "adapter")
    return holder


def copied(folder: Path, kind: str = "model") -> Path:
    """A copy of a sound checkpoint, to be damaged."""
    shutil.copytree(Path(_made().name) / kind, folder / "m")
    return folder / "m"


def opened(folder: Path) -> DiffusionLM:
    return DiffusionLM.from_pretrained(folder, device="cpu")


def damaged(change: Change, kind: str = "model") -> Callable[[Path], object]:
    """Open a copy of a checkpoint after a change to it."""

    def use(folder: Path) -> object:
        model = copied(folder, kind)
        change(model)
        return opened(model)

    return use


def case(name: str, message: str, change: Change, kind: str = "model") -> Case:
    return Case(name, damaged(change, kind), message)


def edited(file: str, **fields: Any) -> Change:
    """Set keys of a JSON file."""

    def change(model: Path) -> None:
        content = json.loads((model / file).read_text("utf-8")) | fields
        (model / file).write_text(json.dumps(content), "utf-8")

    return change


def entry(**fields: Any) -> Change:
    """Set keys of the `diffusion` entry."""

    def change(model: Path) -> None:
        content = json.loads((model / "config.json").read_text("utf-8"))
        content["diffusion"] |= fields
        (model / "config.json").write_text(json.dumps(content), "utf-8")

    return change


def mapped(place: Any) -> Change:
    """Let the index say that every tensor is in `place`."""

    def change(model: Path) -> None:
        content = json.loads((model / INDEX).read_text("utf-8"))
        content["weight_map"] = dict.fromkeys(content["weight_map"], place)
        (model / INDEX).write_text(json.dumps(content), "utf-8")

    return change


def replaced(file: str, content: bytes | str) -> Change:
    """Put other bytes into a file."""

    def change(model: Path) -> None:
        (model / file).unlink(missing_ok=True)
        (model / file).write_bytes(content.encode() if isinstance(content, str) else content)

    return change


def removed(*files: str) -> Change:
    def change(model: Path) -> None:
        for file in files:
            (model / file).unlink()

    return change


def linked(file: str, target: str) -> Change:
    """Put a link in the place of a file."""

    def change(model: Path) -> None:
        (model / file).unlink(missing_ok=True)
        (model / file).symlink_to(target)

    return change


def made_folder(file: str) -> Change:
    """Put a folder in the place of a file."""

    def change(model: Path) -> None:
        (model / file).unlink(missing_ok=True)
        (model / file).mkdir()

    return change


def all_of(*changes: Change) -> Change:
    def change(model: Path) -> None:
        for one in changes:
            one(model)

    return change


def cut(file: str, left: int) -> Change:
    """Keep the first bytes of a file."""

    def change(model: Path) -> None:
        content = (model / file).read_bytes()[:left]
        (model / file).write_bytes(content)

    return change


def header(entries: dict[str, Any] | list[Any] | str, *, values: bytes = b"") -> bytes:
    """A safetensors file with a header."""
    text = (entries if isinstance(entries, str) else json.dumps(entries)).encode()
    return len(text).to_bytes(8, "little") + text + values
