"""A pipeline: pre-training, supervised fine-tuning and inference in one YAML file."""

from __future__ import annotations

import dataclasses
from dataclasses import field
from typing import Literal

from unmask.settings.decoding import SamplingParams
from unmask.settings.recipe import Recipe, RunSettings, StageSettings
from unmask.settings.typed import settings

TrainedStage = Literal["pretraining", "sft"]
StageName = Literal["pretraining", "sft", "inference"]


@settings
class InferenceSettings:
    """What the finished model is asked."""

    prompts: tuple[str, ...] = ()
    """Texts to continue or messages to answer; `--prompt` takes their place."""
    chat: bool | None = None
    """Whether a prompt is a user's message; default: yes if the model's tokenizer has a chat template."""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    """How the answers are generated."""


@settings
class PipelineRecipe(RunSettings):
    """Stages that run in order, each from the best checkpoint of the one before.

    The run folder of a stage is `output_dir/name/STAGE`.
    """

    pretraining: StageSettings = field(default_factory=StageSettings)
    """Training on text, from scratch or from `pretraining.model.from_pretrained`."""
    sft: StageSettings = field(default_factory=StageSettings)
    """Fine-tuning on chats; starts from the result of pretraining unless `sft.model.from_pretrained` is given."""
    inference: InferenceSettings = field(default_factory=InferenceSettings)
    """Prompts for the result."""

    def stage(self, name: TrainedStage) -> StageSettings:
        """The settings of a trained stage."""
        return self.pretraining if name == "pretraining" else self.sft

    def recipe(self, name: TrainedStage, *, start: str | None) -> Recipe:
        """The recipe of a trained stage that starts from the model `start` (None: from random weights)."""
        settings = self.stage(name)
        groups = {one.name: getattr(settings, one.name) for one in dataclasses.fields(StageSettings)}
        groups["model"] = dataclasses.replace(settings.model, from_pretrained=start)
        return Recipe(name=name, output_dir=f"{self.output_dir}/{self.name}", seed=self.seed, **groups)
