"""`unmask evaluate RUN_OR_MODEL --tasks NAMES | --recipe FILE`: downstream tasks of lm-evaluation-harness."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.cli.options import sampling_names
from unmask.cli.output import as_json, note
from unmask.errors import SettingsError, require
from unmask.evaluation.recipes import TaskRun, read_recipe, task_run
from unmask.runs import environment, locate
from unmask.settings.evaluation import AnswerSettings, TaskSettings
from unmask.writing import write_text

if TYPE_CHECKING:
    from unmask.lm import DiffusionLM


def prepare(model: str, given: argparse.Namespace) -> Callable[[DiffusionLM], Iterator[dict[str, Any]]]:
    """What to do with the model; names, data and permissions are checked before it is loaded."""
    runs = _runs(given)
    require("lm_eval", extra="eval", purpose="Evaluation on tasks")
    from unmask.evaluation import downstream

    allow_code, folders = "allow_code" in given, getattr(given, "include_path", [])
    prepared = downstream.prepare(runs, include_path=folders, allow_code=allow_code)

    def measure(lm: DiffusionLM) -> Iterator[dict[str, Any]]:
        record = {
            "model": locate(model),
            "method": lm.backbone.diffusion.method,
            "dtype": str(lm.backbone.network.dtype).removeprefix("torch."),
            "device": str(lm.backbone.device),
            "environment": environment() | {"lm_eval": metadata.version("lm_eval")},
            "tasks": [],
        }
        lines: list[str] = []
        for one in downstream.evaluated(lm, prepared, allow_code=allow_code, keep_samples="samples" in given):
            for remark in one["notes"]:
                note(remark)
            if "samples" in given:
                lines += [as_json(sample) for each in one.pop("samples").values() for sample in each]
            record["tasks"].append(one)
            yield record
            if "samples" in given:  # after the record has been taken: it must not be lost if this fails
                write_text(Path(given.samples), "\n".join(lines) + "\n")

    return measure


def _runs(given: argparse.Namespace) -> list[TaskRun]:
    """The task runs that the options describe; options overrule a recipe's tasks."""
    names = [name.strip() for name in given.tasks.split(",") if name.strip()] if "tasks" in given else None
    if names == []:
        raise SettingsError("--tasks names no task. Example: --tasks hellaswag,arc_easy")
    flat = {one.name for kind in (TaskSettings, AnswerSettings) for one in dataclasses.fields(kind)}
    sampling = sampling_names() - flat
    tree = {name: value for name, value in vars(given).items() if name in flat}
    tree["sampling"] = {name: value for name, value in vars(given).items() if name in sampling}
    if "recipe" in given:
        return read_recipe(Path(given.recipe), only=names, overrides=tree)
    return [task_run(name, tree, source="the command line") for name in names or ()]


def table(record: dict[str, Any]) -> str:
    """The record as people read it: groups without their members, every metric and its errors."""
    rows = [(one, row) for one in record["tasks"] for row in _shown(one["results"])]
    seeds = any(row["seed_spread"] is not None for _, row in rows)
    published = any(one["published"] is not None for one in record["tasks"])
    columns = ["task", "shots", "questions", "filter", "metric", "value", "+-"]
    columns += ["+- (seeds)", "flips"] * seeds + ["+- (masks, nats)"] + ["published"] * published
    lines = [f"| {' | '.join(columns)} |", "|---|---:|---:|---|---|" + "---:|" * (len(columns) - 5)]
    quoted: set[str] = set()
    for one, row in rows:
        cells = [row["task"], _text(row["num_fewshot"]), f"{row['questions']:,}", row["filter"], row["metric"]]
        cells += [_text(row["value"]), _text(row["stderr"])]
        cells += [_text(row["seed_spread"]), _text(row["flips"])] * seeds + [_text(row["log_likelihood_stderr"])]
        if published:
            new = one["published"] is not None and one["task"] not in quoted
            cells.append(f"{one['published']:g} %" if new else "-")
            quoted.add(one["task"])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", _legend(record, seeds=seeds, published=published)])


def _shown(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    groups = [row for row in rows if row["is_group"]]
    return groups or rows


def _legend(record: dict[str, Any], *, seeds: bool, published: bool) -> str:
    said = ["+- is the standard error over the questions"]
    if record["method"] not in ("autoregressive", "tidar"):
        said.append("+- (masks, nats) the mean standard error of a log-likelihood, from the masks that were drawn")
    if seeds:
        said.append(
            "+- (seeds) the standard deviation over the seeds, flips the share of questions whose choice changes"
        )
    if published:
        said.append("published is what the recipe quotes; its comments name the source")
    return "; ".join(said) + "."


def _text(value: float | int | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4f}"
