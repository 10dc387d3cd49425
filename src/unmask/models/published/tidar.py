"""The first public TiDAR port: `TiDARQwen2ForCausalLM` is `Qwen2ForCausalLM` under other masks; there is one head.

Covered: folders of its `save_pretrained` with safetensors files. Its own `from_pretrained` left keys of Qwen2's
configuration out (`rope_theta`, tied embeddings, ids); what config.json says is what it was trained with, so it is
taken as it is. It has no mask token: `<|endoftext|>` stood for one, and here a new token starts with its embedding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unmask.errors import CheckpointError
from unmask.models.published.format import QWEN_KEYS, PublishedFormat
from unmask.settings.model import DiffusionConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_END_OF_TEXT = 151643


@dataclass(frozen=True, kw_only=True)
class TidarFormat(PublishedFormat):
    """The port's format: block size, clean ratio and whether it is a TiDAR model at all stand in config.json."""

    def read(
        self, raw: Mapping[str, Any], generation: Mapping[str, Any], source: str
    ) -> tuple[PreTrainedConfig, DiffusionConfig]:
        """As for every format; `use_tidar: false` is an autoregressive model."""
        config, entry = super().read(raw, generation, source)
        ratio = raw.get("clean_ratio", 0.5)
        if not isinstance(ratio, int | float) or not 0 < ratio < 1:
            raise CheckpointError(
                f"{source} has `clean_ratio: {ratio}` in its config.json, which must lie between 0 and 1."
            )
        if not raw.get("use_tidar", True):
            return config, dataclasses.replace(entry, method="autoregressive", block_length=None, published={})
        return config, dataclasses.replace(entry, clean_ratio=float(ratio), published={})


def _complete(said: dict[str, Any]) -> dict[str, Any]:
    rotary = said.get("rope_parameters") or {}
    if rotary.get("rope_type", "default") != "default":
        raise CheckpointError(
            f"Its rotary positions are stretched (`rope_parameters: {rotary}`), which is not covered."
        )
    if set(said.get("layer_types") or ()) - {"full_attention"}:
        raise CheckpointError("It has layers with attention within a window (`layer_types`), which is not covered.")
    return {
        **said,
        "num_key_value_heads": said["num_key_value_heads"] or said["num_attention_heads"],
        "rope_theta": rotary.get("rope_theta", said["rope_theta"]),
    }


FORMAT = TidarFormat(
    name="tidar_qwen2",
    title="TiDAR port",
    model_type="tidar_qwen2",
    architectures=("TiDARQwen2ForCausalLM",),
    family="qwen2",
    auto_map={},
    keys={name: name for name in (*QWEN_KEYS, "max_window_layers")},
    defaults={
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 22016,
        "mask_token_id": None,
        "max_position_embeddings": 32768,
        "max_window_layers": 28,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "vocab_size": 151936,
    },
    constants={"hidden_act": "silu", "rope_scaling": None, "use_sliding_window": False},
    refused={
        "hidden_act": "another activation in the MLP",
        "quantization_config": "quantised weights",
        "rope_scaling": "stretched rotary positions",
        "use_sliding_window": "attention within a window",
    },
    complete=_complete,
    tokenizer_class="Qwen2Tokenizer",
    logit_shift=False,
    turn_ends={_END_OF_TEXT: 151645},  # <|endoftext|> -> <|im_end|>
    method="tidar",
    block_length=8,
    mask_copies=_END_OF_TEXT,
)
