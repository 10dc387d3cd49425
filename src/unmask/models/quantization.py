"""Frozen weights in 4 bits (QLoRA; Dettmers et al., arXiv 2305.14314), through bitsandbytes.

NF4 with double quantisation: about 4.1 bits for each weight of the linear layers in attention and MLP. Embeddings, head
and norms keep their type, which is also the type of the products.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from unmask.errors import SettingsError, require

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PreTrainedModel


def nf4(dtype: torch.dtype, device: torch.device) -> BitsAndBytesConfig:
    """How `from_pretrained` is to quantise.

    Args:
        dtype: of the products and of what is not quantised.
        device: where the weights will be.

    Raises:
        MissingExtraError: bitsandbytes is not installed.
        SettingsError: it does not run here, or has no kernels for this type.
    """
    require("bitsandbytes", extra="qlora", purpose="adapter.quantization=nf4")
    if dtype == torch.float64:
        raise SettingsError(
            "adapter.quantization=nf4 works with model.dtype float32, bfloat16 or float16, not float64."
        )
    from transformers import BitsAndBytesConfig

    try:
        from bitsandbytes import functional

        packed, state = functional.quantize_4bit(
            torch.ones(64, 64, device=device), compress_statistics=True, quant_type="nf4"
        )
        functional.dequantize_4bit(packed, state)
    # Without its shared library it fails as an import or a file, without kernels for the device as a computation.
    except (ImportError, OSError, RuntimeError) as error:
        raise SettingsError(
            f"adapter.quantization=nf4 needs bitsandbytes, which does not run on {device}: {error} "
            "Train the adapter without it (adapter.quantization=null), or on a device that it supports."
        ) from None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=["lm_head"],
    )


def tame(network: PreTrainedModel) -> None:
    """Keep 4-bit layers as they were loaded.

    On a CPU with AVX-512 bf16, bitsandbytes repacks a layer at its first evaluation: with coarser scales, for a kernel
    without gradient, also when training goes on, and the way back is inexact.
    """
    for module in network.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def is_quantized(network: nn.Module) -> bool:
    """Whether the network's linear layers are in 4 bits."""
    return bool(getattr(network, "is_loaded_in_4bit", False))


def num_weights(parameter: Tensor) -> int:
    """How many weights a parameter stands for; two share a byte in 4 bits."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else cast(torch.Size, state.shape).numel()
