"""Dropout for stock networks: of what attention and MLP add to the residual stream, and of what an adapter reads.

The stock classes have none, and PEFT's draws from the global generator, so forward hooks do it. Which values are
dropped is a function of (seed, step, row of the global batch, place, site, channel), so it is the same under gradient
checkpointing, after a resume and however the batch is split.
Shapes: B rows, L length, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from unmask import noise
from unmask.models.reading import read_rows
from unmask.noise import Purpose

_SITES = ("self_attn", "mlp")


class _Dropout:
    """Hooks that drop outputs; tell it the rows with `begin` before each forward."""

    def __init__(self, purpose: Purpose, probability: float, seed: int) -> None:
        self.purpose, self.probability, self.seed = purpose, probability, seed
        self._key_BL1: Tensor | None = None

    def begin(self, step: int, global_row_B: Tensor, length: int, *, starts: tuple[int, ...] = (0,)) -> None:
        """Draw for these rows from now on, until the next call; recomputed forwards draw the same.

        Rows that are copies of one text end to end say where each begins: a token's draws are those of its place in
        its copy, as the length of a copy is that of the longest text, which need not be among another split's rows.
        """
        column_L = torch.arange(length, device=global_row_B.device)
        start_C = torch.tensor(starts, device=column_L.device)
        copy_L = torch.bucketize(column_L, start_C, right=True) - 1
        place_L = column_L - start_C[copy_L] + (copy_L << 32)
        self._key_BL1 = noise.hashed(self.purpose, self.seed, step, global_row_B[:, None], place_L)[..., None]

    def _hook(self, site: int) -> Any:
        def drop(module: nn.Module, inputs: Any, output: Any) -> Any:
            if not module.training or self._key_BL1 is None:
                return output
            if isinstance(output, tuple):
                return (self._dropped(output[0], site), *output[1:])
            return self._dropped(output, site)

        return drop

    def _dropped(self, value_BLD: Tensor, site: int) -> Tensor:
        assert self._key_BL1 is not None
        channel_D = torch.arange(value_BLD.shape[-1], device=value_BLD.device)
        key_BL1 = self._key_BL1.to(value_BLD.device)
        if key_BL1.shape[:2] != value_BLD.shape[:2]:
            key_BL1 = read_rows(key_BL1)
        kept_BLD = noise.uniform(self.purpose, key_BL1, site, channel_D) >= self.probability
        return value_BLD * kept_BLD.to(value_BLD.dtype) / (1 - self.probability)


class ResidualDropout(_Dropout):
    """Dropout on what attention and MLP of every layer add.

    Args:
        decoder: the network without its head, with `layers`.
        probability: of dropping a value; the others are scaled up by 1 / (1 - probability).
        seed: of the draws.
    """

    def __init__(self, decoder: nn.Module, probability: float, *, seed: int) -> None:
        super().__init__(Purpose.DROPOUT, probability, seed)
        for number, layer in enumerate(decoder.layers):  # type: ignore[arg-type,union-attr]
            for site, name in enumerate(_SITES):
                getattr(layer, name).register_forward_hook(self._hook(2 * number + site))


class AdapterDropout(_Dropout):
    """Dropout on the input of every LoRA update below the head; arguments as in `ResidualDropout`."""

    def __init__(self, decoder: nn.Module, probability: float, *, seed: int) -> None:
        super().__init__(Purpose.ADAPTER_DROPOUT, probability, seed)
        inputs = [one.lora_dropout for one in decoder.modules() if hasattr(one, "lora_dropout")]
        for number, adapters in enumerate(inputs):
            for module in adapters.values():  # type: ignore[union-attr,operator]
                module.register_forward_hook(self._hook(number))  # type: ignore[union-attr]
