"""`unmask evaluate RUN_OR_MODEL [--data SOURCE ...]`: the likelihood of text."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask import config
from unmask.cli.options import settings
from unmask.cli.output import note
from unmask.errors import DataError
from unmask.runs import RunFolder, environment, locate
from unmask.settings.data import DataSettings
from unmask.settings.evaluation import EvaluationSettings
from unmask.settings.objective import ObjectiveSettings
from unmask.settings.recipe import Recipe

if TYPE_CHECKING:
    from unmask.evaluation.likelihood import Likelihood
    from unmask.lm import DiffusionLM
    from unmask.training.parts import KeptSplit


def prepare(model: str, given: argparse.Namespace) -> Callable[[DiffusionLM], Iterator[dict[str, Any]]]:
    """What to do with the model; everything that can be wrong without it is found here."""
    evaluation = settings(EvaluationSettings, given)
    recipe = _recipe(model)
    if "data" not in given and recipe is None:
        raise DataError(
            f"{model} is no run folder with a held-out text. Name the text: --data FILE; or tasks: --tasks hellaswag"
        )

    if "data" in given:
        _data(given, getattr(given, "context_length", 2))  # what is wrong with it is found before the model is read

    def measure(lm: DiffusionLM) -> Iterator[dict[str, Any]]:
        text = _sources(lm, recipe, given) if "data" in given else recipe
        assert text is not None, "checked above"
        yield evaluated(lm, text, evaluation, own="data" not in given, source=model)

    return measure


def _sources(lm: DiffusionLM, recipe: Recipe | None, given: argparse.Namespace) -> Recipe:
    """A recipe whose text is the sources given, in rows as long as the run's own, of whole blocks of the model."""
    length = recipe.data.context_length if recipe else min(512, lm.backbone.context_length)
    length = getattr(given, "context_length", length)
    data = _data(given, length)
    if lm.backbone.diffusion.method == "block_diffusion":
        return Recipe(data=data, objective=ObjectiveSettings(method="block_diffusion"))
    return Recipe(data=data)


def _data(given: argparse.Namespace, context_length: int) -> DataSettings:
    """The sources that the options name."""
    chosen = {name: getattr(given, name) for name in ("text_field", "separator", "split", "malformed") if name in given}
    return DataSettings(train=tuple(given.data), context_length=context_length, validation_fraction=0.0, **chosen)


def evaluated(
    lm: DiffusionLM, recipe: Recipe, evaluation: EvaluationSettings, *, own: bool, source: str
) -> dict[str, Any]:
    """The likelihood of a recipe's text as a record.

    Args:
        lm: that scores it.
        recipe: names the text.
        evaluation: how many masks of how many rows.
        own: score what the recipe holds out, not what it trains on.
        source: where the model is from.

    Raises:
        CheckpointError: the model has no tokenizer, or the split of its run is damaged.
        DataError: the recipe holds no text out, its text cannot be read, or what the run held out is gone.
    """
    from unmask.errors import CheckpointError
    from unmask.evaluation.likelihood import evaluate
    from unmask.training import kept_split
    from unmask.training.checkpoint import run_of
    from unmask.training.preparation import prepare_text

    if lm.tokenizer is None:
        raise CheckpointError(
            f"{source} has no tokenizer, so it cannot score text. Score token ids in Python: lm.score"
        )
    kept = kept_split.of_run(run_of(Path(source)), recipe.data, lm.tokenizer, purpose="evaluate") if own else None
    with tempfile.TemporaryDirectory() as folder:
        block_length = lm.backbone.diffusion.block_length
        text = prepare_text(recipe, lm.tokenizer, Path(folder), block_length=block_length, kept=kept)
        rows = text.held_out if own else text.train
        if rows is None:
            raise DataError(f"The run {source} held no text out. Name the text to score: --data FILE")
        began = time.perf_counter()
        likelihood = evaluate(lm.backbone, rows, evaluation)
        seconds = time.perf_counter() - began
        if text.skipped:
            note(f"{text.skipped} malformed rows were skipped")
        record = _record(
            lm, likelihood, evaluation, recipe, source, seconds, min(len(rows), evaluation.max_rows or len(rows))
        )
        return record | _kept(lm, recipe, text.split, own=own, at_most=evaluation.max_rows)


def _kept(
    lm: DiffusionLM, recipe: Recipe, split: KeptSplit | None, *, own: bool, at_most: int | None
) -> dict[str, Any]:
    """What the tokenizer keeps of the documents, of as many as rows were scored at most; of conversations and token
    files nothing is known."""
    from unmask.evaluation.texts import kept
    from unmask.training.preparation import held_out_texts, trained_texts

    if recipe.data.format != "text":
        return {"tokenizer": None}
    assert lm.tokenizer is not None, "checked before"
    texts = held_out_texts(recipe.data, split) if own else trained_texts(recipe.data)
    found = kept(lm.tokenizer, itertools.islice(texts, at_most))
    if found.warning:
        note(f"warning: {found.warning}")
    names = ("documents", "changed", "unknown", "text_bytes", "scored_bytes")
    return {"tokenizer": {name: getattr(found, name) for name in names}}


def _record(
    lm: DiffusionLM,
    likelihood: Likelihood,
    evaluation: EvaluationSettings,
    recipe: Recipe,
    source: str,
    seconds: float,
    rows: int,
) -> dict[str, Any]:
    return {
        "model": locate(source),
        "method": lm.backbone.diffusion.method,
        "data": list(recipe.data.validation or recipe.data.train),
        "rows": rows,
        "context_length": recipe.data.context_length,
        "tokens": likelihood.tokens,
        "bytes": likelihood.bytes,
        "kind": "upper bound (ELBO)" if likelihood.is_bound else "exact",
        "bits_per_byte": _known(likelihood.bits_per_byte),
        "bits_per_byte_stderr": _known(likelihood.bits_per_byte_stderr),
        "nats_per_token": likelihood.nats_per_token,
        "nats_per_token_stderr": _known(likelihood.stderr / max(1, likelihood.tokens)),
        "perplexity": likelihood.perplexity,
        "evaluation": dataclasses.asdict(evaluation),
        "dtype": str(lm.backbone.network.dtype).removeprefix("torch."),
        "device": str(lm.backbone.device),
        "seconds": seconds,
        "tokens_per_second": likelihood.tokens / seconds,
        "environment": environment(),
    }


def table(record: dict[str, Any]) -> str:
    """The record as people read it."""
    exact = record["kind"] == "exact"
    name = "perplexity" if exact else "perplexity (upper bound)"
    lines = [
        f"| model | method | kind | tokens | bits/byte | +- | nats/token | +- | {name} |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
        f"| {record['model']} | {record['method']} | {record['kind']} | {record['tokens']:,} "
        f"| {_number(record['bits_per_byte'])} | {_number(record['bits_per_byte_stderr'])} "
        f"| {_number(record['nats_per_token'])} | {_number(record['nats_per_token_stderr'])} "
        f"| {record['perplexity']:,.2f} |",
    ]
    if not exact:
        masks = record["evaluation"]["masks_per_sequence"]
        lines.append(f"\n+- is the standard error of the masks drawn ({masks} per row, stratified).")
    return "\n".join(lines)


def _known(value: float) -> float | None:
    """None for what is unknown: bits per byte without bytes, errors of one mask."""
    return None if math.isnan(value) else value


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _recipe(model: str) -> Recipe | None:
    """The recipe of a run folder."""
    file = RunFolder(Path(model)).config
    return config.load(Recipe, file=file) if file.is_file() else None
