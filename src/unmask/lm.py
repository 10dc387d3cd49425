"""`DiffusionLM`: one object to load, generate, stream, score and save, for every method.

Prompts are texts, lists of token ids or chat messages; the tokenizer turns them into ids, the decoding that the
checkpoint is made for (or that the caller names) turns ids into ids, and the tokenizer turns those into text.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from unmask.attention import Layout
from unmask.decoding.autoregressive import AutoregressiveRun
from unmask.decoding.blocks import BlockRun
from unmask.decoding.canvas import CanvasRun
from unmask.decoding.jobs import Job, for_gaps, grouped
from unmask.decoding.step import Generated, Row, Run, Step, StopRule
from unmask.decoding.streaming import Streamer, feed, with_texts
from unmask.decoding.tidar import TidarRun
from unmask.errors import PromptError, SettingsError
from unmask.evaluation.likelihood import is_bound, row_nats
from unmask.evaluation.texts import text_batch
from unmask.models import cpu_linear, loading
from unmask.models.arguments import (
    check_count,
    check_layout,
    check_streamer,
    folder_path,
    id_rows,
    instance,
    model_name,
    params_of,
    pieces_of,
    prompts_of,
    rows_together,
    texts_of,
)
from unmask.models.backbone import AttentionBackend, Backbone
from unmask.models.folders import written_model
from unmask.models.loading import Checkpoint
from unmask.models.placement import device_of
from unmask.models.prompts import Prompt, PromptCodec
from unmask.outputs import Output, Score
from unmask.runs import locate
from unmask.settings.decoding import Decoding, SamplingParams
from unmask.settings.evaluation import EvaluationSettings
from unmask.settings.limits import check_draft, check_for_model
from unmask.settings.objective import ObjectiveSettings
from unmask.settings.typed import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_DEFAULT_DECODING: dict[str, Decoding] = {
    "autoregressive": "autoregressive",
    "masked_diffusion": "canvas",
    "block_diffusion": "blocks",
    "tidar": "tidar",
}
_RUNS = {"autoregressive": AutoregressiveRun, "canvas": CanvasRun, "blocks": BlockRun, "tidar": TidarRun}
# What such a checkpoint's block length is a default of.
_BLOCK_OPTION = {"block_diffusion": "block_length", "tidar": "draft_length"}


class DiffusionLM:
    """A language model of any supported method, with its tokenizer.

    Attributes:
        codec: prompts to token ids, and back.
        backbone: the network under the attention rule; `backbone.network` is the stock `transformers` model.
        tokenizer: None for a checkpoint that works on token ids.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        if not isinstance(checkpoint, Checkpoint):
            raise SettingsError(
                f"DiffusionLM takes a loaded checkpoint, got {shown(checkpoint)}. "
                "DiffusionLM.from_pretrained(name) loads one."
            )
        self.checkpoint = checkpoint
        self.codec = PromptCodec(checkpoint)

    @property
    def backbone(self) -> Backbone:
        """The network under the attention rule, with the checkpoint's `diffusion` entry."""
        return self.checkpoint.backbone

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The checkpoint's tokenizer, or None where it works on token ids alone."""
        return self.checkpoint.tokenizer

    def __repr__(self) -> str:
        total, _ = loading.parameter_counts(self.backbone.network)
        entry = self.backbone.diffusion
        return (
            f"DiffusionLM({entry.method}, {self.backbone.network.config.model_type}, {total:,} parameters, "
            f"{entry.vocabulary_size:,} ids, {self.backbone.device})"
        )

    @staticmethod
    def from_pretrained(
        name: str | Path,
        *,
        dtype: torch.dtype | str = "auto",
        device: torch.device | str | None = None,
        device_map: str | Mapping[str, Any] | None = None,
        attention_backend: AttentionBackend = "dense",
        objective: ObjectiveSettings | None = None,
    ) -> DiffusionLM:
        """Load a run folder, a model folder or a hub id.

        Args:
            name: the run (its final model, else its best one), the folder or the hub id.
            dtype: type of the weights: auto (as saved, the default), float32, bfloat16, float16 or float64; fp32, bf16,
                fp16, fp64 and `torch` types too.
            device: where to put it; default: the accelerator, else the CPU. Not with `device_map`.
            device_map: placement over several devices, as in `transformers`: auto, balanced, or modules to devices.
            attention_backend: `dense` or `flex`.
            objective: makes the checkpoint ready for a training method (below).

        Raises:
            CheckpointError: there is no such model, or it is damaged or not supported.
            SettingsError: the type or device does not exist here.

        With `objective` the checkpoint is made ready for a method, as training does: it gets a mask token and a block
        length if the method needs them. `settings.port_aliases.from_port` makes one from the first TiDAR port's words.
        """
        if objective is not None:
            instance("objective", ObjectiveSettings, objective)
        checkpoint = loading.load(
            locate(model_name(name)),
            dtype=dtype,
            device=device,
            device_map=device_map,
            attention_backend=attention_backend,
        )
        if objective is not None:
            checkpoint = loading.adapted(checkpoint, objective)
        return DiffusionLM(checkpoint)

    def optimize_for_inference(self) -> DiffusionLM:
        """Make decoding and scoring on a CPU faster, at the cost of memory; returns itself.

        The linear layers get copies of their weights that few rows are multiplied faster with: up to twice the memory
        of the weights in float32 and once in bfloat16, for models of at most 4 GiB (others stay as they are, as do
        those on an accelerator). The weights themselves stay untouched, and what is done with them (saving, moving,
        copying, training on) stays as it was; copies follow changes of their weights. Results differ in rounding only.
        """
        cpu_linear.optimize_for_inference(self.backbone.network)
        return self

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that `from_pretrained`, and plain `transformers`, open.

        What else is in the folder stays; a model of ours that is there is replaced.

        Raises:
            CheckpointError: the folder is a file, or holds a model that Unmask did not write.
        """
        with written_model(folder_path(folder)) as partial:
            loading.save(self.checkpoint, partial)

    def to(self, device: torch.device | str) -> DiffusionLM:
        """Move the model; returns itself."""
        self.backbone.to(device_of(device))
        return self

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt] | None = None,
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        batch_size: int = 32,
        streamer: Streamer | None = None,
    ) -> list[Output]:
        """Generate `n` texts for each prompt, prompt by prompt.

        Args:
            prompts: one prompt or a batch of any lengths; None generates without a prompt.
            params: one for all prompts or one for each.
            batch_size: rows that are decoded together; results do not depend on it in float32 and float64. In bfloat16
                matrix products of other shapes round differently, and near-ties may fall another way.
            streamer: of `transformers` or like them, for one prompt and one sample: its `put` is told the prompt and
                the tokens as they settle, up to a stop text; its `put_draft`, if it has one, what may still change.

        Raises:
            NonFiniteError: the model's distributions are NaN or infinite.
            PromptError: a prompt is empty, too long for the context, or needs a tokenizer that is not there.
            SettingsError: the parameters do not fit the decoding or the model.
        """
        size = rows_together(batch_size)
        if streamer is not None:
            check_streamer(streamer)
        encoded = self.codec.encode_all(cast("Prompt | None", prompts_of(prompts)))
        each = self._each(params, len(encoded))
        if any(one.infill_length for one in each):
            raise SettingsError(
                "infill_length belongs to infill, which takes texts with gaps. Use max_new_tokens here."
            )
        pairs = enumerate(zip(encoded, each, strict=True))
        jobs = [Job(Row(tuple(ids), 0, one.seed), one, number) for number, (ids, one) in pairs]
        if streamer is not None:
            return [self._streamed(jobs, streamer)]
        self._check_lengths(jobs)
        return self._run(jobs, size)

    def infill(
        self,
        texts: Sequence[Sequence[str]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        batch_size: int = 32,
    ) -> list[Output]:
        """Fill the gaps between the pieces of each text, which stay as they are, byte for byte.

        Args:
            texts: each a list of pieces; a gap lies between any two of them, so ["", "x"] has a gap in front.
            params: with `infill_length`, the tokens of the gaps; one for all texts or one for each. A gap's text ends
                at its first end-of-text token or stop text.
            batch_size: texts that are filled together; as in `generate`.

        Raises:
            PromptError: a text has no gap or is too long for the context.
            SettingsError: the parameters do not fit, or the model is autoregressive.
        """
        size, pieces_of_each = rows_together(batch_size), pieces_of(texts)
        given = params_of(params, len(pieces_of_each))
        given = [given] * len(pieces_of_each) if isinstance(given, SamplingParams) else given
        fitting = [for_gaps(one, len(pieces) - 1) for one, pieces in zip(given, pieces_of_each, strict=True)]
        jobs = []
        for number, (pieces, one) in enumerate(zip(pieces_of_each, self._each(fitting, len(fitting)), strict=True)):
            first, *others = self.codec.encode_pieces(pieces)
            self._check_context(len(first) + sum(map(len, others)), sum(one.infill_length))
            gaps = [(None,) * length for length in one.infill_length]
            rest = tuple(itertools.chain(*(part for pair in zip(gaps, others, strict=True) for part in pair)))
            jobs.append(Job(Row(tuple(first), 0, one.seed, rest), one, number, tuple(pieces)))
        check_count([job.params for job in jobs])
        return self._run(jobs, size)

    def stream(self, prompt: Prompt | None = None, params: SamplingParams | None = None) -> Iterator[Step]:
        """Generate one text and yield its `Step` after every forward; arguments as in `generate`.

        The last step's text is the one that `generate` returns, and what `settled_text` grows by adds up to it.
        """
        encoded = self.codec.encode_all(cast("Prompt | None", prompts_of(prompt)))
        if len(encoded) != 1:
            raise PromptError(f"stream takes one prompt, got {len(encoded)}. Call it for each, or use generate.")
        (ids,), (one,) = encoded, self._each(params, 1)
        self._check_context(len(ids), one.max_new_tokens)
        run = self._start([Row(tuple(ids), 0, one.seed)], one)
        reader = None if self.tokenizer is None else self.codec.reader(ids)
        while not run.done:
            run.advance()
            yield with_texts(run.observe(0), reader, one.stop, is_final=run.done)

    def score(
        self,
        texts: str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]],
        settings: EvaluationSettings | None = None,
    ) -> list[Score]:
        """Log-likelihood of each text: exact for autoregression and TiDAR, else a bound with its standard error.

        A text is scored after BOS, if the tokenizer has one; without it autoregression cannot score the first token.
        """
        settings = instance("settings", EvaluationSettings, settings or EvaluationSettings(masks_per_sequence=32))
        each = texts_of(texts)
        scores: list[Score] = []
        for start in range(0, len(each), settings.batch_size):
            batch = text_batch(self.codec, each[start : start + settings.batch_size])
            rows = row_nats(self.backbone, batch, settings)
            fields = zip(*(field.tolist() for field in rows), strict=True)
            scores += [Score(-nats, err, tokens, size, is_bound(self.backbone)) for nats, err, tokens, size in fields]
        return scores

    @torch.inference_mode()
    def logits(self, ids: Tensor | Sequence[Sequence[int]], *, layout: Layout | None = None) -> Tensor:
        """Raw logits, float [B, L, V], of token ids under a layout; the mask and unused ids are -inf.

        The default layout is the method's own over one document per row: causal for autoregression and TiDAR,
        block-causal for block diffusion, bidirectional for masked diffusion.
        """
        ids_BL = id_rows(ids, vocabulary=self.codec.num_ids).to(self.backbone.device)
        if layout is None:
            layout = self.backbone.clean_layout(torch.zeros_like(ids_BL))
        check_layout(layout, ids_BL, context=self.backbone.context_length)
        mask = self.backbone.render(layout, layout)
        position_ids_BL = layout.position_ids.expand_as(ids_BL)
        return self.backbone.logits(self.backbone(ids_BL, position_ids_BL, mask))

    def resolved(self, params: SamplingParams) -> SamplingParams:
        """The parameters with every default filled in, checked against this model."""
        instance("params", SamplingParams, params)
        check_for_model(params, context=self.backbone.context_length, vocabulary=self.codec.num_ids)
        entry = self.backbone.diffusion
        defaults = entry.decoding
        if entry.method in _BLOCK_OPTION:
            defaults = {_BLOCK_OPTION[entry.method]: entry.block_length} | defaults
        one = params.resolved(defaults, _DEFAULT_DECODING.get(entry.method, "autoregressive"))
        if one.decoding != "autoregressive" and entry.mask_token_id is None:
            raise SettingsError(
                f"{one.decoding} decoding needs a mask token, and this {entry.method} checkpoint has none. Use "
                "decoding `autoregressive`, or train it with objective.method=masked_diffusion (or block_diffusion, "
                "tidar) first."
            )
        check_draft(one)
        if one.stop and self.tokenizer is None:
            raise SettingsError("stop texts need a tokenizer, and this checkpoint has none. Use stop_token_ids.")
        return one

    def _each(self, params: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
        given = params_of(params, count)
        return [self.resolved(given)] * count if isinstance(given, SamplingParams) else list(map(self.resolved, given))

    def _run(self, jobs: Sequence[Job], batch_size: int) -> list[Output]:
        """Every sample of every job, in order; jobs with equal parameters are decoded together."""
        jobs = [dataclasses.replace(job, row=row) for job in jobs for row in job.samples()]
        outputs: dict[int, Output] = {}
        for group in grouped([job.params for job in jobs], batch_size):
            chosen = [jobs[index] for index in group]
            run = self._start([job.row for job in chosen], chosen[0].params)
            while not run.done:
                run.advance()
            for index, job, result in zip(group, chosen, run.results(), strict=True):
                outputs[index] = self._output(result, job)
        return [outputs[index] for index in range(len(jobs))]

    def _streamed(self, jobs: Sequence[Job], streamer: Streamer) -> Output:
        if len(jobs) != 1 or jobs[0].params.n != 1:
            raise SettingsError(
                f"A streamer takes one text, got {len(jobs)} prompts with n={jobs[0].params.n}. Call it for each."
            )
        self._check_lengths(jobs)
        (job,) = jobs
        run = self._start([job.row], job.params)
        mask_token_id = self.backbone.diffusion.mask_token_id
        feed(streamer, run, job.row.prompt, mask_token_id=mask_token_id, stop=self._stop_rule(job.params))
        return self._output(run.results()[0], job)

    def _start(self, rows: list[Row], params: SamplingParams) -> Run:
        run = _RUNS[params.decoding or "canvas"]
        return run(self.backbone.eval(), rows, params, self._stop_rule(params))

    def _check_lengths(self, jobs: Sequence[Job]) -> None:
        """Refuse what does not fit before any of it is begun, or has memory."""
        check_count([job.params for job in jobs])
        for job in jobs:
            self._check_context(len(job.row.prompt), job.params.max_new_tokens)

    def _check_context(self, known: int, new: int) -> None:
        if known + new > self.backbone.context_length:
            raise PromptError(
                f"The prompt has {known} tokens, which with {new} new ones exceed the model's context of "
                f"{self.backbone.context_length}. Shorten it or generate less."
            )

    def _stop_rule(self, params: SamplingParams) -> StopRule:
        eos_ids = self.codec.end_ids()
        if params.infill_length:
            return StopRule(eos_ids=eos_ids)
        ids = {*params.stop_token_ids, *(() if params.ignore_eos else eos_ids)}
        return StopRule(frozenset(ids), params.stop, eos_ids, None if self.tokenizer is None else self.codec.reader)

    def _text(self, before: Sequence[int], tokens: Sequence[int], params: SamplingParams) -> str:
        """What tokens add to those before them, up to a stop text."""
        return "" if self.tokenizer is None else self.codec.reader(before).until(tokens, params.stop)[0]

    def _output(self, result: Generated, job: Job) -> Output:
        params = job.params
        infills = self._infills(result.token_ids, job) if job.pieces else ()
        if job.pieces:
            text = "".join(part for pair in zip(job.pieces, [*infills, ""], strict=True) for part in pair)
        else:
            text = self._text(job.row.prompt, result.token_ids, params)
        return Output(
            text=text,
            token_ids=result.token_ids,
            finish_reason=result.finish_reason,
            forwards=result.forwards,
            commits=result.commits,
            prompt=job.number,
            sample=job.row.sample,
            revealed_at=result.revealed_at if params.trace else None,
            confidence=result.confidence if params.trace else None,
            log_probability=result.log_probability if params.trace else None,
            entropy=result.entropy if params.trace else None,
            infills=infills,
            acceptance=result.acceptance,
        )

    def _infills(self, tokens: Sequence[int], job: Job) -> tuple[str, ...]:
        """The text of each gap, up to its end."""
        ends = {*job.params.stop_token_ids, *(() if job.params.ignore_eos else self.codec.end_ids())}
        return tuple(self._text(before, gap, job.params) for before, gap in job.gaps(tokens, ends))
