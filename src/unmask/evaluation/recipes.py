"""Recipes of downstream evaluation: a YAML list of tasks, each with its settings.

    defaults: {mc_num: 128}
    tasks:
      - {task: hellaswag, num_fewshot: 0, cfg_scale: 0.5, published: 72.5}
      - {task: gsm8k, sampling: {max_new_tokens: 1024}}

A task's keys are the fields of `TaskSettings` and `AnswerSettings`; `sampling`: fields of `SamplingParams` (or the
originals' names for them), which overrule what the task asks of generation; and `published`, a figure to print beside
ours. Precedence: the fields' own defaults < `defaults` < the task < the command line.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from unmask import config
from unmask.errors import SettingsError, nearest
from unmask.settings import aliases
from unmask.settings.decoding import SamplingParams
from unmask.settings.evaluation import AnswerSettings, TaskSettings

_ANSWERS, _TASK, _SAMPLING = (
    frozenset(one.name for one in dataclasses.fields(kind)) for kind in (AnswerSettings, TaskSettings, SamplingParams)
)
_KEYS = _ANSWERS | _TASK | {"sampling", "published"}
_ONE_TEXT = ("n", "trace")
RENAMED = {"cfg": "cfg_scale", "is_check_greedy": "check_greedy"}
"""Options of LLaDA's own harness that have another name here."""


@dataclass(frozen=True)
class TaskRun:
    """One task and how it is run.

    Attributes:
        name: of the task, group or tag in lm-evaluation-harness.
        task: shots, limits, templates.
        answers: how log-likelihoods are measured.
        sampling: fields of `SamplingParams` that overrule what the task asks for.
        published: a figure to print beside ours, in percent.
    """

    name: str
    task: TaskSettings = field(default_factory=TaskSettings)
    answers: AnswerSettings = field(default_factory=AnswerSettings)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    published: float | None = None


def task_run(name: str, tree: Mapping[str, Any], *, source: str) -> TaskRun:
    """A task run from one flat mapping of keys, as in a recipe.

    Raises:
        SettingsError: a key is unknown, or a value of the wrong type or out of range.
    """
    tree = {RENAMED.get(key, key): value for key, value in tree.items()}
    for key in tree:
        if key not in _KEYS:
            raise SettingsError(f"Unknown key `{key}` of the task {name} in {source}. {nearest(str(key), _KEYS)}")
    if not isinstance(tree.get("sampling") or {}, Mapping):
        raise SettingsError(f"`sampling` of the task {name} in {source} must hold `key: value` pairs.")
    sampling = {key: value for key, value in tree.items() if key in _SAMPLING & _ANSWERS} | dict(
        tree.get("sampling") or {}
    )
    sampling = aliases.translated(sampling)
    config.check_keys(SamplingParams, sampling, source=source)
    for key in _ONE_TEXT:
        if key in sampling:
            raise SettingsError(f"`{key}` is not set in an evaluation: each question gets one text (in {source}).")
    typed = config.from_tree(SamplingParams, sampling)
    return TaskRun(
        name=name,
        task=config.from_tree(TaskSettings, {key: value for key, value in tree.items() if key in _TASK}),
        answers=config.from_tree(AnswerSettings, {key: value for key, value in tree.items() if key in _ANSWERS}),
        sampling={key: getattr(typed, key) for key in sampling},
        published=_percent(tree.get("published"), name),
    )


def read_recipe(
    file: Path, *, only: Sequence[str] | None = None, overrides: Mapping[str, Any] | None = None
) -> list[TaskRun]:
    """The task runs of a recipe, with overrides on top of each; `only` keeps some of its tasks.

    Raises:
        SettingsError: the file is missing or malformed, or `only` names a task that it does not hold.
    """
    tree = config.read_yaml(file)
    defaults, entries = tree.get("defaults") or {}, tree.get("tasks")
    unknown = sorted(map(str, set(tree) - {"defaults", "tasks"}))
    if unknown:
        raise SettingsError(f"Unknown key `{unknown[0]}` in {file}. {nearest(unknown[0], ['defaults', 'tasks'])}")
    if (
        not isinstance(defaults, dict)
        or not isinstance(entries, list)
        or not entries
        or not all(map(_is_entry, entries))
    ):
        raise SettingsError(
            f"{file} must hold `tasks:`, a list of entries such as {{task: hellaswag, num_fewshot: 0}}."
        )
    names = [entry["task"] for entry in entries]
    for name in only or ():
        if name not in names:
            raise SettingsError(f"The recipe {file} has no task `{name}`. {nearest(name, names)}")
    return [
        task_run(entry["task"], _merged(defaults, entry, overrides or {}), source=str(file))
        for entry in entries
        if only is None or entry["task"] in only
    ]


def _is_entry(entry: object) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("task"), str)


def _merged(*trees: Mapping[str, Any]) -> dict[str, Any]:
    """Later trees overrule earlier ones; `sampling` key by key."""
    merged: dict[str, Any] = {}
    for tree in trees:
        own = tree.get("sampling") or {}
        if not isinstance(own, Mapping):
            raise SettingsError(f"`sampling` must hold `key: value` pairs, got {own!r}.")
        merged |= {**tree, "sampling": {**merged.get("sampling", {}), **own}}
    merged.pop("task", None)
    return merged


def _percent(value: object, name: str) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if value is not None and not is_number:
        raise SettingsError(f"`published` of the task {name} must be a number in percent, got {value!r}.")
    return None if value is None else float(cast(float, value))
