"""`DiffusionLM`: one object to load, generate, stream, score and save, for every method.

Prompts are texts, lists of token ids or chat messages; the tokenizer turns them into ids, the decoding that the
checkpoint is made for (or that the caller names) turns ids into ids, and the tokenizer turns those into text.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from unmask import attention
from unmask.attention import Layout
from unmask.data.batch import Batch
from unmask.data.tokenized import byte_lengths
from unmask.decoding.autoregressive import AutoregressiveRun
from unmask.decoding.canvas import CanvasRun
from unmask.decoding.step import FinishReason, Generated, Row, Run, Step, StopRule
from unmask.errors import PromptError, SettingsError
from unmask.evaluation.likelihood import is_bound, row_nats
from unmask.models import loading
from unmask.models.backbone import AttentionBackend, Backbone
from unmask.models.loading import Checkpoint
from unmask.models.tokenizers import decode, encode, start_id
from unmask.runs import locate, written_folder
from unmask.settings.decoding import Decoding, SamplingParams
from unmask.settings.evaluation import EvaluationSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, str]
Prompt = str | Sequence[int] | Sequence[Message]
MASK_GLYPH = "\u2591"
_DEFAULT_DECODING: dict[str, Decoding] = {"autoregressive": "autoregressive", "masked_diffusion": "canvas"}
_RUNS = {"autoregressive": AutoregressiveRun, "canvas": CanvasRun}


@dataclass(frozen=True)
class Output:
    """One generated text.

    Attributes:
        text: without special tokens, cut at the stop text; empty without a tokenizer.
        token_ids: generated tokens, up to and including the stop token.
        finish_reason: `stop` or `length`.
        forwards: network evaluations that the text took.
        commits: forwards among them whose only use was to fill the cache.
        prompt: number of the prompt, from 0.
        sample: number of the sample of that prompt, from 0.
        revealed_at: with `trace`, the forward that revealed each token, from 1.
        confidence: with `trace`, the probability of each token when it was revealed.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    forwards: int
    commits: int
    prompt: int
    sample: int
    revealed_at: tuple[int, ...] | None = None
    confidence: tuple[float, ...] | None = None

    @property
    def tokens_per_forward(self) -> float:
        """Generated tokens for each network evaluation."""
        return len(self.token_ids) / self.forwards


@dataclass(frozen=True)
class Score:
    """The log-likelihood of one text.

    Attributes:
        log_likelihood: nats; a lower bound where `is_bound`.
        stderr: standard error of it from the draws of the masks; 0 where exact.
        tokens: tokens scored.
        bytes: UTF-8 bytes that they stand for; 0 for token ids.
        is_bound: False for autoregression, True for diffusion.
    """

    log_likelihood: float
    stderr: float
    tokens: int
    bytes: int
    is_bound: bool


class DiffusionLM:
    """A language model of any supported method, with its tokenizer.

    Attributes:
        backbone: the network under the attention rule; `backbone.network` is the stock `transformers` model.
        tokenizer: None for a checkpoint that works on token ids.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

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
    ) -> DiffusionLM:
        """Load a run folder, a model folder or a hub id; arguments as in `unmask.models.loading.load`."""
        return DiffusionLM(
            loading.load(
                locate(name), dtype=dtype, device=device, device_map=device_map, attention_backend=attention_backend
            )
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that `from_pretrained`, and plain `transformers`, open."""
        with written_folder(Path(folder)) as partial:
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
    ) -> list[Output]:
        """Generate `n` texts for each prompt, prompt by prompt.

        Args:
            prompts: one prompt or a batch of any lengths; None generates without a prompt.
            params: one for all prompts or one for each.
            batch_size: rows that are decoded together; results do not depend on it.

        Raises:
            PromptError: a prompt is empty, too long for the context, or needs a tokenizer that is not there.
            SettingsError: the parameters do not fit the decoding or the model.
        """
        encoded = self._encode_all(prompts)
        jobs = [
            (Row(tuple(ids), sample, one.seed), one, number)
            for number, (ids, one) in enumerate(zip(encoded, self._each(params, len(encoded)), strict=True))
            for sample in range(one.n)
        ]
        outputs: dict[int, Output] = {}
        for group in _grouped([job[1] for job in jobs], batch_size):
            chosen = [jobs[index] for index in group]
            run = self._start([row for row, _, _ in chosen], chosen[0][1])
            while not run.done:
                run.advance()
            for index, (row, one, number), result in zip(group, chosen, run.results(), strict=True):
                outputs[index] = self._output(result, row, one, number)
        return [outputs[index] for index in range(len(jobs))]

    def stream(self, prompt: Prompt | None = None, params: SamplingParams | None = None) -> Iterator[Step]:
        """Generate one text and yield its `Step` after every forward; arguments as in `generate`."""
        (ids,) = self._encode_all(prompt)
        one = self._each(params, 1)[0]
        run = self._start([Row(tuple(ids), 0, one.seed)], one)
        while not run.done:
            run.advance()
            step = run.observe(0)
            yield dataclasses.replace(step, text=self._canvas_text(step.canvas))

    def score(
        self,
        texts: str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]],
        settings: EvaluationSettings | None = None,
    ) -> list[Score]:
        """Log-likelihood of each text: exact for autoregression, a bound with its standard error for diffusion.

        A text is scored after BOS, if the tokenizer has one; without it autoregression cannot score the first token.
        """
        settings = settings or EvaluationSettings(masks_per_sequence=32)
        single = isinstance(texts, str) or _is_ids(texts)
        each = cast("list[str | Sequence[int]]", [texts] if single else list(texts))
        scores: list[Score] = []
        for start in range(0, len(each), settings.batch_size):
            batch = self._scored_batch(each[start : start + settings.batch_size])
            rows = row_nats(self.backbone, batch, settings)
            fields = zip(*(field.tolist() for field in rows), strict=True)
            scores += [Score(-nats, err, tokens, size, is_bound(self.backbone)) for nats, err, tokens, size in fields]
        return scores

    @torch.inference_mode()
    def logits(self, ids: Tensor | Sequence[Sequence[int]], *, layout: Layout | None = None) -> Tensor:
        """Raw logits, float [B, L, V], of token ids under a layout; the mask and unused ids are -inf.

        The default layout is the method's own over one document per row: causal for autoregression, else bidirectional.
        """
        ids_BL = torch.as_tensor(ids, device=self.backbone.device)
        if layout is None:
            rule = attention.bidirectional if is_bound(self.backbone) else attention.causal
            layout = rule(torch.zeros_like(ids_BL))
        mask = self.backbone.render(layout, layout)
        position_ids_BL = layout.position_ids.expand_as(ids_BL)
        return self.backbone.logits(self.backbone(ids_BL, position_ids_BL, mask))

    def resolved(self, params: SamplingParams) -> SamplingParams:
        """The parameters with every default filled in, checked against this model."""
        entry = self.backbone.diffusion
        one = params.resolved(entry.decoding, _DEFAULT_DECODING.get(entry.method, "autoregressive"))
        if one.decoding == "canvas" and entry.mask_token_id is None:
            raise SettingsError(
                f"canvas decoding needs a mask token, and this {entry.method} checkpoint has none. Use decoding "
                "`autoregressive`, or train it with objective.method=masked_diffusion first."
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

    def _start(self, rows: list[Row], params: SamplingParams) -> Run:
        longest = max(len(row.prompt) for row in rows) + params.max_new_tokens
        if longest > self.backbone.context_length:
            raise PromptError(
                f"The prompt has {longest - params.max_new_tokens} tokens, which with {params.max_new_tokens} new ones "
                f"exceed the model's context of {self.backbone.context_length}. Shorten it or lower max_new_tokens."
            )
        run = _RUNS[params.decoding or "canvas"]
        return run(self.backbone.eval(), rows, params, self._stop_rule(params))

    def _stop_rule(self, params: SamplingParams) -> StopRule:
        ids = set(params.stop_token_ids)
        if not params.ignore_eos:
            ids |= self.end_ids()
        tokenizer = self.tokenizer
        to_text = None if tokenizer is None else functools.partial(decode, tokenizer)
        return StopRule(frozenset(ids), params.stop, to_text)

    def end_ids(self) -> set[int]:
        """The ids that end a text: the tokenizer's end of text and those of the generation config."""
        configured = getattr(self.backbone.network.generation_config, "eos_token_id", None)
        ids = set(configured) if isinstance(configured, list) else {configured}
        if self.tokenizer is not None:
            ids.add(self.tokenizer.eos_token_id)
        return {one for one in ids if one is not None}

    def _output(self, result: Generated, row: Row, params: SamplingParams, number: int) -> Output:
        text = self._continuation(row.prompt, result.token_ids)
        for stop in params.stop:
            text = text.partition(stop)[0]
        return Output(
            text=text,
            token_ids=result.token_ids,
            finish_reason=result.finish_reason,
            forwards=result.forwards,
            commits=result.commits,
            prompt=number,
            sample=row.sample,
            revealed_at=result.revealed_at if params.trace else None,
            confidence=result.confidence if params.trace else None,
        )

    def _continuation(self, prompt: Sequence[int], tokens: Sequence[int]) -> str:
        """Generated tokens as text; decoded behind the prompt, because some tokenizers strip a leading space."""
        if self.tokenizer is None:
            return ""
        before, both = decode(self.tokenizer, prompt), decode(self.tokenizer, [*prompt, *tokens])
        if both.startswith(before):
            return both[len(before) :]
        return decode(self.tokenizer, tokens)

    def _canvas_text(self, canvas: Sequence[int | None]) -> str:
        if self.tokenizer is None:
            return " ".join(MASK_GLYPH if token is None else str(token) for token in canvas)
        pieces: list[str] = []
        known: list[int] = []
        for token in [*canvas, None]:
            if token is not None:
                known.append(token)
                continue
            pieces += [decode(self.tokenizer, known), MASK_GLYPH]
            known = []
        return "".join(pieces[:-1])

    def _encode_all(self, prompts: Prompt | Sequence[Prompt] | None) -> list[list[int]]:
        if prompts is None or isinstance(prompts, str) or _is_ids(prompts) or _is_chat(prompts):
            return [self._encode(cast("Prompt | None", prompts))]
        if not prompts:
            raise PromptError("The list of prompts is empty. Give at least one, or None to generate without a prompt.")
        return [self._encode(prompt) for prompt in cast("Sequence[Prompt]", prompts)]

    def _encode(self, prompt: Prompt | None) -> list[int]:
        tokenizer = self.tokenizer
        if prompt is None or prompt == "":
            return self._start_of_text()
        if _is_ids(prompt):
            return self._checked(list(cast("Sequence[int]", prompt)))
        if tokenizer is None:
            raise PromptError("This checkpoint has no tokenizer: give prompts as lists of token ids.")
        if isinstance(prompt, str):
            return self._checked(encode(tokenizer, prompt, special=True))
        if not tokenizer.chat_template:
            raise PromptError("This model's tokenizer has no chat template. Give the prompt as plain text.")
        messages = [dict(message) for message in cast("Sequence[Message]", prompt)]
        text = cast(str, tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
        return self._checked(encode(tokenizer, text, special=False))

    def _start_of_text(self) -> list[int]:
        tokenizer = self.tokenizer
        start = None if tokenizer is None else start_id(tokenizer)
        if start is None and not is_bound(self.backbone):
            start = next(iter(sorted(self.end_ids())), None)
        if start is None and not is_bound(self.backbone):
            raise PromptError("An autoregressive model without BOS or end-of-text token needs a prompt. Give one.")
        return [] if start is None else [start]

    def _checked(self, ids: list[int]) -> list[int]:
        rows = int(self.backbone.network.config.vocab_size)
        wrong = [token for token in ids if not 0 <= token < rows]
        if wrong:
            raise PromptError(f"Token ids must lie between 0 and {rows - 1}, got {wrong[0]}.")
        if self.backbone.diffusion.mask_token_id in ids:
            raise PromptError("The prompt holds the mask token, which only the places to generate may hold. Remove it.")
        return ids or self._start_of_text()

    def _scored_batch(self, texts: Sequence[str | Sequence[int]]) -> Batch:
        """Texts after BOS as rows whose draws do not depend on the batch."""
        bos = None if self.tokenizer is None else start_id(self.tokenizer)
        start = [] if bos is None else [bos]
        ids, sizes = [], []
        for text in texts:
            if isinstance(text, str):
                if self.tokenizer is None:
                    raise PromptError("This checkpoint has no tokenizer: give texts as lists of token ids.")
                encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
                tokens = self._checked(cast("list[int]", encoded["input_ids"])) if text else []
                sizes.append(byte_lengths(text, [stop for _, stop in encoded["offset_mapping"]]).tolist())
            else:
                tokens = self._checked(list(text))
                sizes.append([0] * len(tokens))
            ids.append(start + tokens)
        longest = max(map(len, ids))
        if longest > self.backbone.context_length or min(map(len, ids)) == 0:
            raise PromptError(
                f"A text to score must have between 1 and {self.backbone.context_length} tokens, got {longest}. "
                "Cut it into pieces."
            )
        lead = len(start)
        supervised = [[False] * lead + [True] * (len(row) - lead) for row in ids]
        batch = Batch.of_rows(ids, supervised)
        bytes_BL = torch.zeros_like(batch.ids_BL)
        for row, size in enumerate(sizes):
            bytes_BL[row, lead : lead + len(size)] = torch.tensor(size, dtype=torch.int64)
        return dataclasses.replace(batch, uid_B=torch.zeros(len(ids), dtype=torch.int64), bytes_BL=bytes_BL)


def _is_ids(prompt: object) -> bool:
    return isinstance(prompt, Sequence | Tensor) and len(prompt) > 0 and isinstance(prompt[0], int)


def _is_chat(prompt: object) -> bool:
    return isinstance(prompt, Sequence) and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def _grouped(params: Sequence[SamplingParams], batch_size: int) -> Iterator[list[int]]:
    """Indices of rows that can be decoded together: equal parameters, whatever their seeds and numbers of samples."""
    groups: dict[SamplingParams, list[int]] = {}
    for index, one in enumerate(params):
        groups.setdefault(dataclasses.replace(one, seed=0, n=1), []).append(index)
    for group in groups.values():
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]
