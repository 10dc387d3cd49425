"""Downstream tasks by name, run through lm-evaluation-harness.

In: a language model and task runs. Out: one plain record for each, with every metric, the standard errors over the
questions and over the masks, and the settings. Names, data and code permissions are checked before the first question
is asked. Few-shot examples are drawn with the harness's own seeds, so they are those of other models' results.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import random
import statistics
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets.exceptions import DatasetsError
from lm_eval import evaluator
from lm_eval.tasks import TaskManager

from unmask.errors import DataError, MissingExtraError, SettingsError, nearest
from unmask.evaluation.harness import HarnessLM
from unmask.evaluation.model import LanguageModel
from unmask.evaluation.recipes import TaskRun

# The harness's own: random and NumPy while tasks load (some shuffle their choices), and the few-shot examples.
_RANDOM_SEED, _NUMPY_SEED, _FEWSHOT_SEED = 0, 1234, 1234
Loaded = dict[str, Any]


@dataclass(frozen=True)
class Prepared:
    """A task run whose tasks, groups and data are loaded."""

    run: TaskRun
    loaded: Loaded


def prepare(runs: Sequence[TaskRun], *, include_path: Sequence[str] = (), allow_code: bool = False) -> list[Prepared]:
    """Find the tasks and load their data.

    Args:
        runs: what to ask, and how.
        include_path: folders with task definitions of one's own, which take precedence.
        allow_code: let tasks run code that the model writes.

    Raises:
        SettingsError: a task is unknown, or runs code without permission.
        DataError: the data of a task cannot be loaded.
        MissingExtraError: a task needs a package that is not installed.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = _manager([run.name for run in runs], include_path)
    for run in runs:
        _check(run.name, manager, allow_code=allow_code)
    if allow_code:
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"  # the metric `code_eval` asks for it, too
    return [Prepared(run, _load(run.name, manager)) for run in runs]


def evaluated(
    lm: LanguageModel,
    prepared: Sequence[Prepared],
    *,
    allow_code: bool = False,
    keep_samples: bool = False,
    keep_each: bool = False,
) -> Iterator[dict[str, Any]]:
    """The record of each task run, as soon as it is known.

    Args:
        lm: the model.
        prepared: the runs.
        allow_code: whether tasks may execute what the model writes.
        keep_samples: add every question and answer to the record.
        keep_each: add what each question is worth to the rows of metrics that are means over questions.
    """
    kept = {"keep_samples": keep_samples, "keep_each": keep_each}
    for one in prepared:
        yield _record(lm, one.run, one.loaded, allow_code=allow_code, **kept)


def _manager(names: Collection[str], include_path: Sequence[str]) -> TaskManager:
    """The index of tasks. Reading all of the harness's own takes seconds, so only where they are needed."""
    for folder in include_path:
        if not Path(folder).is_dir():
            raise SettingsError(f"There is no folder {folder} with task definitions (in {Path.cwd()}).")
    if include_path:
        own = TaskManager(include_path=list(include_path), include_defaults=False)
        if all(_is_whole(name, own) for name in names):
            return own
    return TaskManager(include_path=list(include_path) or None)


def _is_whole(name: object, manager: TaskManager) -> bool:
    """Whether a task, and a group with all its members, is defined here."""
    entry = manager.task_index.get(str(name))
    if entry is None:
        return False
    members = (entry.cfg or {}).get("task")
    return not isinstance(members, list) or all(_is_whole(member, manager) for member in members)


def _check(name: str, manager: TaskManager, *, allow_code: bool) -> None:
    if name not in manager.task_index:
        hint = nearest(name, manager.all_tasks)
        hint = hint if hint.startswith("Did you mean") else "`lm-eval ls tasks` lists all of them."
        raise SettingsError(
            f"There is no task `{name}` in lm-evaluation-harness. {hint} Tasks of your own: --include-path FOLDER"
        )
    config = manager.task_index[name].cfg or {}
    if config.get("unsafe_code") and not allow_code:
        raise SettingsError(
            f"The task {name} runs code that the model writes, on this machine. Allow it with --allow-code, best in a "
            "container."
        )


def _load(name: str, manager: TaskManager) -> Loaded:
    """The tasks, groups and data behind a name."""
    random.seed(_RANDOM_SEED)
    np.random.seed(_NUMPY_SEED)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return dict(manager.load([name]))
    except ImportError as error:
        raise MissingExtraError(f"The task {name} needs a package that is not installed: {_line(error)}") from None
    except (OSError, ValueError, KeyError, DatasetsError) as error:
        raise DataError(
            f"The data of the task {name} cannot be loaded: {_line(error)}. Tasks read it from the Hugging Face hub, "
            "or from its cache (HF_HOME) without a network."
        ) from None


def _line(error: Exception) -> str:
    """The first line of a message, without its full stop."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _record(
    lm: LanguageModel, run: TaskRun, loaded: Loaded, *, allow_code: bool, keep_samples: bool, keep_each: bool
) -> dict[str, Any]:
    began, notes, greedy_tasks = time.perf_counter(), _apply_shots(run, loaded), _greedy_tasks(run, loaded)
    models, results = list[HarnessLM](), list[dict[str, Any]]()
    for offset in range(run.task.seeds):
        answers = dataclasses.replace(run.answers, seed=run.answers.seed + offset)
        sampling = {**run.sampling, "seed": run.sampling.get("seed", run.answers.seed) + offset}
        models.append(HarnessLM(lm, answers, sampling=sampling, greedy_tasks=greedy_tasks))
        with contextlib.redirect_stdout(sys.stderr), _bootstrapping_in_this_process():
            found = evaluator.evaluate(
                models[-1],
                loaded,  # type: ignore[arg-type]
                limit=run.task.limit,
                bootstrap_iters=run.task.bootstrap_iters,
                log_samples=keep_samples or keep_each or run.task.seeds > 1,
                system_instruction=run.task.system_instruction,
                apply_chat_template=run.task.apply_chat_template,
                fewshot_as_multiturn=run.task.fewshot_as_multiturn,
                confirm_run_unsafe_code=allow_code,
            )
        assert found is not None, "this process is the only one"
        results.append({**found})
    samples = {"samples": results[0]["samples"]} if keep_samples else {}
    rows = _rows(results, models[0], loaded, keep_each=keep_each)
    notes += [f"{row['task']}: {row['metric']} is no finite number" for row in rows if row["value"] is None]
    return {
        "task": run.name,
        "published": run.published,
        "results": rows,
        "notes": notes + _notes(models[0]),
        "seconds": time.perf_counter() - began,
        "settings": {**dataclasses.asdict(run.task), **dataclasses.asdict(run.answers), "sampling": dict(run.sampling)},
        **samples,
    }


def _apply_shots(run: TaskRun, loaded: Loaded) -> list[str]:
    """Set the number of examples as the harness does: a task that is zero-shot by its definition stays so."""
    refused = []
    for name, task in loaded["tasks"].items():
        own = task.get_config("num_fewshot")
        if run.task.num_fewshot is not None and own != 0:
            task.set_config(key="num_fewshot", value=run.task.num_fewshot)
        elif own is None:
            task.set_config(key="num_fewshot", value=0)
        elif run.task.num_fewshot:
            refused.append(name)
        task.set_fewshot_seed(seed=_FEWSHOT_SEED)
    return [f"{name}: zero-shot by definition, num_fewshot {run.task.num_fewshot} is not applied" for name in refused]


def _greedy_tasks(run: TaskRun, loaded: Loaded) -> frozenset[str] | None:
    """The tasks whose metrics read whether an answer is the greedy one; None: all."""
    if run.task.check_greedy is not None:
        return None if run.task.check_greedy else frozenset()
    reads = {"loglikelihood": "acc", "multiple_choice": "exact_match"}
    return frozenset(
        name for name, task in loaded["tasks"].items() if reads.get(task.OUTPUT_TYPE) in task.aggregation()
    )


@contextlib.contextmanager
def _bootstrapping_in_this_process() -> Iterator[None]:
    """The harness would fork a pool from a process whose threads hold locks."""
    name, before = "DISABLE_MULTIPROC", os.environ.get("DISABLE_MULTIPROC")
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


def _rows(
    results: Sequence[dict[str, Any]], harness: HarnessLM, loaded: Loaded, *, keep_each: bool
) -> list[dict[str, Any]]:
    """One row for each task or group, filter and metric, averaged over the seeds."""
    first, rows = results[0], []
    groups = first["group_subtasks"]
    for name, metrics in first["results"].items():
        leaves = [task.task_name for task in loaded["groups"][name].get_all_tasks()] if name in groups else [name]
        flips = _flips(results, leaves, loaded)
        for key in metrics:
            metric, comma, filter_name = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            values = [float(one["results"][name][key]) for one in results]
            mean = statistics.fmean(values)
            each = {"each": _each(results, leaves, filter_name, metric, mean)} if keep_each else {}
            rows.append(
                {
                    "task": name,
                    "is_group": name in groups,
                    "filter": filter_name,
                    "metric": metric,
                    "value": _number(mean),
                    "stderr": _number(metrics.get(f"{metric}_stderr,{filter_name}")),
                    "seed_spread": statistics.stdev(values) if len(values) > 1 else None,
                    "flips": flips,
                    "log_likelihood_stderr": _mask_stderr(harness, leaves),
                    "num_fewshot": first["n-shot"].get(name),
                    "questions": sum(first["n-samples"][leaf]["effective"] for leaf in leaves),
                    "version": first["versions"].get(name),
                    "higher_is_better": first["higher_is_better"].get(name, {}).get(metric),
                    **each,
                }
            )
    return rows


def _each(
    results: Sequence[dict[str, Any]], leaves: Sequence[str], filter_name: str, metric: str, mean: float
) -> list[float] | None:
    """What each question is worth, averaged over the seeds, in the order of the tasks; None for a metric that questions
    do not have, or that is not their mean."""
    runs = [
        [sample.get(metric) for leaf in leaves for sample in one["samples"][leaf] if sample["filter"] == filter_name]
        for one in results
    ]
    if not all(isinstance(value, int | float) for values in runs for value in values):
        return None
    each = [statistics.fmean(values) for values in zip(*runs, strict=True)]
    return each if each and math.isclose(statistics.fmean(each), mean, abs_tol=1e-9) else None


def _mask_stderr(harness: HarnessLM, leaves: Sequence[str]) -> float | None:
    """Mean standard error, from the masks, of the log-likelihoods of some tasks in nats; None where none was asked."""
    tallies = [harness.tallies[leaf] for leaf in leaves if harness.tallies[leaf].answers]
    if not tallies:
        return None
    return _number(sum(tally.stderr_sum for tally in tallies) / sum(tally.answers for tally in tallies))


def _flips(results: Sequence[dict[str, Any]], leaves: Sequence[str], loaded: Loaded) -> float | None:
    """Share of multiple-choice questions for which not every seed finds the same choice likeliest."""
    leaves = [leaf for leaf in leaves if loaded["tasks"][leaf].OUTPUT_TYPE == "multiple_choice"]
    if len(results) == 1 or not leaves:
        return None
    chosen: list[list[int]] = [
        [
            int(np.argmax([answer[0] for answer in sample["filtered_resps"]]))
            for leaf in leaves
            for sample in one["samples"][leaf]
        ]
        for one in results
    ]
    return statistics.fmean(len(set(choices)) > 1 for choices in zip(*chosen, strict=True))


def _notes(harness: HarnessLM) -> list[str]:
    notes = []
    for name, tally in harness.tallies.items():
        if tally.cut:
            notes.append(f"{name}: {tally.cut} contexts were too long and lost {tally.lost} tokens on their left")
        if tally.ignored:
            notes.append(f"{name}: its generation options {', '.join(sorted(tally.ignored))} are not used")
    return notes


def _number(value: object) -> float | None:
    """The value if it is a finite number."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
