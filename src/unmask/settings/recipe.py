"""A recipe: everything that one training run needs, as one YAML file.

Its groups of settings are those of a stage, which a pipeline has several of; its name, folder and seed are its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from unmask.settings.adapter import AdapterSettings
from unmask.settings.checks import is_true
from unmask.settings.data import DataSettings
from unmask.settings.decoding import SamplingParams
from unmask.settings.evaluation import EvaluationSettings
from unmask.settings.model import ModelSettings
from unmask.settings.naming import check_name, check_output_dir
from unmask.settings.objective import ObjectiveSettings
from unmask.settings.training import TrainingSettings


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What a run is called, where it lies and what its draws hang on."""

    name: str = "run"
    """Name of the run: its folder inside output_dir."""
    output_dir: str = "runs"
    """Folder of all runs."""
    seed: int = 0
    """Seed of weights, data order and corruption."""

    def __post_init__(self) -> None:
        check_name(self.name)
        check_output_dir(self.output_dir)


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """What is trained, on what and how."""

    model: ModelSettings = field(default_factory=ModelSettings)
    """The network."""
    data: DataSettings = field(default_factory=DataSettings)
    """The text."""
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    """What is learned."""
    adapter: AdapterSettings = field(default_factory=AdapterSettings)
    """Which weights learn it: all, or a LoRA adapter."""
    training: TrainingSettings = field(default_factory=TrainingSettings)
    """How it is learned."""
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    """How held-out text is scored during training."""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    """How the samples in the run folder are generated."""

    def __post_init__(self) -> None:
        is_true(
            self.data.format == "text" or self.objective.random_length_probability == 0,
            "objective.random_length_probability cuts rows of text; a conversation would lose its answer. Set it to 0 "
            f"with data.format={self.data.format}.",
        )


@dataclass(frozen=True, kw_only=True)
class Recipe(StageSettings, RunSettings):
    """One training run."""

    def __post_init__(self) -> None:
        StageSettings.__post_init__(self)
        RunSettings.__post_init__(self)
