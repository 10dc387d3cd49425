"""What a checkpoint is and needs, told from its configuration and its files' headers; its weights stay unread.

The network is built on the meta device, so its sizes are those of the real one; only memory is an estimate.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from unmask.errors import CheckpointError
from unmask.lm import DiffusionLM
from unmask.models import adapters
from unmask.models.adapters import SavedAdapter
from unmask.models.files import TENSOR_TYPES, StoredWeights, stored_weights
from unmask.models.loading import outline, parameter_counts
from unmask.models.source import Source, read_source
from unmask.runs import RunFolder, locate
from unmask.settings.decoding import SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LORA_RANK = 16
# AdamW keeps four numbers for each trained one: the weight, its gradient and two moments, all in the weight's type.
_ADAMW = 4
# NF4 twice quantised: half a byte for each number, a byte for each block of 64, four for each 256 blocks.
_NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)


def describe(name: str | Path) -> dict[str, Any]:
    """Plain data about a run folder, model folder or hub id; sizes in bytes.

    Raises:
        CheckpointError: it is not supported, or its configuration is damaged. Damaged weights are `problems`.
    """
    located = locate(name)
    saved = adapters.find(located)
    base = located if saved is None else saved.base
    source = read_source(base)
    lm = DiffusionLM(outline(located))
    total, body = parameter_counts(lm.backbone.network)
    # An adapter may have given its base a mask row, which the base's own files do not hold.
    stored, problems = _stored(base, (lm if saved is None else DiffusionLM(outline(base))).backbone.network)
    return {
        "model": located,
        "run": _run(RunFolder(Path(name))),
        "adapter": None if saved is None else _adapter(saved),
        "format": _format(source),
        "parameters": total,
        "parameters_without_embeddings": body,
        **_network(lm),
        **_diffusion(lm),
        **_tokenizer(lm),
        "stored": stored,
        "problems": problems,
        **_memory(lm.backbone.network),
    }


def _format(source: Source) -> str:
    if source.published is not None:
        return source.published.title
    return "transformers" if source.entry is None else "Unmask"


def _adapter(saved: SavedAdapter) -> dict[str, Any]:
    return {
        "base": saved.base,
        "rank": saved.config.r,
        "alpha": saved.config.lora_alpha,
        "targets": sorted(saved.config.target_modules or ()),
        "quantization": saved.quantization,
    }


def _run(run: RunFolder) -> dict[str, Any] | None:
    """The checkpoints of a run folder, and the steps that its links mean."""
    if not run.exists():
        return None
    links = {name: None if (found := run.checkpoint(name)) is None else found.name for name in ("best", "latest")}
    return {"checkpoints": [f"step-{step}" for step in run.saved_steps()], **links}


def _network(lm: DiffusionLM) -> dict[str, Any]:
    config = lm.backbone.network.config
    return {
        "family": config.model_type,
        "network": type(lm.backbone.network).__name__,
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "attention_heads": config.num_attention_heads,
        "key_value_heads": config.num_key_value_heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        "context_length": lm.backbone.context_length,
        "rope_theta": config.rope_parameters["rope_theta"],
        "tied_embeddings": config.tie_word_embeddings,
        "embedding_rows": config.vocab_size,
    }


def _diffusion(lm: DiffusionLM) -> dict[str, Any]:
    entry = lm.backbone.diffusion
    params = dataclasses.asdict(lm.resolved(SamplingParams()))
    return {
        "method": entry.method,
        "mask_token_id": entry.mask_token_id,
        "vocabulary_size": entry.vocabulary_size,
        "block_length": entry.block_length,
        "logit_shift": entry.logit_shift,
        "schedule": entry.schedule,
        "stop_token_ids": sorted(lm.codec.end_ids()),
        "decoding": {key: value for key, value in params.items() if value is not None and value != ()},
    }


def _tokenizer(lm: DiffusionLM) -> dict[str, Any]:
    tokenizer, mask = lm.tokenizer, lm.backbone.diffusion.mask_token_id
    if tokenizer is None:
        return {"tokenizer": None, "mask_token": None, "chat_template": False}
    return {
        "tokenizer": type(tokenizer).__name__,
        "mask_token": None if mask is None else tokenizer.convert_ids_to_tokens(mask),
        "chat_template": bool(tokenizer.chat_template),
    }


def _stored(located: str, network: PreTrainedModel) -> tuple[dict[str, Any] | None, list[str]]:
    """What the files hold by their headers, and what is wrong with them."""
    try:
        stored = stored_weights(located)
    except CheckpointError as error:
        return None, [str(error)]
    values = {str(TENSOR_TYPES.get(key, key)).removeprefix("torch."): count for key, count in stored.values.items()}
    record = {"dtypes": values, "bytes": stored.size, "files": stored.files}
    return record, list(_problems(stored, network))


def _problems(stored: StoredWeights, network: PreTrainedModel) -> list[str]:
    problems = [f"{file} ends before its last tensor; copy it again" for file in stored.truncated]
    total, _ = parameter_counts(network)
    shared = network.get_output_embeddings().weight.numel() if network.config.tie_word_embeddings else 0  # type: ignore[union-attr]
    count = sum(stored.values.values())
    if count not in (total, total + shared):  # a tied head may be stored as well
        problems.append(f"the files hold {count:,} numbers, and the network has {total:,}")
    return problems


def _memory(network: PreTrainedModel) -> dict[str, Any]:
    """Bytes for the weights, and for training without its activations."""
    total, _ = parameter_counts(network)
    linear = [one for one in network.model.layers.modules() if isinstance(one, nn.Linear)]  # type: ignore[union-attr]
    quantized = sum(one.weight.numel() for one in linear)
    adapter = sum(LORA_RANK * (one.in_features + one.out_features) for one in linear)
    nf4 = round(quantized * _NF4_BYTES) + 2 * (total - quantized)
    return {
        "weights_memory": {"float32": 4 * total, "bfloat16": 2 * total, "nf4": nf4},
        "training_memory": {
            "adamw_float32": 4 * _ADAMW * total,
            "adamw_bfloat16": 2 * _ADAMW * total,
            "lora_bfloat16": 2 * total + 4 * _ADAMW * adapter,
            "lora_nf4": nf4 + 4 * _ADAMW * adapter,
        },
    }
