"""Dream (arXiv 2508.15487): `DreamModel` is `Qwen2ForCausalLM` with full attention, read one place earlier.

Covered: Dream-v0-Base-7B, -Instruct-7B and what shares their configuration. It continues Qwen2.5, so the prediction for
a token stands where an autoregressive model has it, one place before. Its tokenizer is Qwen2's with two more tokens.
"""

from __future__ import annotations

from typing import Any

from unmask.models.published.format import QWEN_KEYS, PublishedFormat

_CODE = "Dream-org/Dream-v0-Instruct-7B--"


def _complete(said: dict[str, Any]) -> dict[str, Any]:
    return {**said, "num_key_value_heads": said["num_key_value_heads"] or said["num_attention_heads"]}


FORMAT = PublishedFormat(
    name="dream",
    title="Dream",
    model_type="Dream",
    architectures=("DreamModel",),
    family="qwen2",
    auto_map={
        "AutoConfig": f"{_CODE}configuration_dream.DreamConfig",
        "AutoModel": f"{_CODE}modeling_dream.DreamModel",
    },
    keys={name: name for name in (*QWEN_KEYS, "max_window_layers")},
    defaults={
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 22016,
        "mask_token_id": 151666,
        "max_position_embeddings": 32768,
        "max_window_layers": 28,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "pad_token_id": 151643,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "vocab_size": 151936,
    },
    constants={
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "rope_scaling": None,
        "sliding_window": None,
        "transformers_version": "4.46.2",
        "use_cache": True,
        "use_mrope": False,
        "use_sliding_window": False,
    },
    refused={
        "block_size": "block diffusion (Dream-Reasoner), which is trained and decoded otherwise",
        "head_dim": "heads whose width is not hidden_size / num_attention_heads",
        "hidden_act": "another activation in the MLP",
        "num_experts": "a mixture of experts",
        "quantization_config": "quantised weights",
        "rope_parameters": "rotary settings in the words of transformers 5",
        "rope_scaling": "stretched rotary positions",
        "use_mrope": "rotary positions for images",
        "use_sliding_window": "attention within a window",
    },
    complete=_complete,
    tokenizer_class="Qwen2Tokenizer",
    logit_shift=True,
    turn_ends={151643: 151645},  # <|endoftext|> -> <|im_end|>
)
