"""`DiffusionLM`: one object to load, generate, stream, score and save, for every method.

Prompts are texts, lists of token ids or chat messages; the tokenizer turns them into ids, the decoding that the
checkpoint is made for (or that the caller names) turns ids into ids, and the tokenizer turns those into text.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from unmask.attention import Layout
from unmask.decoding.autoregressive import AutoregressiveRun
from unmask.decoding.blocks import BlockRun
from unmask.decoding.canvas import CanvasRun
from unmask.decoding.step import Generated, Row, Run, Step, StopRule
from unmask.decoding.streaming import Streamer, feed
from unmask.decoding.tidar import TidarRun
from unmask.errors import PromptError, SettingsError
from unmask.evaluation.likelihood import is_bound, row_nats
from unmask.evaluation.texts import text_batch
from unmask.models import cpu_linear, loading
from unmask.models.backbone import AttentionBackend, Backbone
from unmask.models.continuations import MASK_GLYPH, Continuation
from unmask.models.folders import written_model
from unmask.models.loading import Checkpoint
from unmask.models.prompts import Prompt, PromptCodec, is_ids
from unmask.outputs import Output, Score
from unmask.runs import locate
from unmask.settings.decoding import Decoding, SamplingParams
from unmask.settings.evaluation import EvaluationSettings
from unmask.settings.objective import ObjectiveSettings

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
        self.checkpoint = checkpoint
        self.codec = PromptCodec(checkpoint)

    @property
    def backbone(self) -> Backbone:
        return self.checkpoint.backbone

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
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
        """Load a run folder, a model folder or a hub id; arguments as in `unmask.models.loading.load`.

        With `objective` the checkpoint is made ready for a method, as training does: it gets a mask token and a block
        length if the method needs them. `settings.port_aliases.from_port` makes one from the first TiDAR port's words.
        `optimize_for_inference` makes the model faster on a CPU.
        """
        checkpoint = loading.load(
            locate(name), dtype=dtype, device=device, device_map=device_map, attention_backend=attention_backend
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
        with written_model(Path(folder)) as partial:
            loading.save(self.checkpoint, partial)

    def to(self, device: torch.device | str) -> DiffusionLM:
        """Move the model; returns itself."""
        self.backbone.to(device)
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
        encoded = self.codec.encode_all(prompts)
        each = self._each(params, len(encoded))
        if any(one.infill_length for one in each):
            raise SettingsError(
                "infill_length belongs to infill, which takes texts with gaps. Use max_new_tokens here."
            )
        pairs = enumerate(zip(encoded, each, strict=True))
        jobs = [_Job(Row(tuple(ids), 0, one.seed), one, number) for number, (ids, one) in pairs]
        return self._run(jobs, batch_size) if streamer is None else [self._streamed(jobs, streamer)]

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
        params = params or SamplingParams()
        each = list(params) if isinstance(params, Sequence) else [params] * len(texts)
        each = self._each(
            [_for_gaps(one, len(pieces) - 1) for one, pieces in zip(each, texts, strict=False)], len(texts)
        )
        jobs = []
        for number, (pieces, one) in enumerate(zip(texts, each, strict=True)):
            first, *others = self.codec.encode_pieces(pieces)
            gaps = [(None,) * length for length in one.infill_length]
            rest = tuple(itertools.chain(*(part for pair in zip(gaps, others, strict=True) for part in pair)))
            jobs.append(_Job(Row(tuple(first), 0, one.seed, rest), one, number, tuple(pieces)))
        return self._run(jobs, batch_size)

    def stream(self, prompt: Prompt | None = None, params: SamplingParams | None = None) -> Iterator[Step]:
        """Generate one text and yield its `Step` after every forward; arguments as in `generate`.

        The last step's text is the one that `generate` returns, and what `settled_text` grows by adds up to it.
        """
        (ids,) = self.codec.encode_all(prompt)
        one = self._each(params, 1)[0]
        run = self._start([Row(tuple(ids), 0, one.seed)], one)
        reader = None if self.tokenizer is None else self.codec.reader(ids)
        while not run.done:
            run.advance()
            yield _told(run.observe(0), reader, one, is_final=run.done)

    def score(
        self,
        texts: str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]],
        settings: EvaluationSettings | None = None,
    ) -> list[Score]:
        """Log-likelihood of each text: exact for autoregression and TiDAR, else a bound with its standard error.

        A text is scored after BOS, if the tokenizer has one; without it autoregression cannot score the first token.
        """
        settings = settings or EvaluationSettings(masks_per_sequence=32)
        single = isinstance(texts, str) or is_ids(texts)
        each = cast("list[str | Sequence[int]]", [texts] if single else list(texts))
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
        ids_BL = torch.as_tensor(ids, device=self.backbone.device)
        if layout is None:
            layout = self.backbone.clean_layout(torch.zeros_like(ids_BL))
        mask = self.backbone.render(layout, layout)
        position_ids_BL = layout.position_ids.expand_as(ids_BL)
        return self.backbone.logits(self.backbone(ids_BL, position_ids_BL, mask))

    def resolved(self, params: SamplingParams) -> SamplingParams:
        """The parameters with every default filled in, checked against this model."""
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
        if one.stop and self.tokenizer is None:
            raise SettingsError("stop texts need a tokenizer, and this checkpoint has none. Use stop_token_ids.")
        return one

    def _each(self, params: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
        if params is None or isinstance(params, SamplingParams):
            return [self.resolved(params or SamplingParams())] * count
        if len(params) != count:
            raise SettingsError(f"Give one SamplingParams for all prompts or one for each: {count}, got {len(params)}.")
        return [self.resolved(one) for one in params]

    def _run(self, jobs: Sequence[_Job], batch_size: int) -> list[Output]:
        """Every sample of every job, in order; jobs with equal parameters are decoded together."""
        jobs = [dataclasses.replace(job, row=row) for job in jobs for row in job.samples()]
        outputs: dict[int, Output] = {}
        for group in _grouped([job.params for job in jobs], batch_size):
            chosen = [jobs[index] for index in group]
            run = self._start([job.row for job in chosen], chosen[0].params)
            while not run.done:
                run.advance()
            for index, job, result in zip(group, chosen, run.results(), strict=True):
                outputs[index] = self._output(result, job)
        return [outputs[index] for index in range(len(jobs))]

    def _streamed(self, jobs: Sequence[_Job], streamer: Streamer) -> Output:
        if len(jobs) != 1 or jobs[0].params.n != 1:
            raise SettingsError(
                f"A streamer takes one text, got {len(jobs)} prompts with n={jobs[0].params.n}. Call it for each."
            )
        (job,) = jobs
        run = self._start([job.row], job.params)
        mask_token_id = self.backbone.diffusion.mask_token_id
        feed(streamer, run, job.row.prompt, mask_token_id=mask_token_id, stop=self._stop_rule(job.params))
        return self._output(run.results()[0], job)

    def _start(self, rows: list[Row], params: SamplingParams) -> Run:
        longest = max((row.template(params.max_new_tokens) for row in rows), key=len)
        if len(longest) > self.backbone.context_length:
            new = longest.count(None)
            raise PromptError(
                f"The prompt has {len(longest) - new} tokens, which with {new} new ones exceed the model's context of "
                f"{self.backbone.context_length}. Shorten it or generate less."
            )
        run = _RUNS[params.decoding or "canvas"]
        return run(self.backbone.eval(), rows, params, self._stop_rule(params))

    def _stop_rule(self, params: SamplingParams) -> StopRule:
        eos_ids = self.codec.end_ids()
        if params.infill_length:
            return StopRule(eos_ids=eos_ids)
        ids = {*params.stop_token_ids, *(() if params.ignore_eos else eos_ids)}
        return StopRule(frozenset(ids), params.stop, eos_ids, None if self.tokenizer is None else self.codec.reader)

    def _text(self, before: Sequence[int], tokens: Sequence[int], params: SamplingParams) -> str:
        """What tokens add to those before them, up to a stop text."""
        return "" if self.tokenizer is None else self.codec.reader(before).until(tokens, params.stop)[0]

    def _output(self, result: Generated, job: _Job) -> Output:
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

    def _infills(self, tokens: Sequence[int], job: _Job) -> tuple[str, ...]:
        """The text of each gap, up to its end."""
        ends = {*job.params.stop_token_ids, *(() if job.params.ignore_eos else self.codec.end_ids())}
        filled = iter(tokens)
        whole = [next(filled) if token is None else token for token in job.row.template(0)]
        starts = [place for place, token in enumerate(job.row.template(0)) if token is None]
        found, done = [], 0
        for length in job.params.infill_length:
            start = starts[done]
            done += length
            gap = list(itertools.takewhile(lambda token: token not in ends, whole[start : start + length]))
            found.append(self._text(whole[:start], gap, job.params))
        return tuple(found)


@dataclass(frozen=True)
class _Job:
    """One prompt (or text with gaps) to generate from: its first sample, its parameters, its number, its pieces."""

    row: Row
    params: SamplingParams
    number: int
    pieces: tuple[str, ...] = ()

    def samples(self) -> list[Row]:
        return [dataclasses.replace(self.row, sample=sample) for sample in range(self.params.n)]


def _for_gaps(params: SamplingParams, gaps: int) -> SamplingParams:
    """The parameters with one length for each gap."""
    lengths = params.infill_length
    if gaps > 0 and len(lengths) not in (1, gaps):
        raise SettingsError(
            f"infill_length must give the tokens of the gaps, one number for all or one each ({gaps}), got {lengths}."
        )
    if params.cache not in (None, "none") or params.canvas_mode == "semi_autoregressive_origin":
        raise SettingsError(
            f"Gaps are filled with the whole text in view: leave out cache ({params.cache}) and canvas_mode "
            f"({params.canvas_mode})."
        )
    return dataclasses.replace(params, infill_length=lengths * gaps if len(lengths) == 1 else lengths)


def _told(step: Step, reader: Continuation | None, params: SamplingParams, *, is_final: bool) -> Step:
    """The step with its texts; ids without a tokenizer."""
    if reader is None:
        shown = (MASK_GLYPH if token is None else str(token) for token in step.canvas)
        return dataclasses.replace(step, text=" ".join(shown))
    text, known = reader.drawn(step.canvas, params.stop, is_final=is_final), step.canvas[: step.settled]
    settled = text if is_final else reader.settled(cast("Sequence[int]", known), params.stop)
    return dataclasses.replace(step, text=text, settled_text=settled)


def _grouped(params: Sequence[SamplingParams], batch_size: int) -> Iterator[list[int]]:
    """Indices of rows that can be decoded together: equal parameters, whatever their seeds and numbers of samples."""
    groups: dict[SamplingParams, list[int]] = {}
    for index, one in enumerate(params):
        groups.setdefault(dataclasses.replace(one, seed=0, n=1), []).append(index)
    for group in groups.values():
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]
