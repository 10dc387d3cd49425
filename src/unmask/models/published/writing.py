"""Checkpoints in a published format: the way back, for the code that reads theirs.

What a format cannot say is refused by name: what is written is read again, as any reader would, and must mean what was
there before.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import split_torch_state_dict_into_shards
from huggingface_hub.constants import SAFETENSORS_INDEX_FILE
from safetensors.torch import save_file
from torch import Tensor

from unmask.errors import CheckpointError
from unmask.models.files import CONFIG, GENERATION_CONFIG, TOKENIZER_CONFIG
from unmask.models.loading import Checkpoint
from unmask.models.prompts import PromptCodec
from unmask.models.published import experts
from unmask.models.published.format import PublishedFormat
from unmask.models.published.remote_code import code_files
from unmask.models.tokenizers import limited
from unmask.writing import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from unmask.settings.model import DiffusionConfig

# Says who wrote a configuration, or is written elsewhere: the type by the tensors, stop ids in generation_config.json;
# the power belongs to a schedule that is refused.
_NOT_COMPARED = {
    "_name_or_path",
    "architectures",
    "dtype",
    "eos_token_id",
    "transformers_version",
    "diffusion.schedule_power",
}


def save_published(
    checkpoint: Checkpoint,
    folder: Path,
    written: PublishedFormat,
    *,
    max_shard_size: int | str = "5GB",
    remote_code: Path | None = None,
) -> None:
    """Write a checkpoint into `folder` as the format's own code reads it.

    Args:
        checkpoint: of the format's family, without an adapter.
        folder: an empty one.
        written: the format.
        max_shard_size: largest file, in bytes or as text (`5GB`).
        remote_code: folder with the original's Python files, which are copied; without it `auto_map` leads to its
            authors' repository.

    Raises:
        CheckpointError: the network, its method or its vocabulary has no words in that format, or `remote_code` lacks
            a file.
    """
    network, tokenizer = checkpoint.backbone.network, checkpoint.tokenizer
    assert checkpoint.backbone.adapter is None, "the caller merges it first"
    assert network.config.model_type == written.family, "the caller chooses the format by the network"
    raw = _published_config(checkpoint, written)
    if remote_code is not None:
        raw["auto_map"] = written.local_code
        for file in code_files(remote_code, written):
            shutil.copyfile(file, folder / file.name)
    tensors = {written.published_tensor(name): tensor for name, tensor in experts.split(network.state_dict()).items()}
    if network.config.tie_word_embeddings:
        del tensors[written.published_tensor("lm_head.weight")]
    _save_tensors(tensors, folder, max_shard_size)
    write_json(folder / CONFIG, raw)
    write_json(folder / GENERATION_CONFIG, _generation_config(checkpoint))
    if tokenizer is not None:
        _save_tokenizer(tokenizer, folder, written)


def _save_tensors(tensors: Mapping[str, Tensor], folder: Path, max_shard_size: int | str) -> None:
    """One file, or several with an index. Views of one tensor (experts) are written one by one, without a copy."""
    plan = split_torch_state_dict_into_shards(dict(tensors), max_shard_size=max_shard_size)
    for file, names in plan.filename_to_tensors.items():
        save_file({name: tensors[name].contiguous() for name in names}, folder / file, metadata={"format": "pt"})
    if plan.is_sharded:
        write_json(folder / SAFETENSORS_INDEX_FILE, {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename})


def _generation_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Where to stop: the configuration's ids first, then the tokenizer's and those of the generation config."""
    config, tokenizer = checkpoint.backbone.network.config, checkpoint.tokenizer
    configured = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    ends = [one for one in dict.fromkeys([*configured, *PromptCodec(checkpoint).end_ids()]) if one is not None]
    padding = config.pad_token_id
    if padding is None and tokenizer is not None:
        padding = tokenizer.pad_token_id
    return {"eos_token_id": ends if len(ends) > 1 else next(iter(ends), None), "pad_token_id": padding}


def _published_config(checkpoint: Checkpoint, written: PublishedFormat) -> dict[str, Any]:
    """The format's config.json for a checkpoint, once it is known to say everything."""
    network, entry = checkpoint.backbone.network, checkpoint.backbone.diffusion
    config = network.config
    if entry.method != written.method or entry.mask_token_id is None:
        raise CheckpointError(
            f"{written.title}'s format holds {written.method} models, and this one is {entry.method}. Write it with "
            "--to unmask."
        )
    if written.mask_token_id not in (None, entry.mask_token_id):
        repository = next(iter(written.auto_map.values())).partition("--")[0]
        raise CheckpointError(
            f"{written.title}'s readers know the mask token by its id, {written.mask_token_id}, and this model's is "
            f"{entry.mask_token_id}. Train it with a tokenizer whose mask token has that id, as "
            f"data.tokenizer={repository}, or write it with --to unmask."
        )
    dtype = str(network.dtype).removeprefix("torch.")
    losses: list[list[str]] = []
    # The rows of the embedding, as published, or the ids in use where no tokenizer tells them.
    for size in (config.vocab_size, entry.vocabulary_size):
        raw = written.write(config, entry, vocabulary_size=size, dtype=dtype)
        again, meant = written.read(raw, {}, f"{written.title}'s config.json")
        losses.append(_differences((config, entry), (again, limited(meant, checkpoint.tokenizer))))
        if not losses[-1]:
            return raw
    raise CheckpointError(
        f"{written.title}'s format cannot say: {'; '.join(losses[0])}. Change that in the `diffusion` entry or the "
        "network, or write the checkpoint with --to unmask."
    )


def _differences(
    ours: tuple[PreTrainedConfig, DiffusionConfig], again: tuple[PreTrainedConfig, DiffusionConfig]
) -> list[str]:
    """What reads differently after the way there and back."""
    names = sorted(type(ours[0])().to_dict())
    triples = [(name, *(getattr(config, name, None) for config in (ours[0], again[0]))) for name in names]
    triples += [(f"diffusion.{key}", value, again[1].to_dict()[key]) for key, value in ours[1].to_dict().items()]
    return [
        f"`{name}: {was}` (it means {becomes})"
        for name, was, becomes in triples
        if was != becomes and name not in _NOT_COMPARED
    ]


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path, written: PublishedFormat) -> None:
    """The tokenizer's files, so that transformers 4, which the original's code needs, reads them too."""
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    file = folder / TOKENIZER_CONFIG
    said = json.loads(file.read_text(encoding="utf-8"))
    said["tokenizer_class"] = written.tokenizer_class
    if isinstance(said.get("extra_special_tokens"), list):
        said["additional_special_tokens"] = said.pop("extra_special_tokens")
    write_json(file, said)
