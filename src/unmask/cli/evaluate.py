"""`unmask evaluate RUN_OR_MODEL [--data SOURCE ...]`."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask import config
from unmask.cli.options import add_settings, parser, quiet_libraries, settings
from unmask.errors import DataError
from unmask.runs import RunFolder, environment, locate, write_text
from unmask.settings.data import DataSettings
from unmask.settings.evaluation import EvaluationSettings
from unmask.settings.recipe import Recipe

if TYPE_CHECKING:
    from unmask.evaluation.likelihood import Likelihood
    from unmask.lm import DiffusionLM

_EXAMPLES = """\
  unmask evaluate runs/python-docs                              # the run's own held-out text
  unmask evaluate runs/python-docs --data my.txt --masks-per-sequence 32
  unmask evaluate Qwen/Qwen3-0.6B --data hf:Salesforce/wikitext:wikitext-2-raw-v1 --split test --max-rows 500
"""


def run(arguments: Sequence[str]) -> int:
    """Run the verb; returns the exit code."""
    options = parser(
        "evaluate",
        "Likelihood of text: exact for autoregressive models, an upper bound with its standard error for diffusion.",
        _EXAMPLES,
    )
    options.add_argument("model", metavar="RUN_OR_MODEL", help="run folder, model folder or hub id")
    options.add_argument(
        "--data", action="append", metavar="SOURCE", help="text to score [default: the run's held-out]"
    )
    options.add_argument("--context-length", "--context_length", type=int, help="tokens per row [default: the run's]")
    options.add_argument("--text-field", "--text_field", default="text", help="field of JSON rows [default: text]")
    options.add_argument("--separator", help="text between the documents of a plain-text file")
    options.add_argument("--split", default="train", help="split of a Hugging Face dataset [default: train]")
    options.add_argument("--malformed", choices=("error", "skip"), default="error", help="rows that cannot be read")
    options.add_argument("--output", metavar="FILE", help="also write the JSON record here")
    options.add_argument("--json", action="store_true", help="print the JSON record instead of the table")
    options.add_argument("--device", metavar="DEVICE", help="cpu, cuda, ... [default: the accelerator, if any]")
    options.add_argument("--dtype", metavar="DTYPE", default="auto", help="type of the weights [default: as saved]")
    add_settings(options, EvaluationSettings, "evaluation")
    parsed = options.parse_args(list(arguments))
    evaluation = settings(EvaluationSettings, parsed)
    recipe = _recipe(parsed.model)
    if parsed.data is None and recipe is None:
        raise DataError(f"{parsed.model} is no run folder with a held-out text. Name the text: --data FILE")
    quiet_libraries()
    from unmask.lm import DiffusionLM

    lm = DiffusionLM.from_pretrained(parsed.model, device=parsed.device, dtype=parsed.dtype)
    if parsed.data is not None:
        length = parsed.context_length or (
            recipe.data.context_length if recipe else min(512, lm.backbone.context_length)
        )
        chosen = {name: getattr(parsed, name) for name in ("text_field", "separator", "split", "malformed")}
        recipe = Recipe(
            data=DataSettings(train=tuple(parsed.data), context_length=length, validation_fraction=0.0, **chosen)
        )
    assert recipe is not None
    record = _evaluated(lm, recipe, evaluation, own=parsed.data is None, source=parsed.model)
    if parsed.output is not None:
        write_text(Path(parsed.output), json.dumps(record, indent=2) + "\n")
    print(json.dumps(record) if parsed.json else _table(record))
    return 0


def _evaluated(
    lm: DiffusionLM, recipe: Recipe, evaluation: EvaluationSettings, *, own: bool, source: str
) -> dict[str, Any]:
    from unmask.errors import CheckpointError
    from unmask.evaluation.likelihood import evaluate
    from unmask.training.preparation import prepare_text

    if lm.tokenizer is None:
        raise CheckpointError(
            f"{source} has no tokenizer, so it cannot score text. Score token ids in Python: lm.score"
        )
    with tempfile.TemporaryDirectory() as folder:
        text = prepare_text(recipe, lm.tokenizer, Path(folder))
        rows = text.held_out if own else text.train
        if rows is None:
            raise DataError(f"The run {source} held no text out. Name the text to score: --data FILE")
        began = time.perf_counter()
        likelihood = evaluate(lm.backbone, rows, evaluation)
        seconds = time.perf_counter() - began
        if text.skipped:
            print(f"{text.skipped} malformed rows were skipped", file=sys.stderr)
        return _record(
            lm, likelihood, evaluation, recipe, source, seconds, min(len(rows), evaluation.max_rows or len(rows))
        )


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
        "bits_per_byte": likelihood.bits_per_byte,
        "bits_per_byte_stderr": likelihood.bits_per_byte_stderr,
        "nats_per_token": likelihood.nats_per_token,
        "nats_per_token_stderr": likelihood.stderr / max(1, likelihood.tokens),
        "perplexity": likelihood.perplexity,
        "evaluation": dataclasses.asdict(evaluation),
        "dtype": str(lm.backbone.network.dtype).removeprefix("torch."),
        "device": str(lm.backbone.device),
        "seconds": seconds,
        "tokens_per_second": likelihood.tokens / seconds,
        "environment": environment(),
    }


def _table(record: dict[str, Any]) -> str:
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


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _recipe(model: str) -> Recipe | None:
    """The recipe of a run folder."""
    file = RunFolder(Path(model)).config
    return config.load(Recipe, file=file) if file.is_file() else None
