"""Checkpoints in a published format: the way back, for the code that reads theirs.

What a format cannot say is refused by name: what is written is read again, as any reader would, and must mean what was
there before.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import save_torch_state_dict

from unmask.errors import CheckpointError
from unmask.models.files import CONFIG, GENERATION_CONFIG, TOKENIZER_CONFIG
from unmask.models.loading import Checkpoint
from unmask.models.published.format import PublishedFormat
from unmask.models.tokenizers import limited

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
    checkpoint: Checkpoint, folder: Path, written: PublishedFormat, *, max_shard_size: int | str = "5GB"
) -> None:
    """Write a checkpoint into `folder` as the format's own code reads it.

    Raises:
        CheckpointError: the network, its method or its vocabulary has no words in that format.
    """
    network, tokenizer = checkpoint.backbone.network, checkpoint.tokenizer
    assert checkpoint.backbone.adapter is None, "the caller merges it first"
    raw = _published_config(checkpoint, written)
    tensors = {written.published_tensor(name): tensor for name, tensor in network.state_dict().items()}
    if network.config.tie_word_embeddings:
        del tensors[written.published_tensor("lm_head.weight")]
    save_torch_state_dict(tensors, folder, max_shard_size=max_shard_size)
    generation = {"eos_token_id": network.config.eos_token_id, "pad_token_id": network.config.pad_token_id}
    _write_json(folder / CONFIG, raw)
    _write_json(folder / GENERATION_CONFIG, generation)
    if tokenizer is not None:
        _save_tokenizer(tokenizer, folder, written)


def _published_config(checkpoint: Checkpoint, written: PublishedFormat) -> dict[str, Any]:
    """The format's config.json for a checkpoint, once it is known to say everything."""
    network, entry = checkpoint.backbone.network, checkpoint.backbone.diffusion
    config = network.config
    if config.model_type != written.family:
        raise CheckpointError(
            f"{written.title}'s format holds {written.family} networks, and this one is a {config.model_type}. "
            "Write it with --to unmask."
        )
    if entry.method != "masked_diffusion" or entry.mask_token_id is None:
        raise CheckpointError(
            f"{written.title}'s format holds masked-diffusion models, and this one is {entry.method}. Write it with "
            "--to unmask."
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
    _write_json(file, said)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
