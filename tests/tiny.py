"""Tiny real models and rows for the tests."""

import torch

from unmask.models.backbone import Backbone
from unmask.models.loading import Checkpoint, adapted, create
from unmask.settings.model import ModelSettings
from unmask.settings.objective import ObjectiveSettings

SHAPE = ModelSettings(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    initializer_range=0.3,
)


def checkpoint(method: str, *, vocabulary: int = 23, seed: int = 0, **objective: object) -> Checkpoint:
    """A two-layer model with random float64 weights, without tokenizer."""
    made = create(SHAPE, None, seed=seed, size=vocabulary)
    settings = ObjectiveSettings(method=method, **objective)  # type: ignore[arg-type]
    return Checkpoint(adapted(made, settings).backbone.double().eval(), None)


def backbone(method: str, *, vocabulary: int = 23, seed: int = 0, **objective: object) -> Backbone:
    return checkpoint(method, vocabulary=vocabulary, seed=seed, **objective).backbone


def random_ids(*shape: int, vocabulary: int = 23, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, vocabulary, shape, generator=torch.Generator().manual_seed(seed))
