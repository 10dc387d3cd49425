"""What a diffusion model is measured by while it learns: three tiers of metrics on the same few rows of text.

In: the trainer's network, text and settings. Out: records for `metrics.jsonl`, whose names begin with `probe/`. The
first tier takes one forward over the probe without gradients; the second one a backward pass for each of its sequences;
the third one generates. Weights are those in training, not their average.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unmask.analysis.attention_metrics import attention_figures, attention_sums
from unmask.analysis.calibration import calibration_sums, confidences
from unmask.analysis.convergence import convergence, traces
from unmask.analysis.gradients import bucket_gradients, gradient_figures
from unmask.analysis.metrics import Sums, accuracies, sums, weight_effects
from unmask.analysis.probe import Part, Probe, masked_tokens, token_counts, token_runs
from unmask.analysis.schedule_optimality import schedule_figures
from unmask.analysis.token_frequency import bias_sums, frequency_bias, frequency_classes, written_tokens
from unmask.errors import SettingsError
from unmask.lm import DiffusionLM
from unmask.models.loading import Checkpoint
from unmask.objectives.example import Example
from unmask.objectives.loss import RowPredictions
from unmask.settings.recipe import Recipe
from unmask.training.distributed import is_sharded, summed
from unmask.training.module import TrainingModule
from unmask.training.preparation import TrainingText
from unmask.training.samples import probe_prompts

if TYPE_CHECKING:
    from accelerate import Accelerator

_MOST_ROWS = 64
_TEXTS = 4


class Measurements:
    """The metrics of one run.

    Args:
        recipe: of the run.
        checkpoint: whose backbone is trained.
        text: to measure on: held-out rows where there are any.
        module: the prepared training module.
        accelerator: its processes.

    Raises:
        SettingsError: there are fewer rows than processes, or more than the first tier is asked for of sharded weights.
    """

    def __init__(
        self,
        recipe: Recipe,
        checkpoint: Checkpoint,
        text: TrainingText,
        module: TrainingModule,
        accelerator: Accelerator,
    ) -> None:
        self.recipe, self.checkpoint, self.text = recipe, checkpoint, text
        self.module, self.accelerator = module, accelerator
        self.settings, self.backbone = recipe.training, checkpoint.backbone
        rows = text.held_out or text.train
        processes = accelerator.num_processes
        wanted = self.settings.probe_rows or min(self.settings.batch_size, _MOST_ROWS * processes)
        share = min(wanted, len(rows)) // processes
        _check(recipe, share, accelerator)
        self.probe = Probe(rows, share * processes, recipe.objective, self.backbone.diffusion, seed=recipe.seed)
        vocabulary = self.backbone.network.config.vocab_size  # of sharded weights a process has a part, or nothing
        self._count_V, fill_V = token_counts(text.train, vocabulary, seed=recipe.seed)
        self._most_frequent = int((self._count_V + fill_V).argmax())
        self._class_V = frequency_classes(self._count_V).to(accelerator.device)
        self._begin = share * accelerator.process_index
        self._end = self._begin + share

    def due(self, step: int, *, last: bool) -> dict[str, float]:
        """What is to be measured after `step` steps, which may be the last one; nothing at most steps."""
        settings, made = self.settings, {}
        detailed = _is_due(step, settings.detailed_metrics_steps)
        advanced = _is_due(step, settings.attention_analysis_steps)
        if not (detailed or advanced or last or _is_due(step, settings.logging_steps)):
            return {}
        self.module.eval()
        try:
            made |= self._predictions(detailed=detailed, advanced=advanced)
            # Compiling for rows of every length takes minutes, and uses up what the training's own batches may need.
            with torch.compiler.set_stance("force_eager"):
                if detailed:
                    made |= self._attention() | self._gradients()
                if advanced:
                    made |= self._texts()
        finally:
            self.module.train()
        return {f"probe/{name}": value for name, value in made.items()}

    # --- tiers --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _predictions(self, *, detailed: bool, advanced: bool) -> dict[str, float]:
        """The first tier, and what else follows from predictions alone."""
        found, calibration, bias = [], [], []
        for part in self._parts():
            seen = self._predicted(part.example, class_V=self._class_V if advanced else None)
            tokens = masked_tokens(part, seen)
            found.append(sums(tokens, most_frequent=self._most_frequent))
            if detailed:
                calibration.append(calibration_sums(seen, tokens.ratio_R))
            if advanced:
                bias.append(bias_sums(seen.mass_RC, self._class_V[tokens.target_R]))
        trained = found
        if self.probe.weights_differ:
            parts = self._parts(as_trained=True)
            trained = [sums(masked_tokens(part, self._predicted(part.example)), most_frequent=0) for part in parts]
        made = accuracies(_total(found).mapped(self._gathered))
        made |= weight_effects(_total(trained).mapped(self._gathered))
        if detailed:
            made |= confidences(self._gathered(torch.stack(calibration).sum(dim=0)))
        return made | (frequency_bias(self._gathered(torch.stack(bias).sum(dim=0))) if advanced else {})

    def _attention(self) -> dict[str, float]:
        parts = self.probe.parts(self._begin, self._end, 1)
        with self.accelerator.autocast():
            found = [attention_sums(self.backbone, part.example.to(self.accelerator.device)) for part in parts]
        return attention_figures(self._gathered(torch.stack(found).sum(dim=0)))

    def _gradients(self) -> dict[str, float]:
        device, unwrapped = self.accelerator.device, self.accelerator.unwrap_model(self.module)
        parameters = [one for one in unwrapped.parameters() if one.requires_grad]

        def examples() -> Iterator[Example]:
            return (part.example.to(device) for part in self.probe.parts(self._begin, self._end, 1))

        def total(example: Example) -> Tensor:
            return unwrapped(example, torch.ones(len(example.terms), dtype=torch.float64, device=device)).total

        tokens = max(1, self.probe.tokens)
        return gradient_figures(*bucket_gradients(examples, total, parameters, divisor=tokens, reduce=self._added))

    def _texts(self) -> dict[str, float]:
        """The rest of the third tier: the reveal schedule, and some texts; every process makes the same."""
        recipe, lm = self.recipe, DiffusionLM(self.checkpoint)
        rows = self.text.held_out or self.text.train
        made = schedule_figures(lm, token_runs(rows), recipe.sampling, seed=recipe.seed)
        found = traces(lm, probe_prompts(recipe, lm, self.text)[:_TEXTS], recipe.sampling)
        written = [token for one in found for token in one.tokens]
        real = itertools.chain.from_iterable(token_runs(rows))
        return (
            made
            | convergence(lm, found)
            | written_tokens(written, list(itertools.islice(real, len(written))), self._count_V)
        )

    # --- pieces -------------------------------------------------------------------------------------------------------

    def _parts(self, *, as_trained: bool = False) -> Iterator[Part]:
        """This process's rows, as many at a time as in training."""
        size = self.settings.micro_batch_size or max(1, self.settings.batch_size // self.accelerator.num_processes)
        return self.probe.parts(self._begin, self._end, size, as_trained=as_trained)

    def _predicted(self, example: Example, class_V: Tensor | None = None) -> RowPredictions:
        return self.module(example.to(self.accelerator.device), predicts=True, class_V=class_V)

    def _added(self, values: Tensor) -> Tensor:
        return summed(values, self.accelerator)

    def _gathered(self, values: Tensor) -> Tensor:
        return self._added(values).cpu()


def _check(recipe: Recipe, share: int, accelerator: Accelerator) -> None:
    """Raise SettingsError where a process has no row, or is asked for what takes all weights and has a part of them."""
    if share == 0:
        raise SettingsError(
            f"The probe has fewer rows than there are processes ({accelerator.num_processes}), got training.probe_rows="
            f"{recipe.training.probe_rows}. Hold more text out, or turn its metrics off: training.probe_rows=0"
        )
    for name in ("detailed_metrics_steps", "attention_analysis_steps"):
        if getattr(recipe.training, name) is not None and is_sharded(accelerator):
            raise SettingsError(
                f"training.{name} takes gradients of single rows and generates, each process by itself, which sharded "
                "weights (FSDP, DeepSpeed) do not allow. Leave it out, or measure without sharding."
            )


def _total(parts: list[Sums]) -> Sums:
    return functools.reduce(operator.add, parts)


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
