"""Runs that are killed anywhere and resumed are the runs that nobody killed, bit for bit, and nothing is left behind.

`pytest -m storm` kills 60 runs or more, in some minutes; a sample of them is part of the suite.
"""

from __future__ import annotations

import random
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.training import recipes, storm
from unmask import config
from unmask.settings.recipe import Recipe
from unmask.training.run import train

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="paths of open files are read from /proc")

_TIED = {"tie_word_embeddings": True}
CASES: dict[str, dict[str, Any]] = {
    "autoregressive": {"objective": {"method": "autoregressive"}, "ema": 0.9, "model": _TIED},
    "masked": {"objective": {"method": "masked_diffusion"}, "ema": 0.9, "model": _TIED},
    "blocks": {"objective": {"method": "block_diffusion", "block_length": 4}, "ema": 0.9, "model": _TIED},
    "tidar": {"objective": {"method": "tidar", "block_length": 4}, "ema": 0.9, "model": _TIED},
    "untied": {"objective": {"method": "masked_diffusion"}, "ema": 0.9, "model": {}},
    "lora": {"objective": {"method": "masked_diffusion"}, "ema": None, "model": None},
}
KILLS = 12
"""Of each case; of 60 and more in all."""


def recipe(folder: Path, case: str) -> Recipe:
    """A recipe that tokenises in its run folder, evaluates and saves every second step, and keeps few checkpoints."""
    chosen = CASES[case]
    made = recipes.tree(
        folder, steps=6, eval_steps=2, save_steps=1, keep_checkpoints=1, probe_rows=2, ema_decay=chosen["ema"]
    )
    made |= {"name": case, "output_dir": str(folder / "runs"), "objective": chosen["objective"]}
    made["data"] |= {"cache_dir": None}
    if chosen["model"] is None:
        base = recipes.tree(folder, steps=1) | {"name": "base"}
        base["data"] |= {"cache_dir": None}
        made["model"] = {"from_pretrained": str(train(config.from_tree(Recipe, base)).run.final), "dtype": "float64"}
        made["adapter"] = {"rank": 2}
    else:
        made["model"] |= chosen["model"]
        made["data"] |= {"tokenizer": "bpe", "vocabulary_size": 300}
    return config.from_tree(Recipe, made)


def kill_and_compare(folder: Path, case: str, *, kills: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kill a run at `kills` points, each twice where it lives long enough, and resume it each time."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("UNMASK_STORM_LOG", str(folder / "log.txt"))
    recipes.write_text(folder)
    made = recipe(folder, case)
    found = storm.operations(made)
    assert {one.phase for one in found} == {"opening", "tokenising", "saving", "linking", "recording", "finishing"}
    run = Path(made.output_dir) / made.name
    whole = storm.state(storm.RunFolder(run))
    assert whole["left"] == [] and whole["status"]["state"] == "finished"
    draw = random.Random(seed)
    for number in storm.points(found, kills, seed=seed):
        shutil.rmtree(made.output_dir)
        assert storm.killed_at(made, number), found[number]
        if draw.random() < 0.5:
            storm.killed_at(made, draw.randrange(60))  # the resumed one is killed as well
        there = storm.state(storm.resumed(made))
        assert storm.differing(there, whole) == [], found[number]


@pytest.mark.storm
@pytest.mark.parametrize("case", CASES)
def test_a_storm_of_kills_changes_nothing(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kill_and_compare(tmp_path, case, kills=KILLS, seed=len(case), monkeypatch=monkeypatch)


@pytest.mark.parametrize("case", ["masked", "lora"])
def test_a_few_kills_change_nothing(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kill_and_compare(tmp_path, case, kills=4, seed=0, monkeypatch=monkeypatch)
