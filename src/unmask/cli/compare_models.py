"""What `unmask compare` measures on each model, one model in memory at a time."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from unmask.errors import CheckpointError, ReportError
from unmask.runs import RunFolder, locate
from unmask.settings.comparison import ComparisonSettings
from unmask.settings.decoding import SamplingParams
from unmask.settings.evaluation import EvaluationSettings
from unmask.settings.recipe import Recipe

if TYPE_CHECKING:
    from unmask.evaluation.downstream import Prepared
    from unmask.evaluation.likelihood import RowNats
    from unmask.evaluation.pieces import Piece, Reader
    from unmask.lm import DiffusionLM

T = TypeVar("T")
_LONGEST_PIECE = 512


@dataclasses.dataclass(frozen=True)
class Measured:
    """What one model gave.

    Attributes:
        record: the figures that need no other model.
        rows: nats of each piece.
        is_bound: whether these are upper bounds.
        chain_rule: nats of the first pieces from left to right; the exact nats where the model is exact.
        continuations: of the prompts.
    """

    record: dict[str, Any]
    rows: RowNats
    is_bound: bool
    chain_rule: list[float]
    continuations: list[str]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What all models are measured on.

    Attributes:
        settings: of the comparison.
        pieces: of the text.
        chained: how many of the pieces, from the first, are scored from left to right too.
        prompts: beginnings of documents, to continue.
        new_tokens: of a continuation, at most.
        tasks: downstream.
        device: where models are put.
        dtype: of their weights.
    """

    settings: ComparisonSettings
    pieces: list[Piece]
    chained: int
    prompts: list[str]
    new_tokens: int
    tasks: Sequence[Prepared]
    device: str | None
    dtype: str


def reader(model: str, name: str, recipe: Recipe | None, settings: ComparisonSettings) -> Reader:
    """How a model reads, told from its configuration alone.

    Raises:
        CheckpointError: there is no model, or it has no tokenizer.
    """
    from unmask.evaluation.pieces import Reader
    from unmask.models.loading import outline

    located = locate(model)
    checkpoint = outline(located)
    if checkpoint.tokenizer is None:
        raise CheckpointError(f"{model} has no tokenizer, so it cannot score text, and cannot be compared.")
    longest, entry = checkpoint.backbone.context_length, checkpoint.backbone.diffusion
    length = min(longest, recipe.data.context_length if recipe else _LONGEST_PIECE)
    length = min(longest, settings.context_length or length)
    if entry.method == "block_diffusion" and entry.block_length is not None:
        length = max(entry.block_length, length - length % entry.block_length)
    return Reader(name, checkpoint.tokenizer, max(1, length - 1))


def room_for(model: str, prompts: Sequence[str]) -> int:
    """Tokens that a model can write behind the longest of the prompts."""
    from unmask.models.loading import outline
    from unmask.models.prompts import PromptCodec

    checkpoint = outline(locate(model))
    longest = max(len(PromptCodec(checkpoint).encode(prompt)) for prompt in prompts)
    return checkpoint.backbone.context_length - longest


def measured(model: str, name: str, plan: Plan) -> Measured:
    """Load a model and measure everything on it."""
    from unmask.evaluation.likelihood import is_bound
    from unmask.evaluation.pieces import chain_rule_nats, nats_of
    from unmask.lm import DiffusionLM
    from unmask.models.loading import parameter_counts

    lm = DiffusionLM.from_pretrained(model, device=plan.device, dtype=plan.dtype).optimize_for_inference()
    settings, bound = plan.settings, is_bound(lm.backbone)
    options = EvaluationSettings(
        masks_per_sequence=settings.masks_per_sequence, batch_size=settings.batch_size, seed=settings.seed
    )
    nats_of(lm.codec, plan.pieces[:1], options, name=name)  # so that no first use is timed
    rows, seconds = _timed(lm, lambda: nats_of(lm.codec, plan.pieces, options, name=name))
    chained = rows.nats_B[: plan.chained].tolist()
    if bound and plan.chained:
        chained = chain_rule_nats(lm.codec, plan.pieces[: plan.chained], options)
    tokens, size = int(rows.tokens_B.sum()), int(rows.bytes_B.sum())
    record = {
        "model": locate(model),
        "parameters": parameter_counts(lm.backbone.network)[0],
        "vocabulary": lm.backbone.diffusion.vocabulary_size,
        "block_length": lm.backbone.diffusion.block_length,
        "method": lm.backbone.diffusion.method,
        "dtype": str(lm.backbone.network.dtype).removeprefix("torch."),
        "device": str(lm.backbone.device),
        "tokens": tokens,
        "scoring": {
            "forwards_per_text": settings.masks_per_sequence if bound else 1,
            "tokens_per_second": tokens / seconds,
            "bytes_per_second": size / seconds,
        },
    }
    continuations, record["generation"] = _written(lm, plan)
    record["tasks"] = _tasks(lm, plan)
    return Measured(record, rows, bound, chained, continuations)


def training(model: str) -> tuple[dict[str, Any] | None, list[str]]:
    """What a run's metrics tell about its training, and a note where they are damaged; None where there is no run."""
    from unmask.reports.curves import read_metrics

    run = RunFolder(Path(model))
    if not run.config.is_file():
        return None, []
    try:
        records = read_metrics(run.metrics)
    except ReportError as error:
        return None, [f"{model}: its training is not shown, its likelihood is not affected. {error}"]
    curve = [
        {"tokens": one["tokens"], "bits_per_byte": one["eval/bits_per_byte"], "stderr": one.get("eval/stderr", 0.0)}
        for one in records.values()
        if math.isfinite(one.get("eval/bits_per_byte", math.nan)) and "tokens" in one
    ]
    notes = [] if curve else [f"{model}: its metrics hold no held-out evaluation, so it has no curve."]
    tokens = max((one["tokens"] for one in records.values() if "tokens" in one), default=None)
    return {"steps": max(records), "tokens": tokens, "curve": curve}, notes


def beginnings(documents: Sequence[str], settings: ComparisonSettings) -> list[tuple[str, str]]:
    """Prompts, and how their documents go on: of the first documents that are twice as long as a prompt."""
    words = re.compile(rf"(\S+\s+){{{settings.prompt_words - 1}}}\S+")
    found = []
    for document in documents:
        text = document.strip()
        prompt = words.match(text)
        is_long = len(text.split(None, 2 * settings.prompt_words)) > 2 * settings.prompt_words
        if prompt and is_long and len(found) < settings.texts:
            found.append((prompt[0], text[prompt.end() :]))
    return found


def _written(lm: DiffusionLM, plan: Plan) -> tuple[list[str], dict[str, Any] | None]:
    if not plan.prompts:
        return [], None
    params = SamplingParams(
        max_new_tokens=plan.new_tokens, temperature=plan.settings.temperature, seed=plan.settings.seed
    )
    lm.generate(plan.prompts[:1], dataclasses.replace(params, max_new_tokens=min(4, plan.new_tokens)))
    outputs, seconds = _timed(lm, lambda: lm.generate(plan.prompts, params, batch_size=plan.settings.batch_size))
    texts = [output.text for output in outputs]
    tokens, forwards = (sum(len(one.token_ids) for one in outputs), sum(one.forwards for one in outputs))
    return texts, {
        "tokens": tokens,
        "tokens_per_forward": tokens / forwards,
        "tokens_per_second": tokens / seconds,
        "bytes_per_second": sum(len(text.encode()) for text in texts) / seconds,
        "bytes_per_text": sum(len(text.encode()) for text in texts) / len(texts),
        "ended": sum(one.finish_reason == "stop" for one in outputs) / len(outputs),
    }


def _tasks(lm: DiffusionLM, plan: Plan) -> list[dict[str, Any]]:
    if not plan.tasks:
        return []
    from unmask.evaluation import downstream

    return list(downstream.evaluated(lm, plan.tasks, keep_each=True))


def _timed(lm: DiffusionLM, work: Callable[[], T]) -> tuple[T, float]:
    """What some work gives, and its seconds: with one thread those of the processor, whatever else the machine does."""
    import torch

    alone = lm.backbone.device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    began = clock()
    found = work()
    return found, max(clock() - began, 1e-9)
