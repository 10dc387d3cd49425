"""What a model is: the network of a new one, and the `diffusion` entry that every checkpoint of ours carries."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from unmask.errors import CheckpointError, nearest
from unmask.settings.checks import at_least, at_most, in_range, is_true
from unmask.settings.entry_checks import problem
from unmask.settings.typed import settings

Method = Literal["autoregressive", "masked_diffusion", "block_diffusion", "tidar"]
ScheduleName = Literal["linear", "cosine", "cosine_squared", "polynomial"]
Dtype = Literal["float32", "bfloat16", "float16", "float64"]
DEFAULT_BLOCK_LENGTH = 4
"""Of a model that becomes a block-diffusion model, and of published SDAR checkpoints that do not say theirs."""
DEFAULT_DRAFT_LENGTH = 8
"""Block length of a model that becomes a TiDAR model."""
MOST_CHANNELS, MOST_LAYERS, MOST_HEADS, MOST_POSITIONS = 2**18, 1024, 2**14, 2**31 - 1
"""Sizes that no network reaches, so that a slip of the finger is found before memory is asked for."""


@settings
class ModelSettings:
    """The network: a checkpoint to start from, or the shape of a new one."""

    from_pretrained: str | None = None
    """Folder, run or hub id of the checkpoint to continue; the shape below is then ignored."""
    family: Literal["llama", "qwen2", "qwen3"] = "qwen3"
    """Architecture of a new network: Llama, Qwen2 (Llama with biases on queries, keys and values) or Qwen3 (Llama with
    normalised queries and keys)."""
    hidden_size: int = 256
    """Width of the hidden states."""
    intermediate_size: int = 768
    """Width of the gated MLP (SwiGLU)."""
    num_hidden_layers: int = 4
    """Number of layers."""
    num_attention_heads: int = 4
    """Number of query heads."""
    num_key_value_heads: int = 2
    """Number of key and value heads; divides the query heads."""
    head_dim: int | None = None
    """Width of a head; default: hidden_size / num_attention_heads."""
    max_position_embeddings: int = 2048
    """Longest sequence, in tokens."""
    rope_theta: float = 10000.0
    """Base of the rotary position encoding."""
    tie_word_embeddings: bool = False
    """Share the input and output embeddings."""
    initializer_range: float = 0.02
    """Standard deviation of the initial weights."""
    dtype: Dtype = "float32"
    """Type of the weights; mixed precision is `training.precision`."""

    def __post_init__(self) -> None:
        is_true(
            self.from_pretrained is None or bool(self.from_pretrained.strip()),
            "from_pretrained must name a folder, run or hub id, got an empty text. Leave it out for a new network.",
        )
        channels = {"hidden_size": self.hidden_size, "intermediate_size": self.intermediate_size}
        heads = {
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
        }
        at_least(1, num_hidden_layers=self.num_hidden_layers, **channels, **heads)
        at_least(2, head_dim=self.head_dim, max_position_embeddings=self.max_position_embeddings)
        at_most(MOST_CHANNELS, **channels)
        at_most(MOST_LAYERS, num_hidden_layers=self.num_hidden_layers)
        at_most(MOST_HEADS, head_dim=self.head_dim, **heads)
        at_most(MOST_POSITIONS, max_position_embeddings=self.max_position_embeddings)
        in_range(1, 1e12, rope_theta=self.rope_theta)
        is_true(
            0 < self.initializer_range <= 10,
            f"initializer_range must lie above 0 and be at most 10, got {self.initializer_range}: weights that are all "
            "zero learn nothing.",
        )
        is_true(
            self.num_attention_heads % self.num_key_value_heads == 0,
            f"num_key_value_heads must divide num_attention_heads ({self.num_attention_heads}), "
            f"got {self.num_key_value_heads}.",
        )
        is_true(
            self.head_dim is not None or self.hidden_size % self.num_attention_heads == 0,
            f"hidden_size must be a multiple of num_attention_heads ({self.num_attention_heads}), "
            f"got {self.hidden_size}. Change one of them, or set head_dim.",
        )
        width = self.head_dim or self.hidden_size // self.num_attention_heads
        is_true(
            width % 2 == 0,
            f"head_dim must be even, for the rotary encoding turns pairs of channels, got {width}"
            + ("." if self.head_dim else f" (hidden_size {self.hidden_size} / {self.num_attention_heads} heads)."),
        )


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """The `diffusion` entry of a checkpoint's `config.json`: how its network was trained and is to be decoded.

    Attributes:
        method: training method, which also decides the default decoding.
        vocabulary_size: ids from here on are never predicted (spare embedding rows).
        mask_token_id: id of the mask token; None for a purely autoregressive model.
        block_length: diffusion block, for the block methods.
        clean_ratio: share of a row that was clean in training, for TiDAR's split layout; None for the doubled one.
        logit_shift: the prediction for a token stands one place before it (models adapted from AR, as Dream).
        schedule: masking schedule of the training.
        schedule_power: exponent of the polynomial schedule.
        decoding: default sampling parameters, by name.
        published: what the published configuration of a converted checkpoint said beyond its format's usual values and
            has no meaning here; given back when it is converted back.
        version: of this entry's format.
    """

    method: Method
    vocabulary_size: int
    mask_token_id: int | None = None
    block_length: int | None = None
    clean_ratio: float | None = None
    logit_shift: bool = False
    schedule: ScheduleName = "linear"
    schedule_power: float = 1.0
    decoding: dict[str, Any] = field(default_factory=dict)
    published: dict[str, Any] = field(default_factory=dict)
    version: int = 1

    @property
    def is_causal(self) -> bool:
        """Whether clean text is read causally: each token predicts the next one, and the likelihood is exact."""
        return self.method in ("autoregressive", "tidar")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `config.json`."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(entry: object, *, source: str) -> DiffusionConfig:
        """Read the entry of `source`; an unknown or missing key and a value of another kind are errors."""
        if not isinstance(entry, dict):
            raise CheckpointError(f"The `diffusion` entry of {source} must be an object, got {type(entry).__name__}.")
        names = [one.name for one in dataclasses.fields(DiffusionConfig)]
        for name in entry:
            if name not in names:
                raise CheckpointError(
                    f"The `diffusion` entry of {source} has the unknown key `{name}`. {nearest(name, names)} "
                    "A checkpoint written by a newer Unmask needs that version."
                )
        missing = [name for name in ("method", "vocabulary_size") if name not in entry]
        if missing:
            raise CheckpointError(f"The `diffusion` entry of {source} lacks {', '.join(missing)}. Convert it again.")
        for name, allowed in (("method", get_args(Method)), ("schedule", get_args(ScheduleName))):
            value = entry.get(name, allowed[0])
            if value not in allowed:
                raise CheckpointError(
                    f"The `diffusion` entry of {source} has the unknown {name} `{value}`. "
                    f"{nearest(str(value), allowed)}"
                )
        wrong = problem(entry)
        if wrong is not None:
            raise CheckpointError(f"The `diffusion` entry of {source} {wrong} Copy or convert the checkpoint again.")
        return DiffusionConfig(**entry)
