"""The reference shape: one small Qwen3-like network and the two jobs that are timed on it.

Everything is a function of the shape and a seed, so that all contenders get the same weights and the same tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM


@dataclass(frozen=True)
class Shape:
    """Network, training batch and decoding job.

    Attributes:
        vocabulary: rows of the embeddings; the last one is the mask token.
        batch: rows of a training step.
        length: tokens of a training row.
        prompt: tokens of a prompt.
        new_tokens: places that decoding fills, one per forward.
        block_length: places of a block, where decoding has a cache.
        decoding_batches: how many texts are decoded together.
    """

    hidden: int = 256
    intermediate: int = 768
    layers: int = 4
    heads: int = 4
    key_value_heads: int = 2
    head_width: int = 64
    vocabulary: int = 4096
    batch: int = 16
    length: int = 256
    prompt: int = 32
    new_tokens: int = 128
    block_length: int = 32
    decoding_batches: tuple[int, ...] = (1, 8)

    @property
    def mask_token_id(self) -> int:
        return self.vocabulary - 1

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of the linear layers of one decoder layer."""
        width, key_width = self.heads * self.head_width, self.key_value_heads * self.head_width
        return {
            "q": (self.hidden, width),
            "k": (self.hidden, key_width),
            "v": (self.hidden, key_width),
            "o": (width, self.hidden),
            "gate": (self.hidden, self.intermediate),
            "up": (self.hidden, self.intermediate),
            "down": (self.intermediate, self.hidden),
        }

    def network(self, attention: str = "sdpa", *, spread: float = 0.02) -> Qwen3ForCausalLM:
        """The stock class with the same random weights at each call; `spread` is their standard deviation."""
        config = Qwen3Config(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_value_heads,
            head_dim=self.head_width,
            tie_word_embeddings=False,
            initializer_range=spread,
        )
        config._attn_implementation = attention
        torch.manual_seed(0)
        return Qwen3ForCausalLM(config)

    def clean_ids(self, step: int) -> Tensor:
        """Random tokens of a training step, int64 [batch, length]; never the mask."""
        return self._random(self.batch, self.length, seed=step)

    def prompts(self, count: int) -> Tensor:
        """Random prompts, int64 [count, prompt]."""
        return self._random(count, self.prompt, seed=1)

    def _random(self, rows: int, columns: int, *, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(0, self.mask_token_id, (rows, columns), generator=generator)


REFERENCE = Shape()
QUICK = Shape(
    hidden=32,
    intermediate=64,
    layers=2,
    heads=2,
    key_value_heads=1,
    head_width=16,
    vocabulary=2048,
    batch=4,
    length=32,
    prompt=8,
    new_tokens=12,
    block_length=4,
    decoding_batches=(1, 2),
)
