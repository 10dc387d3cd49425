"""Where a checkpoint's parts come from: its configuration read, its weights not yet.

In: a folder or hub id. Out: a `Source` with the configuration of the stock class and the diffusion entry, whatever
names and keys the files use; and, when asked, the weights as `from_pretrained` takes them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError

from unmask.errors import CheckpointError, SettingsError
from unmask.models.configurations import (
    check_fits,
    check_ids,
    check_kinds,
    check_not_quantized,
    check_sizes,
    check_stock,
)
from unmask.models.families import FAMILIES, Family, family_of
from unmask.models.files import CONFIG, GENERATION_CONFIG, TENSOR_TYPES, fetched, opened_tensors
from unmask.models.headers import counted, weight_files
from unmask.models.json_files import read_json
from unmask.models.published import experts
from unmask.models.published.format import PublishedFormat
from unmask.models.published.registry import FORMATS, published_format
from unmask.settings.decoding import SamplingParams
from unmask.settings.model import DiffusionConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_GIVE = (
    f"Give a folder whose {CONFIG} has one of the model types "
    f"{', '.join((*FAMILIES, *(one.model_type for one in FORMATS.values())))}, a run folder, or a hub id such as "
    "Qwen/Qwen3-0.6B."
)


@dataclass(frozen=True)
class Source:
    """A checkpoint of which only the configuration has been read.

    Attributes:
        name: as the user gave it.
        folder: where its small files are.
        config: of the stock class.
        family: of the network.
        entry: the diffusion entry, or None for a checkpoint that has none.
        published: the format that its names follow, or None for stock ones.
    """

    name: str
    folder: Path
    config: PreTrainedConfig
    family: Family
    entry: DiffusionConfig | None
    published: PublishedFormat | None


def read_source(name: str | Path) -> Source:
    """Read the configuration of a folder or hub id.

    Raises:
        CheckpointError: there is none, or it is damaged, contradicts itself or is not supported.
    """
    folder = fetched(name)
    raw = read_json(folder, CONFIG)
    if raw is None:
        raise CheckpointError(f"{name} holds no {CONFIG}. {_GIVE}")
    generation = read_json(folder, GENERATION_CONFIG) or {}
    check_kinds(raw, str(name))
    check_not_quantized(raw, str(name))
    for file, said in ((CONFIG, raw), (GENERATION_CONFIG, generation)):
        check_ids(said, file, str(name))
    published = published_format(raw, str(name))
    if published is not None:
        config, entry = published.read(raw, generation, str(name))
    else:
        check_stock(raw, folder, str(name))
        config = _stock_config(folder, raw, str(name))
        given = raw.get("diffusion")
        entry = None if given is None else entry_of(given, str(name))
    family = family_of(config, str(name))
    check_sizes({field: getattr(config, field, None) for field in config.to_dict()}, str(name))
    return Source(str(name), folder, config, family, entry, published)


def entry_of(given: object, source: str) -> DiffusionConfig:
    """The diffusion entry that a file holds, with its default decoding.

    Raises:
        CheckpointError: it is damaged.
    """
    entry = DiffusionConfig.from_dict(given, source=source)
    try:
        SamplingParams(**entry.decoding)
    except (SettingsError, TypeError, ValueError) as error:
        raise CheckpointError(f"The default decoding in the `diffusion` entry of {source} is wrong: {error}") from None
    return entry


@contextlib.contextmanager
def weights_of(source: Source, dtype: torch.dtype | str) -> Iterator[dict[str, Any]]:
    """Arguments of `from_pretrained` for the weights and their type.

    Published tensors are handed over as slices under their stock names, so that each is read when its place in the
    network is filled, and no second copy of the weights exists. (`key_mapping=` would rename them back when saving.)
    """
    folder = fetched(source.name, weights=True)
    files = weight_files(folder)
    stored = counted(files)
    if stored.truncated:
        raise CheckpointError(
            f"{folder / stored.truncated[0]} cannot be loaded: it ends before its last tensor. Copy it again."
        )
    check_fits(source.config, stored, source.name)
    if source.published is None:
        # By name, so that nothing but safetensors files is ever opened; else pickled ones would stand in for them.
        yield {"pretrained_model_name_or_path": folder, "dtype": dtype, "use_safetensors": True}
        return
    with opened_tensors(folder) as tensors:
        if source.family.model_type == "qwen3_moe":
            experts.check(tensors, source.config, source.name)
        if dtype == "auto" and source.config.dtype is None:
            dtype = next((TENSOR_TYPES.get(one.get_dtype(), dtype) for one in tensors.values()), torch.float32)
        renamed = {source.published.stock_tensor(name): slice_ for name, slice_ in tensors.items()}
        yield {"pretrained_model_name_or_path": None, "state_dict": renamed, "dtype": dtype}


def _stock_config(folder: Path, raw: Mapping[str, Any], name: str) -> PreTrainedConfig:
    from transformers import AutoConfig

    if not isinstance(raw.get("model_type"), str):
        raise CheckpointError(f"{name} has no model type in its {CONFIG}: {raw.get('model_type')!r}. {_GIVE}")
    if raw.get("transformers_weights") is not None:
        raise CheckpointError(
            f"{name} names its weights itself (`transformers_weights: {raw['transformers_weights']}` in its {CONFIG}). "
            "Take the key out, and call the file model.safetensors."
        )
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except StrictDataclassError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"The configuration of {name} contradicts itself: {reason}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(f"The model configuration of {name} is not supported: {reason} {_GIVE}") from None
