"""Unmask: train, convert, decode and evaluate diffusion language models next to autoregressive ones."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unmask.decoding.step import Step as Step
    from unmask.lm import DiffusionLM as DiffusionLM
    from unmask.lm import Output as Output
    from unmask.lm import Score as Score
    from unmask.settings.decoding import SamplingParams as SamplingParams

__version__ = "0.1.0"
__all__ = ["DiffusionLM", "Output", "SamplingParams", "Score", "Step", "__version__"]

_HOME = {
    "DiffusionLM": "unmask.lm",
    "Output": "unmask.lm",
    "SamplingParams": "unmask.settings.decoding",
    "Score": "unmask.lm",
    "Step": "unmask.decoding.step",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import unmask` stays cheap."""
    if name not in _HOME:
        raise AttributeError(f"module 'unmask' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
