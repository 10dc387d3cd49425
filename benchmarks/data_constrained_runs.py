"""The runs of the data-constrained study: which there are, and how they are trained, a process beside the other.

Every run is an ordinary one, of a recipe in `recipes/data-constrained/`, with a schedule of its own budget. A finished
run is left alone and an interrupted one goes on, so the same command as often as needed makes one study.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from unmask import config
from unmask.reports.curves import read_metrics
from unmask.runs import RunFolder
from unmask.settings.recipe import Recipe

RECIPES = Path(__file__).parents[1] / "recipes" / "data-constrained"
ARMS = {
    "autoregressive": "AR",
    "autoregressive-regularized": "AR, dropout and weight decay",
    "autoregressive-masked-input": "AR, masked input",
    "masked-diffusion": "masked diffusion",
    "masked-diffusion-unweighted": "masked diffusion, unweighted",
    "block-diffusion": "block diffusion",
    "tidar": "TiDAR",
}
"""Recipes by file name, and what they are called."""
EVALUATIONS = 20
"""How often a run scores the selection part."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One run: a recipe, a budget of epochs, a seed."""

    arm: str
    epochs: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.epochs}-{self.seed}"


@dataclasses.dataclass(frozen=True)
class Study:
    """What all runs share.

    Attributes:
        folder: of texts, runs and scores.
        overlay: recipe files over each arm's own.
        settings: `key=value` over them all.
        unique: tokens to learn from.
    """

    folder: Path
    overlay: tuple[Path, ...]
    settings: tuple[str, ...]
    unique: int

    def recipe(self, case: Case) -> Recipe:
        """The recipe of a run."""
        given = [
            f"data.train=[{self.folder / 'text' / 'train.jsonl'}]",
            f"data.validation=[{self.folder / 'text' / 'select.jsonl'}]",
            f"data.cache_dir={self.folder / 'cache'}",
            f"data.max_tokens={self.unique}",
            "evaluation.max_rows=null",
            *self.settings,
            f"name={case.name}",
            f"output_dir={self.folder / 'runs'}",
            f"seed={case.seed}",
            "training.steps=null",
            f"training.epochs={case.epochs}",
        ]
        files = (RECIPES / f"{case.arm}.yaml", *self.overlay)
        recipe = config.load(Recipe, file=files, overrides=given)
        steps = case.epochs * self.unique / (recipe.training.batch_size * recipe.data.context_length)
        every = max(1, round(steps / EVALUATIONS))
        training = dataclasses.replace(recipe.training, eval_steps=every, save_steps=every * EVALUATIONS // 4)
        return dataclasses.replace(recipe, training=training)

    def run(self, case: Case) -> RunFolder:
        return RunFolder(self.folder / "runs" / case.name)

    def finished(self, case: Case) -> bool:
        """Whether a run is done.

        Raises:
            SystemExit: it is a run of other settings.
        """
        run = self.run(case)
        if run.config.is_file() and config.load(Recipe, file=run.config) != self.recipe(case):
            raise SystemExit(f"{run.root} is a run of other settings. Choose another folder with --output.")
        return run.final.is_dir()


def planned(
    arms: Sequence[str],
    budgets: Sequence[int],
    seeds: int,
    *,
    single: Sequence[str] = (),
    further: Mapping[str, Sequence[int]] | None = None,
) -> list[Case]:
    """The runs, the longest first, so that no long one remains alone at the end.

    Args:
        arms: file names of recipes.
        budgets: epochs.
        seeds: runs of each arm and budget, with the seeds 0, 1, ...
        single: arms with one seed only.
        further: budgets that one arm has beside the others'.
    """
    cases = [
        Case(arm, epochs, seed)
        for arm in arms
        for epochs, seed in itertools.product([*budgets, *(further or {}).get(arm, ())], range(seeds))
    ]
    chosen = [case for case in cases if case.seed == 0 or case.arm not in single]
    return sorted(chosen, key=lambda case: (-case.epochs, case.seed, arms.index(case.arm)))


def learned(study: Study, case: Case) -> dict[str, int]:
    """What a run learns from: unique tokens, their bytes, their rows; makes vocabulary and tokens, once for all."""
    from unmask.data.packing import PackedRows
    from unmask.training.preparation import prepare_text, prepare_tokenizer

    recipe, cache = study.recipe(case), study.folder / "cache"
    rows = prepare_text(recipe, prepare_tokenizer(recipe, cache), cache).train
    assert isinstance(rows, PackedRows), "the arms learn from packed text"
    return {"tokens": int(rows.text.starts[-1]), "bytes": int(rows.text.bytes.sum()), "rows": len(rows)}


def train_all(study: Study, cases: Sequence[Case], *, jobs: int, deadline: float | None) -> bool:
    """Train what is not finished; whether everything is now.

    Args:
        study: what they share.
        cases: the runs.
        jobs: processes; on the CPU each has one thread.
        deadline: `time.time()` at which all stop, saved, to go on another time.
    """
    waiting = [case for case in cases if not study.finished(case)]
    if not waiting:
        return True
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin) as pool:
        try:
            found = {pool.submit(_train, study, case, deadline): case for case in waiting}
            for number, future in enumerate(concurrent.futures.as_completed(found), start=1):
                state = "finished" if future.result() else "not finished"
                print(f"{number}/{len(waiting)} {found[future].name}: {state}", flush=True)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return all(study.finished(case) for case in cases)


_stopped = False
"""In a worker: whether it was asked to stop."""


def _begin() -> None:
    import torch

    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, _not_training)


def _not_training(number: int, frame: FrameType | None) -> None:
    """SIGTERM before and after the loop, which has a handler of its own."""
    global _stopped
    _stopped = True


def _train(study: Study, case: Case, deadline: float | None) -> bool:
    """Train one run as far as time allows; whether it is finished."""
    global _stopped
    if _stopped or (deadline is not None and time.time() >= deadline):
        return False
    from unmask.training.run import train

    with _stops_at(deadline):
        outcome = train(study.recipe(case), resume="auto")
    _stopped = _stopped or outcome.signal is not None
    return outcome.signal is None


@contextmanager
def _stops_at(deadline: float | None) -> Iterator[None]:
    """At the deadline the training loop gets a SIGTERM, at which it saves and ends."""

    def ring(number: int, frame: FrameType | None) -> None:
        if signal.getsignal(signal.SIGTERM) is _not_training:
            signal.setitimer(signal.ITIMER_REAL, 1.0)  # the loop has not begun: ask again
        else:
            signal.raise_signal(signal.SIGTERM)

    if deadline is None:
        yield
        return
    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(0.1, deadline - time.time()))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def trajectory(run: RunFolder) -> list[dict[str, Any]]:
    """What a run recorded when it scored the selection part: step, tokens, bits per byte."""
    return [
        {"step": step, "tokens": one["tokens"], "bits_per_byte": one["eval/bits_per_byte"]}
        for step, one in read_metrics(run.metrics).items()
        if "eval/bits_per_byte" in one
    ]
