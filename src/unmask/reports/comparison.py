"""A comparison's record as tables: Markdown for the terminal, CSV to compute with.

In: the record of `unmask compare`. Out: text. The tables are plain rows of cells, so that the page shows the same.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

_NONE = "-"
_QUALITY = {
    "judge_perplexity": "perplexity under the judge",
    "judge_bits_per_byte": "bits per byte under the judge",
    "unigram_entropy": "bits/word",
    "distinct_bigrams": "distinct pairs",
    "repeated_4grams": "repeated 4-grams",
}


class Table(NamedTuple):
    """A table with what stands above and below it.

    Attributes:
        title: a heading.
        header: names of the columns.
        rows: cells as text.
        legend: what the numbers mean.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    legend: str


def tables(record: dict[str, Any]) -> list[Table]:
    """Every table that the record has numbers for."""
    made = [_likelihoods(record), _pairs(record)]
    if record["chain_rule_bytes"]:
        made.append(_chain_rule(record))
    if record["generation"] is not None:
        made.append(_quality(record))
    made.append(_speed(record))
    if any(model["tasks"] for model in record["models"]):
        made.append(_tasks(record))
    if record["task_pairs"]:
        made.append(_task_pairs(record))
    return made


def as_markdown(record: dict[str, Any]) -> str:
    """The tables, and below them what a reader must know."""
    lines = [f"Compared on {summary(record)}", ""]
    for table in tables(record):
        columns = ["---", *["---:"] * (len(table.header) - 1)]
        lines += [f"## {table.title}", "", _line(table.header), _line(columns), *map(_line, table.rows)]
        lines += ["", table.legend, ""]
    lines += [f"- {note}" for note in record["notes"]]
    return "\n".join(lines).rstrip()


def summary(record: dict[str, Any]) -> str:
    """The text in one sentence."""
    text = record["text"]
    counts = [f"{record['documents']:,} {record['unit']}{'s' * (record['documents'] != 1)}"]
    counts += [f"{text['pieces']:,} pieces"] * (record["unit"] != "piece") + [f"{text['bytes']:,} bytes"]
    return f"{', '.join(counts)} of {', '.join(text['sources'])}, the same for every model."


def as_csv(record: dict[str, Any]) -> str:
    """One line for each number: what it is of, its name, the value, its interval and its standard error."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(("of", "measure", "value", "low", "high", "stderr", "note"))
    for line in _numbers(record):
        writer.writerow(["" if cell is None else f"{cell:.8g}" if isinstance(cell, float) else cell for cell in line])
    return written.getvalue()


def _numbers(record: dict[str, Any]) -> list[tuple[Any, ...]]:
    lines: list[tuple[Any, ...]] = []
    for model in record["models"]:
        name = model["name"]
        interval = (model["low"], model["high"], model["masks_stderr"])
        lines.append((name, "bits_per_byte", model["bits_per_byte"], *interval, model["kind"]))
        if model["chain_rule"]:
            own = model["chain_rule"]["own_bits_per_byte"]
            lines.append((name, "bits_per_byte, chain rule's part", own, None, None, None, model["kind"]))
            lines.append((name, "bits_per_byte, chain rule", model["chain_rule"]["bits_per_byte"], *[None] * 4))
        for what in ("scoring", "generation"):
            for measure, value in (model[what] or {}).items():
                lines.append((name, f"{what}, {measure}", value, *[None] * 4))
        for one in _task_rows(model):
            measure = f"{one['task']}, {one['filter']}, {one['metric']}"
            lines.append((name, measure, one["value"], None, None, one["stderr"], None))
    for name, own in (record["generation"] or {"quality": {}})["quality"].items():
        lines += [(name, f"texts, {measure}", value, *[None] * 4) for measure, value in own.items()]
    for pair in record["pairs"]:
        interval = (pair["low"], pair["high"], pair["masks_stderr"])
        lines.append((f"{pair['a']} - {pair['b']}", "bits_per_byte", pair["difference"], *interval, pair["follows"]))
    for pair in record["task_pairs"]:
        measure = f"{pair['task']}, {pair['filter']}, {pair['metric']}"
        limits = (pair["low"], pair["high"], None)
        winner = f"{pair['winner']} is better" if pair["winner"] else "no winner shown"
        lines.append((f"{pair['a']} - {pair['b']}", measure, pair["difference"], *limits, winner))
    return lines


def _likelihoods(record: dict[str, Any]) -> Table:
    rows = [
        [
            model["name"],
            model["method"] + (f" ({model['block_length']})" if model["block_length"] else ""),
            f"{model['parameters']:,}",
            f"{model['tokens']:,}",
            model["kind"],
            ("at most " if model["kind"] != "exact" else "") + f"{model['bits_per_byte']:.4f}",
            _range(model),
            _number(model["masks_stderr"]) if model["kind"] != "exact" else _NONE,
        ]
        for model in record["models"]
    ]
    share = f"{record['confidence']:.1%}".replace(".0%", "%")
    legend = (
        f"Interval: {share} of {record['resamplings']:,} bootstrap resamplings of the {record['unit']}s; it holds the "
        f"masks' noise. +- (masks): standard error from the masks alone, {record['settings']['masks_per_sequence']} of "
        "them for each piece."
    )
    header = ["model", "method", "parameters", "tokens", "kind", "bits/byte", "interval", "+- (masks)"]
    return Table("Likelihood", header, rows, legend)


def _pairs(record: dict[str, Any]) -> Table:
    rows = [
        [
            f"{pair['a']} - {pair['b']}",
            f"{pair['difference']:+.4f}",
            _range(pair),
            _number(pair["masks_stderr"]) if pair["basis"] != "exact" else _NONE,
            pair["basis"],
            pair["winner"] or "none shown",
            pair["follows"],
        ]
        for pair in record["pairs"]
    ]
    together = " together" if len(rows) > 1 else ""
    legend = (
        f"Both models are resampled on the same {record['unit']}s. The interval{'s hold' if together else ' holds'}"
        f"{together} with {record['confidence']:.0%}. A winner is named only where the interval excludes 0 and what is "
        "compared allows it: a true likelihood is at or below its bound."
    )
    header = ["pair", "bits/byte", "interval", "+- (masks)", "compared", "winner", "what follows"]
    return Table("Differences", header, rows, legend)


def _chain_rule(record: dict[str, Any]) -> Table:
    rows = []
    for model in record["models"]:
        own = model["chain_rule"]
        bound = model["kind"] != "exact"
        rows.append(
            [
                model["name"],
                ("at most " if bound else "") + f"{own['own_bits_per_byte']:.4f}",
                f"{own['bits_per_byte']:.4f}",
            ]
        )
    legend = (
        f"On the first {record['chain_rule_bytes']:,} bytes. Chain rule: each token predicted behind the true ones "
        "before it, everything else masked. For a diffusion model that is the exact likelihood of writing from left to "
        "right, one of its orders: another model than the one that is bounded, and neither bounds the other."
    )
    return Table("From left to right", ["model", "bits/byte, as above", "bits/byte, chain rule"], rows, legend)


def _quality(record: dict[str, Any]) -> Table:
    made = record["generation"]
    quality = {name: _in_bits(own) for name, own in made["quality"].items()}
    columns = [key for key in _QUALITY if any(key in own for own in quality.values())]
    rows = []
    for name, own in quality.items():
        model = next((one for one in record["models"] if one["name"] == name), None)
        length = f"{model['generation']['bytes_per_text']:.0f}" if model else _NONE
        rows.append([name, length, *(_quality_cell(key, own) for key in columns)])
    temperature = record["settings"]["temperature"]
    legend = (
        f"{made['texts']} beginnings of documents continued by at most {made['new_tokens']} tokens at temperature "
        f"{temperature:g}, by each model's default decoding. "
        + (f"Judge: {made['judge']}. " if made["judge"] else "No --judge was given. ")
        + "A text that repeats itself is likely under any judge and random words are varied: read likelihood, entropy "
        "(of the words), distinct pairs and repetition together, beside those of the text itself."
    )
    return Table("Generated texts", ["model", "bytes/text", *map(_QUALITY.__getitem__, columns)], rows, legend)


def _in_bits(own: dict[str, float]) -> dict[str, float]:
    if "judge_nats_per_byte" not in own:
        return own
    bits = {f"judge_{to}": own[f"judge_{of}"] / math.log(2) for to, of in _BITS.items()}
    return own | bits


_BITS = {"bits_per_byte": "nats_per_byte", "bits_stderr": "stderr"}


def _quality_cell(key: str, own: dict[str, float]) -> str:
    if key == "judge_bits_per_byte":
        return f"{own[key]:.3f} +- {own['judge_bits_stderr']:.3f}"
    if key in ("distinct_bigrams", "repeated_4grams"):
        return f"{own[key]:.1%}"
    return f"{own[key]:.2f}"


def _speed(record: dict[str, Any]) -> Table:
    rows = []
    for model in record["models"]:
        scoring, made = model["scoring"], model["generation"]
        written = ["tokens_per_second", "bytes_per_second", "tokens_per_forward"]
        rows.append(
            [
                model["name"],
                f"{model['device']}, {model['dtype']}",
                f"{scoring['tokens_per_second']:,.0f}",
                f"{scoring['bytes_per_second']:,.0f}",
                str(scoring["forwards_per_text"]),
                *(f"{made[key]:,.{2 if key == 'tokens_per_forward' else 0}f}" if made else _NONE for key in written),
            ]
        )
    threads = record["settings"]["threads"]
    clock = "one thread, seconds of the processor" if threads == 1 else f"{threads} threads, seconds of the clock"
    legend = (
        f"On a CPU: {clock}. Tokens of different tokenizers differ in length, bytes do not. Scoring a bound takes a "
        f"forward for each of its masks; batches of {record['settings']['batch_size']}."
    )
    header = ["model", "device, dtype", "scored tokens/s", "scored bytes/s", "forwards per piece"]
    header += ["written tokens/s", "written bytes/s", "tokens/forward"]
    return Table("Speed", header, rows, legend)


def _tasks(record: dict[str, Any]) -> Table:
    rows = [
        [model["name"], *(str(one[key]) for key in ("task", "questions", "filter", "metric"))]
        + [_number(one[key]) for key in ("value", "stderr")]
        for model in record["models"]
        for one in _task_rows(model)
    ]
    legend = (
        "+- is the standard error over the questions, of each model by itself. Answers are scored exactly by "
        "autoregressive models and TiDAR, by their bound otherwise; a bound's slack differs from answer to answer."
    )
    return Table("Tasks", ["model", "task", "questions", "filter", "metric", "value", "+-"], rows, legend)


def _task_pairs(record: dict[str, Any]) -> Table:
    groups = {row["task"] for model in record["models"] for row in _task_rows(model)}
    rows = [
        [
            f"{one['a']} - {one['b']}",
            *(str(one[key]) for key in ("task", "filter", "metric", "questions")),
            f"{one['difference']:+.4f}",
            _range(one),
            one["winner"] or "none shown",
        ]
        for one in record["task_pairs"]
        if one["task"] in groups
    ]
    legend = (
        "The same questions for both, resampled together; a winner is named where the interval excludes 0. The "
        f"intervals of everything that was compared here hold together with {record['confidence']:.0%}."
    )
    header = ["pair", "task", "filter", "metric", "questions", "difference", "interval", "winner"]
    return Table("Differences in tasks", header, rows, legend)


def _task_rows(model: dict[str, Any]) -> list[dict[str, Any]]:
    """The results of a model's tasks, groups without their members."""
    found = []
    for task in model["tasks"]:
        groups = [row for row in task["results"] if row["is_group"]]
        found += groups or task["results"]
    return found


def _range(figure: dict[str, Any]) -> str:
    return _NONE if figure["low"] is None else f"{figure['low']:.4f} to {figure['high']:.4f}"


def _number(value: float | None) -> str:
    return _NONE if value is None else f"{value:.4f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
