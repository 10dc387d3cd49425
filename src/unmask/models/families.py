"""The networks that Unmask drives: stock `transformers` classes, by `model_type`.

A family says which configuration and model class to use. What our attention seam would silently drop (sliding
windows, attention sinks, soft-capped scores) is refused by name.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unmask.errors import CheckpointError, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Family:
    """One `model_type` and the names of its stock classes."""

    model_type: str
    config_class: str
    model_class: str

    def config(self, **fields: Any) -> PreTrainedConfig:
        """A configuration of this family."""
        return getattr(importlib.import_module("transformers"), self.config_class)(**fields)

    def model(self) -> type[PreTrainedModel]:
        """The stock class with its language-model head."""
        return getattr(importlib.import_module("transformers"), self.model_class)


FAMILIES = {
    family.model_type: family
    for family in (
        Family("llama", "LlamaConfig", "LlamaForCausalLM"),
        Family("qwen2", "Qwen2Config", "Qwen2ForCausalLM"),
        Family("qwen3", "Qwen3Config", "Qwen3ForCausalLM"),
        Family("qwen3_moe", "Qwen3MoeConfig", "Qwen3MoeForCausalLM"),
    )
}


def family_of(config: PreTrainedConfig, source: str) -> Family:
    """The family of a checkpoint's configuration.

    Raises:
        CheckpointError: the architecture is not supported, or uses attention that our rule cannot express.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise CheckpointError(
            f"{source} is a `{config.model_type}` model, which is not supported. {nearest(config.model_type, FAMILIES)}"
        )
    reason = _foreign_attention(config)
    if reason:
        raise CheckpointError(
            f"{source} uses {reason}, which our attention would silently drop. Use a checkpoint with full attention."
        )
    return family


def _foreign_attention(config: PreTrainedConfig) -> str | None:
    layer_types = set(getattr(config, "layer_types", None) or ())
    if layer_types - {"full_attention"}:
        return f"layers of the types {', '.join(sorted(layer_types))}"
    if config.model_type == "qwen3_moe" and getattr(config, "sliding_window", None) is not None:
        return f"a sliding window of {config.sliding_window} tokens"
    for name in ("attn_logit_softcapping", "final_logit_softcapping", "attention_sinks", "use_attention_sinks"):
        if getattr(config, name, None):
            return f"`{name}`"
    return None
